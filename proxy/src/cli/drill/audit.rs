//! Owns the comparison of the ledger with what the nodes have in the end. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use super::ledger::{History, Outcome, TABLE};

/// What one node has of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The node.
    pub node: String,
    /// Client and number of each write.
    pub writes: BTreeSet<(u32, u64)>,
    /// The number in the row that each client keeps.
    pub kept: BTreeMap<u32, u64>,
}

impl Found {
    /// Reads rows of `client, seq, last`.
    pub fn read(node: &str, rows: &[Vec<Option<String>>]) -> Self {
        let mut found = Self {
            node: node.to_owned(),
            ..Self::default()
        };
        for row in rows {
            let mut numbers = row.iter().map(|value| value.as_ref()?.parse::<u64>().ok());
            let mut next = || numbers.next().flatten();
            let (Some(client), Some(seq), Some(last)) = (next(), next(), next()) else {
                continue;
            };
            let Ok(client) = u32::try_from(client) else {
                continue;
            };
            match seq {
                0 => drop(found.kept.insert(client, last)),
                _ => drop(found.writes.insert((client, seq))),
            }
        }
        found
    }
}

/// Which part of a write is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The row of its own.
    Insert,
    /// The number in the row that its client keeps.
    Update,
}

/// A write, and the nodes that it is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its client.
    pub client: u32,
    /// The client's key.
    pub key: Option<String>,
    /// Its number.
    pub seq: u64,
    /// What of it.
    pub part: Part,
    /// When the client had its answer, in milliseconds since 1970.
    pub at_ms: u64,
    /// The nodes.
    pub nodes: Vec<String>,
    /// What the client was told.
    pub told: String,
}

/// What became of all writes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// Acknowledged, and not there on these nodes.
    pub lost: Vec<Entry>,
    /// The same, but the conflict log has it as a loser.
    pub lost_in_conflicts: Vec<Entry>,
    /// Refused, and there on these nodes: a client that tries again does it twice.
    pub refused_yet_there: Vec<Entry>,
    /// Those whose outcome nobody told, and the nodes that have them.
    pub unknown: Vec<Entry>,
    /// Unknown ones that some nodes have and others have not.
    pub nodes_differ: bool,
}

/// Looks for every write on every node.
pub fn audit(histories: &[History], found: &[Found], losers: &BTreeSet<(u32, u64)>) -> Audit {
    let mut audit = Audit::default();
    let nodes = |has: &dyn Fn(&Found) -> bool| -> Vec<String> {
        let having = found.iter().filter(|found| has(found));
        having.map(|found| found.node.clone()).collect()
    };
    for history in histories {
        let client = history.client;
        let entry = |write: &super::ledger::Write, part, nodes, told: &str| Entry {
            client,
            key: history.key.clone(),
            seq: write.seq,
            part,
            at_ms: write.ended_us / 1000,
            nodes,
            told: told.to_owned(),
        };
        let mut miss = |entry: Entry| match entry.nodes.is_empty() {
            true => {}
            false if losers.contains(&(client, entry.seq)) => audit.lost_in_conflicts.push(entry),
            false => audit.lost.push(entry),
        };
        for write in &history.writes {
            let id = (client, write.seq);
            match &write.outcome {
                Outcome::Acknowledged { .. } => {
                    let without = nodes(&|found| !found.writes.contains(&id));
                    miss(entry(write, Part::Insert, without, "acknowledged"));
                }
                Outcome::Refused { code } => {
                    let with = nodes(&|found| found.writes.contains(&id));
                    if !with.is_empty() {
                        audit
                            .refused_yet_there
                            .push(entry(write, Part::Insert, with, code));
                    }
                }
                Outcome::Unknown { reason } => {
                    let with = nodes(&|found| found.writes.contains(&id));
                    audit.nodes_differ |= !with.is_empty() && with.len() < found.len();
                    audit.unknown.push(entry(write, Part::Insert, with, reason));
                }
            }
        }
        // Later writes cover earlier ones in the kept row; the last acknowledged one nothing may have undone.
        let last = history
            .writes
            .iter()
            .rfind(|write| matches!(write.outcome, Outcome::Acknowledged { .. }));
        if let Some(write) = last {
            let behind = nodes(&|found| found.kept.get(&client).copied() < Some(write.seq));
            miss(entry(write, Part::Update, behind, "acknowledged"));
        }
    }
    audit
}

/// The writes of a run that the conflict log names as losers.
pub fn losers(conflicts: &Value, run: u64) -> BTreeSet<(u32, u64)> {
    let lines = conflicts.get("conflicts").and_then(Value::as_array);
    let of_line = |line: &Value| {
        if line.get("relation")?.as_str()? != TABLE {
            return None;
        }
        let image = match line.get("outcome")?.as_str()? {
            "local" => line.get("remote_image")?,
            _ => line.get("local_image")?,
        };
        let number = |column| image.get(column)?.as_str()?.parse::<u64>().ok();
        if number("run")? != run {
            return None;
        }
        let client = u32::try_from(number("client")?).ok()?;
        match number("seq")? {
            0 => Some((client, number("last")?)),
            seq => Some((client, seq)),
        }
    };
    lines.into_iter().flatten().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::drill::ledger::Write;
    use serde_json::json;

    fn history(outcomes: &[Outcome]) -> History {
        let writes = outcomes.iter().zip(1..).map(|(outcome, seq)| Write {
            seq,
            ended_us: seq * 1000,
            outcome: outcome.clone(),
        });
        History {
            client: 4,
            writes: writes.collect(),
            ..History::default()
        }
    }

    fn found(node: &str, writes: &[u64], kept: u64) -> Found {
        Found {
            node: node.to_owned(),
            writes: writes.iter().map(|seq| (4, *seq)).collect(),
            kept: BTreeMap::from([(4, kept)]),
        }
    }

    fn acknowledged() -> Outcome {
        Outcome::Acknowledged { node: Some(0) }
    }

    fn list(entries: &[Entry]) -> Vec<(u64, Part, Vec<&str>)> {
        let one = |entry| {
            let Entry {
                seq, part, nodes, ..
            }: &Entry = entry;
            (*seq, *part, nodes.iter().map(String::as_str).collect())
        };
        entries.iter().map(one).collect()
    }

    #[test]
    fn a_row_that_one_node_lacks_is_a_lost_write_unless_the_log_names_it() {
        let histories = [history(&[acknowledged(), acknowledged(), acknowledged()])];
        let all = [found("a", &[1, 2, 3], 3), found("b", &[1, 2, 3], 3)];
        assert_eq!(audit(&histories, &all, &BTreeSet::new()), Audit::default());

        let holes = [found("a", &[1, 2, 3], 3), found("b", &[2], 3)];
        let result = audit(&histories, &holes, &BTreeSet::from([(4, 3)]));
        assert_eq!(list(&result.lost), [(1, Part::Insert, vec!["b"])]);
        assert_eq!(
            list(&result.lost_in_conflicts),
            [(3, Part::Insert, vec!["b"])]
        );
    }

    #[test]
    fn a_kept_row_that_went_back_is_a_lost_write_and_one_that_went_on_is_not() {
        let histories = [history(&[
            acknowledged(),
            acknowledged(),
            Outcome::unknown("lost"),
        ])];
        let back = [found("a", &[1, 2], 1), found("b", &[1, 2], 2)];
        let result = audit(&histories, &back, &BTreeSet::new());
        assert_eq!(list(&result.lost), [(2, Part::Update, vec!["a"])]);
        let on = [found("a", &[1, 2, 3], 3)];
        let result = audit(&histories, &on, &BTreeSet::new());
        assert_eq!((result.lost.len(), result.unknown.len()), (0, 1));
        // A node without the row at all is behind, too.
        let mut none = found("a", &[1, 2], 0);
        none.kept.clear();
        assert_eq!(audit(&histories, &[none], &BTreeSet::new()).lost.len(), 1);
    }

    #[test]
    fn a_refused_write_must_be_nowhere_and_an_unknown_one_everywhere_or_nowhere() {
        let histories = [history(&[
            Outcome::refused("40001"),
            Outcome::refused("40001"),
            Outcome::unknown("08007"),
            Outcome::unknown("08007"),
        ])];
        let equal = [found("a", &[2, 3], 3), found("b", &[2, 3], 3)];
        let result = audit(&histories, &equal, &BTreeSet::new());
        assert_eq!(
            list(&result.refused_yet_there),
            [(2, Part::Insert, vec!["a", "b"])]
        );
        let unknown = list(&result.unknown);
        assert_eq!(unknown[0], (3, Part::Insert, vec!["a", "b"]));
        assert_eq!(unknown[1], (4, Part::Insert, vec![]));
        assert!(!result.nodes_differ);
        let apart = [found("a", &[3], 3), found("b", &[], 3)];
        assert!(audit(&histories, &apart, &BTreeSet::new()).nodes_differ);
    }

    #[test]
    fn rows_of_a_node_are_read() {
        let row = |values: [&str; 3]| values.map(|value| Some(value.to_owned())).to_vec();
        let rows = [
            row(["4", "0", "2"]),
            row(["4", "1", "1"]),
            row(["4", "2", "2"]),
        ];
        assert_eq!(Found::read("a", &rows), found("a", &[1, 2], 2));
    }

    #[test]
    fn losers_are_those_of_this_run_whichever_side_lost() {
        let image = |run: &str, seq: &str, last: &str| json!({ "run": run, "client": "4", "seq": seq, "last": last });
        let line = |outcome: &str, local: Value, remote: Value| json!({ "relation": TABLE, "outcome": outcome, "local_image": local, "remote_image": remote });
        let conflicts = json!({ "conflicts": [
            line("local", image("9", "0", "8"), image("9", "0", "7")),
            line("remote", image("9", "5", "5"), image("9", "5", "5")),
            line("local", image("8", "0", "8"), image("8", "0", "3")),
            { "relation": "public.other", "outcome": "local", "remote_image": { "run": "9" } },
        ] });
        assert_eq!(losers(&conflicts, 9), BTreeSet::from([(4, 7), (4, 5)]));
    }
}
