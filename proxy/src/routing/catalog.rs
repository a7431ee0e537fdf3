//! Owns what the replicated database has, as far as routing depends on it: asked of a node that is up, again and again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use serde::Deserialize;
use tandem_routing_rules::catalog::{
    Catalog, CatalogBuilder, Column, ColumnType, Relation, RelationKind, Volatility,
};
use tandem_wire::{ConnectError, ConnectionError};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use crate::{
    health::HealthBoard,
    node::{Node, Nodes},
};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(5);
/// Bound of one.
const LIMIT: Duration = Duration::from_secs(10);
/// So many causes of failures are remembered.
const TOLD_MAX: usize = 100;

/// What the database has; none before the first answer.
#[derive(Debug, Default)]
pub(crate) struct Catalogs {
    now: ArcSwapOption<Numbered>,
    changed: Notify,
    next: AtomicU64,
    /// Whether there was an answer.
    is_known: watch::Sender<bool>,
}

/// A catalog with a number of its own.
#[derive(Debug)]
pub(super) struct Numbered {
    pub(super) catalog: Catalog,
    pub(super) number: u64,
    /// A name can mean more than a table.
    pub(super) has_views: bool,
}

/// Why a node did not say what it has.
#[derive(Debug, thiserror::Error)]
enum CatalogError {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Query(#[from] ConnectionError),
    #[error("the answer is not as expected: {0}")]
    Answer(#[from] serde_json::Error),
    #[error("no answer within {} s", LIMIT.as_secs())]
    Timeout,
}

impl Catalogs {
    /// What is known now.
    pub(super) fn now(&self) -> Option<Arc<Numbered>> {
        self.now.load_full()
    }

    /// Returns after the first answer.
    pub(crate) async fn first(&self) {
        // The sender lives in self.
        let _ = self.is_known.subscribe().wait_for(|known| *known).await;
    }

    /// Somebody may have changed what there is.
    pub(super) fn note_change(&self) {
        self.changed.notify_one();
    }

    /// Looks for ever.
    pub(crate) async fn keep(&self, nodes: &Nodes, health: &HealthBoard, database: &str) {
        let mut told = Told::default();
        loop {
            let usable = (0..nodes.len()).find(|node| health.usable(*node));
            if let Some(node) = usable.and_then(|node| nodes.get(node)) {
                match timeout(LIMIT, read(node, database)).await {
                    Ok(Ok(catalog)) => {
                        told = Told::default();
                        self.put(catalog);
                    }
                    Ok(Err(error)) => told.note(node, &error),
                    Err(_) => told.note(node, &CatalogError::Timeout),
                }
            }
            let wait = match self.now.load().is_some() {
                true => INTERVAL,
                false => INTERVAL / 50,
            };
            // Until the time comes, or somebody knows of a change.
            let _ = timeout(wait, self.changed.notified()).await;
        }
    }

    fn put(&self, catalog: Catalog) {
        let is_known = self.now.load();
        if is_known
            .as_ref()
            .is_some_and(|known| known.catalog == catalog)
        {
            return;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.now.store(Some(Arc::new(Numbered {
            has_views: catalog.has_views(),
            catalog,
            number,
        })));
        self.is_known.send_replace(true);
    }
}

/// The failures since the last answer, by node and cause. Each is told once: it comes again with every look.
#[derive(Debug, Default)]
struct Told(Vec<String>);

impl Told {
    fn note(&mut self, node: &Node, error: &CatalogError) {
        if self.is_new(node.name(), error) {
            tracing::warn!(
                node = node.name(),
                %error,
                "a node does not say which tables there are: keys are read as they stand in statements, views count as tables"
            );
        }
    }

    fn is_new(&mut self, node: &str, error: &CatalogError) -> bool {
        let cause = format!("{node}: {error}");
        if self.0.contains(&cause) {
            return false;
        }
        if self.0.len() == TOLD_MAX {
            self.0.remove(0);
        }
        self.0.push(cause);
        true
    }
}

async fn read(node: &Node, database: &str) -> Result<Catalog, CatalogError> {
    let params = [
        ("application_name", "tandem catalog"),
        ("options", "-c search_path= -c statement_timeout=10s"),
    ];
    let params = params.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let options = node.own_options(database, params.to_vec(), LIMIT);
    let mut connection = tandem_wire::connect(&options).await?;
    let relations = connection.simple_query(RELATIONS).await?;
    let functions = connection.simple_query(FUNCTIONS).await?;
    connection.close().await;
    let mut builder = Catalog::builder();
    for text in relations.iter().filter_map(|row| row.first()?.as_deref()) {
        let found: FoundRelation = serde_json::from_str(text)?;
        builder = builder.relation(found.into());
    }
    for row in &functions {
        builder = function(builder, row);
    }
    Ok(builder.build())
}

fn function(builder: CatalogBuilder, row: &[Option<String>]) -> CatalogBuilder {
    let [Some(schema), Some(name), Some(volatility)] = row else {
        return builder;
    };
    let volatility = match volatility.as_str() {
        "i" => Volatility::Immutable,
        "s" => Volatility::Stable,
        _ => Volatility::Volatile,
    };
    builder.function(schema, name, volatility)
}

/// One JSON object for each relation. With an empty search path `pg_get_viewdef` gives every name its schema.
const RELATIONS: &str = "\
SELECT pg_catalog.json_build_object(
    'schema', n.nspname, 'name', c.relname, 'kind', c.relkind,
    'definition', CASE c.relkind WHEN 'v' THEN pg_catalog.pg_get_viewdef(c.oid) END,
    'columns', COALESCE((
        SELECT pg_catalog.json_agg(pg_catalog.json_build_array(a.attname,
            CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END::bigint, l.collisdeterministic) ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
            LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]'::json),
    'partition_of', CASE WHEN c.relispartition THEN (
        SELECT pg_catalog.json_build_array(pn.nspname, p.relname)
        FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
            JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
        WHERE i.inhrelid = c.oid LIMIT 1) END,
    'writes_elsewhere', EXISTS (
            SELECT FROM pg_catalog.pg_trigger g JOIN pg_catalog.pg_proc f ON f.oid = g.tgfoid
                JOIN pg_catalog.pg_namespace fn ON fn.oid = f.pronamespace
            WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgenabled <> 'D' AND fn.nspname <> 'tandem')
        OR EXISTS (SELECT FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN'))
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'tandem')
    AND n.nspname !~ '^pg_(toast|temp)'";

/// Those of the database itself, and PostgreSQL's volatile ones of the same names.
const FUNCTIONS: &str = "\
WITH own AS (
    SELECT n.nspname, p.proname, p.provolatile
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'tandem') AND n.nspname !~ '^pg_(toast|temp)')
SELECT nspname, proname, pg_catalog.max(provolatile::text) FROM own GROUP BY 1, 2
UNION ALL
SELECT DISTINCT 'pg_catalog', p.proname, 'v' FROM pg_catalog.pg_proc p
WHERE p.provolatile = 'v' AND p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace
    AND p.proname IN (SELECT proname FROM own)";

/// A row of [`RELATIONS`].
#[derive(Debug, Deserialize)]
struct FoundRelation {
    schema: String,
    name: String,
    kind: String,
    definition: Option<String>,
    columns: Vec<(String, u32, Option<bool>)>,
    partition_of: Option<(String, String)>,
    writes_elsewhere: bool,
}

impl From<FoundRelation> for Relation {
    fn from(found: FoundRelation) -> Relation {
        let kind = match (found.kind.as_str(), found.definition) {
            ("v", Some(definition)) => RelationKind::View { definition },
            ("p", _) => RelationKind::Partitioned,
            ("m", _) => RelationKind::MaterializedView,
            ("f", _) => RelationKind::Foreign,
            _ => RelationKind::Table,
        };
        let columns = found.columns.into_iter();
        let columns = columns.map(|(name, oid, deterministic)| Column {
            name,
            column_type: ColumnType::of_oid(oid).with_collation(deterministic),
        });
        Relation {
            schema: found.schema,
            name: found.name,
            kind,
            columns: columns.collect(),
            partition_of: found.partition_of,
            writes_elsewhere: found.writes_elsewhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_of_a_relation_is_taken_as_it_is() {
        let text = r#"{"schema": "public", "name": "t", "kind": "v", "definition": "SELECT 1", "columns": [["id", 23, null],
            ["name", 25, true], ["odd", 25, false], ["other", 16400, null]], "partition_of": null, "writes_elsewhere": false}"#;
        let found: FoundRelation = serde_json::from_str(text).expect("as RELATIONS gives it");
        let relation = Relation::from(found);
        assert_eq!(
            relation.kind,
            RelationKind::View {
                definition: "SELECT 1".to_owned()
            }
        );
        assert_eq!(relation.column_type("id"), Some(ColumnType::Integer));
        let text = |deterministic| Some(ColumnType::Text { deterministic });
        assert_eq!(relation.column_type("name"), text(true));
        assert_eq!(relation.column_type("odd"), text(false));
        assert_eq!(relation.column_type("other"), Some(ColumnType::Other));
    }

    #[test]
    fn a_cause_of_failure_is_told_once_for_each_node() {
        let mut told = Told::default();
        assert!(told.is_new("paris", &CatalogError::Timeout));
        assert!(!told.is_new("paris", &CatalogError::Timeout));
        assert!(told.is_new("oslo", &CatalogError::Timeout));
        let another = serde_json::from_str::<FoundRelation>("{").expect_err("no JSON");
        assert!(told.is_new("paris", &another.into()));
        assert!(!told.is_new("paris", &CatalogError::Timeout));
    }

    #[test]
    fn a_catalog_has_another_number_only_if_it_is_another_one() {
        let catalogs = Catalogs::default();
        let number = || catalogs.now().map(|now| now.number);
        assert_eq!(number(), None);
        catalogs.put(Catalog::default());
        let first = number();
        catalogs.put(Catalog::default());
        assert_eq!(number(), first);
        let another = Catalog::builder().function("public", "f", Volatility::Volatile);
        catalogs.put(another.build());
        assert_ne!(number(), first);
    }
}
