use super::*;
use crate::expression::Operator;

fn nodes() -> Vec<NodeInfo> {
    let node = |id, name: &str| NodeInfo {
        id,
        name: name.to_owned(),
        zone: None,
    };
    vec![node(1, "paris"), node(2, "oslo"), node(3, "rome")]
}

/// Every problem as `line:column: message (at `text`); hint`.
fn told(source: &str) -> Vec<String> {
    match Rules::parse(source, &nodes()) {
        Ok(_) => Vec::new(),
        Err(errors) => errors
            .problems
            .iter()
            .map(|problem| problem.located(source).to_string())
            .collect(),
    }
}

/// The rules file of the design page.
const DESIGN: &str = r#"
[placement.station]                       # a named key space
strategy = "hash"                         # weighted rendezvous over healthy nodes | "map" | "range" | "column"
[placement.branch]
strategy = "hash"
[[affinity]]
placement = "station"
tables = { stations = "id", bikes = "station_id", rentals = "station_id" }
[[affinity]]
placement = "branch"
tables = { pgbench_branches = "bid", pgbench_tellers = { column = "tid", key = "(tid - 1) / 10 + 1" }, pgbench_accounts = { column = "aid", key = "(aid - 1) / 100000 + 1" } }
[[session]]                               # whole sessions, from what is known at connect
match = { user = "batch", application_name = "nightly-*" }
node = "paris"
[default]
write = "home"                            # one home per database for what has no key or rule | "nearest"
[read]
route = "nearest"                         # or "home"
consistency = "session"                   # "eventual" | "session" | "home"; scope = "session" | "database"
"#;

#[test]
fn the_design_page_s_file_is_read_in_full() {
    let rules = Rules::parse(DESIGN, &nodes()).unwrap();
    let names: Vec<&str> = rules
        .placements
        .iter()
        .map(|placement| placement.name.as_str())
        .collect();
    assert_eq!(names, ["station", "branch"]);
    let tables: Vec<(&str, &str, &str)> = rules
        .affinities
        .iter()
        .map(|affinity| {
            (
                affinity.table.as_str(),
                affinity.placement.as_str(),
                affinity.column.as_str(),
            )
        })
        .collect();
    assert_eq!(tables[0], ("stations", "station", "id"));
    assert_eq!(tables[4], ("pgbench_tellers", "branch", "tid"));
    assert_eq!(tables.len(), 6);
    let key = rules.affinities[5].key.as_ref().unwrap();
    assert!(matches!(key, Expression::Binary(_, Operator::Add, _)));
    assert_eq!(key.evaluate(100_001), Ok(2));
    assert_eq!(rules.sessions.len(), 1);
    assert_eq!(rules.sessions[0].node, 1);
    assert_eq!(
        (rules.mode, rules.default_write, rules.read),
        (Mode::Enforce, DefaultWrite::Home, ReadRules::default())
    );
}

#[test]
fn an_empty_file_means_the_defaults() {
    assert_eq!(Rules::parse("", &nodes()).unwrap(), Rules::default());
    assert_eq!(Rules::parse("# nothing\n", &[]).unwrap(), Rules::default());
}

#[test]
fn every_word_of_every_choice_is_read() {
    let source = "mode = \"advise\"\n[default]\nwrite = \"nearest\"\n[read]\nroute = \"home\"\nconsistency = \"eventual\"\nscope = \"database\"\nlost = \"error\"\n";
    let rules = Rules::parse(source, &nodes()).unwrap();
    assert_eq!(
        (rules.mode, rules.default_write),
        (Mode::Advise, DefaultWrite::Nearest)
    );
    let read = ReadRules {
        route: ReadRoute::Home,
        consistency: Consistency::Eventual,
        scope: Scope::Database,
        lost: Lost::Error,
    };
    assert_eq!(rules.read, read);
}

#[test]
fn a_policy_is_the_default_s_unless_the_rule_says_otherwise() {
    let source = r#"
[placement.p]
strategy = "hash"
[[affinity]]
placement = "p"
tables = { a = "id" }
[[affinity]]
placement = "p"
tables = { b = "id", c = "id" }
cross_home = "allow"
[[affinity]]
placement = "p"
tables = { d = "id" }
require_key = false
[default]
cross_home = "reject"
require_key = true
"#;
    let rules = Rules::parse(source, &nodes()).unwrap();
    let of = |cross_home, require_key| Policy {
        cross_home,
        require_key,
    };
    let policies: Vec<Policy> = rules.affinities.iter().map(|rule| rule.policy).collect();
    let other = of(CrossHome::Allow, true);
    assert_eq!(rules.policy, of(CrossHome::Reject, true));
    assert_eq!(
        policies,
        [rules.policy, other, other, of(CrossHome::Reject, false)]
    );
    assert_eq!(
        other.and(of(CrossHome::Notice, false)),
        of(CrossHome::Notice, true)
    );
    assert!(rules.is_strict() && !Rules::default().is_strict());
    let one = "[placement.p]\nstrategy = \"hash\"\n[[affinity]]\nplacement = \"p\"\ntables = { a = \"id\" }\ncross_home = \"notice\"\n";
    assert!(Rules::parse(one, &nodes()).unwrap().is_strict());
}

#[test]
fn weights_without_a_list_of_nodes_mean_all_nodes() {
    let rules = Rules::parse(
        "[placement.p]\nstrategy = \"hash\"\nweights = { oslo = 5 }\n",
        &nodes(),
    )
    .unwrap();
    assert_eq!(
        rules.placements[0].strategy,
        Strategy::Hash {
            weights: vec![(1, 1), (2, 5), (3, 1)]
        }
    );
}

#[test]
fn what_is_not_toml_is_told_with_its_place() {
    let told = told("[placement.p\nstrategy = \"hash\"\n");
    assert!(
        told[0].starts_with("1:") && told[0].contains("not valid TOML"),
        "{told:?}"
    );
}

#[test]
fn a_broken_expression_in_an_escaped_string_is_told_at_the_whole_string() {
    let source = "[placement.p]\nstrategy = \"hash\"\n[[affinity]]\nplacement = \"p\"\ntables = { t = { column = \"id\", key = \"\\u0069d +\" } }\n";
    let told = told(source);
    assert!(
        told[0].starts_with("5:39: bad key expression") && told[0].contains(r"at `"),
        "{told:?}"
    );
}

#[test]
fn any_part_of_a_good_file_is_refused_or_read_without_a_panic() {
    for end in 0..DESIGN.len() {
        for source in [&DESIGN[..end], &DESIGN[end..]] {
            if let Err(errors) = Rules::parse(source, &nodes()) {
                assert!(!errors.problems.is_empty());
                assert!(
                    errors
                        .problems
                        .iter()
                        .all(|problem| source.get(problem.span.clone()).is_some())
                );
            }
        }
    }
}
