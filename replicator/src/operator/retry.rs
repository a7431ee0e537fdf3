//! Asks the links to try what is in quarantine now, and tells what came of it.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Serialize, Serializer};
use tokio::time::Instant;

use super::{ItemId, Operator, OperatorError, Session};
use crate::status;

/// How long an attempt is waited for.
const WAIT: Duration = Duration::from_secs(15);
/// Pause between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// A link that was not listening is asked again after so many looks.
const LOOKS_PER_REQUEST: u32 = 10;
/// Transactions of one node that are told of at most.
const TRANSACTIONS_MAX: i64 = 1000;

/// What came of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It has left the quarantine.
    Applied,
    /// The node refuses it still.
    Refused,
    /// It has to wait for another, because that changes the same keys.
    Behind(ItemId),
    /// Its link did not come to try it in time.
    NotTried,
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Applied => "applied",
            Self::Refused => "refused",
            Self::Behind(_) => "behind",
            Self::NotTried => "not_tried",
        })
    }
}

/// One transaction, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// Which.
    pub id: ItemId,
    /// What came of it.
    pub outcome: Outcome,
    /// Why it is still there; `None` where it is not.
    pub reason: Option<String>,
}

/// What came of all that was in quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Retried {
    /// In order.
    pub attempts: Vec<Attempt>,
    /// Nodes that could not be asked, and why.
    pub problems: Vec<String>,
}

/// A transaction as one look finds it.
#[derive(Debug, Clone)]
struct Seen {
    source: i32,
    attempts: i32,
    reason: String,
}

impl Operator {
    /// Has one transaction tried now.
    ///
    /// # Errors
    /// When it is not in quarantine, or the node cannot be asked.
    pub async fn retry(&self, id: &ItemId) -> Result<Attempt, OperatorError> {
        let session = self.session(&id.node).await?;
        let attempt = attempts(&session, Some(id.number)).await?.pop();
        attempt.ok_or_else(|| OperatorError::NotInQuarantine(id.clone()))
    }

    /// Has all that a node, or every node, has in quarantine tried now.
    ///
    /// # Errors
    /// When there is no such node. One that cannot be asked is told with the answer.
    pub async fn retry_all(&self, node: Option<&str>) -> Result<Retried, OperatorError> {
        let question = async |session: Session| attempts(&session, None).await;
        let (found, problems) = self
            .ask(node, move |session| Box::pin(question(session)))
            .await?;
        Ok(Retried {
            attempts: found.into_iter().flatten().collect(),
            problems,
        })
    }
}

/// Asks for attempts, and waits until there was one of each transaction that nothing stands before. `only`: of this
/// number, and nothing where there is none.
async fn attempts(session: &Session, only: Option<i64>) -> Result<Vec<Attempt>, OperatorError> {
    let Some(held) = session.shared.quarantines.get(session.index) else {
        return Ok(Vec::new());
    };
    let sql =
        "SELECT id FROM tandem.quarantine WHERE $1::int8 IS NULL OR id = $1 ORDER BY id LIMIT $2";
    let rows = session.query(sql, &[&only, &TRANSACTIONS_MAX]).await?;
    let numbers: Result<Vec<i64>, _> = rows.iter().map(|row| session.get(row, 0)).collect();
    let numbers = numbers?;
    let before = look(session, &numbers).await?;
    let deadline = Instant::now() + WAIT;
    let mut looks = 0;
    loop {
        if looks % LOOKS_PER_REQUEST == 0 {
            held.retry.notify_waiters();
        }
        looks += 1;
        tokio::time::sleep(LOOK_INTERVAL).await;
        let behind: HashMap<i64, i64> = numbers
            .iter()
            .filter_map(|&number| Some((number, held.before(number)?)))
            .collect();
        let wanted: Vec<i64> = numbers.iter().chain(behind.values()).copied().collect();
        let now = look(session, &wanted).await?;
        let judged = |number: &i64| {
            // The daemon hears a moment later that one has left.
            let behind = behind.get(number).filter(|&first| now.contains_key(first));
            let behind = behind.map(|&first| session.item(first));
            Some((*number, judge(before.get(number)?, now.get(number), behind)))
        };
        let outcomes: Vec<_> = numbers.iter().filter_map(judged).collect();
        let is_late = Instant::now() > deadline;
        if is_late
            || outcomes
                .iter()
                .all(|(_, outcome)| *outcome != Outcome::NotTried)
        {
            let attempt = |(number, outcome): (i64, Outcome)| Attempt {
                id: session.item(number),
                reason: now.get(&number).map(|seen| match &outcome {
                    Outcome::NotTried => waiting(session, seen),
                    Outcome::Behind(first) => {
                        format!("it waits for {first}, which changes the same keys")
                    }
                    Outcome::Refused | Outcome::Applied => seen.reason.clone(),
                }),
                outcome,
            };
            return Ok(outcomes.into_iter().map(attempt).collect());
        }
    }
}

async fn look(session: &Session, numbers: &[i64]) -> Result<HashMap<i64, Seen>, OperatorError> {
    let sql = "SELECT id, source, attempts, reason FROM tandem.quarantine WHERE id = ANY ($1)";
    let mut seen = HashMap::new();
    for row in session.query(sql, &[&numbers]).await? {
        let one = Seen {
            source: session.get(&row, 1)?,
            attempts: session.get(&row, 2)?,
            reason: session.get(&row, 3)?,
        };
        seen.insert(session.get(&row, 0)?, one);
    }
    Ok(seen)
}

/// What has become of a transaction since it was first seen.
fn judge(before: &Seen, now: Option<&Seen>, behind: Option<ItemId>) -> Outcome {
    match (now, behind) {
        (None, _) => Outcome::Applied,
        (Some(now), _) if now.attempts > before.attempts => Outcome::Refused,
        (Some(_), Some(first)) => Outcome::Behind(first),
        (Some(_), None) => Outcome::NotTried,
    }
}

/// Why a link does not come to try.
fn waiting(session: &Session, seen: &Seen) -> String {
    let shared = &session.shared;
    let source = shared
        .node_ids
        .iter()
        .position(|&id| i32::from(id) == seen.source);
    let link = source.and_then(|source| shared.links.get(source, session.index));
    let link = link.map(|link| status::link_status(shared, link).to_string());
    let link = link.unwrap_or_else(|| "its source is no member".to_owned());
    format!(
        "no attempt within {} s ({link}); before that: {}",
        WAIT.as_secs(),
        seen.reason
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_told_by_its_count_and_what_waits_names_what_for() {
        let seen = |attempts| Seen {
            source: 1,
            attempts,
            reason: "no".to_owned(),
        };
        let first = || Some("paris/3".parse::<ItemId>().expect("an id"));
        assert_eq!(judge(&seen(2), None, None), Outcome::Applied);
        assert_eq!(judge(&seen(2), Some(&seen(3)), None), Outcome::Refused);
        assert_eq!(judge(&seen(2), Some(&seen(2)), None), Outcome::NotTried);
        assert_eq!(
            Some(judge(&seen(2), Some(&seen(2)), first())),
            first().map(Outcome::Behind)
        );
    }
}
