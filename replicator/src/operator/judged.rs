//! What became of a node's tail: read from the conflict logs, quarantines and shadows of all nodes, by the versions of its
//! transactions.
//!
//! A losing write may have a line on several nodes, and a row several writes: of each row the newest write of the tail counts,
//! and it has lost if any node's line says so.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_postgres::types::ToSql;

use super::conflicts::{ConflictLine, lines_where};
use super::{ItemId, Operator, OperatorError, Session};
use crate::resolve::PENDING;
use crate::tables::KEY_COLUMNS;
use crate::tail::Tail;
use crate::version::{Moment, PgTimestamp, microseconds_sql};

/// Rows that are listed at most, of those that lost and of those that won.
const LISTED_MAX: usize = 100;
/// Bytes of their images and names, of either, about.
const LISTED_BYTES_MAX: usize = 256 << 10;
/// Lines that are read of one node.
const LINES_MAX: usize = 10_000;
/// How long a layered resolver may take to settle what it has to.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// What became of a tail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// Rows of which a newer write of another node was kept.
    pub lost: u64,
    /// Rows of which the tail's write was kept, and another node's lost.
    pub won: u64,
    /// Those of them that were committed after the node was found gone: what was acknowledged elsewhere may have lost to them.
    pub won_late: u64,
    /// Rows about which a resolver has yet to decide.
    pub pending: u64,
    /// Rows that lie in the shadow, because others have their unique values.
    pub shadowed: u64,
    /// Transactions that some node refuses.
    pub quarantined: u64,
    /// There may be more than was counted.
    pub is_cut: bool,
    /// The rows that lost, and those that won, in the order of their writes, as far as they are listed.
    pub rows: Vec<JudgedRow>,
    /// So many more lost or won; `tandem conflicts --since` shows them.
    pub not_listed: u64,
    /// Nodes that could not be asked, and why.
    pub problems: Vec<String>,
}

/// A row of a tail that met another node's write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JudgedRow {
    /// The line of the conflict log that says it; `tandem reapply` writes the losing write again.
    pub id: ItemId,
    /// Whether the tail's write is kept: `lost` or `won`.
    pub outcome: String,
    /// Schema and table.
    pub relation: String,
    /// What kind of conflict it was.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the tail wrote; `None`: a delete.
    pub image: Option<Value>,
    /// When that was committed.
    pub timestamp: Option<String>,
    /// What the other node wrote; `None`: a delete.
    pub other_image: Option<Value>,
    /// When that was committed.
    pub other_timestamp: Option<String>,
    /// Which node that was.
    pub other_node: Option<String>,
}

/// What a line says of the tail's write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Won,
    Pending,
    Lost,
}

/// A line of some node's conflict log, as far as it takes to judge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    /// When the tail's write was committed. What is newer counts: it comes first here, and the verdict next.
    written: PgTimestamp,
    verdict: Verdict,
    /// When the other one was.
    other: Option<PgTimestamp>,
    id: ItemId,
    /// The tail's write is the one that arrived.
    arrived: bool,
}

/// What one node says.
#[derive(Debug, Default)]
struct Said {
    /// By table and key.
    lines: Vec<((String, String), Line)>,
    shadowed: Vec<String>,
    quarantined: Vec<String>,
    is_cut: bool,
}

/// Of each row the line that counts, whoever says what in whichever order.
fn judge(
    lines: impl IntoIterator<Item = ((String, String), Line)>,
) -> BTreeMap<(String, String), Line> {
    let mut rows: BTreeMap<_, Line> = BTreeMap::new();
    for (row, line) in lines {
        match rows.get_mut(&row) {
            Some(known) => *known = line.max(known.clone()),
            None => drop(rows.insert(row, line)),
        }
    }
    rows
}

impl Judged {
    /// Counts rows.
    fn counted<'a>(rows: impl Iterator<Item = &'a Line>, gone: PgTimestamp) -> Self {
        let mut judged = Self::default();
        for line in rows {
            match line.verdict {
                Verdict::Lost => judged.lost += 1,
                Verdict::Pending => judged.pending += 1,
                Verdict::Won => {
                    judged.won += 1;
                    judged.won_late += u64::from(line.written > gone);
                }
            }
        }
        judged
    }
}

/// Which lines are listed: of either verdict the first of the tail.
fn listed(rows: &BTreeMap<(String, String), Line>) -> Vec<Line> {
    let mut all: Vec<_> = rows.values().cloned().collect();
    all.sort();
    let of = |verdict| {
        let those = all.iter().filter(move |line| line.verdict == verdict);
        those.take(LISTED_MAX).cloned()
    };
    of(Verdict::Lost).chain(of(Verdict::Won)).collect()
}

/// The rows that fit; of the others it is told that there are some.
fn within(rows: Vec<JudgedRow>, bytes_max: usize) -> Vec<JudgedRow> {
    let mut bytes: HashMap<String, usize> = HashMap::new();
    let fits = |row: &JudgedRow| {
        let sum = bytes.entry(row.outcome.clone()).or_default();
        *sum += size(row);
        *sum <= bytes_max
    };
    let mut fits = fits;
    rows.into_iter().filter(|row| fits(row)).collect()
}

fn size(row: &JudgedRow) -> usize {
    let images = [&row.image, &row.other_image].into_iter().flatten();
    let images: usize = images.map(|image| image.to_string().len()).sum();
    images + row.relation.len()
}

impl Operator {
    /// What became of the tail of the node with this index, which was found gone at some time: to be asked when the node has
    /// caught up both ways.
    pub async fn judged(&self, node: usize, tail: &Tail, gone: Moment) -> Judged {
        let nodes = &self.shared.config.nodes;
        let (Some(times), Some(source)) = (tail.times(), nodes.get(node).map(|node| node.id))
        else {
            return Judged::default();
        };
        for contests in &self.shared.contests {
            // What takes longer is told as pending.
            let _ = tokio::time::timeout(SETTLE_MAX, contests.idle()).await;
        }
        let question = move |session| said(session, source, times);
        let (said, mut problems) = match self.ask(None, question).await {
            Ok(answers) => answers,
            Err(error) => (Vec::new(), vec![error.to_string()]),
        };
        let set = |of: fn(&Said) -> &Vec<String>| {
            let all: HashSet<&String> = said.iter().flat_map(of).collect();
            all.len() as u64
        };
        let (shadowed, quarantined) = (set(|said| &said.shadowed), set(|said| &said.quarantined));
        let is_cut = said.iter().any(|said| said.is_cut);
        let rows = judge(said.into_iter().flat_map(|said| said.lines));
        let counts = Judged::counted(rows.values(), gone.timestamp());
        let (told, more_problems) = self.told(listed(&rows)).await;
        problems.extend(more_problems);
        Judged {
            shadowed,
            quarantined,
            is_cut,
            not_listed: (counts.lost + counts.won).saturating_sub(told.len() as u64),
            rows: told,
            problems,
            ..counts
        }
    }

    /// The rows of some lines, with images.
    async fn told(&self, wanted: Vec<Line>) -> (Vec<JudgedRow>, Vec<String>) {
        let mut by_node: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
        for line in &wanted {
            let ids = by_node.entry(&line.id.node).or_default();
            ids.push(line.id.number);
        }
        let (mut found, mut problems) = (HashMap::new(), Vec::new());
        for (node, ids) in by_node {
            let lines = async {
                let session = self.session(node).await?;
                lines_where(&session, "id = ANY($1)", &[&ids]).await
            };
            match lines.await {
                Ok(lines) => found.extend(lines.into_iter().map(|line| (line.id.clone(), line))),
                Err(error) => problems.push(error.to_string()),
            }
        }
        let rows = wanted.into_iter();
        let rows = rows.filter_map(|line| Some(row(&line, found.remove(&line.id)?)));
        (within(rows.collect(), LISTED_BYTES_MAX), problems)
    }
}

fn row(line: &Line, found: ConflictLine) -> JudgedRow {
    let local = (found.local_image, found.local_timestamp, found.local_node);
    let remote = (
        found.remote_image,
        Some(found.remote_timestamp),
        Some(found.remote_node),
    );
    let (own, other) = match line.arrived {
        true => (remote, local),
        false => (local, remote),
    };
    JudgedRow {
        id: found.id,
        outcome: match line.verdict {
            Verdict::Won => "won",
            Verdict::Pending => "pending",
            Verdict::Lost => "lost",
        }
        .to_owned(),
        relation: found.relation,
        kind: found.kind,
        image: own.0,
        timestamp: own.1,
        other_image: other.0,
        other_timestamp: other.1,
        other_node: other.2,
    }
}

/// What a node's tables have of transactions of `source` that were committed between two times. A delete that found its row
/// deleted has lost nothing.
async fn said(
    session: Session,
    source: u16,
    (first, last): (PgTimestamp, PgTimestamp),
) -> Result<Said, OperatorError> {
    let most = i64::try_from(LINES_MAX).unwrap_or(i64::MAX);
    let source = i32::from(source);
    let params: [&(dyn ToSql + Sync); 4] = [&source, &first, &last, &(most + 1)];
    let (local, remote) = (
        microseconds_sql("local_timestamp"),
        microseconds_sql("remote_timestamp"),
    );
    let sql = format!(
        "WITH tables AS (SELECT n.nspname || '.' || c.relname AS relation, {KEY_COLUMNS} AS key \
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')), \
         side AS (SELECT *, remote_node = $1 AND {remote} BETWEEN $2 AND $3 AS arrived, {local} AS local_us, {remote} AS remote_us \
           FROM tandem.conflict WHERE type <> 'delete_missing' AND (remote_node = $1 AND {remote} BETWEEN $2 AND $3 \
           OR local_node = $1 AND {local} BETWEEN $2 AND $3)), \
         line AS (SELECT *, CASE WHEN arrived THEN coalesce(remote_image, local_image) ELSE coalesce(local_image, remote_image) END AS image \
           FROM side) \
         SELECT l.id, l.relation, md5(coalesce((SELECT json_agg(l.image ->> k.name ORDER BY k.place)::text \
             FROM unnest(t.key) WITH ORDINALITY k(name, place)), l.image::text, l.id::text)), l.arrived, \
           CASE WHEN l.arrived THEN remote_us ELSE local_us END, CASE WHEN l.arrived THEN local_us ELSE remote_us END, l.outcome \
         FROM line l LEFT JOIN tables t ON t.relation = l.relation ORDER BY l.id LIMIT $4"
    );
    let mut said = Said::default();
    for row in session.query(&sql, &params).await? {
        let arrived: bool = session.get(&row, 3)?;
        let outcome: String = session.get(&row, 6)?;
        let line = Line {
            written: session.get(&row, 4)?,
            verdict: verdict(&outcome, arrived),
            other: session.get(&row, 5)?,
            id: session.item(session.get(&row, 0)?),
            arrived,
        };
        let key = (session.get(&row, 1)?, session.get(&row, 2)?);
        said.lines.push((key, line));
    }
    for (texts, what, table, node, time) in [
        (
            &mut said.shadowed,
            "md5(relation || key::text)",
            "shadow",
            "node",
            "written",
        ),
        (
            &mut said.quarantined,
            "lsn::text",
            "quarantine",
            "source",
            "committed",
        ),
    ] {
        let sql = format!(
            "SELECT {what} FROM tandem.{table} WHERE {node} = $1 AND {} BETWEEN $2 AND $3 LIMIT $4",
            microseconds_sql(time)
        );
        for row in session.query(&sql, &params).await? {
            texts.push(session.get(&row, 0)?);
        }
    }
    let sizes = [
        said.lines.len(),
        said.shadowed.len(),
        said.quarantined.len(),
    ];
    said.is_cut = sizes.into_iter().any(|size| size > LINES_MAX);
    Ok(said)
}

/// What an outcome means for the tail's write, which is the one that arrived or the one that stood there.
fn verdict(outcome: &str, arrived: bool) -> Verdict {
    match outcome {
        PENDING => Verdict::Pending,
        "remote" if arrived => Verdict::Won,
        "local" if !arrived => Verdict::Won,
        _ => Verdict::Lost,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn line(written: PgTimestamp, verdict: Verdict, number: i64) -> Line {
        Line {
            written,
            verdict,
            other: Some(number),
            id: ItemId {
                node: format!("n{}", number % 3 + 1),
                number,
            },
            arrived: true,
        }
    }

    fn of(key: &str, line: Line) -> ((String, String), Line) {
        (("public.t".to_owned(), key.to_owned()), line)
    }

    #[test]
    fn a_write_that_lost_on_several_nodes_is_one_row_and_the_newest_write_of_a_row_counts() {
        let lines = [
            // Told by two nodes.
            of("a", line(5, Verdict::Lost, 1)),
            of("a", line(5, Verdict::Lost, 2)),
            // Newer than one node's write, and older than another's.
            of("b", line(5, Verdict::Won, 3)),
            of("b", line(5, Verdict::Lost, 4)),
            // Written once more behind the write that lost.
            of("c", line(5, Verdict::Lost, 5)),
            of("c", line(9, Verdict::Won, 6)),
            of("d", line(6, Verdict::Pending, 7)),
        ];
        let rows = judge(lines);
        let judged = Judged::counted(rows.values(), 8);
        let counts = [judged.lost, judged.won, judged.won_late, judged.pending];
        assert_eq!(counts, [2, 1, 1, 1]);
        assert_eq!(Judged::counted(rows.values(), 9).won_late, 0);
        let ids = listed(&rows).into_iter().map(|line| line.id.number);
        assert_eq!(ids.collect::<Vec<_>>(), [2, 4, 6]);
    }

    #[test]
    fn an_outcome_is_told_from_the_tails_side() {
        assert_eq!(verdict("local", true), Verdict::Lost);
        assert_eq!(verdict("remote", true), Verdict::Won);
        assert_eq!(verdict("local", false), Verdict::Won);
        assert_eq!(verdict("remote", false), Verdict::Lost);
        assert_eq!(verdict(PENDING, false), Verdict::Pending);
    }

    #[test]
    fn rows_are_listed_up_to_a_number_and_up_to_a_size() {
        let lines = (0..1000).map(|n| of(&n.to_string(), line(n, Verdict::Lost, n)));
        let listed = listed(&judge(lines));
        let written: Vec<_> = listed.iter().map(|line| line.written).collect();
        assert_eq!(written, (0..100).collect::<Vec<_>>());
        let told = |outcome: &str, bytes: usize| JudgedRow {
            id: listed[0].id.clone(),
            outcome: outcome.to_owned(),
            relation: String::new(),
            kind: String::new(),
            image: Some(json!({ "v": "x".repeat(bytes) })),
            timestamp: None,
            other_image: None,
            other_timestamp: None,
            other_node: None,
        };
        let rows = vec![told("lost", 50), told("lost", 50), told("won", 50)];
        assert_eq!(within(rows.clone(), 1000).len(), 3);
        let left: Vec<_> = within(rows, 100)
            .into_iter()
            .map(|row| row.outcome)
            .collect();
        assert_eq!(left, ["lost", "won"]);
    }

    proptest! {
        /// Nodes are asked at once, and answer in any order.
        #[test]
        fn the_order_of_the_lines_does_not_matter(
            lines in proptest::collection::vec((0u8..3, 0i64..3, 0u8..3, 1i64..50), 0..30),
            seed in any::<u64>(),
        ) {
            let lines: Vec<_> = lines
                .into_iter()
                .map(|(key, written, verdict, number)| {
                    let verdict = [Verdict::Won, Verdict::Pending, Verdict::Lost][usize::from(verdict)];
                    of(&key.to_string(), line(written, verdict, number))
                })
                .collect();
            let mut shuffled = lines.clone();
            fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
            prop_assert_eq!(judge(lines), judge(shuffled));
        }
    }
}
