//! The decision when a change meets a row: a pure function of versions, the same on every node.

pub(crate) mod counter;
pub(crate) mod resolver;
pub(crate) mod unique;

use crate::transaction::Operation;
use crate::version::Version;

/// What stands in the table under the change's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// No row, and the version of the delete that is remembered for the key, if one is.
    Missing(Option<Version>),
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
    /// An UPDATE met no row, and no delete is remembered.
    UpdateMissing,
    /// An UPDATE met a deleted row.
    UpdateDeleted,
    /// An INSERT met a row that another node deleted later. (PostgreSQL has no name for it.)
    InsertDeleted,
    /// A DELETE met a row that another node wrote later.
    DeleteOriginDiffers,
    /// A DELETE met no row.
    DeleteMissing,
}

impl ConflictType {
    /// Whether the change was to delete the row.
    pub(crate) fn is_of_a_delete(self) -> bool {
        matches!(self, Self::DeleteOriginDiffers | Self::DeleteMissing)
    }

    /// The name as logs and tables have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::InsertExists => "insert_exists",
            Self::UpdateOriginDiffers => "update_origin_differs",
            Self::UpdateMissing => "update_missing",
            Self::UpdateDeleted => "update_deleted",
            Self::InsertDeleted => "insert_deleted",
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
    /// Delete the row under the key, and remember the delete.
    Delete,
    /// Leave the table as it is, but remember the delete.
    Bury,
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

/// Decides by last update wins: the change is carried out unless the row, or the delete that left none, is newer.
///
/// A row as old as the change was written by the same source transaction, so the change follows it. An UPDATE of a
/// row that is missing, or was deleted earlier, brings the row back: its new image is whole. Every delete is
/// remembered, also one that loses or finds nothing.
pub(crate) fn decide(operation: Operation, change: Version, found: Found) -> Decision {
    use ConflictType as C;
    use Operation as O;
    let plain = |action| Decision {
        action,
        conflict: None,
    };
    let conflict = |action, conflict| Decision {
        action,
        conflict: Some(conflict),
    };
    let newer = match found {
        Found::Row(version) | Found::Missing(version) => {
            version.is_some_and(|version| version > change)
        }
    };
    match (operation, found) {
        (O::Insert, Found::Missing(_)) if newer => conflict(Action::Skip, C::InsertDeleted),
        (O::Insert, Found::Missing(_)) => plain(Action::Insert),
        (O::Insert, Found::Row(_)) if newer => conflict(Action::Skip, C::InsertExists),
        (O::Insert, Found::Row(Some(_))) => conflict(Action::Overwrite, C::InsertExists),
        (O::Insert, Found::Row(None)) => plain(Action::Overwrite),
        (O::Update, Found::Missing(_)) if newer => conflict(Action::Skip, C::UpdateDeleted),
        (O::Update, Found::Missing(Some(_))) => conflict(Action::Insert, C::UpdateDeleted),
        (O::Update, Found::Missing(None)) => conflict(Action::Insert, C::UpdateMissing),
        (O::Update, Found::Row(_)) if newer => conflict(Action::Skip, C::UpdateOriginDiffers),
        (O::Update, Found::Row(_)) => plain(Action::Overwrite),
        (O::Delete, Found::Missing(_)) => conflict(Action::Bury, C::DeleteMissing),
        (O::Delete, Found::Row(_)) if newer => conflict(Action::Bury, C::DeleteOriginDiffers),
        // A TRUNCATE is a versioned delete of all rows; it never comes here with a key.
        (O::Delete, Found::Row(_)) | (O::Truncate, _) => plain(Action::Delete),
    }
}

#[cfg(test)]
mod model;

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
            let untouched = matches!(decision.action, Action::Skip | Action::Bury);
            assert!(
                untouched && decision.conflict.is_some(),
                "{operation:?}: {decision:?}"
            );
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

    #[test]
    fn an_update_newer_than_the_delete_brings_the_row_back_and_an_older_one_does_not() {
        let update =
            |tombstone| decide(Operation::Update, at(5, 1), Found::Missing(Some(tombstone))).action;
        assert_eq!(update(at(4, 3)), Action::Insert);
        assert_eq!(update(at(5, 2)), Action::Skip);
    }

    #[test]
    fn a_delete_is_remembered_whatever_it_finds() {
        for found in [
            Found::Missing(None),
            Found::Missing(Some(at(9, 1))),
            Found::Row(Some(at(9, 1))),
        ] {
            assert_eq!(
                decide(Operation::Delete, at(5, 2), found).action,
                Action::Bury,
                "{found:?}"
            );
        }
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
