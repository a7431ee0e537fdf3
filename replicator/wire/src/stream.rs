//! The byte stream under a connection: TCP, a unix socket, or TLS over TCP.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A connected stream. TLS runs over TCP only, as in PostgreSQL.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
    /// TLS where we are the client.
    ClientTls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// TLS where we are the server.
    ServerTls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

impl Stream {
    /// Whether the bytes are encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::ClientTls(_) | Self::ServerTls(_))
    }

    /// Whether nobody on the network can read along: TLS, or a socket that does not leave the machine.
    pub fn is_confidential(&self) -> bool {
        self.is_tls() || matches!(self, Self::Unix(_))
    }

    /// The leaf certificate of the peer, where TLS is used and the peer has one.
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        let chain = match self {
            Self::ClientTls(tls) => tls.get_ref().1.peer_certificates(),
            Self::ServerTls(tls) => tls.get_ref().1.peer_certificates(),
            Self::Tcp(_) | Self::Unix(_) => None,
        };
        chain.and_then(<[_]>::first)
    }

    /// Registers the stream with the reactor of the runtime that this is called on, so that its events come up there. A TLS
    /// stream stays where it is; that costs a wake-up across threads for each event, nothing else.
    ///
    /// # Errors
    /// What the system says. The stream is closed then.
    pub fn rehome(self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(tcp) => Self::Tcp(TcpStream::from_std(tcp.into_std()?)?),
            Self::Unix(unix) => Self::Unix(UnixStream::from_std(unix.into_std()?)?),
            tls @ (Self::ClientTls(_) | Self::ServerTls(_)) => tls,
        })
    }

    /// The peer as text for logs: `127.0.0.1:5432`, or `unix` for a unix socket.
    pub fn peer_addr(&self) -> String {
        self.tcp()
            .map_or_else(
                || Ok("unix".to_owned()),
                |tcp| tcp.peer_addr().map(|addr| addr.to_string()),
            )
            .unwrap_or_else(|_| "unknown".to_owned())
    }

    /// Whether a read may find more than the last one, which found nothing: bytes, the end, or an error. Neither a system
    /// call nor a lock. While it is false, whoever polled that read is still registered to be woken by the next event, if
    /// the read was not held up by tokio's budget for its task.
    pub fn has_news(&self) -> bool {
        let mut news = false;
        let mut note = || {
            news = true;
            Ok(())
        };
        // It calls what it is given only if there was an event since.
        let _ = match self {
            Self::Unix(unix) => unix.try_io(Interest::READABLE, note),
            Self::Tcp(tcp) => tcp.try_io(Interest::READABLE, note),
            // There may be something behind the TLS.
            Self::ClientTls(_) | Self::ServerTls(_) => note(),
        };
        news
    }

    /// Writes what the system takes now, at the cost of the system call alone. Through TLS it does not try, and says that it
    /// would have to wait.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is taken: poll a write then, to be woken. Else what the system says.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(unix) => unix.try_write(bytes),
            Self::Tcp(tcp) => tcp.try_write(bytes),
            Self::ClientTls(_) | Self::ServerTls(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Whether bytes wait in the system that nobody has read. A system call.
    pub fn has_unread(&self) -> bool {
        let socket = match self {
            Self::Unix(unix) => SockRef::from(unix),
            Self::Tcp(tcp) => SockRef::from(tcp),
            Self::ClientTls(tls) => SockRef::from(tls.get_ref().0),
            Self::ServerTls(tls) => SockRef::from(tls.get_ref().0),
        };
        let mut byte = [MaybeUninit::uninit()];
        socket.peek(&mut byte).is_ok_and(|count| count > 0)
    }

    /// The TCP connection below, if there is one.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(tcp) => Some(tcp),
            Self::ClientTls(tls) => Some(tls.get_ref().0),
            Self::ServerTls(tls) => Some(tls.get_ref().0),
            Self::Unix(_) => None,
        }
    }
}

/// Sets what every TCP connection of ours has: no Nagle delay, and a dead peer is noticed in about a minute, whether
/// we wait for it (keepalive after 30 s, then every 10 s, three times) or have sent to it (`TCP_USER_TIMEOUT` 60 s).
///
/// # Errors
/// What the system says.
pub fn tune_tcp(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10))
            .with_retries(3),
    )?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(60)))?;
    Ok(())
}

macro_rules! delegate {
    ($self:expr, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Tcp($io) => $call,
            Stream::Unix($io) => $call,
            Stream::ClientTls($io) => $call,
            Stream::ServerTls($io) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(io) => io.is_write_vectored(),
            Self::Unix(io) => io.is_write_vectored(),
            Self::ClientTls(io) => io.is_write_vectored(),
            Self::ServerTls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}

/// Whether a byte of the peer is already here. It is taken from the stream: the only use is to refuse a peer that
/// sends in clear what it must send after the TLS handshake. Never waits.
///
/// # Errors
/// What the system says; the end of the stream counts as "no byte".
pub(crate) async fn takes_early_byte(tcp: &mut TcpStream) -> io::Result<bool> {
    let mut byte = [0; 1];
    let mut buf = ReadBuf::new(&mut byte);
    std::future::poll_fn(|cx| match Pin::new(&mut *tcp).poll_read(cx, &mut buf) {
        Poll::Pending => Poll::Ready(Ok(())),
        ready => ready,
    })
    .await?;
    Ok(!buf.filled().is_empty())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn tcp_is_tuned_and_an_early_byte_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(
            TcpStream::connect(listener.local_addr().unwrap()),
            listener.accept()
        );
        let (mut client, mut server) = (client.unwrap(), accepted.unwrap().0);
        tune_tcp(&client).unwrap();
        assert!(client.nodelay().unwrap());
        assert!(SockRef::from(&client).keepalive().unwrap());

        assert!(!takes_early_byte(&mut server).await.unwrap());
        client.write_all(b"x").await.unwrap();
        server.readable().await.unwrap();
        assert!(takes_early_byte(&mut server).await.unwrap());
        assert!(!takes_early_byte(&mut server).await.unwrap());
    }

    #[tokio::test]
    async fn there_is_news_once_something_has_come_and_none_once_it_is_read() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut near, mut far) = (Stream::Unix(near), Stream::Unix(far));
        let mut buffer = [0; 8];
        for _ in 0..3 {
            let nothing = std::future::poll_fn(|cx| {
                let mut buffer = ReadBuf::new(&mut buffer);
                Poll::Ready(Pin::new(&mut near).poll_read(cx, &mut buffer).is_pending())
            });
            assert!(nothing.await && !near.has_news());
            far.write_all(b"x").await.unwrap();
            std::future::poll_fn(|cx| match near.has_news() {
                true => Poll::Ready(()),
                false => {
                    // The reactor gets its turn.
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            })
            .await;
            assert_eq!(near.read(&mut buffer).await.unwrap(), 1);
        }
        drop(far);
        assert_eq!(near.read(&mut buffer).await.unwrap(), 0);
        assert!(near.has_news());
    }

    #[tokio::test]
    async fn only_tls_and_unix_sockets_are_confidential() {
        let (unix, _peer) = UnixStream::pair().unwrap();
        let stream = Stream::Unix(unix);
        assert!(stream.is_confidential() && !stream.is_tls());
        assert_eq!(stream.peer_addr(), "unix");
        assert!(stream.peer_certificate().is_none());
    }
}
