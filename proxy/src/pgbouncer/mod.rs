//! Owns the way from a `pgbouncer.ini` to a `tandem.toml`: what can be carried over is, what cannot is told line by line.
//!
//! Source of the format and of what each setting means: PgBouncer's manual, `doc/config.md` of 1.25. Nothing that keeps
//! somebody away is dropped: host rules that Tandem cannot follow stay named, so that `tandem check` refuses them.

mod connect;
mod databases;
mod ini;
mod login;
mod settings;
#[cfg(test)]
mod tests;
mod text;

use std::{
    collections::HashMap,
    fmt, io,
    path::{Path, PathBuf},
};

pub use ini::Entry;

/// What came of a `pgbouncer.ini`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The text of a `tandem.toml`.
    pub text: String,
    /// What could not be carried over, in the order of the files.
    pub notes: Vec<Note>,
}

/// Something that could not be carried over as it was.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// The file.
    pub file: PathBuf,
    /// The line in it, from 1; 0: the file as a whole.
    pub line: usize,
    /// What it is. Holds no secret.
    pub what: String,
    /// What to do instead.
    pub instead: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:", self.line)?;
        }
        write!(f, " {}; {}", self.what, self.instead)
    }
}

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Files include each other without end.
    #[error("`{}` is included too deep", .0.display())]
    Depth(PathBuf),
    /// No database is named.
    #[error(
        "[databases] names no database, so it is not known which one is to be kept converged; give it with --database NAME"
    )]
    NoDatabase,
    /// The database that was asked for is not in the file.
    #[error("[databases] has no `{0}`")]
    UnknownDatabase(String),
}

/// Reads a `pgbouncer.ini` with all that it includes. `database` says which of its databases is kept converged; the
/// first that is named, where nobody says.
///
/// # Errors
/// [`ImportError`]
pub fn import(path: &Path, database: Option<&str>) -> Result<Imported, ImportError> {
    let (entries, notes) = ini::read(path)?;
    let mut import = Import {
        path: path.to_owned(),
        notes,
        limits: Vec::new(),
        settings: HashMap::new(),
    };
    for entry in entries.iter().filter(|entry| entry.section == "pgbouncer") {
        import.settings.insert(entry.key.clone(), entry.clone());
    }
    import.note_settings(&entries);
    let nodes = import.databases(&entries, database)?;
    let login = import.login();
    let text = import.text(&nodes, &login);
    let mut notes = import.notes;
    notes.sort();
    notes.dedup();
    Ok(Imported { text, notes })
}

/// The work.
struct Import {
    path: PathBuf,
    notes: Vec<Note>,
    /// Clients that one user or database may have: `user` or `database`, its name, how many.
    limits: Vec<(&'static str, String, u32)>,
    /// `[pgbouncer]`: of each setting the last line, which is the one that counts.
    settings: HashMap<String, Entry>,
}

impl Import {
    /// The value of a setting that is not empty.
    fn setting(&self, key: &str) -> Option<&Entry> {
        self.settings
            .get(key)
            .filter(|entry| !entry.value.is_empty())
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.setting(key).map(|entry| entry.value.as_str())
    }

    fn note(&mut self, entry: &Entry, what: impl Into<String>, instead: impl Into<String>) {
        self.notes.push(Note {
            file: entry.file.clone(),
            line: entry.line,
            what: what.into(),
            instead: instead.into(),
        });
    }

    /// Notes something about a setting, if it is there.
    fn note_setting(&mut self, key: &str, what: impl Into<String>, instead: impl Into<String>) {
        if let Some(entry) = self.settings.get(key).cloned() {
            self.note(&entry, what, instead);
        }
    }

    /// A file that a setting names: relative ones count from the directory of the file that names them.
    fn file(&self, key: &str) -> Option<PathBuf> {
        let entry = self.setting(key)?;
        let dir = entry.file.parent().unwrap_or_else(|| Path::new(""));
        let path = dir.join(&entry.value);
        Some(std::path::absolute(&path).unwrap_or(path))
    }
}
