//! What a statement does, and which keys it names: found by PostgreSQL's own grammar.
//!
//! In doubt a statement is a write: a node of the tree that is not known here, a function that is not known to leave the
//! database as it is, a text that the grammar refuses. A key is only taken from where every row that is written, or locked,
//! surely has it: equality in a WHERE whose conditions all hold, the rows of VALUES.
//!
//! Tables are not looked up: a name may be a view, whose functions are not seen here.

mod conditions;
mod expressions;
mod functions;
mod queries;
mod source;
mod utility;
mod writes;

#[cfg(test)]
mod tests;

use core::fmt;

pub use source::{Source, Values};

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
    pub columns: Vec<(String, Values)>,
}

impl fmt::Display for TableUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{schema}.")?;
        }
        f.write_str(&self.name)
    }
}

/// What is known of one statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// What it does.
    pub class: Class,
    /// What made it that, in a few words: `DELETE`, `function nextval`.
    pub because: String,
    /// The tables that it names, each as often as it does.
    pub tables: Vec<TableUse>,
}

/// Why nothing is known of a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnalysisError {
    /// It is longer than anything that is worth a look.
    #[error("the text is longer than {TEXT_MAX} bytes")]
    TooLong,
    /// PostgreSQL's grammar refuses it, or it is nested too deeply.
    #[error("{0}")]
    Grammar(String),
}

/// Texts beyond this are not looked into.
pub const TEXT_MAX: usize = 64 << 10;

/// Analyses every statement of a text, which is read as with `standard_conforming_strings` on.
///
/// # Errors
/// See [`AnalysisError`]; such a text is to be treated as a write.
///
/// ```
/// use tandem_routing_rules::statement::{Access, Class, analyse};
///
/// let found = analyse("UPDATE bikes SET at = 3 WHERE station_id = 7 AND free")?;
/// assert_eq!(found[0].class, Class::Write);
/// assert_eq!((found[0].tables[0].access, found[0].tables[0].columns[0].0.as_str()), (Access::Write, "station_id"));
/// # Ok::<(), tandem_routing_rules::statement::AnalysisError>(())
/// ```
pub fn analyse(text: &str) -> Result<Vec<Statement>, AnalysisError> {
    if text.len() > TEXT_MAX {
        return Err(AnalysisError::TooLong);
    }
    let parsed = pg_query::parse(text, pg_query::ParserOptions::default())
        .map_err(|error| AnalysisError::Grammar(error.to_string()))?;
    let statements = parsed.protobuf.stmts.iter();
    Ok(statements
        .filter_map(|raw| raw.stmt.as_deref())
        .map(statement)
        .collect())
}

fn statement(node: &pg_query::Node) -> Statement {
    let mut scan = Scan::default();
    scan.statement(node);
    Statement {
        class: scan.class.unwrap_or(Class::Unknown),
        because: scan.because,
        tables: scan.tables,
    }
}

/// What was found so far in one statement.
#[derive(Debug, Default)]
struct Scan {
    class: Option<Class>,
    because: String,
    tables: Vec<TableUse>,
    /// Names of the WITH queries that can be seen here: no tables.
    with: Vec<String>,
}

impl Scan {
    /// The statement is at least this.
    fn rise(&mut self, class: Class, because: impl Into<String>) {
        if self.class < Some(class) {
            self.class = Some(class);
            self.because = because.into();
        }
    }

    /// Notes a use of a table, unless the name is a WITH query's. Answers its place among the uses.
    fn table(&mut self, range: &pg_query::protobuf::RangeVar, access: Access) -> Option<usize> {
        let named = !range.schemaname.is_empty();
        if !named && access == Access::Read && self.with.contains(&range.relname) {
            return None;
        }
        self.tables.push(TableUse {
            schema: named.then(|| range.schemaname.clone()),
            name: range.relname.clone(),
            access,
            columns: Vec::new(),
        });
        Some(self.tables.len() - 1)
    }
}
