//! Owns one direction of a session: reads, finds where messages end, writes.
//!
//! Between wake-ups a pump holds only bytes that could not be passed on: a message that is not complete yet, or
//! what a slow receiver has not taken. Reading happens into one buffer per worker thread, so that an idle
//! session holds no buffer at all, whatever its stream is made of.
//!
//! **Invariant:** a message of up to [`WHOLE_FRAME_MAX`] bytes is written only when all of it has arrived. When the sender dies,
//! the receiver stands at the start of a message, unless a larger one was on its way.

use std::{
    cell::RefCell,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, BytesMut};
use tandem_wire::frame::{self, FrameError, Header, Scan, Scanner, Sender};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// Messages up to this size are forwarded whole; larger ones are streamed. Also the most a pump holds.
pub(crate) const WHOLE_FRAME_MAX: usize = 64 * 1024;
/// Bytes asked for in one read. A receiver that stops leaves no more than this and one partial message behind.
const READ_MAX: usize = 16 * 1024;

thread_local! {
    /// Taken only inside of one poll of one pump, never across an await.
    static SCRATCH: RefCell<BytesMut> = RefCell::new(BytesMut::with_capacity(WHOLE_FRAME_MAX));
}

/// Why a pump has stopped. Everything that could be passed on has been.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// The sender closed its side.
    Eof,
    /// Reading from the sender failed: its connection is gone.
    ReadFailed(io::Error),
    /// Writing to the receiver failed: its connection is gone.
    WriteFailed(io::Error),
    /// The sender does not speak the protocol.
    Violation(FrameError),
}

/// What the sender's side has come to.
#[derive(Debug)]
enum Source {
    Open,
    Ended(Stopped),
    /// The end has been reported.
    Reported,
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Pump {
    from: Sender,
    scanner: Scanner,
    /// First `ready` bytes to pass on, then the start of a message that is not complete.
    held: BytesMut,
    ready: usize,
    source: Source,
    unflushed: bool,
}

impl Pump {
    /// A pump at the start of a message. `received` are bytes that arrived already.
    pub(crate) fn new(from: Sender, received: BytesMut) -> Pump {
        Pump {
            from,
            scanner: Scanner::new(from),
            held: received,
            ready: 0,
            source: Source::Open,
            unflushed: false,
        }
    }

    /// Looks at bytes that arrived before the pump was made. Call it once, before the first poll.
    pub(crate) fn scan_received(&mut self, seen: &mut impl FnMut(Header, &[u8])) {
        match scan(&mut self.scanner, self.from, &self.held, seen) {
            Ok(ready) => self.ready = ready,
            Err(Violation { ready, error }) => {
                self.held.truncate(ready);
                self.ready = ready;
                self.source = Source::Ended(Stopped::Violation(error));
            }
        }
    }

    /// Whether the receiver stands at the start of a message once [`Pump::rest`] is written.
    pub(crate) fn at_boundary(&self) -> bool {
        self.scanner.at_boundary()
    }

    /// Whether nothing is under way: no part of a message, no byte to pass on.
    pub(crate) fn is_clear(&self) -> bool {
        self.held.is_empty() && self.scanner.at_boundary() && !self.unflushed
    }

    /// Bytes the receiver has not taken yet, up to the end of the last whole message.
    pub(crate) fn rest(&self) -> &[u8] {
        self.held.get(..self.ready).unwrap_or_default()
    }

    /// Bytes of memory kept between two polls.
    #[cfg(test)]
    pub(crate) fn held_capacity(&self) -> usize {
        self.held.capacity()
    }

    /// Passes on what it can. `seen` is called once for every message, in order, before it is passed on: with its
    /// body, or with what of it has arrived when it is so large that it is streamed.
    pub(crate) fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut R,
        sink: &mut W,
        seen: &mut impl FnMut(Header, &[u8]),
    ) -> Poll<Stopped>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            if let Err(error) = ready!(self.poll_deliver(cx, sink)) {
                return self.report(Stopped::WriteFailed(error));
            }
            match std::mem::replace(&mut self.source, Source::Open) {
                Source::Open => {}
                Source::Ended(stopped) => return self.report(stopped),
                Source::Reported => {
                    self.source = Source::Reported;
                    return Poll::Pending;
                }
            }
            let read =
                SCRATCH.with_borrow_mut(|scratch| self.poll_fill(cx, scratch, source, sink, seen));
            if let Err(error) = ready!(read) {
                return self.report(Stopped::WriteFailed(error));
            }
        }
    }

    fn report(&mut self, stopped: Stopped) -> Poll<Stopped> {
        self.source = Source::Reported;
        Poll::Ready(stopped)
    }

    /// Writes and flushes what is held ready.
    fn poll_deliver<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut W,
    ) -> Poll<io::Result<()>> {
        while self.ready > 0 {
            let Some(bytes) = self.held.get(..self.ready) else {
                break;
            };
            let written = ready!(write_some(cx, sink, bytes))?;
            self.held.advance(written);
            self.ready -= written;
            self.unflushed = true;
        }
        if self.held.is_empty() && self.held.capacity() > 0 {
            self.held = BytesMut::new();
        }
        if self.unflushed {
            ready!(Pin::new(sink).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once behind what is held, then writes as much as the receiver takes straight from the shared buffer
    /// and keeps the rest. An error is the receiver's; the sender's end is noted in `source`.
    fn poll_fill<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut BytesMut,
        source: &mut R,
        sink: &mut W,
        seen: &mut impl FnMut(Header, &[u8]),
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        // At this point `held` is at most the start of one message.
        scratch.clear();
        scratch.extend_from_slice(&self.held);
        let room = WHOLE_FRAME_MAX
            .saturating_sub(scratch.len())
            .clamp(1, READ_MAX);
        let read = {
            let mut limited = (&mut *scratch).limit(room);
            ready!(pin!(source.read_buf(&mut limited)).poll(cx))
        };
        match read {
            Ok(0) => {
                self.source = Source::Ended(Stopped::Eof);
                return Poll::Ready(Ok(()));
            }
            Err(error) => {
                self.source = Source::Ended(Stopped::ReadFailed(error));
                return Poll::Ready(Ok(()));
            }
            Ok(_) => {}
        }
        let ready = match scan(&mut self.scanner, self.from, scratch, seen) {
            Ok(ready) => ready,
            Err(Violation { ready, error }) => {
                scratch.truncate(ready);
                self.source = Source::Ended(Stopped::Violation(error));
                ready
            }
        };
        let mut written = 0;
        while let Some(bytes) = scratch
            .get(written..ready)
            .filter(|bytes| !bytes.is_empty())
        {
            match write_some(cx, sink, bytes) {
                Poll::Ready(Ok(n)) => {
                    written += n;
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        self.ready = ready - written;
        let kept = scratch.get(written..).unwrap_or_default();
        if kept.is_empty() {
            self.held = BytesMut::new();
        } else {
            self.held.clear();
            self.held.extend_from_slice(kept);
        }
        Poll::Ready(Ok(()))
    }
}

fn write_some<W: AsyncWrite + Unpin>(
    cx: &mut Context<'_>,
    sink: &mut W,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(sink).poll_write(cx, bytes)) {
        Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        Ok(n) => Poll::Ready(Ok(n.min(bytes.len()))),
        Err(error) => Poll::Ready(Err(error)),
    }
}

/// A message that is none, behind `ready` bytes that are fine.
struct Violation {
    ready: usize,
    error: FrameError,
}

/// Walks the messages at the start of `bytes`; returns how many bytes may be passed on.
fn scan(
    scanner: &mut Scanner,
    from: Sender,
    bytes: &[u8],
    seen: &mut impl FnMut(Header, &[u8]),
) -> Result<usize, Violation> {
    let mut ready = 0;
    loop {
        let violation = |error| Violation { ready, error };
        let rest = bytes.get(ready..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(ready);
        }
        match scanner.next(rest).map_err(violation)? {
            Scan::Frame(header) => {
                let body = rest
                    .get(frame::HEADER_LEN..header.frame_len())
                    .unwrap_or_default();
                seen(header, body);
                ready += header.frame_len();
            }
            Scan::Continue(taken) => ready += taken,
            Scan::Incomplete { need: Some(need) } if need > WHOLE_FRAME_MAX => {
                let Some(header) = frame::peek(rest, from).map_err(violation)? else {
                    return Ok(ready);
                };
                seen(header, rest.get(frame::HEADER_LEN..).unwrap_or_default());
                scanner.begin_stream(header);
            }
            Scan::Incomplete { .. } => return Ok(ready),
        }
    }
}
