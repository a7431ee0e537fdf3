//! Owns one local PostgreSQL server: start, adopt, stop, kill, stand still.
//!
//! The postmaster is our direct child in a process group of its own, so that a Ctrl-C meant for Tandem does not reach it.
//! It outlives us: a later start finds it by `postmaster.pid` and adopts it. Dropping a [`Server`] leaves it running.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::{
        fs::{MetadataExt, fchown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

pub use super::data_dir::Sync;
use super::{
    data_dir,
    install::Install,
    process::{POLL, ProcessId, RunAs, scrub_environment, tail_lines},
};

/// How long each further step of a stop that does not obey may take.
const ESCALATION: Duration = Duration::from_secs(5);

/// How long the children of a killed postmaster may keep its shared memory before a new start gives up.
const ORPHANS: Duration = Duration::from_secs(15);

/// What one server is: programs, place, port, user, settings.
#[derive(Debug, Clone)]
pub struct ServerSpec {
    /// The programs.
    pub install: Install,
    /// The data directory, absolute.
    pub data_dir: PathBuf,
    /// The TCP port on 127.0.0.1.
    pub port: u16,
    /// The file that the server's own messages are appended to.
    pub log: PathBuf,
    /// Settings beyond the defaults; they win over them.
    pub settings: Vec<(String, String)>,
    /// Variables of its environment, beside those that every server gets.
    pub environment: Vec<(String, OsString)>,
    /// The user to run as, when we are root.
    pub run_as: Option<RunAs>,
    /// How long a start may take, crash recovery included.
    pub start_timeout: Duration,
}

impl ServerSpec {
    /// A server with its log beside the data directory (`DATA.log`), run as the right user for us, without
    /// further settings, 60 s to start.
    ///
    /// # Errors
    /// We are root and there is no user to run servers as; or a relative path cannot be made absolute.
    pub fn new(install: Install, data_dir: &Path, port: u16) -> Result<Self, ServerError> {
        let data_dir =
            std::path::absolute(data_dir).map_err(ServerError::io("cannot resolve", data_dir))?;
        let mut log = data_dir.clone().into_os_string();
        log.push(".log");
        let run_as = RunAs::for_servers().map_err(ServerError::User)?;
        let start_timeout = Duration::from_secs(60);
        Ok(Self {
            install,
            data_dir,
            port,
            log: log.into(),
            settings: Vec::new(),
            environment: Vec::new(),
            run_as,
            start_timeout,
        })
    }
}

/// How a server is asked to stop (PostgreSQL manual, 19.5): the mildness of the first signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopMode {
    /// SIGTERM: waits until every client has gone.
    Smart,
    /// SIGINT: ends sessions, writes a checkpoint.
    Fast,
    /// SIGQUIT: ends at once; the next start recovers from the WAL.
    Immediate,
    /// SIGKILL to the postmaster and all its children.
    Kill,
}

impl StopMode {
    fn harder(self) -> Option<Self> {
        match self {
            Self::Smart => Some(Self::Fast),
            Self::Fast => Some(Self::Immediate),
            Self::Immediate => Some(Self::Kill),
            Self::Kill => None,
        }
    }
}

/// What went wrong with a server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// There is no user to run servers as.
    #[error("{0}")]
    User(io::Error),
    /// The servers' user cannot get to the data directory.
    #[error(
        "user \"{user}\", as which servers run, cannot enter {dir}: one of the directories above it is closed to others"
    )]
    NotEnterable {
        /// The data directory.
        dir: PathBuf,
        /// The servers' user.
        user: String,
    },
    /// initdb failed.
    #[error("initdb of {data_dir} failed: {problem}")]
    Initdb {
        /// The data directory.
        data_dir: PathBuf,
        /// The last that it said.
        problem: String,
    },
    /// The server ended while starting.
    #[error("the server of {data_dir} did not start on port {port}; the end of {log}:\n{tail}")]
    NotStarted {
        /// The data directory.
        data_dir: PathBuf,
        /// Its port.
        port: u16,
        /// Its log.
        log: PathBuf,
        /// What the log ends with.
        tail: String,
    },
    /// The server is not ready in time.
    #[error("the server of {data_dir} was not ready within {} s; the end of {log}:\n{tail}", .limit.as_secs())]
    NotReady {
        /// The data directory.
        data_dir: PathBuf,
        /// The bound.
        limit: Duration,
        /// Its log.
        log: PathBuf,
        /// What the log ends with.
        tail: String,
    },
    /// The server does not end, whatever it is sent.
    #[error("the server of {data_dir} (pid {pid}) does not end")]
    NotStopped {
        /// The data directory.
        data_dir: PathBuf,
        /// The postmaster.
        pid: i32,
    },
    /// A file or process operation failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ServerError {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

/// A postmaster that we started or found running.
#[derive(Debug)]
pub struct Server {
    data_dir: PathBuf,
    log: PathBuf,
    port: u16,
    postmaster: ProcessId,
    /// Ours to reap; `None` for an adopted one.
    child: Option<Child>,
}

impl Server {
    /// Makes the data directory of `spec` with initdb.
    ///
    /// # Errors
    /// The directory cannot be made or entered by the servers' user, or initdb fails.
    pub fn init_data(spec: &ServerSpec, sync: Sync) -> Result<(), ServerError> {
        data_dir::init(spec, sync)
    }

    /// Copies the data directory of a stopped server, for tests that start from a template. The copy keeps the system
    /// identifier, so the nodes of one cluster must come from different templates.
    ///
    /// # Errors
    /// The copy fails, as on a full disk.
    pub fn copy_data(from: &Path, to: &Path) -> Result<(), ServerError> {
        data_dir::copy(from, to)
    }

    /// Writes the settings and starts the server; returns once it accepts connections. Blocks.
    ///
    /// # Errors
    /// It ends or is not ready in time: the error ends with the tail of its log.
    pub fn start(spec: &ServerSpec) -> Result<Self, ServerError> {
        data_dir::write_settings(spec)?;
        let orphans_until = Instant::now() + ORPHANS;
        loop {
            let logged = fs::metadata(&spec.log).map_or(0, |metadata| metadata.len());
            let mut server = Self::spawn(spec, logged)?;
            match server.wait_ready_since(spec.start_timeout, logged) {
                Ok(()) => return Ok(server),
                // Children of a postmaster that was killed end by themselves, and free its memory, a little later; and
                // it holds its lock file until its parent, who may be somebody else, has reaped it.
                Err(ServerError::NotStarted { tail, .. })
                    if (tail.contains("pre-existing shared memory block")
                        || tail.contains("\"postmaster.pid\" already exists")
                            && locked_by_nobody(&spec.data_dir))
                        && Instant::now() < orphans_until =>
                {
                    thread::sleep(POLL * 10);
                }
                Err(error) => {
                    server.stop(StopMode::Immediate, ESCALATION)?;
                    return Err(error);
                }
            }
        }
    }

    fn spawn(spec: &ServerSpec, logged: u64) -> Result<Self, ServerError> {
        let program = spec.install.program("postgres");
        let log = OpenOptions::new().create(true).append(true).open(&spec.log);
        let log = log.map_err(ServerError::io("cannot open", &spec.log))?;
        if let Some(user) = &spec.run_as {
            // So that a server started by hand, as that user, can go on writing it.
            fchown(&log, Some(user.uid), Some(user.gid))
                .map_err(ServerError::io("cannot change the owner of", &spec.log))?;
        }
        let log_too = log
            .try_clone()
            .map_err(ServerError::io("cannot open", &spec.log))?;
        let mut command = Command::new(&program);
        scrub_environment(&mut command);
        command
            .envs(spec.environment.iter().map(|(name, value)| (name, value)))
            .arg("-D")
            .arg(&spec.data_dir)
            .current_dir(&spec.data_dir);
        command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            .process_group(0);
        if let Some(user) = &spec.run_as {
            user.apply(&mut command);
        }
        let mut child = command
            .spawn()
            .map_err(ServerError::io("cannot run", &program))?;
        let Some(postmaster) = i32::try_from(child.id()).ok().and_then(ProcessId::of) else {
            // It ended at once.
            child
                .wait()
                .map_err(ServerError::io("cannot wait for", &program))?;
            return Err(not_started(&spec.data_dir, spec.port, &spec.log, logged));
        };
        let (data_dir, log) = (spec.data_dir.clone(), spec.log.clone());
        Ok(Self {
            data_dir,
            log,
            port: spec.port,
            postmaster,
            child: Some(child),
        })
    }

    /// The server that runs on this data directory already, whoever started it; its port is the one it really has.
    /// It may still be starting: see [`Self::wait_ready`]. A stale `postmaster.pid` is nobody.
    #[must_use]
    pub fn adopt(data_dir: &Path, log: &Path) -> Option<Self> {
        let lock = PostmasterPid::read(data_dir)?;
        let postmaster = ProcessId::of(lock.pid)?;
        is_postmaster_of(postmaster, data_dir).then(|| Self {
            data_dir: data_dir.to_owned(),
            log: log.to_owned(),
            port: lock.port.unwrap_or_default(),
            postmaster,
            child: None,
        })
    }

    /// Waits until it accepts connections. Blocks.
    ///
    /// # Errors
    /// It ends, or `limit` passes.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<(), ServerError> {
        self.wait_ready_since(limit, 0)
    }

    /// The postmaster writes `ready` as the eighth line of its lock file (`src/include/utils/pidfile.h`).
    fn wait_ready_since(&mut self, limit: Duration, logged: u64) -> Result<(), ServerError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(lock) = PostmasterPid::read(&self.data_dir)
                && lock.pid == self.postmaster.pid()
                && lock.ready
            {
                self.port = lock.port.unwrap_or(self.port);
                return Ok(());
            }
            if !self.is_running() {
                return Err(not_started(&self.data_dir, self.port, &self.log, logged));
            }
            if Instant::now() >= deadline {
                let (data_dir, log) = (self.data_dir.clone(), self.log.clone());
                return Err(ServerError::NotReady {
                    data_dir,
                    limit,
                    tail: log_tail(&log, logged),
                    log,
                });
            }
            thread::sleep(POLL);
        }
    }

    /// The postmaster's process number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.postmaster.pid()
    }

    /// The TCP port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Whether the postmaster runs. Reaps it when it has ended.
    pub fn is_running(&mut self) -> bool {
        if let Some(child) = &mut self.child {
            // An error means that there is nothing left to reap.
            return matches!(child.try_wait(), Ok(None));
        }
        self.postmaster.is_alive()
    }

    /// Asks the server to stop and waits `limit`; if it still runs then, asks harder, down to SIGKILL. Returns what
    /// ended it. A server that had ended already is fine. Blocks.
    ///
    /// # Errors
    /// A signal is refused, or the process survives SIGKILL (stuck in the kernel).
    pub fn stop(&mut self, mode: StopMode, limit: Duration) -> Result<StopMode, ServerError> {
        let (mut mode, mut limit) = (mode, limit);
        loop {
            let children = self.postmaster.children();
            self.signal_for(mode, &children)?;
            let deadline = Instant::now() + limit;
            while Instant::now() < deadline {
                // A killed postmaster's children hold its shared memory, so they count.
                let orphans =
                    mode == StopMode::Kill && children.iter().any(|child| child.is_alive());
                if !self.is_running() && !orphans {
                    return Ok(mode);
                }
                thread::sleep(POLL);
            }
            let Some(harder) = mode.harder() else {
                return Err(ServerError::NotStopped {
                    data_dir: self.data_dir.clone(),
                    pid: self.pid(),
                });
            };
            (mode, limit) = (harder, ESCALATION);
        }
    }

    fn signal_for(&mut self, mode: StopMode, children: &[ProcessId]) -> Result<(), ServerError> {
        let signal = match mode {
            StopMode::Smart => Signal::TERM,
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
            StopMode::Kill => Signal::KILL,
        };
        if !self.is_running() {
            return Ok(());
        }
        self.send(self.postmaster, signal)?;
        for child in children {
            match mode {
                StopMode::Kill => self.send(*child, Signal::KILL)?,
                // One that stands still (see `pause`) could not obey.
                _ => self.send(*child, Signal::CONT)?,
            }
        }
        self.send(self.postmaster, Signal::CONT)
    }

    /// Kills the postmaster and all its children, as a power cut would, and waits until they are gone. Blocks.
    ///
    /// # Errors
    /// As [`Self::stop`].
    pub fn kill9(&mut self) -> Result<(), ServerError> {
        // Standing still it cannot start another child while we look for them.
        self.pause()?;
        self.stop(StopMode::Kill, ESCALATION).map(drop)
    }

    /// Makes the whole server stand still (SIGSTOP): its connections stay open and nothing answers. Blocks until it does.
    ///
    /// # Errors
    /// A signal is refused.
    pub fn pause(&mut self) -> Result<(), ServerError> {
        if !self.is_running() {
            return Ok(());
        }
        self.stand_still(self.postmaster)?;
        for child in self.postmaster.children() {
            self.stand_still(child)?;
        }
        Ok(())
    }

    fn stand_still(&self, process: ProcessId) -> Result<(), ServerError> {
        self.send(process, Signal::STOP)?;
        let deadline = Instant::now() + ESCALATION;
        while !process.is_stopped() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Lets a paused server go on.
    ///
    /// # Errors
    /// A signal is refused.
    pub fn resume(&mut self) -> Result<(), ServerError> {
        if !self.is_running() {
            return Ok(());
        }
        for child in self.postmaster.children() {
            self.send(child, Signal::CONT)?;
        }
        self.send(self.postmaster, Signal::CONT)
    }

    fn send(&self, process: ProcessId, signal: Signal) -> Result<(), ServerError> {
        process.signal(signal).map_err(ServerError::io(
            "cannot signal the server of",
            &self.data_dir,
        ))
    }
}

/// The lock file of a data directory (`src/include/utils/pidfile.h`), written by the postmaster.
#[derive(Debug, PartialEq, Eq)]
struct PostmasterPid {
    pid: i32,
    port: Option<u16>,
    ready: bool,
}

impl PostmasterPid {
    fn read(data_dir: &Path) -> Option<Self> {
        let mut text = String::new();
        File::open(data_dir.join("postmaster.pid"))
            .ok()?
            .take(4096)
            .read_to_string(&mut text)
            .ok()?;
        Self::parse(&text)
    }

    /// Lines: pid, data directory, start time, port, socket directory, listen address, shared memory key, status. A
    /// negative pid is a single-user backend's.
    fn parse(text: &str) -> Option<Self> {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let pid = lines.first()?.parse().ok().filter(|pid| *pid > 0)?;
        let port = lines.get(3).and_then(|line| line.parse().ok());
        Some(Self {
            pid,
            port,
            ready: lines.get(7) == Some(&"ready"),
        })
    }
}

/// Whether the one that the lock file names runs no more, though its number may still be taken.
fn locked_by_nobody(data_dir: &Path) -> bool {
    PostmasterPid::read(data_dir).is_none_or(|lock| ProcessId::of(lock.pid).is_none())
}

/// Proof that a process is the postmaster of `data_dir`: it runs as the directory's owner, its program is named
/// `postgres`, and its `-D` is this directory. `/proc/PID/exe` would need ptrace rights, which root in a container lacks.
fn is_postmaster_of(process: ProcessId, data_dir: &Path) -> bool {
    let Ok(wanted) = fs::canonicalize(data_dir) else {
        return false;
    };
    let owner = fs::metadata(&wanted).ok().map(|metadata| metadata.uid());
    let arguments = process.arguments();
    let named = arguments
        .first()
        .and_then(|program| Path::new(program).file_name())
        == Some(OsStr::new("postgres"));
    let on_directory = arguments
        .windows(2)
        .any(|pair| matches!(pair, [flag, dir] if flag == "-D" && fs::canonicalize(dir).is_ok_and(|dir| dir == wanted)));
    named && on_directory && owner.is_some() && process.uid() == owner
}

fn not_started(data_dir: &Path, port: u16, log: &Path, logged: u64) -> ServerError {
    let tail = log_tail(log, logged);
    ServerError::NotStarted {
        data_dir: data_dir.to_owned(),
        port,
        log: log.to_owned(),
        tail,
    }
}

/// The last lines that were written to `log` after its first `from` bytes.
fn log_tail(log: &Path, from: u64) -> String {
    const WINDOW: u64 = 16 << 10;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(len.saturating_sub(WINDOW))))?;
        let mut bytes = Vec::new();
        file.take(WINDOW).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => tail_lines(&String::from_utf8_lossy(&bytes), 15),
        Err(error) => format!("(cannot read it: {error})"),
    }
}

#[cfg(test)]
mod tests;
