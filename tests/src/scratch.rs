//! Owns the directory of one test, and that nothing started in it outlives the test.
//!
//! The directory holds a lock file that the test's process keeps locked; the kernel drops the lock when the process ends,
//! however it ends. Whoever can take the lock may therefore sweep: the janitor process that each test starts, and every
//! later test.

use std::{
    fs::{self, File},
    io,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::fs::FlockOperation;
use tandem::dev::{
    process::ProcessId,
    server::{Server, StopMode},
};

use crate::process;

/// The lock file that says whether the owner of a directory lives.
const OWNER: &str = ".owner";

/// How long a server may take to end before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// How deep below a test's directory data directories lie at most.
const DEPTH: u32 = 4;

/// The directory of one test. Dropping it kills every process that was started in it, and removes it.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    _owner: File,
}

impl Scratch {
    /// Makes a directory that the servers' user can enter; sweeps what dead tests left behind; starts the janitor.
    ///
    /// # Errors
    /// The temporary directory cannot be written.
    pub fn new() -> io::Result<Self> {
        let base = base_dir()?;
        sweep_dead(&base);
        // With the process in the name: processes that start together may draw the same random letters.
        let prefix = format!(".new-{}-", std::process::id());
        let new = tempfile::Builder::new()
            .prefix(&prefix)
            .rand_bytes(3)
            .tempdir_in(&base)?;
        fs::set_permissions(new.path(), fs::Permissions::from_mode(0o755))?;
        let owner = File::create(new.path().join(OWNER))?;
        rustix::fs::flock(&owner, FlockOperation::NonBlockingLockExclusive)?;
        // Seen by sweepers only now, with the lock taken.
        let new = new.keep();
        let name = new
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let dir = base.join(name.trim_start_matches(".new-"));
        fs::rename(&new, &dir)?;
        let scratch = Self { dir, _owner: owner };
        scratch.start_janitor();
        Ok(scratch)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The janitor ends by itself once the directory is gone, so nobody waits for it here. Without it (a harness used
    /// outside this crate's tests) the next test sweeps.
    fn start_janitor(&self) {
        let Some(program) = process::sibling("tandem-test-janitor") else {
            return;
        };
        let mut command = Command::new(program);
        command.arg(&self.dir).current_dir("/").process_group(0);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Ok(mut child) = command.spawn() {
            // Reaps it, where the process lives on after the test.
            std::thread::spawn(move || child.wait().is_ok());
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        sweep(&self.dir);
    }
}

/// Waits until the owner of `dir` has ended, then sweeps it. What the janitor does.
pub fn sweep_when_dead(dir: &Path) {
    let Ok(owner) = File::open(dir.join(OWNER)) else {
        return;
    };
    if rustix::fs::flock(&owner, FlockOperation::LockExclusive).is_ok() && dir.exists() {
        sweep(dir);
    }
}

/// All tests of one user share a directory; data of other users is not ours to sweep.
///
/// # Errors
/// It cannot be made.
pub fn base_dir() -> io::Result<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let base = std::env::temp_dir().join(format!("tandem-tests-{uid}"));
    match fs::create_dir(&base) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if fs::symlink_metadata(&base)?.uid() != uid {
                return Err(io::Error::other(format!(
                    "{} belongs to somebody else",
                    base.display()
                )));
            }
        }
        made => made?,
    }
    fs::set_permissions(&base, fs::Permissions::from_mode(0o755))?;
    Ok(base)
}

fn sweep_dead(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let Ok(owner) = File::open(entry.path().join(OWNER)) else {
            continue;
        };
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if !hidden && rustix::fs::flock(&owner, FlockOperation::NonBlockingLockExclusive).is_ok() {
            sweep(&entry.path());
        }
    }
}

/// Kills the daemons and servers of `dir` and removes it.
fn sweep(dir: &Path) {
    // A dev daemon first: it watches its servers.
    for process in programs_in(dir) {
        // A process of another user is none of ours, and it may have ended meanwhile.
        let _ = process.signal(rustix::process::Signal::KILL);
    }
    for data_dir in data_dirs(dir, DEPTH) {
        // A postmaster that is killed leaves its shared memory segment behind, and the kernel has few of them.
        if let Some(mut server) = Server::adopt(&data_dir, &data_dir.join("log"))
            && let Err(error) = server.stop(StopMode::Immediate, STOP_LIMIT)
        {
            eprintln!("harness: {error}");
        }
        remove_shared_memory(&data_dir);
    }
    if let Err(error) = fs::remove_dir_all(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        eprintln!("harness: cannot remove {}: {error}", dir.display());
    }
}

/// A killed server leaves the small System V segment by which the next one would notice it; there are only so many.
fn remove_shared_memory(data_dir: &Path) {
    let lock = fs::read_to_string(data_dir.join("postmaster.pid")).unwrap_or_default();
    // Key and id (src/include/utils/pidfile.h, LOCK_FILE_LINE_SHMEM_KEY).
    let segment = lock
        .lines()
        .nth(6)
        .and_then(|line| line.split_whitespace().nth(1));
    if let Some(id) = segment {
        // It may be gone already.
        let _ = Command::new("ipcrm")
            .args(["-m", id])
            .stderr(Stdio::null())
            .status();
    }
}

/// Processes other than servers that have a file of `dir` as an argument; the janitor has the directory itself.
fn programs_in(dir: &Path) -> Vec<ProcessId> {
    let prefix = format!("{}/", dir.display());
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str().map(str::to_owned))
        .filter(|name| *name != own)
        .filter_map(|name| ProcessId::of(name.parse().ok()?))
        .filter(|process| {
            let arguments = process.arguments();
            let mut texts = arguments.iter().map(|argument| argument.to_string_lossy());
            let is_server = texts
                .next()
                .is_some_and(|program| program.ends_with("/postgres"));
            !is_server && texts.any(|argument| argument.starts_with(&prefix))
        })
        .collect()
}

fn data_dirs(dir: &Path, depth: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if dir.join("postmaster.pid").exists() {
        found.push(dir.to_owned());
    } else if depth > 0 {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.extend(data_dirs(&entry.path(), depth - 1));
            }
        }
    }
    found
}
