//! Which tables are compared, and what each node's catalog says of them.

use std::collections::BTreeMap;

use crate::apply::quote;
use crate::control::{Control, ControlError};
use crate::tables::{FIXED_COLUMNS, KEY_COLUMNS, KEY_EQUALS, TableFilter};

/// A column as one node has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    /// Its name, not quoted.
    pub(super) name: String,
    /// Its type, as SQL.
    pub(super) data_type: String,
}

/// A column of a primary key as one node has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyColumn {
    /// Its name, not quoted.
    pub(super) name: String,
    /// Its type, as SQL.
    pub(super) data_type: String,
    /// The operator of its equality.
    pub(super) equals: String,
    /// Whether it is ordered in the same way on every node.
    pub(super) is_ranged: bool,
}

/// A table as one node has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeTable {
    /// Schema and table.
    pub(super) schema: String,
    /// See `schema`.
    pub(super) name: String,
    /// All columns but generated ones, by name.
    pub(super) columns: Vec<Column>,
    /// Columns of the primary key in its order; empty where there is none.
    pub(super) key: Vec<KeyColumn>,
    /// Identity columns that an UPDATE may not write.
    pub(super) fixed: Vec<String>,
    /// How many rows the planner expects.
    pub(super) rows: u64,
}

impl NodeTable {
    /// Schema and table, quoted.
    pub(super) fn qualified(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }

    /// The same as a string, which is what Tandem's own tables name a table by.
    pub(super) fn literal(&self) -> String {
        format!("'{}'", self.qualified().replace('\'', "''"))
    }

    fn title(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

/// A table that all nodes have with the same columns and the same key.
#[derive(Debug, Clone)]
pub(super) struct Table {
    /// Schema and table, for people.
    pub(super) title: String,
    /// The table by node.
    pub(super) nodes: Vec<NodeTable>,
    /// So many leading columns of the key make ranges; 0 where the whole table is one.
    pub(super) ranged: usize,
    /// How many rows are expected.
    pub(super) rows: u64,
}

impl Table {
    /// Whether its rows can be told apart.
    pub(super) fn has_key(&self) -> bool {
        self.nodes.iter().all(|node| !node.key.is_empty())
    }
}

/// What [`plan`] gives: tables to compare, and those that cannot be, with the reason.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// By name.
    pub(super) tables: Vec<Table>,
    /// Title and problem.
    pub(super) problems: Vec<(String, String)>,
}

/// Types whose order depends on neither collation, nor catalog, nor extension, by OID (src/include/catalog/pg_type.dat):
/// bool, bytea, "char", int8, int2, int4, oid, float4, float8, macaddr, inet, date, time, timestamp, timestamptz,
/// interval, timetz, numeric, uuid. Texts are ordered alike where the index has the collation "C" or "POSIX".
const RANGED: &str = "ARRAY(SELECT t.typ IN (16, 17, 18, 20, 21, 23, 26, 700, 701, 829, 869, 1082, 1083, 1114, 1184, \
    1186, 1266, 1700, 2950) OR (t.typ IN (25, 1042, 1043) AND k.coll IN (950, 951)) FROM pg_index i, \
    unnest(i.indkey::int2[], i.indcollation::oid[]) WITH ORDINALITY k(attnum, coll, place), \
    LATERAL (SELECT a.atttypid AS typ FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attnum = k.attnum) t \
    WHERE i.indrelid = c.oid AND i.indisprimary AND k.place <= i.indnkeyatts ORDER BY k.place)";

/// Reads the tables of one node that `filter` lets through.
///
/// # Errors
/// When the node cannot be asked.
pub(super) async fn read(
    control: &Control,
    filter: &TableFilter,
) -> Result<Vec<NodeTable>, ControlError> {
    let columns = |what: &str| {
        format!(
            "ARRAY(SELECT {what} FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
             AND a.attgenerated = '' ORDER BY a.attname)"
        )
    };
    let sql = format!(
        "SELECT n.nspname::text, c.relname::text, greatest(c.reltuples, 0)::int8, {}, {}, {FIXED_COLUMNS}, \
         {KEY_COLUMNS}, {KEY_EQUALS}, {RANGED} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema')",
        columns("a.attname::text"),
        // Typmod -1 names the type without a length, so that a cast to it cuts nothing off.
        columns("format_type(a.atttypid, -1)"),
    );
    let mut tables = Vec::new();
    for row in control.client().query(&sql, &[]).await? {
        let (schema, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        if !filter.allows(&schema, &name) {
            continue;
        }
        let names: Vec<String> = row.try_get(3)?;
        let types: Vec<String> = row.try_get(4)?;
        let columns: Vec<Column> = names
            .into_iter()
            .zip(types)
            .map(|(name, data_type)| Column { name, data_type })
            .collect();
        let key: Vec<String> = row.try_get(6)?;
        let equals: Vec<String> = row.try_get(7)?;
        let ranged: Vec<bool> = row.try_get(8)?;
        let key: Option<Vec<KeyColumn>> = key
            .into_iter()
            .zip(equals)
            .zip(ranged)
            .map(|((name, equals), is_ranged)| {
                let column = columns.iter().find(|column| column.name == name)?;
                Some(KeyColumn {
                    data_type: column.data_type.clone(),
                    name,
                    equals,
                    is_ranged,
                })
            })
            .collect();
        tables.push(NodeTable {
            schema,
            name,
            columns,
            // A key over a generated column is in no stream: such rows cannot be told apart.
            key: key.unwrap_or_default(),
            fixed: row.try_get(5)?,
            rows: u64::try_from(row.try_get::<_, i64>(2)?).unwrap_or(0),
        });
    }
    Ok(tables)
}

/// Puts the nodes' tables together. `names` are the nodes' names, in the order of `nodes`.
pub(super) fn plan(names: &[&str], nodes: Vec<Vec<NodeTable>>) -> Plan {
    let mut found: BTreeMap<String, Vec<Option<NodeTable>>> = BTreeMap::new();
    for (index, tables) in nodes.into_iter().enumerate() {
        for table in tables {
            let sides = found
                .entry(table.title())
                .or_insert_with(|| vec![None; names.len()]);
            if let Some(side) = sides.get_mut(index) {
                *side = Some(table);
            }
        }
    }
    let mut plan = Plan::default();
    for (title, sides) in found {
        match join(&title, names, sides) {
            Ok(table) => plan.tables.push(table),
            Err(problem) => plan.problems.push((title, problem)),
        }
    }
    plan
}

fn join(title: &str, names: &[&str], sides: Vec<Option<NodeTable>>) -> Result<Table, String> {
    let without: Vec<&str> = names
        .iter()
        .zip(&sides)
        .filter(|(_, side)| side.is_none())
        .map(|(name, _)| *name)
        .collect();
    if !without.is_empty() {
        return Err(format!("does not exist on {}", without.join(", ")));
    }
    let nodes: Vec<NodeTable> = sides.into_iter().flatten().collect();
    let first = nodes.first().ok_or("no node")?;
    for (name, node) in names.iter().zip(&nodes).skip(1) {
        let columns = differing(
            first.columns.iter().map(|column| &column.name),
            node.columns.iter().map(|column| &column.name),
        );
        if !columns.is_empty() {
            return Err(format!(
                "{} and {name} do not have the same columns: {}",
                names.first().unwrap_or(&"?"),
                columns.join(", ")
            ));
        }
        let key = |node: &NodeTable| -> Vec<String> {
            node.key.iter().map(|column| column.name.clone()).collect()
        };
        if key(first) != key(node) {
            return Err(format!(
                "{} and {name} do not have the same primary key: ({}) and ({})",
                names.first().unwrap_or(&"?"),
                key(first).join(", "),
                key(node).join(", ")
            ));
        }
    }
    let ranged = |node: &NodeTable| {
        node.key
            .iter()
            .take_while(|column| column.is_ranged)
            .count()
    };
    Ok(Table {
        title: title.to_owned(),
        ranged: nodes.iter().map(ranged).min().unwrap_or(0),
        rows: nodes.iter().map(|node| node.rows).max().unwrap_or(0),
        nodes,
    })
}

/// What only one of the two has.
fn differing<'a>(
    one: impl Iterator<Item = &'a String>,
    other: impl Iterator<Item = &'a String>,
) -> Vec<&'a str> {
    let one: std::collections::BTreeSet<&str> = one.map(String::as_str).collect();
    let other = other.map(String::as_str).collect();
    one.symmetric_difference(&other).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, columns: &[&str], key: &[(&str, bool)]) -> NodeTable {
        NodeTable {
            schema: "public".to_owned(),
            name: name.to_owned(),
            columns: columns
                .iter()
                .map(|name| Column {
                    name: (*name).to_owned(),
                    data_type: "integer".to_owned(),
                })
                .collect(),
            key: key
                .iter()
                .map(|(name, is_ranged)| KeyColumn {
                    name: (*name).to_owned(),
                    data_type: "integer".to_owned(),
                    equals: "OPERATOR(pg_catalog.=)".to_owned(),
                    is_ranged: *is_ranged,
                })
                .collect(),
            fixed: Vec::new(),
            rows: 7,
        }
    }

    #[test]
    fn a_table_that_a_node_lacks_or_has_with_other_columns_is_named_and_not_compared() {
        let key = [("id", true)];
        let nodes = vec![
            vec![
                table("a", &["id"], &key),
                table("b", &["id", "x"], &key),
                table("c", &["id"], &key),
            ],
            vec![table("b", &["id", "y"], &key), table("c", &["id"], &[])],
        ];
        let plan = plan(&["n1", "n2"], nodes);
        assert!(plan.tables.is_empty());
        let problems: Vec<String> = plan
            .problems
            .iter()
            .map(|(title, problem)| format!("{title} {problem}"))
            .collect();
        assert_eq!(
            problems,
            [
                "public.a does not exist on n2",
                "public.b n1 and n2 do not have the same columns: x, y",
                "public.c n1 and n2 do not have the same primary key: (id) and ()",
            ]
        );
    }

    #[test]
    fn ranges_are_made_of_the_leading_columns_that_every_node_orders_alike() {
        let columns = ["a", "b", "c"];
        let one = table("t", &columns, &[("a", true), ("b", true), ("c", true)]);
        let other = table("t", &columns, &[("a", true), ("b", false), ("c", true)]);
        let plan = plan(&["n1", "n2"], vec![vec![one], vec![other]]);
        assert_eq!(plan.tables[0].ranged, 1);
        assert!(plan.tables[0].has_key());
    }
}
