//! Puts transactions that the target refuses into its quarantine, and tries them again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tandem_wire::lsn::Lsn;

use super::batch::{Batch, Step};
use super::row::{Row, Value};
use super::session::{ApplyError, Session};
use super::sql::{TargetTable, key_places, qualified};
use super::{LinkContext, Worker};
use crate::control::ControlError;
use crate::ddl;
use crate::journal::codec::decode_transaction;
use crate::journal::codec::encode_transaction;
use crate::quarantine::{Held, Hold};
use crate::relation::Relation;
use crate::transaction::{Change, Operation, Transaction};

/// How often what is in quarantine is tried again unasked.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Why a transaction goes to the quarantine.
pub(super) struct Refusal {
    reason: String,
    /// The number of the quarantined transaction that it has to wait for.
    behind: Option<i64>,
}

impl Refusal {
    /// By the target, or for want of something there.
    pub(super) fn by(reason: String) -> Self {
        Self {
            reason,
            behind: None,
        }
    }
}

impl Worker<'_> {
    /// Why the transaction cannot be applied now, if that is known beforehand.
    pub(super) async fn refusal(
        &mut self,
        transaction: &Transaction,
    ) -> Result<Option<Refusal>, ApplyError> {
        let poison = &mut self.carried.poison;
        if let Some((_, reason)) = poison.take_if(|(lsn, _)| *lsn == transaction.end_lsn) {
            return Ok(Some(Refusal::by(reason)));
        }
        if self.context.quarantine.is_empty() {
            return Ok(None);
        }
        let holds = self.session.holds(transaction).await?;
        let behind = self.context.quarantine.first_in_the_way(&holds);
        Ok(behind.map(|id| Refusal {
            reason: format!("it changes what number {id} in the quarantine changes"),
            behind: Some(id),
        }))
    }

    /// Stores the transaction on the target, in the commit that moves the progress over it.
    pub(super) async fn quarantine(
        &mut self,
        transaction: &Transaction,
        refusal: Refusal,
    ) -> Result<(), ApplyError> {
        let holds = self.session.holds(transaction).await?;
        let (source, target) = (self.context.place.source, self.context.place.target);
        let reason = &refusal.reason;
        tracing::warn!(source, target, lsn = %transaction.end_lsn, reason, "replication: a transaction is in quarantine");
        let id = self
            .session
            .quarantine(transaction, &refusal, &holds)
            .await?;
        self.context.quarantine.add(id, source, holds);
        self.moved(&[transaction], transaction.end_lsn);
        Ok(())
    }

    /// Waits until another attempt is due.
    pub(super) async fn retry_due(context: &LinkContext, last: Instant) {
        let asked = context.quarantine.retry.notified();
        if context.is_own() || context.quarantine.of_source(context.place.source) == 0 {
            return std::future::pending().await;
        }
        let next = tokio::time::Instant::from_std(last + RETRY_INTERVAL);
        tokio::select! {
            () = asked => {}
            () = tokio::time::sleep_until(next) => {}
        }
    }

    /// Tries what stands first for its keys again. One attempt each; what fails stays.
    pub(super) async fn retry_quarantined(&mut self) -> Result<(), ApplyError> {
        self.retried = Instant::now();
        self.carried.current = None;
        if self.unproved.is_some() {
            return Ok(());
        }
        let quarantine = &self.context.quarantine;
        let mut tried = BTreeSet::new();
        loop {
            let ready = quarantine.ready(self.context.place.source);
            let last = self.carried.retried;
            // In turn, so that one which costs the session does not keep the others from their attempt.
            let after = ready.iter().find(|&id| *id > last && !tried.contains(id));
            let next = after.or_else(|| ready.iter().find(|&id| !tried.contains(id)));
            let Some(&id) = next else { return Ok(()) };
            tried.insert(id);
            self.carried.retried = id;
            let stamp = self.link.applied();
            let Some((transaction, held)) = self.session.read_quarantined(id, stamp).await? else {
                quarantine.remove(id);
                continue;
            };
            match self.apply_settled(&transaction, Some(held)).await {
                Ok(Ok(_)) => {
                    tracing::info!(
                        source = self.context.place.source,
                        target = self.context.place.target,
                        id,
                        "replication: applied out of the quarantine"
                    );
                    self.link.count(1, transaction.timestamp);
                    self.link.count_conflicts(self.session.take_conflicts());
                    // Its timestamp must not be taken for another's when progress is proved.
                    self.note().await?;
                    quarantine.remove(id);
                }
                Ok(Err(error)) => self.session.note_attempt(held, &error.to_string()).await?,
                Err(error) => {
                    if error.is_poison() {
                        self.session.note_attempt(held, &error.to_string()).await?;
                    }
                    return Err(error);
                }
            }
        }
    }
}

impl Session {
    /// What the transaction holds up while it is in quarantine.
    async fn holds(&mut self, transaction: &Transaction) -> Result<Vec<Hold>, ApplyError> {
        let commands = ddl::tables(&transaction.statements).into_iter();
        let mut holds: BTreeSet<_> = commands.map(|table| Hold { table, key: None }).collect();
        let missing = self.load_known(&transaction.changes).await?;
        for change in &transaction.changes {
            let keys = if missing.contains_key(&change.relation.id) {
                None
            } else {
                change_keys(change, &*self.table(&change.relation)?)
            };
            let table = qualified(&change.relation);
            let hold = |key| Hold {
                table: table.clone(),
                key,
            };
            match keys {
                Some(keys) => holds.extend(keys.into_iter().map(|key| hold(Some(key)))),
                None => {
                    holds.insert(hold(None));
                }
            }
        }
        Ok(holds.into_iter().collect())
    }

    async fn quarantine(
        &mut self,
        transaction: &Transaction,
        refusal: &Refusal,
        holds: &[Hold],
    ) -> Result<i64, ApplyError> {
        let source = self.place.source.to_string();
        let holds = serde_json::to_string(holds)
            .map_err(|_| ApplyError::Unexpected("holds that are not JSON"))?;
        let behind = refusal.behind.map(|id| id.to_string());
        let mut payload = Vec::new();
        encode_transaction(transaction, &mut payload)
            .map_err(|_| ApplyError::Unexpected("a change too large to be kept"))?;
        let mut batch = Batch::default();
        let out = self.connection.out();
        batch.execute(out, "begin", &[], Step::Work)?;
        let values = [
            Value::Text(source.as_bytes()),
            Value::Lsn(transaction.end_lsn),
            Value::Timestamp(transaction.timestamp),
            Value::Text(refusal.reason.as_bytes()),
            behind
                .as_ref()
                .map_or(Value::Null, |id| Value::Text(id.as_bytes())),
            Value::Text(holds.as_bytes()),
            Value::Bytes(&payload),
        ];
        batch.execute(out, "quarantine", &values, Step::Read)?;
        self.finish(&mut batch, transaction, false)?;
        let outcome = self.run(batch).await?;
        if let Some(failure) = outcome.failure {
            return Err(if failure.error.code == "22012" {
                ApplyError::Raced
            } else {
                ApplyError::NotQuarantined(failure.error)
            });
        }
        let row = outcome.rows.into_iter().next().flatten();
        row.and_then(|row| {
            std::str::from_utf8(row.first()?.as_deref()?)
                .ok()?
                .parse()
                .ok()
        })
        .ok_or(ApplyError::Unexpected("tandem.quarantine"))
    }

    /// The transaction being applied leaves the quarantine with its commit.
    pub(super) fn release(
        &mut self,
        batch: &mut Batch,
        quarantined: Option<Held>,
    ) -> Result<(), ApplyError> {
        if let Some(held) = quarantined {
            let (id, edits) = (held.id.to_string(), held.edits.to_string());
            let values = [Value::Text(id.as_bytes()), Value::Text(edits.as_bytes())];
            batch.execute(self.connection.out(), "release", &values, Step::Work)?;
        }
        Ok(())
    }

    /// The transaction under a number, to be committed at `stamp`; `None` where there is none any more.
    async fn read_quarantined(
        &self,
        id: i64,
        stamp: Lsn,
    ) -> Result<Option<(Transaction, Held)>, ApplyError> {
        let sql = "SELECT payload, edits FROM tandem.quarantine WHERE id = $1";
        let rows = self.place.control.query(sql, &[&id]).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let payload: &[u8] = row.try_get(0).map_err(ControlError::from)?;
        let transaction = decode_transaction(payload, &self.place.interner)
            .map_err(|_| ApplyError::Unexpected("tandem.quarantine"))?;
        let edits = row.try_get(1).map_err(ControlError::from)?;
        let stamped = Transaction {
            end_lsn: stamp,
            ..transaction
        };
        Ok(Some((stamped, Held { id, edits })))
    }

    async fn note_attempt(&self, held: Held, reason: &str) -> Result<(), ApplyError> {
        let sql = "UPDATE tandem.quarantine SET attempts = attempts + 1, reason = $2, behind = NULL \
             WHERE id = $1 AND edits = $3";
        let control = &self.place.control;
        control
            .query(sql, &[&held.id, &reason, &held.edits])
            .await?;
        Ok(())
    }
}

/// The keys that a change touches; `None` where they cannot be told, or its table has not what the change needs.
fn change_keys(change: &Change, table: &TargetTable) -> Option<Vec<Vec<String>>> {
    let relation: &Relation = &change.relation;
    let fits =
        |column: &String| table.columns.contains_key(column) || table.generated.contains(column);
    let has_key = key_places(relation, table).is_ok();
    if change.operation == Operation::Truncate || !has_key || !relation.columns.iter().all(fits) {
        return None;
    }
    let row = Row::read(change).ok()?;
    let sides: &[bool] = match change.operation {
        Operation::Insert => &[true],
        Operation::Update if row.key_moves(relation, table) => &[false, true],
        _ => &[false],
    };
    let text = |value: Vec<u8>| String::from_utf8_lossy(&value).into_owned();
    sides
        .iter()
        .map(|&new| {
            Some(
                row.key(relation, table, new)
                    .ok()?
                    .into_iter()
                    .map(text)
                    .collect(),
            )
        })
        .collect()
}
