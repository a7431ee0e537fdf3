//! The words of `tandem drill`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::fault::Scenario;
use super::verdict::Thresholds;
use crate::cli::args::ConfigArgument;
use crate::config::parse_duration;

pub(in crate::cli) const EXAMPLES: &str = "\
Examples:
  tandem drill kill
  tandem drill stop --node paris --for 10s --max-gap 2s --max-disconnected 0 --html drill.html
  tandem drill drain --node paris --max-failed 0 --max-disconnected 0 --max-conflicts 0
  tandem drill flap --for 1min --json -- -c 32 -j 4 -S
  tandem drill partition --node paris --url postgres://app:secret@10.0.0.9:6432/app --break ./cut.sh --mend ./heal.sh

Exit codes: 0 passed, 1 a threshold is not met or a write is lost, 2 the command line is wrong, 3 could not run.

The ledger's table, public.tandem_drill, is made on every node, and dropped when nothing was found to be wrong.";

#[derive(Debug, Args)]
pub(in crate::cli) struct DrillArguments {
    #[command(flatten)]
    pub(super) config: ConfigArgument,
    /// What befalls the node
    #[arg(value_enum, value_name = "SCENARIO")]
    pub(super) scenario: Scenario,
    /// The node [default: one that is home of some of the ledger's keys, by the seed]
    #[arg(long, value_name = "NODE")]
    pub(super) node: Option<String>,
    /// When it happens, after the load's start
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = parse_duration)]
    pub(super) at: Duration,
    /// How long it lasts; `restart` takes as long as it takes
    #[arg(long = "for", default_value = "5s", value_name = "TIME", value_parser = parse_duration)]
    pub(super) hold: Duration,
    /// How long the load goes on behind that, the time of the mending included
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = parse_duration)]
    pub(super) after: Duration,
    /// How long the same load runs without the fault before, for comparison; 0s for not at all
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = parse_duration)]
    pub(super) control: Duration,
    /// What is random (the node, pgbench's numbers) comes from this [default: the time]
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,
    /// Who connects to the proxy as what [default: for `tandem dev`, its role `app`]
    #[arg(long, value_name = "postgres://USER:PASSWORD@HOST:PORT/DATABASE")]
    pub(super) url: Option<String>,
    /// Transactions per second [default: what --saturation makes of a short run at full speed]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) rate: Option<u32>,
    /// How much of what the cluster can do is asked of it, where no --rate is given, in percent
    #[arg(long, default_value_t = 40, value_name = "PERCENT", conflicts_with = "rate", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) saturation: u32,
    /// How often pgbench tries a transaction; 0 for any number
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = max_tries)]
    pub(super) max_tries: u32,
    /// How often each client of the ledger writes
    #[arg(long, default_value = "10ms", value_name = "TIME", value_parser = parse_duration)]
    pub(super) every: Duration,
    /// A key that the ledger writes under; may be repeated [default: keys of the first placement, two for each node]
    #[arg(long = "key", value_name = "PLACEMENT:KEY")]
    pub(super) keys: Vec<String>,
    /// What sh runs to break the node, with TANDEM_NODE, TANDEM_NODE_HOST and TANDEM_NODE_PORT; without it servers of
    /// `tandem dev` are broken by the drill itself
    #[arg(long = "break", value_name = "COMMAND", requires = "mending")]
    pub(super) breaking: Option<String>,
    /// What sh runs to mend it
    #[arg(long = "mend", value_name = "COMMAND", requires = "breaking")]
    pub(super) mending: Option<String>,
    /// How long to wait for all nodes to have everything
    #[arg(long, default_value = "2min", value_name = "TIME", value_parser = parse_duration)]
    pub(super) converge_timeout: Duration,
    #[command(flatten)]
    pub(super) thresholds: Thresholds,
    /// Print the report as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Write the report as a page with a picture
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// pgbench's arguments, instead of TPC-B by branch with 16 clients
    #[arg(last = true, value_name = "PGBENCH ARGUMENTS")]
    pub(super) pgbench: Vec<String>,
}

/// Only with tries to count pgbench writes them into its log.
fn max_tries(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(1) => Err("a drill needs 2 tries or more, or 0 for any number".to_owned()),
        Ok(tries) => Ok(tries),
        Err(_) => Err("write a number".to_owned()),
    }
}
