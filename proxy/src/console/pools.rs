//! Owns what the console shows of pools and servers, from their figures. Pure.

use std::{collections::BTreeMap, time::SystemTime};

use super::answer::{Row, text, yes_no};
use crate::{
    pool::figures::{Figures, PoolFigures, ServerFigures, ServerState, Totals},
    timing::{NodeLatency, Span, Times},
};

/// Columns of SHOW POOLS: PgBouncer's where it has them.
pub(super) const POOLS: &[&str] = &[
    "database",
    "user",
    "node",
    "cl_active",
    "cl_waiting",
    "sv_active",
    "sv_being_canceled",
    "sv_idle",
    "sv_login",
    "maxwait",
    "maxwait_us",
    "pool_mode",
];

/// Columns of SHOW SERVERS.
pub(super) const SERVERS: &[&str] = &[
    "type",
    "user",
    "database",
    "node",
    "state",
    "age_s",
    "link",
    "remote_pid",
    "tls",
    "prepared_statements",
    "id",
    "kept_for",
];

/// Columns of SHOW STATS. Times are in microseconds.
pub(super) const STATS: &[&str] = &[
    "database",
    "total_xact_count",
    "total_query_count",
    "total_received",
    "total_sent",
    "total_xact_time",
    "total_query_time",
    "total_wait_count",
    "total_wait_time",
];

/// Columns of SHOW LATENCY. Times are in microseconds.
pub(super) const LATENCY: &[&str] = &["node", "span", "count", "p50", "p90", "p99", "p999", "max"];

/// Rows of SHOW LATENCY, of the nodes with these names.
pub(super) fn latency<'a>(
    names: impl Iterator<Item = &'a str>,
    latency: &[NodeLatency],
) -> Vec<Row> {
    let of_node = |(name, node): (&str, &NodeLatency)| -> Vec<Row> {
        let row = |(span, times): (Span, &Times)| {
            let mut row = vec![text(name), text(span.word()), text(&times.count())];
            let shares = [0.5, 0.9, 0.99, 0.999, 1.0];
            row.extend(shares.map(|share| text(&times.quantile(share).as_micros())));
            row
        };
        node.spans().map(row).collect()
    };
    names.zip(latency).flat_map(of_node).collect()
}

/// Rows of SHOW POOLS.
pub(super) fn pools(figures: &Figures) -> Vec<Row> {
    let row = |pool: &PoolFigures| {
        vec![
            text(&pool.database),
            text(&pool.user),
            text(&pool.node),
            text(&pool.clients_active),
            text(&pool.clients_waiting),
            text(&pool.servers_active),
            text(&pool.servers_canceling),
            text(&pool.servers_idle),
            text(&pool.servers_opening),
            text(&pool.wait_max.as_secs()),
            text(&pool.wait_max.subsec_micros()),
            text(&pool.mode),
        ]
    };
    figures.pools.iter().map(row).collect()
}

/// Rows of SHOW SERVERS.
pub(super) fn servers(figures: &Figures, now: SystemTime) -> Vec<Row> {
    let row = |server: &ServerFigures| {
        let state = match server.state {
            ServerState::Active => "active",
            ServerState::Canceling => "being_canceled",
            ServerState::Idle => "idle",
        };
        // A clock that was set back makes nothing younger than new.
        let age = now.duration_since(server.opened).unwrap_or_default();
        vec![
            text("S"),
            text(&server.user),
            text(&server.database),
            text(&server.node),
            text(state),
            text(&age.as_secs()),
            server.client.map(|client| client.to_string()),
            text(&server.pid),
            yes_no(server.tls),
            text(&server.prepared),
            text(&server.id),
            server.hold.clone(),
        ]
    };
    figures.servers.iter().map(row).collect()
}

/// Rows of SHOW STATS: what went through all pools of a database.
pub(super) fn stats(figures: &Figures) -> Vec<Row> {
    let mut by_database: BTreeMap<&str, Totals> = BTreeMap::new();
    for pool in &figures.pools {
        let sum = by_database.entry(&pool.database).or_default();
        let more = &pool.totals;
        sum.transactions += more.transactions;
        sum.transaction_time += more.transaction_time;
        sum.queries += more.queries;
        sum.query_time += more.query_time;
        sum.received += more.received;
        sum.sent += more.sent;
        sum.waits += more.waits;
        sum.waited += more.waited;
    }
    let row = |(database, totals): (&str, Totals)| {
        vec![
            text(database),
            text(&totals.transactions),
            text(&totals.queries),
            text(&totals.received),
            text(&totals.sent),
            text(&totals.transaction_time.as_micros()),
            text(&totals.query_time.as_micros()),
            text(&totals.waits),
            text(&totals.waited.as_micros()),
        ]
    };
    by_database.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PoolMode;
    use std::time::Duration;

    fn pool(node: &str, database: &str, transactions: u64) -> PoolFigures {
        PoolFigures {
            node: node.to_owned(),
            database: database.to_owned(),
            user: "u".to_owned(),
            mode: PoolMode::Transaction,
            clients_active: 1,
            clients_waiting: 2,
            servers_active: 3,
            servers_canceling: 4,
            servers_idle: 5,
            servers_opening: 6,
            wait_max: Duration::from_millis(1500),
            totals: Totals {
                transactions,
                waited: Duration::from_micros(7),
                ..Totals::default()
            },
        }
    }

    fn texts(rows: &[Row]) -> Vec<String> {
        let cell = |cell: &Option<String>| cell.clone().unwrap_or_else(|| "-".to_owned());
        let line = |row: &Row| row.iter().map(cell).collect::<Vec<_>>().join(" ");
        rows.iter().map(line).collect()
    }

    #[test]
    fn pools_are_shown_and_summed_by_database() {
        let figures = Figures {
            pools: vec![pool("n1", "a", 1), pool("n2", "a", 2), pool("n1", "b", 3)],
            servers: Vec::new(),
        };
        assert_eq!(
            texts(&pools(&figures))[0],
            "a u n1 1 2 3 4 5 6 1 500000 transaction"
        );
        assert_eq!(
            texts(&stats(&figures)),
            ["a 3 0 0 0 0 0 0 14", "b 3 0 0 0 0 0 0 7"]
        );
        assert_eq!(pools(&figures)[0].len(), POOLS.len());
        assert_eq!(stats(&figures)[0].len(), STATS.len());
    }

    #[test]
    fn a_server_is_never_younger_than_new() {
        let server = ServerFigures {
            id: 7,
            node: "n1".to_owned(),
            database: "a".to_owned(),
            user: "u".to_owned(),
            state: ServerState::Canceling,
            pid: 42,
            client: None,
            opened: SystemTime::UNIX_EPOCH + Duration::from_secs(100),
            tls: true,
            prepared: 3,
            hold: Some("LISTEN".to_owned()),
            totals: Totals::default(),
        };
        let figures = Figures {
            pools: Vec::new(),
            servers: vec![server],
        };
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(
            texts(&servers(&figures, at(160))),
            ["S u a n1 being_canceled 60 - 42 yes 3 7 LISTEN"]
        );
        assert_eq!(servers(&figures, at(0))[0][5].as_deref(), Some("0"));
        assert_eq!(servers(&figures, at(0))[0].len(), SERVERS.len());
    }
}
