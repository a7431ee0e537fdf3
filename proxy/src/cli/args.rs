//! The words of the command line: every command, flag, default and help text.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::dev_options::{DevOptions, PgBin};
use super::drill::{self, DrillArguments};
use super::operator::{ConflictsArguments, QuarantineArguments, ReapplyArguments};
use crate::config::parse_duration;

const EXIT_CODES: &str = "\
Exit codes:
  0   done, or the answer is yes
  1   failed, or the answer is no
  2   the command line is wrong
  3   `drill` could not run
  64  the configuration is wrong (`check` answers 1)
  69  the daemon does not answer

Environment:
  TANDEM_LOG  what is logged, such as `debug` or `tandem=debug,info` (default: info for `run` and `dev`, else warn)";

/// Several PostgreSQL primaries behind one port, kept equal.
#[derive(Debug, Parser)]
#[command(name = "tandem", version, about, after_help = EXIT_CODES, max_term_width = 100)]
pub(super) struct Arguments {
    /// How log lines on standard error look
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub(super) log_format: LogFormat,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the daemon: proxy, replicator and admin port
    ///
    /// SIGTERM lets sessions end (up to `shutdown_timeout`), SIGINT ends them at once; so does a second signal.
    #[command(
        after_help = "Example:\n  tandem run --config /etc/tandem/tandem.toml --log-format json"
    )]
    Run(RunArguments),
    /// Start local PostgreSQL primaries and the daemon over them
    ///
    /// Prints how to connect, and a line beginning with `ready` once a write on each node is visible on all. Ctrl-C
    /// stops all it started; the next start on the same directory goes on with its data.
    #[command(after_help = DEV_EXAMPLES)]
    Dev(DevArguments),
    /// Check the configuration, the rules and the nodes
    ///
    /// Every problem is told with file, line, column and a mend. Then each node is asked whether it can be a member.
    #[command(
        after_help = "Examples:\n  tandem check --config tandem.toml\n  tandem check --config tandem.toml --offline"
    )]
    Check(CheckArguments),
    /// Tell which node a session would go to, and why
    ///
    /// Nothing is connected to: every node counts as healthy and equally near, except those given with --down.
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(ExplainArguments),
    /// Show nodes and replication as the daemon sees them
    #[command(
        after_help = "Examples:\n  tandem status\n  tandem status --json | jq .replication.links"
    )]
    Status(StatusArguments),
    /// Wait until every change committed before this call is applied on all nodes
    ///
    /// Exits with 0 then, and with 1 and the lags when the time is over.
    #[command(after_help = "Example:\n  tandem wait-converged --timeout 2min")]
    WaitConverged(WaitArguments),
    /// Take a node out of service: its keys move to the others, without an error for a client
    ///
    /// It goes on being replicated to and from. Transactions that are under way come to their end first; what takes longer than
    /// `handoff_hard` is dealt with as `handoff_at_bound` says. Exits with 1 when the node stays in service. It stays drained
    /// over restarts, of the node and of the daemon, until it is resumed.
    #[command(after_help = "Example:\n  tandem drain paris --wait")]
    Drain(DrainArguments),
    /// Take a drained node back into service: it catches up, and its keys come home
    #[command(after_help = "Example:\n  tandem resume paris")]
    Resume(ResumeArguments),
    /// Compare all nodes: every row of every table, with its version
    ///
    /// The nodes stay in use: what differs is looked at again after everything committed before has been applied
    /// everywhere, so that lag is no difference. Exits with 0 when all nodes are equal, and with 1 otherwise.
    #[command(after_help = DIFF_EXAMPLES)]
    Diff(DiffArguments),
    /// Compare all nodes and mend what differs
    ///
    /// Every node gets the newest version of a row, under that version; a remembered delete counts as one. Exits with 0 when
    /// nothing differs any more.
    #[command(after_help = REPAIR_EXAMPLES)]
    Repair(RepairArguments),
    /// List writes that lost against newer ones, the newest first
    ///
    /// These are the lines of `tandem.conflict` of all nodes, with both rows and both versions. A line stands on the node
    /// where the two met, under a number of that node's.
    #[command(after_help = CONFLICTS_EXAMPLES)]
    Conflicts(ConflictsArguments),
    /// Write a losing write again, as a new change that wins
    ///
    /// On the node where the line stands: an ordinary transaction of Tandem's role, with the triggers and constraints of
    /// the table. A delete that lost deletes the row. Values that the line lacks, and counters, are left as they are.
    #[command(
        after_help = "Examples:\n  tandem reapply paris/17\n  tandem reapply paris/17 --force"
    )]
    Reapply(ReapplyArguments),
    /// See to transactions that a node refuses
    ///
    /// They wait on that node, with all that changes the same keys, and are tried again every 5 seconds.
    #[command(after_help = QUARANTINE_EXAMPLES)]
    Quarantine(QuarantineArguments),
    /// Break a node under load, mend it, and tell what that cost
    ///
    /// Runs pgbench through the proxy, and beside it a ledger of writes of its own, each of which is looked for on every node
    /// in the end. Tells gaps, errors, conflicts and the time to converge, beside the same load without the fault.
    #[command(after_help = drill::EXAMPLES)]
    Drill(Box<DrillArguments>),
    /// Write a configuration that does what a pgbouncer.ini says
    ///
    /// What cannot be carried over is told on standard error: file, line, what it is, and what to do instead.
    #[command(
        after_help = "Examples:\n  tandem import-pgbouncer /etc/pgbouncer/pgbouncer.ini\n  tandem import-pgbouncer pgbouncer.ini --database app --out tandem.toml"
    )]
    ImportPgbouncer(ImportArguments),
    /// Print where a pinned PostgreSQL has its programs, and fetch it first where it is not there
    ///
    /// There is one of major 17 and one of 18, for Linux on x86_64. Their hash is checked; they stay in a cache directory.
    #[command(
        after_help = "Example:\n  tandem postgres 17\nIn a shell:\n    tandem dev --pg-bin 2=$(tandem postgres 17)"
    )]
    Postgres(PostgresArguments),
}

const DEV_EXAMPLES: &str = "\
Examples:
  tandem dev
  tandem dev --nodes 5 --port 7432 --init schema.sql
  tandem dev --pg-bin /usr/lib/postgresql/15/bin --pg-bin 3=/opt/postgresql-18/bin
  tandem dev --pgbench 5";

const CONFLICTS_EXAMPLES: &str = "\
Examples:
  tandem conflicts --since 2h --table public.item
  tandem conflicts --summary
  tandem conflicts --json | jq '.conflicts[0].remote_image'";

const QUARANTINE_EXAMPLES: &str = "\
Examples:
  tandem quarantine list
  tandem quarantine show paris/3
  tandem quarantine edit paris/3 --set public.item.amount=9 --null public.item.note
  tandem quarantine retry
  tandem quarantine skip paris/3";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  tandem explain 'UPDATE bikes SET free = true WHERE station_id = 7'
  tandem explain --user batch --application-name nightly-load
  tandem explain --user app --session tandem.key=station:42 --down paris";

const DIFF_EXAMPLES: &str = "\
Examples:
  tandem diff
  tandem diff --table public.bikes --table audit.*
  tandem diff --json | jq .key";

const REPAIR_EXAMPLES: &str = "\
Examples:
  tandem repair --dry-run
  tandem repair
  tandem repair --table public.bikes --source paris";

/// Where the configuration is.
#[derive(Debug, Args)]
pub(super) struct ConfigArgument {
    /// The configuration [default: ./tandem.toml, else .tandem/tandem.toml]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct RunArguments {
    #[command(flatten)]
    pub(super) config: ConfigArgument,
}

#[derive(Debug, Args)]
pub(super) struct DevArguments {
    /// How many primaries to start
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    nodes: u16,
    /// The directory that keeps the cluster
    #[arg(long, default_value = ".tandem", value_name = "DIR")]
    dir: PathBuf,
    /// The proxy's port
    #[arg(long, default_value_t = 6432, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// The admin port
    #[arg(long, default_value_t = 6433, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    admin_port: u16,
    /// Node i listens on this port plus i - 1
    #[arg(long, default_value_t = 6501, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    base_port: u16,
    /// Reach each node through a relay, so that `tandem drill partition` can cut it off; its server listens --nodes ports
    /// higher
    #[arg(long)]
    relays: bool,
    /// PostgreSQL's programs, for all nodes or for one by name or number; may be repeated
    #[arg(long, value_name = "[NODE=]DIR")]
    pg_bin: Vec<PgBin>,
    /// The database to create and keep converged
    #[arg(long, default_value = "app", value_name = "NAME", value_parser = database_name)]
    database: String,
    /// Any part of a tandem.toml to start from; the rest is filled in
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A rules file to start from
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// SQL to run on every node before the cluster starts; its rows count as older than any write; may be repeated
    #[arg(long, value_name = "FILE.sql")]
    init: Vec<PathBuf>,
    /// Create pgbench's tables at this scale, in the same way
    #[arg(long, value_name = "SCALE", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pgbench: Option<u32>,
}

impl From<DevArguments> for DevOptions {
    fn from(arguments: DevArguments) -> Self {
        let DevArguments {
            nodes,
            dir,
            port,
            admin_port,
            base_port,
            relays,
            pg_bin,
            database,
            config,
            rules,
            init,
            pgbench,
        } = arguments;
        Self {
            nodes,
            dir,
            port,
            admin_port,
            base_port,
            relays,
            pg_bin,
            database,
            config,
            rules,
            init,
            pgbench,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct PostgresArguments {
    /// The major version, 17 or 18
    pub(super) major: u32,
}

#[derive(Debug, Args)]
pub(super) struct ImportArguments {
    /// The pgbouncer.ini
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Write to this file, which must not exist, instead of standard output
    #[arg(long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
    /// The database to keep converged [default: the first that the file names]
    #[arg(long, value_name = "NAME", value_parser = database_name)]
    pub(super) database: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct CheckArguments {
    #[command(flatten)]
    pub(super) config: ConfigArgument,
    /// Check the files only, connect to nothing
    #[arg(long)]
    pub(super) offline: bool,
}

#[derive(Debug, Args)]
pub(super) struct ExplainArguments {
    #[command(flatten)]
    pub(super) config: ConfigArgument,
    /// A statement, by itself a transaction; without it the session as a whole is explained. No server is asked: a view
    /// counts as a table, and a function that is not PostgreSQL's own as a write
    #[arg(value_name = "SQL")]
    pub(super) sql: Option<String>,
    /// The user who connects
    #[arg(long, value_name = "NAME", required_unless_present = "sql")]
    pub(super) user: Option<String>,
    /// The database connected to [default: the one kept converged]
    #[arg(long, value_name = "NAME")]
    pub(super) database: Option<String>,
    /// What the client calls itself
    #[arg(long, value_name = "NAME")]
    pub(super) application_name: Option<String>,
    /// A setting given at connect, such as `tandem.key=PLACEMENT:KEY`; may be repeated
    #[arg(long = "session", value_name = "KEY=VALUE", value_parser = session_setting)]
    pub(super) options: Vec<(Box<str>, Box<str>)>,
    /// The address that the client comes from
    #[arg(long, value_name = "ADDRESS")]
    pub(super) client: Option<IpAddr>,
    /// Take this node for down; may be repeated
    #[arg(long, value_name = "NODE")]
    pub(super) down: Vec<String>,
}

/// Which daemon to ask.
#[derive(Debug, Args)]
pub(super) struct DaemonArguments {
    #[command(flatten)]
    pub(super) config: ConfigArgument,
    /// The daemon's admin address instead of the configuration's
    #[arg(long, value_name = "URL", requires = "token_file", conflicts_with = "config", value_parser = admin_address)]
    pub(super) admin: Option<String>,
    /// The file with the admin token instead of the configuration's
    #[arg(long, value_name = "FILE", requires = "admin")]
    pub(super) token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct StatusArguments {
    #[command(flatten)]
    pub(super) daemon: DaemonArguments,
    /// Print what the daemon answered, as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct DrainArguments {
    /// The node's name
    pub(super) node: String,
    /// Say what is waited for, and wait until no client has a connection to the node any more
    #[arg(long)]
    pub(super) wait: bool,
    #[command(flatten)]
    pub(super) daemon: DaemonArguments,
}

#[derive(Debug, Args)]
pub(super) struct ResumeArguments {
    /// The node's name
    pub(super) node: String,
    #[command(flatten)]
    pub(super) daemon: DaemonArguments,
}

#[derive(Debug, Args)]
pub(super) struct WaitArguments {
    #[command(flatten)]
    pub(super) daemon: DaemonArguments,
    /// How long to wait, such as 500ms, 30s or 2min
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = parse_duration)]
    pub(super) timeout: Duration,
}

#[derive(Debug, Args)]
pub(super) struct DiffArguments {
    #[command(flatten)]
    pub(super) daemon: DaemonArguments,
    /// Compare this table only, `schema.table` or `table`, `*` for any run of characters; may be repeated
    #[arg(long = "table", value_name = "TABLE")]
    pub(super) tables: Vec<String>,
    /// List so many differences; the rest is counted
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub(super) limit: u64,
    /// Print one JSON object per difference, and one for the outcome
    #[arg(long)]
    pub(super) json: bool,
    /// Show progress on standard error even if that is no terminal
    #[arg(long)]
    pub(super) progress: bool,
}

#[derive(Debug, Args)]
pub(super) struct RepairArguments {
    #[command(flatten)]
    pub(super) compare: DiffArguments,
    /// Take this node's rows for right, whatever the versions say: they are written there once more as new changes, and
    /// rows that it does not have are deleted on the others
    #[arg(long, value_name = "NODE")]
    pub(super) source: Option<String>,
    /// Only tell what would be done; exits with 1 if there is anything to do
    #[arg(long)]
    pub(super) dry_run: bool,
}

/// `KEY=VALUE` to its halves.
fn session_setting(text: &str) -> Result<(Box<str>, Box<str>), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("write KEY=VALUE, such as tandem.key=PLACEMENT:KEY".to_owned()),
    }
}

/// PostgreSQL cuts longer names silently (NAMEDATALEN).
fn database_name(text: &str) -> Result<String, String> {
    match text.len() {
        1..=63 => Ok(text.to_owned()),
        _ => Err("a database's name has 1 to 63 bytes".to_owned()),
    }
}

/// `http://HOST:PORT` or `HOST:PORT` to `HOST:PORT`.
fn admin_address(text: &str) -> Result<String, String> {
    let authority = match text.split_once("://") {
        Some(("http", rest)) => rest.trim_end_matches('/'),
        Some((scheme, _)) => return Err(format!("the admin port speaks http, not {scheme}")),
        None => text,
    };
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    match has_port && !authority.contains('/') {
        true => Ok(authority.to_owned()),
        false => Err("write http://HOST:PORT".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Arguments::try_parse_from(line.split(' ')).map(|arguments| arguments.command)
    }

    #[test]
    fn the_definitions_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_help_text_and_documented_exit_codes() {
        assert!(
            Arguments::command()
                .render_long_help()
                .to_string()
                .contains("64  the configuration is wrong")
        );
        for command in Arguments::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                help.contains("  tandem "),
                "{} has an example",
                command.get_name()
            );
        }
    }

    #[test]
    fn every_example_of_the_help_texts_is_a_valid_command_line() {
        let mut seen = 0;
        for command in Arguments::command().get_subcommands() {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            for example in help
                .lines()
                .filter_map(|line| line.strip_prefix("  tandem "))
            {
                let line = example.split(" | ").next().unwrap();
                // What stands in quotes is one word.
                let words = line
                    .split('\'')
                    .enumerate()
                    .map(|(place, part)| match place % 2 {
                        0 => part.to_owned(),
                        _ => part.replace(' ', "_"),
                    });
                let line: String = words.collect();
                parse(&format!("tandem {line}")).unwrap_or_else(|error| panic!("{line}: {error}"));
                seen += 1;
            }
        }
        assert!(seen >= 10);
    }

    #[test]
    fn dev_s_defaults_are_the_documented_ones() {
        let Command::Dev(arguments) = parse("tandem dev").unwrap() else {
            panic!()
        };
        let wanted = DevOptions {
            nodes: 3,
            dir: ".tandem".into(),
            port: 6432,
            admin_port: 6433,
            base_port: 6501,
            relays: false,
            pg_bin: Vec::new(),
            database: "app".to_owned(),
            config: None,
            rules: None,
            init: Vec::new(),
            pgbench: None,
        };
        assert_eq!(DevOptions::from(arguments), wanted);
    }

    #[test]
    fn dev_reads_every_flag() {
        let line = "tandem dev --nodes 5 --dir d --port 1 --admin-port 2 --base-port 3 --pg-bin a --pg-bin 2=b \
                    --database db --config c --rules r --init x.sql --init y.sql --pgbench 5";
        let Command::Dev(arguments) = parse(line).unwrap() else {
            panic!()
        };
        let options = DevOptions::from(arguments);
        assert_eq!(
            (
                options.nodes,
                options.port,
                options.admin_port,
                options.base_port
            ),
            (5, 1, 2, 3)
        );
        assert_eq!(
            options.pg_bin[1],
            PgBin {
                node: Some("2".to_owned()),
                dir: "b".into()
            }
        );
        assert_eq!(
            options.init,
            [PathBuf::from("x.sql"), PathBuf::from("y.sql")]
        );
        assert_eq!(
            (options.database.as_str(), options.pgbench),
            ("db", Some(5))
        );
    }

    #[test]
    fn the_commands_of_the_design_page_are_read() {
        for line in [
            "tandem run --config tandem.toml",
            "tandem dev",
            "tandem check --config F",
            "tandem explain --config F --user u --session tandem.key=station:42",
            "tandem explain --config F --session tandem.key=station:42 SELECT",
            "tandem status --json",
            "tandem wait-converged --timeout 30s",
            "tandem diff --table T --json",
            "tandem repair",
            "tandem conflicts --since 2h --json",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn wrong_command_lines_are_refused_with_the_reason() {
        let table = [
            ("tandem dev --nodes 0", "1..=16"),
            ("tandem dev --port 0", "1..=65535"),
            ("tandem dev --pg-bin =x", "the node before `=` is missing"),
            ("tandem dev --pgbench 0", "1..=100000"),
            ("tandem wait-converged --timeout 30", "the unit is missing"),
            (
                "tandem explain --user u --session work_mem",
                "write KEY=VALUE",
            ),
            ("tandem status --admin http://h:1", "--token-file"),
            (
                "tandem status --admin https://h:1 --token-file t",
                "speaks http, not https",
            ),
            ("tandem status --admin h --token-file t", "http://HOST:PORT"),
            (
                "tandem status --config c --admin http://h:1 --token-file t",
                "cannot be used with",
            ),
            ("tandem run --log-format xml", "json"),
            ("tandem conflicts --since 30", "the unit is missing"),
            ("tandem conflicts --limit 0", "1..=10000"),
            (
                "tandem conflicts --limit 5 --summary",
                "cannot be used with",
            ),
            ("tandem reapply 7", "write NODE/ID"),
            ("tandem quarantine skip", "NODE/ID"),
            (
                "tandem quarantine retry n1/2 --node n1",
                "cannot be used with",
            ),
            ("tandem quarantine edit n1/2", "--set"),
            (
                "tandem quarantine edit n1/2 --set item.amount=1",
                "schema.table.column",
            ),
            (
                "tandem quarantine edit n1/2 --set public.item.amount",
                "--null schema.table.column",
            ),
        ];
        for (line, wanted) in table {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(wanted), "{line}: {error}");
        }
    }

    #[test]
    fn admin_addresses_are_cut_to_host_and_port() {
        assert_eq!(
            admin_address("http://127.0.0.1:6433/").as_deref(),
            Ok("127.0.0.1:6433")
        );
        assert_eq!(admin_address("[::1]:6433").as_deref(), Ok("[::1]:6433"));
        assert!(admin_address("http://h:1/path").is_err());
    }
}
