//! The words of the operator's commands: `conflicts`, `reapply`, `quarantine`.

use std::str::FromStr;

use clap::{Args, Subcommand};
use tandem_replicator::operator::{Assignment, ConflictFilter, ItemId};

use crate::cli::args::DaemonArguments;
use crate::config::parse_duration;

#[derive(Debug, Args)]
pub(in crate::cli) struct ConflictsArguments {
    #[command(flatten)]
    pub(super) daemon: DaemonArguments,
    /// Lines of this node only
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Lines since a time, such as `2026-11-22 10:00` (UTC unless it has a zone), or so long before now, such as 2h
    #[arg(long, value_name = "TIME|DURATION")]
    since: Option<Since>,
    /// Lines of this table only: schema.table, or table in any schema
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// Lines of this type only, such as update_origin_differs
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Show so many lines at most, the newest [default: 100]
    #[arg(long, value_name = "N", conflicts_with = "summary", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: Option<u32>,
    /// Count lines by table and type instead
    #[arg(long)]
    pub(super) summary: bool,
    /// Print what the daemon answered, as JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl ConflictsArguments {
    pub(super) fn filter(&self) -> ConflictFilter {
        let (since, age_us) = match &self.since {
            None => (None, None),
            Some(Since::Time(text)) => (Some(text.clone()), None),
            Some(Since::AgeUs(age_us)) => (None, Some(*age_us)),
        };
        ConflictFilter {
            node: self.node.clone(),
            since,
            age_us,
            table: self.table.clone(),
            kind: self.kind.clone(),
            limit: self.limit,
        }
    }
}

/// Since when.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Since {
    /// A time, which PostgreSQL reads.
    Time(String),
    /// Microseconds before now.
    AgeUs(i64),
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match parse_duration(text) {
            Ok(age) => i64::try_from(age.as_micros())
                .map(Self::AgeUs)
                .map_err(|_| format!("{text} is too long")),
            // A time of a day or a date, or a word such as `yesterday`.
            Err(_) if text.contains(['-', ':']) || text.starts_with(char::is_alphabetic) => {
                Ok(Self::Time(text.to_owned()))
            }
            Err(problem) => Err(problem),
        }
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ReapplyArguments {
    #[command(flatten)]
    pub(super) daemon: DaemonArguments,
    /// Which line of the conflict log
    #[arg(value_name = "NODE/ID")]
    pub(super) id: ItemId,
    /// Also if it was reapplied before
    #[arg(long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct QuarantineArguments {
    #[command(subcommand)]
    pub(super) command: QuarantineCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum QuarantineCommand {
    /// List what is in quarantine, and why
    List(ListArguments),
    /// Show every change of a transaction
    Show(ShowArguments),
    /// Have it tried now, and tell what came of it (exit code 1: still refused)
    Retry(RetryArguments),
    /// Give a transaction up on the node that refuses it
    ///
    /// Its changes go to the node's conflict log, from where `reapply` can write them again, and those behind it go on.
    /// Until then the node differs from the others.
    Skip(SkipArguments),
    /// Change what a transaction writes, so that the node takes it, and have it tried
    ///
    /// The columns are set in every row that it inserts or updates. What it wrote before goes to the node's conflict
    /// log. The row differs from the other nodes' until it is written again.
    Edit(EditArguments),
}

#[derive(Debug, Args)]
pub(super) struct ListArguments {
    #[command(flatten)]
    pub(super) daemon: DaemonArguments,
    /// What this node refuses only
    #[arg(long, value_name = "NODE")]
    pub(super) node: Option<String>,
    /// Print what the daemon answered, as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ShowArguments {
    #[command(flatten)]
    pub(super) daemon: DaemonArguments,
    /// Which transaction
    #[arg(value_name = "NODE/ID")]
    pub(super) id: ItemId,
    /// Print what the daemon answered, as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct RetryArguments {
    #[command(flatten)]
    pub(super) daemon: DaemonArguments,
    /// Which transaction; all of them if none is named
    #[arg(value_name = "NODE/ID", conflicts_with = "node")]
    pub(super) id: Option<ItemId>,
    /// All that this node refuses
    #[arg(long, value_name = "NODE")]
    pub(super) node: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct SkipArguments {
    #[command(flatten)]
    pub(super) daemon: DaemonArguments,
    /// Which transaction
    #[arg(value_name = "NODE/ID")]
    pub(super) id: ItemId,
}

#[derive(Debug, Args)]
pub(super) struct EditArguments {
    #[command(flatten)]
    pub(super) daemon: DaemonArguments,
    /// Which transaction
    #[arg(value_name = "NODE/ID")]
    pub(super) id: ItemId,
    /// A column and its new value; may be repeated
    #[arg(
        long,
        value_name = "SCHEMA.TABLE.COLUMN=VALUE",
        required_unless_present = "null"
    )]
    pub(super) set: Vec<Assignment>,
    /// A column that becomes NULL; may be repeated
    #[arg(long, value_name = "SCHEMA.TABLE.COLUMN", value_parser = Assignment::null)]
    pub(super) null: Vec<Assignment>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_duration_or_a_time() {
        assert_eq!("2h".parse(), Ok(Since::AgeUs(7_200_000_000)));
        for time in ["2026-11-22 10:00", "10:00", "yesterday"] {
            assert_eq!(time.parse(), Ok(Since::Time(time.to_owned())));
        }
        let refused = "30".parse::<Since>().expect_err("no unit");
        assert!(refused.contains("the unit is missing"), "{refused}");
    }
}
