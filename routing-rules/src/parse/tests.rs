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
    let source = "mode = \"advise\"\n[default]\nwrite = \"nearest\"\n[read]\nroute = \"home\"\nconsistency = \"eventual\"\nscope = \"database\"\n";
    let rules = Rules::parse(source, &nodes()).unwrap();
    assert_eq!(
        (rules.mode, rules.default_write),
        (Mode::Advise, DefaultWrite::Nearest)
    );
    let read = ReadRules {
        route: ReadRoute::Home,
        consistency: Consistency::Eventual,
        scope: Scope::Database,
    };
    assert_eq!(rules.read, read);
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

/// Broken files; each problem is told with line, column, text and mend.
#[test]
fn broken_files_are_told_with_place_text_and_mend() {
    let table: [(&str, &str, &[&str]); 20] = [
        (
            "a misspelt key",
            "[placement.p]\nstrategy = \"hash\"\n[[afinity]]\nplacement = \"p\"\n",
            &["3:3: unknown key `afinity` (at `afinity`); did you mean `affinity`?"],
        ),
        (
            "a strategy nobody knows",
            "[placement.p]\nstrategy = \"hsah\"\n",
            &[
                "2:12: unknown value of `placement.p.strategy`: `hsah` (at `\"hsah\"`); did you mean `hash`?",
            ],
        ),
        (
            "no strategy",
            "[placement.p]\n",
            &["1:1: `placement.p` has no `strategy` (at `[placement.p]`); add `strategy = ...`"],
        ),
        (
            "an affinity to a placement that is not there",
            "[placement.station]\nstrategy = \"hash\"\n[[affinity]]\nplacement = \"stations\"\ntables = { t = \"id\" }\n",
            &["4:13: unknown placement `stations` (at `\"stations\"`); did you mean `station`?"],
        ),
        (
            "a node that is not there",
            "[[session]]\nmatch = { user = \"a\" }\nnode = \"pariss\"\n",
            &["3:8: unknown node `pariss` (at `\"pariss\"`); did you mean `paris`?"],
        ),
        (
            "a key expression over another column",
            "[placement.p]\nstrategy = \"hash\"\n[[affinity]]\nplacement = \"p\"\ntables = { t = { column = \"tid\", key = \"(bid - 1) / 10\" } }\n",
            &[
                "5:42: bad key expression: `bid` is not the rule's column `tid` (at `bid`); a key is integer arithmetic \
               (+ - * / %, parentheses) over the column, such as `(tid - 1) / 10`",
            ],
        ),
        (
            "a table with two keys",
            "[placement.p]\nstrategy = \"hash\"\n[[affinity]]\nplacement = \"p\"\ntables = { t = \"a\" }\n[[affinity]]\nplacement = \"p\"\ntables = { t = \"b\" }\n",
            &["8:12: the table `t` has a key already (at `t`); keep one of the two"],
        ),
        (
            "ranges that overlap",
            "[placement.p]\nstrategy = \"range\"\nranges = [\n  { from = 5, to = 20, node = \"paris\" },\n  { to = 6, node = \"oslo\" },\n]\n",
            &[
                "4:3: the range overlaps another one (at `{ from = 5, to = 20, node = \"paris\" }`); let each range begin \
               where the one before it ends",
            ],
        ),
        (
            "an empty range",
            "[placement.p]\nstrategy = \"range\"\nranges = [{ from = 5, to = 5, node = \"paris\" }]\n",
            &[
                "3:11: the range is empty (at `{ from = 5, to = 5, node = \"paris\" }`); `from` is inside the range, `to` is \
               the first key above it",
            ],
        ),
        (
            "a session rule that is never reached",
            "[[session]]\nmatch = { user = \"*\" }\nnode = \"paris\"\n[[session]]\nmatch = { user = \"b\" }\nnode = \"oslo\"\n",
            &[
                "4:1: this rule is never reached: session rule 1 matches all it matches (at `[[session]]`); put the \
               narrower rule first",
            ],
        ),
        (
            "a match that says nothing",
            "[[session]]\nmatch = {}\nnode = \"paris\"\n",
            &[
                "2:9: `match` says nothing (at `{}`); give `user`, `database` or `application_name`; `*` matches any",
            ],
        ),
        (
            "a weight of nought",
            "[placement.p]\nstrategy = \"hash\"\nweights = { paris = 0 }\n",
            &["3:21: `placement.p.weights.paris` is out of range (at `0`); allowed: 1 to 1000"],
        ),
        (
            "a weight for a node left out",
            "[placement.p]\nstrategy = \"hash\"\nnodes = [\"oslo\", \"oslo\"]\nweights = { paris = 2 }\n",
            &[
                "3:18: this node is listed twice (at `\"oslo\"`); remove one of the two",
                "4:13: this node has a weight but is not in `nodes` (at `paris`); add \"paris\" to `nodes` or remove its weight",
            ],
        ),
        (
            "one key twice",
            "[placement.p]\nstrategy = \"map\"\nmap = { 7 = \"paris\", 007 = \"oslo\" }\n",
            &[
                "3:22: the key `7` is listed twice (at `007`); remove one of the two; `7` and `007` are one key",
            ],
        ),
        (
            "zones nobody has",
            "[placement.p]\nstrategy = \"column\"\nnames = \"zone\"\n",
            &[
                "3:9: no node has a zone (at `\"zone\"`); give the nodes a `zone` in the configuration",
            ],
        ),
        (
            "a table of three parts",
            "[placement.p]\nstrategy = \"single\"\n[[affinity]]\nplacement = \"p\"\ntables = { \"db.public.t\" = \"id\" }\n",
            &[
                "5:12: `db.public.t` is not a table's name (at `\"db.public.t\"`); write `table` or `\"schema.table\"`",
            ],
        ),
        (
            "a column that is a number",
            "[placement.p]\nstrategy = \"single\"\n[[affinity]]\nplacement = \"p\"\ntables = { t = 4 }\n",
            &[
                "5:16: `affinity[0].tables.t` must be a column's name or { column = \"...\", key = \"...\" }, not of type \
               integer (at `4`)",
            ],
        ),
        (
            "a placement whose name a key cannot name",
            "[placement.\"a:b\"]\nstrategy = \"hash\"\n",
            &[
                "1:12: a placement's name is not empty and has no `:` (at `\"a:b\"`); `tandem.key = 'placement:key'` ends \
               the name at the first colon",
            ],
        ),
        (
            "bounds of two types",
            "[placement.p]\nstrategy = \"range\"\nranges = [{ from = 1, to = \"b\", node = \"paris\" }]\n",
            &[
                "3:11: `from` and `to` are of different types (at `{ from = 1, to = \"b\", node = \"paris\" }`); write both as \
               integers or both as strings",
            ],
        ),
        (
            "several problems at once",
            "mode = \"advice\"\n[read]\nroute = \"far\"\nscop = \"session\"\n[default]\nwrite = 3\n",
            &[
                "1:8: unknown value of `mode`: `advice` (at `\"advice\"`); did you mean `advise`?",
                "3:9: unknown value of `read.route`: `far` (at `\"far\"`); known: `nearest`, `home`",
                "4:1: unknown key in `read`: `scop` (at `scop`); did you mean `scope`?",
                "6:9: `default.write` must be a string, not of type integer (at `3`)",
            ],
        ),
    ];
    for (what, source, wanted) in table {
        assert_eq!(told(source), wanted, "{what}");
    }
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
