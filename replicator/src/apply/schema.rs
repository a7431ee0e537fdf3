//! Transactions with DDL: the changes between the commands meet the tables as the commands before them left them.
//!
//! One transaction on the target, as ever: a command that fails takes the changes with it. What is known of tables is
//! forgotten behind each command, and by all links into the target when it is committed.

use tandem_wire::ServerError;
use tandem_wire::connection::ConnectionError;

use super::batch::Batch;
use super::session::{ApplyError, Session, is_poison};
use super::shadow::{Course, is_collision};
use super::slow::{Slow, Unknown};
use crate::ddl::{Command, Piece, pieces};
use crate::quarantine::Held;
use crate::transaction::Transaction;

/// Gives the session its own role and settings back.
const ITS_OWN: &str = "SET LOCAL ROLE NONE; SET LOCAL search_path = pg_catalog; SET LOCAL check_function_bodies = off; \
    SET LOCAL default_tablespace TO DEFAULT; SET LOCAL default_table_access_method TO DEFAULT; \
    SET LOCAL default_toast_compression TO DEFAULT; SET LOCAL standard_conforming_strings = on; SET LOCAL timezone = 'UTC'; \
    SET LOCAL datestyle = ISO; SET LOCAL intervalstyle = postgres; SET LOCAL xmloption TO DEFAULT";

/// SQLSTATE active_sql_transaction: it runs outside of transactions only.
const NOT_INSIDE: &str = "25001";

impl Session {
    /// Applies one transaction with DDL; what [`apply_slowly`](Self::apply_slowly) says holds here too. `careful`: its
    /// changes are looked at one by one, because some of them collide or meet other rows than those of their source.
    ///
    /// # Errors
    /// When it cannot be applied now.
    pub(super) async fn apply_with_commands(
        &mut self,
        transaction: &Transaction,
        settled: &Unknown,
        quarantined: Option<Held>,
        careful: bool,
    ) -> Result<Slow, ApplyError> {
        let pieces = pieces(&transaction.changes, &transaction.statements)?;
        self.begin(transaction).await?;
        self.forget_schema(true);
        let applied = self
            .apply_pieces(transaction, &pieces, settled, quarantined, careful)
            .await;
        self.forget_schema(false);
        applied
    }

    async fn apply_pieces(
        &mut self,
        transaction: &Transaction,
        pieces: &[Piece<Command>],
        settled: &Unknown,
        quarantined: Option<Held>,
        careful: bool,
    ) -> Result<Slow, ApplyError> {
        let mut course = Course::default();
        for piece in pieces {
            let ended = match piece {
                Piece::Command(command) => self.carry_out(command).await?,
                Piece::Changes(range) => {
                    let changes = transaction.changes.get(range.clone()).unwrap_or_default();
                    let part = Transaction {
                        end_lsn: transaction.end_lsn,
                        timestamp: transaction.timestamp,
                        xid: transaction.xid,
                        changes: changes.to_vec(),
                        statements: Vec::new(),
                        size: 0,
                    };
                    if careful {
                        self.apply_colliding(&part, settled, &mut course).await?
                    } else {
                        self.apply_plainly(&part).await?
                    }
                }
            };
            if let Some(ended) = ended {
                return Ok(ended);
            }
        }
        self.finish_colliding(transaction, quarantined, course)
            .await
    }

    /// Carries a command out as whoever gave it; answers what ends the transaction.
    async fn carry_out(&mut self, command: &Command) -> Result<Option<Slow>, ApplyError> {
        for sql in [command.under.as_str(), &command.sql, ITS_OWN] {
            if let Err(error) = self.connection.simple_query(sql).await {
                return match error {
                    ConnectionError::Server(error) => self.refused(command, error).await.map(Some),
                    lost => Err(lost.into()),
                };
            }
        }
        self.forget_schema(true);
        Ok(None)
    }

    async fn refused(&mut self, command: &Command, error: ServerError) -> Result<Slow, ApplyError> {
        if !is_poison(&error.code) && error.code != NOT_INSIDE {
            return Err(ApplyError::Refused(error));
        }
        self.connection.simple_query("ROLLBACK").await?;
        tracing::debug!(command = command.tag, %error, "a command is refused");
        Ok(Slow::Refused(error))
    }

    /// Applies changes as the fast path would, without a COMMIT; answers what ends the transaction.
    async fn apply_plainly(&mut self, part: &Transaction) -> Result<Option<Slow>, ApplyError> {
        let traits = self.traits(part, false).await;
        let mut batch = Batch::default();
        let added = match traits {
            Ok(traits) if traits.needs_locks() => Ok(false),
            Ok(_) => self
                .add_changes(&mut batch, part, false)
                .await
                .map(|_| true),
            Err(error) => Err(error),
        };
        match added {
            Ok(true) => {}
            Ok(false) => {
                self.connection.simple_query("ROLLBACK").await?;
                return Ok(Some(Slow::Collides));
            }
            Err(error) => {
                batch.discard(self.connection.out(), &mut self.statements);
                return Err(error);
            }
        }
        let Some(failure) = self.run(batch).await?.failure else {
            return Ok(None);
        };
        tracing::debug!(error = %failure.error, "changes between DDL stopped");
        // Fewer rows than there should be, or a key that is taken.
        if failure.error.code == "22012" || is_collision(&failure.error.code) {
            self.roll_back(&failure).await?;
            Ok(Some(Slow::Collides))
        } else if is_poison(&failure.error.code) {
            self.roll_back(&failure).await?;
            Ok(Some(Slow::Refused(failure.error)))
        } else {
            Err(ApplyError::Refused(failure.error))
        }
    }
}
