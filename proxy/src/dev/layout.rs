//! Owns the directory of a dev cluster: what lies where, the marker that says whose it is, the lock.
//!
//! `DIR/.tandem-dev.toml` (marker), `.tandem-dev.lock`, `tandem.toml`, `rules.toml`, `state/` (secrets and the daemon's
//! state, 0700), `journal/` (what nodes that are away still need, 0700), `log/NODE.log`, `nodes/NODE/` (data directories). Where the servers' user cannot enter DIR, `nodes` is a
//! link to a directory under `/var/lib/tandem`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::process::RunAs;

/// The version of this layout; a directory of another version is refused.
const FORMAT: u32 = 1;

const MARKER: &str = ".tandem-dev.toml";
const LOCK: &str = ".tandem-dev.lock";

/// Where data goes when the servers' user cannot enter the cluster's directory.
const ELSEWHERE: &str = "/var/lib/tandem";

/// Why a directory cannot hold this dev cluster.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// Somebody else's files are there.
    #[error("{dir} is not empty and was not made by `tandem dev`: choose another --dir")]
    Foreign {
        /// The directory.
        dir: PathBuf,
    },
    /// Another `tandem dev` runs on it.
    #[error(
        "{dir} is in use by another `tandem dev` (pid {pid}): stop that one, or choose another --dir"
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The other's pid as it wrote it.
        pid: String,
    },
    /// The marker cannot be understood.
    #[error("{path} cannot be read as the marker of a dev cluster: {problem}")]
    Marker {
        /// The marker.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file operation failed.
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

impl LayoutError {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

/// How far the making of the cluster came. Only a complete one is resumed; the other is made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Stage {
    /// initdb, roles, `--init` and `--pgbench` are not all done.
    Making,
    /// All nodes hold the same data and may start.
    Complete,
}

/// What the marker remembers of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MarkedNode {
    pub(super) name: String,
    pub(super) major: u32,
    /// The programs that it last ran with.
    pub(super) bin_dir: PathBuf,
}

/// How much higher a server's port is than the one where its node is reached: behind relays, the nodes' own ports come
/// first, then those of the servers.
pub(super) fn server_offset(nodes: u16, relays: bool) -> u16 {
    if relays { nodes } else { 0 }
}

/// The marker file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    format: u32,
    pub(super) stage: Stage,
    pub(super) database: String,
    /// The ports that `tandem.toml` was last written with, to tell them from the user's own edits.
    pub(super) port: u16,
    pub(super) admin_port: u16,
    /// Whether a relay stands in front of each node.
    #[serde(default)]
    pub(super) relays: bool,
    #[serde(rename = "node")]
    pub(super) nodes: Vec<MarkedNode>,
}

impl Marker {
    pub(super) fn new(
        database: String,
        port: u16,
        admin_port: u16,
        relays: bool,
        nodes: Vec<MarkedNode>,
    ) -> Self {
        Self {
            format: FORMAT,
            stage: Stage::Making,
            database,
            port,
            admin_port,
            relays,
            nodes,
        }
    }

    /// How much higher a server's port is than the one where its node is reached.
    pub(super) fn server_offset(&self) -> u16 {
        server_offset(
            u16::try_from(self.nodes.len()).unwrap_or(u16::MAX),
            self.relays,
        )
    }

    /// The names of the nodes, for messages.
    pub(super) fn names(&self) -> String {
        self.nodes
            .iter()
            .map(|node| node.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// Where the parts of a dev cluster are.
#[derive(Debug, Clone)]
pub(super) struct Places {
    pub(super) dir: PathBuf,
    /// Where data directories are: below `dir`, or elsewhere.
    pub(super) nodes: PathBuf,
}

impl Places {
    fn below(dir: PathBuf) -> Self {
        let below = dir.join("nodes");
        let nodes = fs::read_link(&below).unwrap_or(below);
        Self { dir, nodes }
    }

    pub(super) fn data_dir(&self, node: &str) -> PathBuf {
        self.nodes.join(node)
    }

    /// Which nodes the relays cut off.
    pub(super) fn cut_file(&self) -> PathBuf {
        self.dir.join("state").join("cut")
    }

    pub(super) fn log_file(&self, node: &str) -> PathBuf {
        self.dir.join("log").join(format!("{node}.log"))
    }
}

/// The complete cluster in `dir`, if there is one, whoever runs it.
pub(super) fn look(dir: &Path) -> Result<Option<(Places, Marker)>, LayoutError> {
    let marker = read_marker(&dir.join(MARKER))?;
    let Some(marker) = marker.filter(|marker| marker.stage == Stage::Complete) else {
        return Ok(None);
    };
    let dir = fs::canonicalize(dir).map_err(LayoutError::io("cannot resolve", dir))?;
    Ok(Some((Places::below(dir), marker)))
}

/// The directory of a dev cluster, held by a lock until this value is dropped.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) places: Places,
    /// The kernel drops the lock with the file, so also when we are killed.
    _lock: File,
}

/// What is where in it.
impl std::ops::Deref for Layout {
    type Target = Places;

    fn deref(&self) -> &Places {
        &self.places
    }
}

impl Layout {
    /// Opens or makes `dir`, checks that it is ours or empty, and locks it. Returns the marker of the cluster in it.
    pub(super) fn open(dir: &Path) -> Result<(Self, Option<Marker>), LayoutError> {
        let dir = std::path::absolute(dir).map_err(LayoutError::io("cannot resolve", dir))?;
        make_dir(&dir, 0o755)?;
        let dir = fs::canonicalize(&dir).map_err(LayoutError::io("cannot resolve", &dir))?;
        let marker_path = dir.join(MARKER);
        if !marker_path.exists() && holds_anything(&dir)? {
            return Err(LayoutError::Foreign { dir });
        }
        let lock = take_lock(&dir)?;
        let marker = read_marker(&marker_path)?;
        let layout = Self {
            places: Places::below(dir),
            _lock: lock,
        };
        Ok((layout, marker))
    }

    /// Throws away all data of an unfinished cluster and makes the directories anew. Where `run_as` cannot enter
    /// the directory, data goes elsewhere; says so on stderr.
    pub(super) fn make_anew(&mut self, run_as: Option<&RunAs>) -> Result<(), LayoutError> {
        let below = self.dir.join("nodes");
        remove_tree(&self.nodes)?;
        if below.is_symlink() {
            fs::remove_file(&below).map_err(LayoutError::io("cannot remove", &below))?;
        }
        self.places.nodes = below.clone();
        if let Some(user) = run_as.filter(|user| !user.can_enter(&self.dir)) {
            self.places.nodes = elsewhere(&self.dir);
            eprintln!(
                "User \"{}\", as which the servers run, cannot enter {}: their data goes to {}.",
                user.name,
                self.dir.display(),
                self.nodes.display()
            );
            // Left by a cluster of this very directory that was deleted without its data.
            remove_tree(&self.nodes)?;
            symlink(&self.nodes, &below)
                .map_err(LayoutError::io("cannot make the link", &below))?;
        }
        make_dir(&self.nodes, 0o755)?;
        make_dir(&self.dir.join("log"), 0o755)?;
        make_dir(&self.state_dir(), 0o700)
    }

    /// The data directory that a cluster of this directory would have elsewhere, when something is there.
    pub(super) fn left_elsewhere(&self) -> Option<PathBuf> {
        Some(elsewhere(&self.dir)).filter(|path| path.exists() && *path != self.nodes)
    }

    pub(super) fn write_marker(&self, marker: &Marker) -> Result<(), LayoutError> {
        let path = self.dir.join(MARKER);
        let body = toml::to_string(marker)
            .map_err(|error| LayoutError::io("cannot write", &path)(io::Error::other(error)))?;
        replace(
            &path,
            0o644,
            &format!("# The cluster that `tandem dev` made here. Do not edit.\n{body}"),
        )
    }

    pub(super) fn config_file(&self) -> PathBuf {
        self.dir.join("tandem.toml")
    }

    pub(super) fn rules_file(&self) -> PathBuf {
        self.dir.join("rules.toml")
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The password of role `tandem` on the nodes.
    pub(super) fn password_file(&self) -> PathBuf {
        self.state_dir().join("tandem.password")
    }
}

/// One place per cluster directory, so that a second start finds it again.
fn elsewhere(dir: &Path) -> PathBuf {
    let hash = xxhash_rust::xxh3::xxh3_64(dir.as_os_str().as_encoded_bytes());
    Path::new(ELSEWHERE).join(format!("dev-{hash:016x}"))
}

fn make_dir(path: &Path, mode: u32) -> Result<(), LayoutError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(LayoutError::io("cannot create", path))
}

fn holds_anything(dir: &Path) -> Result<bool, LayoutError> {
    let mut entries = fs::read_dir(dir).map_err(LayoutError::io("cannot read", dir))?;
    Ok(entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != LOCK)))
}

fn take_lock(dir: &Path) -> Result<File, LayoutError> {
    let path = dir.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(&path)
        .map_err(LayoutError::io("cannot open", &path))?;
    if let Err(errno) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if errno != rustix::io::Errno::WOULDBLOCK {
            return Err(LayoutError::io("cannot lock", &path)(errno.into()));
        }
        let mut pid = String::new();
        (&mut file)
            .take(20)
            .read_to_string(&mut pid)
            .map_err(LayoutError::io("cannot read", &path))?;
        return Err(LayoutError::InUse {
            dir: dir.to_owned(),
            pid: pid.trim().to_owned(),
        });
    }
    let write = |mut file: &File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&file).map_err(LayoutError::io("cannot write", &path))?;
    Ok(file)
}

fn read_marker(path: &Path) -> Result<Option<Marker>, LayoutError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LayoutError::io("cannot read", path)(error)),
    };
    let problem = |problem: String| LayoutError::Marker {
        path: path.to_owned(),
        problem,
    };
    let table: toml::Table = text.parse().map_err(|error| problem(format!("{error}")))?;
    let format = table.get("format").and_then(toml::Value::as_integer);
    if format != Some(i64::from(FORMAT)) {
        let found = format.map_or_else(|| "none".to_owned(), |format| format.to_string());
        return Err(problem(format!(
            "its format is {found}, this Tandem knows {FORMAT}; use another --dir"
        )));
    }
    table
        .try_into()
        .map(Some)
        .map_err(|error| problem(error.to_string()))
}

fn remove_tree(path: &Path) -> Result<(), LayoutError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(LayoutError::io("cannot remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Writes a whole file by rename, so that a crash leaves the old one or the new one.
pub(super) fn replace(path: &Path, mode: u32, text: &str) -> Result<(), LayoutError> {
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    let write = || -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".tandem-")
            .tempfile_in(dir)?;
        file.write_all(text.as_bytes())?;
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(path).map(drop).map_err(|error| error.error)
    };
    write().map_err(LayoutError::io("cannot write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker() -> Marker {
        let node = |name: &str| MarkedNode {
            name: name.to_owned(),
            major: 15,
            bin_dir: PathBuf::from("/opt/bin"),
        };
        Marker::new(
            "app".to_owned(),
            6432,
            6433,
            true,
            vec![node("paris"), node("delhi")],
        )
    }

    #[test]
    fn a_directory_with_other_files_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "x").unwrap();
        let error = Layout::open(dir.path()).unwrap_err();
        assert!(matches!(error, LayoutError::Foreign { .. }), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_second_user_of_the_directory_learns_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let (first, marker) = Layout::open(&dir.path().join("new/dir")).unwrap();
        assert!(marker.is_none());
        let error = Layout::open(&dir.path().join("new/dir")).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("pid {}", std::process::id())),
            "{error}"
        );
        drop(first);
        Layout::open(&dir.path().join("new/dir")).unwrap();
    }

    #[test]
    fn the_marker_is_read_back_and_another_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, _) = Layout::open(dir.path()).unwrap();
        layout.write_marker(&marker()).unwrap();
        drop(layout);
        let (layout, found) = Layout::open(dir.path()).unwrap();
        assert_eq!(found, Some(marker()));
        let text = fs::read_to_string(dir.path().join(MARKER)).unwrap();
        fs::write(
            dir.path().join(MARKER),
            text.replace("format = 1", "format = 7"),
        )
        .unwrap();
        drop(layout);
        let error = Layout::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains("format is 7"), "{error}");
    }

    #[test]
    fn making_anew_removes_what_an_unfinished_start_left() {
        let dir = tempfile::tempdir().unwrap();
        let (mut layout, _) = Layout::open(dir.path()).unwrap();
        layout.make_anew(None).unwrap();
        let half = layout.data_dir("paris");
        fs::create_dir_all(half.join("base")).unwrap();
        layout.make_anew(None).unwrap();
        assert!(!half.exists() && layout.nodes.is_dir());
        let mode = fs::metadata(layout.state_dir())
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn root_puts_data_elsewhere_when_the_directory_is_closed_to_the_servers_user() {
        let Some(user) = RunAs::for_servers().unwrap() else {
            return;
        };
        let closed = tempfile::tempdir().unwrap();
        fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let (mut layout, _) = Layout::open(&closed.path().join("dev")).unwrap();
        layout.write_marker(&marker()).unwrap();
        layout.make_anew(Some(&user)).unwrap();
        let nodes = layout.nodes.clone();
        let reached = user.can_enter(&nodes);
        drop(layout);
        let later = Layout::open(&closed.path().join("dev"));
        fs::remove_dir_all(&nodes).unwrap();
        assert!(
            nodes.starts_with(ELSEWHERE) && reached,
            "{}",
            nodes.display()
        );
        // A later start follows the link.
        assert_eq!(later.unwrap().0.nodes, nodes);
    }
}
