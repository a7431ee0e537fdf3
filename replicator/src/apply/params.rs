//! The parameters of a statement: where their values come from, and how its text refers to them.
//!
//! A statement takes one row, or as many as come: then each parameter is an array, and its text refers to the columns of
//! an `unnest` of all of them. The arrays are of texts, which each element is cast from: that is what the server does
//! with a parameter in text form, and an array column's elements stay whole.

use super::row::{NUMERIC, TIMESTAMPTZ};
use super::sql::TargetTable;
use crate::relation::Relation;
use crate::version::PgTimestamp;

/// OID of text[] (src/include/catalog/pg_type.dat).
const TEXT_ARRAY: u32 = 1009;
/// OID of timestamptz[].
const TIMESTAMPTZ_ARRAY: u32 = 1185;

/// Where a parameter's value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Column of the new row.
    New(usize),
    /// Column of the old row or key, or of the new row where the old one is not in the stream.
    Key(usize),
    /// When the source committed the change, of several ones the first.
    Timestamp,
    /// The same of the last.
    Last,
    /// What the change gives a counter: the new row's value, or 0.
    Gain(usize),
    /// What it takes from a counter: the old row's value, or 0.
    Base(usize),
}

/// When a row was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamps {
    /// First.
    pub first: PgTimestamp,
    /// Last.
    pub last: PgTimestamp,
}

impl From<PgTimestamp> for Stamps {
    /// Once only.
    fn from(at: PgTimestamp) -> Self {
        Self {
            first: at,
            last: at,
        }
    }
}

/// A statement to prepare, and where its parameters come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    /// Its text.
    pub sql: String,
    /// Its parameters, in order.
    pub(super) params: Vec<Source>,
    /// The OIDs of their types.
    pub(super) types: Vec<u32>,
}

impl Statement {
    /// The same for the row under the new row's key.
    pub(super) fn by_new_key(mut self) -> Self {
        for param in &mut self.params {
            if let Source::Key(index) = *param {
                *param = Source::New(index);
            }
        }
        self
    }
}

/// How many rows a statement takes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    /// One.
    One,
    /// As many as come.
    Many,
}

/// The parameters of a statement that is being written.
#[derive(Debug)]
pub(super) struct Params<'a> {
    relation: &'a Relation,
    table: &'a TargetTable,
    rows: Rows,
    sources: Vec<Source>,
}

impl<'a> Params<'a> {
    /// None yet.
    pub(super) fn new(relation: &'a Relation, table: &'a TargetTable, rows: Rows) -> Self {
        Self {
            relation,
            table,
            rows,
            sources: Vec::new(),
        }
    }

    /// Of a statement for one row.
    pub(super) fn one(relation: &'a Relation, table: &'a TargetTable) -> Self {
        Self::new(relation, table, Rows::One)
    }

    /// Adds one; answers the expression that stands for it.
    pub(super) fn add(&mut self, source: Source) -> String {
        self.sources.push(source);
        let number = self.sources.len();
        match (self.rows, source) {
            (Rows::One, _) => format!("${number}"),
            (Rows::Many, Source::Timestamp | Source::Last) => format!("u.p{number}"),
            (Rows::Many, Source::Gain(_) | Source::Base(_)) => format!("u.p{number}::numeric"),
            (Rows::Many, Source::New(index) | Source::Key(index)) => {
                let column = self.column(index);
                let kind = column.map_or("text", |column| &column.type_name);
                format!("u.p{number}::{kind}")
            }
        }
    }

    fn column(&self, index: usize) -> Option<&TargetColumn> {
        let name = self.relation.columns.get(index)?;
        self.table.columns.get(name)
    }

    /// What stands behind `keyword` where the rows come from, if they are many.
    pub(super) fn rows(&self, keyword: &str) -> String {
        if self.rows == Rows::One {
            return String::new();
        }
        let arrays = self.sources.iter().zip(1..).map(|(source, number)| {
            let kind = match source {
                Source::Timestamp | Source::Last => "timestamptz",
                _ => "text",
            };
            format!("${number}::{kind}[]")
        });
        let names = (1..=self.sources.len()).map(|number| format!("p{number}"));
        format!(
            " {keyword} unnest({}) AS u({})",
            arrays.collect::<Vec<_>>().join(", "),
            names.collect::<Vec<_>>().join(", ")
        )
    }

    /// A query that fails (division by zero) unless `w` has as many rows as were given.
    pub(super) fn all_of_w(&self) -> &'static str {
        match self.rows {
            Rows::One => "SELECT 1 / count(*) FROM w",
            Rows::Many => "SELECT 1 / (count(*) = cardinality($1))::int FROM w",
        }
    }

    /// The statement with these parameters.
    pub(super) fn statement(self, sql: String) -> Statement {
        let one = |source: &Source| match *source {
            Source::Timestamp | Source::Last => TIMESTAMPTZ,
            Source::Gain(_) | Source::Base(_) => NUMERIC,
            Source::New(index) | Source::Key(index) => {
                self.column(index).map_or(0, |column| column.type_oid)
            }
        };
        let many = |source: &Source| match source {
            Source::Timestamp | Source::Last => TIMESTAMPTZ_ARRAY,
            _ => TEXT_ARRAY,
        };
        let types = match self.rows {
            Rows::One => self.sources.iter().map(one).collect(),
            Rows::Many => self.sources.iter().map(many).collect(),
        };
        Statement {
            sql,
            types,
            params: self.sources,
        }
    }
}

/// A column of the target's table that can be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TargetColumn {
    /// The OID of its type.
    pub type_oid: u32,
    /// The type's name, quoted.
    pub type_name: String,
    /// Whether a cast from text is the type's input function, and nothing else.
    pub reads_text: bool,
}
