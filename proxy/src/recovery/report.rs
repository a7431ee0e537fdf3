//! Owns the recovery report: what a node's loss has cost. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};
use tandem_replicator::{Moment, Tail, TailFigures, operator::Judged};

/// A node that is gone, or has come back and has yet to catch up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Absence {
    /// The placement's epoch with which its keys went elsewhere.
    pub(crate) epoch: u64,
    /// When it was found gone.
    pub(crate) down: Moment,
    /// When it was found back.
    pub(crate) back: Option<Moment>,
    /// What it had committed that nobody had read, as far as that was read since.
    pub(crate) tail: Tail,
}

/// What one absence of a node has come to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The node's name.
    pub(crate) node: String,
    /// The placement's epoch with which its keys went elsewhere.
    pub(crate) epoch: u64,
    /// When it was found gone, by the daemon's clock as the next two.
    pub(crate) down: String,
    /// When it was found back.
    pub(crate) back: String,
    /// When it had caught up both ways, and its keys were home again.
    pub(crate) caught_up: String,
    /// From the first to the last of these.
    pub(crate) took_ms: u64,
    /// What it had committed that nobody had read.
    pub(crate) tail: TailFigures,
    /// What became of that.
    #[serde(flatten)]
    pub(crate) judged: Judged,
    /// All of that in a sentence.
    pub(crate) told: String,
}

impl Report {
    /// That of an absence which ends now.
    pub(super) fn new(node: &str, absence: &Absence, now: Moment, judged: Judged) -> Report {
        let took = now.since(absence.down).as_millis();
        let tail = absence.tail.figures();
        Report {
            told: told(&tail, &judged),
            node: node.to_owned(),
            epoch: absence.epoch,
            down: absence.down.to_string(),
            back: absence.back.unwrap_or(now).to_string(),
            caught_up: now.to_string(),
            took_ms: u64::try_from(took).unwrap_or(u64::MAX),
            tail,
            judged,
        }
    }

    /// Whether it is known that every write of the tail is where it belongs, or has lost nothing.
    fn is_clean(&self) -> bool {
        let judged = &self.judged;
        let open = [
            judged.lost,
            judged.won_late,
            judged.pending,
            judged.shadowed,
            judged.quarantined,
        ];
        open == [0; 5] && self.is_complete()
    }

    /// Whether it tells all of the tail.
    pub(crate) fn is_complete(&self) -> bool {
        is_complete(&self.tail, &self.judged)
    }

    /// One line, without any row.
    pub(super) fn log(&self) {
        let (node, epoch, told) = (self.node.as_str(), self.epoch, self.told.as_str());
        let (down, back, caught_up) = (
            self.down.as_str(),
            self.back.as_str(),
            self.caught_up.as_str(),
        );
        let lsns = [&self.tail.from_lsn, &self.tail.to_lsn];
        let [from, to] = lsns.map(|lsn| lsn.as_deref().unwrap_or("-"));
        match self.is_clean() {
            true => tracing::info!(
                node,
                epoch,
                down,
                back,
                caught_up,
                from,
                to,
                told,
                "recovery report"
            ),
            false => tracing::warn!(
                node,
                epoch,
                down,
                back,
                caught_up,
                from,
                to,
                told,
                "recovery report"
            ),
        }
    }
}

fn is_complete(tail: &TailFigures, judged: &Judged) -> bool {
    tail.is_whole && !judged.is_cut && judged.problems.is_empty()
}

/// What has come of a tail, in a sentence without any row.
fn told(tail: &TailFigures, judged: &Judged) -> String {
    let mut parts = Vec::new();
    let rows = match tail.rows {
        0 => String::new(),
        rows => format!(" ({})", Counted(rows, "row")),
    };
    parts.push(format!(
        "tail of {}{rows}",
        Counted(tail.transactions, "transaction")
    ));
    parts.push(match judged.lost {
        0 if !is_complete(tail, judged) => "nothing known to be lost".to_owned(),
        0 if judged.won > 0 => "nothing of it lost".to_owned(),
        0 => "nothing lost".to_owned(),
        lost => format!("{} lost", Counted(lost, "row")),
    });
    if judged.won > 0 {
        let late = match judged.won_late {
            0 => String::new(),
            late => format!(" ({late} of them committed after the node was found gone)"),
        };
        let won = Counted(judged.won, "row");
        parts.push(format!("{won} won over other nodes' writes{late}"));
    }
    for (count, what) in [
        (tail.counters_merged, "with counters merged"),
        (judged.pending, "not decided yet"),
        (judged.shadowed, "shadowed"),
    ] {
        if count > 0 {
            parts.push(format!("{} {what}", Counted(count, "row")));
        }
    }
    if judged.quarantined > 0 {
        let refused = Counted(judged.quarantined, "transaction");
        parts.push(format!("{refused} quarantined"));
    }
    let mut doubts = vec![parts.join(", ")];
    if !tail.is_whole {
        let doubt = "an earlier daemon had read some of it, and died before that was counted";
        doubts.push(doubt.to_owned());
    }
    if judged.is_cut {
        doubts.push("there may be more than was counted".to_owned());
    }
    let not_asked = judged.problems.iter();
    doubts.extend(not_asked.map(|problem| format!("not asked: {problem}")));
    doubts.join("; ")
}

/// So many of something.
struct Counted(u64, &'static str);

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counted(count, what) = self;
        let plural = if *count == 1 { "" } else { "s" };
        write!(f, "{count} {what}{plural}")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The report of a node that had committed so many transactions.
    pub(crate) fn report(transactions: u64, judged: Judged) -> Report {
        let now = Moment::now();
        let absence = Absence {
            epoch: 7,
            down: now,
            back: None,
            tail: Tail::default(),
        };
        let tail = TailFigures {
            transactions,
            rows: transactions * 2,
            is_whole: true,
            ..TailFigures::default()
        };
        Report {
            told: told(&tail, &judged),
            tail,
            ..Report::new("paris", &absence, now, judged)
        }
    }

    #[test]
    fn that_nothing_is_lost_is_said_too() {
        let empty = report(0, Judged::default());
        assert_eq!(empty.told, "tail of 0 transactions, nothing lost");
        assert!(empty.is_clean());
        let won = Judged {
            won: 1,
            ..Judged::default()
        };
        let won = report(1, won);
        assert_eq!(
            won.told,
            "tail of 1 transaction (2 rows), nothing of it lost, 1 row won over other nodes' writes"
        );
        assert!(won.is_clean());
    }

    #[test]
    fn what_was_lost_is_told_and_what_is_not_known_is_not_denied() {
        let judged = Judged {
            lost: 3,
            won: 2,
            won_late: 1,
            shadowed: 1,
            quarantined: 1,
            ..Judged::default()
        };
        let lost = report(4, judged);
        assert_eq!(
            lost.told,
            "tail of 4 transactions (8 rows), 3 rows lost, 2 rows won over other nodes' writes (1 of them committed after \
             the node was found gone), 1 row shadowed, 1 transaction quarantined"
        );
        assert!(!lost.is_clean());
        let unknown = Judged {
            problems: vec!["oslo: refused".to_owned()],
            ..Judged::default()
        };
        let unknown = report(1, unknown);
        assert_eq!(
            unknown.told,
            "tail of 1 transaction (2 rows), nothing known to be lost; not asked: oslo: refused"
        );
        assert!(!unknown.is_clean());
    }

    #[test]
    fn a_report_reads_back_as_written() {
        let judged = Judged {
            lost: 1,
            not_listed: 1,
            ..Judged::default()
        };
        let report = report(2, judged);
        let text = serde_json::to_string(&report).expect("it can be written");
        let read: Report = serde_json::from_str(&text).expect("it can be read");
        assert_eq!(read, report);
    }
}
