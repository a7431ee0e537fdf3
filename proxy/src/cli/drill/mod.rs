//! `tandem drill`: breaks a node on purpose under load, mends it, and says what that cost and whether anything was lost.
//!
//! Two things run through the proxy: pgbench ([`load`]), which is measured, and the [`ledger`], whose every write is looked
//! for on every node in the end ([`audit`]). What is measured is compared with the same load without the fault.

mod args;
pub mod audit;
mod fault;
pub mod ledger;
pub mod load;
mod report;
mod site;
pub mod timeline;
mod verdict;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tandem_wire::Connection;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinError;
use tokio::time::sleep;

pub(super) use args::{DrillArguments, EXAMPLES};

use self::audit::Audit;
use self::fault::{Fault, FaultError, Means, Moment, Scenario};
use self::ledger::{Client, History, Ledger};
use self::load::{Load, LoadError, Ran};
use self::report::{KeyReport, LoadReport, MomentReport, Phase, Report, Sums};
use self::site::Site;
use self::timeline::{Span, ms, now_us};
use super::{Exit, Failure, find_config, out};
use crate::config::Config;
use crate::dev::install::find_client_program;
use crate::dev::servers::{DevNode, node_of};

/// How long the run at full speed takes that tells what the cluster can do.
const SATURATION: Duration = Duration::from_secs(3);
/// Clients of the ledger for each node.
const CLIENTS_PER_NODE: usize = 2;
/// Keys that are tried for each node until every one is home of enough of them.
const KEYS_TRIED_PER_NODE: usize = 12;
/// Clients of pgbench that were lost and are told of by name.
const NOTES_MAX: usize = 5;

/// Why a drill could not be carried out.
#[derive(Debug, thiserror::Error)]
enum DrillError {
    #[error("node {node}: {problem}")]
    Node { node: String, problem: String },
    #[error(
        "two nodes call themselves \"{name}\": through addresses that they do not have themselves they cannot be told apart"
    )]
    Alike { name: String },
    #[error("[replication] leaves out {}, the ledger's table", ledger::TABLE)]
    NotReplicated,
    #[error("the nodes do not have the same to begin with: see `tandem status`")]
    NotConverged,
    #[error("node {node} is {health}: a drill begins with every node in service, or drained")]
    NotInService { node: String, health: String },
    #[error("the ledger cannot write through the proxy: {0}")]
    Enrol(String),
    #[error("interrupted")]
    Interrupted,
    #[error("{problem}; and node {node} could not be mended: {mending}")]
    NotMended {
        problem: String,
        node: String,
        mending: Box<FaultError>,
    },
    #[error("cannot write {}: {source}", path.display())]
    Html {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("internal: {0}")]
    Task(#[from] JoinError),
}

impl From<DrillError> for Failure {
    fn from(error: DrillError) -> Self {
        Self::other(error)
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::other(error)
    }
}

impl From<FaultError> for Failure {
    fn from(error: FaultError) -> Self {
        Self::other(error)
    }
}

/// `tandem drill`
pub(super) async fn drill(arguments: Box<DrillArguments>) -> Result<Exit, Failure> {
    match Box::pin(run(&arguments)).await {
        Err(Failure::Usage(problem)) => Err(Failure::Usage(problem)),
        Err(failure) => Err(Failure::NotRun(Box::new(failure))),
        Ok(report) => {
            match arguments.json {
                true => out::line(&serde_json::to_string_pretty(&report).map_err(Failure::other)?)?,
                false => out::line(&report::text(&report))?,
            }
            Ok(if report.passed { Exit::Yes } else { Exit::No })
        }
    }
}

/// Everything up to the report, which `--html` is made of already.
async fn run(arguments: &DrillArguments) -> Result<Report, Failure> {
    let mut stage = Box::pin(Stage::set(arguments)).await?;
    let seen = Box::pin(stage.play()).await?;
    let report = Box::pin(stage.judge(seen)).await?;
    if let Some(path) = &arguments.html {
        let page = report::html(&report);
        std::fs::write(path, page).map_err(|source| DrillError::Html {
            path: path.clone(),
            source,
        })?;
    }
    Ok(report)
}

/// Says how far it is, on standard error.
fn tell(text: &str) {
    eprintln!("{text}");
}

/// All that a drill needs, before anything is broken.
struct Stage<'a> {
    arguments: &'a DrillArguments,
    seed: u64,
    run: u64,
    site: Site,
    names: Vec<String>,
    load: Load,
    has_tables: bool,
    /// Logged in, and not writing yet.
    clients: Vec<(Client, Connection)>,
    broken: usize,
    fault: Fault,
}

/// What was seen while it ran.
struct Seen {
    histories: Vec<History>,
    saturation: Option<f64>,
    rate: Option<u32>,
    control: Option<(Span, Ran)>,
    span: Span,
    /// pgbench's part of it: it may end before the node is mended.
    load_span: Span,
    ran: Ran,
    moments: Vec<Moment>,
    converge: Option<Duration>,
    /// Whether the load by itself keeps pgbench's sums equal.
    load_keeps_sums: bool,
}

impl<'a> Stage<'a> {
    async fn set(arguments: &'a DrillArguments) -> Result<Self, Failure> {
        if let Some(word) = load::reserved(&arguments.pgbench) {
            let problem = format!(
                "`{word}` is the drill's to say to pgbench; it has options of its own for that"
            );
            return Err(Failure::Usage(problem));
        }
        let path = find_config(&arguments.config.config);
        let config = Config::load(&path)?;
        let ours: Vec<Option<DevNode>> = config
            .nodes
            .iter()
            .map(|node| node_of(&path, &node.name, node.port).map_err(Failure::Dev))
            .collect::<Result<_, _>>()?;
        let is_dev = ours.iter().any(Option::is_some);
        let wanted = match &arguments.node {
            Some(name) => Some(place_of(name, &config)?),
            None => None,
        };
        let means = |site: &Site, place: usize| {
            let node = ours.get(place).cloned().flatten();
            means(arguments, &path, site.hook_environment(place), node)
        };
        let site = Site::new(config, arguments.url.as_deref(), is_dev)?;
        // Before anything is written.
        means(&site, wanted.unwrap_or(0))?;

        let seed = arguments.seed.unwrap_or_else(|| now_us() & 0x7fff_ffff);
        let run = now_us();
        if site.converge(arguments.converge_timeout).await?.is_none() {
            return Err(DrillError::NotConverged.into());
        }
        site.in_service(arguments.converge_timeout).await?;
        let branches = site.branches().await?;
        let program = ours
            .iter()
            .flatten()
            .find_map(|node| node.server.install.client_program("pgbench"));
        let load = Load::new(
            program.or_else(|| find_client_program("pgbench")),
            site.environment(),
            &arguments.pgbench,
            branches,
            (arguments.max_tries, seed),
        )?;
        let identities = site.identities().await?;
        site.make_table().await?;
        let enrolled = enrol(&site, arguments, run, &identities).await?;
        // The rows that the clients keep are everywhere before a node can take one with it.
        if site.converge(arguments.converge_timeout).await?.is_none() {
            return Err(DrillError::NotConverged.into());
        }
        let mut homes: Vec<usize> = enrolled.iter().filter_map(|(.., home)| *home).collect();
        homes.sort_unstable();
        homes.dedup();
        let broken = match wanted {
            Some(place) => place,
            None => chosen(&homes, seed).unwrap_or(0),
        };
        let names = site.names();
        let name = names.get(broken).cloned().unwrap_or_default();
        let means = means(&site, broken)?;
        let clients = enrolled
            .into_iter()
            .map(|(client, connection, _)| (client, connection))
            .collect();
        Ok(Self {
            arguments,
            seed,
            run,
            names,
            load,
            has_tables: branches.is_some(),
            clients,
            broken,
            fault: Fault::new(arguments.scenario, &name, means),
            site,
        })
    }

    fn node(&self) -> &str {
        self.names.get(self.broken).map_or("", String::as_str)
    }

    /// Runs it all, the ledger from the beginning to the end.
    async fn play(&mut self) -> Result<Seen, Failure> {
        let arguments = self.arguments;
        let mut load_keeps_sums = self.has_tables && Sums::hold(&self.site.sums().await?);
        let ledger = Ledger::start(std::mem::take(&mut self.clients), arguments.every);
        let (saturation, rate) = self.rate().await?;

        let mut control = None;
        if !arguments.control.is_zero() {
            tell(&format!("Control run: {:?} …", arguments.control));
            let from_us = now_us();
            let running = self.load.start("control", arguments.control, rate)?;
            let ran = running.finish().await?;
            let to_us = now_us();
            control = Some((Span { from_us, to_us }, ran));
            if self
                .site
                .converge(arguments.converge_timeout)
                .await?
                .is_none()
            {
                return Err(DrillError::NotConverged.into());
            }
            load_keeps_sums = load_keeps_sums && Sums::hold(&self.site.sums().await?);
        }

        let (word, node) = (arguments.scenario.word(), self.node());
        tell(&format!(
            "Drill: {word} of node {node} in {:?} …",
            arguments.at
        ));
        let from_us = now_us();
        let time = arguments.at + arguments.hold + arguments.after;
        let running = self.load.start("drill", time, rate)?;
        let breaking = async {
            sleep(arguments.at).await;
            let moments = self.fault.carry_out(arguments.hold).await?;
            tell(&format!("Node {node} is mended …"));
            let converge = self.site.converge(arguments.converge_timeout).await?;
            Ok::<_, Failure>((moments, converge))
        };
        let loading = async { Ok((running.finish().await?, now_us())) };
        let both = async { tokio::try_join!(breaking, loading) };
        let outcome = tokio::select! {
            outcome = both => outcome,
            failure = interrupted() => Err(failure),
        };
        let ((moments, converge), (ran, load_to_us)) = match outcome {
            Ok(seen) => seen,
            Err(failure) => return Err(self.mended_after(failure).await),
        };
        let to_us = now_us();
        let histories = ledger.finish().await.map_err(DrillError::from)?;
        Ok(Seen {
            histories,
            saturation,
            rate,
            control,
            span: Span { from_us, to_us },
            load_span: Span {
                from_us,
                to_us: load_to_us,
            },
            ran,
            moments,
            converge,
            load_keeps_sums,
        })
    }

    /// The rate that was asked for, or its share of what the cluster can do.
    async fn rate(&self) -> Result<(Option<f64>, Option<u32>), Failure> {
        if self.arguments.rate.is_some() {
            return Ok((None, self.arguments.rate));
        }
        tell(&format!(
            "Full speed, to learn what the cluster can do: {SATURATION:?} …"
        ));
        let running = self.load.start("saturation", SATURATION, None)?;
        let ran = running.finish().await?;
        let span = Span {
            from_us: 0,
            to_us: u64::try_from(SATURATION.as_micros()).unwrap_or(u64::MAX),
        };
        let phase = Phase::new(span, &ran, ledger::Figures::default());
        let share = phase.per_second * f64::from(self.arguments.saturation) / 100.0;
        // Between 1 and what no cluster reaches.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let rate = share.clamp(1.0, 1e9) as u32;
        Ok((Some(phase.per_second), Some(rate)))
    }

    /// Whatever went wrong: no node is left broken.
    async fn mended_after(&self, failure: Failure) -> Failure {
        if !self.fault.is_broken() {
            return failure;
        }
        tell(&format!("Mending node {} …", self.node()));
        match self.fault.mend().await {
            Ok(()) => failure,
            Err(mending) => DrillError::NotMended {
                problem: failure.to_string(),
                node: self.node().to_owned(),
                mending: Box::new(mending),
            }
            .into(),
        }
    }

    /// Compares what was told with what is there, and what was measured with what is allowed.
    async fn judge(&self, seen: Seen) -> Result<Report, Failure> {
        let arguments = self.arguments;
        tell("Comparing the nodes with the ledger …");
        let converged = self
            .site
            .converge(arguments.converge_timeout)
            .await?
            .is_some();
        let found = self.site.found(self.run).await?;
        let age = Duration::from_micros(now_us().saturating_sub(seen.span.from_us));
        let (conflicts, lines) = self.site.conflicts(age).await?;
        let losers = audit::losers(&lines, self.run);
        let audit = audit::audit(&seen.histories, &found, &losers);
        let sums = match self.has_tables {
            true => self.site.sums().await?,
            false => Vec::new(),
        };
        let invariants_hold = seen.load_keeps_sums.then(|| Sums::hold(&sums));

        let mut report = self.report(&seen, audit);
        report.conflicts = conflicts;
        report.converged = converged;
        report.sums = sums;
        report.invariants_hold = invariants_hold;
        report.checks = verdict::checks(&arguments.thresholds, &report);
        report.passed = report.checks.iter().all(|check| check.passed);
        let ledger = &report.ledger;
        let is_clean = ledger.lost.is_empty()
            && ledger.lost_in_conflicts.is_empty()
            && ledger.refused_yet_there.is_empty()
            && !ledger.nodes_differ;
        match is_clean && converged {
            true => self.site.drop_table().await?,
            false => report.notes.push(format!(
                "the ledger's rows stay in {}, where run = {}",
                ledger::TABLE,
                self.run
            )),
        }
        Ok(report)
    }

    /// What was seen, before the cluster was asked about the rest.
    fn report(&self, seen: &Seen, audit: Audit) -> Report {
        let struck_us = seen
            .moments
            .first()
            .map_or(seen.span.from_us, |moment| moment.at_us);
        let phase = |span, load_span, ran: &Ran| {
            let figures = ledger::figures(&seen.histories, span, self.broken, struck_us);
            Phase::new(load_span, ran, figures)
        };
        let key = |history: &History| KeyReport {
            client: history.client,
            key: history.key.clone(),
            home: history
                .home_before(struck_us)
                .and_then(|place| self.names.get(place).cloned()),
            gap_ms: ms(history.gap_us(seen.span)),
        };
        let keys: Vec<KeyReport> = seen.histories.iter().map(key).collect();
        let mut notes = Vec::new();
        if !keys
            .iter()
            .any(|key| key.home.as_deref() == Some(self.node()))
        {
            notes.push(format!(
                "node {} was home of none of the ledger's keys: nothing is known of moved ones",
                self.node()
            ));
        }
        let mended_us = seen.moments.last().map_or(0, |moment| moment.at_us);
        if seen.load_span.to_us < mended_us {
            notes.push(format!(
                "pgbench had ended {} before the node was mended: give it a longer --after",
                verdict::milliseconds(ms(mended_us - seen.load_span.to_us))
            ));
        }
        let lost = &seen.ran.clients_lost;
        notes.extend(lost.iter().take(NOTES_MAX).cloned());
        if lost.len() > NOTES_MAX {
            notes.push(format!("and {} more such clients", lost.len() - NOTES_MAX));
        }
        let moment = |moment: &Moment| MomentReport {
            ms: moment.at_us.saturating_sub(seen.span.from_us) / 1000,
            what: moment.what.to_owned(),
        };
        let writes = seen.histories.iter().flat_map(|history| &history.writes);
        let steps = timeline::steps(seen.span, self.names.len(), &seen.ran.transactions, writes);
        Report {
            cluster: self.site.config.cluster.clone(),
            nodes: self.names.clone(),
            scenario: self.arguments.scenario,
            node: self.node().to_owned(),
            seed: self.seed,
            began_ms: seen.span.from_us / 1000,
            load: LoadReport {
                arguments: self.load.arguments().to_vec(),
                saturation: seen.saturation,
                rate: seen.rate,
            },
            moments: seen.moments.iter().map(moment).collect(),
            drill: phase(seen.span, seen.load_span, &seen.ran),
            control: seen
                .control
                .as_ref()
                .map(|(span, ran)| phase(*span, *span, ran)),
            ledger: audit,
            keys,
            conflicts: Vec::new(),
            converged: false,
            converge_ms: seen
                .converge
                .map(|time| ms(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))),
            sums: Vec::new(),
            invariants_hold: None,
            notes,
            passed: false,
            checks: Vec::new(),
            timeline: steps,
        }
    }
}

/// Where a node stands in the configuration.
fn place_of(name: &str, config: &Config) -> Result<usize, Failure> {
    let names = || config.nodes.iter().map(|node| node.name.as_str());
    names().position(|known| known == name).ok_or_else(|| {
        let names: Vec<&str> = names().collect();
        Failure::Usage(format!(
            "there is no node `{name}`: there are {}",
            names.join(", ")
        ))
    })
}

/// Who breaks and mends a node.
fn means(
    arguments: &DrillArguments,
    config: &Path,
    environment: Vec<(&'static str, String)>,
    node: Option<DevNode>,
) -> Result<Means, Failure> {
    if let (Some(breaking), Some(mending)) = (&arguments.breaking, &arguments.mending) {
        return Ok(Means::Hooks {
            breaking: breaking.clone(),
            mending: mending.clone(),
            environment,
        });
    }
    if arguments.scenario == Scenario::Drain {
        return Ok(Means::Daemon {
            config: config.to_owned(),
        });
    }
    let Some(node) = node else {
        let problem = "this is no cluster of `tandem dev`: say with --break and --mend how a node is broken and mended";
        return Err(Failure::Usage(problem.to_owned()));
    };
    Means::of_dev(node, arguments.scenario).ok_or_else(|| {
        let problem = "there are no relays to cut: start the cluster with `tandem dev --relays`, or say --break and --mend";
        Failure::Usage(problem.to_owned())
    })
}

/// One of them, by the seed.
fn chosen(homes: &[usize], seed: u64) -> Option<usize> {
    let count = u64::try_from(homes.len()).ok().filter(|count| *count > 0)?;
    homes.get(usize::try_from(seed % count).ok()?).copied()
}

/// A client of the ledger, logged in, and the node that it wrote on.
type Enrolled = (Client, Connection, Option<usize>);

/// The ledger's clients: of the keys that were named, else so that every node is home of some.
async fn enrol(
    site: &Site,
    arguments: &DrillArguments,
    run: u64,
    identities: &[String],
) -> Result<Vec<Enrolled>, DrillError> {
    let placement = site.config.rules.placements.first();
    let tried = identities.len() * KEYS_TRIED_PER_NODE;
    let keys: Vec<Option<String>> = match placement {
        _ if !arguments.keys.is_empty() => arguments.keys.iter().cloned().map(Some).collect(),
        Some(placement) => (1..=tried)
            .map(|key| Some(format!("{}:{key}", placement.name)))
            .collect(),
        None => vec![None; CLIENTS_PER_NODE],
    };
    let is_named = !arguments.keys.is_empty();
    let wanted = identities.len() * CLIENTS_PER_NODE;
    let mut enrolled: Vec<Enrolled> = Vec::new();
    for (key, number) in keys.into_iter().zip(1..) {
        let client = site.client(run, number, key, identities);
        let (connection, home) = client.enrol().await.map_err(DrillError::Enrol)?;
        let alike = enrolled.iter().filter(|(.., known)| *known == home).count();
        match is_named || alike < CLIENTS_PER_NODE {
            true => enrolled.push((client, connection, home)),
            false => connection.close().await,
        }
        if !is_named && enrolled.len() >= wanted {
            break;
        }
    }
    Ok(enrolled)
}

/// Ends when somebody wants the drill to end.
async fn interrupted() -> Failure {
    let terminate = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminate => {}
    }
    DrillError::Interrupted.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_chooses_among_the_homes_only() {
        assert_eq!(chosen(&[0, 2], 8), Some(0));
        assert_eq!(chosen(&[0, 2], 9), Some(2));
        assert_eq!(chosen(&[], 9), None);
    }
}
