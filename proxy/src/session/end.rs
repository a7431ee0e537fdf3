//! Owns how a session ends, and what its client still hears.

use std::{fmt, io, pin::pin, time::Duration};

use tandem_wire::{ErrorReport, FrameError};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::owed::Mismatch;

/// Bound of the last message to a client.
const FAREWELL_WRITE: Duration = Duration::from_secs(2);
/// How long data that a client still sends is read and thrown away, so that closing does not reset the
/// connection and destroy the last message on its way.
const FAREWELL_READ: Duration = Duration::from_millis(200);

/// How a session has ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The client said Terminate or closed.
    Client,
    /// The client's connection broke.
    ClientLost(io::Error),
    /// The client broke the protocol.
    ClientViolation(FrameError),
    /// The client has prepared more than it may.
    TooMuchPrepared,
    /// There is no server for its statement.
    NoServer(Box<ErrorReport>),
    /// Its server is lost, and with it something of the session's.
    Lost(Box<ErrorReport>),
    /// A server cannot be made ready for the session.
    NotReady(String),
    /// The client has left more notifications untaken than it may.
    Untaken,
    /// The server ended the session and has told the client why.
    ServerFatal,
    /// The server's connection is gone without a word.
    ServerLost(Option<io::Error>),
    /// The server sent what is no message.
    ServerViolation(FrameError),
    /// The server sent what nobody is owed.
    ServerMismatch(Mismatch),
    /// The daemon is stopping, or its node is fenced.
    Stopped,
}

impl End {
    /// Whether the server is to blame, not the client nor the daemon.
    pub(super) fn is_of_server(&self) -> bool {
        match self {
            End::NotReady(_)
            | End::ServerFatal
            | End::ServerLost(_)
            | End::ServerViolation(_)
            | End::ServerMismatch(_) => true,
            End::Client
            | End::ClientLost(_)
            | End::ClientViolation(_)
            | End::TooMuchPrepared
            | End::NoServer(_)
            | End::Lost(_)
            | End::Untaken
            | End::Stopped => false,
        }
    }
}

impl End {
    /// Whether the server's connection ended without a word, as when its process is killed.
    pub(super) fn is_abrupt(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match self {
            End::ServerLost(None) => true,
            End::ServerLost(Some(error)) => {
                matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
            }
            _ => false,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Client => f.write_str("the client ended it"),
            End::ClientLost(error) => write!(f, "connection to the client lost: {error}"),
            End::ClientViolation(error) => write!(f, "protocol violation by the client: {error}"),
            End::TooMuchPrepared => f.write_str("the client has prepared too much"),
            End::NoServer(report) => write!(f, "no server: {}", report.message),
            End::Lost(report) => f.write_str(&report.message),
            End::NotReady(error) => write!(f, "no server can be made ready: {error}"),
            End::Untaken => f.write_str("the client does not take its notifications"),
            End::ServerFatal => f.write_str("the node ended it"),
            End::ServerLost(None) => f.write_str("the node closed the connection without a word"),
            End::ServerLost(Some(error)) => write!(f, "connection to the node lost: {error}"),
            End::ServerViolation(error) => write!(f, "protocol violation by the node: {error}"),
            End::ServerMismatch(error) => write!(f, "protocol violation by the node: {error}"),
            End::Stopped => f.write_str("Tandem ended it"),
        }
    }
}

/// Whether, and how, the client may be told about an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Boundary {
    /// The client stands at the start of a message.
    Clean,
    /// A large message was cut: any further byte would be taken for its rest.
    Cut,
}

/// Writes the last bytes for a client and closes, bounded in time.
pub(crate) async fn farewell<C: AsyncRead + AsyncWrite + Unpin>(client: &mut C, bytes: &[u8]) {
    let write = async {
        client.write_all(bytes).await?;
        client.shutdown().await
    };
    if !matches!(timeout(FAREWELL_WRITE, write).await, Ok(Ok(()))) || bytes.is_empty() {
        return;
    }
    let drain = async {
        let mut thrown_away = [0; 512];
        while client.read(&mut thrown_away).await.is_ok_and(|n| n > 0) {}
    };
    // Either the client has closed or the time is up: both are the end.
    let _ = timeout(FAREWELL_READ, pin!(drain)).await;
}
