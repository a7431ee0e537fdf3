//! DDL: how a node tells its stream of it, which statement is meant, and where it stands among the changes.
//!
//! A node's event triggers (`capture.sql`) write a message into the WAL for each command, inside of its transaction. The
//! message has the client's whole text and the number of the command in it, so that a command is told once however many
//! stand in one text.

mod install;
mod policy;
mod statement;

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use thiserror::Error;

pub(crate) use install::{install, is_installed};
pub use policy::{DdlClass, DdlPolicy, DdlRule};

use crate::tables::quote;
use crate::transaction::Change;

/// Prefix of the messages.
pub(crate) const PREFIX: &str = "tandem.ddl";

/// Why a command cannot be carried out.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub(crate) enum DdlError {
    /// The message is not what `capture.sql` writes.
    #[error("a message about DDL cannot be read: {0}")]
    Message(String),
    /// The text of a command that was to be told before it was not.
    #[error("the text of a {0} was not told")]
    NoText(String),
    /// PostgreSQL's grammar, as this program has it, does not take the text.
    #[error("the text of a {tag} cannot be split: {problem}")]
    Unparsed {
        /// What the command does, as PostgreSQL says it.
        tag: String,
        /// What the grammar says.
        problem: String,
    },
    /// The text has no such command.
    #[error(
        "which statement of its text is the {tag} cannot be told; give it again as a statement of its own"
    )]
    NotFound {
        /// What the command does, as PostgreSQL says it.
        tag: String,
    },
}

/// A message about a command, where it stands in its transaction.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    /// So many changes of the transaction stand before it.
    pub before: usize,
    /// What the event trigger wrote.
    pub message: Bytes,
}

impl Statement {
    /// Bytes it holds in memory.
    pub(crate) fn size(&self) -> usize {
        self.message.len() + size_of::<Self>()
    }
}

/// What a command is about.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Object {
    schema: Option<String>,
    table: Option<String>,
}

/// The message, as `capture.sql` writes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Told {
    /// What the command does, as PostgreSQL says it.
    tag: String,
    /// Who gave it.
    role: String,
    /// So many commands of its text were carried out before it.
    number: usize,
    /// The text; none: that of the message before.
    query: Option<String>,
    /// What stands for the text, where there is something better.
    definition: Option<String>,
    objects: Vec<Object>,
    settings: BTreeMap<String, String>,
}

/// A command that can be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    /// What it does, as PostgreSQL says it.
    pub tag: String,
    /// One statement.
    pub sql: String,
    /// Gives a session the role and the settings that the command was given under, inside of a transaction.
    pub under: String,
    /// Schemas and tables, quoted, that it is about.
    pub tables: Vec<String>,
}

/// What a transaction consists of, in the order in which it has to be carried out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<T> {
    /// So many of its changes.
    Changes(std::ops::Range<usize>),
    /// A command between them.
    Command(T),
}

/// Reads the commands of a transaction and puts them among its changes.
///
/// # Errors
/// When one of them cannot be told.
pub(crate) fn pieces(
    changes: &[Change],
    statements: &[Statement],
) -> Result<Vec<Piece<Command>>, DdlError> {
    let mut placed = Vec::new();
    let mut text: Option<String> = None;
    for statement in statements {
        let told: Told = serde_json::from_slice(&statement.message)
            .map_err(|error| DdlError::Message(error.to_string()))?;
        if told.query.is_some() {
            text.clone_from(&told.query);
        }
        let at = told.place(statement.before, changes);
        placed.push((at, told.command(text.as_deref())?));
    }
    // Stable: commands at one place stay in order.
    placed.sort_by_key(|(at, _)| *at);
    Ok(interleave(changes.len(), placed))
}

/// The tables that the commands of a transaction are about, as far as that can be told, quoted.
pub(crate) fn tables(statements: &[Statement]) -> Vec<String> {
    let told = statements
        .iter()
        .filter_map(|statement| serde_json::from_slice::<Told>(&statement.message).ok());
    told.flat_map(|told| told.tables()).collect()
}

/// What an operator is shown of a command: what it does, and its text where the message has it.
pub(crate) fn shown(statement: &Statement) -> String {
    match serde_json::from_slice::<Told>(&statement.message) {
        Ok(told) => told
            .command(told.query.as_deref())
            .map_or(told.tag, |command| command.sql),
        Err(error) => error.to_string(),
    }
}

fn interleave<T>(changes: usize, placed: Vec<(usize, T)>) -> Vec<Piece<T>> {
    let mut pieces = Vec::new();
    let mut done = 0;
    for (at, command) in placed {
        let at = at.min(changes);
        if at > done {
            pieces.push(Piece::Changes(done..at));
            done = at;
        }
        pieces.push(Piece::Command(command));
    }
    if changes > done {
        pieces.push(Piece::Changes(done..changes));
    }
    pieces
}

impl Told {
    /// The event trigger of a table that is made together with its rows comes after them.
    fn place(&self, before: usize, changes: &[Change]) -> usize {
        if self.definition.is_none() {
            return before;
        }
        let is_its = |change: &Change| {
            self.objects.iter().any(|object| {
                object.schema.as_deref() == Some(&change.relation.schema)
                    && object.table.as_deref() == Some(&change.relation.name)
            })
        };
        let first = changes.iter().take(before).position(is_its);
        first.unwrap_or(before)
    }

    fn tables(&self) -> Vec<String> {
        let tables = self.objects.iter();
        tables
            .filter_map(|object| {
                let (schema, table) = (object.schema.as_ref()?, object.table.as_ref()?);
                Some(format!("{}.{}", quote(schema), quote(table)))
            })
            .collect()
    }

    fn command(&self, text: Option<&str>) -> Result<Command, DdlError> {
        let sql = match &self.definition {
            Some(definition) => definition.clone(),
            None => {
                let text = text.ok_or_else(|| DdlError::NoText(self.tag.clone()))?;
                let conforming = self.settings.get("standard_conforming_strings");
                let conforming = conforming.is_none_or(|setting| setting != "off");
                statement::choose(text, &self.tag, self.number, conforming)?
            }
        };
        let settings = self.settings.iter().map(|(name, value)| {
            format!(
                "SELECT set_config({}, {}, true)",
                literal(name),
                literal(value)
            )
        });
        let mut under: Vec<_> = settings.collect();
        under.push(format!("SET LOCAL ROLE {}", quote(&self.role)));
        Ok(Command {
            tag: self.tag.clone(),
            sql,
            under: under.join("; "),
            tables: self.tables(),
        })
    }
}

/// A string constant of SQL. The session that reads it has `standard_conforming_strings` on.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
