//! What tables a database has, in detail: what a check of the rules and of the risk of conflicts depends on.
//!
//! Pure data; who can ask a server fills it. What statements depend on is in [`crate::catalog`].

use crate::catalog::ColumnType;

/// A table, or something that a rule could take for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Whether it is a view or a materialized view: its rows are other tables'.
    pub is_view: bool,
    /// Whether it is a partition of another table.
    pub is_partition: bool,
    /// Its columns.
    pub columns: Vec<Column>,
    /// Its primary key and its unique constraints and indexes, but for those over expressions.
    pub unique_keys: Vec<UniqueKey>,
    /// What its rows refer to.
    pub foreign_keys: Vec<ForeignKey>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type as PostgreSQL writes it.
    pub type_name: String,
    /// What matters of its type.
    pub column_type: ColumnType,
    /// The sequence that its values come from: serial, identity, `DEFAULT nextval(..)`.
    pub sequence: Option<Sequence>,
    /// Whether the replicator adds up what all nodes add to it.
    pub is_counter: bool,
}

/// A sequence. Every node has its own of this name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Its name with its schema.
    pub name: String,
    /// What it counts on by.
    pub increment: i64,
}

/// Columns whose values no two rows share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueKey {
    /// The name of its index.
    pub name: String,
    /// Whether it is the primary key.
    pub is_primary: bool,
    /// Its columns.
    pub columns: Vec<String>,
}

/// A reference to rows of another table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKey {
    /// The constraint's name.
    pub name: String,
    /// The columns that refer.
    pub columns: Vec<String>,
    /// Schema and name of the table that they refer to.
    pub table: (String, String),
    /// The columns there, in the same order.
    pub referenced: Vec<String>,
}

impl Table {
    /// `schema.name`
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// The column of this name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Whether a rules file means this table by a name, `table` or `schema.table`.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        match name.split_once('.') {
            Some((schema, table)) => self.schema == schema && self.name == table,
            None => self.name == name,
        }
    }
}
