//! `tandem check`: the files, then the nodes, then the rules beside what a node has.

mod rules;
mod tables;

use std::fmt::Write as _;
use std::sync::Arc;

use tandem_replicator::{Node, Problem, check_node};
use tandem_wire::tls::{ClientTls, ServerTls};
use tokio::task::JoinSet;

use super::args::CheckArguments;
use super::{Exit, Failure, find_config, out, report};
use crate::config::{Config, ProxyTls};
use crate::node::nodes;

/// `tandem check`
pub(super) async fn check(arguments: CheckArguments) -> Result<Exit, Failure> {
    let path = find_config(&arguments.config.config);
    let config = match Config::load(&path) {
        Ok(config) => config,
        Err(error) => {
            report(&error.into());
            return Ok(Exit::No);
        }
    };
    for warning in &config.warnings {
        out::line(&format!("warning: {warning}"))?;
    }
    let certificates = certificate_problems(&config);
    for problem in &certificates {
        out::line(&format!("problem: {problem}"))?;
    }
    if !certificates.is_empty() {
        return Ok(Exit::No);
    }
    out::line(&format!("{}: the configuration is valid", path.display()))?;
    if arguments.offline {
        out::line("the rules are not checked against a database: --offline")?;
        return Ok(Exit::Yes);
    }
    let of_nodes = check_nodes(&config).await?;
    let of_rules = rules::check(&config).await?;
    Ok(match (of_nodes, of_rules) {
        (Exit::Yes, Exit::Yes) => Exit::Yes,
        _ => Exit::No,
    })
}

/// What is wrong with the certificates that the configuration names.
fn certificate_problems(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(ProxyTls {
        cert,
        key,
        client_ca,
        ..
    }) = &config.proxy.tls
        && let Err(error) = ServerTls::load(cert, key, client_ca.as_deref())
    {
        problems.push(format!("[proxy.tls]: {error}"));
    }
    for node in &config.nodes {
        if let Err(error) = ClientTls::new(node.sslmode, node.sslrootcert.as_deref()) {
            problems.push(format!("node {}: {error}", node.name));
        }
    }
    problems
}

/// Asks every node, all at once, and tells what each said in the configuration's order.
async fn check_nodes(config: &Config) -> Result<Exit, Failure> {
    let count = config.nodes.len();
    let tables = Arc::new(config.replication.tables());
    let mut asking = JoinSet::new();
    for (index, node) in nodes(&config.nodes)
        .map_err(Failure::other)?
        .iter()
        .enumerate()
    {
        let options = node.own_options(
            &config.replication.database,
            Vec::new(),
            config.proxy.server_connect_timeout,
        );
        let node = Node {
            name: node.name().to_owned(),
            id: node.config().id,
            connect: options,
        };
        let tables = Arc::clone(&tables);
        asking.spawn(async move {
            let problems = check_node(&node, count, &tables)
                .await
                .map_err(|error| error.to_string());
            (index, node.name, problems)
        });
    }
    let mut told = asking.join_all().await;
    told.sort_by_key(|(index, ..)| *index);
    let mut exit = Exit::Yes;
    for (_, name, problems) in told {
        let (fits, text) = verdict(&name, &problems);
        out::line(&text)?;
        if !fits {
            exit = Exit::No;
        }
    }
    Ok(exit)
}

/// Whether a node can be a member, and the lines that say so.
fn verdict(name: &str, problems: &Result<Vec<Problem>, String>) -> (bool, String) {
    let problems = match problems {
        Ok(problems) => problems,
        Err(error) => return (false, format!("node {name}: cannot be asked: {error}")),
    };
    let mut text = match problems.as_slice() {
        [] => format!("node {name}: ok"),
        _ => format!("node {name}:"),
    };
    for Problem { what, hint, fatal } in problems {
        let kind = if *fatal { "problem" } else { "warning" };
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  {kind}: {what}\n  hint: {hint}");
    }
    (problems.iter().all(|problem| !problem.fatal), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fatal_problems_keep_a_node_out() {
        let problem = |fatal| Problem {
            what: "wal_level is replica".into(),
            hint: "ALTER SYSTEM".into(),
            fatal,
        };
        assert_eq!(
            verdict("paris", &Ok(vec![])),
            (true, "node paris: ok".to_owned())
        );
        let (fits, text) = verdict("paris", &Ok(vec![problem(false), problem(true)]));
        assert!(!fits);
        let wanted = "node paris:\n  warning: wal_level is replica\n  hint: ALTER SYSTEM\n  problem: wal_level is \
                      replica\n  hint: ALTER SYSTEM";
        assert_eq!(text, wanted);
        assert!(verdict("paris", &Ok(vec![problem(false)])).0);
        let refused = (false, "node paris: cannot be asked: refused".to_owned());
        assert_eq!(verdict("paris", &Err("refused".to_owned())), refused);
    }
}
