//! `tandem explain`: which node a session would go to, and why.

use tandem_routing_rules::{ClusterView, NodeView, SessionFacts, decide_session, nearest};

use super::args::ExplainArguments;
use super::{Exit, Failure, find_config, out};
use crate::config::Config;

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
    let (exit, text) = explanation(&config, arguments);
    out::line(&text)?;
    Ok(exit)
}

fn explanation(config: &Config, arguments: &ExplainArguments) -> (Exit, String) {
    let nodes: Vec<NodeView<'_>> = config
        .nodes
        .iter()
        .map(|node| NodeView {
            id: node.id,
            name: &node.name,
            zone: node.zone.as_deref(),
            healthy: !arguments.down.contains(&node.name),
            rtt_us: None,
            sessions: 0,
        })
        .collect();
    let cluster = ClusterView {
        nodes: &nodes,
        zone: config.proxy.zone.as_deref(),
    };
    let database = arguments
        .database
        .as_deref()
        .unwrap_or(&config.replication.database);
    let facts = SessionFacts {
        user: &arguments.user,
        database,
        application_name: arguments.application_name.as_deref(),
        key: arguments.key.as_deref(),
    };
    match decide_session(&config.rules, &facts, &cluster) {
        Ok(decision) => (Exit::Yes, decision.to_string()),
        Err(none) => (Exit::No, format!("nowhere: {none}")),
    }
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
    const RULES: &str =
        "[[session]]\nmatch = { user = \"batch\", database = \"app\" }\nnode = \"oslo\"\n";

    fn explained(user: &str, down: &[&str]) -> (Exit, String) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("tandem.toml"), CONFIG).unwrap();
        std::fs::write(directory.path().join("rules.toml"), RULES).unwrap();
        let path = directory.path().join("tandem.toml");
        let config = Config::load(&path).unwrap();
        let arguments = ExplainArguments {
            config: ConfigArgument { config: Some(path) },
            user: user.to_owned(),
            database: None,
            application_name: None,
            key: None,
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
    fn without_a_healthy_node_the_answer_is_no() {
        assert_eq!(
            explained("app", &["paris", "oslo"]),
            (Exit::No, "nowhere: no node is healthy".to_owned())
        );
    }
}
