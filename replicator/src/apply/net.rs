//! What consecutive transactions come to, key by key. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::params::Stamps;
use super::row::{Half, Row};
use super::session::ApplyError;
use super::sql::{TargetTable, key_places, qualified};
use crate::relation::Relation;
use crate::runs::Versions;
use crate::transaction::{Change, Operation, Transaction};
use crate::version::PgTimestamp;

/// What is to be done about one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Outcome {
    /// A new row.
    Insert,
    /// The row gets new values.
    Update,
    /// The row goes.
    Delete,
    /// A row came and went.
    Bury,
}

/// What happens to one key.
pub(super) struct Net<'a> {
    /// The row in the end, and what is known of it from before.
    pub row: Row<'a>,
    /// When it was changed first and last.
    pub stamps: Stamps,
    began: Operation,
    ended: Operation,
}

impl Net<'_> {
    /// What is to be done.
    pub(super) fn outcome(&self) -> Outcome {
        match (self.began, self.ended) {
            (Operation::Insert, Operation::Delete) => Outcome::Bury,
            (Operation::Insert, _) => Outcome::Insert,
            (_, Operation::Delete) => Outcome::Delete,
            _ => Outcome::Update,
        }
    }
}

/// What happens to one table.
pub(super) struct TableNet<'a> {
    /// The table as the source has it.
    pub relation: &'a Arc<Relation>,
    /// As the target has it.
    pub table: Arc<TargetTable>,
    places: Vec<usize>,
    keys: HashMap<Vec<u8>, usize>,
    nets: Vec<Net<'a>>,
}

impl<'a> TableNet<'a> {
    /// Whether its changes can be brought together by key.
    fn takes(&self, operation: Operation) -> bool {
        let table = &self.table;
        !table.gone
            && table.takes_many()
            && !self.relation.columns.is_empty()
            && !table.collides()
            && operation != Operation::Truncate
            && (table.key_is_plain || (table.key.is_empty() && operation == Operation::Insert))
    }

    /// Takes in a change; answers false where it cannot be.
    fn add(
        &mut self,
        change: &'a Change,
        timestamp: PgTimestamp,
        key: &mut Vec<u8>,
    ) -> Result<bool, ApplyError> {
        let row = Row::read(change)?;
        let operation = change.operation;
        if operation == Operation::Update && row.key_moves(self.relation, &self.table) {
            return Ok(false);
        }
        row.check_counts(change, &self.table)?;
        key.clear();
        let known = if self.places.is_empty() {
            None
        } else {
            if !row.put_key(&self.places, key) {
                return Ok(false);
            }
            self.keys.get(key).copied()
        };
        let Some(net) = known.and_then(|index| self.nets.get_mut(index)) else {
            let net = Net {
                row,
                stamps: Stamps::from(timestamp),
                began: operation,
                ended: operation,
            };
            if !self.places.is_empty() {
                self.keys.insert(key.clone(), self.nets.len());
            }
            self.nets.push(net);
            return Ok(true);
        };
        // A row that comes back is brought together with its delete on the target.
        let follows = net.ended != Operation::Delete && operation != Operation::Insert;
        if !follows || !net.row.counts_on(&row, self.relation, &self.table) {
            return Ok(false);
        }
        net.stamps.last = timestamp;
        net.ended = operation;
        if operation == Operation::Delete {
            net.row.count(Half::Leaving);
        } else {
            net.row.absorb(&row);
        }
        Ok(true)
    }

    /// What is to be done, by the kind of statement: the outcome, and which columns the stream leaves out.
    pub(super) fn groups(&self) -> BTreeMap<(Outcome, Vec<u64>), Vec<&Net<'a>>> {
        let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for net in &self.nets {
            let outcome = net.outcome();
            let unchanged = match outcome {
                Outcome::Insert | Outcome::Update => net.row.unchanged(),
                Outcome::Delete | Outcome::Bury => Vec::new(),
            };
            groups.entry((outcome, unchanged)).or_default().push(net);
        }
        groups
    }

    /// Notes the true versions of the rows that stand in the end.
    pub(super) fn note(&self, versions: &mut Versions) {
        let rows: Vec<_> = self
            .keys
            .iter()
            .filter_map(|(key, &index)| Some((key.as_slice(), self.nets.get(index)?)))
            .filter(|(_, net)| matches!(net.outcome(), Outcome::Insert | Outcome::Update))
            .map(|(key, net)| (key, net.stamps.last))
            .collect();
        if !rows.is_empty() {
            versions.add(&qualified(self.relation), rows.into_iter());
        }
    }
}

/// Brings transactions together; `table` answers how the target has a table. Stops at the first transaction that cannot
/// be part of it, and then answers its place instead.
///
/// # Errors
/// When a change cannot be read, or does not fit the target's table.
pub(super) fn bring_together<'a>(
    transactions: &[&'a Transaction],
    mut table: impl FnMut(&Relation) -> Result<Arc<TargetTable>, ApplyError>,
) -> Result<Result<Vec<TableNet<'a>>, usize>, ApplyError> {
    let mut tables: Vec<TableNet<'a>> = Vec::new();
    let mut key = Vec::new();
    for (index, &transaction) in transactions.iter().enumerate() {
        for change in &transaction.changes {
            let relation = &change.relation;
            let known = tables
                .iter()
                .position(|known| known.relation.id == relation.id);
            let place = match known {
                Some(place) => place,
                // The same table in another shape.
                None if tables.iter().any(|known| {
                    known.relation.name == relation.name && known.relation.schema == relation.schema
                }) =>
                {
                    return Ok(Err(index));
                }
                None => {
                    let table = table(relation)?;
                    let places = if table.key.is_empty() {
                        Vec::new()
                    } else {
                        key_places(relation, &table)?
                    };
                    tables.push(TableNet {
                        relation,
                        table,
                        places,
                        keys: HashMap::new(),
                        nets: Vec::new(),
                    });
                    tables.len() - 1
                }
            };
            let Some(net) = tables.get_mut(place) else {
                return Err(ApplyError::Unexpected("no such table"));
            };
            if !net.takes(change.operation) || !net.add(change, transaction.timestamp, &mut key)? {
                return Ok(Err(index));
            }
        }
    }
    Ok(Ok(tables))
}
