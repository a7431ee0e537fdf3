//! What was decided of where clients' work goes, and what the policies found.

use tandem_routing_rules::Rules;

use super::Text;
use crate::routing::counts::{Counts, Rule, RuleCounts};

pub(super) fn add(text: &mut Text, counts: &Counts, rules: &Rules, of_rules: &RuleCounts) {
    text.counter(
        "tandem_routed_total",
        "Transactions and batches sent to a node, by the reason for it.",
        counts
            .reasons()
            .map(|(reason, count)| ([("reason", reason)], count)),
    );
    let count = |rule| of_rules.get(rule).map_or(0, |counter| counter.sum());
    let numbers: Vec<String> = (1..=rules.sessions.len())
        .map(|number| number.to_string())
        .collect();
    let sessions = numbers.iter().enumerate().map(|(place, number)| {
        let labels = [("kind", "session"), ("rule", number.as_str())];
        (labels, count(Rule::Session(place)))
    });
    let placements = rules
        .placements
        .iter()
        .enumerate()
        .map(|(place, placement)| {
            let labels = [("kind", "placement"), ("rule", placement.name.as_str())];
            (labels, count(Rule::Placement(place)))
        });
    text.counter(
        "tandem_rule_routed_total",
        "The same that a rule has decided: a session rule, by its number in the file, or a placement.",
        sessions.chain(placements),
    );
    text.counter(
        "tandem_cross_home_writes_total",
        "Writes of which a key was at home on another node than their transaction, by what became of them.",
        counts
            .cross_home()
            .map(|(outcome, count)| ([("outcome", outcome)], count)),
    );
    for (name, help, counter) in [
        (
            "tandem_keyless_writes_refused_total",
            "Writes that were refused because they name no key.",
            &counts.without_key,
        ),
        (
            "tandem_evidence_overruled_total",
            "Transactions and batches of which some evidence of their home was not followed.",
            &counts.overruled,
        ),
        (
            "tandem_advised_writes_total",
            "Writes that went where no rule sent them, because the rules only advise.",
            &counts.advised,
        ),
    ] {
        text.counter(name, help, [([], counter.sum())]);
    }
}

#[cfg(test)]
mod tests {
    use tandem_routing_rules::{CrossHome, NodeInfo};

    use super::*;
    use crate::routing::counts::{Reason, Why};

    #[test]
    fn each_rule_and_each_reason_is_told() {
        let nodes = [NodeInfo {
            id: 1,
            name: "paris".to_owned(),
            zone: None,
        }];
        let rules = "[placement.station]\nstrategy = \"hash\"\n[[session]]\nmatch = { user = \"a\" }\nnode = \"paris\"\n";
        let rules = Rules::parse(rules, &nodes).expect("rules");
        let (counts, of_rules) = (Counts::default(), RuleCounts::new(&rules));
        let why = Why {
            rule: Some(Rule::Placement(0)),
            overruled: true,
            ..Why::only(Reason::Key)
        };
        counts.note(why, &of_rules);
        counts.note_cross_home(CrossHome::Notice);
        let mut text = Text::default();
        add(&mut text, &counts, &rules, &of_rules);
        for line in [
            r#"tandem_routed_total{reason="key"} 1"#,
            r#"tandem_routed_total{reason="nearest"} 0"#,
            r#"tandem_rule_routed_total{kind="session",rule="1"} 0"#,
            r#"tandem_rule_routed_total{kind="placement",rule="station"} 1"#,
            r#"tandem_cross_home_writes_total{outcome="noticed"} 1"#,
            "tandem_keyless_writes_refused_total 0",
            "tandem_evidence_overruled_total 1",
            "tandem_advised_writes_total 0",
        ] {
            assert!(
                text.0.lines().any(|found| found == line),
                "{line}\n{}",
                text.0
            );
        }
    }
}
