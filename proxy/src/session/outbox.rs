//! Owns what a receiver has not taken yet.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BytesMut};
use tandem_wire::Stream;
use tokio::io::AsyncWrite;

/// Bytes on their way to one receiver. Empty, it holds no memory.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    held: BytesMut,
    /// The stream holds something back; TLS may.
    unflushed: bool,
}

impl Outbox {
    /// Whether all is on its way.
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty() && !self.unflushed
    }

    /// How many bytes are held.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// Where to put more.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.held
    }

    /// What was not taken.
    pub(crate) fn take(&mut self) -> BytesMut {
        self.unflushed = false;
        std::mem::take(&mut self.held)
    }

    /// Bytes of memory in use.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.held.capacity()
    }

    /// Writes what is held. Whether all is on its way.
    ///
    /// # Errors
    /// The receiver is gone.
    pub(crate) fn flush(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> io::Result<bool> {
        while !self.held.is_empty() {
            match write_some(cx, stream, &self.held)? {
                Poll::Pending => return Ok(false),
                Poll::Ready(written) => self.held.advance(written),
            }
            self.unflushed = stream.is_tls();
        }
        if self.held.capacity() > 0 {
            self.held = BytesMut::new();
        }
        if self.unflushed {
            match Pin::new(stream).poll_flush(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(flushed) => flushed?,
            }
            self.unflushed = false;
        }
        Ok(true)
    }

    /// Writes behind what is held, and holds what is not taken.
    ///
    /// # Errors
    /// The receiver is gone.
    pub(crate) fn write(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        mut bytes: &[u8],
    ) -> io::Result<()> {
        while self.held.is_empty() && !bytes.is_empty() {
            match write_some(cx, stream, bytes)? {
                Poll::Pending => break,
                Poll::Ready(written) => bytes = bytes.get(written..).unwrap_or_default(),
            }
            self.unflushed = stream.is_tls();
        }
        if bytes.is_empty() && self.is_empty() {
            return Ok(());
        }
        self.held.extend_from_slice(bytes);
        self.flush(cx, stream).map(drop)
    }
}

fn write_some(cx: &mut Context<'_>, stream: &mut Stream, bytes: &[u8]) -> io::Result<Poll<usize>> {
    match stream.try_write(bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        written => return none_is_an_error(written).map(Poll::Ready),
    }
    match Pin::new(stream).poll_write(cx, bytes) {
        Poll::Pending => Ok(Poll::Pending),
        Poll::Ready(written) => none_is_an_error(written).map(Poll::Ready),
    }
}

fn none_is_an_error(written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        written => written,
    }
}
