//! `tandem explain`: which node a session or a statement would go to, and why.

use std::fmt::Write as _;

use tandem_routing_rules::{
    ClusterView, CrossHome, Finding, Mode, NoHealthyNode, SessionFacts, StatementFacts,
    decide_session, nearest,
    state::homed,
    statement::{Access, AnalysisError, Plan, Values},
    template::Template,
};

use super::args::ExplainArguments;
use super::{Exit, Failure, find_config, out};
use crate::{config::Config, routing::views};

/// `tandem explain`
pub(super) fn explain(arguments: &ExplainArguments) -> Result<Exit, Failure> {
    let config = Config::load(&find_config(&arguments.config.config))?;
    if let Some(unknown) = arguments
        .down
        .iter()
        .find(|name| !config.nodes.iter().any(|node| node.name == **name))
    {
        let names: Vec<&str> = config.nodes.iter().map(|node| node.name.as_str()).collect();
        let hint = match nearest(unknown, &names) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("there are {}", names.join(", ")),
        };
        return Err(Failure::Usage(format!(
            "--down: there is no node `{unknown}`; {hint}"
        )));
    }
    let (exit, text) = explanation(&config, arguments)?;
    out::line(&text)?;
    Ok(exit)
}

fn explanation(config: &Config, arguments: &ExplainArguments) -> Result<(Exit, String), Failure> {
    let is_down = |place: usize| {
        let node = config.nodes.get(place);
        node.is_some_and(|node| arguments.down.contains(&node.name))
    };
    let nodes = views::views(&config.nodes, |place| views::Now {
        healthy: !is_down(place),
        rtt_us: None,
        sessions: 0,
    });
    let cluster = ClusterView {
        nodes: &nodes,
        zone: config.proxy.zone.as_deref(),
    };
    let database = arguments
        .database
        .as_deref()
        .unwrap_or(&config.replication.database);
    let last = |wanted: &str| {
        let mut given = arguments.options.iter().rev();
        let found = given.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| &**value)
    };
    let named = arguments.application_name.as_deref();
    let facts = SessionFacts {
        user: arguments.user.as_deref().unwrap_or_default(),
        database,
        application_name: named.or_else(|| last("application_name")),
        key: last("tandem.key"),
        client: arguments.client,
        options: &arguments.options,
    };
    let decided = match &arguments.sql {
        Some(sql) => of_statement(config, sql, facts, &cluster)?,
        None => {
            decide_session(&config.rules, &facts, &cluster).map(|decision| decision.to_string())
        }
    };
    Ok(match decided {
        Ok(text) => (Exit::Yes, text),
        Err(none) => (Exit::No, format!("nowhere: {none}")),
    })
}

/// Class, tables, keys and home of a statement, a line each.
fn of_statement(
    config: &Config,
    sql: &str,
    session: SessionFacts<'_>,
    cluster: &ClusterView<'_>,
) -> Result<Result<String, NoHealthyNode>, Failure> {
    let plan = Plan::of(sql, &config.rules, None, &["public"]);
    let refused = |error: &AnalysisError| Failure::Usage(format!("the statement: {error}"));
    if let Some(error) = &plan.refused {
        return Err(refused(error));
    }
    let mut template = Template::default();
    let shape = template.read(sql.as_bytes());
    let shape = shape.ok_or_else(|| refused(&AnalysisError::TooLong))?;
    let evidence = plan.evidence(&Values {
        literals: shape.literals,
        parameters: &[],
    });
    let mut text = format!("class: {} ({})\n", plan.class.word(), plan.because);
    for table in &plan.tables {
        let access = match table.access {
            Access::Read => "read",
            Access::Lock => "locked",
            Access::Write => "written",
        };
        let placement = match &table.placement {
            Some(placement) => format!("placement {placement}"),
            None => "no rule".to_owned(),
        };
        let _ = writeln!(text, "table: {}, {access}, {placement}", table.name);
    }
    let _ = writeln!(text, "key: {evidence}");
    let facts = StatementFacts {
        session,
        comment: shape.key,
        homed: homed(sql.as_bytes()),
        ..StatementFacts::default()
    };
    let rules = &config.rules;
    let decision = match rules.decide_statement(&facts, &plan, evidence.clone(), cluster) {
        Ok(decision) => decision,
        Err(none) => return Ok(Err(none)),
    };
    let _ = write!(text, "{decision}");
    let found = rules.find(&facts, &plan, evidence, decision.node, cluster);
    if let (Some(finding), Mode::Enforce) = (found, rules.mode) {
        let _ = match finding {
            Finding::CrossHome(CrossHome::Allow, away) => write!(text, "\nover homes: {away}"),
            Finding::CrossHome(CrossHome::Notice, away) => {
                write!(text, "\nover homes, which its client is told: {away}")
            }
            Finding::CrossHome(CrossHome::Reject, away) => {
                write!(text, "\nrefused, because it reaches over homes: {away}")
            }
            Finding::NoKey(because) => write!(text, "\nrefused, because it has no key: {because}"),
        };
    }
    Ok(Ok(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::ConfigArgument;

    const CONFIG: &str = r#"
cluster = "bikes"
[proxy]
listen = ["127.0.0.1:6432"]
rules = "rules.toml"
[admin]
listen = "127.0.0.1:6433"
[replication]
database = "app"
[[node]]
name = "paris"
id = 1
host = "127.0.0.1"
user = "tandem"
[[node]]
name = "oslo"
id = 2
host = "127.0.0.1"
user = "tandem"
"#;
    const RULES: &str = r#"
[placement.station]
strategy = "map"
map = { 7 = "oslo", 8 = "paris" }
[[affinity]]
placement = "station"
tables = { bikes = "station_id" }
[[session]]
match = { user = "batch", database = "app" }
node = "oslo"
"#;

    fn explained(user: &str, down: &[&str]) -> (Exit, String) {
        with_sql(None, user, down).expect("an explanation")
    }

    fn with_sql(sql: Option<&str>, user: &str, down: &[&str]) -> Result<(Exit, String), Failure> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("tandem.toml"), CONFIG).unwrap();
        std::fs::write(directory.path().join("rules.toml"), RULES).unwrap();
        let path = directory.path().join("tandem.toml");
        let config = Config::load(&path).unwrap();
        let arguments = ExplainArguments {
            config: ConfigArgument { config: Some(path) },
            sql: sql.map(str::to_owned),
            user: Some(user.to_owned()),
            database: None,
            application_name: None,
            options: Vec::new(),
            client: None,
            down: down.iter().map(|name| (*name).to_owned()).collect(),
        };
        explanation(&config, &arguments)
    }

    #[test]
    fn the_session_rule_is_named_and_a_down_node_passed_over() {
        let (exit, text) = explained("batch", &[]);
        assert_eq!(
            (exit, text.as_str()),
            (
                Exit::Yes,
                "node oslo: session rule 1 (user = batch, database = app)"
            )
        );
        let (_, text) = explained("batch", &["oslo"]);
        assert!(
            text.starts_with("node paris: nearest healthy node"),
            "{text}"
        );
        assert!(
            text.ends_with("session rule 1 not followed: node oslo is down"),
            "{text}"
        );
    }

    #[test]
    fn a_statement_is_explained_by_what_it_does_and_which_key_it_names() {
        let explained = |sql: &str| with_sql(Some(sql), "app", &[]).expect("an explanation").1;
        assert_eq!(
            explained("UPDATE bikes SET free = true WHERE station_id = 7"),
            "class: write (UPDATE)\n\
             table: bikes, written, placement station\n\
             key: station:7\n\
             node oslo: home of key station:7 (listed in the map), named by the statement"
        );
        assert_eq!(
            explained("/* tandem.key='station:8' */ DELETE FROM log"),
            "class: write (DELETE)\n\
             table: log, written, no rule\n\
             key: no table of it has a rule\n\
             node paris: home of key station:8 (listed in the map), named by its leading comment"
        );
        let text = explained("INSERT INTO bikes (station_id) VALUES (7), (8)");
        assert!(text.contains("key: station:7, station:8"), "{text}");
        assert!(text.contains("at home on node id 1 too"), "{text}");
        let away = "over homes: key station:8 is at home on node paris (listed in the map)";
        assert!(text.ends_with(away), "{text}");
        let text = explained("SELECT my_function()");
        assert!(
            text.starts_with("class: write (function my_function)"),
            "{text}"
        );
        assert!(text.contains("default home: no table"), "{text}");
    }

    #[test]
    fn sql_that_the_grammar_refuses_is_an_error_that_says_so() {
        let error = with_sql(Some("SELEC 1"), "app", &[]).expect_err("no SQL");
        assert!(
            error
                .to_string()
                .contains("syntax error at or near \"SELEC\""),
            "{error}"
        );
        let error = with_sql(Some("SELECT 'a"), "app", &[]).expect_err("no SQL");
        assert!(
            error.to_string().contains("unterminated quoted string"),
            "{error}"
        );
    }

    #[test]
    fn without_a_healthy_node_the_answer_is_no() {
        assert_eq!(
            explained("app", &["paris", "oslo"]),
            (Exit::No, "nowhere: no node is healthy".to_owned())
        );
    }
}
