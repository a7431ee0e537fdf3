//! Owns what the dev cluster knows of processes: the user that servers run as, who a pid is, signals, bounded runs.
//!
//! A pid is only ever signalled together with its start time ([`ProcessId`]), so that a number that the kernel gave to
//! somebody else meanwhile is left alone. Everything is read from `/proc` (Linux, proc(5)).

use std::{
    ffi::OsString,
    fmt,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::{ffi::OsStringExt, fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

/// How often a state that nobody announces (a pid that ends, a file that changes) is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// The unprivileged user that servers run as when Tandem runs as root: PostgreSQL refuses to be root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAs {
    /// The user's id.
    pub uid: u32,
    /// The user's primary group.
    pub gid: u32,
    /// The user's name, for messages.
    pub name: String,
}

impl RunAs {
    /// `Some` when this process is root: user `postgres` where it exists, else `nobody`.
    ///
    /// # Errors
    /// We are root and `/etc/passwd` has neither, or cannot be read.
    pub fn for_servers() -> Result<Option<Self>, io::Error> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let passwd = fs::read_to_string("/etc/passwd")?;
        ["postgres", "nobody"].iter().find_map(|name| Self::from_passwd(&passwd, name)).map(Some).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "PostgreSQL refuses to run as root, and /etc/passwd has no user \"postgres\" or \"nobody\" to run it as: \
                 create one (useradd --system postgres), or run this as an ordinary user",
            )
        })
    }

    /// The entry of `name` in the text of passwd(5): `name:password:uid:gid:…`. Root never counts.
    fn from_passwd(passwd: &str, name: &str) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next() != Some(name) {
                return None;
            }
            let uid = fields.nth(1)?.parse().ok().filter(|uid| *uid != 0)?;
            let gid = fields.next()?.parse().ok()?;
            Some(Self {
                uid,
                gid,
                name: name.to_owned(),
            })
        })
    }

    /// Whether this user may enter `dir` (search permission on it and on all above), asked of the kernel by trying.
    #[must_use]
    pub fn can_enter(&self, dir: &Path) -> bool {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", ":"])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.apply(&mut command);
        command.status().is_ok_and(|status| status.success())
    }

    /// Makes `command` run as this user. The standard library drops supplementary groups with the uid, and changes
    /// the directory after it.
    pub(crate) fn apply(&self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }
}

/// The environment of every program we start: nothing of the caller's locale, `PG*` variables or time zone gets in.
/// `LC_ALL=C` exists everywhere; a database's own locale does not depend on it.
pub(crate) fn scrub_environment(command: &mut Command) {
    command.env_clear();
    command
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .env("PATH", "/usr/local/bin:/usr/bin:/bin");
    if let Some(path) = std::env::var_os("LD_LIBRARY_PATH") {
        command.env("LD_LIBRARY_PATH", path);
    }
}

/// One process: its number together with when it started (clock ticks since boot, field 22 of `/proc/PID/stat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId {
    pid: Pid,
    started_ticks: u64,
}

impl ProcessId {
    /// The process that has this number now; `None` when there is none, or only its zombie.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let stat = Stat::read(pid)?;
        (!stat.ended()).then_some(Self {
            pid: Pid::from_raw(pid)?,
            started_ticks: stat.started_ticks,
        })
    }

    /// The number.
    #[must_use]
    pub fn pid(self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Whether it still runs (a zombie does not).
    #[must_use]
    pub fn is_alive(self) -> bool {
        Self::of(self.pid()) == Some(self)
    }

    /// Sends `signal`, unless the process has ended.
    ///
    /// # Errors
    /// It belongs to somebody else.
    pub fn signal(self, signal: Signal) -> io::Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match rustix::process::kill_process(self.pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Its arguments as they were given at exec; empty when it has ended.
    #[must_use]
    pub fn arguments(self) -> Vec<OsString> {
        let Ok(text) = fs::read(format!("/proc/{}/cmdline", self.pid())) else {
            return Vec::new();
        };
        text.split(|byte| *byte == 0)
            .map(|part| OsString::from_vec(part.to_vec()))
            .collect()
    }

    /// Who it runs as.
    #[must_use]
    pub fn uid(self) -> Option<u32> {
        fs::metadata(format!("/proc/{}", self.pid()))
            .ok()
            .map(|metadata| metadata.uid())
    }

    /// Its direct children that run.
    #[must_use]
    pub fn children(self) -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| Stat::read(*pid).is_some_and(|stat| stat.parent == self.pid()))
            .filter_map(Self::of)
            .collect()
    }

    /// Whether every thread of it stands still after SIGSTOP (or it has ended).
    #[must_use]
    pub fn is_stopped(self) -> bool {
        Stat::read(self.pid()).is_none_or(|stat| stat.ended() || stat.state == 'T')
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pid().fmt(f)
    }
}

/// The fields of `/proc/PID/stat` that we use (proc_pid_stat(5)).
struct Stat {
    state: char,
    parent: i32,
    started_ticks: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The command's name stands in parentheses and may hold anything, so fields are counted from the last `)`.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let started_ticks = fields.nth(17)?.parse().ok()?;
        Some(Self {
            state,
            parent,
            started_ticks,
        })
    }

    fn ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

/// What a program that ran to its end left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    /// The last lines of stdout and stderr, for an error message.
    pub(crate) tail: String,
}

/// Runs `command` to its end, at most `limit` long; its output goes through temporary files, so that a program that
/// leaves a child behind holding its output cannot keep us waiting.
///
/// # Errors
/// It cannot be started, or took longer (it is then killed).
pub(crate) fn run_bounded(command: &mut Command, limit: Duration) -> io::Result<Ran> {
    run_interruptible(command, limit, &AtomicBool::new(false))
}

/// As [`run_bounded`]; also kills the program once `interrupt` is set.
///
/// # Errors
/// As [`run_bounded`], or it was interrupted.
pub(crate) fn run_interruptible(
    command: &mut Command,
    limit: Duration,
    interrupt: &AtomicBool,
) -> io::Result<Ran> {
    let mut stdout = tempfile::tempfile()?;
    let mut stderr = tempfile::tempfile()?;
    command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?);
    let mut child = command.spawn()?;
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let interrupted = interrupt.load(Ordering::Relaxed);
        if interrupted || Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            let what = command.get_program().to_string_lossy().into_owned();
            return Err(if interrupted {
                io::Error::new(
                    io::ErrorKind::Interrupted,
                    format!("{what} was interrupted"),
                )
            } else {
                let text = format!(
                    "{what} did not end within {} s and was killed",
                    limit.as_secs()
                );
                io::Error::new(io::ErrorKind::TimedOut, text)
            });
        }
        thread::sleep(POLL);
    };
    let (stdout, stderr) = (read_all(&mut stdout)?, read_all(&mut stderr)?);
    let tail = tail_lines(&format!("{stdout}\n{stderr}"), 15);
    Ok(Ran {
        status,
        stdout,
        tail,
    })
}

fn read_all(file: &mut File) -> io::Result<String> {
    const KEPT: u64 = 1 << 20;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(KEPT)))?;
    let mut bytes = Vec::new();
    file.take(KEPT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last `count` lines that are not blank.
pub(crate) fn tail_lines(text: &str, count: usize) -> String {
    let mut lines: Vec<&str> = text
        .lines()
        .rev()
        .filter(|line| !line.trim().is_empty())
        .take(count)
        .collect();
    lines.reverse();
    lines.join("\n")
}

/// Who listens on a TCP port of this machine, as far as we may know it.
#[must_use]
pub(crate) fn listener_of(port: u16) -> Option<String> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|text| listening_inodes(&text, port))
        .collect();
    let entries = fs::read_dir("/proc").ok()?;
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .find_map(|pid| {
            let fds = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
            let holds = fds
                .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
                .any(|target: PathBuf| {
                    let target = target.to_string_lossy();
                    target
                        .strip_prefix("socket:[")
                        .and_then(|rest| rest.strip_suffix(']'))
                        .is_some_and(|inode| inodes.iter().any(|wanted| wanted == inode))
                });
            holds.then(|| {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                format!("{} (pid {pid})", name.trim())
            })
        })
}

/// The inodes of listening sockets (state 0A) on `port` in the text of `/proc/net/tcp`.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let local = fields.get(1)?.rsplit_once(':')?.1;
            let listens = *fields.get(3)? == "0A" && u16::from_str_radix(local, 16) == Ok(port);
            listens.then(|| fields.get(9).map(ToString::to_string))?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_servers_user_is_read_from_passwd_and_is_never_root() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\npostgres:x:101:104::/:/bin/sh\n";
        let user = RunAs::from_passwd(passwd, "postgres").unwrap();
        assert_eq!(
            (user.uid, user.gid, user.name.as_str()),
            (101, 104, "postgres")
        );
        assert!(RunAs::from_passwd(passwd, "root").is_none());
        assert!(RunAs::from_passwd(passwd, "post").is_none());
        assert!(RunAs::from_passwd("postgres:x:many", "postgres").is_none());
    }

    #[test]
    fn a_command_name_with_parentheses_does_not_shift_the_fields_of_stat() {
        let text = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 1";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(
            (stat.state, stat.parent, stat.started_ticks),
            ('S', 7, 987_654)
        );
        assert!(Stat::parse("42 (x").is_none());
    }

    #[test]
    fn a_process_is_known_by_its_start_and_gone_once_it_ended() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(id.is_alive());
        let us = ProcessId::of(rustix::process::getpid().as_raw_nonzero().get()).unwrap();
        assert!(us.children().contains(&id));
        let impostor = ProcessId {
            started_ticks: id.started_ticks + 1,
            ..id
        };
        assert!(!impostor.is_alive());
        impostor.signal(Signal::KILL).unwrap();
        assert!(
            id.is_alive(),
            "a signal for another start time must not reach this process"
        );
        id.signal(Signal::KILL).unwrap();
        child.wait().unwrap();
        assert!(!id.is_alive());
    }

    #[test]
    fn a_program_that_takes_too_long_is_killed() {
        let started = Instant::now();
        let error =
            run_bounded(Command::new("sleep").arg("60"), Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn an_interrupted_program_is_killed() {
        let error = run_interruptible(
            Command::new("sleep").arg("60"),
            Duration::from_secs(60),
            &AtomicBool::new(true),
        );
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn the_holder_of_a_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let holder = listener_of(listener.local_addr().unwrap().port()).unwrap();
        assert!(
            holder.contains(&format!("pid {}", std::process::id())),
            "{holder}"
        );
    }

    #[test]
    fn tail_lines_keeps_the_end_and_drops_blank_lines() {
        assert_eq!(tail_lines("a\n\nb\nc\n\n", 2), "b\nc");
    }
}
