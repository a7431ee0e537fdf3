//! Owns the users file: PgBouncer's `userlist.txt` format, one `"user" "secret"` a line.
//!
//! The secret is what `pg_authid.rolpassword` holds (a SCRAM verifier or an md5 hash) or a password. A quote inside
//! a name or secret is doubled. What follows the second word is ignored, `;` begins a comment line, and an empty
//! secret is a user without a password, as in PgBouncer's documentation ("Authentication file format").

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use tandem_wire::Secret;

/// The largest users file read.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Users and their secrets as text.
pub(crate) type Users = HashMap<String, Secret>;

/// A users file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UsersFileError {
    /// It cannot be read.
    #[error("cannot read the users file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line is not of the form `"user" "secret"`.
    #[error("the users file {}, line {line}: {what}; a line is \"user\" \"secret\", both in double quotes", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong; never the text itself, as it may be a password.
        what: &'static str,
    },
}

/// Identifies one version of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
}

/// The stamp of the file as it is now.
pub(crate) fn stamp(path: &Path) -> io::Result<Stamp> {
    let metadata = fs::metadata(path)?;
    Ok(Stamp {
        modified: metadata.modified().ok(),
        bytes: metadata.len(),
    })
}

/// Reads the file. Warns when others than its owner may read it.
pub(crate) fn load(path: &Path) -> Result<(Users, Stamp), UsersFileError> {
    let failed = |source| UsersFileError::Read {
        path: path.to_owned(),
        source,
    };
    // Taken first: a change while reading is then seen as a change next time.
    let stamp = stamp(path).map_err(failed)?;
    if stamp.bytes > FILE_BYTES_MAX {
        return Err(failed(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "over 64 MiB",
        )));
    }
    warn_if_open(path);
    let text = fs::read_to_string(path).map_err(failed)?;
    let users = parse(&text).map_err(|(line, what)| UsersFileError::Line {
        path: path.to_owned(),
        line,
        what,
    })?;
    Ok((users, stamp))
}

/// A file with secrets should be readable by its owner only.
pub(crate) fn warn_if_open(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if let Ok(metadata) = fs::metadata(path) {
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            tracing::warn!(
                file = %path.display(),
                mode = format_args!("{mode:04o}"),
                "others may read this file with secrets; chmod 600 it"
            );
        }
    }
}

/// Parses the text. The error is the line, counted from 1, and what is wrong with it.
fn parse(text: &str) -> Result<Users, (usize, &'static str)> {
    let mut users = Users::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with(';') {
            continue;
        }
        let (user, rest) = quoted(line).map_err(|what| (number, what))?;
        let (secret, _ignored) = quoted(rest.trim_start()).map_err(|what| (number, what))?;
        if user.is_empty() {
            return Err((number, "the user's name is empty"));
        }
        if user.contains('\0') || secret.contains('\0') {
            return Err((number, "a zero byte"));
        }
        users.insert(user, Secret::new(secret));
    }
    Ok(users)
}

/// One quoted word at the start, and what follows it.
fn quoted(text: &str) -> Result<(String, &str), &'static str> {
    let mut rest = text
        .strip_prefix('"')
        .ok_or("a word does not begin with a double quote")?;
    let mut word = String::new();
    loop {
        let (part, behind) = rest.split_once('"').ok_or("a double quote is missing")?;
        word.push_str(part);
        match behind.strip_prefix('"') {
            Some(further) => {
                word.push('"');
                rest = further;
            }
            None => return Ok((word, behind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn parsed(text: &str) -> Vec<(String, String)> {
        let mut users: Vec<_> = parse(text)
            .expect("parses")
            .into_iter()
            .map(|(user, secret)| {
                (
                    user,
                    String::from_utf8(secret.expose().to_vec()).expect("text"),
                )
            })
            .collect();
        users.sort();
        users
    }

    #[test]
    fn pgbouncers_format_is_read() {
        let text = "\"app\" \"SCRAM-SHA-256$4096:c2FsdA==$a:b\"\n\n; a comment\n  \"old\" \"md5900150983cd24fb0d6963f7d28e17f72\" trailing words\r\n\"pl\"\"ain\" \"se\"\"cret\"\n\"nobody\" \"\"\n";
        assert_eq!(
            parsed(text),
            [
                ("app", "SCRAM-SHA-256$4096:c2FsdA==$a:b"),
                ("nobody", ""),
                ("old", "md5900150983cd24fb0d6963f7d28e17f72"),
                ("pl\"ain", "se\"cret"),
            ]
            .map(|(user, secret)| (user.to_owned(), secret.to_owned()))
        );
    }

    #[test]
    fn the_last_line_of_a_user_counts() {
        assert_eq!(
            parsed("\"a\" \"1\"\n\"a\" \"2\""),
            [("a".to_owned(), "2".to_owned())]
        );
    }

    #[test]
    fn a_bad_line_is_named_and_its_text_is_not_shown() {
        for (text, line) in [
            ("app secret", 1),
            ("\"app\" secret", 1),
            ("\"ok\" \"ok\"\n\"app\"", 2),
            ("\n\"app\" \"sec", 2),
            ("\"\" \"x\"", 1),
            ("\"a\0\" \"x\"", 1),
        ] {
            let (at, what) = parse(text).expect_err(text);
            assert_eq!(at, line, "{text}");
            assert!(!what.contains("sec"), "{what}");
        }
    }

    #[test]
    fn a_missing_file_and_a_bad_line_name_the_file() {
        let missing = load(Path::new("/nonexistent/userlist.txt")).expect_err("missing");
        assert!(missing.to_string().contains("/nonexistent/userlist.txt"));
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        writeln!(file, "\"a\" \"b\"\nnonsense").expect("written");
        let bad = load(file.path()).expect_err("bad").to_string();
        assert!(bad.contains("line 2"), "{bad}");
    }

    #[test]
    fn a_change_of_the_file_changes_its_stamp() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        writeln!(file, "\"a\" \"b\"").expect("written");
        let (users, before) = load(file.path()).expect("loads");
        assert_eq!(users.len(), 1);
        assert_eq!(stamp(file.path()).expect("stamped"), before);
        writeln!(file, "\"c\" \"d\"").expect("written");
        assert_ne!(stamp(file.path()).expect("stamped"), before);
    }
}
