//! What stands under one key on each node, and what to make of it: pure functions of what was read.

use crate::version::Version;

/// The timestamp of a row that never had a version and is written by a repair: older than every real one.
/// PostgreSQL takes 0 for "none given" (src/backend/access/transam/xact.c, `RecordTransactionCommit`).
pub(super) const UNVERSIONED: i64 = 1;

/// Stands for a row's content: two 64-bit hashes of its text.
pub(super) type Content = (i64, i64);

/// A row as a node has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// What it says.
    pub(super) content: Content,
    /// Which transaction wrote it; `None` beyond the commit-timestamp horizon.
    pub(super) version: Option<Version>,
    /// Whether the version has to be the same on all nodes: not that of a row which was there before replication began,
    /// so that each node has its own.
    pub(super) counts: bool,
    /// The local transaction that wrote it, to be sure that it is still the same.
    pub(super) xmin: String,
}

/// What a node knows of a key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Its row.
    pub(super) row: Option<Row>,
    /// The newest delete that it remembers.
    pub(super) deleted: Option<Version>,
}

impl State {
    /// What is compared: the content, and the version where it counts. Remembered deletes are forgotten at different
    /// times, so they are not.
    fn compared(&self) -> Option<(Content, Option<Version>)> {
        self.row
            .as_ref()
            .map(|row| (row.content, row.version.filter(|_| row.counts)))
    }

    fn version(&self) -> Option<Version> {
        self.row.as_ref().and_then(|row| row.version)
    }
}

/// Whether all nodes have the same: no row at all, or one content, in no more than one version that counts.
pub(super) fn are_equal<'a>(states: impl IntoIterator<Item = &'a State>) -> bool {
    let mut states = states.into_iter().map(State::compared);
    let Some(first) = states.next() else {
        return true;
    };
    let mut known = first.and_then(|(_, version)| version);
    states.all(|state| match (first, state) {
        (None, None) => true,
        (Some((wanted, _)), Some((content, version))) => {
            let agrees = known.is_none() || version.is_none() || known == version;
            known = known.or(version);
            wanted == content && agrees
        }
        _ => false,
    })
}

/// What a second look at a differing key says, after everything that was committed before the first had been applied
/// everywhere in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was lag.
    Equal,
    /// The row is being written, and every node has at least what was the newest at the first look.
    Moving,
    /// It differs exactly as it did: no change that is under way will mend it.
    Differs,
    /// Something has changed; it takes another look.
    Unsettled,
}

/// Compares two looks at the same key; the nodes are in the same order.
pub(super) fn judge(before: &[State], after: &[State]) -> Verdict {
    if are_equal(after) {
        return Verdict::Equal;
    }
    if before
        .iter()
        .map(State::compared)
        .eq(after.iter().map(State::compared))
    {
        return Verdict::Differs;
    }
    let newest = before
        .iter()
        .map(|state| state.version().max(state.deleted))
        .max()
        .flatten();
    let keeps_up = after
        .iter()
        .all(|state| state.version().max(state.deleted) >= newest);
    let contradicts = after.iter().any(|one| {
        after.iter().any(|other| {
            one.version() == other.version()
                && one
                    .compared()
                    .zip(other.compared())
                    .is_some_and(|(a, b)| a.0 != b.0)
        })
    });
    if newest.is_some() && keeps_up && !contradicts {
        Verdict::Moving
    } else {
        Verdict::Unsettled
    }
}

/// What a repair does on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing.
    Keep,
    /// Writes the row, which is missing.
    Insert,
    /// Gives the row the right content and version.
    Replace,
    /// Deletes the row.
    Delete,
    /// Writes the row as it is once more, as a change of its own that replication brings to the others.
    Touch,
    /// Deletes the row as a change of its own, too.
    DeleteAnew,
}

impl Action {
    /// The word in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Insert => "insert",
            Self::Replace => "replace",
            Self::Delete => "delete",
            Self::Touch => "write again",
            Self::DeleteAnew => "delete anew",
        }
    }
}

/// How a differing key is mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    /// The version that is written.
    pub(super) version: Version,
    /// The index of the node whose row it is; `None` for a delete.
    pub(super) source: Option<usize>,
    /// What to do, by node.
    pub(super) actions: Vec<Action>,
}

/// Chooses what all nodes shall have. The newest version wins; a remembered delete counts as a version, a row beats
/// "absent, and nothing remembered". Where several contents have that version, or none has any, the one wins that most
/// nodes hold, then that of the lowest node id. `None` where there is nothing to do.
///
/// `ids` are the node ids by index. The outcome does not depend on the nodes' order.
pub(super) fn choose(ids: &[u16], states: &[State]) -> Option<Choice> {
    if are_equal(states) {
        return None;
    }
    let rows: Vec<(usize, u16, &Row)> = ids
        .iter()
        .zip(states)
        .enumerate()
        .filter_map(|(index, (&id, state))| Some((index, id, state.row.as_ref()?)))
        .collect();
    let newest = rows.iter().map(|(_, _, row)| row.version).max()?;
    let deleted = states.iter().filter_map(|state| state.deleted).max();
    if let Some(deleted) = deleted.filter(|&deleted| Some(deleted) > newest) {
        let delete = |state: &State| match state.row {
            Some(_) => Action::Delete,
            None => Action::Keep,
        };
        return Some(Choice {
            version: deleted,
            source: None,
            actions: states.iter().map(delete).collect(),
        });
    }
    let holders = |content| {
        rows.iter()
            .filter(|(_, _, row)| row.content == content)
            .count()
    };
    let (source, id, winner) = rows
        .iter()
        .filter(|(_, _, row)| row.version == newest)
        .max_by_key(|(_, id, row)| (holders(row.content), std::cmp::Reverse(*id)))?;
    let version = newest.unwrap_or(Version {
        timestamp: UNVERSIONED,
        node: *id,
    });
    let action = |state: &State| match &state.row {
        None => Action::Insert,
        Some(row) if row.content != winner.content => Action::Replace,
        // A version that does not count agrees with every other.
        Some(row) if row.version == newest || !row.counts => Action::Keep,
        Some(_) => Action::Replace,
    };
    Some(Choice {
        version,
        source: Some(*source),
        actions: states.iter().map(action).collect(),
    })
}

/// The same where the node at index `truth` is right, whatever the versions say: what it has is written there as a new
/// change, and what it does not have is deleted wherever it is.
pub(super) fn follow(truth: usize, states: &[State]) -> Vec<Action> {
    let is_there = states.get(truth).is_some_and(|state| state.row.is_some());
    states
        .iter()
        .enumerate()
        .map(|(index, state)| match (is_there, &state.row) {
            (true, _) if index == truth => Action::Touch,
            (false, Some(_)) => Action::DeleteAnew,
            _ => Action::Keep,
        })
        .collect()
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
