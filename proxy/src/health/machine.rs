//! Owns the verdict on one node: a pure state machine over probe results, with the time as an argument.

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

/// What is known of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Not probed yet.
    Unknown,
    /// It answers, but what is written there would reach no other node: replication has not taken it yet.
    Untaken,
    /// The latest probe succeeded.
    Up,
    /// Was up; the latest probes failed, but not often enough for a verdict.
    Suspect {
        /// Failed probes in a row.
        failures: u32,
    },
    /// Gets no new sessions until a probe succeeds.
    Down,
}

impl Health {
    /// Whether new sessions may be sent there.
    pub fn usable(self) -> bool {
        matches!(self, Health::Up | Health::Suspect { .. })
    }

    /// Whether it may be usable in a moment, so that waiting is worth it.
    pub fn is_pending(self) -> bool {
        matches!(self, Health::Unknown | Health::Untaken)
    }

    /// The word for logs and status.
    pub fn word(self) -> &'static str {
        match self {
            Health::Unknown => "unknown",
            Health::Untaken => "untaken",
            Health::Up => "up",
            Health::Suspect { .. } => "suspect",
            Health::Down => "down",
        }
    }
}

/// What a probe, or a session's attempt to connect, has shown.
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
}

/// The state of one node and when to probe it next.
#[derive(Debug)]
pub struct Machine {
    health: Health,
    interval: Duration,
    next_probe: Instant,
    last_probe: Option<Instant>,
    rtt_average_us: Option<u64>,
    rtt_published_us: Option<u64>,
}

impl Machine {
    /// A node that nothing is known of. It wants its first probe at `now`.
    pub fn new(interval: Duration, now: Instant) -> Machine {
        Machine {
            health: Health::Unknown,
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

    /// The only place where the verdict changes. Returns the health before, if it changed in kind.
    pub fn on(&mut self, event: Event, now: Instant) -> Option<Health> {
        let before = self.health;
        let probed = !matches!(event, Event::Evidence);
        if probed {
            self.last_probe = Some(now);
            self.next_probe = now + self.interval;
        }
        self.health = match (before, event) {
            (_, Event::Success { rtt }) => {
                self.sample(rtt);
                Health::Up
            }
            (_, Event::Untaken) => {
                self.next_probe = now + SHORT_PROBE_GAP.min(self.interval);
                Health::Untaken
            }
            (_, Event::Refused) => Health::Down,
            // Who was never seen well is not trusted yet.
            (Health::Unknown | Health::Untaken | Health::Down, Event::Failed) => Health::Down,
            (Health::Up | Health::Suspect { .. }, Event::Failed) => {
                let failures = match before {
                    Health::Suspect { failures } => failures.saturating_add(1),
                    _ => 1,
                };
                if failures >= FAILURES_TO_DOWN {
                    Health::Down
                } else {
                    self.next_probe = now + SHORT_PROBE_GAP.min(self.interval);
                    Health::Suspect { failures }
                }
            }
            (_, Event::NotTried) => before,
            (_, Event::Evidence) => {
                let soonest = self.last_probe.map_or(now, |last| last + PROBE_GAP_MIN);
                self.next_probe = self.next_probe.min(soonest.max(now));
                before
            }
        };
        if self.health == Health::Down {
            // A node that returns is measured afresh.
            self.rtt_average_us = None;
        }
        (std::mem::discriminant(&before) != std::mem::discriminant(&self.health)).then_some(before)
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

    /// The verdict.
    pub fn health(&self) -> Health {
        self.health
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
            let mut machine = Machine::new(INTERVAL, start);
            for (at, event) in (0_u32..).zip(events) {
                machine.on(*event, start + INTERVAL * at);
            }
            assert_eq!(machine.health(), expected, "{events:?}");
        }
    }

    #[test]
    fn a_change_is_reported_once() {
        let now = Instant::now();
        let mut machine = Machine::new(INTERVAL, now);
        assert_eq!(machine.on(OK, now), Some(Health::Unknown));
        assert_eq!(machine.on(OK, now), None);
        assert_eq!(machine.on(Event::Refused, now), Some(Health::Up));
        assert_eq!(machine.on(Event::Refused, now), None);
    }

    #[test]
    fn probes_follow_the_interval_and_hurry_where_somebody_waits() {
        let start = Instant::now();
        let mut machine = Machine::new(INTERVAL, start);
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
        let mut machine = Machine::new(INTERVAL, start);
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
        let mut machine = Machine::new(INTERVAL, now);
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
}
