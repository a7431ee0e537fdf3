//! A table as a node has it, and SQL over images of its rows: `r` stands for the row, `n` for the image.

use super::{OperatorError, Session};
use crate::tables::quote;

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub name: String,
    /// The type, with its modifier, as SQL.
    pub type_name: String,
    pub is_generated: bool,
    /// An identity that an UPDATE may not write (GENERATED ALWAYS).
    pub is_fixed: bool,
    /// json, jsonb, or a domain over one of them.
    pub is_json: bool,
    /// Its place in the primary key, from 1, and the operator that the key's index compares it with.
    pub key: Option<(i32, String)>,
    /// Whether its value is a sum of contributions.
    pub is_counter: bool,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub schema: String,
    pub name: String,
    pub columns: Vec<Column>,
}

const SQL: &str = "SELECT n.nspname::text, c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), \
    a.attgenerated <> '', a.attidentity = 'a', \
    (WITH RECURSIVE b(base) AS (SELECT a.atttypid UNION SELECT y.typbasetype FROM b JOIN pg_type y ON y.oid = b.base \
       WHERE y.typtype = 'd') SELECT bool_or(base IN ('json'::regtype, 'jsonb'::regtype)) FROM b), k.place::int4, k.equals \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
    LEFT JOIN LATERAL (SELECT u.place, format('OPERATOR(%I.%s)', s.nspname, p.oprname) AS equals \
      FROM pg_index i, unnest(i.indkey::int2[], i.indclass::oid[]) WITH ORDINALITY u(attnum, opclass, place) \
      JOIN pg_opclass o ON o.oid = u.opclass JOIN pg_amop m ON m.amopfamily = o.opcfamily \
        AND m.amoplefttype = o.opcintype AND m.amoprighttype = o.opcintype AND m.amopstrategy = 3 \
      JOIN pg_operator p ON p.oid = m.amopopr JOIN pg_namespace s ON s.oid = p.oprnamespace \
      WHERE i.indrelid = c.oid AND i.indisprimary AND u.attnum = a.attnum AND u.place <= i.indnkeyatts) k ON true \
    WHERE n.nspname || '.' || c.relname = $1 AND c.relkind IN ('r', 'p') ORDER BY a.attnum";

impl Target {
    /// Reads the table with that name, `schema.table` as it stands in the conflict log; `None` where there is none.
    ///
    /// # Errors
    /// When the node cannot be asked, or the name stands for several.
    pub(crate) async fn load(
        session: &Session,
        table: &str,
    ) -> Result<Option<Self>, OperatorError> {
        let mut target: Option<Self> = None;
        for row in session.query(SQL, &[&table]).await? {
            let get = |column| session.get::<String>(&row, column);
            let (schema, name) = (get(0)?, get(1)?);
            let found = target.get_or_insert_with(|| Self {
                schema: schema.clone(),
                name: name.clone(),
                columns: Vec::new(),
            });
            if (&found.schema, &found.name) != (&schema, &name) {
                return Err(OperatorError::Ambiguous {
                    node: session.node.name.clone(),
                    table: table.to_owned(),
                });
            }
            let column = get(2)?;
            let policy = session.shared.config.tables.policy(&schema, &name);
            let place: Option<i32> = session.get(&row, 7)?;
            let equals: Option<String> = session.get(&row, 8)?;
            found.columns.push(Column {
                is_counter: policy.counters.contains(&column),
                name: column,
                type_name: get(3)?,
                is_generated: session.get(&row, 4)?,
                is_fixed: session.get(&row, 5)?,
                is_json: session.get(&row, 6)?,
                key: place.zip(equals),
            });
        }
        Ok(target)
    }

    /// Schema and table, quoted.
    pub(crate) fn qualified(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }

    /// The same as people and the conflict log have it.
    pub(crate) fn plain(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    pub(crate) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The columns of the primary key, in its order; empty where there is none.
    pub(crate) fn key(&self) -> Vec<&Column> {
        let mut key: Vec<_> = self.columns.iter().filter(|c| c.key.is_some()).collect();
        key.sort_by_key(|column| column.key.as_ref().map(|(place, _)| *place));
        key
    }

    /// The primary key's columns as a list.
    pub(crate) fn key_list(&self) -> String {
        names(&self.key(), "")
    }

    /// SQL that is true for the row under the image's key. Invariant: the table has a key, and `n` its columns.
    pub(crate) fn same_key(&self) -> String {
        let equal = |column: &&Column| {
            let name = quote(&column.name);
            let equals = column.key.as_ref().map_or("=", |(_, equals)| equals);
            format!("r.{name} {equals} n.{name}")
        };
        let equal: Vec<_> = self.key().iter().map(equal).collect();
        equal.join(" AND ")
    }

    /// A FROM item `n` with the given columns of an image, an SQL expression of type text. `is_text`: every value of the
    /// image is its type's text, as the stream has it; otherwise it is what `row_to_json` made.
    pub(crate) fn record(&self, image: &str, is_text: bool, columns: &[&Column]) -> String {
        let json: Vec<_> = columns
            .iter()
            .filter(|column| column.is_json && is_text)
            .map(|column| format!("'{}'", column.name.replace('\'', "''")))
            .collect();
        // The text of a JSON value would be taken for a JSON string.
        let image = if json.is_empty() {
            format!("{image}::json")
        } else {
            format!(
                "(SELECT json_object_agg(e.key, CASE WHEN e.key IN ({}) THEN (e.value #>> '{{}}')::json ELSE e.value END) \
                 FROM json_each({image}::json) e)",
                json.join(", ")
            )
        };
        let columns: Vec<_> = columns
            .iter()
            .map(|column| format!("{} {}", quote(&column.name), column.type_name))
            .collect();
        format!("json_to_record({image}) AS n({})", columns.join(", "))
    }
}

/// A list of columns, each with `prefix` before it.
pub(crate) fn names(columns: &[&Column], prefix: &str) -> String {
    let names: Vec<_> = columns
        .iter()
        .map(|column| format!("{prefix}{}", quote(&column.name)))
        .collect();
    names.join(", ")
}

/// A column for unit tests.
#[cfg(test)]
pub(crate) fn plain_column(name: &str, type_name: &str, key: Option<i32>) -> Column {
    Column {
        name: name.to_owned(),
        type_name: type_name.to_owned(),
        is_generated: false,
        is_fixed: false,
        is_json: type_name.starts_with("json"),
        key: key.map(|place| (place, "OPERATOR(pg_catalog.=)".to_owned())),
        is_counter: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_becomes_a_record_whose_json_texts_are_read_as_json() {
        let target = Target {
            schema: "public".to_owned(),
            name: "It's".to_owned(),
            columns: vec![
                plain_column("b", "integer", Some(2)),
                plain_column("d'oc", "jsonb", None),
                plain_column("a", "text", Some(1)),
            ],
        };
        assert_eq!(target.key_list(), "\"a\", \"b\"");
        assert_eq!(
            target.same_key(),
            "r.\"a\" OPERATOR(pg_catalog.=) n.\"a\" AND r.\"b\" OPERATOR(pg_catalog.=) n.\"b\""
        );
        let key = target.key();
        assert_eq!(
            target.record("$1", true, &key),
            "json_to_record($1::json) AS n(\"a\" text, \"b\" integer)"
        );
        let all: Vec<_> = target.columns.iter().collect();
        assert!(target.record("$1", true, &all).contains("IN ('d''oc')"));
        assert!(!target.record("$1", false, &all).contains("json_each"));
    }
}
