//! What is found in writes, over texts.

use proptest::prelude::*;

use super::*;
use crate::decide::{SessionFacts, StatementReason};
use crate::model::NodeInfo;
use crate::statement::Values;
use crate::template::Template;

const RULES: &str = r#"
[placement.station]
strategy = "map"
map = { 7 = "oslo", 8 = "paris", 9 = "oslo" }
[[affinity]]
placement = "station"
tables = { bikes = "station_id", rentals = "station_id" }
cross_home = "reject"
[[affinity]]
placement = "station"
tables = { stations = "id" }
require_key = true
[default]
cross_home = "notice"
"#;

fn rules(text: &str) -> Rules {
    let node = |(id, name): (u16, &str)| NodeInfo {
        id,
        name: name.to_owned(),
        zone: None,
    };
    Rules::parse(text, &[(1, "paris"), (2, "oslo")].map(node)).expect("rules")
}

/// What is found in a text where its transaction stands on `at`.
fn found(rules: &Rules, at: u16, session_key: Option<&str>, sql: &str) -> Option<String> {
    let plan = Plan::of(sql, rules, None, &["public"]);
    assert_eq!(plan.refused, None, "{sql}");
    let mut template = Template::default();
    let shape = template.read(sql.as_bytes()).expect("SQL");
    let evidence = plan.evidence(&Values {
        literals: shape.literals,
        parameters: &[],
    });
    let nodes = [(1, "paris"), (2, "oslo")].map(|(id, name)| NodeView {
        id,
        name,
        zone: None,
        healthy: true,
        rtt_us: None,
        sessions: 0,
    });
    let cluster = ClusterView {
        nodes: &nodes,
        zone: None,
    };
    let facts = StatementFacts {
        session: SessionFacts {
            key: session_key,
            ..SessionFacts::default()
        },
        comment: shape.key,
        ..StatementFacts::default()
    };
    let finding = rules.find(&facts, &plan, evidence, at, &cluster)?;
    Some(match finding {
        Finding::CrossHome(policy, away) => format!("{policy:?}: {away}"),
        Finding::NoKey(because) => format!("no key: {because}"),
    })
}

#[test]
fn a_key_that_is_at_home_elsewhere_is_found_wherever_it_is_named() {
    let rules = rules(RULES);
    let at_oslo = |sql: &str| found(&rules, 2, None, sql);
    let away = |policy: &str| {
        let away = "key station:8 is at home on node paris (listed in the map)";
        Some(format!("{policy}: {away}"))
    };
    for sql in [
        "UPDATE bikes SET free = true WHERE station_id = 8",
        "INSERT INTO bikes (station_id) VALUES (7), (8)",
        "DELETE FROM rentals WHERE station_id IN (7, 9, 8)",
        "UPDATE bikes SET station_id = 8 WHERE station_id = 7",
        "WITH moved AS (DELETE FROM bikes WHERE station_id = 7 RETURNING *) \
         INSERT INTO rentals (station_id) VALUES (8)",
        "SELECT * FROM bikes WHERE station_id = 8 FOR UPDATE",
        // What any of its tables asks.
        "WITH a AS (DELETE FROM bikes WHERE station_id = 7) UPDATE stations SET n = 1 WHERE id = 8",
    ] {
        assert_eq!(at_oslo(sql), away("Reject"), "{sql}");
    }
    for sql in [
        "UPDATE stations SET n = 1 WHERE id = 8",
        "/* tandem.key='station:8' */ DELETE FROM log",
    ] {
        assert_eq!(at_oslo(sql), away("Notice"), "{sql}");
    }
    for sql in [
        "UPDATE bikes SET free = true WHERE station_id = 7",
        "DELETE FROM rentals WHERE station_id IN (7, 9)",
        "SELECT * FROM bikes WHERE station_id = 8",
        "INSERT INTO log VALUES (8)",
        // What is only read has no home to be written at.
        "UPDATE bikes SET free = true FROM stations WHERE station_id = 7 AND stations.id = 8",
        "CREATE TABLE made (a int)",
        "BEGIN",
    ] {
        assert_eq!(at_oslo(sql), None, "{sql}");
    }
    let of_session = |sql| found(&rules, 2, Some("station:8"), sql);
    assert_eq!(of_session("DELETE FROM log"), away("Notice"));
    // The statement knows better.
    assert_eq!(of_session("DELETE FROM bikes WHERE station_id = 7"), None);
}

#[test]
fn a_write_without_a_key_is_found_where_one_is_required() {
    let rules_of_tables = rules(RULES);
    let at = |sql: &str| found(&rules_of_tables, 2, None, sql);
    let not_said = "no key: it does not say which key of table stations";
    for sql in [
        "UPDATE stations SET n = n + 1",
        "SELECT * FROM stations FOR UPDATE",
    ] {
        assert_eq!(at(sql).as_deref(), Some(not_said), "{sql}");
    }
    for sql in [
        "UPDATE stations SET n = n + 1 WHERE id = 7",
        "/* tandem.key='station:7' */ UPDATE stations SET n = n + 1",
        "UPDATE bikes SET free = true",
        "INSERT INTO log VALUES (8)",
        "SELECT * FROM stations",
        "LOCK TABLE stations",
        "TRUNCATE bikes",
    ] {
        assert_eq!(at(sql), None, "{sql}");
    }
    let all = rules("[default]\nrequire_key = true\n");
    let at = |sql: &str| found(&all, 2, None, sql);
    let no_rule = Some("no key: no table of it has a rule".to_owned());
    for sql in ["INSERT INTO log VALUES (8)", "SELECT f()", "CALL p()"] {
        assert_eq!(at(sql), no_rule, "{sql}");
    }
    for sql in [
        "CREATE TABLE a (b int)",
        "SELECT pg_advisory_lock(1)",
        "SET a.b = 'c'",
        "COMMIT",
    ] {
        assert_eq!(at(sql), None, "{sql}");
    }
}

proptest! {
    // So what was decided by a key, with no other home, need not be examined again.
    #[test]
    fn what_is_decided_by_its_keys_reaches_over_homes_where_the_decision_says_so(
        keys in proptest::collection::btree_set(1i64..12, 1..4),
        first in 0usize..4,
        healthy in proptest::array::uniform3(any::<bool>()),
        serializable in proptest::bool::weighted(0.2),
    ) {
        prop_assume!(healthy.iter().any(|healthy| *healthy));
        let text = "[placement.station]\nstrategy = \"hash\"\n[[affinity]]\nplacement = \"station\"\ntables = { bikes = \"station_id\" }\n";
        let rules = rules(text);
        let plan = Plan::of("DELETE FROM bikes", &rules, None, &["public"]);
        let nodes = [(1, "paris", healthy[0]), (2, "oslo", healthy[1]), (3, "rome", healthy[2])].map(|(id, name, healthy)| {
            NodeView { id, name, zone: None, healthy, rtt_us: None, sessions: 0 }
        });
        let cluster = ClusterView { nodes: &nodes, zone: None };
        let mut keys: Vec<_> = keys.into_iter().map(|key| ("station", Key::Integer(key))).collect();
        let turn = first % keys.len();
        keys.rotate_left(turn);
        let evidence = match &keys[..] {
            [(placement, key)] => Evidence::Key { placement, key: key.clone() },
            _ => Evidence::Keys(keys.clone()),
        };
        let facts = StatementFacts { serializable, ..StatementFacts::default() };
        let decision = rules.decide_statement(&facts, &plan, evidence.clone(), &cluster).expect("a healthy node");
        let finding = rules.find(&facts, &plan, evidence, decision.node, &cluster);
        if matches!(decision.reason, StatementReason::Key { .. }) {
            prop_assert_eq!(finding.is_some(), decision.split.is_some());
        } else {
            let home = |key: &Key| rules.placements[0].home(key, &nodes).map(|home| home.node);
            let away = keys.iter().any(|(_, key)| home(key) != Some(decision.node));
            prop_assert_eq!(finding.is_some(), away);
        }
    }
}
