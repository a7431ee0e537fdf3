//! Owns what the console shows, as rows.

use std::time::SystemTime;

use tandem_replicator::operator::OperatorError;
use tandem_routing_rules::{Transaction, state::homed};
use tandem_wire::ErrorReport;

use super::{
    DATABASE,
    act::failed,
    answer::{Answer, DATABASES, Row, json_rows, text, yes_no},
    pools, recovery, rules,
    statement::{Route, Show, Statement, VERBS},
};
use crate::{
    config::{Config, PoolMode, Setting},
    routing::{Chooser, Run},
    session::{
        Shared,
        route::{self, Hints},
    },
};

/// What is shown to a user.
pub(super) async fn show(
    shared: &Shared,
    user: &str,
    statement: &Statement,
    show: &Show,
) -> Result<Answer, ErrorReport> {
    let operator = shared.console.replicator.operator();
    let refused = |error: OperatorError| failed(&error);
    let rows = match show {
        Show::Version => vec![vec![text(concat!("Tandem ", env!("CARGO_PKG_VERSION")))]],
        Show::Config => {
            let rows = config(&shared.settings.load().config);
            return Ok(Answer::rows(rows).with_notices(not_counting(shared)));
        }
        Show::Databases => databases(shared),
        Show::Lists => lists(shared),
        Show::Users => users(shared).await,
        Show::State => state(shared),
        Show::Pools => pools::pools(&shared.pools.figures()),
        Show::Clients => shared.console.clients.rows(&shared.registry),
        Show::Servers => pools::servers(&shared.pools.figures(), SystemTime::now()),
        Show::Stats => pools::stats(&shared.pools.figures()),
        Show::Latency => {
            let latency = shared.pools.latency().await;
            pools::latency(shared.nodes.iter().map(|node| node.name()), &latency)
        }
        Show::Nodes => nodes(shared),
        Show::Lag => json_rows(
            &shared.console.replicator.status().links,
            statement.columns(),
        ),
        Show::Rules => {
            let rows = rules::rows(shared);
            return Ok(Answer::rows(rows).with_notices(not_counting(shared)));
        }
        Show::HostRules => {
            let rules = shared.gate.rules();
            let row = |rule: &crate::auth::HostRule| vec![text(&rule.line), text(&rule.text)];
            rules.iter().map(row).collect()
        }
        Show::Recovery => {
            let nodes = shared.nodes.iter().enumerate();
            let nodes = nodes.map(|(index, node)| (node.name(), shared.recoveries.known(index)));
            recovery::recoveries(nodes)
        }
        Show::RecoveryRows { node } => {
            let wanted = |name: &str| node.as_deref().is_none_or(|node| node == name);
            let nodes = shared.nodes.iter().enumerate();
            let nodes = nodes.filter(|(_, node)| wanted(node.name()));
            recovery::rows(nodes.filter_map(|(index, _)| shared.recoveries.last(index)))
        }
        Show::ConflictSummary(filter) => {
            let summary = operator.conflict_summary(filter).await.map_err(refused)?;
            let rows = json_rows(&summary.counts, statement.columns());
            return Ok(Answer::rows(rows).with_notices(summary.problems));
        }
        Show::Conflicts(filter) => {
            let found = operator.conflicts(filter).await.map_err(refused)?;
            let rows = json_rows(&found.conflicts, statement.columns());
            return Ok(Answer::rows(rows).with_notices(found.problems));
        }
        Show::Route(asked) => return Ok(route(shared, user, asked)),
    };
    Ok(Answer::rows(rows))
}

/// The verbs, and what they need.
pub(super) fn help() -> Answer {
    let row = |verb: &super::statement::Verb| {
        vec![text(verb.syntax), text(verb.right.key()), text(verb.does)]
    };
    Answer::rows(VERBS.iter().map(row).collect())
}

fn config(config: &Config) -> Vec<Row> {
    let row = |setting: Setting| {
        vec![
            Some(setting.key),
            Some(setting.value),
            yes_no(setting.changeable),
        ]
    };
    config.settings().into_iter().map(row).collect()
}

/// What is said beside what counts when there is something else in the files.
fn not_counting(shared: &Shared) -> Vec<String> {
    let refused = shared.files.refused();
    refused
        .iter()
        .map(|problem| format!("the files are refused, what was read before counts: {problem}"))
        .collect()
}

/// How many there are, and how many there may be; neither where there is no limit.
fn counts(counted: Option<(usize, usize)>) -> [Option<String>; 2] {
    let (current, max) = counted.unzip();
    [current, max].map(|count| count.map(|count| count.to_string()))
}

fn databases(shared: &Shared) -> Vec<Row> {
    let settings = shared.settings.load();
    let database = &settings.config.replication.database;
    let [current, max] = counts(shared.limits.of_database(database));
    let of_node = shared.nodes.iter().map(|node| {
        vec![
            text(database),
            text(&node.config().host),
            text(&node.config().port),
            text(database),
            text(node.name()),
            text(&settings.config.proxy.pool.mode),
            current.clone(),
            max.clone(),
            yes_no(shared.pools.paused().covers(database)),
        ]
    });
    let mut console = vec![text(DATABASE), None, None, text(DATABASE)];
    console.resize(DATABASES.len(), None);
    of_node.chain([console]).collect()
}

fn lists(shared: &Shared) -> Vec<Row> {
    let usable = (0..shared.nodes.len()).filter(|node| shared.health.usable(*node));
    let [idle, in_transaction, active] = shared.registry.activities();
    let servers: u32 = shared.nodes.iter().map(|node| node.sessions()).sum();
    let consoles = super::CONSOLES_MAX - shared.console.places.available_permits();
    let lists = [
        ("nodes", shared.nodes.len()),
        ("usable_nodes", usable.count()),
        (
            "free_clients",
            shared
                .clients
                .max()
                .saturating_sub(shared.clients.current()),
        ),
        ("used_clients", shared.clients.current()),
        ("idle_clients", idle),
        ("clients_in_transaction", in_transaction),
        ("active_clients", active),
        (
            "used_servers",
            usize::try_from(servers).unwrap_or(usize::MAX),
        ),
        ("consoles", consoles),
    ];
    lists
        .map(|(list, items)| vec![text(list), text(&items)])
        .to_vec()
}

async fn users(shared: &Shared) -> Vec<Row> {
    let permissions = shared.console.permissions.load_full();
    let rights = permissions.all();
    let mut names = shared.gate.listed_users().await;
    names.extend(rights.iter().map(|(name, _)| (*name).to_owned()));
    names.sort_unstable();
    names.dedup();
    let row = |name: String| {
        let right = permissions.right(&name).map(|right| right.key().to_owned());
        let [current, max] = counts(shared.limits.of_user(&name));
        vec![Some(name), right, current, max]
    };
    names.into_iter().map(row).collect()
}

fn state(shared: &Shared) -> Vec<Row> {
    let stopping = *shared.stop.borrow() != crate::session::registry::Stop::No;
    [
        ("active", !stopping),
        ("paused", shared.pools.paused().all),
        ("suspended", false),
        ("stopping", stopping),
    ]
    .map(|(key, value)| vec![text(key), yes_no(value)])
    .to_vec()
}

fn nodes(shared: &Shared) -> Vec<Row> {
    let status = shared.console.replicator.status();
    let rows = shared.nodes.iter().enumerate().map(|(index, node)| {
        let config = node.config();
        let health = &shared.health;
        let rtt = health.rtt_us(index).map(|us| f64::from(us) / 1000.0);
        let replication = status.nodes.get(index);
        let of = |value: fn(&tandem_replicator::NodeStatus) -> Option<String>| {
            replication.and_then(value)
        };
        vec![
            text(node.name()),
            text(&config.id),
            config.zone.clone(),
            text(&config.host),
            text(&config.port),
            text(health.health(index).word()),
            yes_no(health.usable(index)),
            health.problem(index).map(|problem| (*problem).clone()),
            rtt.map(|rtt| format!("{rtt:.3}")),
            text(&node.sessions()),
            text(&shared.pools.connections(index)),
            handoff(shared, index),
            text(&health.epoch()),
            of(|node| text(node.state)),
            of(|node| {
                node.problem
                    .clone()
                    .or_else(|| node.capture_problem.clone())
            }),
            of(|node| node.clock.offset_ms.map(|offset| format!("{offset:.3}"))),
            of(|node| node.clock.fenced.clone()),
            of(|node| text(&node.slot.as_ref()?.retained_bytes)),
            of(|node| text(&node.journal.bytes)),
        ]
    });
    rows.collect()
}

/// The last handoff of a node's keys, or the one that is under way.
fn handoff(shared: &Shared, node: usize) -> Option<String> {
    let report = shared.handoffs.report(node)?;
    let kind = report.kind.word();
    Some(match report.outcome {
        None => format!("{kind}: under way"),
        Some(outcome) => {
            let [took, parked] =
                [report.took, report.parked].map(|time| time.as_secs_f64() * 1000.0);
            format!(
                "{kind}: {} in {took:.0} ms, waits of {parked:.1} ms",
                outcome.word()
            )
        }
    })
}

/// Where a statement would go now that is not in a transaction, and why.
fn route(shared: &Shared, user: &str, asked: &Route) -> Answer {
    let user = asked.user.as_deref().unwrap_or(user);
    let settings = shared.settings.load();
    let database = &settings.config.replication.database;
    let database = asked.database.as_deref().unwrap_or(database);
    let hints = Hints {
        application_name: asked.application_name.as_deref().map(Into::into),
        key: asked.key.as_deref().map(Into::into),
        ..Hints::default()
    };
    let unusable = route::unusable(shared);
    let Some(chosen) = route::choose(shared, user, database, &hints, &unusable) else {
        return Answer::rows(vec![vec![None, text("no node is healthy")]]);
    };
    let name = |node: usize| shared.nodes.get(node).map(|node| node.name().to_owned());
    if settings.config.proxy.pool.mode == PoolMode::Session {
        let notice =
            "in session mode the node is chosen at login, and the statement does not change it";
        let row = vec![name(chosen.node), Some(chosen.why)];
        return Answer::rows(vec![row]).with_notices(vec![notice.to_owned()]);
    }
    let chooser = Chooser {
        router: &shared.router,
        settings: &settings,
        nodes: &shared.nodes,
        health: &shared.health,
        session: hints.facts(user, database),
        search_path: None,
        transaction: Transaction::Autocommit,
        serializable: false,
        near: chosen.node,
        last: None,
        wrote: None,
        tells: true,
        may_go_beside: false,
    };
    let run = Run {
        text: asked.sql.as_bytes(),
        bound: None,
        types: &[],
        begins: false,
        homed: homed(asked.sql.as_bytes()),
    };
    let choice = chooser.choose(Some(run));
    let why = choice.line.map(Into::into);
    Answer::rows(vec![vec![choice.node.and_then(name), why]])
}

#[cfg(test)]
mod tests {
    use super::super::statement::Right;
    use super::*;

    #[test]
    fn help_names_the_key_that_gives_the_right() {
        let rows = help().rows;
        assert_eq!(rows.len(), VERBS.len());
        let needs: Vec<&str> = rows.iter().filter_map(|row| row[1].as_deref()).collect();
        let operate = Right::Operate.key();
        assert!(needs.contains(&operate) && needs.contains(&Right::Look.key()));
    }
}
