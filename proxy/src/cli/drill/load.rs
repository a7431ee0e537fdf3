//! Owns the load of a drill: pgbench through the proxy, and what its log says of each transaction.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::{Child, Command};

/// TPC-B by branch: what the example rules are for.
const SCRIPT: &str = include_str!("../../../../examples/pgbench/one-branch.sql");

/// How long pgbench may take to end after its time; its clients may hang in a transaction for as long as the proxy waits
/// for the outcome of a COMMIT, and a little more.
const GRACE: Duration = Duration::from_secs(60);

/// What the drill itself says to pgbench, or what would keep it from reading the log.
const RESERVED: [&str; 13] = [
    "-T",
    "-t",
    "-l",
    "-i",
    "-R",
    "--time",
    "--transactions",
    "--log",
    "--initialize",
    "--rate",
    "--aggregate-interval",
    "--sampling-rate",
    "--max-tries",
];

/// Why there is no load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// pgbench is not installed.
    #[error("pgbench is nowhere to be found (on Debian: apt-get install postgresql)")]
    NoProgram,
    /// The default load needs pgbench's tables.
    #[error(
        "pgbench's tables are not there: give pgbench a script of your own behind `--`, or make them on every node \
         (`tandem dev --pgbench SCALE`)"
    )]
    NoTables,
    /// Not one transaction came of it.
    #[error("pgbench did nothing:\n{0}")]
    Nothing(String),
    /// The system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> LoadError {
    move |source| LoadError::Io { what, source }
}

/// An argument that is not the user's to give, if there is one among them.
pub(super) fn reserved(arguments: &[String]) -> Option<&str> {
    let is_reserved = |argument: &&String| {
        RESERVED.iter().any(|word| match word.starts_with("--") {
            true => argument.split('=').next() == Some(word),
            false => argument.starts_with(word),
        })
    };
    arguments.iter().find(is_reserved).map(String::as_str)
}

/// Where pgbench connects to, as libpq's variables.
pub type Environment = Vec<(&'static str, String)>;

/// A load that can be run several times.
#[derive(Debug)]
pub struct Load {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Environment,
    /// Script and logs.
    dir: TempDir,
}

impl Load {
    /// The user's load, or the default one over so many branches.
    pub fn new(
        program: Option<PathBuf>,
        environment: Environment,
        users: &[String],
        branches: Option<u64>,
        (max_tries, seed): (u32, u64),
    ) -> Result<Self, LoadError> {
        let program = program.ok_or(LoadError::NoProgram)?;
        let dir = tempfile::tempdir().map_err(failed("cannot make a directory"))?;
        let mut arguments = users.to_vec();
        if users.is_empty() {
            let scale = branches.filter(|count| *count > 0);
            let scale = scale.ok_or(LoadError::NoTables)?;
            let script = dir.path().join("one-branch.sql");
            fs::write(&script, SCRIPT).map_err(failed("cannot write the script"))?;
            arguments = ["-c16", "-j2", "-s"].map(str::to_owned).to_vec();
            arguments.extend([scale.to_string(), "-f".to_owned(), shown(&script)]);
        }
        arguments.extend([
            "-n".to_owned(),
            format!("--max-tries={max_tries}"),
            // pgbench takes 31 bits everywhere.
            format!("--random-seed={}", seed & 0x7fff_ffff),
        ]);
        Ok(Self {
            program,
            arguments,
            environment,
            dir,
        })
    }

    /// The arguments, but for those that differ from run to run.
    pub(super) fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// Starts a run, `name` being another one for each.
    pub fn start(
        &self,
        name: &str,
        time: Duration,
        rate: Option<u32>,
    ) -> Result<Running, LoadError> {
        let seconds = time.as_millis().div_ceil(1000).max(1);
        let (prefix, said) = (self.dir.path().join(name), self.dir.path().join("said"));
        let output = File::create(&said).map_err(failed("cannot write pgbench's output"))?;
        let output_too = output
            .try_clone()
            .map_err(failed("cannot write pgbench's output"))?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .args(["-l", &format!("--log-prefix={}", shown(&prefix))])
            .arg(format!("-T{seconds}"));
        if let Some(rate) = rate {
            command.arg(format!("-R{rate}"));
        }
        command
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(output_too)
            .kill_on_drop(true);
        let child = command.spawn().map_err(failed("cannot start pgbench"))?;
        Ok(Running {
            child,
            dir: self.dir.path().to_owned(),
            name: name.to_owned(),
            said,
            limit: Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX)) + GRACE,
        })
    }
}

/// pgbench, running.
#[derive(Debug)]
pub struct Running {
    child: Child,
    dir: PathBuf,
    name: String,
    said: PathBuf,
    limit: Duration,
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Ran {
    /// In the order in which they ended.
    pub transactions: Vec<Transaction>,
    /// Clients that ended before their time, with pgbench's words.
    pub clients_lost: Vec<String>,
    /// It had to be killed: some of its clients hung, and the end of its log is missing.
    pub hung: bool,
}

impl Running {
    /// Waits for the end and reads the log.
    pub async fn finish(mut self) -> Result<Ran, LoadError> {
        let (status, hung) = match tokio::time::timeout(self.limit, self.child.wait()).await {
            Ok(status) => (status.map_err(failed("cannot wait for pgbench"))?, false),
            Err(_) => (self.kill().await?, true),
        };
        let said = fs::read(&self.said).map_err(failed("cannot read pgbench's output"))?;
        let said = String::from_utf8_lossy(&said);
        let transactions = read_logs(&self.dir, &self.name)?;
        // 1: it could not run at all; 2: some of it went wrong.
        if transactions.is_empty() && (hung || status.code() == Some(1)) {
            return Err(LoadError::Nothing(said.trim().to_owned()));
        }
        Ok(Ran {
            transactions,
            clients_lost: clients_lost(&said),
            hung,
        })
    }

    async fn kill(&mut self) -> Result<ExitStatus, LoadError> {
        self.child
            .kill()
            .await
            .map_err(failed("cannot end pgbench"))?;
        self.child
            .wait()
            .await
            .map_err(failed("cannot wait for pgbench"))
    }
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// One transaction of pgbench.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transaction {
    /// When, in microseconds since 1970.
    pub ended_us: u64,
    /// How.
    pub ended: Ended,
    /// Tries beyond the first.
    pub retries: u64,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Well, after so long; where a rate is asked for, counted from when it was to begin.
    Well {
        /// In microseconds.
        latency_us: u64,
    },
    /// Given up after all its tries.
    Failed,
    /// Never begun, because it was late already.
    Skipped,
}

/// The logs of all threads: `NAME.PID` and `NAME.PID.THREAD`.
fn read_logs(dir: &Path, name: &str) -> Result<Vec<Transaction>, LoadError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed("cannot read pgbench's logs"))? {
        let entry = entry.map_err(failed("cannot read pgbench's logs"))?;
        let is_log = entry
            .file_name()
            .to_string_lossy()
            .strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('.'));
        if is_log {
            let bytes = fs::read(entry.path()).map_err(failed("cannot read pgbench's log"))?;
            found.extend(String::from_utf8_lossy(&bytes).lines().filter_map(line));
        }
    }
    found.sort_unstable_by_key(|transaction| transaction.ended_us);
    Ok(found)
}

/// `client number time script seconds microseconds [lag] [retries]` (PostgreSQL manual, pgbench, "Per-Transaction
/// Logging"). The last one is there because the drill always allows more than one try.
fn line(text: &str) -> Option<Transaction> {
    let mut fields = text.split_ascii_whitespace();
    let time = fields.nth(2)?;
    let (seconds, micros): (u64, u64) =
        (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
    let retries = fields.last()?.parse().ok()?;
    let ended = match time.parse() {
        Ok(latency_us) => Ended::Well { latency_us },
        Err(_) if time == "skipped" => Ended::Skipped,
        // `failed`, or the kind of failure.
        Err(_) => Ended::Failed,
    };
    Some(Transaction {
        ended_us: seconds.checked_mul(1_000_000)?.checked_add(micros)?,
        ended,
        retries,
    })
}

/// The last words of each client that was aborted.
fn clients_lost(said: &str) -> Vec<String> {
    let mut clients = BTreeSet::new();
    let mut lost = Vec::new();
    for line in said.lines().filter(|line| line.contains("aborted")) {
        let number = line
            .split_once("client ")
            .and_then(|(_, rest)| rest.split_ascii_whitespace().next()?.parse::<u32>().ok());
        if number.is_some_and(|number| clients.insert(number)) {
            lost.push(line.trim_start_matches("pgbench: error: ").to_owned());
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_log_are_read_with_and_without_lag_and_retries() {
        let read = |text| line(text).unwrap();
        let plain = read("3 17 4523 0 1700000000 250000 2");
        let wanted = Transaction {
            ended_us: 1_700_000_000_250_000,
            ended: Ended::Well { latency_us: 4523 },
            retries: 2,
        };
        assert_eq!(plain, wanted);
        let with_rate = read("3 17 4523 0 1700000000 250000 120 2");
        assert_eq!(with_rate, wanted);
        assert_eq!(read("0 1 failed 0 1700000000 1 9").ended, Ended::Failed);
        assert_eq!(
            read("0 1 serialization 0 1700000000 1 9").ended,
            Ended::Failed
        );
        assert_eq!(read("0 1 skipped 0 1700000000 1 5 0").ended, Ended::Skipped);
        // Cut off by a kill.
        assert_eq!(line("0 1 10 0 1700000000 1"), None);
        assert_eq!(line("0 1 10 0"), None);
        assert_eq!(line(""), None);
    }

    #[test]
    fn a_client_that_is_lost_counts_once() {
        let said = "pgbench: error: client 3 script 0 aborted in command 5 query 0: FATAL:  gone\n\
                    pgbench: error: client 3 aborted in state 2\n\
                    pgbench: error: client 11 aborted in command 4 (SQL) of script 0; perhaps the backend died\n\
                    pgbench: error: Run was aborted; the above results are incomplete.\n";
        let lost = clients_lost(said);
        assert_eq!(lost.len(), 2, "{lost:?}");
        assert!(lost[1].starts_with("client 11"), "{lost:?}");
    }

    #[test]
    fn what_the_drill_says_to_pgbench_is_not_the_users() {
        let of = |words: &str| {
            let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
            reserved(&words).map(str::to_owned)
        };
        assert_eq!(of("-c 8 -S").as_deref(), None);
        assert_eq!(of("-c 8 -T30").as_deref(), Some("-T30"));
        assert_eq!(of("--rate=5").as_deref(), Some("--rate=5"));
        assert_eq!(
            of("--latency-limit=9 --max-tries=3").as_deref(),
            Some("--max-tries=3")
        );
    }

    /// What a fixed program leaves behind is read as pgbench's.
    fn load(script: &str) -> (TempDir, Load) {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("pgbench");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let users = ["-S".to_owned()];
        let load = Load::new(Some(program), Vec::new(), &users, None, (10, 7)).unwrap();
        (dir, load)
    }

    #[tokio::test]
    async fn the_logs_of_all_threads_of_this_run_are_read_in_order() {
        let script =
            "for a in \"$@\"; do case $a in --log-prefix=*) p=${a#--log-prefix=};; esac; done
            echo '0 1 10 0 1700000002 0 0' > \"$p.1\"; echo '1 1 10 0 1700000001 0 0' > \"$p.1.1\"
            echo '1 1 10 0 1700000001 0 0' > \"${p}er.1\"";
        let (_dir, load) = load(script);
        let running = load.start("run", Duration::from_millis(1), None).unwrap();
        let ran = running.finish().await.unwrap();
        let times: Vec<u64> = ran
            .transactions
            .iter()
            .map(|transaction| transaction.ended_us / 1_000_000)
            .collect();
        assert_eq!(times, [1_700_000_001, 1_700_000_002]);
    }

    #[tokio::test]
    async fn a_pgbench_that_cannot_run_is_told_with_its_words() {
        let (_dir, load) = load("echo 'no such table'; exit 1");
        let running = load.start("run", Duration::from_secs(1), None).unwrap();
        let error = running.finish().await.unwrap_err();
        assert!(error.to_string().contains("no such table"), "{error}");
    }

    #[test]
    fn without_tables_and_without_a_script_there_is_no_load() {
        let load = Load::new(Some("pgbench".into()), Vec::new(), &[], Some(0), (10, 7));
        assert!(matches!(load, Err(LoadError::NoTables)));
    }
}
