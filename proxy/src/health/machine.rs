//! Owns the state of one node: a pure state machine over probe results, how far replication is, and what an operator wants, with the
//! time as an argument.

use std::time::{Duration, Instant};

/// Failed probes in a row after which a node counts as down. One may be a hiccup.
const FAILURES_TO_DOWN: u32 = 2;
/// A node that is under suspicion, or not taken yet, is probed this soon again: nobody should wait for the next round.
const SHORT_PROBE_GAP: Duration = Duration::from_millis(100);
/// The smallest distance of two probes, however much evidence sessions bring.
const PROBE_GAP_MIN: Duration = Duration::from_millis(50);
/// Share of a new sample in the moving average: 1 / this.
const RTT_WEIGHT: u64 = 8;
/// The published round trip moves when the average is off by this, or by a fifth of it if that is more.
const RTT_STEP_MIN_US: u64 = 250;

/// The state of a node, as people are told it. It follows from what probes found, from how far replication is, and from what an
/// operator wants ([`Machine`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Not probed yet.
    Unknown,
    /// It answers, but what is written there would reach no other node: replication has not taken it yet.
    Untaken,
    /// It answers again, or for the first time: it gets no clients before it has what the others have, and they what it has.
    CatchingUp,
    /// The latest probe succeeded.
    Up,
    /// Was up; the latest probes failed, but not often enough for a verdict.
    Suspect {
        /// Failed probes in a row.
        failures: u32,
    },
    /// Gets no new sessions until a probe succeeds.
    Down,
    /// It answers, but its clock lets it take no writes.
    Fenced,
    /// An operator takes it out of service: its keys are on their way to other nodes.
    Draining,
    /// An operator has taken it out of service, whether it answers or not.
    Drained,
}

impl Health {
    /// Whether it may be usable in a moment, so that waiting is worth it.
    pub fn is_pending(self) -> bool {
        matches!(self, Health::Unknown | Health::Untaken | Health::CatchingUp)
    }

    /// The word for logs and status.
    pub fn word(self) -> &'static str {
        match self {
            Health::Unknown => "unknown",
            Health::Untaken => "untaken",
            Health::CatchingUp => "catching_up",
            Health::Up => "up",
            Health::Suspect { .. } => "suspect",
            Health::Down => "down",
            Health::Fenced => "fenced",
            Health::Draining => "draining",
            Health::Drained => "drained",
        }
    }
}

/// Whether a node is there, in service or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Nobody knows, or it has not been taken.
    Unknown,
    /// Probes say that it is gone.
    Away,
    /// It answers, and has yet to catch up.
    Back,
    /// It has caught up.
    Here,
}

/// What clients may do on a node now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Nothing.
    Nobody,
    /// All, as long as no other node takes them.
    LastResort,
    /// Writes that belong there wait until it is decided where they go; reads go elsewhere.
    Parked,
    /// Writes of its keys; reads go elsewhere.
    Writes,
    /// All.
    All,
}

/// What probes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Unknown,
    Untaken,
    Up,
    Suspect { failures: u32 },
    Down,
}

impl Reach {
    fn answers(self) -> bool {
        matches!(self, Reach::Up | Reach::Suspect { .. })
    }
}

/// What an operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    In,
    Leaving,
    Out,
}

/// Whether it has what the others have, and they what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caught {
    /// `late`: for so long that it is better than nothing.
    Not {
        late: bool,
    },
    Up,
}

/// What has happened to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A statement ran on a fresh connection; its round trip.
    Success {
        /// Time from sending the statement to its answer.
        rtt: Duration,
    },
    /// The same, but the slot that its changes are read from is not there.
    Untaken,
    /// Refused, reset while connecting, starting up, shutting down or in recovery: decides at once.
    Refused,
    /// Anything else that went wrong: a timeout, a name that did not resolve, an error of the server.
    Failed,
    /// The proxy itself could not try, for example for lack of file descriptors: says nothing of the node.
    NotTried,
    /// A session lost its connection. Never a verdict: any client can provoke one. Asks for a probe.
    Evidence,
    /// Replication has caught up both ways since the node came back for this time ([`Machine::catching_up`]).
    CaughtUp {
        /// Which return.
        returned: u32,
    },
    /// It takes long to catch up since that return.
    Late {
        /// Which return.
        returned: u32,
    },
    /// Its clock lets it take no writes, or does so again.
    Fence(bool),
    /// New writes that belong there wait, or go on.
    Park(bool),
    /// It is to be taken out of service.
    Drain,
    /// That was given up.
    Stay,
    /// It is out of service.
    Drained,
    /// It is in service again.
    Resumed,
}

impl Event {
    /// Whether it is what came of a probe, or of a session's connect.
    fn is_of_probe(self) -> bool {
        matches!(
            self,
            Event::Success { .. }
                | Event::Untaken
                | Event::Refused
                | Event::Failed
                | Event::NotTried
        )
    }
}

/// The state of one node and when to probe it next.
#[derive(Debug)]
pub struct Machine {
    reach: Reach,
    service: Service,
    caught: Caught,
    is_fenced: bool,
    /// New writes that belong there wait.
    parks: bool,
    /// How often it has come back.
    returned: u32,
    /// Whether there is anybody to catch up with.
    catches_up: bool,
    interval: Duration,
    next_probe: Instant,
    last_probe: Option<Instant>,
    rtt_average_us: Option<u64>,
    rtt_published_us: Option<u64>,
}

impl Machine {
    /// A node that nothing is known of, but whether an operator had taken it out of service. It wants its first probe at `now`.
    /// `catches_up`: there are others to catch up with.
    pub fn new(interval: Duration, now: Instant, catches_up: bool, is_drained: bool) -> Machine {
        Machine {
            reach: Reach::Unknown,
            service: match is_drained {
                true => Service::Out,
                false => Service::In,
            },
            caught: Caught::Not { late: false },
            is_fenced: false,
            parks: false,
            returned: 0,
            catches_up,
            interval,
            next_probe: now,
            last_probe: None,
            rtt_average_us: None,
            rtt_published_us: None,
        }
    }

    /// The distance of two probes from now on; the next one comes no later than that.
    pub fn set_interval(&mut self, interval: Duration, now: Instant) {
        self.interval = interval;
        self.next_probe = self.next_probe.min(now + interval);
    }

    /// The only place where the state changes. Returns the health before, if it changed in kind.
    pub fn on(&mut self, event: Event, now: Instant) -> Option<Health> {
        let before = self.health();
        if event.is_of_probe() {
            self.last_probe = Some(now);
            self.next_probe = now + self.interval;
        }
        match event {
            Event::Success { rtt } => {
                self.sample(rtt);
                self.reaches(Reach::Up);
            }
            Event::Untaken => {
                self.next_probe = now + SHORT_PROBE_GAP.min(self.interval);
                self.reaches(Reach::Untaken);
            }
            Event::Refused => self.reaches(Reach::Down),
            Event::Failed => {
                let failures = match self.reach {
                    // Who was never seen well is not trusted yet.
                    Reach::Unknown | Reach::Untaken | Reach::Down => FAILURES_TO_DOWN,
                    Reach::Up => 1,
                    Reach::Suspect { failures } => failures.saturating_add(1),
                };
                if failures >= FAILURES_TO_DOWN {
                    self.reaches(Reach::Down);
                } else {
                    self.next_probe = now + SHORT_PROBE_GAP.min(self.interval);
                    self.reaches(Reach::Suspect { failures });
                }
            }
            Event::NotTried => {}
            Event::Evidence => {
                let soonest = self.last_probe.map_or(now, |last| last + PROBE_GAP_MIN);
                self.next_probe = self.next_probe.min(soonest.max(now));
            }
            Event::CaughtUp { returned } if self.catching_up() == Some(returned) => {
                self.caught = Caught::Up;
                self.parks = false;
            }
            Event::Late { returned } if self.catching_up() == Some(returned) => {
                self.caught = Caught::Not { late: true };
            }
            // That was an earlier return.
            Event::CaughtUp { .. } | Event::Late { .. } => {}
            Event::Fence(is_fenced) => self.is_fenced = is_fenced,
            Event::Park(parks) => self.parks = parks && self.reach.answers(),
            Event::Drain if self.service == Service::In => self.service = Service::Leaving,
            Event::Stay if self.service == Service::Leaving => {
                self.service = Service::In;
                self.parks = false;
            }
            Event::Drain | Event::Stay => {}
            Event::Drained => {
                self.service = Service::Out;
                self.parks = false;
            }
            Event::Resumed => {
                self.service = Service::In;
                self.parks = false;
            }
        }
        let after = self.health();
        (std::mem::discriminant(&before) != std::mem::discriminant(&after)).then_some(before)
    }

    fn reaches(&mut self, reach: Reach) {
        if reach.answers() && !self.reach.answers() {
            self.returned += 1;
            self.caught = match self.catches_up {
                true => Caught::Not { late: false },
                false => Caught::Up,
            };
        }
        if !reach.answers() {
            // Nobody waits for it any more, and it is measured afresh when it returns.
            self.parks = false;
            self.rtt_average_us = None;
        }
        self.reach = reach;
    }

    /// Moves the average, and the published figure when the average has left its neighbourhood (hysteresis):
    /// sessions do not flap between two nodes that are about equally near.
    fn sample(&mut self, rtt: Duration) {
        let sample_us = u64::try_from(rtt.as_micros())
            .unwrap_or(u64::MAX)
            .min(60_000_000);
        let average = match self.rtt_average_us {
            None => sample_us,
            Some(average) => (average * (RTT_WEIGHT - 1) + sample_us) / RTT_WEIGHT,
        };
        self.rtt_average_us = Some(average);
        let step = |published: u64| (published / 5).max(RTT_STEP_MIN_US);
        match self.rtt_published_us {
            Some(published) if published.abs_diff(average) <= step(published) => {}
            _ => self.rtt_published_us = Some(average),
        }
    }

    /// The state in one word.
    pub fn health(&self) -> Health {
        match (self.service, self.reach, self.caught) {
            (Service::Out, ..) => Health::Drained,
            (_, Reach::Unknown, _) => Health::Unknown,
            (_, Reach::Untaken, _) => Health::Untaken,
            (_, Reach::Down, _) => Health::Down,
            (Service::Leaving, ..) => Health::Draining,
            (Service::In, _, Caught::Not { .. }) => Health::CatchingUp,
            (Service::In, ..) if self.is_fenced => Health::Fenced,
            (Service::In, Reach::Suspect { failures }, _) => Health::Suspect { failures },
            (Service::In, Reach::Up, _) => Health::Up,
        }
    }

    /// What clients may do there.
    pub fn admission(&self) -> Admission {
        match (self.service, self.caught) {
            _ if !self.reach.answers() => Admission::Nobody,
            _ if self.parks => Admission::Parked,
            (Service::Out, _) | (_, Caught::Not { late: false }) => Admission::Nobody,
            (_, Caught::Not { late: true }) => Admission::LastResort,
            (_, Caught::Up) if self.is_fenced => Admission::LastResort,
            (Service::Leaving, Caught::Up) => Admission::Writes,
            (Service::In, Caught::Up) => Admission::All,
        }
    }

    /// Whether the latest probes found it, in service or not.
    pub fn answers(&self) -> bool {
        self.reach.answers()
    }

    /// Whether it is there, in service or not.
    pub fn presence(&self) -> Presence {
        match (self.reach, self.caught) {
            (Reach::Unknown | Reach::Untaken, _) => Presence::Unknown,
            (Reach::Down, _) => Presence::Away,
            (Reach::Up | Reach::Suspect { .. }, Caught::Not { .. }) => Presence::Back,
            (Reach::Up | Reach::Suspect { .. }, Caught::Up) => Presence::Here,
        }
    }

    /// Which return it is that it has not caught up from.
    pub fn catching_up(&self) -> Option<u32> {
        let is_behind = matches!(self.caught, Caught::Not { .. });
        (is_behind && self.reach.answers()).then_some(self.returned)
    }

    /// The round trip that routing sees, with hysteresis. None until the first success.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt_published_us.map(Duration::from_micros)
    }

    /// When the next probe is due.
    pub fn next_probe(&self) -> Instant {
        self.next_probe
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(1);
    const OK: Event = Event::Success {
        rtt: Duration::from_millis(1),
    };

    /// One that has nobody to catch up with.
    fn alone(now: Instant) -> Machine {
        Machine::new(INTERVAL, now, false, false)
    }

    #[test]
    fn transitions() {
        let suspect = Health::Suspect { failures: 1 };
        let table: [(&[Event], Health); 18] = [
            (&[], Health::Unknown),
            (&[OK], Health::Up),
            (&[Event::Failed], Health::Down),
            (&[Event::NotTried], Health::Unknown),
            (&[Event::Untaken], Health::Untaken),
            (&[Event::Untaken, Event::Failed], Health::Down),
            (&[Event::Untaken, OK], Health::Up),
            // Its slot was dropped.
            (&[OK, Event::Untaken], Health::Untaken),
            (&[OK, Event::Failed], suspect),
            (&[OK, Event::Failed, OK], Health::Up),
            (&[OK, Event::Failed, OK, Event::Failed], suspect),
            (&[OK, Event::Failed, Event::Failed], Health::Down),
            (&[OK, Event::Refused], Health::Down),
            (&[OK, Event::Refused, Event::Failed], Health::Down),
            (&[OK, Event::Refused, OK], Health::Up),
            (
                &[OK, Event::NotTried, Event::NotTried, Event::NotTried],
                Health::Up,
            ),
            (
                &[OK, Event::Evidence, Event::Evidence, Event::Evidence],
                Health::Up,
            ),
            (
                &[OK, Event::Failed, Event::NotTried, Event::Evidence],
                suspect,
            ),
        ];
        let start = Instant::now();
        for (events, expected) in table {
            let mut machine = alone(start);
            for (at, event) in (0_u32..).zip(events) {
                machine.on(*event, start + INTERVAL * at);
            }
            assert_eq!(machine.health(), expected, "{events:?}");
        }
    }

    #[test]
    fn a_change_is_reported_once() {
        let now = Instant::now();
        let mut machine = alone(now);
        assert_eq!(machine.on(OK, now), Some(Health::Unknown));
        assert_eq!(machine.on(OK, now), None);
        assert_eq!(machine.on(Event::Refused, now), Some(Health::Up));
        assert_eq!(machine.on(Event::Refused, now), None);
    }

    #[test]
    fn probes_follow_the_interval_and_hurry_where_somebody_waits() {
        let start = Instant::now();
        let mut machine = alone(start);
        assert_eq!(machine.next_probe(), start);
        machine.on(OK, start);
        assert_eq!(machine.next_probe(), start + INTERVAL);
        let later = start + INTERVAL;
        machine.on(Event::Failed, later);
        assert_eq!(machine.next_probe(), later + SHORT_PROBE_GAP);
        machine.on(Event::Failed, later);
        assert_eq!(machine.next_probe(), later + INTERVAL);
        machine.on(Event::Untaken, later);
        assert_eq!(machine.next_probe(), later + SHORT_PROBE_GAP);
    }

    #[test]
    fn evidence_brings_the_probe_forward_but_never_in_a_storm() {
        let start = Instant::now();
        let mut machine = alone(start);
        machine.on(OK, start);
        machine.on(Event::Evidence, start);
        assert_eq!(machine.next_probe(), start + PROBE_GAP_MIN);
        let later = start + Duration::from_millis(700);
        machine.on(OK, start);
        machine.on(Event::Evidence, later);
        assert_eq!(machine.next_probe(), later);
    }

    #[test]
    fn the_published_round_trip_has_hysteresis() {
        let now = Instant::now();
        let mut machine = alone(now);
        assert_eq!(machine.rtt(), None);
        let at = |ms: u64| Event::Success {
            rtt: Duration::from_millis(ms),
        };
        machine.on(at(10), now);
        assert_eq!(machine.rtt(), Some(Duration::from_millis(10)));
        for ms in [11, 9, 10, 11, 9, 11] {
            machine.on(at(ms), now);
            assert_eq!(
                machine.rtt(),
                Some(Duration::from_millis(10)),
                "noise moves nothing"
            );
        }
        for _ in 0..40 {
            machine.on(at(20), now);
        }
        let moved = machine.rtt().expect("measured");
        assert!(
            moved > Duration::from_millis(15),
            "a lasting change shows: {moved:?}"
        );
    }

    #[test]
    fn a_node_that_comes_back_gets_nobody_before_it_has_caught_up_from_this_return() {
        let now = Instant::now();
        let mut machine = Machine::new(INTERVAL, now, true, false);
        assert_eq!(machine.catching_up(), None);
        machine.on(OK, now);
        let first = machine.catching_up().expect("it has come");
        assert_eq!(machine.health(), Health::CatchingUp);
        assert_eq!(machine.admission(), Admission::Nobody);
        machine.on(Event::Late { returned: first }, now);
        assert_eq!(machine.admission(), Admission::LastResort);
        machine.on(Event::CaughtUp { returned: first }, now);
        assert_eq!(
            (machine.health(), machine.admission()),
            (Health::Up, Admission::All)
        );
        // A probe that fails once is no absence.
        machine.on(Event::Failed, now);
        machine.on(OK, now);
        assert_eq!(machine.admission(), Admission::All);
        machine.on(Event::Refused, now);
        machine.on(OK, now);
        machine.on(Event::CaughtUp { returned: first }, now);
        assert_eq!(machine.health(), Health::CatchingUp, "that was before");
        let second = machine.catching_up().expect("it has come again");
        machine.on(Event::Park(true), now);
        assert_eq!(machine.admission(), Admission::Parked);
        machine.on(Event::CaughtUp { returned: second }, now);
        assert_eq!(machine.admission(), Admission::All);
    }

    #[test]
    fn a_node_is_drained_step_by_step_and_comes_back_the_same_way() {
        let now = Instant::now();
        let mut machine = alone(now);
        let mut after = |event: Event| {
            machine.on(event, now);
            (machine.health(), machine.admission())
        };
        assert_eq!(after(OK), (Health::Up, Admission::All));
        assert_eq!(after(Event::Stay), (Health::Up, Admission::All));
        assert_eq!(after(Event::Drain), (Health::Draining, Admission::Writes));
        assert_eq!(
            after(Event::Park(true)),
            (Health::Draining, Admission::Parked)
        );
        assert_eq!(
            after(Event::Park(false)),
            (Health::Draining, Admission::Writes)
        );
        assert_eq!(after(Event::Stay), (Health::Up, Admission::All));
        after(Event::Drain);
        after(Event::Park(true));
        assert_eq!(after(Event::Drained), (Health::Drained, Admission::Nobody));
        for event in [Event::Refused, Event::Failed, OK, Event::Drain, Event::Stay] {
            assert_eq!(
                after(event),
                (Health::Drained, Admission::Nobody),
                "{event:?}"
            );
        }
        assert_eq!(
            after(Event::Park(true)),
            (Health::Drained, Admission::Parked)
        );
        assert_eq!(after(Event::Resumed), (Health::Up, Admission::All));
        assert_eq!(
            after(Event::Fence(true)),
            (Health::Fenced, Admission::LastResort)
        );
    }

    /// Any order of events, in virtual time.
    #[test]
    fn whatever_happens_the_state_says_what_is_so() {
        for seed in 0..3_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let start = Instant::now();
            let mut now = start;
            let catches_up = random.bool();
            let was_drained = random.bool();
            let mut machine = Machine::new(INTERVAL, start, catches_up, was_drained);
            let mut is_drained = was_drained;
            let mut answers = false;
            let mut failures = 0;
            for _ in 0..40 {
                now += Duration::from_millis(random.u64(0..400));
                let returned = machine.catching_up().unwrap_or_else(|| random.u32(0..3));
                let event = match random.u8(0..16) {
                    0..=3 => OK,
                    4 => Event::Untaken,
                    5 => Event::Refused,
                    6 | 7 => Event::Failed,
                    8 => Event::NotTried,
                    9 => Event::Evidence,
                    10 => Event::CaughtUp { returned },
                    11 => Event::Late { returned },
                    12 => Event::Fence(random.bool()),
                    13 => Event::Park(random.bool()),
                    14 => [Event::Drain, Event::Stay][random.usize(0..2)],
                    _ => [Event::Drained, Event::Resumed][random.usize(0..2)],
                };
                let before = (machine.health(), machine.admission());
                let changed = machine.on(event, now);
                let after = (machine.health(), machine.admission());
                let told = format!("seed {seed}: {event:?} in {before:?} makes {after:?}");
                match event {
                    Event::Success { .. } => (answers, failures) = (true, 0),
                    Event::Failed => {
                        failures += 1;
                        answers &= failures < FAILURES_TO_DOWN;
                    }
                    Event::Refused | Event::Untaken => answers = false,
                    Event::Drained => is_drained = true,
                    Event::Resumed => is_drained = false,
                    Event::NotTried | Event::Evidence => assert_eq!(before, after, "{told}"),
                    _ => {}
                }
                if !answers {
                    failures = 0;
                }
                assert_eq!(machine.answers(), answers, "{told}");
                assert_eq!(after.0 == Health::Drained, is_drained, "{told}");
                let kinds = [before.0, after.0].map(|health| std::mem::discriminant(&health));
                assert_eq!(changed.is_some(), kinds[0] != kinds[1], "{told}");
                match after.1 {
                    Admission::All => assert!(
                        matches!(after.0, Health::Up | Health::Suspect { .. }),
                        "{told}"
                    ),
                    Admission::Writes => assert_eq!(after.0, Health::Draining, "{told}"),
                    Admission::Parked => assert!(answers, "{told}"),
                    Admission::LastResort => assert!(answers && !is_drained, "{told}"),
                    Admission::Nobody => assert!(
                        is_drained || !answers || machine.catching_up().is_some(),
                        "{told}"
                    ),
                }
                if event.is_of_probe() {
                    assert!(machine.next_probe() <= now + INTERVAL, "{told}");
                }
            }
            machine.on(OK, now);
            if let Some(returned) = machine.catching_up() {
                machine.on(Event::CaughtUp { returned }, now);
            }
            for event in [Event::Park(false), Event::Fence(false), Event::Stay] {
                machine.on(event, now);
            }
            let expected = match is_drained {
                true => (Health::Drained, Admission::Nobody),
                false => (Health::Up, Admission::All),
            };
            let end = (machine.health(), machine.admission());
            assert_eq!(end, expected, "seed {seed}");
            machine.on(Event::Resumed, now);
            assert_eq!(machine.admission(), Admission::All, "seed {seed}");
        }
    }
}
