//! Owns what is told of handoffs: how one is going, what has come of it, and why one cannot begin.

use std::{fmt, time::Duration};

use serde::{Serialize, Serializer};

use crate::{
    health::Health,
    session::{Shared, registry::Running},
};

/// Sessions that are named at most.
const NAMED_MAX: usize = 10;

/// Why a handoff is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// An operator takes the node out of service.
    Drain,
    /// An operator takes it back.
    Resume,
    /// It has come back by itself.
    Return,
}

impl Kind {
    pub(crate) const ALL: [Kind; 3] = [Kind::Drain, Kind::Resume, Kind::Return];

    pub(super) fn place(self) -> usize {
        match self {
            Kind::Drain => 0,
            Kind::Resume => 1,
            Kind::Return => 2,
        }
    }

    /// The word for status and metrics.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Kind::Drain => "drain",
            Kind::Resume => "resume",
            Kind::Return => "return",
        }
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// The node catches up.
    CatchingUp,
    /// For transactions that take long, and for sessions that keep their servers.
    Waiting,
    /// New writes of the keys wait.
    Parked,
    /// It is over.
    Done,
}

/// What has come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// The keys have moved.
    Moved,
    /// The same; what was in the way was ended.
    MovedAborting,
    /// The same; what was in the way goes on where the keys were.
    MovedGoingOn,
    /// All stays as it was.
    Stayed,
}

impl Outcome {
    pub(crate) const ALL: [Outcome; 4] = [
        Outcome::Moved,
        Outcome::MovedAborting,
        Outcome::MovedGoingOn,
        Outcome::Stayed,
    ];

    pub(super) fn place(self) -> usize {
        match self {
            Outcome::Moved => 0,
            Outcome::MovedAborting => 1,
            Outcome::MovedGoingOn => 2,
            Outcome::Stayed => 3,
        }
    }

    /// The word for status and metrics.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Outcome::Moved => "moved",
            Outcome::MovedAborting => "moved_aborting",
            Outcome::MovedGoingOn => "moved_going_on",
            Outcome::Stayed => "stayed",
        }
    }
}

/// Why a handoff cannot begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// There is no such node.
    #[error("there is no node {0}")]
    Unknown(String),
    /// It is out of service.
    #[error("node {0} is drained already")]
    Drained(String),
    /// It is in service.
    #[error("node {0} is not drained: it is {word}", word = .1.word())]
    NotDrained(String, Health),
    /// No other one serves clients.
    #[error(
        "node {0} is the last one that serves clients: resume another one first, or see what is wrong with it"
    )]
    Last(String),
    /// It does not answer.
    #[error("node {0} does not answer, and stays drained; it can be resumed when it is back")]
    Away(String),
    /// Another handoff is under way.
    #[error("another handoff is under way")]
    Busy,
    /// The daemon ends.
    #[error("the daemon is stopping")]
    Stopping,
}

/// It stays as it was, for this reason.
#[derive(Debug)]
pub(super) struct Stayed(pub(super) String);

fn milliseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64() * 1000.0)
}

/// One handoff.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    pub(crate) kind: Kind,
    pub(crate) phase: Phase,
    /// What it waits for, a sentence each.
    pub(crate) waits_for: Vec<String>,
    /// None: it is under way.
    pub(crate) outcome: Option<Outcome>,
    /// Why it stayed as it was.
    pub(crate) reason: Option<String>,
    /// How long it took, or takes.
    #[serde(rename = "took_ms", serialize_with = "milliseconds")]
    pub(crate) took: Duration,
    /// How long new writes of the keys waited at most.
    #[serde(rename = "parked_ms", serialize_with = "milliseconds")]
    pub(crate) parked: Duration,
    /// Writes that went on where the keys were.
    pub(crate) left: usize,
    /// Transactions and sessions that were ended.
    pub(crate) ended: usize,
    /// The placement's epoch behind it.
    pub(crate) epoch: u64,
}

impl Report {
    /// One that begins.
    pub(super) fn begun(kind: Kind) -> Report {
        Report {
            kind,
            phase: Phase::Waiting,
            waits_for: Vec::new(),
            outcome: None,
            reason: None,
            took: Duration::ZERO,
            parked: Duration::ZERO,
            left: 0,
            ended: 0,
            epoch: 0,
        }
    }

    /// It has come that far.
    pub(super) fn go_on(&mut self, phase: Phase, waits_for: Vec<String>, took: Duration) {
        (self.phase, self.waits_for, self.took) = (phase, waits_for, took);
    }

    /// Whether the keys have moved.
    pub(crate) fn has_moved(&self) -> bool {
        !matches!(self.outcome, None | Some(Outcome::Stayed))
    }

    pub(super) fn log(&self, node: &str) {
        let (kind, outcome) = (self.kind.word(), self.outcome.map_or("?", Outcome::word));
        let [took_ms, parked_ms] = [self.took, self.parked].map(|time| time.as_secs_f64() * 1000.0);
        let (left, ended, epoch) = (self.left, self.ended, self.epoch);
        match &self.reason {
            None => tracing::info!(
                node, kind, outcome, took_ms, parked_ms, left, ended, epoch, "handoff"
            ),
            Some(reason) => tracing::warn!(
                node, kind, outcome, reason, took_ms, parked_ms, epoch, "handoff"
            ),
        }
    }

    /// What has come of it, for people.
    pub(crate) fn sentence(&self, node: &str) -> String {
        Sentence { report: self, node }.to_string()
    }
}

struct Sentence<'a> {
    report: &'a Report,
    node: &'a str,
}

impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sentence { report, node } = self;
        if let Some(reason) = &report.reason {
            let state = match report.kind {
                Kind::Drain => "stays in service",
                Kind::Resume => "stays drained",
                Kind::Return => "is not in service yet",
            };
            return write!(f, "node {node} {state}: {reason}");
        }
        let state = match report.kind {
            Kind::Drain => "is drained",
            Kind::Resume | Kind::Return => "is in service again",
        };
        let [took, parked] = [report.took, report.parked].map(|time| time.as_secs_f64() * 1000.0);
        write!(
            f,
            "node {node} {state} after {took:.0} ms; writes of its keys waited {parked:.1} ms at most"
        )?;
        if report.left > 0 {
            write!(
                f,
                "; {} that had begun before went on where they were",
                report.left
            )?;
        }
        if report.ended > 0 {
            write!(f, "; {} that were in the way were ended", report.ended)?;
        }
        Ok(())
    }
}

/// What is in the way, a sentence each.
pub(super) fn way(shared: &Shared, units: &[Running], prepared: &[String]) -> Vec<String> {
    let client = |unit: &Running| {
        let who = shared.console.clients.about(unit.client);
        let who = who.map_or_else(String::new, |about| {
            format!(
                " (user {}, from {})",
                about.who.user.escape_debug(),
                about.peer
            )
        });
        let what = match unit.hold {
            Some(hold) => format!("keeps its server: {hold}"),
            None => "is in a transaction that takes long".to_owned(),
        };
        format!("client {}{who} {what}", unit.client)
    };
    let gid = |gid: &String| format!("prepared transaction '{}'", gid.escape_debug());
    let all = units.len() + prepared.len();
    let mut named: Vec<String> = units
        .iter()
        .map(client)
        .chain(prepared.iter().map(gid))
        .take(NAMED_MAX)
        .collect();
    if all > NAMED_MAX {
        named.push(format!("{} more", all - NAMED_MAX));
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_of_it_is_told_in_a_sentence() {
        let done = Report {
            outcome: Some(Outcome::Moved),
            took: Duration::from_millis(120),
            parked: Duration::from_micros(8_400),
            ..Report::begun(Kind::Drain)
        };
        let told = "node paris is drained after 120 ms; writes of its keys waited 8.4 ms at most";
        assert_eq!(done.sentence("paris"), told);
        let went_on = Report {
            left: 2,
            ..done.clone()
        };
        assert!(
            went_on
                .sentence("paris")
                .ends_with("; 2 that had begun before went on where they were")
        );
        let stayed = Report {
            outcome: Some(Outcome::Stayed),
            reason: Some("a reason".to_owned()),
            ..done.clone()
        };
        assert_eq!(
            stayed.sentence("paris"),
            "node paris stays in service: a reason"
        );
        assert!(done.has_moved() && !stayed.has_moved());
        assert!(!Report::begun(Kind::Resume).has_moved());
    }

    #[test]
    fn every_kind_and_outcome_has_a_place_of_its_own() {
        let kinds = Kind::ALL.map(Kind::place);
        assert_eq!(kinds.to_vec(), (0..kinds.len()).collect::<Vec<_>>());
        let outcomes = Outcome::ALL.map(Outcome::place);
        assert_eq!(outcomes.to_vec(), (0..outcomes.len()).collect::<Vec<_>>());
    }
}
