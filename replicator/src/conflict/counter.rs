//! Counters: columns whose value is the sum of what all nodes have contributed, each contribution exactly once.
//!
//! Existence and all other columns follow the newest version; a contribution counts whatever its version is. It goes
//! into the row, or, where the row is gone, into the delete that is remembered for it, so that a row which returns has
//! them all.

use super::{Action, Found};

/// Where the contribution of a change goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Into the row that the change writes anew, with what the remembered delete holds, which holds nothing then.
    NewRow,
    /// Into the row, which gets the change's version.
    Row,
    /// Into the row, which keeps its own version: it must not look older than it is.
    KeptRow,
    /// What is left of the row's value goes into the remembered delete with it.
    RowIntoDelete,
    /// Into the remembered delete.
    Delete,
}

/// The place, given what [`decide`](super::decide) makes of the change.
pub(crate) fn place(action: Action, found: Found) -> Place {
    match (action, found) {
        (Action::Insert, _) => Place::NewRow,
        (Action::Overwrite, _) => Place::Row,
        (Action::Delete, _) => Place::RowIntoDelete,
        (Action::Bury | Action::Skip, Found::Row(_)) => Place::KeptRow,
        (Action::Bury | Action::Skip, Found::Missing(_)) => Place::Delete,
    }
}
