//! What a statement does, and which keys it names.
//!
//! A text is analysed once by PostgreSQL's own grammar (feature `grammar`), and gives a [`Plan`]; the plan then tells the
//! [`Evidence`] of every text of the same template without a look at the grammar.
//!
//! In doubt a statement is a write: a node of the tree that is not known here, a function that is not known to leave the
//! database as it is, a text that the grammar refuses. Operators and casts are taken to leave it as it is. A key is only
//! taken from where every row that is written, or locked, surely has it: equality in a WHERE whose conditions all hold, the
//! rows of VALUES. Without a catalog a name may be a view, whose functions are not seen.

#[cfg(feature = "grammar")]
mod analyse;
#[cfg(feature = "grammar")]
mod cache;
#[cfg(feature = "grammar")]
mod compile;
#[cfg(feature = "grammar")]
mod conditions;
#[cfg(feature = "grammar")]
mod expressions;
#[cfg(feature = "grammar")]
mod functions;
#[cfg(feature = "grammar")]
mod json;
mod plan;
#[cfg(feature = "grammar")]
mod queries;
mod source;
#[cfg(feature = "grammar")]
mod utility;
mod value;
#[cfg(feature = "grammar")]
mod views;
#[cfg(feature = "grammar")]
mod writes;

#[cfg(all(test, feature = "grammar"))]
mod tests;

use core::fmt;

#[cfg(feature = "grammar")]
use analyse::Scan;
#[cfg(feature = "grammar")]
pub use analyse::{Statement, analyse};
#[cfg(feature = "grammar")]
pub use cache::{Found, PlanCache};
pub use plan::{Evidence, NoKey, Plan, PlannedKey, PlannedTable, Values};
pub use source::{ColumnValues, Origin, Source};
pub use value::Parameter;

/// What a statement does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// BEGIN, COMMIT, SAVEPOINT and their kind.
    Transaction,
    /// Settings, cursors and prepared statements of the session, LISTEN.
    Session,
    /// Leaves everything as it is.
    Read,
    /// Takes locks: FOR UPDATE and its kind, LOCK TABLE, advisory locks.
    Lock,
    /// Changes rows, or may do so.
    Write,
    /// Changes what is not rows: tables, roles, settings of the server; maintenance.
    Ddl,
    /// What it does cannot be told: it is treated as a write.
    Unknown,
}

impl Class {
    /// The word for people.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Transaction => "transaction control",
            Self::Session => "session state",
            Self::Read => "read",
            Self::Lock => "lock",
            Self::Write => "write",
            Self::Ddl => "DDL",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it has to be done where the key is at home: it writes, may write, or takes locks.
    #[must_use]
    pub fn is_write(self) -> bool {
        self >= Self::Lock
    }
}

/// What is done with a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Its rows are read.
    Read,
    /// Rows of it are locked.
    Lock,
    /// Rows of it are written.
    Write,
}

/// One use of a table in a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableUse {
    /// The schema, where the statement names it.
    pub schema: Option<String>,
    /// The table.
    pub name: String,
    /// What is done with it.
    pub access: Access,
    /// Columns, and the only values that the rows in question have in them. A column may occur more than once: all that is
    /// said of it counts.
    pub columns: Vec<(String, ColumnValues)>,
    /// The same of the first columns of the table, whose names the statement does not say.
    pub first_columns: Vec<ColumnValues>,
}

impl fmt::Display for TableUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{schema}.")?;
        }
        f.write_str(&self.name)
    }
}

/// Why nothing is known of a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnalysisError {
    /// It is longer than anything that is worth a look.
    #[error("the text is longer than {} bytes", crate::template::TEXT_MAX)]
    TooLong,
    /// PostgreSQL's scanner or grammar refuses it, or it is nested too deeply.
    #[error("{0}")]
    Grammar(String),
}
