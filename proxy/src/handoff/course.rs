//! Owns the course of one handoff: when new writes are made to wait, when they have waited long enough, and when the keys move. Pure:
//! it is told what is seen and what time it is.
//!
//! **Invariant:** the keys move only when every write that was begun before the fence is over, or is counted as one left behind.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use crate::{
    config::{AtBound, HandoffConfig},
    session::registry::Running,
};

/// How long writes wait at most, in times of `handoff_soft`, when nothing keeps them but that homes are behind.
const PARKED_TIMES: u32 = 4;

/// Whose keys move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// A node's, to the others.
    Away,
    /// A node's, back to it.
    Home,
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: look again soon.
    Wait,
    /// New writes are to wait from now on.
    Park,
    /// They may go on where they were.
    Lift,
    /// These are in the way, and are to be ended.
    End(Vec<Running>),
    /// All that was begun before is over, but for so many: the new homes are to have it, and then the keys move.
    Move {
        /// Writes that were begun before and go on.
        left: usize,
    },
    /// It stays as it was.
    Stay,
}

/// What is done to writes now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// They go on.
    Open,
    /// They wait since then.
    Parked { since: Instant },
}

/// One handoff.
#[derive(Debug)]
pub(super) struct Course {
    direction: Direction,
    node: usize,
    config: HandoffConfig,
    begun: Instant,
    phase: Phase,
    /// When each unit that is under way was first seen.
    seen: HashMap<(i32, u32), Instant>,
    /// Those that were begun before the fence.
    before: HashSet<(i32, u32)>,
    /// Those that are in the way have been told to end.
    has_ended: bool,
}

impl Course {
    /// One that begins now.
    pub(super) fn new(
        direction: Direction,
        node: usize,
        config: HandoffConfig,
        now: Instant,
    ) -> Course {
        Course {
            direction,
            node,
            config,
            begun: now,
            phase: Phase::Open,
            seen: HashMap::new(),
            before: HashSet::new(),
            has_ended: false,
        }
    }

    /// Whether a session may be writing where the keys are now.
    fn concerns(&self, unit: &Running) -> bool {
        match self.direction {
            Direction::Away => unit.node == self.node && (unit.writes || unit.hold.is_some()),
            // Who keeps its server writes there for as long as it does, whatever is at home elsewhere.
            Direction::Home => unit.node != self.node && unit.writes && unit.hold.is_none(),
        }
    }

    /// The next step. `prepared`: transactions that are prepared on the node. Each step that is answered has been carried out when
    /// the next is asked for.
    pub(super) fn step(&mut self, now: Instant, running: &[Running], prepared: usize) -> Step {
        let concerned: Vec<Running> = running
            .iter()
            .filter(|unit| self.concerns(unit))
            .copied()
            .collect();
        let keys: HashSet<(i32, u32)> = concerned.iter().map(key).collect();
        self.seen.retain(|key, _| keys.contains(key));
        for key in keys {
            self.seen.entry(key).or_insert(now);
        }
        match self.phase {
            Phase::Open => self.open(now, &concerned, prepared),
            Phase::Parked { since } => self.parked(now, since, &concerned, prepared),
        }
    }

    /// Nobody waits yet.
    fn open(&mut self, now: Instant, concerned: &[Running], prepared: usize) -> Step {
        let is_over = self.is_over(now);
        if is_over && self.config.at_bound == AtBound::Stay {
            return Step::Stay;
        }
        let is_short =
            |unit: &Running| unit.hold.is_none() && self.age(unit, now) < self.config.soft;
        // Of what was there at the beginning it is not known how old it was.
        let is_known = now.saturating_duration_since(self.begun) >= self.config.soft;
        let is_free = prepared == 0 && concerned.iter().all(is_short);
        if is_over || concerned.is_empty() && prepared == 0 || is_known && is_free {
            return Step::Park;
        }
        Step::Wait
    }

    /// New writes wait since then.
    pub(super) fn has_parked(&mut self, now: Instant, running: &[Running]) {
        self.phase = Phase::Parked { since: now };
        let concerned = running.iter().filter(|unit| self.concerns(unit));
        self.before = concerned.map(key).collect();
    }

    fn parked(
        &mut self,
        now: Instant,
        since: Instant,
        concerned: &[Running],
        prepared: usize,
    ) -> Step {
        let left: Vec<Running> = concerned
            .iter()
            .filter(|unit| self.before.contains(&key(unit)))
            .copied()
            .collect();
        if left.is_empty() && prepared == 0 {
            return Step::Move { left: 0 };
        }
        if now.saturating_duration_since(since) < self.config.soft {
            return Step::Wait;
        }
        match (self.is_over(now), self.config.at_bound) {
            (true, AtBound::GoOn) => Step::Move {
                left: left.len() + prepared,
            },
            (true, AtBound::Abort) if !self.has_ended && !left.is_empty() => {
                self.has_ended = true;
                // They get some time to be gone.
                self.phase = Phase::Parked { since: now };
                Step::End(left)
            }
            (true, AtBound::Abort | AtBound::Stay) => Step::Stay,
            (false, _) => {
                self.lift();
                Step::Lift
            }
        }
    }

    /// The homes that the keys go to do not have all that was written yet. Whether it is waited for on.
    pub(super) fn is_behind(&mut self, now: Instant) -> Step {
        let Phase::Parked { since } = self.phase else {
            return Step::Wait;
        };
        if now.saturating_duration_since(since) < self.config.soft * PARKED_TIMES {
            return Step::Wait;
        }
        // Whatever is done at the bound, nobody goes to a home that lacks what was written.
        match self.is_over(now) {
            true => Step::Stay,
            false => {
                self.lift();
                Step::Lift
            }
        }
    }

    fn lift(&mut self) {
        self.phase = Phase::Open;
        self.before.clear();
    }

    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.begun) >= self.config.hard
    }

    fn age(&self, unit: &Running, now: Instant) -> Duration {
        let seen = self.seen.get(&key(unit)).copied().unwrap_or(now);
        now.saturating_duration_since(seen)
    }

    /// Whether new writes wait.
    pub(super) fn parks(&self) -> bool {
        matches!(self.phase, Phase::Parked { .. })
    }

    /// What it waits for of these: those that keep their server, and those that take long.
    pub(super) fn in_the_way(&self, now: Instant, running: &[Running]) -> Vec<Running> {
        let is_long = |unit: &&Running| {
            self.concerns(unit)
                && (unit.hold.is_some() || self.parks() || self.age(unit, now) >= self.config.soft)
        };
        running.iter().filter(is_long).copied().collect()
    }
}

fn key(unit: &Running) -> (i32, u32) {
    (unit.client, unit.unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::state::Hold;

    const MS: Duration = Duration::from_millis(1);

    fn config(at_bound: AtBound) -> HandoffConfig {
        HandoffConfig {
            soft: 100 * MS,
            hard: 1000 * MS,
            at_bound,
        }
    }

    fn unit(client: i32, unit: u32, node: usize) -> Running {
        Running {
            client,
            node,
            server: client,
            unit,
            writes: true,
            hold: None,
        }
    }

    fn away(at_bound: AtBound) -> (Course, Instant) {
        let now = Instant::now();
        (Course::new(Direction::Away, 0, config(at_bound), now), now)
    }

    #[test]
    fn where_nothing_is_written_the_keys_move_at_once() {
        let (mut course, now) = away(AtBound::Stay);
        let read = Running {
            writes: false,
            ..unit(1, 1, 0)
        };
        let elsewhere = unit(2, 1, 1);
        let seen = [read, elsewhere];
        assert_eq!(course.step(now, &seen, 0), Step::Park);
        course.has_parked(now, &seen);
        assert_eq!(course.step(now, &seen, 0), Step::Move { left: 0 });
    }

    #[test]
    fn writes_wait_only_when_none_is_old_and_only_for_those_begun_before() {
        let (mut course, now) = away(AtBound::Stay);
        assert_eq!(course.step(now, &[unit(1, 1, 0)], 0), Step::Wait);
        // The first is old by now; then it is another one of the same client's.
        assert_eq!(course.step(now + 100 * MS, &[unit(1, 1, 0)], 0), Step::Wait);
        let second = [unit(1, 2, 0)];
        assert_eq!(course.step(now + 110 * MS, &second, 0), Step::Park);
        course.has_parked(now + 110 * MS, &second);
        assert_eq!(course.step(now + 120 * MS, &second, 0), Step::Wait);
        // Whoever comes now has seen the fence, and is counted for the next time only.
        let after = [unit(1, 3, 0), unit(3, 1, 0)];
        assert_eq!(
            course.step(now + 130 * MS, &after, 0),
            Step::Move { left: 0 }
        );
    }

    #[test]
    fn a_write_that_turns_out_long_lets_the_others_go_on() {
        let (mut course, now) = away(AtBound::Stay);
        course.step(now, &[unit(1, 1, 0)], 0);
        let long = [unit(1, 2, 0)];
        assert_eq!(course.step(now + 100 * MS, &long, 0), Step::Park);
        course.has_parked(now + 100 * MS, &long);
        assert_eq!(course.step(now + 199 * MS, &long, 0), Step::Wait);
        assert_eq!(course.step(now + 200 * MS, &long, 0), Step::Lift);
        assert!(!course.parks());
        assert_eq!(course.step(now + 300 * MS, &long, 0), Step::Wait);
        assert_eq!(course.in_the_way(now + 300 * MS, &long), long);
        assert_eq!(course.step(now + 1000 * MS, &long, 0), Step::Stay);
    }

    #[test]
    fn what_keeps_its_server_and_what_is_prepared_is_in_the_way_of_a_drain_only() {
        let now = Instant::now();
        let pinned = Running {
            writes: false,
            hold: Some(Hold::Mode),
            ..unit(1, 1, 0)
        };
        let (mut away, _) = away(AtBound::Stay);
        assert_eq!(away.step(now + 500 * MS, &[pinned], 0), Step::Wait);
        assert_eq!(away.step(now + 500 * MS, &[], 1), Step::Wait);
        assert_eq!(away.step(now + 500 * MS, &[], 0), Step::Park);
        let mut home = Course::new(Direction::Home, 1, config(AtBound::Stay), now);
        assert_eq!(home.step(now, &[pinned], 0), Step::Park);
    }

    #[test]
    fn at_the_bound_it_does_what_is_configured() {
        let long = [unit(1, 1, 0)];
        let at_bound = |at_bound: AtBound, prepared: usize| {
            let (mut course, now) = away(at_bound);
            course.step(now, &long, prepared);
            let mut steps = Vec::new();
            for ms in [1000, 1001, 1100, 1101, 1200, 1300] {
                let now = now + ms * MS;
                let step = course.step(now, &long, prepared);
                if step == Step::Park {
                    course.has_parked(now, &long);
                }
                let is_last = matches!(step, Step::Stay | Step::Move { .. });
                steps.push(step);
                if is_last {
                    break;
                }
            }
            steps.retain(|step| *step != Step::Wait);
            steps
        };
        assert_eq!(at_bound(AtBound::Stay, 0), [Step::Stay]);
        let goes_on = [Step::Park, Step::Move { left: 2 }];
        assert_eq!(at_bound(AtBound::GoOn, 1), goes_on);
        let ends = [Step::Park, Step::End(long.to_vec()), Step::Stay];
        assert_eq!(at_bound(AtBound::Abort, 0), ends);
    }

    #[test]
    fn nobody_waits_long_for_a_home_that_is_behind() {
        let (mut course, now) = away(AtBound::GoOn);
        assert_eq!(course.step(now, &[], 0), Step::Park);
        course.has_parked(now, &[]);
        assert_eq!(course.is_behind(now + 399 * MS), Step::Wait);
        assert_eq!(course.is_behind(now + 400 * MS), Step::Lift);
        course.has_parked(now + 900 * MS, &[]);
        assert_eq!(course.is_behind(now + 1300 * MS), Step::Stay);
    }

    /// Sessions that come and go at random, with a fence that they look at behind taking their server, as `session/checkout.rs`
    /// does: when the keys move nothing that was begun under the old placement is left.
    #[test]
    fn when_the_keys_move_no_write_of_before_is_left() {
        for seed in 0..500 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut course, mut now) = away(AtBound::Stay);
            let mut running: Vec<Running> = Vec::new();
            let mut numbers = [0_u32; 6];
            let mut is_parked = false;
            loop {
                for client in 0..6 {
                    let place = running.iter().position(|unit| unit.client == client);
                    match place {
                        Some(place) if random.u8(0..4) > 0 => {
                            running.swap_remove(place);
                        }
                        Some(_) => {}
                        None if !is_parked && random.bool() => {
                            let number = &mut numbers[usize::try_from(client).expect("small")];
                            *number += 1;
                            running.push(unit(client, *number, 0));
                        }
                        None => {}
                    }
                }
                now += random.u32(1..20) * MS;
                match course.step(now, &running, 0) {
                    Step::Wait => {}
                    Step::Park => {
                        is_parked = true;
                        course.has_parked(now, &running);
                    }
                    Step::Lift => is_parked = false,
                    Step::Move { left } => {
                        assert!(is_parked && left == 0 && running.is_empty(), "seed {seed}");
                        break;
                    }
                    Step::Stay => {
                        assert!(course.is_over(now), "seed {seed}");
                        break;
                    }
                    Step::End(_) => unreachable!("it stays at the bound"),
                }
            }
        }
    }
}
