//! Owns what `tandem check` says of the rules beside a database: what in them cannot be right, and where conflicts may come from.

use std::fs;

use tandem_routing_rules::{
    Rules,
    check::{self, Circumstances, Risk, SelfUpdate},
};

use super::{
    super::{Exit, Failure, out, report},
    tables::{self, Database, Texts},
};
use crate::{
    config::{Config, ConfigError, PoolMode},
    node::nodes,
};

/// Asks the first node that answers, and tells what it has to do with the rules. Risks are no reason for another exit code.
pub(super) async fn check(config: &Config) -> Result<Exit, Failure> {
    let mut found = None;
    for node in nodes(&config.nodes).map_err(Failure::other)?.iter() {
        // Why another one did not answer was told of it already.
        if let Ok(database) = tables::read(node, config).await {
            found = Some((node.name().to_owned(), database));
            break;
        }
    }
    let Some((node, database)) = found else {
        out::line("the rules are not checked against a database: no node says what it has")?;
        return Ok(Exit::Yes);
    };
    if let Some(error) = problems(config, &database)? {
        report(&error.into());
        return Ok(Exit::No);
    }
    for text in told(config, &node, &database) {
        out::line(&text)?;
    }
    Ok(Exit::Yes)
}

/// What cannot be right.
fn problems(config: &Config, database: &Database) -> Result<Option<ConfigError>, Failure> {
    let Some(path) = &config.rules_file else {
        return Ok(None);
    };
    // It was read a moment ago: if it is another one now, its places may be, too, but not what is wrong.
    let source = fs::read_to_string(path).map_err(Failure::other)?;
    let problems = check::problems(&source, &config.rules, &database.tables);
    let error = (!problems.is_empty()).then(|| ConfigError::in_file(path, &source, problems));
    Ok(error)
}

/// The risks, and what was looked at.
fn told(config: &Config, node: &str, database: &Database) -> Vec<String> {
    let replicated = config.replication.tables();
    let mut tables = database.tables.clone();
    tables.retain(|table| replicated.filter.allows(&table.schema, &table.name));
    let self_updates = self_updates(&database.texts, &config.rules);
    let risks = check::risks(&Circumstances {
        rules: &config.rules,
        tables: &tables,
        nodes: config.nodes.len(),
        by_session: config.proxy.pool.mode == PoolMode::Session,
        self_updates: &self_updates,
    });
    let mut lines = vec![format!(
        "conflicts: {} risk(s) found in {} tables of node {node}, {}",
        risks.len(),
        tables.len(),
        looked_at(&database.texts)
    )];
    lines.extend(risks.iter().map(shown));
    lines
}

fn self_updates(texts: &Texts, rules: &Rules) -> Vec<SelfUpdate> {
    let statements = texts.statements.iter().flatten();
    let all = statements.chain(&texts.functions).chain(&texts.rules);
    all.flat_map(|text| check::self_updates(text, rules))
        .collect()
}

fn looked_at(texts: &Texts) -> String {
    let statements = match &texts.statements {
        Some(statements) => format!("{} statements of pg_stat_statements", statements.len()),
        None => "no statements (there is no pg_stat_statements)".to_owned(),
    };
    let (functions, rules) = (texts.functions.len(), texts.rules.len());
    format!("{functions} functions, {rules} rules and {statements}")
}

fn shown(risk: &Risk) -> String {
    let table = risk
        .table
        .as_deref()
        .map(|table| format!("table {table}: "));
    let table = table.unwrap_or_default();
    format!("  warning: {table}{}\n  hint: {}", risk.what, risk.mend)
}
