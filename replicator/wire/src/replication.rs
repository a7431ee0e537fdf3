//! The streaming replication protocol: CopyBoth on a connection opened with the parameter `replication=database`.
//!
//! Source of the forms: PostgreSQL manual, "Streaming Replication Protocol" (protocol-replication).

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};

use crate::backend::{CopyResponse, ErrorFields};
use crate::connection::{Connection, ConnectionError, Frame, unexpected};
use crate::encode::frontend as encode;
use crate::lsn::Lsn;
use crate::reader::{ReadError, Reader};

/// Seconds from the Unix epoch to PostgreSQL's, 2000-01-01.
const PG_EPOCH_SECONDS: u64 = 946_684_800;
/// How long [`ReplicationStream::stop`] waits for the server to agree.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// What a server sends while it streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicationMessage {
    /// A piece of the output of the plugin.
    XLogData {
        /// Start of the piece in the log; 0 for messages that have no position.
        start: Lsn,
        /// End of the log on the server.
        end: Lsn,
        /// Time of sending, microseconds since 2000-01-01 UTC by the server's clock.
        sent_us: i64,
        /// The piece.
        data: Bytes,
    },
    /// The server is alive.
    KeepAlive {
        /// End of the log on the server.
        end: Lsn,
        /// Time of sending, microseconds since 2000-01-01 UTC by the server's clock.
        sent_us: i64,
        /// The server wants a status at once.
        reply: bool,
    },
}

impl ReplicationMessage {
    /// Reads the body of a `CopyData` message of a replication stream. The data are a view of `body`, not a copy.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    pub fn parse(body: &Bytes) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        match reader.u8()? {
            b'w' => Ok(Self::XLogData {
                start: Lsn(reader.u64()?),
                end: Lsn(reader.u64()?),
                sent_us: reader.i64()?,
                data: body.slice(body.len() - reader.remaining()..),
            }),
            b'k' => {
                let message = Self::KeepAlive {
                    end: Lsn(reader.u64()?),
                    sent_us: reader.i64()?,
                    reply: reader.u8()? != 0,
                };
                reader.finish()?;
                Ok(message)
            }
            _ => Err(ReadError::Invalid("kind of replication message")),
        }
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// The connection failed, or the server reported an error.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The server ended the stream in order, for example because it shuts down.
    #[error("the server ended the replication stream")]
    Ended,
    /// The server sent a malformed message.
    #[error("malformed replication message: {0}")]
    Malformed(#[from] ReadError),
}

/// A logical replication stream. It answers nothing by itself: the caller sends [`ReplicationStream::status`], also
/// when [`ReplicationMessage::KeepAlive`] asks for it, or the server gives up after `wal_sender_timeout`.
#[derive(Debug)]
pub struct ReplicationStream {
    conn: Connection,
}

impl ReplicationStream {
    /// Starts streaming from a logical slot: `START_REPLICATION SLOT "slot" LOGICAL X/X (name 'value', …)`. `from` 0/0:
    /// from where the slot stands.
    ///
    /// # Errors
    /// [`ReplicationError`]; `Server` inside when the server refuses, for example because the slot is in use (55006).
    pub async fn start(
        mut conn: Connection,
        slot: &str,
        from: Lsn,
        options: &[(&str, &str)],
    ) -> Result<Self, ReplicationError> {
        encode::query(conn.out(), &start_command(slot, from, options))
            .map_err(ConnectionError::Io)?;
        let mut failed = None;
        loop {
            let frame = conn.flush_and_recv().await?;
            match frame.tag {
                b'W' => {
                    CopyResponse::parse(&frame.body)?;
                    return Ok(Self { conn });
                }
                b'E' => failed = failed.or(Some(ErrorFields::parse(&frame.body)?.to_owned())),
                b'Z' => {
                    return Err(failed
                        .map_or_else(|| unexpected(b'Z'), ConnectionError::Server)
                        .into());
                }
                b'N' | b'S' => {}
                other => return Err(unexpected(other).into()),
            }
        }
    }

    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// [`ReplicationError`]; the stream has then ended.
    pub async fn next(&mut self) -> Result<ReplicationMessage, ReplicationError> {
        loop {
            let frame = self.conn.recv().await?;
            if let Some(message) = message(&frame)? {
                return Ok(message);
            }
        }
    }

    /// The next message if it is here already.
    ///
    /// # Errors
    /// As [`ReplicationStream::next`].
    pub async fn next_ready(&mut self) -> Result<Option<ReplicationMessage>, ReplicationError> {
        while let Some(frame) = self.conn.recv_ready().await? {
            if let Some(message) = message(&frame)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// Tells the server how far we are. `written`: received; `flushed`: safe with us, the server may forget it, and the
    /// slot is never asked for it again; `applied`: visible. `reply`: ask for a keepalive. When cancelled, the rest of
    /// the message goes with the next call.
    ///
    /// # Errors
    /// [`ReplicationError`] when the connection failed.
    pub async fn status(
        &mut self,
        written: Lsn,
        flushed: Lsn,
        applied: Lsn,
        reply: bool,
    ) -> Result<(), ReplicationError> {
        let message = status_message([written, flushed, applied], now_us(), reply);
        encode::copy_data(self.conn.out(), &message).map_err(ConnectionError::Io)?;
        Ok(self.conn.flush().await.map_err(ConnectionError::Io)?)
    }

    /// The connection below, for its parameters and process number.
    pub fn connection(&self) -> &Connection {
        &self.conn
    }

    /// Ends the stream in order, so that the slot is free at once, and closes the connection. Waits two seconds at most.
    pub async fn stop(mut self) {
        let agreed = async {
            encode::copy_done(self.conn.out());
            loop {
                match self.conn.flush_and_recv().await {
                    Ok(frame) if frame.tag != b'Z' => {}
                    _ => break,
                }
            }
        };
        // Whether the server agreed or not: the connection ends now, and with it the stream.
        let _ = tokio::time::timeout(STOP_TIMEOUT, agreed).await;
        self.conn.close().await;
    }
}

/// What a frame of the stream brings; `None`: nothing that concerns the stream.
fn message(frame: &Frame) -> Result<Option<ReplicationMessage>, ReplicationError> {
    match frame.tag {
        b'd' => Ok(Some(ReplicationMessage::parse(&frame.body)?)),
        b'c' => Err(ReplicationError::Ended),
        b'E' => {
            let error = ErrorFields::parse(&frame.body)?.to_owned();
            Err(ConnectionError::Server(error).into())
        }
        b'N' | b'S' => Ok(None),
        other => Err(unexpected(other).into()),
    }
}

fn start_command(slot: &str, from: Lsn, options: &[(&str, &str)]) -> String {
    let mut command = format!(
        "START_REPLICATION SLOT {} LOGICAL {from}",
        quoted(slot, '"')
    );
    for (index, (name, value)) in options.iter().enumerate() {
        let before = if index == 0 { " (" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(
            command,
            "{before}{} {}",
            quoted(name, '"'),
            quoted(value, '\'')
        );
    }
    if !options.is_empty() {
        command.push(')');
    }
    command
}

/// Quotes by doubling, as the lexer of replication commands has it (repl_scanner.l): no other escapes.
fn quoted(text: &str, quote: char) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push(quote);
    for c in text.chars() {
        if c == quote {
            quoted.push(quote);
        }
        quoted.push(c);
    }
    quoted.push(quote);
    quoted
}

fn status_message(positions: [Lsn; 3], now_us: i64, reply: bool) -> BytesMut {
    let mut message = BytesMut::with_capacity(34);
    message.put_u8(b'r');
    for Lsn(position) in positions {
        message.put_u64(position);
    }
    message.put_i64(now_us);
    message.put_u8(reply.into());
    message
}

/// Our clock in microseconds since PostgreSQL's epoch. The server only reports it.
fn now_us() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH + Duration::from_secs(PG_EPOCH_SECONDS))
        .ok()
        .and_then(|since| i64::try_from(since.as_micros()).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests;
