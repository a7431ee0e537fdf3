//! Owns what the console shows of the rules: each of them, what it says, and how often it has decided.

use tandem_routing_rules::{CrossHome, DefaultWrite, Mode, Policy, Rules, Strategy};

use super::answer::{Row, text};
use crate::{
    routing::counts::{Rule, RuleCounts},
    session::Shared,
};

pub(super) const RULES: &[&str] = &["kind", "name", "rule", "decisions"];

/// A row for each rule, in the order in which they are looked at, and for each default.
pub(super) fn rows(shared: &Shared) -> Vec<Row> {
    let settings = shared.settings.load();
    let node = |id: u16| {
        let found = shared.nodes.iter().find(|node| node.config().id == id);
        found.map_or_else(|| id.to_string(), |node| node.name().to_owned())
    };
    of(&settings.config.rules, &settings.rule_counts, node)
}

fn of(rules: &Rules, counts: &RuleCounts, node: impl Fn(u16) -> String) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |kind: &str, name: &str, rule: String, decided: Option<Rule>| {
        let decisions = decided.and_then(|decided| counts.get(decided));
        let decisions = decisions.map(|counter| counter.sum().to_string());
        rows.push(vec![text(kind), text(name), Some(rule), decisions]);
    };
    for (place, rule) in rules.sessions.iter().enumerate() {
        let way = format!("{} -> {}", rule.matches, node(rule.node));
        let number = (place + 1).to_string();
        row("session", &number, way, Some(Rule::Session(place)));
    }
    for (place, placement) in rules.placements.iter().enumerate() {
        let strategy = match &placement.strategy {
            Strategy::Hash { .. } => "hash".to_owned(),
            Strategy::Map { homes, .. } => format!("map of {} keys", homes.len()),
            Strategy::Range { ranges, .. } => format!("{} ranges", ranges.len()),
            Strategy::Column { .. } => "named by the key".to_owned(),
            Strategy::Single { node: Some(id) } => format!("single: {}", node(*id)),
            Strategy::Single { node: None } => "single".to_owned(),
        };
        let decided = Some(Rule::Placement(place));
        row("placement", &placement.name, strategy, decided);
    }
    for affinity in &rules.affinities {
        let key = affinity.key.as_ref().map_or_else(
            || affinity.column.clone(),
            |key| format!("{key} of {}", affinity.column),
        );
        let mut way = format!("{key} -> {}", affinity.placement);
        if affinity.policy != rules.policy {
            way = format!("{way}, {}", policy(affinity.policy));
        }
        row("affinity", &affinity.table, way, None);
    }
    let mode = match rules.mode {
        Mode::Enforce => "enforce",
        Mode::Advise => "advise",
    };
    let write = match rules.default_write {
        DefaultWrite::Home => "home",
        DefaultWrite::Nearest => "nearest",
    };
    let read = [
        ("read.route", format!("{:?}", rules.read.route)),
        ("read.consistency", format!("{:?}", rules.read.consistency)),
        ("read.scope", format!("{:?}", rules.read.scope)),
    ];
    row("default", "mode", mode.to_owned(), None);
    row("default", "default.write", write.to_owned(), None);
    row("default", "default.policy", policy(rules.policy), None);
    for (name, word) in read {
        row("default", name, word.to_lowercase(), None);
    }
    rows
}

fn policy(policy: Policy) -> String {
    let cross_home = match policy.cross_home {
        CrossHome::Allow => "allow",
        CrossHome::Notice => "notice",
        CrossHome::Reject => "reject",
    };
    format!(
        "cross_home = {cross_home}, require_key = {}",
        policy.require_key
    )
}

#[cfg(test)]
mod tests {
    use tandem_routing_rules::NodeInfo;

    use super::*;

    #[test]
    fn every_rule_has_its_row_and_its_count() {
        let nodes = [NodeInfo {
            id: 1,
            name: "paris".to_owned(),
            zone: None,
        }];
        let source = r#"
[placement.station]
strategy = "hash"
[[affinity]]
placement = "station"
tables = { bikes = "station_id" }
cross_home = "reject"
[[session]]
match = { user = "batch" }
node = "paris"
"#;
        let rules = Rules::parse(source, &nodes).expect("rules");
        let counts = RuleCounts::new(&rules);
        for _ in 0..3 {
            counts.get(Rule::Placement(0)).expect("a counter").add();
        }
        let rows: Vec<String> = of(&rules, &counts, |_| "paris".to_owned())
            .into_iter()
            .map(|row| {
                let cells = row.into_iter().map(Option::unwrap_or_default);
                cells.collect::<Vec<_>>().join("|")
            })
            .collect();
        let wanted = [
            "session|1|user = batch -> paris|0",
            "placement|station|hash|3",
            "affinity|bikes|station_id -> station, cross_home = reject, require_key = false|",
            "default|mode|enforce|",
            "default|default.write|home|",
            "default|default.policy|cross_home = allow, require_key = false|",
            "default|read.route|nearest|",
            "default|read.consistency|session|",
            "default|read.scope|session|",
        ];
        assert_eq!(rows, wanted);
    }
}
