//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, 7677), both sides, without I/O.
//!
//! The server side checks a client against a stored verifier and recovers the client's key from its proof, so that
//! the same user can be logged in to a server without knowing the password. The client side works from a password
//! or from such keys. Like PostgreSQL it leaves the user name of the messages empty: the startup message names the user.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::random;
use crate::secret::{Secret, constant_time_eq};

mod client;
pub mod message;
mod server;

pub use client::{ChannelBinding, ClientExchange, ClientSecret};
pub use server::{ServerExchange, ServerStep};

/// The mechanism without channel binding.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// The mechanism with channel binding.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// PostgreSQL's default of `scram_iterations`.
pub const DEFAULT_ITERATIONS: u32 = 4096;
/// The most iterations that a server may make us compute (CVE-2026-42198: a hostile count costs the client minutes).
pub const MAX_ITERATIONS: u32 = 1_000_000;

/// Length of all keys: SHA-256.
const KEY_LEN: usize = 32;

/// Why an exchange ended without success.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// A message that is not of the form of RFC 5802 or of what PostgreSQL takes of it.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// The peer's channel binding contradicts what both sides offered: a downgrade or a man in the middle.
    #[error("SCRAM channel binding: {0}")]
    ChannelBinding(&'static str),
    /// The proof is wrong, or the user is not known.
    #[error("SCRAM proof is wrong")]
    Rejected,
    /// The server wants more iterations than we are willing to compute.
    #[error(
        "the server asks for {asked} SCRAM iterations, more than the {cap} allowed; lower scram_iterations there and set the password again"
    )]
    TooManyIterations {
        /// Iterations the server asks for.
        asked: u64,
        /// The most we do.
        cap: u32,
    },
    /// The server does not know the password: it is not the server it claims to be.
    #[error("the server's SCRAM signature is wrong: it does not know the password")]
    ServerSignature,
    /// The server ended the exchange with an error.
    #[error("the server refused the SCRAM exchange: {0}")]
    ServerError(String),
    /// A message at the wrong time.
    #[error("SCRAM message out of order")]
    OutOfOrder,
    /// No random numbers.
    #[error("the system's random number generator failed")]
    Random,
}

impl From<io::Error> for ScramError {
    fn from(_: io::Error) -> Self {
        Self::Random
    }
}

/// The keys that let a client prove itself without the password, for one salt and iteration count.
#[derive(Clone)]
pub struct ClientKeys {
    /// HMAC(SaltedPassword, "Client Key").
    pub client_key: [u8; KEY_LEN],
    /// HMAC(SaltedPassword, "Server Key"); the server proves with it that it knows the password.
    pub server_key: [u8; KEY_LEN],
}

impl fmt::Debug for ClientKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientKeys(***)")
    }
}

impl PartialEq for ClientKeys {
    fn eq(&self, other: &Self) -> bool {
        constant_time_eq(&self.client_key, &other.client_key)
            & constant_time_eq(&self.server_key, &other.server_key)
    }
}

impl Eq for ClientKeys {}

impl ClientKeys {
    /// Derives the keys from a password. Takes about a millisecond for 4,096 iterations.
    pub fn derive(password: &[u8], salt: &[u8], iterations: NonZeroU32) -> Self {
        let mut salted = [0; KEY_LEN];
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            iterations,
            salt,
            &normalized(password),
            &mut salted,
        );
        let salted_key = hmac::Key::new(hmac::HMAC_SHA256, &salted);
        Self {
            client_key: sign(&salted_key, &[b"Client Key"]),
            server_key: sign(&salted_key, &[b"Server Key"]),
        }
    }
}

/// What a server stores of a password.
#[derive(Clone)]
pub struct ScramVerifier {
    /// Iterations of the key derivation, at least 1.
    pub iterations: u32,
    /// The salt.
    pub salt: Vec<u8>,
    /// SHA-256 of the client's key.
    pub stored_key: [u8; KEY_LEN],
    /// The server's key.
    pub server_key: [u8; KEY_LEN],
}

impl fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramVerifier")
            .field("iterations", &self.iterations)
            .finish_non_exhaustive()
    }
}

impl PartialEq for ScramVerifier {
    fn eq(&self, other: &Self) -> bool {
        self.iterations == other.iterations
            && self.salt == other.salt
            && constant_time_eq(&self.stored_key, &other.stored_key)
            && constant_time_eq(&self.server_key, &other.server_key)
    }
}

impl Eq for ScramVerifier {}

impl ScramVerifier {
    pub(super) const PREFIX: &'static str = "SCRAM-SHA-256$";

    /// Derives the verifier of a password. Takes about a millisecond for 4,096 iterations: not for an async thread.
    pub fn derive(password: &[u8], salt: Vec<u8>, iterations: NonZeroU32) -> Self {
        let keys = ClientKeys::derive(password, &salt, iterations);
        Self {
            iterations: iterations.get(),
            salt,
            stored_key: sha256(&keys.client_key),
            server_key: keys.server_key,
        }
    }

    /// A fresh salt of the length PostgreSQL uses.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn random_salt() -> io::Result<Vec<u8>> {
        random::<16>().map(Vec::from)
    }

    /// Reads `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey` (`parse_scram_secret` in PostgreSQL).
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (parameters, keys) = text.strip_prefix(Self::PREFIX)?.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let salt = BASE64.decode(salt).ok().filter(|salt| !salt.is_empty())?;
        Some(Self {
            iterations: message::iterations(iterations.as_bytes())
                .and_then(|count| i32::try_from(count).ok())?
                .unsigned_abs(),
            salt,
            stored_key: BASE64.decode(stored_key).ok()?.try_into().ok()?,
            server_key: BASE64.decode(server_key).ok()?.try_into().ok()?,
        })
    }

    /// The text PostgreSQL stores.
    pub fn to_text(&self) -> Secret {
        Secret::new(format!(
            "{}{}:{}${}:{}",
            Self::PREFIX,
            self.iterations,
            BASE64.encode(&self.salt),
            BASE64.encode(self.stored_key),
            BASE64.encode(self.server_key)
        ))
    }

    /// Whether this is the password. Takes as long as [`ScramVerifier::derive`].
    pub fn matches(&self, password: &[u8]) -> bool {
        NonZeroU32::new(self.iterations).is_some_and(|iterations| {
            let keys = ClientKeys::derive(password, &self.salt, iterations);
            constant_time_eq(&sha256(&keys.client_key), &self.stored_key)
        })
    }
}

/// The password after SASLprep (RFC 4013), or as it is where that does not apply: not UTF-8, forbidden characters, or
/// nothing left. PostgreSQL's server and libpq do the same (`pg_saslprep`), so both sides agree.
fn normalized(password: &[u8]) -> Cow<'_, [u8]> {
    let prepared = std::str::from_utf8(password)
        .ok()
        .and_then(|text| stringprep::saslprep(text).ok())
        .filter(|text| !text.is_empty());
    match prepared {
        Some(Cow::Owned(text)) => Cow::Owned(text.into_bytes()),
        _ => Cow::Borrowed(password),
    }
}

/// A fresh nonce, 18 random bytes as PostgreSQL uses, as text.
fn nonce() -> io::Result<String> {
    Ok(BASE64.encode(random::<18>()?))
}

fn sha256(data: &[u8]) -> [u8; KEY_LEN] {
    let mut out = [0; KEY_LEN];
    out.copy_from_slice(digest::digest(&digest::SHA256, data).as_ref());
    out
}

/// HMAC-SHA-256 of the concatenation of `parts`.
fn sign(key: &hmac::Key, parts: &[&[u8]]) -> [u8; KEY_LEN] {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; KEY_LEN];
    out.copy_from_slice(context.sign().as_ref());
    out
}

fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; KEY_LEN] {
    sign(&hmac::Key::new(hmac::HMAC_SHA256, key), parts)
}

fn xor(a: &[u8; KEY_LEN], b: &[u8; KEY_LEN]) -> [u8; KEY_LEN] {
    let mut out = *a;
    for (byte, other) in out.iter_mut().zip(b) {
        *byte ^= other;
    }
    out
}

#[cfg(test)]
mod tests;
