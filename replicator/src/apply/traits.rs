//! What a transaction does, as far as it decides how it may be applied.

use super::row::Row;
use super::session::{ApplyError, Session};
use super::sql::{TargetTable, qualified};
use crate::relation::Relation;
use crate::runs::put_key_column;
use crate::transaction::{Operation, Transaction};

/// The keys of a table that a change of a row touches, as runs have them.
///
/// # Errors
/// When the stream does not carry one.
pub(super) fn keys_of(
    row: &Row<'_>,
    relation: &Relation,
    table: &TargetTable,
) -> Result<Vec<Vec<u8>>, ApplyError> {
    let sides: &[bool] = if row.key_moves(relation, table) {
        &[false, true]
    } else {
        &[false]
    };
    let mut keys = Vec::new();
    for &new in sides {
        let mut key = Vec::new();
        for column in row.key(relation, table, new)? {
            put_key_column(&mut key, &column);
        }
        keys.push(key);
    }
    Ok(keys)
}

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Traits {
    /// It deletes a row.
    pub deletes: bool,
    /// It truncates a table.
    pub truncates: bool,
    /// It changes a primary key.
    pub moves_key: bool,
    /// It inserts into a table with counters.
    pub inserts_counted: bool,
    /// It changes a table with counters.
    pub counts: bool,
    /// It changes a table whose conflicts a layered resolver settles.
    pub layered: bool,
    /// It does more than insert into a table without a key.
    pub multiset: bool,
    /// It changes a table with shadowed rows.
    pub shadowed: bool,
    /// It changes a table that was dropped.
    pub gone: bool,
}

impl Traits {
    /// Whether it leaves deletes to be remembered.
    pub(super) fn buries(self) -> bool {
        self.deletes || self.truncates || self.moves_key
    }

    /// Whether its own node has to learn something from it.
    pub(super) fn tells(self) -> bool {
        self.buries() || self.inserts_counted
    }

    /// Whether that is about rows that came with it.
    pub(super) fn arrives(self) -> bool {
        self.inserts_counted || (self.counts && self.moves_key)
    }

    /// Whether it cannot take the fast path.
    pub(super) fn needs_locks(self) -> bool {
        self.truncates || self.moves_key || self.shadowed || self.multiset || self.gone
    }
}

impl Session {
    /// Looks at every change. Tables that the target does not have are passed over if `lenient`.
    ///
    /// # Errors
    /// When a table is not there, or a change cannot be read.
    pub(super) async fn traits(
        &mut self,
        transaction: &Transaction,
        lenient: bool,
    ) -> Result<Traits, ApplyError> {
        let mut traits = Traits::default();
        let missing = self.load_known(&transaction.changes).await?;
        if let Some(name) = missing.values().next().filter(|_| !lenient) {
            return Err(ApplyError::NoTable(name.clone()));
        }
        for change in &transaction.changes {
            if missing.contains_key(&change.relation.id) {
                continue;
            }
            let table = self.table(&change.relation)?;
            if table.gone {
                traits.gone = true;
                continue;
            }
            let counts = !table.counters.is_empty();
            traits.counts |= counts;
            traits.multiset |= table.key.is_empty() && change.operation != Operation::Insert;
            traits.layered |= table.resolver.is_layered();
            match change.operation {
                Operation::Insert => traits.inserts_counted |= counts,
                Operation::Update if change.has_old_key() => {
                    let row = Row::read(change)?;
                    traits.moves_key |= row.key_moves(&change.relation, &table);
                }
                Operation::Update => {}
                Operation::Delete => traits.deletes = true,
                Operation::Truncate => traits.truncates = true,
            }
        }
        traits.shadowed = self.may_meet_shadows(transaction);
        Ok(traits)
    }

    /// Whether a table of the transaction may have shadowed rows.
    pub(super) fn may_meet_shadows(&self, transaction: &Transaction) -> bool {
        let shadows = &self.place.shadows;
        let mut changes = transaction.changes.iter();
        !shadows.is_empty() && changes.any(|change| shadows.may_have(&qualified(&change.relation)))
    }
}
