//! Folding: consecutive changes of one transaction that one statement can carry out become one statement of many rows.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::batch::{Batch, Step};
use super::copy;
use super::params::{Rows, Source};
use super::row::{Row, Value};
use super::session::{ApplyError, Session};
use super::sql::{Kind, StatementKey, TargetTable, key_places};
use crate::transaction::{Change, Operation};
use crate::version::PgTimestamp;

/// Rows of one statement at most.
const ROWS_MAX: usize = 1000;
/// A statement takes no more rows once its values have so many bytes.
const BYTES_MAX: usize = 256 << 10;

/// OID of text (src/include/catalog/pg_type.dat).
const TEXT: i32 = 25;
/// OID of timestamptz.
const TIMESTAMPTZ: i32 = 1184;
/// Bytes before an array's elements: dimensions, whether there are nulls, the elements' type, length, lower bound
/// (src/backend/utils/adt/arrayfuncs.c, `array_recv`).
const ARRAY_HEADER: usize = 20;
/// Where the second and the fourth of these stand.
const ARRAY_NULLS: usize = 4;
const ARRAY_LENGTH: usize = 12;

/// Values of one parameter, as an array in binary form.
#[derive(Debug)]
struct Array(BytesMut);

impl Array {
    fn new(source: Source) -> Self {
        let kind = match source {
            Source::Timestamp | Source::Last => TIMESTAMPTZ,
            _ => TEXT,
        };
        let mut bytes = BytesMut::with_capacity(ARRAY_HEADER + 16 * ROWS_MAX);
        for field in [1, 0, kind, 0, 1] {
            bytes.put_i32(field);
        }
        Self(bytes)
    }

    fn set(&mut self, place: usize, value: i32) {
        if let Some(field) = self.0.get_mut(place..place + size_of::<i32>()) {
            field.copy_from_slice(&value.to_be_bytes());
        }
    }

    fn push(&mut self, value: &Value<'_>) -> Result<(), ApplyError> {
        match value {
            Value::Null => {
                self.set(ARRAY_NULLS, 1);
                self.0.put_i32(-1);
            }
            Value::Text(text) => {
                let length = i32::try_from(text.len());
                self.0
                    .put_i32(length.map_err(|_| ApplyError::Unexpected("value of 2 GiB"))?);
                self.0.put_slice(text);
            }
            Value::Timestamp(timestamp) => {
                self.0.put_i32(8);
                self.0.put_i64(*timestamp);
            }
            Value::Lsn(_) | Value::Bytes(_) => {
                return Err(ApplyError::Unexpected("a value that no row has"));
            }
        }
        Ok(())
    }
}

/// The rows of a statement that is being filled.
#[derive(Debug)]
pub(super) struct Filling {
    /// One for each parameter.
    arrays: Vec<Array>,
    rows: usize,
    /// Hashes of the keys: a statement takes no row twice.
    keys: HashSet<u64>,
}

impl Filling {
    /// For so many parameters.
    pub(super) fn new(sources: &[Source]) -> Self {
        Self {
            arrays: sources.iter().map(|&source| Array::new(source)).collect(),
            rows: 0,
            keys: HashSet::new(),
        }
    }

    /// Whether it takes no more.
    pub(super) fn is_full(&self) -> bool {
        let bytes: usize = self.arrays.iter().map(|array| array.0.len()).sum();
        self.rows >= ROWS_MAX || bytes >= BYTES_MAX
    }

    /// Whether it has taken nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Takes a row.
    ///
    /// # Errors
    /// When a value has no form in an array.
    pub(super) fn push(&mut self, values: &[Value<'_>]) -> Result<(), ApplyError> {
        for (array, value) in self.arrays.iter_mut().zip(values) {
            array.push(value)?;
        }
        self.rows += 1;
        Ok(())
    }

    /// The parameters' values.
    pub(super) fn values(&mut self) -> Vec<Value<'_>> {
        let rows = i32::try_from(self.rows).unwrap_or(i32::MAX);
        for array in &mut self.arrays {
            array.set(ARRAY_LENGTH, rows);
        }
        self.arrays
            .iter()
            .map(|array| Value::Bytes(&array.0))
            .collect()
    }
}

/// Whether the first of some changes might share a statement with the one behind it.
pub(super) fn begins(changes: &[Change]) -> bool {
    matches!(changes, [first, second, ..] if first.operation != Operation::Truncate && is_alike(first, second))
}

fn is_alike(one: &Change, other: &Change) -> bool {
    one.operation == other.operation && Arc::ptr_eq(&one.relation, &other.relation)
}

impl Session {
    /// Adds the first of some changes as one statement; answers how many. The answer is 0 where their table does not
    /// fold.
    ///
    /// # Errors
    /// When a change does not fit the target's table.
    pub(super) fn add_folded(
        &mut self,
        batch: &mut Batch,
        changes: &[Change],
        timestamp: PgTimestamp,
    ) -> Result<usize, ApplyError> {
        let Some(first) = changes.first() else {
            return Ok(0);
        };
        let (relation, operation) = (&first.relation, first.operation);
        let table = self.table(relation)?;
        if relation.columns.is_empty() {
            return Ok(0);
        }
        let many = changes.get(..copy::ROWS_MIN).unwrap_or_default();
        if operation == Operation::Insert
            && table.takes_copy
            && !many.is_empty()
            && many.iter().all(|change| is_alike(first, change))
        {
            return self.add_copied(batch, changes, &table);
        }
        if !table.takes_many() {
            return Ok(0);
        }
        let row = Row::read(first)?;
        let key = StatementKey {
            relation: relation.id,
            kind: Kind::Folded(operation),
            unchanged: row.unchanged(),
        };
        let writer = &self.writer;
        let prepared = batch.prepare(self.connection.out(), &mut self.statements, &key, || {
            let unchanged = |index| row.is_unchanged(index);
            Ok::<_, ApplyError>(match operation {
                Operation::Insert => writer.insert(relation, &table, true, Rows::Many)?,
                Operation::Update => {
                    writer.update(relation, &table, unchanged, false, true, Rows::Many)?
                }
                Operation::Delete => writer.delete(relation, &table, true, false, Rows::Many)?,
                Operation::Truncate => return Err(ApplyError::Unexpected("a TRUNCATE")),
            })
        })?;
        let places = if table.key.is_empty() {
            Vec::new()
        } else {
            key_places(relation, &table)?
        };
        let mut filling = Filling::new(&prepared.statement.params);
        for change in changes {
            if !is_alike(first, change) || filling.is_full() {
                break;
            }
            let row = Row::read(change)?;
            let fits = row.unchanged() == key.unchanged
                && (places.is_empty() || filling.keys.insert(row.key_hash(&places)));
            if !fits {
                break;
            }
            row.check_counts(change, &table)?;
            let mut values = Vec::with_capacity(prepared.statement.params.len());
            row.values(&prepared.statement, relation, timestamp, &mut values)?;
            filling.push(&values)?;
        }
        let taken = filling.rows;
        let values = filling.values();
        batch.execute(self.connection.out(), &prepared.name, &values, Step::Work)?;
        Ok(taken)
    }
}

impl Session {
    /// Adds the first of some changes, which are INSERTs, as one COPY; answers how many.
    fn add_copied(
        &mut self,
        batch: &mut Batch,
        changes: &[Change],
        table: &TargetTable,
    ) -> Result<usize, ApplyError> {
        let Some(first) = changes.first() else {
            return Ok(0);
        };
        let mut copying = self.begin_copy(batch, &first.relation, table)?;
        let mut taken = 0;
        for change in changes {
            if !is_alike(first, change) || copying.is_full() {
                break;
            }
            copying.push(&change.relation, &Row::read(change)?)?;
            taken += 1;
        }
        copying.finish(batch, self.connection.out())?;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_in_binary_form_is_what_the_server_reads() {
        let mut filling = Filling::new(&[Source::New(0), Source::Timestamp]);
        filling
            .push(&[Value::Text(b"a{\"b"), Value::Timestamp(7)])
            .expect("fits");
        filling
            .push(&[Value::Null, Value::Timestamp(8)])
            .expect("fits");
        let values = filling.values();
        let [Value::Bytes(texts), Value::Bytes(timestamps)] = values.as_slice() else {
            panic!("{values:?}");
        };
        let texts_expected =
            b"\0\0\0\x01\0\0\0\x01\0\0\0\x19\0\0\0\x02\0\0\0\x01\0\0\0\x04a{\"b\xff\xff\xff\xff";
        assert_eq!(texts, texts_expected);
        let timestamps_expected =
            b"\0\0\0\x01\0\0\0\0\0\0\x04\xa0\0\0\0\x02\0\0\0\x01\0\0\0\x08\0\0\0\0\0\0\0\x07\
            \0\0\0\x08\0\0\0\0\0\0\0\x08";
        assert_eq!(timestamps, timestamps_expected);
    }
}
