//! Owns how often each reason and each rule has decided, and what the policies found.
//!
//! Each worker thread counts in a cell of its own, on a cache line of its own: nothing is locked and nothing is fought for.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tandem_routing_rules::{
    CrossHome, DefaultHomeReason, NamedBy, Rules, StatementReason, state::Homed,
};

use crate::pool::current_worker;

/// Cells of a counter; workers beyond that share them.
const CELLS: usize = 16;
/// Lines of advice that are logged in a second.
const ADVICE_MAX: u32 = 10;

/// Counts for ever.
#[derive(Debug, Default)]
pub(crate) struct Counter([Cell; CELLS]);

#[derive(Debug, Default)]
#[repr(align(64))]
struct Cell(AtomicU64);

impl Counter {
    /// One more.
    pub(crate) fn add(&self) {
        if let Some(cell) = self.0.get(current_worker() % CELLS) {
            cell.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All so far.
    pub(crate) fn sum(&self) -> u64 {
        self.0
            .iter()
            .map(|cell| cell.0.load(Ordering::Relaxed))
            .sum()
    }
}

/// Why a unit of work goes where it goes, as far as that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It concerns the session only.
    Session,
    /// It reads catalogs: the reference node.
    Catalogs,
    /// The key that it names.
    Key,
    /// The key of its leading comment.
    CommentKey,
    /// The key of the session.
    SessionKey,
    /// A session rule.
    SessionRule,
    /// Where the session wrote last.
    LastHome,
    /// The default home, because it has no key.
    NoKey,
    /// The default home, because the rules do not have its placement any more.
    UnknownPlacement,
    /// The default home, because it is SERIALIZABLE.
    Serializable,
    /// The default home, because of LOCK TABLE.
    LockTable,
    /// The default home, because of advisory locks.
    AdvisoryLock,
    /// The default home, because of an exported snapshot.
    Snapshot,
    /// The default home, because of a large object.
    LargeObject,
    /// The nearest node.
    Nearest,
    /// No node is healthy.
    Nowhere,
}

impl Reason {
    /// All of them, each at the place of its count.
    pub(crate) const ALL: [Reason; 16] = [
        Reason::Session,
        Reason::Catalogs,
        Reason::Key,
        Reason::CommentKey,
        Reason::SessionKey,
        Reason::SessionRule,
        Reason::LastHome,
        Reason::NoKey,
        Reason::UnknownPlacement,
        Reason::Serializable,
        Reason::LockTable,
        Reason::AdvisoryLock,
        Reason::Snapshot,
        Reason::LargeObject,
        Reason::Nearest,
        Reason::Nowhere,
    ];

    /// The word for figures.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Reason::Session => "session_state",
            Reason::Catalogs => "catalogs",
            Reason::Key => "key",
            Reason::CommentKey => "comment_key",
            Reason::SessionKey => "session_key",
            Reason::SessionRule => "session_rule",
            Reason::LastHome => "last_home",
            Reason::NoKey => "no_key",
            Reason::UnknownPlacement => "unknown_placement",
            Reason::Serializable => "serializable",
            Reason::LockTable => "lock_table",
            Reason::AdvisoryLock => "advisory_lock",
            Reason::Snapshot => "snapshot",
            Reason::LargeObject => "large_object",
            Reason::Nearest => "nearest",
            Reason::Nowhere => "nowhere",
        }
    }
}

impl From<&StatementReason<'_>> for Reason {
    fn from(reason: &StatementReason<'_>) -> Reason {
        match reason {
            StatementReason::Key { named_by, .. } => match named_by {
                NamedBy::Statement => Reason::Key,
                NamedBy::Comment => Reason::CommentKey,
                NamedBy::Setting => Reason::SessionKey,
            },
            StatementReason::SessionRule { .. } => Reason::SessionRule,
            StatementReason::LastHome => Reason::LastHome,
            StatementReason::DefaultHome(because) => match because {
                DefaultHomeReason::NoKey(_) => Reason::NoKey,
                DefaultHomeReason::UnknownPlacement => Reason::UnknownPlacement,
                DefaultHomeReason::Serializable => Reason::Serializable,
                DefaultHomeReason::LockTable => Reason::LockTable,
                DefaultHomeReason::AdvisoryLock | DefaultHomeReason::Homed(Homed::AdvisoryLock) => {
                    Reason::AdvisoryLock
                }
                DefaultHomeReason::Homed(Homed::Snapshot) => Reason::Snapshot,
                DefaultHomeReason::Homed(Homed::LargeObject) => Reason::LargeObject,
            },
            StatementReason::Nearest(_) => Reason::Nearest,
        }
    }
}

/// A rule that has decided, by its place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A session rule.
    Session(usize),
    /// A placement.
    Placement(usize),
}

impl Rule {
    /// The one that is behind a reason.
    pub(crate) fn of(reason: &StatementReason<'_>, rules: &Rules) -> Option<Rule> {
        match reason {
            StatementReason::Key { placement, .. } => {
                let mut placements = rules.placements.iter();
                let place = placements.position(|known| known.name == *placement);
                place.map(Rule::Placement)
            }
            StatementReason::SessionRule { rule, .. } => rule.checked_sub(1).map(Rule::Session),
            _ => None,
        }
    }
}

/// What is counted of a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Why {
    pub(crate) reason: Reason,
    pub(crate) rule: Option<Rule>,
    /// Evidence that came first was not followed.
    pub(crate) overruled: bool,
    /// The rules only say where it should have gone.
    pub(crate) advised: bool,
}

impl Why {
    /// Nothing but a reason.
    pub(crate) fn only(reason: Reason) -> Why {
        Why {
            reason,
            rule: None,
            overruled: false,
            advised: false,
        }
    }
}

/// What is counted of all units of work.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    reasons: [Counter; Reason::ALL.len()],
    /// By what became of them, in the order of [`CrossHome`].
    cross_home: [Counter; 3],
    /// Writes that were refused because they name no key.
    pub(crate) without_key: Counter,
    /// Units of which some evidence was not followed.
    pub(crate) overruled: Counter,
    /// Writes that would have gone to a node that is not theirs to choose.
    pub(crate) advised: Counter,
    advice: Mutex<Advice>,
}

impl Counts {
    /// A unit goes where it goes for this reason.
    pub(crate) fn note(&self, why: Why, rules: &RuleCounts) {
        if let Some(counter) = self.reasons.get(why.reason as usize) {
            counter.add();
        }
        if let Some(counter) = why.rule.and_then(|rule| rules.get(rule)) {
            counter.add();
        }
        if why.overruled {
            self.overruled.add();
        }
    }

    /// A write reaches over homes.
    pub(crate) fn note_cross_home(&self, policy: CrossHome) {
        if let Some(counter) = self.cross_home.get(policy as usize) {
            counter.add();
        }
    }

    /// How many units went somewhere, by reason.
    pub(crate) fn reasons(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = Reason::ALL.into_iter().zip(&self.reasons);
        counts.map(|(reason, counter)| (reason.word(), counter.sum()))
    }

    /// How many writes reached over homes, by what became of them.
    pub(crate) fn cross_home(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let words = ["allowed", "noticed", "refused"];
        words
            .into_iter()
            .zip(self.cross_home.iter().map(Counter::sum))
    }

    /// A write would have gone elsewhere, for this reason: the log tells of some of them each second.
    pub(crate) fn advise(&self, line: &str) {
        self.advised.add();
        // Who finds it locked is one of too many.
        let Ok(mut advice) = self.advice.try_lock() else {
            return;
        };
        if let Some(untold) = advice.tells(Instant::now()) {
            tracing::info!(untold, "a write: {line}");
        }
    }
}

/// Bounds the log.
#[derive(Debug, Default)]
struct Advice {
    since: Option<Instant>,
    told: u32,
    untold: u64,
}

impl Advice {
    /// Whether there is room for one more line: how many were left out before it.
    fn tells(&mut self, now: Instant) -> Option<u64> {
        let is_new = self
            .since
            .is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1));
        if is_new {
            (self.since, self.told) = (Some(now), 0);
        }
        if self.told >= ADVICE_MAX {
            self.untold += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

/// How often each rule of a file has decided.
#[derive(Debug, Default)]
pub(crate) struct RuleCounts {
    sessions: Vec<Arc<Counter>>,
    placements: Vec<Arc<Counter>>,
}

impl RuleCounts {
    /// Of rules that are new.
    pub(crate) fn new(rules: &Rules) -> RuleCounts {
        RuleCounts {
            sessions: rules.sessions.iter().map(|_| Arc::default()).collect(),
            placements: rules.placements.iter().map(|_| Arc::default()).collect(),
        }
    }

    /// Of rules that follow others: what is the same goes on counting.
    pub(crate) fn following(&self, before: &Rules, rules: &Rules) -> RuleCounts {
        let kept = |counters: &[Arc<Counter>], place: Option<usize>| {
            let known = place.and_then(|place| counters.get(place));
            known.map(Arc::clone).unwrap_or_default()
        };
        let session = |rule| {
            let place = before.sessions.iter().position(|known| known == rule);
            kept(&self.sessions, place)
        };
        let placement = |name: &str| {
            let mut known = before.placements.iter();
            kept(
                &self.placements,
                known.position(|placement| placement.name == name),
            )
        };
        RuleCounts {
            sessions: rules.sessions.iter().map(session).collect(),
            placements: rules
                .placements
                .iter()
                .map(|rule| placement(&rule.name))
                .collect(),
        }
    }

    /// The count of a rule.
    pub(crate) fn get(&self, rule: Rule) -> Option<&Counter> {
        let counter = match rule {
            Rule::Session(place) => self.sessions.get(place),
            Rule::Placement(place) => self.placements.get(place),
        };
        counter.map(|counter| &**counter)
    }
}

#[cfg(test)]
mod tests {
    use tandem_routing_rules::NodeInfo;

    use super::*;

    #[test]
    fn each_reason_has_a_count_of_its_own() {
        let counts = Counts::default();
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place);
            for _ in 0..=place {
                counts.note(Why::only(reason), &RuleCounts::default());
            }
        }
        let found: Vec<u64> = counts.reasons().map(|(_, count)| count).collect();
        assert_eq!(found, (1..=16).collect::<Vec<u64>>());
        for policy in [CrossHome::Allow, CrossHome::Reject, CrossHome::Reject] {
            counts.note_cross_home(policy);
        }
        let found: Vec<_> = counts.cross_home().collect();
        assert_eq!(found, [("allowed", 1), ("noticed", 0), ("refused", 2)]);
    }

    #[test]
    fn a_rule_that_stays_goes_on_counting() {
        let nodes = [NodeInfo {
            id: 1,
            name: "paris".to_owned(),
            zone: None,
        }];
        let rules = |names: &[&str]| {
            let each = |name: &&str| format!("[placement.{name}]\nstrategy = \"hash\"\n");
            let text: String = names.iter().map(each).collect();
            let session = "[[session]]\nmatch = { user = \"a\" }\nnode = \"paris\"\n";
            Rules::parse(&format!("{text}{session}"), &nodes).expect("rules")
        };
        let (before, after) = (rules(&["p", "q"]), rules(&["q", "r"]));
        let counts = RuleCounts::new(&before);
        let count = |counts: &RuleCounts, rule| counts.get(rule).expect("a counter").sum();
        counts.get(Rule::Placement(1)).expect("a counter").add();
        counts.get(Rule::Session(0)).expect("a counter").add();
        let counts = counts.following(&before, &after);
        assert_eq!(count(&counts, Rule::Placement(0)), 1);
        assert_eq!(count(&counts, Rule::Placement(1)), 0);
        assert_eq!(count(&counts, Rule::Session(0)), 1);
        assert!(counts.get(Rule::Placement(2)).is_none());
    }

    #[test]
    fn advice_is_bounded_in_rate_and_what_is_left_out_is_told() {
        let mut advice = Advice::default();
        let now = Instant::now();
        let told: Vec<_> = (0..13).filter_map(|_| advice.tells(now)).collect();
        assert_eq!(told, [0; 10]);
        let later = now + Duration::from_secs(1);
        assert_eq!(advice.tells(later), Some(3));
        assert_eq!(advice.tells(later), Some(0));
    }
}
