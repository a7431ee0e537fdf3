use proptest::prelude::*;

use super::*;
use crate::model::NodeInfo;
use crate::statement::PlannedTable;

const RULES: &str = r#"
[placement.station]
strategy = "hash"
[[session]]
match = { user = "batch" }
node = "rome"
"#;
const NODES: [(u16, &str); 3] = [(1, "paris"), (2, "oslo"), (3, "rome")];

fn rules(more: &str) -> Rules {
    let nodes = NODES.map(|(id, name)| NodeInfo {
        id,
        name: name.to_owned(),
        zone: None,
    });
    Rules::parse(&format!("{RULES}{more}"), &nodes).expect("rules")
}

/// The nearest is paris; the default home of database `app` is oslo (test vectors in rendezvous.rs).
fn nodes(down: &[u16]) -> Vec<NodeView<'static>> {
    let view = |(id, name): (u16, &'static str)| NodeView {
        id,
        name,
        zone: None,
        healthy: !down.contains(&id),
        rtt_us: Some(if id == 1 { 100 } else { 9_000 }),
        sessions: 0,
    };
    NODES.map(view).to_vec()
}

fn plan(class: Class, tables: &[(Access, Option<&str>)]) -> Plan {
    let table = |(access, placement): &(Access, Option<&str>)| PlannedTable {
        name: "t".into(),
        access: *access,
        placement: placement.map(Into::into),
        policy: None,
        writes_elsewhere: false,
    };
    Plan {
        class,
        because: "a test".into(),
        refused: None,
        locks_table: false,
        tables: tables.iter().map(table).collect(),
        keys: Box::default(),
        kept: Box::default(),
    }
}

fn key(key: i64) -> Evidence<'static> {
    Evidence::Key {
        placement: "station",
        key: Key::Integer(key),
    }
}

const NOTHING: Evidence<'static> = Evidence::None(NoKey::NoRule);

fn facts() -> StatementFacts<'static> {
    StatementFacts {
        session: SessionFacts {
            user: "app",
            database: "app",
            ..SessionFacts::default()
        },
        ..StatementFacts::default()
    }
}

fn decided(
    rules: &Rules,
    facts: StatementFacts<'_>,
    plan: &Plan,
    evidence: Evidence<'_>,
) -> String {
    let nodes = nodes(&[]);
    let cluster = ClusterView {
        nodes: &nodes,
        zone: None,
    };
    let decision = rules.decide_statement(&facts, plan, evidence, &cluster);
    decision.expect("a node is healthy").to_string()
}

fn write() -> Plan {
    plan(Class::Write, &[(Access::Write, Some("station"))])
}

fn read() -> Plan {
    plan(Class::Read, &[(Access::Read, Some("station"))])
}

/// The node that a key of `station` is at home on.
fn home(key: i64) -> &'static str {
    let nodes = nodes(&[]);
    let rules = rules("");
    let home = rules.placements[0].home(&Key::Integer(key), &nodes);
    let home = home.expect("a home").node;
    NODES.iter().find(|(id, _)| *id == home).expect("a node").1
}

#[test]
fn evidence_counts_in_its_order() {
    let rules = rules("");
    let mut facts = StatementFacts {
        comment: Some("station:5"),
        ..facts()
    };
    facts.session.key = Some("station:6");
    facts.session.user = "batch";
    let decide = |facts, evidence| decided(&rules, facts, &write(), evidence);
    let of = |key, by: &str| {
        format!(
            "node {}: home of key station:{key} (by hash), named by {by}",
            home(key)
        )
    };
    assert_eq!(
        decide(facts, key(4)),
        format!(
            "{}; `station:5` ignored: the statement itself names its keys",
            of(4, "the statement")
        )
    );
    assert_eq!(decide(facts, key(5)), of(5, "the statement"));
    assert_eq!(decide(facts, NOTHING), of(5, "its leading comment"));
    facts.comment = None;
    assert_eq!(decide(facts, NOTHING), of(6, "tandem.key"));
    facts.session.key = None;
    assert_eq!(
        decide(facts, NOTHING),
        "node rome: session rule 1 (user = batch)"
    );
    facts.session.user = "app";
    facts.last_home = Some(3);
    facts.transaction = Transaction::ReadWrite;
    assert_eq!(
        decide(facts, NOTHING),
        "node rome: where this session wrote last"
    );
    facts.transaction = Transaction::Autocommit;
    assert_eq!(
        decide(facts, NOTHING),
        "node oslo: default home: no table of it has a rule"
    );
    facts.comment = Some("nonsense");
    assert_eq!(
        decide(facts, NOTHING),
        "node oslo: default home: no table of it has a rule; tandem.key `nonsense` ignored: it is not placement:key"
    );
}

#[test]
fn a_write_without_a_key_goes_nearest_only_where_the_rules_say_so() {
    let nearest = rules("[default]\nwrite = \"nearest\"\n");
    let went = |plan: &Plan, evidence| decided(&nearest, facts(), plan, evidence);
    assert!(went(&write(), NOTHING).starts_with("node paris: nearest healthy node"));
    assert!(went(&write(), key(4)).starts_with(&format!("node {}: home of key", home(4))));
    // What has to be one place for all stays at the default home.
    let locks = plan(Class::Lock, &[(Access::Lock, None)]);
    assert!(went(&locks, NOTHING).starts_with("node oslo: default home"));
    assert!(went(&plan(Class::Ddl, &[]), NOTHING).starts_with("node oslo: default home"));
}

#[test]
fn what_must_see_all_of_its_kind_goes_to_the_default_home() {
    let rules = rules("");
    let mut facts = facts();
    facts.session.user = "batch";
    facts.session.key = Some("station:4");
    facts.last_home = Some(3);
    let serializable = StatementFacts {
        serializable: true,
        ..facts
    };
    let reason = "node oslo: default home: the transaction is SERIALIZABLE";
    assert_eq!(decided(&rules, serializable, &write(), key(4)), reason);
    assert_eq!(decided(&rules, serializable, &read(), NOTHING), reason);
    let mut table = plan(Class::Lock, &[(Access::Lock, None)]);
    table.locks_table = true;
    assert_eq!(
        decided(&rules, facts, &table, NOTHING),
        "node oslo: default home: LOCK TABLE"
    );
    let advisory = plan(Class::Lock, &[]);
    assert_eq!(
        decided(&rules, facts, &advisory, NOTHING),
        "node oslo: default home: it takes advisory locks"
    );
    for homed in [Homed::AdvisoryLock, Homed::Snapshot, Homed::LargeObject] {
        let homed = StatementFacts {
            homed: Some(homed),
            ..facts
        };
        let reason = format!(
            "node oslo: default home: that is where {} are",
            homed.homed.unwrap()
        );
        assert_eq!(decided(&rules, homed, &write(), key(4)), reason);
        let homed = StatementFacts {
            transaction: Transaction::ReadOnly,
            ..homed
        };
        assert_eq!(decided(&rules, homed, &read(), NOTHING), reason);
    }
    // FOR UPDATE: by a key if there is one, never by a session rule.
    let rows = plan(Class::Lock, &[(Access::Lock, None)]);
    facts.transaction = Transaction::ReadWrite;
    assert!(decided(&rules, facts, &rows, NOTHING).contains("named by tandem.key"));
    facts.session.key = None;
    assert!(decided(&rules, facts, &rows, NOTHING).starts_with("node oslo: default home"));
}

#[test]
fn reads_go_nearest_unless_somebody_says_otherwise() {
    let rules_nearest = rules("");
    let rules_home = rules("[read]\nroute = \"home\"\n");
    let mut facts = facts();
    facts.session.key = Some("station:6");
    let went = |rules: &Rules, facts, evidence| {
        let text = decided(rules, facts, &read(), evidence);
        text.split(" (").next().unwrap_or_default().to_owned()
    };
    assert_eq!(
        went(&rules_nearest, facts, key(4)),
        "node paris: nearest healthy node"
    );
    assert_eq!(
        went(&rules_home, facts, key(4)),
        format!("node {}: home of key station:4", home(4))
    );
    assert_eq!(
        went(&rules_home, facts, NOTHING),
        format!("node {}: home of key station:6", home(6))
    );
    facts.comment = Some("station:5");
    assert_eq!(
        went(&rules_nearest, facts, NOTHING),
        format!("node {}: home of key station:5", home(5))
    );
    facts.comment = None;
    facts.session.user = "batch";
    assert_eq!(
        went(&rules_nearest, facts, key(4)),
        "node rome: session rule 1"
    );
    facts.session.user = "app";
    facts.transaction = Transaction::ReadWrite;
    assert_eq!(
        went(&rules_nearest, facts, key(4)),
        format!("node {}: home of key station:4", home(4))
    );
    facts.session.key = None;
    assert_eq!(
        went(&rules_nearest, facts, NOTHING),
        "node oslo: default home: no table of it has a rule"
    );
    facts.transaction = Transaction::ReadOnly;
    assert_eq!(
        went(&rules_nearest, facts, key(4)),
        "node paris: nearest healthy node"
    );
    // Under `route = "home"` a table without a rule is at home on the default home.
    let other = plan(Class::Read, &[(Access::Read, None)]);
    assert!(decided(&rules_home, facts, &other, NOTHING).starts_with("node oslo: default home"));
    let none = plan(Class::Read, &[]);
    assert!(decided(&rules_home, facts, &none, NOTHING).starts_with("node paris: nearest"));
}

#[test]
fn keys_with_different_homes_are_said_to_be_split() {
    let rules = rules("");
    let nodes = nodes(&[]);
    let cluster = ClusterView {
        nodes: &nodes,
        zone: None,
    };
    let keys: Vec<i64> = (0..20).collect();
    let first = home(keys[0]);
    let same = *keys
        .iter()
        .skip(1)
        .find(|key| home(**key) == first)
        .expect("same home");
    let other = *keys
        .iter()
        .find(|key| home(**key) != first)
        .expect("another home");
    let split = |keys: &[i64]| {
        let keys = keys.iter().map(|key| ("station", Key::Integer(*key)));
        let evidence = Evidence::Keys(keys.collect());
        let decision = rules.decide_statement(&facts(), &write(), evidence, &cluster);
        let decision = decision.expect("a node is healthy");
        assert_eq!(decision.node_name, first);
        decision.split.is_some()
    };
    assert!(!split(&[keys[0], same]));
    assert!(split(&[keys[0], same, other]));
}

#[test]
fn without_a_healthy_node_there_is_no_decision() {
    let nodes = nodes(&[1, 2, 3]);
    let cluster = ClusterView {
        nodes: &nodes,
        zone: None,
    };
    for plan in [write(), read(), plan(Class::Lock, &[])] {
        let rules = rules("");
        let decision = rules.decide_statement(&facts(), &plan, key(1), &cluster);
        assert_eq!(decision, Err(NoHealthyNode));
    }
}

fn any_class() -> impl Strategy<Value = Class> {
    prop_oneof![
        Just(Class::Transaction),
        Just(Class::Session),
        Just(Class::Read),
        Just(Class::Lock),
        Just(Class::Write),
        Just(Class::Ddl),
        Just(Class::Unknown),
    ]
}

fn any_evidence() -> impl Strategy<Value = Evidence<'static>> {
    prop_oneof![
        Just(NOTHING),
        (0..50_i64).prop_map(key),
        Just(Evidence::Key {
            placement: "gone",
            key: Key::Integer(1)
        }),
        proptest::collection::vec(0..50_i64, 2..5).prop_map(|keys| {
            let keys = keys.into_iter().map(|key| ("station", Key::Integer(key)));
            Evidence::Keys(keys.collect())
        }),
    ]
}

proptest! {
    #[test]
    fn a_decision_is_a_healthy_node_and_depends_on_no_order(
        class in any_class(),
        evidence in any_evidence(),
        lock in any::<bool>(),
        down in proptest::collection::vec(1_u16..4, 0..3),
        turn in 0_usize..3,
        comment in proptest::option::of("(station|x):[0-9]{1,2}|.{0,5}"),
        key in proptest::option::of("(station|x):[0-9]{1,2}|.{0,5}"),
        last in proptest::option::of(0_u16..5),
        kind in 0..3,
        serializable: bool,
        more in 0_usize..3,
    ) {
        let rules = rules(["", "[default]\nwrite = \"nearest\"\n", "[read]\nroute = \"home\"\n"][more]);
        let mut plan = plan(class, &[(Access::Write, Some("station")), (Access::Read, None)]);
        plan.locks_table = lock;
        let transaction = [Transaction::Autocommit, Transaction::ReadWrite, Transaction::ReadOnly];
        let mut facts = StatementFacts {
            comment: comment.as_deref(),
            transaction: transaction[usize::try_from(kind).unwrap()],
            serializable,
            last_home: last,
            ..facts()
        };
        facts.session.key = key.as_deref();
        let straight = nodes(&down);
        let mut turned = straight.clone();
        turned.rotate_left(turn);
        let decide = |nodes: &[NodeView<'_>]| {
            let cluster = ClusterView { nodes, zone: None };
            let decision = rules.decide_statement(&facts, &plan, evidence.clone(), &cluster);
            decision.map(|decision| (decision.node, decision.write, decision.to_string()))
        };
        let (one, other) = (decide(&straight), decide(&turned));
        prop_assert_eq!(&one, &other);
        match one {
            Ok((node, write, _)) => {
                prop_assert!(straight.iter().any(|known| known.id == node && known.healthy));
                prop_assert_eq!(write, class.is_write());
            }
            Err(NoHealthyNode) => prop_assert!(straight.iter().all(|node| !node.healthy)),
        }
    }
}
