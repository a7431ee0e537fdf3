//! The async driver of a client's first packets.

use std::fmt;
use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{FirstPacket, Startup, StartupError, TLS_HANDSHAKE, first_packet, packet_len};
use crate::encode::{ErrorReport, backend as encode};
use crate::stream::{Stream, takes_early_byte};
use crate::tls::{ALPN, ClientTlsMode, ServerTls, TlsError, certificate};

/// What TLS tells about a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsInfo {
    /// The common name of the client's certificate, verified against the client authority. `None`: it showed none, or
    /// one without a usable name.
    pub client_cn: Option<String>,
    /// The `tls-server-end-point` data of the certificate the client was shown; for
    /// [`crate::auth::authenticate_client`].
    pub endpoint_binding: Option<Vec<u8>>,
}

/// What a client wants.
pub enum Accepted {
    /// A session. Nothing behind the startup message was read from the stream.
    Session {
        /// The stream, with TLS where it was negotiated.
        stream: Stream,
        /// What the client wants.
        startup: Startup,
        /// Present when the stream is TLS.
        tls: Option<TlsInfo>,
    },
    /// To cancel what a session runs. It gets no answer: close the stream when it is done.
    Cancel {
        /// The session's process number.
        pid: i32,
        /// The session's secret.
        secret: Vec<u8>,
        /// The stream. Closing it tells the client that the request was dealt with.
        stream: Stream,
    },
}

impl fmt::Debug for Accepted {
    /// Leaves out the cancel key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session { startup, tls, .. } => f
                .debug_struct("Session")
                .field("startup", startup)
                .field("tls", tls)
                .finish_non_exhaustive(),
            Self::Cancel { pid, .. } => f
                .debug_struct("Cancel")
                .field("pid", pid)
                .finish_non_exhaustive(),
        }
    }
}

/// Why a client does not get as far as authentication.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// It closed the connection without a word, as port checks do.
    #[error("the client closed the connection before it sent anything")]
    Closed,
    /// The stream failed or ended in the middle of a packet.
    #[error("connection to the client lost: {0}")]
    Io(#[from] io::Error),
    /// Its first packet is wrong. It was told.
    #[error(transparent)]
    Startup(#[from] StartupError),
    /// It did not ask for TLS, which is required. It was told.
    #[error("the client did not use TLS, which is required")]
    TlsRequired,
    /// It began TLS without asking, but TLS is not configured.
    #[error("the client began TLS, which is not enabled")]
    TlsDisabled,
    /// It began TLS without asking and without naming the protocol by ALPN. PostgreSQL demands that, against attacks
    /// that redirect another protocol's connection here (ALPACA).
    #[error("the client began TLS without the ALPN protocol \"postgresql\"")]
    AlpnMissing,
    /// It sent bytes in clear behind its TLS request. They could be an attacker's (CVE-2021-23214) and are never used.
    #[error("the client sent bytes in clear before the TLS handshake")]
    DataBeforeTls,
    /// The handshake failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// How far the negotiation of encryption is. Each request may come once; behind TLS none may.
#[derive(Debug, Clone, Copy)]
struct Negotiation {
    ssl_answered: bool,
    gss_answered: bool,
}

/// Reads a client's first packets up to the startup message or a cancel request: answers TLS requests (yes where `tls`
/// is given and the mode allows it, on TCP) and GSS requests (no), does the TLS handshake, also without a request where
/// ALPN names the protocol, and sends `NegotiateProtocolVersion` where it is due. A cancel request is taken with and
/// without TLS, as by PostgreSQL; a session on TCP without TLS only where the mode allows it.
///
/// # Errors
/// [`AcceptError`]. Where the client can understand it, it was sent the error. The caller bounds the time.
pub async fn accept(
    stream: Stream,
    tls: Option<&ServerTls>,
    mode: ClientTlsMode,
) -> Result<Accepted, AcceptError> {
    let tls = tls.filter(|_| mode != ClientTlsMode::Disable);
    let mut stream = stream;
    let mut info = None;
    let mut negotiation = Negotiation {
        ssl_answered: false,
        gss_answered: false,
    };

    if let Stream::Tcp(tcp) = &stream
        && begins_with_tls(tcp).await?
    {
        let (encrypted, tls_info) =
            handshake(stream, tls.ok_or(AcceptError::TlsDisabled)?, true).await?;
        (stream, info) = (encrypted, Some(tls_info));
        negotiation.ssl_answered = true;
        negotiation.gss_answered = true;
    }

    loop {
        let packet = match read_packet(&mut stream).await {
            Err(AcceptError::Startup(error)) => return refuse(stream, error).await,
            other => other?,
        };
        let first = match first_packet(&packet) {
            Ok(Some((first, _))) => first,
            Ok(None) => return refuse(stream, StartupError::Length).await,
            Err(error) => return refuse(stream, error).await,
        };
        match first {
            FirstPacket::SslRequest if !negotiation.ssl_answered => {
                negotiation.ssl_answered = true;
                match (stream, tls) {
                    (Stream::Tcp(mut tcp), Some(tls)) => {
                        if takes_early_byte(&mut tcp).await? {
                            return Err(AcceptError::DataBeforeTls);
                        }
                        tcp.write_all(b"S").await?;
                        let (encrypted, tls_info) = handshake(Stream::Tcp(tcp), tls, false).await?;
                        (stream, info) = (encrypted, Some(tls_info));
                        negotiation.gss_answered = true;
                    }
                    (other, _) => {
                        stream = other;
                        stream.write_all(b"N").await?;
                    }
                }
            }
            FirstPacket::GssEncRequest if !negotiation.gss_answered => {
                negotiation.gss_answered = true;
                stream.write_all(b"N").await?;
            }
            FirstPacket::Cancel { pid, secret } => {
                let secret = secret.to_vec();
                return Ok(Accepted::Cancel {
                    pid,
                    secret,
                    stream,
                });
            }
            FirstPacket::Startup(packet) => {
                if mode == ClientTlsMode::Require && matches!(stream, Stream::Tcp(_)) {
                    let report =
                        ErrorReport::fatal("28000", "this server accepts TLS connections only")
                            .with_hint("Connect with sslmode=require or higher.");
                    send_last_words(&mut stream, &report).await;
                    return Err(AcceptError::TlsRequired);
                }
                let startup = match packet.negotiate() {
                    Ok(startup) => startup,
                    Err(error) => return refuse(stream, error).await,
                };
                if startup.needs_negotiation {
                    negotiate_version(&mut stream, &startup).await?;
                }
                return Ok(Accepted::Session {
                    stream,
                    startup,
                    tls: info,
                });
            }
            // PostgreSQL takes a request that is not due for a startup message of a strange version.
            FirstPacket::SslRequest => return refuse(stream, strange_version(5679)).await,
            FirstPacket::GssEncRequest => return refuse(stream, strange_version(5680)).await,
            FirstPacket::DirectTls => return refuse(stream, StartupError::Length).await,
        }
    }
}

fn strange_version(minor: u16) -> StartupError {
    StartupError::Protocol { major: 1234, minor }
}

/// Looks at the first byte without taking it.
async fn begins_with_tls(tcp: &TcpStream) -> Result<bool, AcceptError> {
    let mut first = [0; 1];
    match tcp.peek(&mut first).await? {
        0 => Err(AcceptError::Closed),
        _ => Ok(first == [TLS_HANDSHAKE]),
    }
}

async fn handshake(
    stream: Stream,
    tls: &ServerTls,
    direct: bool,
) -> Result<(Stream, TlsInfo), AcceptError> {
    let Stream::Tcp(tcp) = stream else {
        return Err(AcceptError::TlsDisabled);
    };
    let shaken = tls.accept(tcp).await?;
    if direct && shaken.tls.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Err(AcceptError::AlpnMissing);
    }
    let stream = Stream::ServerTls(Box::new(shaken.tls));
    let info = TlsInfo {
        client_cn: stream
            .peer_certificate()
            .and_then(|leaf| certificate::common_name(leaf)),
        endpoint_binding: shaken.endpoint_binding,
    };
    Ok((stream, info))
}

/// Reads one packet and not a byte more: what follows may be meant for TLS, or for whoever gets the stream next.
async fn read_packet(stream: &mut Stream) -> Result<Vec<u8>, AcceptError> {
    let mut packet = vec![0; 4];
    let read = stream.read(&mut packet).await?;
    if read == 0 {
        return Err(AcceptError::Closed);
    }
    stream
        .read_exact(packet.get_mut(read..).unwrap_or_default())
        .await?;
    let length = packet_len(&packet)?.ok_or(StartupError::Length)?;
    packet.resize(length, 0);
    stream
        .read_exact(packet.get_mut(4..).unwrap_or_default())
        .await?;
    Ok(packet)
}

async fn negotiate_version(stream: &mut Stream, startup: &Startup) -> io::Result<()> {
    // Never more than the client asked for: libpq takes that for an error.
    let (major, minor) = startup.protocol;
    let newest = i32::from(major) << 16 | i32::from(minor);
    let mut out = BytesMut::new();
    encode::negotiate_protocol_version(
        &mut out,
        newest,
        startup.unsupported.iter().map(String::as_str),
    )?;
    stream.write_all(&out).await?;
    stream.flush().await
}

async fn refuse(mut stream: Stream, error: StartupError) -> Result<Accepted, AcceptError> {
    let report = ErrorReport::fatal(error.code(), error.to_string());
    send_last_words(&mut stream, &report).await;
    Err(error.into())
}

/// Best effort: the connection ends anyway.
async fn send_last_words(stream: &mut Stream, report: &ErrorReport) {
    let mut out = BytesMut::new();
    encode::error(&mut out, report);
    if stream.write_all(&out).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}
