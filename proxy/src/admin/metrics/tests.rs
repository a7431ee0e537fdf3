use std::{collections::BTreeMap, sync::Arc};

use tandem_replicator::{
    CaptureStatus, ClockStatus, JournalStatus, LinkStatus, NodeStatus as Replicated, RateStatus,
    SlotStatus, operator::Judged,
};

use super::{Text, render};
use crate::{
    admin::{ClientStatus, NodeStatus, Status},
    pool::figures::Figures,
    recovery::report::tests::report,
};

fn rates() -> RateStatus {
    RateStatus {
        transactions: Some(1.5),
        rows: None,
        bytes: Some(10.0),
    }
}

fn status() -> Status {
    let node = Replicated {
        name: "paris".into(),
        id: 1,
        state: "up",
        problem: None,
        capture_problem: None,
        clock: ClockStatus {
            offset_ms: Some(-1500.0),
            daemon_offset_ms: Some(-1500.0),
            error_ms: Some(0.05),
            fenced: Some("off".into()),
        },
        capture: CaptureStatus {
            transactions: 7,
            rows: 21,
            bytes: 2100,
            rates: rates(),
            lag_bytes: None,
        },
        journal: JournalStatus {
            bytes: 4096,
            memory_bytes: 512,
            first: None,
            last: None,
            slot_bytes: 0,
            carried: Vec::new(),
            problem: Some("full".into()),
        },
        slot: Some(SlotStatus {
            retained_bytes: 16_777_216,
            unconfirmed_bytes: 99,
            xid_age: Some(12),
            wal_status: Some("reserved".into()),
            safe_bytes: None,
        }),
    };
    let link = LinkStatus {
        source: "paris".into(),
        target: "os\"lo\\\n".into(),
        state: "blocked",
        problem: None,
        applied: "0/0".into(),
        durable: "0/0".into(),
        lag_bytes: 300,
        lag_transactions: None,
        lag_ms: Some(2500),
        rates: rates(),
        waiting: None,
        state_ms: 1250,
        transactions: 5,
        conflicts: 3,
        conflicts_by_type: BTreeMap::from([("insert_exists", 1), ("update_deleted", 2)]),
        quarantined: 2,
    };
    let judged = Judged {
        lost: 4,
        ..Judged::default()
    };
    Status {
        pid: 1,
        cluster: "bikes".into(),
        version: "0.1.0",
        files_refused: Vec::new(),
        epoch: 7,
        nodes: vec![NodeStatus {
            name: "paris".into(),
            id: 1,
            zone: None,
            host: "localhost".into(),
            port: 1,
            health: "up",
            usable: true,
            behind: true,
            problem: None,
            rtt_ms: Some(0.25),
            sessions: 3,
            connections: 5,
            handoff: None,
            recoveries: 2,
            recovery: Some(Arc::new(report(3, judged))),
        }],
        replication: tandem_replicator::Status {
            nodes: vec![node],
            links: vec![link],
        },
        clients: ClientStatus {
            current: 3,
            max: 100,
            idle: 1,
            in_transaction: 0,
            active: 2,
        },
        pools: Figures {
            pools: Vec::new(),
            servers: Vec::new(),
        },
        panics: 0,
    }
}

#[test]
fn every_figure_has_its_labels_and_what_is_not_known_is_left_out() {
    let text = render(&status(), &[], 4096);
    let target = r#"source="paris",target="os\"lo\\\n""#;
    for line in [
        r#"tandem_info{cluster="bikes",version="0.1.0"} 1"#,
        "tandem_clients 3",
        r#"tandem_sessions{state="active"} 2"#,
        r#"tandem_node_up{node="paris"} 1"#,
        r#"tandem_node_behind{node="paris"} 1"#,
        r#"tandem_node_state{node="paris",state="up"} 1"#,
        r#"tandem_node_state{node="paris",state="drained"} 0"#,
        r#"tandem_node_client_connections{node="paris"} 5"#,
        "tandem_placement_epoch 7",
        r#"tandem_recoveries_total{node="paris"} 2"#,
        r#"tandem_recovery_last_tail_transactions{node="paris"} 3"#,
        r#"tandem_recovery_last_rows{node="paris",outcome="lost"} 4"#,
        r#"tandem_node_round_trip_seconds{node="paris"} 0.00025"#,
        r#"tandem_node_clock_offset_seconds{node="paris"} -1.5"#,
        r#"tandem_node_fenced{node="paris"} 1"#,
        r#"tandem_capture_rows_total{node="paris"} 21"#,
        r#"tandem_journal_refuses{node="paris"} 1"#,
        r#"tandem_slot_retained_bytes{node="paris"} 16777216"#,
        &format!(r#"tandem_link_state{{{target},state="blocked"}} 1"#),
        &format!(r#"tandem_link_state{{{target},state="streaming"}} 0"#),
        &format!("tandem_link_state_seconds{{{target}}} 1.25"),
        &format!("tandem_link_lag_seconds{{{target}}} 2.5"),
        &format!(r#"tandem_link_conflicts_total{{{target},type="update_deleted"}} 2"#),
        &format!("tandem_link_quarantined_transactions{{{target}}} 2"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    for unknown in [
        "tandem_capture_lag_bytes{",
        "tandem_link_lag_transactions{",
        "tandem_slot_safe_bytes{",
    ] {
        assert!(!text.contains(unknown), "{unknown} in\n{text}");
    }
}

#[test]
fn each_family_is_told_once_with_its_type_and_counters_end_in_total() {
    let text = render(&status(), &[], 4096);
    let mut seen = Vec::new();
    let mut family = "";
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').expect("a type");
            assert!(name.starts_with("tandem_"), "{name}");
            assert_eq!(
                kind == "counter",
                name.ends_with("_total"),
                "{name} is a {kind}"
            );
            assert!(!seen.contains(&name), "{name} twice");
            assert!(text.contains(&format!("# HELP {name} ")), "{name}");
            seen.push(name);
            family = name;
        } else if !line.starts_with('#') {
            let end = line.find(['{', ' ']).expect("a value");
            assert_eq!(line.get(..end), Some(family), "{line}");
        }
    }
    assert!(seen.len() > 20);
}

#[test]
fn a_sample_without_labels_has_no_braces() {
    let mut text = Text::default();
    text.gauge("tandem_x", "X.", [([], 2)]);
    assert_eq!(
        text.0,
        "# HELP tandem_x X.\n# TYPE tandem_x gauge\ntandem_x 2\n"
    );
}
