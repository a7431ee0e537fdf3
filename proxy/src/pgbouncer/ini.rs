//! Owns the ini format: sections, `key = value`, comment lines, `%include`.

use std::fs;
use std::path::{Path, PathBuf};

use super::{ImportError, Note};

/// Files that include files.
const DEPTH_MAX: usize = 10;

/// One `key = value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The section, without brackets.
    pub section: String,
    /// The key, without quotes.
    pub key: String,
    /// The value as it stands there.
    pub value: String,
    /// The file.
    pub file: PathBuf,
    /// The line in it, from 1.
    pub line: usize,
}

/// Reads a file and what it includes, in order; notes lines that mean nothing.
pub(super) fn read(path: &Path) -> Result<(Vec<Entry>, Vec<Note>), ImportError> {
    let mut ini = Ini {
        entries: Vec::new(),
        notes: Vec::new(),
        section: String::new(),
    };
    ini.file(path, 0)?;
    Ok((ini.entries, ini.notes))
}

struct Ini {
    entries: Vec<Entry>,
    notes: Vec<Note>,
    /// Goes on into included files, and back.
    section: String,
}

impl Ini {
    fn file(&mut self, path: &Path, depth: usize) -> Result<(), ImportError> {
        if depth > DEPTH_MAX {
            return Err(ImportError::Depth(path.to_owned()));
        }
        let text = fs::read_to_string(path).map_err(|source| ImportError::Read {
            path: path.to_owned(),
            source,
        })?;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with([';', '#']) {
                continue;
            }
            if let Some(included) = line.strip_prefix("%include") {
                let dir = path.parent().unwrap_or_else(|| Path::new(""));
                self.file(&dir.join(included.trim()), depth + 1)?;
                continue;
            }
            let section = line
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'));
            if let Some(section) = section {
                section.trim().clone_into(&mut self.section);
                continue;
            }
            match pair(line) {
                Some((key, value)) => self.entries.push(Entry {
                    section: self.section.clone(),
                    key,
                    value: value.to_owned(),
                    file: path.to_owned(),
                    line: number,
                }),
                None => self.notes.push(Note {
                    file: path.to_owned(),
                    line: number,
                    what: "this line is no `key = value`".to_owned(),
                    instead: "PgBouncer refuses it too; take it out".to_owned(),
                }),
            }
        }
        Ok(())
    }
}

/// `key = value`; a key with other characters than letters, digits and _ is quoted, a quote in it doubled.
fn pair(line: &str) -> Option<(String, &str)> {
    let (key, rest) = match line.strip_prefix('"') {
        None => {
            let (key, value) = line.split_once('=')?;
            return Some((key.trim().to_owned(), value.trim()));
        }
        Some(rest) => {
            let mut end = 0;
            loop {
                end += rest.get(end..)?.find('"')?;
                if !rest.get(end + 1..)?.starts_with('"') {
                    break;
                }
                end += 2;
            }
            (rest.get(..end)?.replace("\"\"", "\""), rest.get(end + 1..)?)
        }
    };
    let value = rest.trim_start().strip_prefix('=')?;
    Some((key, value.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_taken_apart() {
        let table = [
            ("a=b", Some(("a", "b"))),
            ("pool_mode  =  session ", Some(("pool_mode", "session"))),
            ("q = SELECT a = b", Some(("q", "SELECT a = b"))),
            ("* = host=x", Some(("*", "host=x"))),
            ("\"my db\" = port=1", Some(("my db", "port=1"))),
            ("\"a\"\"b\"=", Some(("a\"b", ""))),
            ("\"a\"\"b=", None),
            ("\"a\" x", None),
            ("nothing", None),
        ];
        for (line, wanted) in table {
            let found = pair(line);
            let found = found.as_ref().map(|(key, value)| (key.as_str(), *value));
            assert_eq!(found, wanted, "{line}");
        }
    }

    #[test]
    fn files_are_included_in_place_and_never_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("a.ini", "[one]\nx = 1\n%include b.ini\ny = 2\n?\n; z = 3\n");
        write("b.ini", "in = one\n[two]\n");
        let (entries, notes) = read(&dir.path().join("a.ini")).unwrap();
        let told: Vec<_> = entries
            .iter()
            .map(|entry| (entry.section.as_str(), entry.key.as_str(), entry.line))
            .collect();
        assert_eq!(told, [("one", "x", 2), ("one", "in", 1), ("two", "y", 4)]);
        assert_eq!((notes.len(), notes[0].line), (1, 5));
        write("b.ini", "%include a.ini");
        assert!(matches!(
            read(&dir.path().join("a.ini")),
            Err(ImportError::Depth(_))
        ));
        write("b.ini", "%include missing.ini");
        let missing = read(&dir.path().join("a.ini")).unwrap_err().to_string();
        assert!(missing.contains("missing.ini"), "{missing}");
    }
}
