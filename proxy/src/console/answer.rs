//! Owns what a statement is answered with: rows of texts, a tag, notices; and which columns each statement has. Pure.

use serde::Serialize;
use serde_json::Value;

use super::{
    clients, pools, recovery, rules,
    statement::{Quarantine, Show, Statement},
};
use crate::daemon::Shutdown;

/// One row; `None` is NULL.
pub(super) type Row = Vec<Option<String>>;

/// What a statement is answered with.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) rows: Vec<Row>,
    /// Sentences beside the rows.
    pub(super) notices: Vec<String>,
    /// What is done once the client has the answer.
    pub(super) then: Option<Shutdown>,
}

impl Answer {
    pub(super) fn rows(rows: Vec<Row>) -> Answer {
        Answer {
            rows,
            ..Answer::default()
        }
    }

    #[must_use]
    pub(super) fn with_notices(mut self, notices: Vec<String>) -> Answer {
        self.notices = notices;
        self
    }
}

const CONFLICTS: &[&str] = &[
    "id",
    "detected",
    "relation",
    "type",
    "operation",
    "resolver",
    "outcome",
    "local_image",
    "local_timestamp",
    "local_node",
    "remote_image",
    "remote_timestamp",
    "remote_node",
    "reapplied",
];

const QUARANTINED: &[&str] = &[
    "id",
    "source",
    "committed",
    "quarantined",
    "attempts",
    "edits",
    "behind",
    "changes",
    "tables",
    "reason",
];

const NODES: &[&str] = &[
    "name",
    "id",
    "zone",
    "host",
    "port",
    "health",
    "usable",
    "problem",
    "rtt_ms",
    "sessions",
    "connections",
    "handoff",
    "epoch",
    "replication",
    "replication_problem",
    "clock_offset_ms",
    "fenced",
    "slot_retained_bytes",
    "journal_bytes",
];

pub(super) const DATABASES: &[&str] = &[
    "name",
    "host",
    "port",
    "database",
    "node",
    "pool_mode",
    "current_client_connections",
    "max_client_connections",
    "paused",
];

const USERS: &[&str] = &[
    "name",
    "console",
    "current_client_connections",
    "max_client_connections",
];

const LAG: &[&str] = &[
    "source",
    "target",
    "state",
    "lag_ms",
    "lag_transactions",
    "lag_bytes",
    "transactions",
    "conflicts",
    "quarantined",
    "problem",
];

impl Statement {
    /// The columns of its rows; none where it has no rows. Where an answer is made of something that is also told as
    /// JSON, these are its keys.
    pub(super) fn columns(&self) -> &'static [&'static str] {
        match self {
            Statement::Help => &["statement", "needs", "does"],
            Statement::Show(show) => match show {
                Show::Version => &["version"],
                Show::Config => &["key", "value", "changeable"],
                Show::Databases => DATABASES,
                Show::Lists => &["list", "items"],
                Show::Users => USERS,
                Show::State => &["key", "value"],
                Show::Pools => pools::POOLS,
                Show::Clients => clients::CLIENTS,
                Show::Servers => pools::SERVERS,
                Show::Stats => pools::STATS,
                Show::Latency => pools::LATENCY,
                Show::Nodes => NODES,
                Show::Lag => LAG,
                Show::Rules => rules::RULES,
                Show::HostRules => &["line", "rule"],
                Show::Recovery => recovery::RECOVERY,
                Show::RecoveryRows { .. } => recovery::ROWS,
                Show::ConflictSummary(_) => &["relation", "type", "lines", "reapplied", "newest"],
                Show::Conflicts(_) => CONFLICTS,
                Show::Route(_) => &["node", "why"],
            },
            Statement::Quarantine(quarantine) => match quarantine {
                Quarantine::List { .. } => QUARANTINED,
                Quarantine::Show(_) => &["table", "operation", "old", "new"],
                Quarantine::Retry(_) => &["id", "outcome", "reason"],
                Quarantine::Skip(_) => &["id", "lines", "counters"],
                Quarantine::Edit { .. } => &["id", "changes", "outcome", "reason"],
            },
            Statement::Reapply { .. } => &["id", "table", "done", "left_out"],
            Statement::Set
            | Statement::Reload
            | Statement::Shutdown(_)
            | Statement::Pause { .. }
            | Statement::Resume { .. }
            | Statement::Drain { .. }
            | Statement::Reconnect { .. }
            | Statement::Kill { .. }
            | Statement::KillClient(_)
            | Statement::Missing(_) => &[],
        }
    }

    /// The command tag.
    pub(super) fn tag(&self) -> &'static str {
        match self {
            Statement::Help => "HELP",
            Statement::Show(_) => "SHOW",
            Statement::Set => "SET",
            Statement::Reload => "RELOAD",
            Statement::Shutdown(_) => "SHUTDOWN",
            Statement::Pause { .. } => "PAUSE",
            Statement::Resume { .. } => "RESUME",
            Statement::Drain { .. } => "DRAIN",
            Statement::Reconnect { .. } => "RECONNECT",
            Statement::Kill { .. } => "KILL",
            Statement::KillClient(_) => "KILL_CLIENT",
            Statement::Quarantine(_) => "QUARANTINE",
            Statement::Reapply { .. } => "REAPPLY",
            Statement::Missing(verb) => verb,
        }
    }
}

/// The values of `columns` in what is told as JSON.
pub(super) fn json_rows<T: Serialize>(values: &[T], columns: &[&str]) -> Vec<Row> {
    let rows = values.iter().map(|value| {
        // What is shown here is made of texts and numbers, which always can be written.
        let value = serde_json::to_value(value).unwrap_or_default();
        let cells = columns.iter().map(|key| cell(value.get(key)?));
        cells.collect()
    });
    rows.collect()
}

fn cell(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(values) if values.iter().all(Value::is_string) => {
            let texts: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
            Some(texts.join(", "))
        }
        other => Some(other.to_string()),
    }
}

/// A cell of anything that can be shown.
pub(super) fn text<T: ToString + ?Sized>(value: &T) -> Option<String> {
    Some(value.to_string())
}

/// `yes` or `no`, as PgBouncer has it.
pub(super) fn yes_no(value: bool) -> Option<String> {
    text(if value { "yes" } else { "no" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_becomes_rows_by_its_keys() {
        let values = [json!({ "a": 1, "b": null, "c": ["x", "y"], "d": { "k": [1] }, "e": "t\n" })];
        let rows = json_rows(&values, &["e", "a", "b", "c", "d", "missing"]);
        let wanted = [
            Some("t\n"),
            Some("1"),
            None,
            Some("x, y"),
            Some("{\"k\":[1]}"),
            None,
        ];
        assert_eq!(rows, [wanted.map(|cell| cell.map(str::to_owned)).to_vec()]);
    }
}
