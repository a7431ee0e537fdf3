//! The first packets of a client, seen from the server: TLS and GSS requests, cancel requests, the startup message and
//! the negotiation of the protocol version. The parsers are pure; [`accept`] drives them over a stream.

use crate::reader::{ReadError, Reader};

mod accept;

pub use accept::{AcceptError, Accepted, TlsInfo, accept};

/// PostgreSQL's `MAX_STARTUP_PACKET_LENGTH` (pqcomm.h): bytes behind the length field.
pub const MAX_STARTUP_PACKET_LENGTH: usize = 10_000;
/// Protocol 3.0.
pub const PROTOCOL_3_0: (u16, u16) = (3, 0);
/// Protocol 3.2, the newest we speak (PostgreSQL 18): longer cancel keys.
pub const PROTOCOL_3_2: (u16, u16) = (3, 2);

/// `CANCEL_REQUEST_CODE` (pqcomm.h): 1234.5678.
pub(crate) const CANCEL_REQUEST_CODE: u32 = 1234 << 16 | 5678;
/// `NEGOTIATE_SSL_CODE` (pqcomm.h): 1234.5679.
const SSL_REQUEST_CODE: u32 = 1234 << 16 | 5679;
/// `NEGOTIATE_GSS_CODE` (pqcomm.h): 1234.5680.
const GSSENC_REQUEST_CODE: u32 = 1234 << 16 | 5680;
/// First byte of a TLS handshake record: the client begins TLS without asking (`sslnegotiation=direct`).
const TLS_HANDSHAKE: u8 = 0x16;

/// What is wrong with a client's first packet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// A length that no first packet has.
    #[error("invalid length of startup packet")]
    Length,
    /// A packet whose inside does not follow its form.
    #[error("invalid startup packet layout: {0}")]
    Layout(&'static str),
    /// A protocol we do not speak.
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2")]
    Protocol {
        /// Its major version.
        major: u16,
        /// Its minor version.
        minor: u16,
    },
    /// Nobody to log in as.
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
}

impl StartupError {
    /// The SQLSTATE PostgreSQL uses for it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Length | Self::Layout(_) => "08P01",
            Self::Protocol { .. } => "0A000",
            Self::NoUser => "28000",
        }
    }
}

impl From<ReadError> for StartupError {
    fn from(_: ReadError) -> Self {
        Self::Layout("expected terminator as last byte")
    }
}

/// What a client begins with.
#[derive(Clone, PartialEq, Eq)]
pub enum FirstPacket<'a> {
    /// A TLS handshake without asking before. Nothing is consumed.
    DirectTls,
    /// Asks for TLS.
    SslRequest,
    /// Asks for GSSAPI encryption.
    GssEncRequest,
    /// Asks to cancel what another session runs.
    Cancel {
        /// Its process number.
        pid: i32,
        /// Its secret, 4 to 256 bytes.
        secret: &'a [u8],
    },
    /// Begins a session.
    Startup(StartupPacket<'a>),
}

impl std::fmt::Debug for FirstPacket<'_> {
    /// Leaves out the cancel key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::DirectTls => f.write_str("DirectTls"),
            Self::SslRequest => f.write_str("SslRequest"),
            Self::GssEncRequest => f.write_str("GssEncRequest"),
            Self::Cancel { pid, .. } => f
                .debug_struct("Cancel")
                .field("pid", pid)
                .finish_non_exhaustive(),
            Self::Startup(packet) => f.debug_tuple("Startup").field(packet).finish(),
        }
    }
}

/// How many bytes the packet at the start of `buf` has, from its length field. `None`: fewer than four bytes.
fn packet_len(buf: &[u8]) -> Result<Option<usize>, StartupError> {
    let Some(length) = buf.first_chunk() else {
        return Ok(None);
    };
    usize::try_from(u32::from_be_bytes(*length))
        .ok()
        .filter(|length| (8..=MAX_STARTUP_PACKET_LENGTH + 4).contains(length))
        .map(Some)
        .ok_or(StartupError::Length)
}

/// Reads the packet at the start of `buf` and tells how many bytes it has. `None`: not whole yet.
///
/// # Errors
/// [`StartupError`], for a bad length as soon as it is there.
pub fn first_packet(buf: &[u8]) -> Result<Option<(FirstPacket<'_>, usize)>, StartupError> {
    if buf.first() == Some(&TLS_HANDSHAKE) {
        return Ok(Some((FirstPacket::DirectTls, 0)));
    }
    let Some(length) = packet_len(buf)? else {
        return Ok(None);
    };
    let Some(packet) = buf.get(..length) else {
        return Ok(None);
    };
    let mut reader = Reader::new(packet);
    reader.u32()?;
    let first = match reader.u32()? {
        SSL_REQUEST_CODE if reader.remaining() == 0 => FirstPacket::SslRequest,
        GSSENC_REQUEST_CODE if reader.remaining() == 0 => FirstPacket::GssEncRequest,
        SSL_REQUEST_CODE | GSSENC_REQUEST_CODE => return Err(StartupError::Length),
        CANCEL_REQUEST_CODE => {
            let pid = reader.i32().map_err(|_| StartupError::Length)?;
            let secret = reader.rest();
            if !(4..=256).contains(&secret.len()) {
                return Err(StartupError::Length);
            }
            FirstPacket::Cancel { pid, secret }
        }
        version => {
            let [a, b, c, d] = version.to_be_bytes();
            FirstPacket::Startup(StartupPacket::parse(
                u16::from_be_bytes([a, b]),
                u16::from_be_bytes([c, d]),
                reader.rest(),
            )?)
        }
    };
    Ok(Some((first, length)))
}

/// A startup message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartupPacket<'a> {
    /// Major version of the protocol the client asks for.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
    params: &'a str,
}

impl<'a> StartupPacket<'a> {
    /// `params` is checked as a whole: pairs of terminated strings, an empty name as terminator, nothing behind. Those
    /// of another major version are not looked into: nobody knows their form.
    fn parse(major: u16, minor: u16, params: &'a [u8]) -> Result<Self, StartupError> {
        let mut packet = Self {
            major,
            minor,
            params: "",
        };
        if major != 3 {
            return Ok(packet);
        }
        let mut reader = Reader::new(params);
        while !reader.cstr()?.is_empty() {
            reader.cstr()?;
        }
        reader.finish()?;
        let pairs = params.strip_suffix(b"\0").unwrap_or_default();
        packet.params = std::str::from_utf8(pairs)
            .map_err(|_| StartupError::Layout("parameter that is not UTF-8"))?;
        Ok(packet)
    }

    /// The parameters in the order sent.
    pub fn params(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let mut parts = self.params.split_terminator('\0');
        std::iter::from_fn(move || Some((parts.next()?, parts.next()?)))
    }

    /// The value of one parameter. Sent twice, the last counts, as in PostgreSQL.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.params()
            .filter(|&(found, _)| found == name)
            .last()
            .map(|(_, value)| value)
    }

    /// Settles the protocol version and sorts the parameters.
    ///
    /// # Errors
    /// [`StartupError::Protocol`] for another major version, [`StartupError::NoUser`].
    pub fn negotiate(&self) -> Result<Startup, StartupError> {
        let Self { major, minor, .. } = *self;
        if major != 3 {
            return Err(StartupError::Protocol { major, minor });
        }
        let user = self
            .get("user")
            .filter(|user| !user.is_empty())
            .ok_or(StartupError::NoUser)?;
        let database = self
            .get("database")
            .filter(|database| !database.is_empty())
            .unwrap_or(user);
        let mut unsupported = Vec::new();
        let mut params = Vec::new();
        for (name, value) in self.params() {
            if name.starts_with("_pq_.") {
                unsupported.push(name.to_owned());
            } else if !matches!(name, "user" | "database" | "replication") {
                params.push((name.to_owned(), value.to_owned()));
            }
        }
        Ok(Startup {
            // 3.1 never came to be; who asks for it gets the features of 3.0.
            protocol: if minor >= PROTOCOL_3_2.1 {
                PROTOCOL_3_2
            } else {
                PROTOCOL_3_0
            },
            user: user.to_owned(),
            database: database.to_owned(),
            params,
            replication: self.get("replication").map(str::to_owned),
            needs_negotiation: minor > PROTOCOL_3_2.1 || !unsupported.is_empty(),
            unsupported,
        })
    }
}

/// What a client wants of its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    /// The protocol version settled on: 3.0 or 3.2.
    pub protocol: (u16, u16),
    /// Whom it logs in as. Not proven yet.
    pub user: String,
    /// The database; the user's name where the client named none.
    pub database: String,
    /// All other parameters in the order sent, without `replication` and `_pq_.` options.
    pub params: Vec<(String, String)>,
    /// The parameter `replication`: the client wants a walsender.
    pub replication: Option<String>,
    /// Protocol options (`_pq_.…`) that we do not know; we know none.
    pub unsupported: Vec<String>,
    /// Whether the client must be told about version or options with `NegotiateProtocolVersion`.
    pub needs_negotiation: bool,
}

#[cfg(test)]
mod tests;
