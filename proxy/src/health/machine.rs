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
    /// It starts again, because a server process of it has crashed. What writes its keys waits for it.
    Restarting,
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
        matches!(
            self,
            Health::Unknown | Health::Untaken | Health::CatchingUp | Health::Restarting
        )
    }

    /// The word for logs and status.
    pub fn word(self) -> &'static str {
        match self {
            Health::Unknown => "unknown",
            Health::Untaken => "untaken",
            Health::CatchingUp => "catching_up",
            Health::Up => "up",
            Health::Suspect { .. } => "suspect",
            Health::Restarting => "restarting",
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
    /// Nobody knows, it has not been taken, or it restarts and keeps its keys.
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
    Restarting,
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
    /// Nobody listens there, connections are closed before they are logged in, or it is no primary: decides at once.
    Refused,
    /// It says that it starts up or shuts down: decides at once, unless it may have crashed a moment ago.
    Unready,
    /// Two probes side by side have had no answer, while another node answers: decides at once.
    Silent,
    /// Anything else that went wrong: a timeout, a name that did not resolve, an error of the server.
    Failed,
    /// The proxy itself could not try, for example for lack of file descriptors: says nothing of the node.
    NotTried,
    /// A session lost its connection. Never a verdict: any client can provoke one. Asks for a probe.
    Evidence,
    /// A session's server ended without a word, or said that another server process of its node has crashed. Asks for a probe, as
    /// evidence does.
    Crashed,
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
                | Event::Unready
                | Event::Silent
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
    restart_wait: Duration,
    /// When a server process may have crashed.
    crashed: Option<Instant>,
    /// When it last stopped answering.
    lost: Option<Instant>,
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
            restart_wait: Duration::ZERO,
            crashed: None,
            lost: None,
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

    /// So long from now on it keeps its keys when its server processes have all ended because one of them crashed, if it says meanwhile
    /// that it starts again.
    pub fn set_restart_wait(&mut self, restart_wait: Duration) {
        self.restart_wait = restart_wait;
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
                self.reaches(Reach::Up, now);
            }
            Event::Untaken => {
                self.next_probe = now + SHORT_PROBE_GAP.min(self.interval);
                self.reaches(Reach::Untaken, now);
            }
            Event::Unready if self.may_restart(now) => self.restarts(now),
            Event::Failed if self.reach == Reach::Restarting && self.may_restart(now) => {
                self.restarts(now);
            }
            Event::Refused | Event::Unready | Event::Silent => self.reaches(Reach::Down, now),
            Event::Failed => {
                let failures = match self.reach {
                    // Who was never seen well is not trusted yet.
                    Reach::Unknown | Reach::Untaken | Reach::Restarting | Reach::Down => {
                        FAILURES_TO_DOWN
                    }
                    Reach::Up => 1,
                    Reach::Suspect { failures } => failures.saturating_add(1),
                };
                if failures >= FAILURES_TO_DOWN {
                    self.reaches(Reach::Down, now);
                } else {
                    self.next_probe = now + SHORT_PROBE_GAP.min(self.interval);
                    self.reaches(Reach::Suspect { failures }, now);
                }
            }
            Event::NotTried => {}
            Event::Evidence => self.hurry(now),
            Event::Crashed => {
                // While it restarts others may hear of the same crash.
                if self.reach.answers() {
                    self.crashed = Some(now);
                }
                self.hurry(now);
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

    fn hurry(&mut self, now: Instant) {
        let soonest = self.last_probe.map_or(now, |last| last + PROBE_GAP_MIN);
        self.next_probe = self.next_probe.min(soonest.max(now));
    }

    /// Whether what was there a moment ago may be back in a moment.
    fn may_restart(&self, now: Instant) -> bool {
        let was_there = self.reach.answers() || self.reach == Reach::Restarting;
        let crashed = self.crashed.map(|at| now.saturating_duration_since(at));
        was_there && crashed.is_some_and(|ago| ago < self.restart_wait)
    }

    fn restarts(&mut self, now: Instant) {
        self.next_probe = now + PROBE_GAP_MIN.min(self.interval);
        self.reaches(Reach::Restarting, now);
    }

    fn reaches(&mut self, reach: Reach, now: Instant) {
        // Nobody has written its keys elsewhere while it restarted.
        let was_away = !self.reach.answers() && self.reach != Reach::Restarting;
        if reach.answers() && was_away {
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
            if self.reach.answers() {
                self.lost = Some(now);
            }
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
            (_, Reach::Restarting, _) => Health::Restarting,
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
        let keeps_keys = self.service != Service::Out && !self.is_fenced;
        match (self.service, self.caught) {
            (_, Caught::Up) if self.reach == Reach::Restarting && keeps_keys => Admission::Parked,
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
            (Reach::Unknown | Reach::Untaken | Reach::Restarting, _) => Presence::Unknown,
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

    /// When it last stopped answering.
    pub fn lost(&self) -> Option<Instant> {
        self.lost
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
mod tests;
