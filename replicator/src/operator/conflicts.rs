//! Reads the conflict log of all nodes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_postgres::types::ToSql;

use super::{ItemId, Operator, OperatorError, Session};

/// Lines that are shown where nobody says how many.
const LIMIT_DEFAULT: u32 = 100;
/// Lines that are shown at most.
const LIMIT_MAX: u32 = 10_000;

/// Which lines of the conflict log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictFilter {
    /// Of this node only.
    pub node: Option<String>,
    /// Detected at or after this time, in any form that PostgreSQL reads; without a zone it is UTC.
    pub since: Option<String>,
    /// Detected within so many microseconds before now.
    pub age_us: Option<i64>,
    /// Of this table: `schema.table`, or `table` in any schema.
    pub table: Option<String>,
    /// Of this type.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// At most so many of them, the newest; 100 if nothing is said, 10,000 at most.
    pub limit: Option<u32>,
}

/// A line of the conflict log: the columns of `tandem.conflict`, times in UTC, nodes by name, images as texts of their
/// values. Texts of more than 1,000 characters are shown by their beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConflictLine {
    /// Where it stands.
    pub id: ItemId,
    /// When it was detected.
    pub detected: String,
    /// Schema and table.
    pub relation: String,
    /// What kind of conflict it is.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the remote write did, where the type does not say it.
    pub operation: Option<String>,
    /// Who decided.
    pub resolver: String,
    /// Which side's write was kept, `local` or `remote`.
    pub outcome: String,
    /// The row that stood there.
    pub local_image: Option<Value>,
    /// Its version.
    pub local_timestamp: Option<String>,
    /// The node that wrote it.
    pub local_node: Option<String>,
    /// The row that arrived.
    pub remote_image: Option<Value>,
    /// Its version.
    pub remote_timestamp: String,
    /// The node that wrote it.
    pub remote_node: String,
    /// When the losing write was written again.
    pub reapplied: Option<String>,
}

/// Lines of all nodes, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Conflicts {
    /// The lines.
    pub conflicts: Vec<ConflictLine>,
    /// Nodes that could not be asked, and why.
    pub problems: Vec<String>,
}

/// How many lines there are of one table and type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConflictCount {
    /// Schema and table.
    pub relation: String,
    /// The type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Lines.
    pub lines: i64,
    /// Those of them whose losing write was written again.
    pub reapplied: i64,
    /// When the newest was detected.
    pub newest: String,
}

/// Counts over all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// By table and type.
    pub counts: Vec<ConflictCount>,
    /// Nodes that could not be asked, and why.
    pub problems: Vec<String>,
}

const WANTED: &str = "detected >= coalesce($1::text::timestamptz, clock_timestamp() - $2::int8 * interval '1 microsecond', \
    '-infinity') AND ($3::text IS NULL OR $3 IN (relation, substring(relation FROM position('.' IN relation) + 1))) \
    AND ($4::text IS NULL OR type = $4)";

/// An image with texts for values, whichever side of the log it is of.
fn image(column: &str) -> String {
    format!(
        "(SELECT json_object_agg(key, CASE WHEN length(value) > 1000 THEN left(value, 1000) || '… (' || length(value) || \
         ' characters)' ELSE value END) FROM json_each_text({column}))::text"
    )
}

impl Operator {
    /// The lines of the conflict log that a filter leaves.
    ///
    /// # Errors
    /// When there is no such node. One that cannot be asked is told with the answer.
    pub async fn conflicts(&self, filter: &ConflictFilter) -> Result<Conflicts, OperatorError> {
        let limit = filter.limit.unwrap_or(LIMIT_DEFAULT).min(LIMIT_MAX);
        let wanted = filter.clone();
        let question = move |session| lines(session, wanted.clone(), limit);
        let (found, problems) = self.ask(filter.node.as_deref(), question).await?;
        let mut conflicts: Vec<_> = found.into_iter().flatten().collect();
        // The texts of times sort as the times do; of one node the numbers say what came later.
        conflicts.sort_by(|one, other| {
            let of = |line: &ConflictLine| (line.detected.clone(), line.id.number);
            of(other).cmp(&of(one))
        });
        conflicts.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(Conflicts {
            conflicts,
            problems,
        })
    }

    /// How many lines a filter leaves, by table and type; its limit does not count.
    ///
    /// # Errors
    /// When there is no such node. One that cannot be asked is told with the answer.
    pub async fn conflict_summary(
        &self,
        filter: &ConflictFilter,
    ) -> Result<Summary, OperatorError> {
        let wanted = filter.clone();
        let question = move |session| counts(session, wanted.clone());
        let (found, problems) = self.ask(filter.node.as_deref(), question).await?;
        Ok(Summary {
            counts: added_up(found.into_iter().flatten()),
            problems,
        })
    }
}

async fn lines(
    session: Session,
    filter: ConflictFilter,
    limit: u32,
) -> Result<Vec<ConflictLine>, OperatorError> {
    let params: [&(dyn ToSql + Sync); 5] = [
        &filter.since,
        &filter.age_us,
        &filter.table,
        &filter.kind,
        &i64::from(limit),
    ];
    let wanted = format!("{WANTED} ORDER BY id DESC LIMIT $5");
    lines_where(&session, &wanted, &params).await
}

/// The lines of which some SQL holds.
///
/// # Errors
/// When the node cannot be asked.
pub(super) async fn lines_where(
    session: &Session,
    wanted: &str,
    params: &[&(dyn ToSql + Sync)],
) -> Result<Vec<ConflictLine>, OperatorError> {
    let sql = format!(
        "SELECT id, detected::text, relation, type, operation, resolver, outcome, {}, local_timestamp::text, local_node, {}, \
         remote_timestamp::text, remote_node, reapplied::text FROM tandem.conflict WHERE {wanted}",
        image("local_image"),
        image("remote_image")
    );
    let mut lines = Vec::new();
    for row in session.query(&sql, params).await? {
        let text = |column| session.get::<String>(&row, column);
        let maybe = |column| session.get::<Option<String>>(&row, column);
        // PostgreSQL made them, of texts only.
        let object = |text: Option<String>| text.and_then(|text| serde_json::from_str(&text).ok());
        let local_node: Option<i32> = session.get(&row, 9)?;
        lines.push(ConflictLine {
            id: session.item(session.get(&row, 0)?),
            detected: text(1)?,
            relation: text(2)?,
            kind: text(3)?,
            operation: maybe(4)?,
            resolver: text(5)?,
            outcome: text(6)?,
            local_image: object(maybe(7)?),
            local_timestamp: maybe(8)?,
            local_node: local_node.map(|id| session.node_name(id)),
            remote_image: object(maybe(10)?),
            remote_timestamp: text(11)?,
            remote_node: session.node_name(session.get(&row, 12)?),
            reapplied: maybe(13)?,
        });
    }
    Ok(lines)
}

async fn counts(
    session: Session,
    filter: ConflictFilter,
) -> Result<Vec<ConflictCount>, OperatorError> {
    let sql = format!(
        "SELECT relation, type, count(*), count(reapplied), max(detected)::text FROM tandem.conflict WHERE {WANTED} \
         GROUP BY relation, type"
    );
    let params: [&(dyn ToSql + Sync); 4] =
        [&filter.since, &filter.age_us, &filter.table, &filter.kind];
    let rows = session.query(&sql, &params).await?;
    let count = |row: &tokio_postgres::Row| {
        Ok(ConflictCount {
            relation: session.get(row, 0)?,
            kind: session.get(row, 1)?,
            lines: session.get(row, 2)?,
            reapplied: session.get(row, 3)?,
            newest: session.get(row, 4)?,
        })
    };
    rows.iter().map(count).collect()
}

/// Adds up what the nodes counted, the most first.
fn added_up(counts: impl Iterator<Item = ConflictCount>) -> Vec<ConflictCount> {
    let mut sums: BTreeMap<(String, String), ConflictCount> = BTreeMap::new();
    for count in counts {
        let key = (count.relation.clone(), count.kind.clone());
        match sums.get_mut(&key) {
            Some(sum) => {
                sum.lines += count.lines;
                sum.reapplied += count.reapplied;
                sum.newest = std::mem::take(&mut sum.newest).max(count.newest);
            }
            None => {
                sums.insert(key, count);
            }
        }
    }
    let mut sums: Vec<_> = sums.into_values().collect();
    sums.sort_by_key(|sum| std::cmp::Reverse(sum.lines));
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(relation: &str, kind: &str, lines: i64, newest: &str) -> ConflictCount {
        ConflictCount {
            relation: relation.to_owned(),
            kind: kind.to_owned(),
            lines,
            reapplied: 1,
            newest: newest.to_owned(),
        }
    }

    #[test]
    fn counts_of_the_nodes_are_added_up_by_table_and_type() {
        let of_nodes = [
            count("public.t", "insert_exists", 2, "2026-01-02 00:00:00+00"),
            count("public.u", "insert_exists", 9, "2026-01-01 00:00:00+00"),
            count("public.t", "insert_exists", 3, "2026-01-02 00:00:00.5+00"),
            count("public.t", "update_deleted", 1, "2026-01-01 00:00:00+00"),
        ];
        let sums = added_up(of_nodes.into_iter());
        let sums: Vec<_> = sums
            .iter()
            .map(|sum| {
                (
                    sum.relation.as_str(),
                    sum.lines,
                    sum.reapplied,
                    sum.newest.as_str(),
                )
            })
            .collect();
        assert_eq!(
            sums,
            [
                ("public.u", 9, 1, "2026-01-01 00:00:00+00"),
                ("public.t", 5, 2, "2026-01-02 00:00:00.5+00"),
                ("public.t", 1, 1, "2026-01-01 00:00:00+00"),
            ]
        );
    }
}
