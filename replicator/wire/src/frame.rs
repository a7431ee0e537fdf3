//! The outer form of version 3 messages: tag, length, body; and where one ends in a stream of bytes.

use std::fmt;

/// PostgreSQL's `PQ_LARGE_MESSAGE_LIMIT` (`MaxAllocSize - 1`, libpq.h): the largest length a server takes from a
/// client.
pub const LARGE_MESSAGE_LIMIT: u32 = 0x3fff_ffff - 1;

/// The largest length a server can send: a body of `MaxAllocSize - 1` bytes (stringinfo.c) and the length itself.
pub const LARGE_SERVER_MESSAGE_LIMIT: u32 = 0x3fff_ffff + 3;

/// PostgreSQL's `PQ_SMALL_MESSAGE_LIMIT` (libpq.h).
pub const SMALL_MESSAGE_LIMIT: u32 = 10_000;

/// libpq's bound for server messages that have no reason to be long (`VALID_LONG_MESSAGE_TYPE`, fe-protocol3.c).
pub const SMALL_SERVER_MESSAGE_LIMIT: u32 = 30_000;

/// PostgreSQL's `PG_MAX_AUTH_TOKEN_LENGTH` (auth.c): the longest password or token a client may send.
pub const AUTH_MESSAGE_LIMIT: u32 = 65_535;

/// Bytes of tag and length.
pub const HEADER_LEN: usize = 5;

/// Who sent the bytes. It selects the known tags and the limit of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sender {
    /// A client: frontend messages.
    Client,
    /// A server: backend messages.
    Server,
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

/// Bytes that are no version 3 message. The connection cannot be used any more: nobody knows where the next
/// message begins.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A message type that this side never sends.
    #[error("unknown message type {} from the {from}", .tag.escape_ascii())]
    UnknownTag {
        /// The tag byte.
        tag: u8,
        /// Who sent it.
        from: Sender,
    },
    /// A length outside of what its message type allows.
    #[error("message type {} of the {from} with length {len}: allowed are 4 to {limit}", char::from(*.tag))]
    Length {
        /// The tag byte.
        tag: u8,
        /// The length as it stood in the message.
        len: i32,
        /// The largest length allowed.
        limit: u32,
        /// Who sent it.
        from: Sender,
    },
}

/// Tag and length of one message, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header {
    /// The message type.
    pub tag: u8,
    /// The length as on the wire: 4 to the limit of the tag; counts itself, not the tag.
    pub len: u32,
}

impl Header {
    /// Bytes of the whole message: tag, length and body.
    pub fn frame_len(&self) -> usize {
        1 + self.len as usize
    }

    /// Bytes of the body.
    pub fn body_len(&self) -> usize {
        self.len.saturating_sub(4) as usize
    }
}

/// The largest length of a message of this tag and sender; `None` for a tag that the sender does not have.
///
/// Tags and limits follow `SocketBackend` in PostgreSQL's postgres.c for clients and `pqParseInput3` in libpq for
/// servers. Messages of a fixed size allow just that size.
#[inline]
pub fn limit(tag: u8, from: Sender) -> Option<u32> {
    match from {
        Sender::Client => match tag {
            b'Q' | b'P' | b'B' | b'F' | b'd' => Some(LARGE_MESSAGE_LIMIT),
            b'C' | b'D' | b'E' | b'X' | b'f' => Some(SMALL_MESSAGE_LIMIT),
            b'H' | b'S' | b'c' => Some(4),
            b'p' => Some(AUTH_MESSAGE_LIMIT),
            _ => None,
        },
        Sender::Server => match tag {
            b'D' | b'd' | b'T' | b'E' | b'N' | b'A' | b'V' => Some(LARGE_SERVER_MESSAGE_LIMIT),
            b'R' | b'K' | b'S' | b'C' | b'G' | b'H' | b'W' | b'v' => {
                Some(SMALL_SERVER_MESSAGE_LIMIT)
            }
            // 65,535 parameters of four bytes, their count, the length.
            b't' => Some(4 + 2 + 4 * 65_535),
            b'Z' => Some(5),
            b'1' | b'2' | b'3' | b'I' | b'n' | b's' | b'c' => Some(4),
            _ => None,
        },
    }
}

/// Reads and checks the header at the start of `buf`. `None`: fewer than [`HEADER_LEN`] bytes (a wrong tag is
/// reported from the first byte on).
///
/// # Errors
/// [`FrameError`] for an unknown tag and for a length below 4 or above the limit of the tag.
#[inline]
pub fn peek(buf: &[u8], from: Sender) -> Result<Option<Header>, FrameError> {
    let Some((&tag, rest)) = buf.split_first() else {
        return Ok(None);
    };
    let limit = limit(tag, from).ok_or(FrameError::UnknownTag { tag, from })?;
    let Some(length) = rest.first_chunk() else {
        return Ok(None);
    };
    let length = i32::from_be_bytes(*length);
    match u32::try_from(length) {
        Ok(len) if (4..=limit).contains(&len) => Ok(Some(Header { tag, len })),
        _ => Err(FrameError::Length {
            tag,
            len: length,
            limit,
            from,
        }),
    }
}

/// How many bytes at the start of `buf` are whole messages of this one type, one behind the other. A message that is not
/// whole, or whose length is not allowed, ends them.
#[inline]
pub fn run_len(buf: &[u8], tag: u8, from: Sender) -> usize {
    let mut end = 0;
    loop {
        let rest = buf.get(end..).unwrap_or_default();
        if rest.first() != Some(&tag) {
            return end;
        }
        match peek(rest, from) {
            Ok(Some(header)) if rest.len() >= header.frame_len() => end += header.frame_len(),
            _ => return end,
        }
    }
}

/// What stands at the start of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// No whole message yet: read more. A message that will never fit the buffer can be streamed with
    /// [`Scanner::begin_stream`].
    Incomplete {
        /// Bytes of the whole message, once its header is there; of a message being streamed, the bytes still to come.
        need: Option<usize>,
    },
    /// A whole message of `header.frame_len()` bytes.
    Frame(Header),
    /// This many bytes continue the message being streamed. They count as taken: pass on all of them.
    Continue(usize),
}

/// Walks the messages in successive chunks of one direction without collecting them. Pure: the caller owns the
/// buffer, calls [`Scanner::next`] on what is in it, and removes what it was told.
#[derive(Debug, Clone)]
pub struct Scanner {
    from: Sender,
    streamed: usize,
}

impl Scanner {
    /// A scanner that stands at the start of a message.
    pub fn new(from: Sender) -> Self {
        Self { from, streamed: 0 }
    }

    /// Tells what stands at the start of `buf`. After [`Scan::Frame`] the caller removes the frame from the buffer
    /// before the next call, after [`Scan::Continue`] that number of bytes.
    ///
    /// # Errors
    /// As [`peek`].
    #[inline]
    pub fn next(&mut self, buf: &[u8]) -> Result<Scan, FrameError> {
        if self.streamed > 0 {
            let taken = self.streamed.min(buf.len());
            if taken == 0 {
                return Ok(Scan::Incomplete {
                    need: Some(self.streamed),
                });
            }
            self.streamed -= taken;
            return Ok(Scan::Continue(taken));
        }
        Ok(match peek(buf, self.from)? {
            None => Scan::Incomplete { need: None },
            Some(header) if buf.len() >= header.frame_len() => Scan::Frame(header),
            Some(header) => Scan::Incomplete {
                need: Some(header.frame_len()),
            },
        })
    }

    /// Begins to stream the message at the start of the buffer, whose header [`peek`] gave: all of its bytes, the
    /// header included, then come as [`Scan::Continue`].
    pub fn begin_stream(&mut self, header: Header) {
        self.streamed = header.frame_len();
    }

    /// Whether no message is half passed on.
    pub fn at_boundary(&self) -> bool {
        self.streamed == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(tag: u8, len: i32) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend(len.to_be_bytes());
        bytes
    }

    #[test]
    fn length_is_checked_before_use() {
        for len in [i32::MIN, -1, 0, 3] {
            assert!(
                matches!(peek(&raw(b'Q', len), Sender::Client), Err(FrameError::Length { len: l, .. }) if l == len)
            );
        }
        assert_eq!(
            peek(&raw(b'Q', 4), Sender::Client),
            Ok(Some(Header { tag: b'Q', len: 4 }))
        );
        assert!(peek(&raw(b'Q', i32::MAX), Sender::Client).is_err());
    }

    #[test]
    fn every_tag_has_its_own_limit() {
        for from in [Sender::Client, Sender::Server] {
            for tag in 0..=u8::MAX {
                let Some(limit) = limit(tag, from) else {
                    assert_eq!(
                        peek(&raw(tag, 4), from),
                        Err(FrameError::UnknownTag { tag, from })
                    );
                    continue;
                };
                let largest = i32::try_from(limit).unwrap();
                assert_eq!(
                    peek(&raw(tag, largest), from),
                    Ok(Some(Header { tag, len: limit }))
                );
                assert!(peek(&raw(tag, largest + 1), from).is_err(), "{tag}");
            }
        }
    }

    #[test]
    fn unknown_tag_is_reported_from_its_first_byte() {
        assert!(peek(b"\0", Sender::Client).is_err());
        assert_eq!(peek(b"", Sender::Client), Ok(None));
        assert_eq!(peek(b"Q\0\0\0", Sender::Client), Ok(None));
        let text = peek(b"\x16", Sender::Server).unwrap_err().to_string();
        assert_eq!(text, "unknown message type \\x16 from the server");
    }

    #[test]
    fn a_run_ends_before_what_is_of_another_type_not_whole_or_not_allowed() {
        let row = b"D\0\0\0\x06\0\0";
        let run = |bytes: &[u8]| run_len(bytes, b'D', Sender::Server);
        assert_eq!((run(b""), run(b"Z\0\0\0\x05I")), (0, 0));
        let rows = [&row[..], row].concat();
        assert_eq!(run(&rows), 14);
        for behind in [
            &b"Z\0\0\0\x05I"[..],
            b"D",
            b"D\0\0\0\x06\0",
            b"D\0\0\0\x03",
            b"D\xff\xff\xff\xff",
        ] {
            assert_eq!(run(&[&rows, behind].concat()), 14, "{behind:?}");
        }
    }

    #[test]
    fn scanner_yields_whole_frames_and_asks_for_missing_bytes() {
        let mut scanner = Scanner::new(Sender::Client);
        let stream = b"S\0\0\0\x04Q\0\0\0\x06a\0";
        assert_eq!(
            scanner.next(stream),
            Ok(Scan::Frame(Header { tag: b'S', len: 4 }))
        );
        assert_eq!(
            scanner.next(&stream[5..8]),
            Ok(Scan::Incomplete { need: None })
        );
        assert_eq!(
            scanner.next(&stream[5..11]),
            Ok(Scan::Incomplete { need: Some(7) })
        );
        assert_eq!(
            scanner.next(&stream[5..]),
            Ok(Scan::Frame(Header { tag: b'Q', len: 6 }))
        );
    }

    #[test]
    fn streamed_frame_ends_exactly_at_its_last_byte() {
        let mut scanner = Scanner::new(Sender::Server);
        let mut bytes = raw(b'D', 104);
        let header = peek(&bytes, Sender::Server).unwrap().unwrap();
        assert_eq!(
            scanner.next(&bytes),
            Ok(Scan::Incomplete { need: Some(105) })
        );
        scanner.begin_stream(header);
        assert!(!scanner.at_boundary());
        assert_eq!(scanner.next(&bytes), Ok(Scan::Continue(5)));
        assert_eq!(scanner.next(&[]), Ok(Scan::Incomplete { need: Some(100) }));
        bytes = vec![0; 100];
        bytes.extend(b"Z\0\0\0\x05I");
        assert_eq!(scanner.next(&bytes), Ok(Scan::Continue(100)));
        assert!(scanner.at_boundary());
        assert_eq!(
            scanner.next(&bytes[100..]),
            Ok(Scan::Frame(Header { tag: b'Z', len: 5 }))
        );
    }
}
