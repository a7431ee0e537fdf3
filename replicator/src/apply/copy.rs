//! Many new rows of one table go in by COPY: the server neither plans nor projects them one by one, and logs a page full of
//! them at once (src/backend/commands/copyfrom.c, `CopyMultiInsertBufferFlush`).
//!
//! COPY has no condition on other tables, so what an INSERT checks in its WHERE is checked for all of the rows right before.

use std::io;

use bytes::{BufMut, BytesMut};

use super::batch::{Batch, Prepared, Step};
use super::fold::Filling;
use super::params::{Params, Rows, Source, Statement};
use super::row::{Row, Value};
use super::session::{ApplyError, Session};
use super::sql::{
    Kind, ShapeError, StatementKey, TargetTable, Writer, key_array, key_places, literal,
    missing_column, qualified, quote,
};
use super::tombstone::remembered;
use crate::relation::Relation;

/// Fewer rows are not worth a COPY.
pub(super) const ROWS_MIN: usize = 32;
/// So many bytes of rows go in by one COPY, and one row more.
const BYTES_MAX: usize = 1 << 20;

/// A trigger that would leave rows out; `{}` is the table's OID. 7: for each row, before, INSERT
/// (src/include/catalog/pg_trigger.h); A, R: also under `session_replication_role = replica`.
pub(super) const LEAVES_OUT: &str = "EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = {} AND t.tgtype & 7 = 7 AND t.tgenabled IN ('A', 'R'))";

/// Rows that are being put together for one COPY.
pub(super) struct Copying {
    copy: Prepared,
    guard: Prepared,
    /// Their keys, for the guard.
    keys: Filling,
    /// In COPY's text format.
    data: BytesMut,
}

impl Copying {
    /// Takes a row.
    ///
    /// # Errors
    /// When the stream does not carry its key.
    pub(super) fn push(&mut self, relation: &Relation, row: &Row<'_>) -> Result<(), ApplyError> {
        let mut values = Vec::with_capacity(self.copy.statement.params.len());
        row.values(&self.guard.statement, relation, 0, &mut values)?;
        self.keys.push(&values)?;
        row.values(&self.copy.statement, relation, 0, &mut values)?;
        put_row(&mut self.data, &values)
    }

    /// Whether it takes no more.
    pub(super) fn is_full(&self) -> bool {
        self.data.len() >= BYTES_MAX
    }

    /// Adds what it has taken to a batch.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub(super) fn finish(mut self, batch: &mut Batch, out: &mut BytesMut) -> io::Result<()> {
        batch.execute(out, &self.guard.name, &self.keys.values(), Step::Work)?;
        batch.copy(out, &self.copy.name, &self.data)
    }
}

impl Session {
    /// Begins a COPY into a table that [takes one](TargetTable::takes_copy).
    ///
    /// # Errors
    /// When the target's table does not have the columns.
    pub(super) fn begin_copy(
        &mut self,
        batch: &mut Batch,
        relation: &Relation,
        table: &TargetTable,
    ) -> Result<Copying, ApplyError> {
        let key = |kind| StatementKey {
            relation: relation.id,
            kind,
            unchanged: Vec::new(),
        };
        let writer = &self.writer;
        let (out, statements) = (self.connection.out(), &mut self.statements);
        let copy = batch.prepare(out, statements, &key(Kind::Copy), || {
            Ok::<_, ApplyError>(writer.copy(relation, table)?)
        })?;
        let copy = copy.clone();
        let guard = batch.prepare(out, statements, &key(Kind::CopyGuard), || {
            Ok::<_, ApplyError>(writer.copy_guard(relation, table)?)
        })?;
        Ok(Copying {
            copy,
            guard: guard.clone(),
            keys: Filling::new(&guard.statement.params),
            data: BytesMut::with_capacity(BYTES_MAX / 4),
        })
    }
}

impl Writer {
    /// A COPY of new rows. Its parameters are the columns of its rows.
    fn copy(&self, relation: &Relation, table: &TargetTable) -> Result<Statement, ShapeError> {
        let mut names = Vec::new();
        let mut params = Vec::new();
        for (index, column) in relation.columns.iter().enumerate() {
            if table.generated.contains(column) {
                continue;
            }
            if !table.columns.contains_key(column) {
                return Err(missing_column(relation, column));
            }
            names.push(quote(column));
            params.push(Source::New(index));
        }
        Ok(Statement {
            sql: format!(
                "COPY {} ({}) FROM STDIN",
                qualified(relation),
                names.join(", ")
            ),
            params,
            types: Vec::new(),
        })
    }

    /// Fails (division by zero) if a delete is remembered for one of the keys, or the table has got a trigger that might
    /// leave rows out.
    fn copy_guard(
        &self,
        relation: &Relation,
        table: &TargetTable,
    ) -> Result<Statement, ShapeError> {
        let mut params = Params::new(relation, table, Rows::Many);
        let complete = format!(
            "NOT {}",
            LEAVES_OUT.replace("{}", &format!("{}::regclass", literal(relation)))
        );
        if table.key.is_empty() {
            return Ok(params.statement(format!("SELECT 1 / ({complete})::int")));
        }
        let places = key_places(relation, table)?.into_iter();
        let key: Vec<_> = places.map(|place| params.add(Source::Key(place))).collect();
        // Whether any is remembered is asked once, not for each row.
        let sql = format!(
            "SELECT 1 / ({complete} AND ((SELECT NOT EXISTS (SELECT FROM tandem.tombstone d WHERE d.relation = {})) \
             OR NOT EXISTS (SELECT{} WHERE EXISTS (SELECT {}))))::int",
            literal(relation),
            params.rows("FROM"),
            remembered(relation, &key_array(&key))
        );
        Ok(params.statement(sql))
    }
}

/// Appends a row in COPY's text format (PostgreSQL's documentation, COPY, "Text Format").
fn put_row(out: &mut BytesMut, values: &[Value<'_>]) -> Result<(), ApplyError> {
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.put_u8(b'\t');
        }
        match value {
            Value::Null => out.put_slice(b"\\N"),
            Value::Text(text) => put_text(out, text),
            Value::Timestamp(_) | Value::Lsn(_) | Value::Bytes(_) => {
                return Err(ApplyError::Unexpected("a value that no row has"));
            }
        }
    }
    out.put_u8(b'\n');
    Ok(())
}

fn put_text(out: &mut BytesMut, text: &[u8]) {
    let mut rest = text;
    let special = |byte: &u8| matches!(byte, b'\\' | b'\t' | b'\n' | b'\r');
    while let Some(place) = rest.iter().position(special) {
        let (plain, behind) = rest.split_at(place);
        out.put_slice(plain);
        let Some((byte, behind)) = behind.split_first() else {
            break;
        };
        out.put_slice(match byte {
            b'\t' => b"\\t",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            _ => b"\\\\",
        });
        rest = behind;
    }
    out.put_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_in_text_format_is_what_copy_reads() {
        let mut out = BytesMut::new();
        let values = [
            Value::Text(b"plain"),
            Value::Null,
            Value::Text(b""),
            Value::Text(b"\\N"),
            Value::Text(b"a\tb\nc\rd\\"),
            Value::Text(b"\\."),
        ];
        put_row(&mut out, &values).expect("fits");
        assert_eq!(&out[..], b"plain\t\\N\t\t\\\\N\ta\\tb\\nc\\rd\\\\\t\\\\.\n");
    }
}
