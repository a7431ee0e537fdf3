//! Authentication on both sides: proving a client's identity to us, and ours to a server.
//!
//! The exchanges themselves are state machines without I/O ([`scram`], [`Login`]); [`authenticate_client`] and
//! [`crate::connect()`] drive them over a stream. Key derivation, which takes milliseconds, runs off the async threads.

use std::fmt;
use std::io;

use bytes::{Bytes, BytesMut};
use md5::{Digest, Md5};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::frame::{self, Sender};
use crate::secret::Secret;
use crate::stream::Stream;

mod login;
pub mod scram;
mod server;
mod verifier;

pub use login::{Login, LoginError};
pub use scram::{ClientKeys, ScramVerifier};
pub use server::{Method, Proven, authenticate_client};
pub use verifier::{Verifier, VerifierError};

/// Bytes that are read of a client's answer at once.
const ANSWER_LEN: usize = 512;

/// What can log in to a server as a user.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Credentials {
    /// Nothing: works where the server trusts us or checks a certificate.
    #[default]
    None,
    /// The password itself.
    Password(Secret),
    /// The text PostgreSQL stores for an MD5 password, `md5` and 32 hexadecimal digits. Enough to answer an MD5
    /// request, for nothing else.
    Md5Hash(Secret),
    /// The keys of a SCRAM exchange. Enough for a server whose verifier has the same salt and iteration count.
    ScramKeys(ClientKeys),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Password(_) => "Password(***)",
            Self::Md5Hash(_) => "Md5Hash(***)",
            Self::ScramKeys(_) => "ScramKeys(***)",
        })
    }
}

/// Why a client was not authenticated.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Wrong password, unknown user, or a user who cannot use this method. They are not told apart on purpose. Answer
    /// with SQLSTATE 28P01.
    #[error("password authentication failed")]
    Rejected,
    /// The client broke the protocol. Answer with SQLSTATE 08P01.
    #[error("{0}")]
    Protocol(String),
    /// The connection broke, or the client went away (`UnexpectedEof`), which psql does to ask its user for a password.
    #[error("connection to the client lost: {0}")]
    Io(#[from] io::Error),
}

impl AuthError {
    pub(crate) fn protocol(text: impl Into<String>) -> Self {
        Self::Protocol(text.into())
    }
}

/// A client's stream while it logs in.
pub struct ClientIo {
    /// The stream.
    pub stream: Stream,
    /// Bytes received that belong to messages not read yet. Whoever takes over the stream takes these too.
    pub rx: BytesMut,
}

impl fmt::Debug for ClientIo {
    /// Leaves out the bytes received: a password may be among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIo")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

impl ClientIo {
    /// A stream of which nothing was read ahead.
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            rx: BytesMut::new(),
        }
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// What the stream says.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Reads the body of one `p` message of at most `limit` bytes.
    async fn password_message(&mut self, limit: usize) -> Result<Bytes, AuthError> {
        loop {
            let header = frame::peek(&self.rx, Sender::Client)
                .map_err(|error| AuthError::protocol(error.to_string()))?;
            if let Some(header) = header {
                if header.tag != b'p' {
                    return Err(AuthError::protocol(format!(
                        "expected password response, got message type {:?}",
                        char::from(header.tag)
                    )));
                }
                if header.body_len() > limit {
                    return Err(AuthError::protocol("password response is too long"));
                }
                if self.rx.len() >= header.frame_len() {
                    let frame = self.rx.split_to(header.frame_len()).freeze();
                    return Ok(frame.slice(frame::HEADER_LEN..));
                }
            }
            // Room for any answer but the longest, so that one read brings it.
            self.rx.reserve(ANSWER_LEN);
            if self.stream.read_buf(&mut self.rx).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}

/// Lower-case hexadecimal MD5 of the concatenation of `parts`.
fn md5_hex(parts: &[&[u8]]) -> String {
    let mut hash = Md5::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize()
        .iter()
        .fold(String::with_capacity(32), |mut text, byte| {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
            }
            text
        })
}

/// What PostgreSQL stores for an MD5 password: `md5` and the hash of password and user name (`pg_md5_encrypt`).
fn md5_stored(password: &[u8], user: &str) -> String {
    format!("md5{}", md5_hex(&[password, user.as_bytes()]))
}

/// The answer to an MD5 request: the stored form's digits hashed again with the salt. `stored` begins with `md5`.
fn md5_answer(stored: &[u8], salt: [u8; 4]) -> String {
    format!(
        "md5{}",
        md5_hex(&[stored.get(3..).unwrap_or_default(), &salt])
    )
}

/// Random bytes from the operating system's generator.
fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| io::Error::other("the system's random number generator failed"))?;
    Ok(bytes)
}

/// Runs work of milliseconds off the async threads.
async fn off_reactor<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
}

pub(crate) use login::drive_login_step;

#[cfg(test)]
mod tests;
