use super::*;
use crate::model::{NodeInfo, Rules};

fn view(id: u16, name: &'static str, zone: Option<&'static str>) -> NodeView<'static> {
    NodeView {
        id,
        name,
        zone,
        healthy: true,
        rtt_us: None,
        sessions: 0,
    }
}

fn nodes() -> Vec<NodeView<'static>> {
    vec![
        view(1, "paris", Some("eu")),
        view(2, "oslo", Some("eu")),
        view(3, "lima", Some("sa")),
        view(4, "rome", None),
    ]
}

fn home(placement: &str, key: &Key, nodes: &[NodeView<'_>]) -> (u16, HomeReason) {
    let info = |node: &NodeView<'_>| NodeInfo {
        id: node.id,
        name: node.name.to_owned(),
        zone: node.zone.map(str::to_owned),
    };
    let infos: Vec<NodeInfo> = nodes.iter().map(info).collect();
    let rules = Rules::parse(&format!("[placement.p]\n{placement}"), &infos).unwrap();
    let home = rules.placement("p").unwrap().home(key, nodes).unwrap();
    (home.node, home.because)
}

fn down(id: u16) -> Vec<NodeView<'static>> {
    let mut nodes = nodes();
    nodes
        .iter_mut()
        .filter(|node| node.id == id)
        .for_each(|node| node.healthy = false);
    nodes
}

#[test]
fn two_spellings_of_an_integer_are_one_key() {
    assert_eq!(Key::from_text("007"), Key::Integer(7));
    assert_eq!(Key::from_text("+7"), Key::Integer(7));
    assert_eq!(Key::from_text("-0"), Key::Integer(0));
    assert_eq!(Key::from_text("7a"), Key::Text("7a".to_owned()));
    assert_eq!(
        Key::from_text("9223372036854775808"),
        Key::Text("9223372036854775808".to_owned())
    );
}

#[test]
fn a_map_sends_listed_keys_home_and_the_others_otherwise() {
    let rules =
        "strategy = \"map\"\nmap = { FR = \"paris\", 007 = \"oslo\" }\notherwise = \"lima\"";
    assert_eq!(
        home(rules, &Key::from_text("FR"), &nodes()),
        (1, HomeReason::Map)
    );
    assert_eq!(
        home(rules, &Key::Integer(7), &nodes()),
        (2, HomeReason::Map)
    );
    assert_eq!(
        home(rules, &Key::from_text("PE"), &nodes()),
        (3, HomeReason::Otherwise)
    );
    let without = "strategy = \"map\"\nmap = { FR = \"paris\" }";
    assert_eq!(
        home(without, &Key::from_text("PE"), &nodes()).1,
        HomeReason::HashOfUnlisted
    );
}

#[test]
fn a_range_holds_its_lower_bound_and_not_its_upper_one() {
    let rules = "strategy = \"range\"\nranges = [{ to = 10, node = \"paris\" }, { from = 10, to = 20, node = \"oslo\" }, \
                 { from = \"a\", to = \"n\", node = \"lima\" }]\notherwise = \"rome\"";
    let of = |key: &str| home(rules, &Key::from_text(key), &nodes());
    assert_eq!(of("-5"), (1, HomeReason::Range));
    assert_eq!(of("9"), (1, HomeReason::Range));
    assert_eq!(of("10"), (2, HomeReason::Range));
    assert_eq!(of("20"), (4, HomeReason::Otherwise));
    assert_eq!(of("b"), (3, HomeReason::Range));
    assert_eq!(of("n"), (4, HomeReason::Otherwise));
}

#[test]
fn a_column_names_a_node_or_a_zone() {
    let by_node = "strategy = \"column\"\notherwise = \"rome\"";
    assert_eq!(
        home(by_node, &Key::from_text("oslo"), &nodes()),
        (2, HomeReason::Column)
    );
    assert_eq!(
        home(by_node, &Key::Integer(3), &nodes()),
        (3, HomeReason::Column)
    );
    assert_eq!(
        home(by_node, &Key::from_text("berlin"), &nodes()),
        (4, HomeReason::Otherwise)
    );
    let by_zone = "strategy = \"column\"\nnames = \"zone\"";
    let eu = home(by_zone, &Key::from_text("eu"), &nodes());
    assert!(matches!(eu, (1 | 2, HomeReason::Column)), "{eu:?}");
    let other = home(by_zone, &Key::from_text("eu"), &down(eu.0));
    assert!(
        matches!(other, (1 | 2, HomeReason::Column)) && other.0 != eu.0,
        "{other:?}"
    );
}

#[test]
fn a_single_placement_has_one_home_for_all_keys() {
    let named = "strategy = \"single\"\nnode = \"lima\"";
    assert_eq!(
        home(named, &Key::Integer(1), &nodes()),
        (3, HomeReason::Single)
    );
    let chosen = "strategy = \"single\"";
    let first = home(chosen, &Key::Integer(1), &nodes());
    assert!((2..50).all(|key| home(chosen, &Key::Integer(key), &nodes()) == first));
}

#[test]
fn the_keys_of_a_node_that_is_down_spread_over_the_rest_by_hash() {
    let rules = "strategy = \"single\"\nnode = \"lima\"";
    let (node, because) = home(rules, &Key::Integer(1), &down(3));
    assert_ne!(node, 3);
    assert_eq!(because, HomeReason::HomeDown { proper: 3 });
}

#[test]
fn a_hash_keeps_to_its_nodes_while_one_of_them_is_healthy() {
    let rules = "strategy = \"hash\"\nnodes = [\"paris\", \"oslo\"]\nweights = { paris = 3 }";
    let homes = |nodes: &[NodeView<'_>]| {
        let mut counts = [0; 5];
        (0..400).for_each(|key| counts[usize::from(home(rules, &Key::Integer(key), nodes).0)] += 1);
        counts
    };
    let counts = homes(&nodes());
    assert_eq!((counts[3], counts[4]), (0, 0));
    assert!((250..350).contains(&counts[1]), "{counts:?}");
    assert_eq!(homes(&down(1))[2], 400);
    let mut both_down = down(1);
    both_down[1].healthy = false;
    assert_eq!(homes(&both_down)[3] + homes(&both_down)[4], 400);
}
