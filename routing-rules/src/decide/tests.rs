use super::*;
use crate::model::NodeInfo;
use proptest::prelude::*;

const RULES: &str = r#"
[placement.station]
strategy = "hash"
[placement.country]
strategy = "map"
map = { FR = "paris", NO = "oslo" }
[[session]]
match = { user = "batch", application_name = "nightly-*" }
node = "paris"
[[session]]
match = { user = "batch" }
node = "rome"
"#;

fn rules() -> Rules {
    let node = |id, name: &str, zone: &str| NodeInfo {
        id,
        name: name.to_owned(),
        zone: Some(zone.to_owned()),
    };
    let nodes = [
        node(1, "paris", "eu"),
        node(2, "oslo", "eu"),
        node(3, "rome", "south"),
    ];
    Rules::parse(RULES, &nodes).unwrap()
}

fn nodes() -> Vec<NodeView<'static>> {
    let node = |id, name, zone| NodeView {
        id,
        name,
        zone: Some(zone),
        healthy: true,
        rtt_us: Some(500),
        sessions: 0,
    };
    vec![
        node(1, "paris", "eu"),
        node(2, "oslo", "eu"),
        node(3, "rome", "south"),
    ]
}

fn decide(facts: &SessionFacts<'_>, nodes: &[NodeView<'_>], zone: Option<&str>) -> Decision {
    decide_session(&rules(), facts, &ClusterView { nodes, zone }).unwrap()
}

const APP: SessionFacts<'_> = SessionFacts {
    user: "app",
    database: "app",
    application_name: None,
    key: None,
    client: None,
    options: &[],
};

#[test]
fn the_first_session_rule_that_matches_names_the_node() {
    let nightly = SessionFacts {
        user: "batch",
        application_name: Some("nightly-load"),
        ..APP
    };
    let decision = decide(&nightly, &nodes(), None);
    assert_eq!(
        decision.to_string(),
        "node paris: session rule 1 (user = batch, application_name = nightly-*)"
    );
    let other = SessionFacts {
        user: "batch",
        ..APP
    };
    assert_eq!(
        decide(&other, &nodes(), None).to_string(),
        "node rome: session rule 2 (user = batch)"
    );
}

#[test]
fn a_rule_whose_node_is_down_is_passed_over_and_said() {
    let mut nodes = nodes();
    nodes[2].healthy = false;
    let decision = decide(
        &SessionFacts {
            user: "batch",
            ..APP
        },
        &nodes,
        None,
    );
    assert_eq!(decision.node, 1);
    assert_eq!(
        decision.passed_over,
        [PassedOver::RuleNodeDown {
            rule: 2,
            node: "rome".to_owned()
        }]
    );
    assert!(
        decision
            .to_string()
            .ends_with("; session rule 2 not followed: node rome is down"),
        "{decision}"
    );
}

#[test]
fn tandem_key_wins_over_a_session_rule() {
    let facts = SessionFacts {
        user: "batch",
        key: Some("country:NO"),
        ..APP
    };
    assert_eq!(
        decide(&facts, &nodes(), None).to_string(),
        "node oslo: home of key country:NO (listed in the map)"
    );
    let hashed = decide(
        &SessionFacts {
            key: Some("station:42"),
            ..APP
        },
        &nodes(),
        None,
    );
    let because = HomeReason::Hash;
    let wanted = Reason::Key {
        placement: "station".to_owned(),
        key: Key::Integer(42),
        because,
    };
    assert_eq!(hashed.reason, wanted);
}

#[test]
fn a_key_that_cannot_be_used_is_said_and_the_next_evidence_counts() {
    let unknown = decide(
        &SessionFacts {
            key: Some("sattion:42"),
            ..APP
        },
        &nodes(),
        None,
    );
    assert_eq!(
        unknown.passed_over,
        [PassedOver::UnknownPlacement {
            placement: "sattion".to_owned()
        }]
    );
    assert!(matches!(unknown.reason, Reason::Nearest { .. }));
    let bare = decide(
        &SessionFacts {
            key: Some("42\nforged"),
            user: "batch",
            ..APP
        },
        &nodes(),
        None,
    );
    assert_eq!(bare.node, 3);
    assert!(bare.to_string().contains(r"`42\nforged` ignored"), "{bare}");
}

/// What is shown, round trips, sessions, healthy, the proxy's zone, the node wanted.
type Row = (
    &'static str,
    [Option<u32>; 3],
    [u32; 3],
    [bool; 3],
    Option<&'static str>,
    u16,
);

#[test]
fn the_nearest_node_is_chosen_by_zone_then_round_trip_then_sessions() {
    let table: [Row; 12] = [
        (
            "same zone beats a shorter trip",
            [Some(9_000), Some(90_000), Some(100)],
            [0; 3],
            [true; 3],
            Some("eu"),
            1,
        ),
        (
            "a zone nobody stands in",
            [Some(9_000), Some(90_000), Some(100)],
            [0; 3],
            [true; 3],
            Some("mars"),
            3,
        ),
        (
            "zone without healthy nodes",
            [Some(1); 3],
            [0, 0, 9],
            [false, false, true],
            Some("eu"),
            3,
        ),
        (
            "shortest trip",
            [Some(9_000), Some(5_000), Some(20_000)],
            [0; 3],
            [true; 3],
            None,
            2,
        ),
        (
            "within 1 ms shares by sessions",
            [Some(100), Some(1_100), Some(1_101)],
            [5, 2, 0],
            [true; 3],
            None,
            2,
        ),
        (
            "beyond 1 ms does not",
            [Some(100), Some(1_101), Some(1_101)],
            [5, 2, 0],
            [true; 3],
            None,
            1,
        ),
        (
            "within 20 % of a long trip",
            [Some(50_000), Some(60_000), Some(60_001)],
            [5, 2, 0],
            [true; 3],
            None,
            2,
        ),
        (
            "ties go to the lowest id",
            [Some(500); 3],
            [3; 3],
            [true; 3],
            None,
            1,
        ),
        (
            "the down one is never chosen",
            [Some(1), Some(50_000), Some(90_000)],
            [0; 3],
            [false, true, true],
            None,
            2,
        ),
        (
            "unmeasured is farther than measured",
            [None, Some(900_000), None],
            [0, 7, 0],
            [true; 3],
            None,
            2,
        ),
        (
            "nothing measured shares by sessions",
            [None; 3],
            [2, 1, 3],
            [true; 3],
            None,
            2,
        ),
        (
            "the longest trip there is",
            [Some(u32::MAX), Some(u32::MAX), None],
            [1, 0, 0],
            [true; 3],
            None,
            2,
        ),
    ];
    for (what, rtt, sessions, healthy, zone, wanted) in table {
        let mut nodes = nodes();
        for (index, node) in nodes.iter_mut().enumerate() {
            (node.rtt_us, node.sessions, node.healthy) =
                (rtt[index], sessions[index], healthy[index]);
        }
        assert_eq!(decide(&APP, &nodes, zone).node, wanted, "{what}");
    }
}

#[test]
fn reasons_read_as_sentences() {
    let mut nodes = nodes();
    nodes[1].rtt_us = Some(80_000);
    let text = |nodes: &[NodeView<'_>], zone| decide(&APP, nodes, zone).to_string();
    assert_eq!(
        text(&nodes, None),
        "node paris: nearest healthy node (round trip 0.500 ms, fewest sessions of 2 equally near)"
    );
    assert_eq!(
        text(&nodes, Some("eu")),
        "node paris: nearest healthy node (same zone, round trip 0.500 ms)"
    );
    nodes[0].healthy = false;
    let facts = SessionFacts {
        key: Some("country:FR"),
        ..APP
    };
    let decision = decide(&facts, &nodes, None);
    assert!(
        decision
            .to_string()
            .contains("by hash, because node id 1 is down"),
        "{decision}"
    );
}

#[test]
fn without_a_healthy_node_there_is_no_decision() {
    let mut nodes = nodes();
    nodes.iter_mut().for_each(|node| node.healthy = false);
    let facts = SessionFacts {
        user: "batch",
        key: Some("station:1"),
        ..APP
    };
    assert_eq!(
        decide_session(
            &rules(),
            &facts,
            &ClusterView {
                nodes: &nodes,
                zone: None
            }
        ),
        Err(NoHealthyNode)
    );
    assert_eq!(
        decide_session(
            &rules(),
            &facts,
            &ClusterView {
                nodes: &[],
                zone: None
            }
        ),
        Err(NoHealthyNode)
    );
}

#[test]
fn a_match_covers_what_is_narrower() {
    let of = |user: Option<&str>, database: Option<&str>| SessionMatch {
        user: user.map(Pattern::new),
        database: database.map(Pattern::new),
        ..SessionMatch::default()
    };
    assert!(of(Some("a"), None).covers(&of(Some("a"), Some("d"))));
    assert!(of(Some("*"), None).covers(&of(None, Some("d"))));
    assert!(!of(Some("a"), Some("d")).covers(&of(Some("a"), None)));
    assert!(!of(Some("a*"), None).covers(&of(Some("b*"), None)));

    let from = |client: &str, options: &[(&str, &str)]| SessionMatch {
        client: client.parse().ok(),
        options: options
            .iter()
            .map(|(name, pattern)| ((*name).to_owned(), Pattern::new(*pattern)))
            .collect(),
        ..SessionMatch::default()
    };
    assert!(from("10.0.0.0/8", &[]).covers(&from("10.1.0.0/16", &[("a", "x")])));
    assert!(!from("10.1.0.0/16", &[]).covers(&from("10.0.0.0/8", &[])));
    assert!(!from("10.0.0.0/8", &[]).covers(&of(Some("a"), None)));
    assert!(from("", &[("a", "x")]).covers(&from("", &[("a", "x"), ("b", "y")])));
    assert!(!from("", &[("a", "x")]).covers(&from("", &[("a", "x*")])));
    assert!(from("", &[("a", "*")]).covers(&of(Some("a"), None)));
}

#[test]
fn a_session_is_known_by_where_it_comes_from_and_by_what_its_startup_message_sets() {
    let source = "[[session]]\nmatch = { client = \"10.0.0.0/8\", options = { \"Tandem.Role\" = \"report*\" } }\nnode = \"rome\"\n\
         [[session]]\nmatch = { client = \"2001:db8::/32\" }\nnode = \"oslo\"\n";
    let infos: Vec<NodeInfo> = nodes()
        .iter()
        .map(|node| NodeInfo {
            id: node.id,
            name: node.name.to_owned(),
            zone: None,
        })
        .collect();
    let rules = Rules::parse(source, &infos).unwrap();
    let nodes = nodes();
    let cluster = ClusterView {
        nodes: &nodes,
        zone: None,
    };
    let option = |name: &str, value: &str| (Box::from(name), Box::from(value));
    let goes = |client: Option<&str>, options: &[(Box<str>, Box<str>)]| {
        let facts = SessionFacts {
            client: client.map(|client| client.parse().unwrap()),
            options,
            ..APP
        };
        decide_session(&rules, &facts, &cluster)
            .unwrap()
            .to_string()
    };
    let report = [
        option("tandem.role", "other"),
        option("TANDEM.ROLE", "reports"),
    ];
    assert_eq!(
        goes(Some("10.7.0.1"), &report),
        "node rome: session rule 1 (client = 10.0.0.0/8, tandem.role = report*)"
    );
    assert_eq!(
        goes(Some("2001:db8::7"), &[]),
        "node oslo: session rule 2 (client = 2001:db8::/32)"
    );
    // From elsewhere, without the setting, by another value, by a unix socket.
    for (client, options) in [
        (Some("11.0.0.1"), &report[..]),
        (Some("10.7.0.1"), &[]),
        (Some("10.7.0.1"), &report[..1]),
        (None, &report[..]),
    ] {
        let way = goes(client, options);
        assert!(way.contains("nearest healthy node"), "{way}");
    }
}

fn any_nodes() -> impl Strategy<Value = Vec<NodeView<'static>>> {
    let zone = proptest::option::of(proptest::sample::select(vec!["eu", "us"]));
    let rtt = proptest::option::of(0u32..20_000);
    let node = (zone, proptest::bool::weighted(0.8), rtt, 0u32..5);
    proptest::collection::btree_map(1u16..40, node, 0..8).prop_map(|nodes| {
        let view = |(id, (zone, healthy, rtt_us, sessions))| NodeView {
            id,
            name: "n",
            zone,
            healthy,
            rtt_us,
            sessions,
        };
        nodes.into_iter().map(view).collect()
    })
}

proptest! {
    #[test]
    fn the_order_of_nodes_means_nothing(nodes in any_nodes(), turn in 0usize..8, zone in proptest::option::of(Just("eu")), key in proptest::option::of("(station|country):[a-z0-9]{0,4}")) {
        let rules = rules();
        let facts = SessionFacts { key: key.as_deref(), ..APP };
        let decision = decide_session(&rules, &facts, &ClusterView { nodes: &nodes, zone });
        let mut turned = nodes.clone();
        turned.rotate_left(turn % nodes.len().max(1));
        turned.reverse();
        prop_assert_eq!(decide_session(&rules, &facts, &ClusterView { nodes: &turned, zone }), decision);
    }

    #[test]
    fn a_decision_is_a_healthy_node_whenever_there_is_one(nodes in any_nodes(), user in "batch|app", key in ".{0,10}") {
        let facts = SessionFacts { user: &user, key: Some(&key), ..APP };
        match decide_session(&rules(), &facts, &ClusterView { nodes: &nodes, zone: Some("us") }) {
            Ok(decision) => prop_assert!(nodes.iter().any(|node| node.id == decision.node && node.healthy)),
            Err(NoHealthyNode) => prop_assert!(nodes.iter().all(|node| !node.healthy)),
        }
    }

    #[test]
    fn a_node_that_goes_down_moves_only_its_own_keys(nodes in any_nodes(), key in "station:[0-9]{1,4}", down in 0usize..8) {
        prop_assume!(nodes.iter().filter(|node| node.healthy).count() > 1);
        let facts = SessionFacts { key: Some(&key), ..APP };
        let home = |nodes: &[NodeView<'_>]| decide_session(&rules(), &facts, &ClusterView { nodes, zone: None }).unwrap().node;
        let before = home(&nodes);
        let mut after = nodes.clone();
        let index = down % nodes.len();
        after[index].healthy = false;
        prop_assume!(after.iter().any(|node| node.healthy));
        if nodes[index].id != before { prop_assert_eq!(home(&after), before) }
    }
}
