//! The decision when a change meets a row: a pure function of versions, the same on every node.

use crate::transaction::Operation;
use crate::version::Version;

/// What stands in the table under the change's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// No row.
    Missing,
    /// A row. A version of `None` is beyond the commit-timestamp horizon, and so older than all others, or was
    /// written earlier in the very transaction that is being applied.
    Row(Option<Version>),
}

/// Conflict types by PostgreSQL 18's names (documentation, "Logical Replication: Conflicts").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConflictType {
    /// An INSERT met a row with its key.
    InsertExists,
    /// An UPDATE met a row that another node wrote later.
    UpdateOriginDiffers,
    /// An UPDATE met no row.
    UpdateMissing,
    /// A DELETE met a row that another node wrote later.
    DeleteOriginDiffers,
    /// A DELETE met no row.
    DeleteMissing,
}

impl ConflictType {
    /// The name as logs and tables have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::InsertExists => "insert_exists",
            Self::UpdateOriginDiffers => "update_origin_differs",
            Self::UpdateMissing => "update_missing",
            Self::DeleteOriginDiffers => "delete_origin_differs",
            Self::DeleteMissing => "delete_missing",
        }
    }
}

/// What to do with the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Write a new row.
    Insert,
    /// Give the row under the key the change's values.
    Overwrite,
    /// Delete the row under the key.
    Delete,
    /// Leave the table as it is.
    Skip,
}

/// The outcome of [`decide`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision {
    /// What to do.
    pub action: Action,
    /// The conflict that this is, if it is one.
    pub conflict: Option<ConflictType>,
}

/// Decides by last update wins: the change is carried out unless the row is newer.
///
/// A row as old as the change was written by the same source transaction, so the change follows it.
/// An UPDATE of a missing row is skipped and reported: only a tombstone could tell whether the delete was newer.
pub(crate) fn decide(operation: Operation, change: Version, found: Found) -> Decision {
    let plain = |action| Decision {
        action,
        conflict: None,
    };
    let conflict = |action, conflict| Decision {
        action,
        conflict: Some(conflict),
    };
    let newer = matches!(found, Found::Row(Some(row)) if row > change);
    match (operation, found) {
        (Operation::Insert, Found::Missing) => plain(Action::Insert),
        (Operation::Insert, Found::Row(_)) if newer => {
            conflict(Action::Skip, ConflictType::InsertExists)
        }
        (Operation::Insert, Found::Row(Some(_))) => {
            conflict(Action::Overwrite, ConflictType::InsertExists)
        }
        (Operation::Insert, Found::Row(None)) => plain(Action::Overwrite),
        (Operation::Update, Found::Missing) => conflict(Action::Skip, ConflictType::UpdateMissing),
        (Operation::Update, Found::Row(_)) if newer => {
            conflict(Action::Skip, ConflictType::UpdateOriginDiffers)
        }
        (Operation::Update, Found::Row(_)) => plain(Action::Overwrite),
        (Operation::Delete, Found::Missing) => conflict(Action::Skip, ConflictType::DeleteMissing),
        (Operation::Delete, Found::Row(_)) if newer => {
            conflict(Action::Skip, ConflictType::DeleteOriginDiffers)
        }
        (Operation::Delete, Found::Row(_)) => plain(Action::Delete),
        // Executed as a versioned delete of all rows; it never comes here with a key.
        (Operation::Truncate, _) => plain(Action::Delete),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(timestamp: i64, node: u16) -> Version {
        Version { timestamp, node }
    }

    #[test]
    fn an_older_change_never_touches_a_newer_row() {
        for operation in [Operation::Insert, Operation::Update, Operation::Delete] {
            let decision = decide(operation, at(1, 9), Found::Row(Some(at(2, 1))));
            assert_eq!(decision.action, Action::Skip, "{operation:?}");
            assert!(decision.conflict.is_some(), "{operation:?}");
        }
    }

    #[test]
    fn a_row_beyond_the_horizon_is_older_than_every_change() {
        assert_eq!(
            decide(Operation::Update, at(i64::MIN, 1), Found::Row(None)).action,
            Action::Overwrite
        );
    }

    #[test]
    fn the_second_change_of_one_transaction_follows_the_first() {
        assert_eq!(
            decide(Operation::Delete, at(5, 2), Found::Row(Some(at(5, 2)))).action,
            Action::Delete
        );
    }

    proptest! {
        /// Concurrent updates of one row give the same row on every node, whatever the order of arrival.
        #[test]
        fn updates_converge_in_every_order(
            versions in proptest::collection::hash_set((0i64..4, 1u16..4), 1..8),
            seed in any::<u64>(),
        ) {
            let versions: Vec<_> = versions.into_iter().map(|(timestamp, node)| at(timestamp, node)).collect();
            let newest = versions.iter().copied().max();
            let mut shuffled = versions;
            fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
            let mut row = None;
            for version in shuffled {
                if decide(Operation::Update, version, Found::Row(row)).action == Action::Overwrite {
                    row = Some(version);
                }
            }
            prop_assert_eq!(row, newest);
        }
    }
}
