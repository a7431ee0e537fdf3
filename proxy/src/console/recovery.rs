//! Owns what the console shows of recoveries: a line for each, and the rows that met other nodes' writes. Pure.

use std::sync::Arc;

use tandem_replicator::operator::JudgedRow;

use super::answer::{Row, json_rows, text, yes_no};
use crate::recovery::{Known, Report};

/// Columns of SHOW RECOVERY.
pub(super) const RECOVERY: &[&str] = &[
    "node",
    "state",
    "epoch",
    "down",
    "back",
    "caught_up",
    "transactions",
    "rows",
    "first_commit",
    "last_commit",
    "from_lsn",
    "to_lsn",
    "lost",
    "won",
    "won_late",
    "counters_merged",
    "shadowed",
    "quarantined",
    "pending",
    "not_listed",
    "complete",
    "told",
];

/// Columns of SHOW RECOVERY_ROWS: what the report's row has, behind the node and when it was found gone.
pub(super) const ROWS: &[&str] = &[
    "node",
    "down",
    "outcome",
    "id",
    "relation",
    "type",
    "image",
    "timestamp",
    "other_image",
    "other_timestamp",
    "other_node",
];

/// Rows of SHOW RECOVERY: of each node what is not over yet, then its reports, the newest first.
pub(super) fn recoveries<'a>(nodes: impl Iterator<Item = (&'a str, Known)>) -> Vec<Row> {
    let of_node = |(name, known): (&str, Known)| {
        let open = known.absence.map(|absence| {
            let state = match absence.back {
                None => "away",
                Some(_) => "catching_up",
            };
            let mut row = vec![
                text(name),
                text(state),
                text(&absence.epoch),
                text(&absence.down),
                absence.back.map(|back| back.to_string()),
            ];
            row.resize(RECOVERY.len(), None);
            row
        });
        let reports = known.reports.into_iter().rev();
        open.into_iter()
            .chain(reports.map(|report| reported(&report)))
            .collect::<Vec<_>>()
    };
    nodes.flat_map(of_node).collect()
}

fn reported(report: &Report) -> Row {
    let (tail, judged) = (&report.tail, &report.judged);
    vec![
        text(&report.node),
        text("caught_up"),
        text(&report.epoch),
        text(&report.down),
        text(&report.back),
        text(&report.caught_up),
        text(&tail.transactions),
        text(&tail.rows),
        tail.first_commit.clone(),
        tail.last_commit.clone(),
        tail.from_lsn.clone(),
        tail.to_lsn.clone(),
        text(&judged.lost),
        text(&judged.won),
        text(&judged.won_late),
        text(&tail.counters_merged),
        text(&judged.shadowed),
        text(&judged.quarantined),
        text(&judged.pending),
        text(&judged.not_listed),
        yes_no(report.is_complete()),
        text(&report.told),
    ]
}

/// Rows of SHOW RECOVERY_ROWS: of these reports.
pub(super) fn rows(reports: impl Iterator<Item = Arc<Report>>) -> Vec<Row> {
    let of_report = |report: Arc<Report>| {
        let columns = ROWS.get(2..).unwrap_or_default();
        let listed: &[JudgedRow] = &report.judged.rows;
        let rows = json_rows(listed, columns).into_iter();
        let rows = rows.map(|row| {
            let begin = [text(&report.node), text(&report.down)];
            begin.into_iter().chain(row).collect::<Row>()
        });
        rows.collect::<Vec<_>>()
    };
    reports.flat_map(of_report).collect()
}

#[cfg(test)]
mod tests {
    use tandem_replicator::{Moment, Tail, operator::Judged};

    use super::*;
    use crate::recovery::report::{Absence, tests::report};

    #[test]
    fn what_is_not_over_comes_first_and_then_the_newest() {
        let absence = Absence {
            epoch: 9,
            down: Moment::now(),
            back: None,
            tail: Tail::default(),
        };
        let made = [1, 2].map(|transactions| Arc::new(report(transactions, Judged::default())));
        let known = Known {
            absence: Some(absence),
            made: 2,
            reports: made.to_vec(),
        };
        let shown = recoveries([("paris", known)].into_iter());
        assert!(shown.iter().all(|row| row.len() == RECOVERY.len()));
        let states: Vec<_> = shown
            .iter()
            .map(|row| [row[1].as_deref(), row[6].as_deref()])
            .collect();
        let done = Some("caught_up");
        assert_eq!(
            states,
            [[Some("away"), None], [done, Some("2")], [done, Some("1")]]
        );
    }

    #[test]
    fn rows_are_shown_with_both_images() {
        let row = JudgedRow {
            id: "n2/7".parse().expect("an id"),
            outcome: "lost".to_owned(),
            relation: "public.t".to_owned(),
            kind: "update_origin_differs".to_owned(),
            image: Some(serde_json::json!({ "id": "1" })),
            timestamp: Some("then".to_owned()),
            other_image: None,
            other_timestamp: Some("later".to_owned()),
            other_node: Some("n2".to_owned()),
        };
        let judged = Judged {
            lost: 1,
            rows: vec![row],
            ..Judged::default()
        };
        let shown = rows([Arc::new(report(1, judged))].into_iter());
        let cells: Vec<_> = shown[0]
            .iter()
            .skip(2)
            .map(|cell| cell.as_deref().unwrap_or("-"))
            .collect();
        assert_eq!(
            cells,
            [
                "lost",
                "n2/7",
                "public.t",
                "update_origin_differs",
                "{\"id\":\"1\"}",
                "then",
                "-",
                "later",
                "n2"
            ]
        );
    }
}
