//! Owns the time between login and goodbye: both sockets of a session, polled by one future.
//!
//! Each wake-up polls both directions once. Nothing is spawned, nothing is selected over, so no half-read message
//! can get lost. The end of a session is decided here, and here only.

use std::{
    fmt,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::BytesMut;
use tandem_wire::{
    backend::ErrorFields,
    frame::{FrameError, Header, Sender},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, Sleep, timeout},
};

use super::{
    progress::{Activity, Progress},
    pump::{Pump, Stopped},
    registry::{SessionEntry, Stop},
};

/// How long the other side may take to close once one side has said goodbye and no answer is owed.
const LINGER: Duration = Duration::from_secs(5);
/// Bound of the last message to a client.
const FAREWELL_WRITE: Duration = Duration::from_secs(2);
/// How long data that a client still sends is read and thrown away, so that closing does not reset the
/// connection and destroy the last message on its way.
const FAREWELL_READ: Duration = Duration::from_millis(200);

/// How a session has ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The client said Terminate or closed, and the server followed.
    Client,
    /// The client's connection broke.
    ClientLost(io::Error),
    /// The client broke the protocol.
    ClientViolation(FrameError),
    /// The server ended the session and has told the client why.
    ServerFatal,
    /// The server's connection is gone without a word.
    ServerLost(Option<io::Error>),
    /// The server broke the protocol.
    ServerViolation(FrameError),
    /// The daemon is stopping, or its node is fenced.
    Stopped,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Client => f.write_str("the client ended it"),
            End::ClientLost(error) => write!(f, "connection to the client lost: {error}"),
            End::ClientViolation(error) => write!(f, "protocol violation by the client: {error}"),
            End::ServerFatal => f.write_str("the node ended it"),
            End::ServerLost(None) => f.write_str("the node closed the connection without a word"),
            End::ServerLost(Some(error)) => write!(f, "connection to the node lost: {error}"),
            End::ServerViolation(error) => write!(f, "protocol violation by the node: {error}"),
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

/// What is left of the direction from client to server.
enum Up {
    Open,
    /// The client has ended its side; the server is being told.
    Closing,
    /// The server has been told.
    Closed,
    /// The server takes nothing any more.
    Broken,
}

/// Both sockets of a session, and what is known of what passed.
pub(crate) struct Relay<C, S> {
    client: C,
    server: S,
    up: Pump,
    down: Pump,
    up_state: Up,
    progress: Progress,
    server_fatal: bool,
    registered: Option<Waker>,
    linger: Option<Pin<Box<Sleep>>>,
    published: Activity,
}

impl<C, S> Relay<C, S>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// A relay between two connections that have both reached their first ReadyForQuery. `from_client` and
    /// `from_server` are bytes that were received behind it.
    pub(crate) fn new(
        client: C,
        from_client: BytesMut,
        server: S,
        from_server: BytesMut,
    ) -> Relay<C, S> {
        let mut relay = Relay {
            client,
            server,
            up: Pump::new(Sender::Client, from_client),
            down: Pump::new(Sender::Server, from_server),
            up_state: Up::Open,
            progress: Progress::new(),
            server_fatal: false,
            registered: None,
            linger: None,
            published: Activity::Idle,
        };
        let Relay {
            up,
            down,
            progress,
            server_fatal,
            ..
        } = &mut relay;
        up.scan_received(&mut |header, _| progress.on_client(header.tag));
        down.scan_received(&mut |header, body| on_server(progress, server_fatal, header, body));
        relay
    }

    /// Relays until the session ends.
    pub(crate) async fn run(&mut self, entry: &SessionEntry) -> End {
        poll_fn(|cx| self.poll(cx, entry)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>, entry: &SessionEntry) -> Poll<End> {
        // Registering takes an atomic exchange, and the waker of a task does not change: once is enough.
        if !self
            .registered
            .as_ref()
            .is_some_and(|known| known.will_wake(cx.waker()))
        {
            entry.register(cx.waker());
            self.registered = Some(cx.waker().clone());
        }
        if let Poll::Ready(end) = self.poll_down(cx) {
            return Poll::Ready(end);
        }
        if let Poll::Ready(end) = self.poll_up(cx) {
            return Poll::Ready(end);
        }
        let activity = self.progress.activity();
        if activity != self.published {
            self.published = activity;
            entry.publish(activity);
        }
        if self.may_stop(entry.stop(), activity) {
            return Poll::Ready(End::Stopped);
        }
        if self.progress.terminate_seen() {
            self.start_linger();
        }
        match &mut self.linger {
            Some(linger) => linger.as_mut().poll(cx).map(|()| match self.up_state {
                Up::Broken if self.server_fatal => End::ServerFatal,
                Up::Broken => End::ServerLost(None),
                Up::Open | Up::Closing | Up::Closed => End::Client,
            }),
            None => Poll::Pending,
        }
    }

    /// Server to client.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let Relay {
            client,
            server,
            down,
            progress,
            server_fatal,
            ..
        } = self;
        let mut seen =
            |header: Header, body: &[u8]| on_server(progress, server_fatal, header, body);
        let stopped = match down.poll(cx, server, client, &mut seen) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(stopped) => stopped,
        };
        let goodbye =
            self.progress.terminate_seen() || matches!(self.up_state, Up::Closing | Up::Closed);
        Poll::Ready(match stopped {
            Stopped::WriteFailed(error) => End::ClientLost(error),
            Stopped::Violation(error) => End::ServerViolation(error),
            Stopped::Eof | Stopped::ReadFailed(_) if self.server_fatal => End::ServerFatal,
            Stopped::Eof | Stopped::ReadFailed(_) if goodbye => End::Client,
            Stopped::Eof => End::ServerLost(None),
            Stopped::ReadFailed(error) => End::ServerLost(Some(error)),
        })
    }

    /// Client to server.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if let Up::Open = self.up_state {
            let Relay {
                client,
                server,
                up,
                progress,
                ..
            } = self;
            let mut seen = |header: Header, _: &[u8]| progress.on_client(header.tag);
            let stopped = match up.poll(cx, client, server, &mut seen) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(stopped) => stopped,
            };
            match stopped {
                // The client may have closed only its sending side and still wait for answers, as PostgreSQL
                // would give them.
                Stopped::Eof => self.up_state = Up::Closing,
                Stopped::ReadFailed(error) => return Poll::Ready(End::ClientLost(error)),
                Stopped::Violation(error) => return Poll::Ready(End::ClientViolation(error)),
                Stopped::WriteFailed(_) => {
                    // The server may have said why before it closed: the other direction finds out.
                    self.up_state = Up::Broken;
                    self.start_linger();
                }
            }
        }
        if let Up::Closing = self.up_state
            && Pin::new(&mut self.server).poll_shutdown(cx).is_ready()
        {
            self.up_state = Up::Closed;
        }
        if matches!(self.up_state, Up::Closing | Up::Closed)
            && self.progress.activity() != Activity::Active
        {
            self.start_linger();
        }
        Poll::Pending
    }

    fn start_linger(&mut self) {
        if self.linger.is_none() {
            self.linger = Some(Box::pin(tokio::time::sleep_until(Instant::now() + LINGER)));
        }
    }

    fn may_stop(&self, stop: Stop, activity: Activity) -> bool {
        match stop {
            Stop::No => false,
            Stop::WhenIdle => {
                activity == Activity::Idle && self.up.is_clear() && self.down.is_clear()
            }
            Stop::AtOnce => self.down.at_boundary(),
        }
    }

    /// Whether the client may be sent a last message.
    pub(crate) fn boundary(&self) -> Boundary {
        if self.down.at_boundary() {
            Boundary::Clean
        } else {
            Boundary::Cut
        }
    }

    /// Whether the server may still be working for this session.
    pub(crate) fn in_flight(&self) -> bool {
        self.progress.activity() == Activity::Active
    }

    /// Ends both connections. The client gets `last_words`, which must be whole messages, if it can take them.
    pub(crate) async fn finish(mut self, last_words: &[u8]) {
        if self.up.is_clear() && matches!(self.up_state, Up::Open) {
            // Terminate. Best effort: a server that is gone or does not read need not be told.
            poll_fn(|cx| {
                let _ = Pin::new(&mut self.server).poll_write(cx, b"X\0\0\0\x04");
                let _ = Pin::new(&mut self.server).poll_flush(cx);
                Poll::Ready(())
            })
            .await;
        }
        drop(self.server);
        let mut bytes = Vec::new();
        if self.down.at_boundary() {
            bytes.extend_from_slice(self.down.rest());
            bytes.extend_from_slice(last_words);
        }
        farewell(&mut self.client, &bytes).await;
    }
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

fn on_server(progress: &mut Progress, fatal: &mut bool, header: Header, body: &[u8]) {
    let status = if header.tag == b'Z' {
        body.first().copied()
    } else {
        None
    };
    progress.on_server(header.tag, status);
    if header.tag == b'E' {
        *fatal = is_fatal(body);
    }
}

/// Whether an ErrorResponse announces that the server ends the session.
fn is_fatal(body: &[u8]) -> bool {
    ErrorFields::parse(body).is_ok_and(|fields| {
        fields
            .severity()
            .is_some_and(|s| s == b"FATAL" || s == b"PANIC")
    })
}

#[cfg(test)]
mod tests;
