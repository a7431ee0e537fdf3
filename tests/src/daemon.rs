//! Owns the daemon under test: a real child process, its log, its admin port, its command line.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;
use tandem::dev::process::ProcessId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    node::tail,
    process,
    program::{Program, Ran},
    wait::{eventually, poll},
};

/// How long the daemon may take to answer on its admin port.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to end after a signal that it can refuse.
const END_LIMIT: Duration = Duration::from_secs(60);

/// A daemon, running or ended.
#[derive(Debug)]
pub struct Daemon {
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    log_filter: &'static str,
    admin_port: u16,
    child: Option<Child>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill_now();
    }
}

/// The program under test: what `TANDEM_PROGRAM` names, else what cargo built beside the running test.
///
/// # Panics
/// There is none.
#[must_use]
pub fn program() -> PathBuf {
    std::env::var_os("TANDEM_PROGRAM").map(PathBuf::from).or_else(|| process::sibling("tandem-under-test")).unwrap_or_else(
        || panic!("no tandem-under-test beside the test: build the whole package, or set TANDEM_PROGRAM"),
    )
}

impl Daemon {
    /// One that is not started yet.
    #[must_use]
    pub fn new(config: &Path, log: &Path, admin_port: u16) -> Self {
        Self {
            program: program(),
            config: config.to_owned(),
            log: log.to_owned(),
            log_filter: "tandem=debug,tandem_replicator=debug,info",
            admin_port,
            child: None,
        }
    }

    /// From its next start on it logs what it logs by default, and not every detail: for measurements.
    pub fn log_little(&mut self) {
        self.log_filter = "info";
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Starts it and waits until its admin port answers.
    ///
    /// # Panics
    /// It ends or does not answer.
    pub async fn start(&mut self) {
        self.spawn();
        let port = self.admin_port;
        let log = self.log.clone();
        let child = self.child.as_mut().expect("just started");
        eventually("the daemon answers", START_LIMIT, async || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("the daemon ended with {status}:\n{}", tail(&read(&log), 40));
            }
            health(port).await
        })
        .await;
    }

    /// Starts it without waiting for anything.
    ///
    /// # Panics
    /// It cannot be started, or runs already.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the daemon runs already");
        let log = self.open_log();
        let mut command = Command::new(&self.program);
        command
            .arg("run")
            .arg("--config")
            .arg(&self.config)
            .current_dir("/");
        command
            .env_clear()
            .env("TANDEM_LOG", self.log_filter)
            .env("RUST_BACKTRACE", "1");
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log);
        self.child = Some(
            command
                .spawn()
                .unwrap_or_else(|error| panic!("{}: {error}", self.program.display())),
        );
    }

    fn open_log(&self) -> File {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("the daemon's log can be written")
    }

    /// Kills it, as a crash would, and waits until it is gone.
    ///
    /// # Panics
    /// It does not run.
    pub async fn kill9(&mut self) {
        self.signal(Signal::KILL);
        self.ended().await;
    }

    /// Asks it to end smoothly (SIGTERM) and waits until it has.
    ///
    /// # Panics
    /// It does not end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended().await
    }

    /// SIGTERM, then a new start.
    ///
    /// # Panics
    /// It does not end, or does not start again.
    pub async fn restart(&mut self) {
        self.terminate().await;
        self.start().await;
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// It does not run.
    pub fn signal(&self, signal: Signal) {
        self.process()
            .expect("the daemon runs")
            .signal(signal)
            .expect("a signal can be sent");
    }

    fn process(&self) -> Option<ProcessId> {
        ProcessId::of(i32::try_from(self.pid()?).ok()?)
    }

    /// Its process number, once it was started.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The most memory that it ever had, in bytes.
    ///
    /// # Panics
    /// It does not run, or the system does not tell.
    #[must_use]
    pub fn peak_memory(&self) -> u64 {
        let pid = self.pid().expect("the daemon runs");
        let status =
            fs::read_to_string(format!("/proc/{pid}/status")).expect("it tells its status");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = peak.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
        1024 * kilobytes.unwrap_or(u64::MAX / 1024)
    }

    /// Waits until it has ended by itself or by a signal.
    ///
    /// # Panics
    /// It does not end.
    pub async fn ended(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("the daemon was started");
        let status = eventually("the daemon ends", END_LIMIT, async || {
            match child.try_wait() {
                Ok(Some(status)) => Ok(status),
                Ok(None) => Err("it still runs".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
        self.child = None;
        status
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// A command of its command line, with its configuration: `status`, `wait-converged`, …
    #[must_use]
    pub fn command(&self, name: &str) -> Program {
        Program::new(&self.program).args([
            name.as_ref(),
            "--config".as_ref(),
            self.config.as_os_str(),
        ])
    }

    /// Runs `wait-converged`.
    ///
    /// # Panics
    /// It takes much longer than `limit`.
    pub async fn wait_converged(&self, limit: Duration) -> Ran {
        let timeout = format!("{}ms", limit.as_millis());
        self.command("wait-converged")
            .args(["--timeout", &timeout])
            .run(limit + Duration::from_secs(20))
            .await
    }

    /// What `status --json` prints.
    ///
    /// # Errors
    /// The daemon does not answer, or not with JSON.
    pub async fn status(&self) -> Result<Value, String> {
        let ran = self
            .command("status")
            .args(["--json"])
            .run(Duration::from_secs(20))
            .await;
        serde_json::from_str(&ran.stdout).map_err(|error| format!("{error}: {}", ran.all()))
    }

    /// Waits until the status is as wanted; answers it.
    ///
    /// # Panics
    /// It does not become so.
    pub async fn status_when(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let asked = poll(limit, async || {
            let status = self.status().await?;
            if wanted(&status) {
                Ok(status)
            } else {
                Err(format!("the status is {status:#}"))
            }
        });
        asked
            .await
            .unwrap_or_else(|problem| panic!("{what}: not within {limit:?}: {problem}"))
    }

    /// All that it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        read(&self.log)
    }

    /// Kills it without waiting for the runtime.
    pub fn kill_now(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn read(log: &Path) -> String {
    String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned()
}

/// Asks `/healthz`.
async fn health(port: u16) -> Result<(), String> {
    let answer = http(port, "GET", "/healthz", None)
        .await
        .map_err(|error| error.to_string())?;
    if answer.starts_with("HTTP/1.1 200") {
        Ok(())
    } else {
        Err(answer)
    }
}

/// One HTTP request to the admin port; answers the whole response.
///
/// # Errors
/// The port does not answer.
pub async fn http(
    port: u16,
    method: &str,
    path: &str,
    token: Option<&str>,
) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let token = token.map_or_else(String::new, |token| {
        format!("Authorization: Bearer {token}\r\n")
    });
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{token}Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
