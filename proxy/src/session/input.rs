//! Owns what has arrived from a socket and is not passed on yet.

use std::{
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::{BufMut, BytesMut};
use tandem_wire::Stream;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

/// Bytes asked for in one read.
pub(super) const READ_MAX: usize = 16 * 1024;

/// What has arrived. It only ever grows, up to a whole message and a read, and is never cleared: what is behind the end
/// is what others have read before.
#[derive(Default)]
pub(super) struct Input {
    buffer: Vec<u8>,
    end: usize,
}

impl Input {
    /// Begins with what was kept from before.
    pub(super) fn begin(&mut self, kept: &[u8]) {
        self.end = kept.len();
        if self.buffer.len() < kept.len() + READ_MAX {
            self.buffer.resize(kept.len() + READ_MAX, 0);
        }
        if let Some(start) = self.buffer.get_mut(..kept.len()) {
            start.copy_from_slice(kept);
        }
    }

    /// Reads once, behind what is there.
    pub(super) fn read(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
    ) -> Poll<std::io::Result<usize>> {
        let space = self.buffer.get_mut(self.end..self.end + READ_MAX);
        let mut space = ReadBuf::new(space.unwrap_or_default());
        let read = Pin::new(stream).poll_read(cx, &mut space);
        let more = space.filled().len();
        self.end += more;
        read.map_ok(|()| more)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.end).unwrap_or_default()
    }
}

/// Keeps what was not taken of `input`.
pub(super) fn keep(held: &mut BytesMut, input: &[u8], taken: usize) {
    let rest = input.get(taken..).unwrap_or_default();
    if rest.is_empty() {
        if held.capacity() > 0 {
            *held = BytesMut::new();
        }
    } else {
        held.clear();
        held.extend_from_slice(rest);
    }
}

/// Reads once, behind what is there.
pub(super) fn read_some(
    cx: &mut Context<'_>,
    stream: &mut Stream,
    buffer: &mut BytesMut,
) -> Poll<std::io::Result<usize>> {
    buffer.reserve(READ_MAX);
    let mut limited = buffer.limit(READ_MAX);
    pin!(stream.read_buf(&mut limited)).poll(cx)
}
