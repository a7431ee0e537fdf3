//! A batch: statements that are sent together, closed by one Sync, and their replies.

use std::collections::HashMap;
use std::io;

use bytes::{BufMut, BytesMut};
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend as raw;
use tandem_wire::backend;
use tandem_wire::connection::{Connection, ConnectionError};
use tandem_wire::encode::frontend;
use tandem_wire::{Frame, ServerError};

use super::params::Statement;
use super::row::Value;
use super::sql::StatementKey;

/// What one Execute of a batch stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The start of a transaction, a change, or the setting of its stamp.
    Work,
    /// A query of at most one row, which the outcome keeps.
    Read,
    /// The transaction's COMMIT.
    Commit,
}

/// A prepared statement.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    /// Its name on the server.
    pub name: String,
    /// Its text and parameters.
    pub statement: Statement,
}

/// The statements that a session has prepared.
#[derive(Debug, Default)]
pub(super) struct Statements {
    by_key: HashMap<StatementKey, Prepared>,
    next: u64,
    /// So many that the server has are not used any more.
    forgotten: usize,
}

impl Statements {
    /// How many the server has.
    pub(super) fn len(&self) -> usize {
        self.by_key.len() + self.forgotten
    }

    /// Uses none of them again: they may be for tables as they were.
    pub(super) fn forget(&mut self) {
        self.forgotten += self.by_key.len();
        self.by_key.clear();
    }
}

/// A row in text form.
pub(super) type TextRow = Vec<Option<Vec<u8>>>;

/// What came back for a batch.
#[derive(Debug)]
pub(super) struct Outcome {
    /// How many transactions were committed.
    pub commits: usize,
    /// What each [`Step::Read`] found, in order.
    pub rows: Vec<Option<TextRow>>,
    /// The error that ended it, if one did.
    pub failure: Option<Failure>,
}

/// An error in a batch: everything behind it up to the Sync was skipped.
#[derive(Debug)]
pub(super) struct Failure {
    /// What the server said.
    pub error: ServerError,
    /// At which step.
    pub step: Option<Step>,
    /// Whether a transaction is left open and has to be rolled back.
    pub in_transaction: bool,
}

/// A batch that is being put together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    steps: Vec<Step>,
    parsed: Vec<StatementKey>,
}

impl Batch {
    /// Adds the execution of a named statement.
    ///
    /// # Errors
    /// When a value cannot be encoded.
    pub(super) fn execute(
        &mut self,
        out: &mut BytesMut,
        name: &str,
        values: &[Value<'_>],
        step: Step,
    ) -> io::Result<()> {
        bind(out, name, values)?;
        frontend::execute(out, "", 0)?;
        self.steps.push(step);
        Ok(())
    }

    /// Adds a COPY FROM STDIN by a named statement, and all of its rows.
    ///
    /// The server reads them when it comes to that; where it does not, because of an error, it passes over them
    /// (PostgreSQL's documentation, "COPY Operations").
    ///
    /// # Errors
    /// When there are too many.
    pub(super) fn copy(&mut self, out: &mut BytesMut, name: &str, rows: &[u8]) -> io::Result<()> {
        self.execute(out, name, &[], Step::Work)?;
        frontend::copy_data(out, rows)?;
        frontend::copy_done(out);
        Ok(())
    }

    /// Finds a statement that the session has, or adds its preparation.
    ///
    /// # Errors
    /// When `make` fails, or the text cannot be encoded.
    pub(super) fn prepare<'s, E: From<io::Error>>(
        &mut self,
        out: &mut BytesMut,
        statements: &'s mut Statements,
        key: &StatementKey,
        make: impl FnOnce() -> Result<Statement, E>,
    ) -> Result<&'s Prepared, E> {
        if !statements.by_key.contains_key(key) {
            let statement = make()?;
            statements.next += 1;
            let name = format!("t{}", statements.next);
            frontend::parse(out, &name, &statement.sql, statement.types.iter().copied())?;
            self.parsed.push(key.clone());
            statements
                .by_key
                .insert(key.clone(), Prepared { name, statement });
        }
        statements
            .by_key
            .get(key)
            .ok_or_else(|| io::Error::other("a statement that was just prepared is missing").into())
    }

    /// Adds the preparation of a statement with a fixed name, outside the cache. The caller knows it succeeds or
    /// discards the session.
    ///
    /// # Errors
    /// When the text cannot be encoded.
    pub(super) fn parse_fixed(
        &mut self,
        out: &mut BytesMut,
        name: &str,
        sql: &str,
        types: &[u32],
    ) -> io::Result<()> {
        frontend::parse(out, name, sql, types.iter().copied())
    }

    /// Takes back everything that was added; nothing of it was sent.
    pub(super) fn discard(self, out: &mut BytesMut, statements: &mut Statements) {
        out.clear();
        for key in &self.parsed {
            statements.by_key.remove(key);
        }
    }

    /// Sends it, closed by a Sync, and reads every reply.
    ///
    /// # Errors
    /// When the connection is lost or the server breaks the protocol; an error that the server reports is in the
    /// outcome.
    pub(super) async fn run(
        self,
        connection: &mut Connection,
        statements: &mut Statements,
    ) -> Result<Outcome, ConnectionError> {
        self.send(connection)
            .await
            .replies(connection, statements)
            .await
    }

    /// Sends it, closed by a Sync. What follows may be put together, but not sent, before its replies are read.
    pub(super) async fn send(self, connection: &mut Connection) -> Sent {
        frontend::sync(connection.out());
        connection.start_flush().await;
        Sent(self)
    }
}

/// A batch that the server is working on.
#[derive(Debug)]
pub(super) struct Sent(Batch);

impl Sent {
    /// Reads every reply.
    ///
    /// # Errors
    /// When the connection is lost or the server breaks the protocol; an error that the server reports is in the
    /// outcome.
    pub(super) async fn replies(
        self,
        connection: &mut Connection,
        statements: &mut Statements,
    ) -> Result<Outcome, ConnectionError> {
        let mut outcome = Outcome {
            commits: 0,
            rows: Vec::new(),
            failure: None,
        };
        let Self(batch) = self;
        let mut steps = batch.steps.iter().copied();
        let mut current = steps.next();
        let mut found = None;
        let mut frame = connection.recv().await?;
        loop {
            match frame.tag {
                b'C' => {
                    match current {
                        Some(Step::Commit) => outcome.commits += 1,
                        Some(Step::Read) => outcome.rows.push(found.take()),
                        Some(Step::Work) | None => {}
                    }
                    current = steps.next();
                }
                b'D' if current == Some(Step::Read) => found = Some(columns(&frame)?),
                b'D' => {}
                b'E' => {
                    let error = server_error(&frame)?;
                    outcome.failure.get_or_insert(Failure {
                        error,
                        step: current,
                        in_transaction: false,
                    });
                }
                b'Z' => {
                    let status = backend::ReadyForQuery::parse(&frame.body)?.status;
                    if let Some(failure) = &mut outcome.failure {
                        failure.in_transaction = status != b'I';
                        // A Parse behind the error was skipped, one before it may have been the error: forget all.
                        for key in &batch.parsed {
                            statements.by_key.remove(key);
                        }
                    } else if current.is_some() {
                        return Err(ConnectionError::Protocol(
                            "fewer replies than statements".into(),
                        ));
                    }
                    return Ok(outcome);
                }
                // ParseComplete, BindComplete, NoData, ParameterStatus, NoticeResponse, EmptyQueryResponse, CopyInResponse
                // to a COPY whose rows were sent with it.
                b'1' | b'2' | b'n' | b'S' | b'N' | b'I' | b'T' | b't' | b'G' => {}
                tag => {
                    return Err(ConnectionError::Protocol(format!(
                        "unexpected message {:?}",
                        char::from(tag)
                    )));
                }
            }
            frame = connection.recv().await?;
        }
    }
}

fn columns(frame: &Frame) -> Result<TextRow, ConnectionError> {
    Ok(backend::DataRow::parse(&frame.body)?
        .columns()
        .map(|column| column.map(<[u8]>::to_vec))
        .collect())
}

fn server_error(frame: &Frame) -> Result<ServerError, ConnectionError> {
    Ok(backend::ErrorFields::parse(&frame.body)?.to_owned())
}

fn bind(out: &mut BytesMut, statement: &str, values: &[Value<'_>]) -> io::Result<()> {
    let formats = values.iter().map(|value| {
        i16::from(matches!(
            value,
            Value::Timestamp(_) | Value::Lsn(_) | Value::Bytes(_)
        ))
    });
    let write = |value: &Value<'_>, out: &mut BytesMut| {
        match value {
            Value::Null => return Ok(IsNull::Yes),
            Value::Text(bytes) | Value::Bytes(bytes) => out.put_slice(bytes),
            Value::Timestamp(timestamp) => out.put_i64(*timestamp),
            Value::Lsn(lsn) => out.put_u64(lsn.0),
        }
        Ok(IsNull::No)
    };
    raw::bind(
        "",
        statement,
        formats,
        values,
        write,
        std::iter::empty::<i16>(),
        out,
    )
    .map_err(|error| match error {
        raw::BindError::Conversion(error) => io::Error::other(error),
        raw::BindError::Serialization(error) => error,
    })
}
