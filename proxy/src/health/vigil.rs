//! Owns the decision how long a probe without an answer is waited for, and what its silence means. Pure.
//!
//! **Invariant:** only time in which this process could have heard an answer counts. It is counted in beats of its own clock, and a
//! beat that comes late counts as one that came on time: whoever starves the daemon makes it more patient, and no node suspect.

use std::time::{Duration, Instant};

/// The distance of two beats, and the most that one counts for.
pub(super) const BEAT: Duration = Duration::from_millis(25);
/// Nobody who was well is given up for less silence than this. With what it takes until a probe begins it leaves some time of the two
/// seconds after which the keys of a node that stands still are to be written again.
const SILENCE_MIN: Duration = Duration::from_millis(800);
/// So many times as long as its slowest probe of late a node may take.
const USUAL_TIMES: u32 = 8;
/// Share that the slowest probe loses with each that is faster: 1 / this.
const FORGET: u32 = 16;

/// How long the probes of a node have taken.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Patience {
    /// The slowest of late.
    slowest: Option<Duration>,
}

impl Patience {
    /// A probe was answered after this time.
    pub(super) fn answered(&mut self, took: Duration) {
        let faded = self.slowest.map(|slowest| slowest - slowest / FORGET);
        self.slowest = Some(faded.unwrap_or_default().max(took));
    }

    /// After this silence it may be given up, if there is more against it; never later than after `bound`.
    pub(super) fn limit(&self, bound: Duration) -> Duration {
        match self.slowest {
            None => bound,
            Some(slowest) => (slowest * USUAL_TIMES).max(SILENCE_MIN).min(bound),
        }
    }
}

/// What there is to be seen besides a probe that has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Signs {
    /// Another node has answered a probe that began later: neither this process nor its network is what hangs.
    pub(super) others_answer: bool,
    /// When something last came from the node, on whichever connection.
    pub(super) heard: Option<Instant>,
}

/// What is done about a probe that has no answer yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing.
    Wait,
    /// A second one begins beside it, and the other nodes are asked too.
    Second,
    /// The node is given up.
    Silent,
    /// It has failed.
    Late,
}

/// A probe that has no answer yet.
#[derive(Debug)]
pub(super) struct Vigil {
    limit: Option<Duration>,
    bound: Duration,
    /// Silence that counts.
    silence: Duration,
    last: Instant,
    has_second: bool,
}

impl Vigil {
    /// Of a probe that begins now. It fails after `bound`; after `limit` the node may be given up. None: it serves nobody anyway.
    pub(super) fn new(limit: Option<Duration>, bound: Duration, now: Instant) -> Vigil {
        Vigil {
            limit,
            bound,
            silence: Duration::ZERO,
            last: now,
            has_second: false,
        }
    }

    /// A beat has come, and no answer.
    pub(super) fn look(&mut self, now: Instant, signs: Signs) -> Look {
        self.silence += now.saturating_duration_since(self.last).min(BEAT);
        self.last = now;
        if let Some(limit) = self.limit {
            // Half of the time is the second probe's own.
            let half = limit / 2;
            if !self.has_second && self.silence >= half {
                self.has_second = true;
                return Look::Second;
            }
            let quiet = signs
                .heard
                .map(|heard| now.saturating_duration_since(heard));
            let is_mute = quiet.is_none_or(|quiet| quiet >= half);
            if self.silence >= limit && signs.others_answer && is_mute {
                return Look::Silent;
            }
        }
        match self.silence >= self.bound {
            true => Look::Late,
            false => Look::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(2);
    const AGAINST: Signs = Signs {
        others_answer: true,
        heard: None,
    };

    /// Lets beats come, each so much later than the last, until something else than waiting comes of it after the second probe has
    /// begun. Answers what that is, and after how long; and when the second probe began.
    fn end_of(
        vigil: &mut Vigil,
        start: Instant,
        mut gap: impl FnMut() -> Duration,
        mut signs: impl FnMut(Instant) -> Signs,
    ) -> (Look, Duration, Duration) {
        let mut now = start;
        let mut second = None;
        loop {
            now += gap();
            match vigil.look(now, signs(now)) {
                Look::Wait => {}
                Look::Second => {
                    assert_eq!(second.replace(now - start), None, "there is one second");
                }
                look => return (look, now - start, second.expect("it has begun")),
            }
        }
    }

    #[test]
    fn a_node_may_take_a_multiple_of_what_it_usually_takes() {
        let mut patience = Patience::default();
        assert_eq!(patience.limit(BOUND), BOUND, "nothing is known of it");
        patience.answered(Duration::from_millis(10));
        assert_eq!(patience.limit(BOUND), SILENCE_MIN);
        assert_eq!(
            patience.limit(Duration::from_millis(300)),
            Duration::from_millis(300)
        );
        patience.answered(Duration::from_millis(150));
        assert_eq!(patience.limit(BOUND), Duration::from_millis(1200));
        // A slow one is remembered for a while.
        patience.answered(Duration::from_millis(10));
        assert!(patience.limit(BOUND) > Duration::from_millis(1100));
        for _ in 0..60 {
            patience.answered(Duration::from_millis(10));
        }
        assert_eq!(patience.limit(BOUND), SILENCE_MIN);
    }

    #[test]
    fn a_silent_node_is_given_up_at_the_limit_and_a_second_probe_had_half_of_it() {
        let start = Instant::now();
        let mut vigil = Vigil::new(Some(SILENCE_MIN), BOUND, start);
        let ended = end_of(&mut vigil, start, || BEAT, |_| AGAINST);
        assert_eq!(ended, (Look::Silent, SILENCE_MIN, SILENCE_MIN / 2));
    }

    #[test]
    fn as_long_as_there_is_a_doubt_it_is_waited_for_to_the_bound() {
        let start = Instant::now();
        let nobody_answers = Signs {
            others_answer: false,
            heard: None,
        };
        let mut vigil = Vigil::new(Some(SILENCE_MIN), BOUND, start);
        let ended = end_of(&mut vigil, start, || BEAT, |_| nobody_answers);
        assert_eq!((ended.0, ended.1), (Look::Late, BOUND));
        // Sessions get answers there.
        let heard = |now| Signs {
            heard: Some(now),
            ..AGAINST
        };
        let mut vigil = Vigil::new(Some(SILENCE_MIN), BOUND, start);
        let ended = end_of(&mut vigil, start, || BEAT, heard);
        assert_eq!((ended.0, ended.1), (Look::Late, BOUND));
        // What came before it fell silent is no doubt.
        let heard = |_| Signs {
            heard: Some(start),
            ..AGAINST
        };
        let mut vigil = Vigil::new(Some(SILENCE_MIN), BOUND, start);
        let ended = end_of(&mut vigil, start, || BEAT, heard);
        assert_eq!((ended.0, ended.1), (Look::Silent, SILENCE_MIN));
    }

    #[test]
    fn of_a_node_that_serves_nobody_there_is_one_probe_at_a_time() {
        let start = Instant::now();
        let mut vigil = Vigil::new(None, BOUND, start);
        let beats = (1..).map(|beat| start + BEAT * beat);
        let looks = beats.map(|now| (now, vigil.look(now, AGAINST)));
        let end = looks.into_iter().find(|(_, look)| *look != Look::Wait);
        assert_eq!(end, Some((start + BOUND, Look::Late)));
    }

    #[test]
    fn whoever_starves_the_daemon_makes_it_patient() {
        let start = Instant::now();
        let mut vigil = Vigil::new(Some(SILENCE_MIN), BOUND, start);
        let ended = end_of(&mut vigil, start, || BEAT * 8, |_| AGAINST);
        assert_eq!((ended.0, ended.1), (Look::Silent, SILENCE_MIN * 8));
        // A single long pause, in which answers may have come that nobody has read yet.
        let mut vigil = Vigil::new(Some(SILENCE_MIN), BOUND, start);
        for look in [Look::Wait, Look::Wait] {
            assert_eq!(vigil.look(start + BOUND * 9, AGAINST), look);
        }
    }

    /// Any beats and any signs, in virtual time.
    #[test]
    fn nobody_is_given_up_early_or_on_its_own_and_every_probe_ends() {
        for seed in 0..3_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let start = Instant::now();
            let bound = Duration::from_millis(random.u64(50..3_000));
            let mut patience = Patience::default();
            for _ in 0..random.usize(0..5) {
                patience.answered(Duration::from_millis(random.u64(1..400)));
            }
            let limit = patience.limit(bound);
            assert!(limit <= bound, "seed {seed}");
            let mut vigil = Vigil::new(Some(limit), bound, start);
            let (mut now, mut silence) = (start, Duration::ZERO);
            let mut second = None;
            let late = random.u64(1..12);
            let end = loop {
                let gap = BEAT * u32::try_from(random.u64(1..=late)).expect("small");
                now += gap;
                silence += gap.min(BEAT);
                let signs = Signs {
                    others_answer: random.u8(0..4) > 0,
                    heard: random
                        .bool()
                        .then(|| now - Duration::from_millis(random.u64(0..2_000))),
                };
                match vigil.look(now, signs) {
                    Look::Wait => assert!(silence < bound, "seed {seed}"),
                    Look::Second => assert_eq!(second.replace(silence), None, "seed {seed}"),
                    Look::Silent => break (Look::Silent, signs),
                    Look::Late => break (Look::Late, signs),
                }
                assert!(now - start <= bound * 40, "seed {seed}: it has to end");
            };
            let seconds = silence - second.unwrap_or_else(|| panic!("seed {seed}: one probe only"));
            match end {
                (Look::Silent, signs) => {
                    assert!(silence >= limit && signs.others_answer, "seed {seed}");
                    assert!(seconds + BEAT >= limit / 2, "seed {seed}");
                    let heard = signs.heard.is_some_and(|heard| now - heard < limit / 2);
                    assert!(!heard, "seed {seed}");
                }
                (_, signs) => {
                    assert!(silence >= bound, "seed {seed}: {signs:?}");
                }
            }
        }
    }
}
