//! One change's values, as parameters of a statement.

use std::collections::HashMap;

use tandem_wire::lsn::Lsn;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::params::{Source, Stamps, Statement};
use super::sql::TargetTable;
use crate::image::{Nulls, image};
use crate::pgoutput::{Column, DecodeError, Message, OldTuple, decode};
use crate::relation::Relation;
use crate::runs::put_key_column;
use crate::transaction::{Change, Operation};
use crate::version::PgTimestamp;

/// A parameter. Positions and timestamps travel in binary form, which has one meaning only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// SQL NULL.
    Null,
    /// Text form.
    Text(&'a [u8]),
    /// A timestamptz in binary form.
    Timestamp(PgTimestamp),
    /// A pg_lsn in binary form.
    Lsn(Lsn),
    /// A bytea in binary form.
    Bytes(&'a [u8]),
}

/// OID of timestamptz (src/include/catalog/pg_type.dat).
pub(super) const TIMESTAMPTZ: u32 = 1184;
/// OID of bytea.
pub(super) const BYTEA: u32 = 17;
/// OID of numeric.
pub(super) const NUMERIC: u32 = 1700;
/// OID of pg_lsn.
pub(super) const PG_LSN: u32 = 3220;

/// Why a change's values cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowError {
    /// The message cannot be decoded (it could when it was captured).
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A value in binary form, which was not asked for.
    #[error("the stream carries a value in binary form")]
    Binary,
    /// The stream does not carry a key column of the old row.
    #[error(
        "the stream does not carry primary key column {column} of {table}; set REPLICA IDENTITY DEFAULT or FULL on the source"
    )]
    NoKeyValue {
        /// Schema and table.
        table: String,
        /// The column.
        column: String,
    },
    /// The stream does not carry the old row, so that nobody can tell what the change adds to a counter, or, without a key,
    /// which row it is about.
    #[error(
        "the stream does not carry the old row of {table}; it was written before the table had REPLICA IDENTITY FULL"
    )]
    NoOldRow {
        /// Schema and table.
        table: String,
    },
}

/// Which half of a change counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    /// What it gives, less what it takes.
    Both,
    /// Only what it takes.
    Leaving,
    /// Only what it gives.
    Arriving,
}

/// The values of one change. Invariant: none is in binary form.
pub(super) struct Row<'a> {
    new: Vec<Column<'a>>,
    old: Vec<Column<'a>>,
    /// Whether `old` is the whole row; otherwise its columns outside the key are NULL only for want of a value.
    old_is_whole: bool,
    half: Half,
    /// Values of the new row that were fetched, because the stream leaves them out.
    fetched: HashMap<usize, Option<Vec<u8>>>,
}

impl<'a> Row<'a> {
    /// Reads them.
    ///
    /// # Errors
    /// When the message cannot be decoded, or has values in binary form.
    pub(super) fn read(change: &'a Change) -> Result<Self, RowError> {
        let columns = |old: OldTuple<'a>| -> Vec<_> { old.tuple().columns().collect() };
        let mut old_is_whole = false;
        let (new, old) = match decode(&change.message)? {
            Message::Insert { new, .. } => (new.columns().collect(), Vec::new()),
            Message::Update { old, new, .. } => {
                old_is_whole = matches!(old, Some(OldTuple::Full(_)));
                (
                    new.columns().collect(),
                    old.map(columns).unwrap_or_default(),
                )
            }
            Message::Delete { old, .. } => {
                old_is_whole = matches!(old, OldTuple::Full(_));
                (Vec::new(), columns(old))
            }
            _ => (Vec::new(), Vec::new()),
        };
        let is_binary = |column: &Column<'_>| matches!(column, Column::Binary(_));
        if new.iter().chain(&old).any(is_binary) {
            return Err(RowError::Binary);
        }
        Ok(Self {
            new,
            old,
            old_is_whole,
            half: Half::Both,
            fetched: HashMap::new(),
        })
    }

    /// Fills in a value that the stream leaves out.
    pub(super) fn fill(&mut self, index: usize, value: Option<Vec<u8>>) {
        self.fetched.insert(index, value);
    }

    fn new_column(&self, index: usize) -> Column<'_> {
        match self.new.get(index) {
            Some(Column::Unchanged) => match self.fetched.get(&index) {
                Some(Some(value)) => Column::Text(value),
                Some(None) => Column::Null,
                // Under REPLICA IDENTITY FULL an unchanged TOAST value stands in the old row.
                None if self.old_is_whole => {
                    self.old.get(index).copied().unwrap_or(Column::Unchanged)
                }
                None => Column::Unchanged,
            },
            Some(column) => *column,
            None => Column::Null,
        }
    }

    fn key_column(&self, index: usize) -> Column<'_> {
        match self.old.get(index) {
            Some(Column::Text(text)) => Column::Text(text),
            _ => self.new_column(index),
        }
    }

    /// Whether the stream leaves the column's value out.
    pub(super) fn is_unchanged(&self, index: usize) -> bool {
        self.new_column(index) == Column::Unchanged
    }

    /// The columns that are left out, a bit each; empty when there is none.
    pub(super) fn unchanged(&self) -> Vec<u64> {
        let mut bits = Vec::new();
        for index in (0..self.new.len()).filter(|&index| self.is_unchanged(index)) {
            bits.resize(bits.len().max(index / 64 + 1), 0);
            if let Some(word) = bits.get_mut(index / 64) {
                *word |= 1u64 << (index % 64);
            }
        }
        bits
    }

    /// Whether the primary key itself changes.
    pub(super) fn key_moves(&self, relation: &Relation, table: &TargetTable) -> bool {
        relation.columns.iter().enumerate().any(|(index, column)| {
            table.key.contains(column)
                && matches!(
                    (self.old.get(index), self.new.get(index)),
                    (Some(Column::Text(old)), Some(Column::Text(new))) if old != new
                )
        })
    }

    /// The key's values, in the order of the target's primary key. `new`: of the new row.
    ///
    /// # Errors
    /// When the stream does not carry it.
    pub(super) fn key(
        &self,
        relation: &Relation,
        table: &TargetTable,
        new: bool,
    ) -> Result<Vec<Vec<u8>>, RowError> {
        let mut values = Vec::with_capacity(table.key.len());
        for column in &table.key {
            let place = relation.columns.iter().position(|name| name == column);
            let index = place.ok_or_else(|| no_value(relation, column))?;
            let value = if new {
                self.new_column(index)
            } else {
                self.key_column(index)
            };
            let Column::Text(text) = value else {
                return Err(no_value(relation, column));
            };
            values.push(text.to_vec());
        }
        Ok(values)
    }

    /// A hash of the values at `places`, the key's columns.
    pub(super) fn key_hash(&self, places: &[usize]) -> u64 {
        let mut hash = 0;
        for &place in places {
            if let Column::Text(text) = self.key_column(place) {
                hash = xxh3_64_with_seed(text, hash);
            }
        }
        hash
    }

    /// Appends the values at `places`, the key's columns, to a key as runs have it; answers whether all are there.
    pub(super) fn put_key(&self, places: &[usize], key: &mut Vec<u8>) -> bool {
        places.iter().all(|&place| match self.key_column(place) {
            Column::Text(text) => {
                put_key_column(key, text);
                true
            }
            _ => false,
        })
    }

    /// Takes over what a later change of the same row makes of it.
    pub(super) fn absorb(&mut self, later: &Row<'a>) {
        for (index, column) in later.new.iter().enumerate() {
            let column = match column {
                Column::Unchanged if later.old_is_whole => later.old.get(index).unwrap_or(column),
                column => column,
            };
            if let (Some(known), false) = (self.new.get_mut(index), *column == Column::Unchanged) {
                *known = *column;
            }
        }
    }

    /// Whether a later change of the same row finds its counters as this one left them: otherwise somebody else has added
    /// to them at the source meanwhile.
    pub(super) fn counts_on(
        &self,
        later: &Row<'_>,
        relation: &Relation,
        table: &TargetTable,
    ) -> bool {
        let mut columns = relation.columns.iter().enumerate();
        table.counters.is_empty()
            || columns.all(|(index, name)| {
                !table.counters.contains(name)
                    || later.old.get(index) == Some(&self.new_column(index))
            })
    }

    /// A value of the new row as text; `None` where it is NULL or not in the stream.
    pub(super) fn new_text(&self, index: usize) -> Option<&[u8]> {
        match self.new_column(index) {
            Column::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A value of the old row as text; `None` where it is NULL or not in the stream.
    pub(super) fn old_text(&self, index: usize) -> Option<&[u8]> {
        match self.old.get(index) {
            Some(Column::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The parameters of a statement.
    ///
    /// # Errors
    /// When the stream does not carry a key column.
    pub(super) fn values<'r>(
        &'r self,
        statement: &Statement,
        relation: &Relation,
        stamps: impl Into<Stamps>,
        out: &mut Vec<Value<'r>>,
    ) -> Result<(), RowError> {
        let stamps = stamps.into();
        out.clear();
        for source in &statement.params {
            out.push(match *source {
                Source::Timestamp => Value::Timestamp(stamps.first),
                Source::Last => Value::Timestamp(stamps.last),
                Source::New(index) => match self.new_column(index) {
                    Column::Text(text) => Value::Text(text),
                    _ => Value::Null,
                },
                Source::Key(index) => match self.key_column(index) {
                    Column::Text(text) => Value::Text(text),
                    _ => {
                        let column = relation.columns.get(index).map_or("?", String::as_str);
                        return Err(no_value(relation, column));
                    }
                },
                Source::Gain(index) => number(self.gain(index)),
                Source::Base(index) => number(self.base(index)),
            });
        }
        Ok(())
    }

    /// The new row as a JSON object of its columns' text forms, without those that the stream leaves out.
    pub(super) fn text_image(&self, relation: &Relation) -> String {
        let values = relation.columns.iter().enumerate();
        let image: serde_json::Map<_, _> = values
            .filter(|(index, _)| !self.is_unchanged(*index))
            .map(|(index, name)| {
                let value = self.new_text(index).map(String::from_utf8_lossy);
                (name.clone(), value.map(String::from).into())
            })
            .collect();
        serde_json::Value::Object(image).to_string()
    }

    /// Which half of a change counts: a changed key gives all to the one row what it takes from the other.
    pub(super) fn count(&mut self, half: Half) {
        self.half = half;
    }

    fn gain(&self, index: usize) -> Column<'_> {
        match self.half {
            Half::Leaving => Column::Null,
            Half::Both | Half::Arriving => self.new_column(index),
        }
    }

    fn base(&self, index: usize) -> Column<'_> {
        match self.half {
            Half::Arriving => Column::Null,
            Half::Both | Half::Leaving => self.old.get(index).copied().unwrap_or(Column::Null),
        }
    }

    /// Whether an UPDATE changes nothing but counters, and the stream says so.
    pub(super) fn only_counts(&self, relation: &Relation, table: &TargetTable) -> bool {
        self.old_is_whole
            && !table.counters.is_empty()
            && relation.columns.iter().enumerate().all(|(index, column)| {
                table.counters.contains(column)
                    || table.generated.contains(column)
                    || self.new.get(index) == Some(&Column::Unchanged)
                    || self.new.get(index) == self.old.get(index)
            })
    }

    /// Checks that what the change adds to counters can be told: an UPDATE or DELETE needs the whole old row.
    ///
    /// # Errors
    /// When it cannot.
    pub(super) fn check_counts(
        &self,
        change: &Change,
        table: &TargetTable,
    ) -> Result<(), RowError> {
        if table.counters.is_empty() {
            return Ok(());
        }
        self.check_old(change)
    }

    /// Whether a change that takes something away tells all of the old row.
    pub(super) fn check_old(&self, change: &Change) -> Result<(), RowError> {
        if change.operation == Operation::Insert || self.old_is_whole {
            return Ok(());
        }
        Err(RowError::NoOldRow {
            table: format!("{}.{}", change.relation.schema, change.relation.name),
        })
    }

    /// The image of the change as JSON, for the conflict log; unchanged TOAST values are left out.
    pub(super) fn image(&self, relation: &Relation, operation: Operation) -> String {
        let image = if operation == Operation::Delete {
            image(relation, self.old.iter().copied(), Nulls::LeftOut)
        } else {
            let new = (0..self.new.len()).map(|index| self.new_column(index));
            image(relation, new, Nulls::Shown)
        };
        serde_json::Value::Object(image).to_string()
    }
}

fn number(column: Column<'_>) -> Value<'_> {
    match column {
        Column::Text(text) => Value::Text(text),
        Column::Null | Column::Unchanged | Column::Binary(_) => Value::Text(b"0"),
    }
}

fn no_value(relation: &Relation, column: &str) -> RowError {
    RowError::NoKeyValue {
        table: format!("{}.{}", relation.schema, relation.name),
        column: column.to_owned(),
    }
}
