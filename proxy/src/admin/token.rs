//! Owns the token that opens the admin port.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use aws_lc_rs::{constant_time, rand};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use tandem_wire::Secret;

/// Random bytes in a token.
const TOKEN_BYTES: usize = 32;
/// A shorter token in a file that an operator wrote is refused.
const TOKEN_CHARS_MIN: usize = 16;

/// No token can be had.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read or made.
    #[error("cannot use the admin token file {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something that is no token.
    #[error("the admin token file {} must hold one line of at least {TOKEN_CHARS_MIN} characters; remove it to have a new one made", .0.display())]
    Unusable(PathBuf),
    /// The system has no random bytes.
    #[error("the system has no random bytes for an admin token")]
    NoRandomness,
}

/// A token that requests are compared with.
#[derive(Debug, Clone)]
pub(crate) struct Token(Secret);

impl Token {
    /// Reads the file; makes it, readable by its owner only, where it is missing.
    pub(crate) fn load_or_create(path: &Path) -> Result<Token, TokenError> {
        let failed = |source| TokenError::File {
            path: path.to_owned(),
            source,
        };
        match create(path) {
            Ok(token) => return Ok(token),
            Err(TokenError::File { source, .. })
                if source.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        crate::auth::warn_if_open(path);
        let text = fs::read_to_string(path).map_err(failed)?;
        let token = text.trim();
        if token.len() < TOKEN_CHARS_MIN || token.chars().any(char::is_whitespace) {
            return Err(TokenError::Unusable(path.to_owned()));
        }
        Ok(Token(Secret::new(token)))
    }

    /// Compares in constant time.
    pub(crate) fn is(&self, offered: &[u8]) -> bool {
        constant_time::verify_slices_are_equal(self.0.expose(), offered).is_ok()
    }
}

fn create(path: &Path) -> Result<Token, TokenError> {
    let failed = |source| TokenError::File {
        path: path.to_owned(),
        source,
    };
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed)?;
    }
    let mut bytes = [0; TOKEN_BYTES];
    rand::fill(&mut bytes).map_err(|_| TokenError::NoRandomness)?;
    let token = URL_SAFE_NO_PAD.encode(bytes);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    file.write_all(token.as_bytes())
        .and_then(|()| file.write_all(b"\n"))
        .map_err(failed)?;
    Ok(Token(Secret::new(token)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_missing_token_is_made_once_and_only_its_owner_may_read_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state/admin.token");
        let made = Token::load_or_create(&path).expect("made");
        let text = fs::read_to_string(&path).expect("readable");
        assert_eq!(
            fs::metadata(&path).expect("there").permissions().mode() & 0o777,
            0o600
        );
        assert!(made.is(text.trim().as_bytes()));
        let again = Token::load_or_create(&path).expect("read");
        assert!(again.is(text.trim().as_bytes()));
        assert!(!again.is(b"") && !again.is(&text.trim().as_bytes()[1..]));
    }

    #[test]
    fn an_empty_or_short_token_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("admin.token");
        for text in ["", "\n", "short\n", "two words that are long enough\n"] {
            fs::write(&path, text).expect("written");
            assert!(
                matches!(Token::load_or_create(&path), Err(TokenError::Unusable(_))),
                "{text:?}"
            );
        }
    }
}
