//! What an operator does to single rows and transactions: reads the conflict log, has a losing write written again,
//! and shows, retries, skips and edits what is in quarantine.
//!
//! All of it runs on connections of its own, bounded in time, and holds beside the links: what both want to take out
//! of a quarantine is settled by the row in `tandem.quarantine`, never by what the daemon has in memory.

mod conflicts;
mod edit;
mod judged;
mod quarantine;
pub(crate) mod reapply;
mod retry;
mod skip;
pub(crate) mod target;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use tokio::task::JoinSet;
use tokio_postgres::types::{FromSql, ToSql};

pub use conflicts::{ConflictCount, ConflictFilter, ConflictLine, Conflicts, Summary};
pub use edit::{Assignment, EditRefusal, Edited, NotAnAssignment};
pub use judged::{Judged, JudgedRow};
pub use quarantine::{QuarantineLine, Quarantined, QuarantinedChange, QuarantinedTransaction};
pub use reapply::{Reapplied, ReapplyRefusal};
pub use retry::{Attempt, Outcome, Retried};
pub use skip::Skipped;

use crate::Node;
use crate::control::{Control, ControlError};
use crate::journal::codec::{CodecError, decode_transaction};
use crate::node::Shared;
use crate::transaction::Transaction;

/// Pinned for the sessions, so that the server gives up before [`QUERY_TIMEOUT`](crate::control::QUERY_TIMEOUT) does,
/// and nothing goes on behind our back.
const SETTINGS: &str = "SET lock_timeout = '5s'; SET statement_timeout = '9s'; SET row_security = off; \
    SET idle_in_transaction_session_timeout = '30s'; SET default_transaction_deferrable = off";

/// A line of a node's own table: `NODE/ID`, because each node numbers its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ItemId {
    /// The node's name.
    pub node: String,
    /// The number on that node.
    pub number: i64,
}

/// A text is no `NODE/ID`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("write NODE/ID, such as paris/7: the node's name, and the number that the node gave")]
pub struct NotAnItemId;

impl FromStr for ItemId {
    type Err = NotAnItemId;

    fn from_str(text: &str) -> Result<Self, NotAnItemId> {
        let (node, number) = text.rsplit_once('/').ok_or(NotAnItemId)?;
        let number = number.parse().map_err(|_| NotAnItemId)?;
        if node.is_empty() || number < 1 {
            return Err(NotAnItemId);
        }
        Ok(Self {
            node: node.to_owned(),
            number,
        })
    }
}

impl fmt::Display for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.number)
    }
}

impl Serialize for ItemId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ItemId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Why something was not done. Nothing of it was.
#[derive(Debug, Error)]
pub enum OperatorError {
    /// No such node.
    #[error("no node is called {name}; there are {}", .known.join(", "))]
    NoNode {
        /// As asked for.
        name: String,
        /// The nodes' names.
        known: Vec<String>,
    },
    /// The node cannot be asked, or refuses.
    #[error("{node}: {source}")]
    Node {
        /// Its name.
        node: String,
        /// What it or the connection said.
        #[source]
        source: Box<ControlError>,
    },
    /// A transaction that is not in quarantine.
    #[error("{0} is not in quarantine; `tandem quarantine list` shows what is")]
    NotInQuarantine(ItemId),
    /// A line that the conflict log does not have.
    #[error("{0} is no line of the conflict log; `tandem conflicts` shows them")]
    NoConflict(ItemId),
    /// A transaction in quarantine that cannot be read.
    #[error("{id} cannot be read: {problem}")]
    Unreadable {
        /// Which.
        id: ItemId,
        /// What is wrong with it.
        problem: String,
    },
    /// A name that stands for several tables.
    #[error("{node} has several tables whose names read as {table}")]
    Ambiguous {
        /// The node.
        node: String,
        /// Schema and table.
        table: String,
    },
    /// A losing write that is not written again.
    #[error("{id} is not reapplied: {why}")]
    NotReapplied {
        /// Which line.
        id: ItemId,
        /// Why.
        #[source]
        why: ReapplyRefusal,
    },
    /// A transaction that is not edited.
    #[error("{id} is not edited: {why}")]
    NotEdited {
        /// Which.
        id: ItemId,
        /// Why.
        #[source]
        why: EditRefusal,
    },
}

/// What an [`OperatorError`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// What was named does not exist.
    NotFound,
    /// As things are, it cannot be done.
    Refused,
    /// A node does not answer.
    Unavailable,
}

impl OperatorError {
    /// The SQLSTATE with which a node refused.
    pub(crate) fn server_code(&self) -> Option<&str> {
        match self {
            Self::Node { source, .. } => source.code(),
            _ => None,
        }
    }

    /// What it is about.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoNode { .. } | Self::NotInQuarantine(_) | Self::NoConflict(_) => {
                ErrorKind::NotFound
            }
            Self::Node { .. } if self.server_code().is_some() => ErrorKind::Refused,
            Self::Node { .. } => ErrorKind::Unavailable,
            Self::Unreadable { .. }
            | Self::Ambiguous { .. }
            | Self::NotReapplied { .. }
            | Self::NotEdited { .. } => ErrorKind::Refused,
        }
    }
}

/// See the module.
pub struct Operator {
    shared: Arc<Shared>,
}

impl Operator {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// A session on the node of that name.
    async fn session(&self, node: &str) -> Result<Session, OperatorError> {
        Session::open(&self.shared, self.index(node)?).await
    }

    fn index(&self, name: &str) -> Result<usize, OperatorError> {
        let nodes = &self.shared.config.nodes;
        let index = nodes.iter().position(|node| node.name == name);
        index.ok_or_else(|| OperatorError::NoNode {
            name: name.to_owned(),
            known: nodes.iter().map(|node| node.name.clone()).collect(),
        })
    }

    /// Asks the node of that name, or all at once. Answers what they say in the configuration's order, and what went
    /// wrong with which of them.
    async fn ask<T, F>(
        &self,
        node: Option<&str>,
        question: impl FnOnce(Session) -> F + Clone + Send + 'static,
    ) -> Result<(Vec<T>, Vec<String>), OperatorError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, OperatorError>> + Send,
    {
        let wanted = match node {
            Some(node) => vec![self.index(node)?],
            None => (0..self.shared.config.nodes.len()).collect(),
        };
        let mut asked = JoinSet::new();
        for index in wanted {
            let (shared, question) = (Arc::clone(&self.shared), question.clone());
            asked.spawn(async move {
                let answer = async { question(Session::open(&shared, index).await?).await };
                (index, answer.await)
            });
        }
        let mut answers = asked.join_all().await;
        answers.sort_by_key(|(index, _)| *index);
        let (mut found, mut problems) = (Vec::new(), Vec::new());
        for (_, answer) in answers {
            match answer {
                Ok(answer) => found.push(answer),
                Err(error) => problems.push(error.to_string()),
            }
        }
        Ok((found, problems))
    }
}

/// A connection to one node. What was begun on it and not committed is rolled back when it is dropped.
pub(crate) struct Session {
    shared: Arc<Shared>,
    index: usize,
    pub(crate) node: Node,
    control: Control,
}

impl Session {
    /// Opens one.
    ///
    /// # Errors
    /// When the node cannot be reached.
    pub(crate) async fn open(shared: &Arc<Shared>, index: usize) -> Result<Self, OperatorError> {
        let nodes = &shared.config.nodes;
        let node = nodes.get(index).cloned();
        let node = node.ok_or_else(|| OperatorError::NoNode {
            name: index.to_string(),
            known: Vec::new(),
        })?;
        // A daemon that takes the node over ends sessions of this name, so nothing of an older one goes on.
        let name = format!("tandem:{}:operator", shared.config.cluster);
        let control = match Control::connect(&node.connect, &name).await {
            Ok(control) => control,
            Err(source) => {
                return Err(OperatorError::Node {
                    node: node.name,
                    source: Box::new(source),
                });
            }
        };
        let session = Self {
            shared: Arc::clone(shared),
            index,
            node,
            control,
        };
        session.execute(SETTINGS).await?;
        Ok(session)
    }

    /// Runs a query, bounded in time.
    ///
    /// # Errors
    /// When the node refuses it or does not answer.
    pub(crate) async fn query(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<tokio_postgres::Row>, OperatorError> {
        let rows = self.control.query(sql, params).await;
        rows.map_err(|source| self.failed(source))
    }

    /// Runs statements without parameters, bounded in time.
    ///
    /// # Errors
    /// When the node refuses one or does not answer.
    pub(crate) async fn execute(&self, sql: &str) -> Result<(), OperatorError> {
        let done = self.control.execute(sql).await;
        done.map_err(|source| self.failed(source))
    }

    /// A column of a row.
    ///
    /// # Errors
    /// When it has another type.
    pub(crate) fn get<'r, T: FromSql<'r>>(
        &self,
        row: &'r tokio_postgres::Row,
        column: usize,
    ) -> Result<T, OperatorError> {
        let value = row.try_get(column);
        value.map_err(|error| self.failed(error.into()))
    }

    fn failed(&self, source: ControlError) -> OperatorError {
        OperatorError::Node {
            node: self.node.name.clone(),
            source: Box::new(source),
        }
    }

    fn item(&self, number: i64) -> ItemId {
        ItemId {
            node: self.node.name.clone(),
            number,
        }
    }

    /// The name of the node with an id; the id itself where it is no member any more.
    fn node_name(&self, id: i32) -> String {
        let mut nodes = self.shared.config.nodes.iter();
        let known = nodes.find(|node| i32::from(node.id) == id);
        known.map_or_else(|| id.to_string(), |node| node.name.clone())
    }

    /// Reads a stored transaction.
    fn decode(&self, number: i64, payload: &[u8]) -> Result<Transaction, OperatorError> {
        decode_transaction(payload, &self.shared.interner)
            .map_err(|source| self.unreadable(number, source))
    }

    fn unreadable(&self, number: i64, source: impl Into<CodecError>) -> OperatorError {
        OperatorError::Unreadable {
            id: self.item(number),
            problem: source.into().to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_as_printed_and_says_what_it_should_be() {
        let id: ItemId = "paris-2/17".parse().expect("an id");
        assert_eq!((id.node.as_str(), id.number), ("paris-2", 17));
        assert_eq!(id.to_string(), "paris-2/17");
        for wrong in [
            "", "7", "paris", "paris/", "/7", "paris/x", "paris/0", "paris/-1", "paris/7 ",
        ] {
            let refused = wrong.parse::<ItemId>().expect_err(wrong);
            assert!(refused.to_string().contains("NODE/ID"), "{wrong}");
        }
    }
}
