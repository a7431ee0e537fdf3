//! From an address to a logged-in connection. Every wait is bounded by one timeout.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};

use crate::auth::{Credentials, Login, LoginError, drive_login_step};
use crate::backend::{
    BackendKeyData, ErrorFields, NegotiateProtocolVersion, ReadyForQuery, ServerError,
};
use crate::connection::{Connection, ConnectionError, Frame, unexpected};
use crate::encode::frontend as encode;
use crate::frame::FrameError;
use crate::reader::ReadError;
use crate::startup::PROTOCOL_3_2;
use crate::stream::{Stream, takes_early_byte, tune_tcp};
use crate::tls::{ClientTls, SslMode, TlsError, certificate};

/// Where a server is and how to get in.
#[derive(Clone)]
pub struct ConnectOptions {
    /// A host name, an IP address, or the absolute path of the directory with the unix socket.
    pub host: String,
    /// The port; for a unix socket the number in its name.
    pub port: u16,
    /// The role to log in as.
    pub user: String,
    /// The database.
    pub database: String,
    /// What to prove the role with.
    pub credentials: Credentials,
    /// How TLS is used; not at all on a unix socket.
    pub tls: ClientTls,
    /// Further startup parameters such as `application_name`, or `("replication", "database")`.
    pub params: Vec<(String, String)>,
    /// The time for all of it: name resolution, connection, TLS, login.
    pub connect_timeout: Duration,
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("credentials", &self.credentials)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

impl ConnectOptions {
    fn address(&self) -> String {
        if self.is_unix() {
            format!("{}/.s.PGSQL.{}", self.host, self.port)
        } else if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn is_unix(&self) -> bool {
        self.host.starts_with('/')
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name does not resolve.
    #[error("cannot resolve {host:?}: {source}")]
    Resolve {
        /// The host name.
        host: String,
        /// Why not.
        source: io::Error,
    },
    /// Nobody answers there, or the socket does not exist.
    #[error("cannot connect to {address}: {source}")]
    Unreachable {
        /// The address tried last.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// The time was up.
    #[error("no connection to {address} within {} ms", after.as_millis())]
    Timeout {
        /// The address.
        address: String,
        /// The time allowed.
        after: Duration,
    },
    /// The connection broke before the login was complete.
    #[error("connection lost during the login: {0}")]
    Io(#[from] io::Error),
    /// The server closed the connection before the login was complete.
    #[error("the server closed the connection during the login")]
    Closed,
    /// TLS failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The server refused the login, or reported an error during it.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// We cannot authenticate.
    #[error(transparent)]
    Auth(#[from] LoginError),
    /// The server broke the protocol.
    #[error("protocol violation by the server during the login: {0}")]
    Protocol(String),
}

impl From<ConnectionError> for ConnectError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::Io(error) => Self::Io(error),
            ConnectionError::Closed => Self::Closed,
            ConnectionError::Frame(error) => error.into(),
            ConnectionError::Protocol(text) => Self::Protocol(text),
            ConnectionError::Server(error) => Self::Server(error),
        }
    }
}

impl From<FrameError> for ConnectError {
    fn from(error: FrameError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<ReadError> for ConnectError {
    fn from(error: ReadError) -> Self {
        Self::Protocol(format!("malformed message: {error}"))
    }
}

/// Opens the stream, TLS included, and sends nothing of the PostgreSQL protocol but the TLS request.
///
/// # Errors
/// [`ConnectError`], after `connect_timeout` at the latest.
pub async fn dial(opts: &ConnectOptions) -> Result<Stream, ConnectError> {
    bounded(opts, dial_unbounded(opts)).await
}

/// Opens a connection and logs in: returns when the server is ready for the first query.
///
/// # Errors
/// [`ConnectError`], after `connect_timeout` at the latest.
pub async fn connect(opts: &ConnectOptions) -> Result<Connection, ConnectError> {
    bounded(opts, async {
        let stream = dial_unbounded(opts).await?;
        log_in(stream, opts).await
    })
    .await
}

pub(crate) async fn bounded<T>(
    opts: &ConnectOptions,
    work: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    match timeout(opts.connect_timeout, Box::pin(work)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Timeout {
            address: opts.address(),
            after: opts.connect_timeout,
        }),
    }
}

pub(crate) async fn dial_unbounded(opts: &ConnectOptions) -> Result<Stream, ConnectError> {
    if opts.is_unix() {
        return UnixStream::connect(opts.address())
            .await
            .map(Stream::Unix)
            .map_err(|source| ConnectError::Unreachable {
                address: opts.address(),
                source,
            });
    }
    let tcp = dial_tcp(opts).await?;
    tune_tcp(&tcp)?;
    match opts.tls.config() {
        None => Ok(Stream::Tcp(tcp)),
        Some(config) => start_tls(opts, config, tcp).await,
    }
}

/// Tries the addresses of the name in turn. Each gets its share of the time, so that one that swallows packets does
/// not keep the others from being tried.
async fn dial_tcp(opts: &ConnectOptions) -> Result<TcpStream, ConnectError> {
    let deadline = Instant::now() + opts.connect_timeout;
    let addresses: Vec<_> = tokio::net::lookup_host((opts.host.as_str(), opts.port))
        .await
        .map_err(|source| ConnectError::Resolve {
            host: opts.host.clone(),
            source,
        })?
        .collect();
    let mut last = ConnectError::Resolve {
        host: opts.host.clone(),
        source: io::Error::new(io::ErrorKind::NotFound, "the name has no address"),
    };
    for (index, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let untried = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let attempt =
            timeout_at(Instant::now() + left / untried, TcpStream::connect(address)).await;
        match attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(tcp) => return Ok(tcp),
            Err(source) => {
                last = ConnectError::Unreachable {
                    address: address.to_string(),
                    source,
                };
            }
        }
    }
    Err(last)
}

async fn start_tls(
    opts: &ConnectOptions,
    config: &std::sync::Arc<rustls::ClientConfig>,
    mut tcp: TcpStream,
) -> Result<Stream, ConnectError> {
    let mut request = BytesMut::new();
    encode::ssl_request(&mut request);
    tcp.write_all(&request).await?;
    match tcp.read_u8().await? {
        b'S' => {
            if takes_early_byte(&mut tcp).await? {
                return Err(TlsError::DataBeforeTls.into());
            }
            let tls = opts.tls.connect(config, &opts.host, tcp).await?;
            Ok(Stream::ClientTls(Box::new(tls)))
        }
        b'N' if opts.tls.mode() == SslMode::Prefer => Ok(Stream::Tcp(tcp)),
        b'N' => Err(TlsError::NotSupported(opts.tls.mode()).into()),
        // Among them 'E': whoever answers so is not authenticated, its text is not shown (CVE-2024-10977).
        other => Err(TlsError::UnexpectedAnswer(other).into()),
    }
}

/// Sends the startup message and goes on to `ReadyForQuery`.
pub(crate) async fn log_in(
    stream: Stream,
    opts: &ConnectOptions,
) -> Result<Connection, ConnectError> {
    let binding = stream
        .peer_certificate()
        .and_then(|leaf| certificate::endpoint_binding(leaf));
    let mut login = Login::new(
        opts.user.as_str(),
        opts.credentials.clone(),
        stream.is_confidential(),
        stream.is_tls(),
        binding,
    );
    let mut connection = Connection::new(stream);
    let names = [
        ("user", opts.user.as_str()),
        ("database", opts.database.as_str()),
    ];
    let further = opts
        .params
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    encode::startup(
        connection.out(),
        PROTOCOL_3_2,
        names.into_iter().chain(further),
    )?;

    while !login.is_done() {
        let Frame { tag, body } = connection.flush_and_recv().await?;
        match tag {
            b'R' => {
                let (next, answer) = drive_login_step(login, body).await?;
                login = next;
                connection.out().extend_from_slice(&answer);
            }
            b'v' => check_negotiated(&body)?,
            b'E' => return Err(ErrorFields::parse(&body)?.to_owned().into()),
            b'N' => {}
            other => return Err(unexpected(other).into()),
        }
    }
    connection.set_logged_in();
    loop {
        let Frame { tag, body } = connection.flush_and_recv().await?;
        match tag {
            b'K' => connection.set_key_data(BackendKeyData::parse(&body)?),
            b'Z' => {
                ReadyForQuery::parse(&body)?;
                return Ok(connection);
            }
            b'E' => return Err(ErrorFields::parse(&body)?.to_owned().into()),
            b'S' | b'N' => {}
            other => return Err(unexpected(other).into()),
        }
    }
}

/// A server older than 18 answers our 3.2 with the version it has, 3.0. That changes only the length of cancel keys.
fn check_negotiated(body: &[u8]) -> Result<(), ConnectError> {
    let newest = NegotiateProtocolVersion::parse(body)?.newest;
    let ours = (i32::from(PROTOCOL_3_2.0) << 16) | i32::from(PROTOCOL_3_2.1);
    // By the manual only the minor version is sent; servers send the whole number.
    if (3 << 16..=ours).contains(&newest) || (0..=i32::from(PROTOCOL_3_2.1)).contains(&newest) {
        return Ok(());
    }
    Err(ConnectError::Protocol(format!(
        "the server wants protocol version {}.{}",
        newest >> 16,
        newest & 0xffff
    )))
}

#[cfg(test)]
mod tests;
