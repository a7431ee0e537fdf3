//! A logged-in connection to a server: one receive buffer, whole messages out of it, batches that cannot deadlock.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::backend::{BackendKeyData, DataRow, ErrorFields, ParameterStatus, ServerError};
use crate::encode::frontend as encode;
use crate::frame::{self, FrameError, HEADER_LEN, SMALL_SERVER_MESSAGE_LIMIT, Sender};
use crate::reader::ReadError;
use crate::stream::Stream;

/// How much is read at once.
const CHUNK: usize = 16 * 1024;
/// The same after [`Connection::read_in_bulk`].
const BULK_CHUNK: usize = 256 * 1024;
/// What the system is asked to hold then of what was not read yet. It may hold less.
const BULK_RECEIVE_BUFFER: usize = 4 << 20;
/// Buffers that grew beyond this are given back.
const KEEP: usize = 64 * 1024;
/// Settings a server reports that we keep; PostgreSQL reports about fifteen.
const MAX_PARAMETERS: usize = 256;
/// The most that [`Connection::simple_query`] collects.
const SIMPLE_QUERY_LIMIT: usize = 256 * 1024 * 1024;

/// Why a connection failed. After [`ConnectionError::Server`] it may still be usable, after all others it is not.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The stream failed.
    #[error("connection to the server lost: {0}")]
    Io(#[from] io::Error),
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The server sent what is no message.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The server sent a message that does not belong there.
    #[error("protocol violation by the server: {0}")]
    Protocol(String),
    /// The server reported an error.
    #[error(transparent)]
    Server(#[from] ServerError),
}

impl From<ReadError> for ConnectionError {
    fn from(error: ReadError) -> Self {
        Self::Protocol(format!("malformed message: {error}"))
    }
}

/// One message, refcounted: keeping it keeps the block of the receive buffer it lies in (some 16 KiB, or 256 after
/// [`Connection::read_in_bulk`]).
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// The message type.
    pub tag: u8,
    /// The body.
    pub body: Bytes,
}

impl fmt::Debug for Frame {
    /// Leaves out the body: it is the user's data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Frame({:?}, {} bytes)",
            char::from(self.tag),
            self.body.len()
        )
    }
}

/// What is left when a connection is taken apart, for whoever relays its bytes from now on.
pub struct Parts {
    /// The stream.
    pub stream: Stream,
    /// Bytes received and not taken as messages yet.
    pub rx: BytesMut,
    /// The settings the server reported.
    pub parameters: Vec<(String, String)>,
    /// The process number for cancel requests.
    pub backend_pid: i32,
    /// The secret for cancel requests; empty when the server sent none.
    pub cancel_secret: Vec<u8>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("backend_pid", &self.backend_pid)
            .finish_non_exhaustive()
    }
}

/// A connection to a server.
///
/// Memory grows with the bytes that arrive, not with lengths that a message announces, and shrinks back after a large
/// message.
pub struct Connection {
    stream: Stream,
    rx: BytesMut,
    /// How much is read at once.
    chunk: usize,
    /// Queued by the caller.
    out: BytesMut,
    /// Handed over for sending.
    sending: BytesMut,
    /// `sending` was larger than what we keep: its memory goes when it is sent.
    sending_large: bool,
    needs_flush: bool,
    /// A failed write is told only when nothing is left to read: the server's last words explain it.
    write_error: Option<io::Error>,
    logged_in: bool,
    parameters: Vec<(String, String)>,
    backend_pid: i32,
    cancel_secret: Vec<u8>,
}

impl fmt::Debug for Connection {
    /// Leaves out buffers and the cancel secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.stream.peer_addr())
            .field("backend_pid", &self.backend_pid)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// A connection that is about to log in: messages are bounded by 30,000 bytes until
    /// [`Connection::set_logged_in`].
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            rx: BytesMut::new(),
            chunk: CHUNK,
            out: BytesMut::new(),
            sending: BytesMut::new(),
            sending_large: false,
            needs_flush: false,
            write_error: None,
            logged_in: false,
            parameters: Vec::new(),
            backend_pid: 0,
            cancel_secret: Vec::new(),
        }
    }

    pub(crate) fn set_logged_in(&mut self) {
        self.logged_in = true;
    }

    pub(crate) fn set_key_data(&mut self, key: BackendKeyData<'_>) {
        self.backend_pid = key.pid;
        self.cancel_secret = key.secret.to_vec();
    }

    /// The stream below, for its addresses and certificate.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The settings the server has reported, as of the last message read.
    pub fn parameters(&self) -> &[(String, String)] {
        &self.parameters
    }

    /// The reported value of one setting.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The process number of the backend; 0 when the server sent none.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// The secret that a cancel request must carry; empty when the server sent none.
    pub fn cancel_secret(&self) -> &[u8] {
        &self.cancel_secret
    }

    /// From now on reads large pieces, of which the system holds several while nobody reads: for a stream of many small
    /// messages.
    ///
    /// # Errors
    /// The system refuses.
    pub fn read_in_bulk(&mut self) -> io::Result<()> {
        self.chunk = BULK_CHUNK;
        if let Some(tcp) = self.stream.tcp() {
            SockRef::from(tcp).set_recv_buffer_size(BULK_RECEIVE_BUFFER)?;
        }
        Ok(())
    }

    /// The queue of messages to send. Fill it with [`crate::encode::frontend`], then flush.
    pub fn out(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    fn hand_over(&mut self) {
        if self.sending.is_empty() {
            std::mem::swap(&mut self.sending, &mut self.out);
        } else {
            self.sending.extend_from_slice(&self.out);
            self.out.clear();
        }
        self.sending_large |= self.sending.len() > KEEP;
        if self.out.capacity() > KEEP {
            self.out = BytesMut::new();
        }
    }

    /// Writes on. Ready when all that was handed over has left.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.sending.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.sending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sending.advance(written);
            self.needs_flush = true;
        }
        if std::mem::take(&mut self.sending_large) {
            self.sending = BytesMut::new();
        }
        if self.needs_flush {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes all that is queued. With a large batch whose replies are large too use [`Connection::flush_and_recv`]:
    /// a server that waits for us to read does not read.
    ///
    /// # Errors
    /// What the stream says. When cancelled, the rest goes with the next call that sends or receives.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.hand_over();
        std::future::poll_fn(|cx| self.poll_send(cx)).await
    }

    /// Hands over what is queued and writes as much of it as the system takes at once; the rest goes with the next
    /// receive. The queue is free for what comes after it.
    ///
    /// A failed write is told by the next receive.
    pub async fn start_flush(&mut self) {
        self.hand_over();
        std::future::poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                self.write_error.get_or_insert(error);
                self.sending.clear();
            }
            Poll::Ready(())
        })
        .await;
    }

    /// The next message. Every message is returned, also `ParameterStatus` and `NoticeResponse`. Meanwhile it goes on
    /// writing what an earlier flush left, but takes nothing new from the queue. Cancel-safe.
    ///
    /// # Errors
    /// [`ConnectionError`]; then the connection is of no more use. An `ErrorResponse` is a message, not an error.
    pub async fn recv(&mut self) -> Result<Frame, ConnectionError> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Sends what is queued and returns the next message, reading and writing at the same time: no batch is too large.
    /// What could not be written when the message came is written by the next calls. Cancel-safe.
    ///
    /// # Errors
    /// As [`Connection::recv`].
    pub async fn flush_and_recv(&mut self) -> Result<Frame, ConnectionError> {
        self.hand_over();
        self.recv().await
    }

    /// The next message if it is here already, in the buffer or in the system's.
    ///
    /// # Errors
    /// As [`Connection::recv`].
    pub async fn recv_ready(&mut self) -> Result<Option<Frame>, ConnectionError> {
        std::future::poll_fn(|cx| {
            Poll::Ready(match self.poll_recv(cx) {
                Poll::Ready(frame) => frame.map(Some),
                Poll::Pending => Ok(None),
            })
        })
        .await
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, ConnectionError>> {
        if self.write_error.is_none()
            && let Poll::Ready(Err(error)) = self.poll_send(cx)
        {
            self.write_error = Some(error);
            self.sending.clear();
        }
        loop {
            if let Some(frame) = self.try_recv()? {
                return Poll::Ready(Ok(frame));
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) => {
                    return Poll::Ready(Err(match self.write_error.take() {
                        Some(error) => ConnectionError::Io(error),
                        None => ConnectionError::Closed,
                    }));
                }
                Ok(_) => {}
                Err(error) => {
                    return Poll::Ready(Err(self.write_error.take().unwrap_or(error).into()));
                }
            }
        }
    }

    /// Reads once. The buffer grows by as much as it holds already, at least by one chunk and not beyond the message
    /// it waits for: a message of n bytes costs at most 2n, however much it announces.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let len = self.rx.len();
        if self.rx.capacity() - len < self.chunk / 4 {
            let missing = match frame::peek(&self.rx, Sender::Server) {
                Ok(Some(header)) => header.frame_len().saturating_sub(len),
                Ok(None) | Err(_) => 0,
            };
            self.rx.reserve(len.min(missing).max(self.chunk));
        }
        pin!(self.stream.read_buf(&mut self.rx)).poll(cx)
    }

    /// A message that is in the buffer already, without waiting.
    ///
    /// # Errors
    /// As [`Connection::recv`].
    pub fn try_recv(&mut self) -> Result<Option<Frame>, ConnectionError> {
        let Some(header) = frame::peek(&self.rx, Sender::Server)? else {
            return Ok(None);
        };
        if !self.logged_in && header.len > SMALL_SERVER_MESSAGE_LIMIT {
            return Err(ConnectionError::Protocol(format!(
                "message of {} bytes before the login is complete",
                header.len
            )));
        }
        if self.rx.len() < header.frame_len() {
            return Ok(None);
        }
        let mut frame = self.rx.split_to(header.frame_len());
        if header.frame_len() > KEEP {
            // What follows would keep the large block alive.
            self.rx = BytesMut::from(self.rx.as_ref());
        }
        frame.advance(HEADER_LEN);
        let frame = Frame {
            tag: header.tag,
            body: frame.freeze(),
        };
        if frame.tag == b'S' {
            self.note_parameter(&frame.body)?;
        }
        Ok(Some(frame))
    }

    fn note_parameter(&mut self, body: &[u8]) -> Result<(), ConnectionError> {
        let status = ParameterStatus::parse(body)?;
        let name = String::from_utf8_lossy(status.name);
        let value = String::from_utf8_lossy(status.value).into_owned();
        let known = self.parameters.len();
        match self.parameters.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None if known < MAX_PARAMETERS => self.parameters.push((name.into_owned(), value)),
            None => {
                return Err(ConnectionError::Protocol(
                    "too many parameters reported".to_owned(),
                ));
            }
        }
        Ok(())
    }

    /// Runs one or more statements by the simple protocol and collects the rows of all of them as text (what is not
    /// UTF-8 is replaced). For small results: at most 256 MiB are collected. COPY is not supported.
    ///
    /// # Errors
    /// [`ConnectionError::Server`] when a statement fails; the connection is then ready for the next. All others end
    /// the connection. Not cancel-safe: a cancelled call leaves replies unread.
    pub async fn simple_query(
        &mut self,
        sql: &str,
    ) -> Result<Vec<Vec<Option<String>>>, ConnectionError> {
        encode::query(&mut self.out, sql)?;
        let mut rows = Vec::new();
        let mut collected = 0_usize;
        let mut failed = None;
        loop {
            let frame = self.flush_and_recv().await?;
            match frame.tag {
                b'D' => {
                    collected = collected.saturating_add(frame.body.len());
                    if collected > SIMPLE_QUERY_LIMIT {
                        return Err(ConnectionError::Protocol(
                            "result is larger than 256 MiB".to_owned(),
                        ));
                    }
                    let row = DataRow::parse(&frame.body)?;
                    let text = |value: Option<&[u8]>| {
                        value.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
                    };
                    rows.push(row.columns().map(text).collect());
                }
                b'E' => failed = failed.or(Some(ErrorFields::parse(&frame.body)?.to_owned())),
                // A COPY that the text contained: end it, an error follows.
                b'G' => encode::copy_fail(&mut self.out, "COPY is not supported here")?,
                b'Z' => return failed.map_or(Ok(rows), |error| Err(error.into())),
                b'T' | b'C' | b'I' | b'S' | b'N' | b'A' | b'H' | b'd' | b'c' => {}
                other => return Err(unexpected(other)),
            }
        }
    }

    /// Ends the session as well as it goes: `Terminate`, then the end of the stream. Waits for nothing.
    pub async fn close(mut self) {
        encode::terminate(&mut self.out);
        self.hand_over();
        // One attempt each: a server that reads nothing any more must not hold us up.
        std::future::poll_fn(|cx| {
            if self.poll_send(cx).is_ready() {
                let _ = Pin::new(&mut self.stream).poll_shutdown(cx);
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Takes the connection apart. Call it when nothing is queued: what is queued is lost.
    pub fn into_parts(self) -> Parts {
        Parts {
            stream: self.stream,
            rx: self.rx,
            parameters: self.parameters,
            backend_pid: self.backend_pid,
            cancel_secret: self.cancel_secret,
        }
    }
}

/// A message type that the server may not send now.
pub(crate) fn unexpected(tag: u8) -> ConnectionError {
    ConnectionError::Protocol(format!("unexpected message type {:?}", char::from(tag)))
}

#[cfg(test)]
mod tests;
