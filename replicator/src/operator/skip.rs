//! Gives a transaction in quarantine up: the node goes on without it, and the conflict log keeps its rows.

use serde::Serialize;

use super::quarantine::{operation_name, table_name};
use super::target::Target;
use super::{ItemId, Operator, OperatorError, Session};
use crate::ddl;
use crate::image::{Image, Images};
use crate::transaction::{Change, Operation};

/// Changes that are logged by one statement at most.
const CHUNK_CHANGES: usize = 1000;
/// Bytes of images after which a statement takes no more of them.
const CHUNK_BYTES: usize = 4 << 20;

/// What was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Which transaction.
    pub id: ItemId,
    /// How many lines the conflict log has of it: one for each change, two for one that changed a key.
    pub lines: usize,
    /// Tables with counters that it changes: the node's sums lack from now on what it added.
    pub counters: Vec<String>,
    /// The DDL that the node does not carry out.
    pub statements: Vec<String>,
}

/// A row that the node does not get, or does not lose.
#[derive(Debug, PartialEq, Eq)]
struct Loser {
    operation: &'static str,
    image: Option<Image>,
}

impl Operator {
    /// Gives a transaction up on the node where it is in quarantine. In one transaction there, its changes are written
    /// to the conflict log (type `quarantine_skipped`), and it leaves the quarantine; those behind it go on.
    ///
    /// The node then differs from the others until the rows are written again, by [`reapply`](Self::reapply) or by a
    /// client.
    ///
    /// # Errors
    /// When it is not in quarantine, was applied meanwhile, or the node refuses.
    pub async fn skip(&self, id: &ItemId) -> Result<Skipped, OperatorError> {
        let session = self.session(&id.node).await?;
        session.execute("BEGIN").await?;
        // Whoever deletes the row decides what becomes of the transaction; a link that is applying it is waited for.
        let sql = "DELETE FROM tandem.quarantine WHERE id = $1 RETURNING source, committed::text, payload";
        let rows = session.query(sql, &[&id.number]).await?;
        let row = rows.first();
        let row = row.ok_or_else(|| OperatorError::NotInQuarantine(id.clone()))?;
        let version = (session.get(row, 0)?, session.get(row, 1)?);
        let transaction = session.decode(id.number, session.get(row, 2)?)?;
        let mut skipped = Skipped {
            id: id.clone(),
            lines: 0,
            counters: Vec::new(),
            statements: transaction.statements.iter().map(ddl::shown).collect(),
        };
        let of_one_table = |one: &Change, other: &Change| one.relation.id == other.relation.id;
        for run in transaction.changes.chunk_by(of_one_table) {
            let Some(first) = run.first() else { continue };
            let table = table_name(first);
            let target = Target::load(&session, &table).await?;
            let policy = session
                .shared
                .config
                .tables
                .policy(&first.relation.schema, &first.relation.name);
            if !policy.counters.is_empty() && !skipped.counters.contains(&table) {
                skipped.counters.push(table.clone());
            }
            let mut losers = Vec::new();
            let mut bytes = 0;
            for change in run {
                bytes += change.message.len();
                let images = Images::of(change);
                let images = images.map_err(|source| session.unreadable(id.number, source))?;
                losers.extend(losers_of(change.operation, images, target.as_ref()));
                if losers.len() >= CHUNK_CHANGES || bytes >= CHUNK_BYTES {
                    skipped.lines += losers.len();
                    log(&session, &table, target.as_ref(), &losers, &version).await?;
                    losers.clear();
                    bytes = 0;
                }
            }
            skipped.lines += losers.len();
            log(&session, &table, target.as_ref(), &losers, &version).await?;
        }
        session.execute("COMMIT").await?;
        if let Some(held) = session.shared.quarantines.get(session.index) {
            held.remove(id.number);
        }
        tracing::warn!(%id, lines = skipped.lines, "replication: a transaction in quarantine was skipped");
        Ok(skipped)
    }
}

/// What is lost of a change. A changed key is a delete of the old row and an insert of the new one.
fn losers_of(operation: Operation, images: Images, target: Option<&Target>) -> Vec<Loser> {
    let loser = |operation, image| Loser {
        operation: operation_name(operation),
        image,
    };
    match operation {
        Operation::Insert => vec![loser(operation, images.new)],
        Operation::Delete => vec![loser(operation, images.old)],
        Operation::Truncate => vec![loser(operation, None)],
        Operation::Update if key_moves(&images, target) => vec![
            loser(Operation::Delete, images.old),
            loser(Operation::Insert, images.new),
        ],
        Operation::Update => vec![loser(operation, images.new)],
    }
}

fn key_moves(images: &Images, target: Option<&Target>) -> bool {
    let (Some(old), Some(new), Some(target)) = (&images.old, &images.new, target) else {
        return false;
    };
    let differs = |name: &String| match (old.get(name), new.get(name)) {
        (Some(old), Some(new)) => old != new,
        _ => false,
    };
    target.key().iter().any(|column| differs(&column.name))
}

/// Writes lines of the conflict log, with the rows that stand under the losers' keys now.
async fn log(
    session: &Session,
    table: &str,
    target: Option<&Target>,
    losers: &[Loser],
    version: &(i32, String),
) -> Result<(), OperatorError> {
    if losers.is_empty() {
        return Ok(());
    }
    let operations: Vec<_> = losers.iter().map(|loser| loser.operation).collect();
    let image =
        |loser: &Loser| Some(serde_json::to_string(loser.image.as_ref()?).unwrap_or_default());
    let images: Vec<_> = losers.iter().map(image).collect();
    let own = i32::from(session.node.id);
    let (node, timestamp) = version;
    let params: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
        [&table, &operations, &images, timestamp, node];
    let Some(target) = target.filter(|target| !target.key().is_empty()) else {
        session.query(&line_sql(None, own), &params).await?;
        return Ok(());
    };
    // The source's keys may be of a type that the node cannot read; that must not keep the transaction.
    session.execute("SAVEPOINT look").await?;
    match session.query(&line_sql(Some(target), own), &params).await {
        Ok(_) => {}
        // Class 22, data exceptions.
        Err(error)
            if error
                .server_code()
                .is_some_and(|code| code.starts_with("22")) =>
        {
            session.execute("ROLLBACK TO look").await?;
            session.query(&line_sql(None, own), &params).await?;
        }
        Err(error) => return Err(error),
    }
    session.execute("RELEASE look").await
}

/// Parameters: table, operations, images, the losers' timestamp and node. `target`: look for the rows that stand there.
fn line_sql(target: Option<&Target>, own: i32) -> String {
    let (local, found) = match target {
        None => (
            "NULL::json, NULL::timestamptz, NULL::int".to_owned(),
            String::new(),
        ),
        Some(target) => {
            let key = target.key();
            let first = super::target::names(key.get(..1).unwrap_or_default(), "r.");
            let expressions = super::target::names(&key, "r.");
            (
                format!(
                    "row_to_json(r.*), coalesce(k.written, v.timestamp), CASE WHEN {first} IS NOT NULL THEN \
                     coalesce(k.node, (regexp_match(o.roname, '^tandem_(\\d+)_\\d+$'))[1]::int, {own}) END"
                ),
                format!(
                    "LEFT JOIN LATERAL {} ON true LEFT JOIN ONLY {} AS r ON {} \
                     LEFT JOIN LATERAL pg_xact_commit_timestamp_origin(r.xmin) v ON true \
                     LEFT JOIN pg_replication_origin o ON o.roident = v.roident \
                     LEFT JOIN tandem.kept k ON k.relation = '{}' AND k.key = jsonb_build_array({expressions}) AND k.writer = r.xmin",
                    target.record("c.image", true, &key),
                    target.qualified(),
                    target.same_key(),
                    target.qualified().replace('\'', "''"),
                ),
            )
        }
    };
    format!(
        "INSERT INTO tandem.conflict (relation, type, operation, resolver, outcome, local_image, local_timestamp, local_node, \
         remote_image, remote_timestamp, remote_node) \
         SELECT $1, 'quarantine_skipped', c.operation, 'operator', 'local', {local}, c.image::json, $4::text::timestamptz, $5 \
         FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS c(operation, image, place) {found} ORDER BY c.place"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::target::plain_column;
    use super::*;

    fn target() -> Target {
        Target {
            schema: "public".to_owned(),
            name: "t".to_owned(),
            columns: vec![
                plain_column("id", "integer", Some(1)),
                plain_column("note", "text", None),
            ],
        }
    }

    fn image(value: &serde_json::Value) -> Option<Image> {
        value.as_object().cloned()
    }

    #[test]
    fn a_changed_key_loses_a_delete_and_an_insert() {
        let update = |old, new| {
            let images = Images {
                old: image(&json!({ "id": old, "note": "x" })),
                new: image(&json!({ "id": new, "note": "y" })),
            };
            let losers = losers_of(Operation::Update, images, Some(&target()));
            losers
                .into_iter()
                .map(|loser| {
                    (
                        loser.operation,
                        loser.image.and_then(|image| image.get("id").cloned()),
                    )
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(update("1", "1"), [("update", Some(json!("1")))]);
        assert_eq!(
            update("1", "2"),
            [("delete", Some(json!("1"))), ("insert", Some(json!("2")))]
        );
    }

    #[test]
    fn a_truncate_has_no_row_and_a_delete_its_old_one() {
        let images = || Images {
            old: image(&json!({ "id": "1" })),
            new: None,
        };
        let delete = losers_of(Operation::Delete, images(), None);
        assert_eq!(
            delete.first().and_then(|loser| loser.image.clone()),
            images().old
        );
        let truncate = losers_of(Operation::Truncate, Images::default(), None);
        assert_eq!(
            truncate,
            [Loser {
                operation: "truncate",
                image: None
            }]
        );
    }
}
