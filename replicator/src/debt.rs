//! Pays what a table without a primary key owes (`apply/multiset.rs`).
//!
//! Two nodes that delete the same row at the same time leave a debt on every node, which would cancel a row that somebody
//! inserts later. Once everything is applied everywhere, what is owed then is inserted once, on one node, as any client
//! would: on each node that row and the debt cancel each other out.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use crate::node::Shared;
use crate::operator::target::{Target, names};
use crate::operator::{OperatorError, Session};
use crate::watermark;

/// The node that pays, by index. Only one may, or each debt would be paid twice.
const PAYER: usize = 0;
/// Images that are paid for at once.
const AT_ONCE: i64 = 1_000;

/// Pays what is owed now. Answers without having done anything when not everything can be applied everywhere by `deadline`.
///
/// # Errors
/// When the paying node cannot be asked.
pub(crate) async fn pay(shared: &Arc<Shared>, deadline: Instant) -> Result<(), OperatorError> {
    let controls: Option<Vec<_>> = shared
        .controls
        .iter()
        .map(|control| control.borrow().clone())
        .collect();
    let Some(controls) = controls else {
        return Ok(());
    };
    let Some(control) = controls.get(PAYER) else {
        return Ok(());
    };
    let sql = "SELECT relation, digest, count FROM tandem.debt LIMIT $1";
    let Ok(owed) = control.query(sql, &[&AT_ONCE]).await else {
        return Ok(());
    };
    // What is in quarantine may be what is owed, and what was paid before has to be learnt first.
    let quarantined = || !shared.quarantines.iter().all(|held| held.is_empty());
    let may_pay = !owed.is_empty()
        && !quarantined()
        && watermark::everywhere(shared, deadline).await.is_ok()
        && !quarantined();
    if !may_pay {
        return Ok(());
    }
    let session = Session::open(shared, PAYER).await?;
    session
        .execute("SET session_replication_role = replica")
        .await?;
    let mut targets: HashMap<String, Option<Target>> = HashMap::new();
    for row in &owed {
        let (relation, digest): (String, String) = (session.get(row, 0)?, session.get(row, 1)?);
        if !targets.contains_key(&relation) {
            let sql = "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.oid = to_regclass($1)";
            let found = session.query(sql, &[&relation]).await?;
            let target = match found.first() {
                Some(row) => Target::load(&session, session.get(row, 0)?).await?,
                None => None,
            };
            targets.insert(relation.clone(), target);
        }
        let Some(Some(target)) = targets.get(&relation) else {
            continue;
        };
        let columns: Vec<_> = target.columns.iter().filter(|c| !c.is_generated).collect();
        let list = names(&columns, "");
        let sql = format!(
            "INSERT INTO {} ({list}) OVERRIDING SYSTEM VALUE SELECT {} FROM tandem.debt d, LATERAL {}, \
             generate_series(1, least(d.count, $3)) WHERE d.relation = $1 AND d.digest = $2",
            target.qualified(),
            names(&columns, "n."),
            target.record("d.image::text", true, &columns),
        );
        let count: i64 = session.get(row, 2)?;
        if let Err(error) = session.query(&sql, &[&relation, &digest, &count]).await {
            tracing::debug!(%error, "replication: what a table without a key owes stays owed");
        }
    }
    Ok(())
}
