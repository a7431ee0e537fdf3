//! What a database has: tables, views, functions, as far as a statement's class and keys depend on them.
//!
//! Pure data. Who can ask a server fills it (see [`Catalog::builder`]); afterwards it does not change.

use std::collections::HashMap;

/// What matters of a column's type: how its values are compared, and so what makes two values one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ColumnType {
    /// smallint, integer, bigint.
    Integer,
    /// uuid
    Uuid,
    /// text, varchar.
    Text {
        /// Whether equal means equal bytes: `pg_collation.collisdeterministic` of the column's collation.
        deterministic: bool,
    },
    /// boolean
    Bool,
    /// date
    Date,
    /// bytea
    Bytea,
    /// Any other: its values are no keys.
    Other,
}

impl ColumnType {
    /// The type with this OID (`pg_type.dat`). A text's collation is taken to be deterministic.
    #[must_use]
    pub fn of_oid(oid: u32) -> Self {
        match oid {
            16 => Self::Bool,
            17 => Self::Bytea,
            20 | 21 | 23 => Self::Integer,
            25 | 1043 => Self::Text {
                deterministic: true,
            },
            1082 => Self::Date,
            2950 => Self::Uuid,
            _ => Self::Other,
        }
    }

    /// The same of a column whose collation is this: `pg_collation.collisdeterministic`, where it has one.
    #[must_use]
    pub fn with_collation(self, deterministic: Option<bool>) -> Self {
        match self {
            Self::Text { .. } => Self::Text {
                deterministic: deterministic.unwrap_or(false),
            },
            other => other,
        }
    }
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type.
    pub column_type: ColumnType,
}

/// What a relation is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelationKind {
    /// A table, also one that is a partition.
    Table,
    /// A partitioned table.
    Partitioned,
    /// A view.
    View {
        /// Its query, as `pg_get_viewdef` gives it while `search_path` is empty, so that all names have their schema.
        definition: String,
    },
    /// A materialized view: it is read like a table.
    MaterializedView,
    /// A foreign table.
    Foreign,
}

/// A relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: RelationKind,
    /// Its columns as they are numbered, dropped ones left out.
    pub columns: Vec<Column>,
    /// Schema and name of the table whose partition it is.
    pub partition_of: Option<(String, String)>,
    /// Whether it has rules (besides a view's own) or triggers that are not Tandem's: what a write does is then not all
    /// in the statement.
    pub writes_elsewhere: bool,
}

impl Relation {
    /// The type of a column.
    #[must_use]
    pub fn column_type(&self, name: &str) -> Option<ColumnType> {
        let found = self.columns.iter().find(|column| column.name == name);
        found.map(|column| column.column_type)
    }
}

/// `pg_proc.provolatile`
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Volatility {
    /// `i`
    Immutable,
    /// `s`: PostgreSQL lets such a function change nothing.
    Stable,
    /// `v`
    Volatile,
}

/// What a database has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    /// By name; the few of one name differ in their schema.
    relations: HashMap<String, Vec<Relation>>,
    /// By name: schema, and the most volatile of its overloads.
    functions: HashMap<String, Vec<(String, Volatility)>>,
}

impl Catalog {
    /// A catalog that is yet to be filled.
    ///
    /// ```
    /// use tandem_routing_rules::catalog::{Catalog, Volatility};
    ///
    /// let catalog = Catalog::builder().function("public", "f", Volatility::Stable).function("public", "f", Volatility::Volatile);
    /// assert_eq!(catalog.build().function(&["public"], None, "f"), Some(Volatility::Volatile));
    /// ```
    #[must_use]
    pub fn builder() -> CatalogBuilder {
        CatalogBuilder::default()
    }

    /// The relation that a name without a schema means: of the first schema of the search path that has it. `$user` must
    /// have been replaced.
    #[must_use]
    pub fn resolve(&self, search_path: &[&str], name: &str) -> Option<&Relation> {
        let of_name = self.relations.get(name)?;
        search_path
            .iter()
            .find_map(|schema| of_name.iter().find(|relation| relation.schema == **schema))
    }

    /// Whether there are views.
    #[must_use]
    pub fn has_views(&self) -> bool {
        let mut all = self.relations.values().flatten();
        all.any(|relation| matches!(relation.kind, RelationKind::View { .. }))
    }

    /// The relation of a schema.
    #[must_use]
    pub fn relation(&self, schema: &str, name: &str) -> Option<&Relation> {
        self.resolve(&[schema], name)
    }

    /// How volatile a function of this name can be. Without a schema those of `pg_catalog` and of all schemas of the search
    /// path count, since the arguments decide which of them is called.
    #[must_use]
    pub fn function(
        &self,
        search_path: &[&str],
        schema: Option<&str>,
        name: &str,
    ) -> Option<Volatility> {
        let can_be = |known: &str| match schema {
            Some(schema) => known == schema,
            None => known == "pg_catalog" || search_path.contains(&known),
        };
        let of_name = self.functions.get(name)?.iter();
        of_name
            .filter(|(known, _)| can_be(known))
            .map(|(_, volatility)| *volatility)
            .max()
    }
}

/// Takes what a catalog is to hold.
#[derive(Debug, Default)]
pub struct CatalogBuilder {
    catalog: Catalog,
}

impl CatalogBuilder {
    /// Adds a relation; one of the same schema and name is replaced. PostgreSQL's own, of `pg_catalog` and
    /// `information_schema`, are better left out: they count as tables then, and what their views call writes nothing.
    #[must_use]
    pub fn relation(mut self, relation: Relation) -> Self {
        let of_name = self
            .catalog
            .relations
            .entry(relation.name.clone())
            .or_default();
        of_name.retain(|known| known.schema != relation.schema);
        of_name.push(relation);
        self
    }

    /// Adds an overload of a function. Those of `pg_catalog` need not be added, but for the volatile ones where a database
    /// has functions of its own with their names.
    #[must_use]
    pub fn function(mut self, schema: &str, name: &str, volatility: Volatility) -> Self {
        let of_name = self.catalog.functions.entry(name.to_owned()).or_default();
        match of_name.iter_mut().find(|(known, _)| known == schema) {
            Some((_, known)) => *known = volatility.max(*known),
            None => of_name.push((schema.to_owned(), volatility)),
        }
        self
    }

    /// The catalog.
    #[must_use]
    pub fn build(self) -> Catalog {
        self.catalog
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(schema: &str, name: &str) -> Relation {
        Relation {
            schema: schema.to_owned(),
            name: name.to_owned(),
            kind: RelationKind::Table,
            columns: vec![Column {
                name: "id".to_owned(),
                column_type: ColumnType::Integer,
            }],
            partition_of: None,
            writes_elsewhere: false,
        }
    }

    #[test]
    fn a_name_without_a_schema_is_the_first_of_the_search_path() {
        let catalog = Catalog::builder()
            .relation(table("a", "t"))
            .relation(table("b", "t"))
            .relation(table("b", "u"))
            .build();
        let schema = |path: &[&str], name| {
            let found = catalog.resolve(path, name);
            found.map(|relation| relation.schema.as_str())
        };
        assert_eq!(schema(&["a", "b"], "t"), Some("a"));
        assert_eq!(schema(&["b", "a"], "t"), Some("b"));
        assert_eq!(schema(&["a", "b"], "u"), Some("b"));
        assert_eq!(schema(&["a"], "u"), None);
        assert_eq!(schema(&[], "t"), None);
        assert!(catalog.relation("b", "u").is_some());
    }

    #[test]
    fn a_function_is_as_volatile_as_the_worst_that_the_name_can_mean() {
        let catalog = Catalog::builder()
            .function("pg_catalog", "f", Volatility::Immutable)
            .function("a", "f", Volatility::Stable)
            .function("b", "f", Volatility::Volatile)
            .build();
        let of = |path: &[&str], schema| catalog.function(path, schema, "f");
        assert_eq!(of(&[], None), Some(Volatility::Immutable));
        assert_eq!(of(&["a"], None), Some(Volatility::Stable));
        assert_eq!(of(&["a", "b"], None), Some(Volatility::Volatile));
        assert_eq!(of(&["b"], Some("a")), Some(Volatility::Stable));
        assert_eq!(of(&["a"], Some("c")), None);
        assert_eq!(catalog.function(&["a"], None, "g"), None);
    }
}
