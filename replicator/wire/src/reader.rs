//! The bounds-checked cursor over one message body. Every decoder of the crate stands on it.

use std::ffi::CStr;

/// A body that does not have the form its message type prescribes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// A field reaches beyond the end of the message.
    #[error("message ends early: {needed} bytes wanted, {left} left")]
    Truncated {
        /// Bytes the field needs.
        needed: usize,
        /// Bytes that are there.
        left: usize,
    },
    /// A string without its terminating zero byte.
    #[error("string without a terminating zero byte")]
    Unterminated,
    /// Bytes behind the last field.
    #[error("{0} bytes behind the end of the message")]
    TrailingBytes(usize),
    /// A field has a value the protocol does not allow there.
    #[error("invalid {0}")]
    Invalid(&'static str),
}

/// A cursor over one message body. No method panics or reads outside of the body; a method that fails leaves the
/// cursor where it was.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

macro_rules! integer {
    ($(#[$doc:meta])* $name:ident, $type:ty) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// [`ReadError::Truncated`] when fewer bytes are left.
        pub fn $name(&mut self) -> Result<$type, ReadError> {
            let Some((head, tail)) = self.rest.split_first_chunk() else {
                return Err(ReadError::Truncated { needed: size_of::<$type>(), left: self.rest.len() });
            };
            self.rest = tail;
            Ok(<$type>::from_be_bytes(*head))
        }
    };
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `body`.
    pub fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    integer!(/// Reads one byte.
        u8, u8);
    integer!(/// Reads a big-endian 16-bit integer.
        i16, i16);
    integer!(/// Reads a big-endian unsigned 16-bit integer.
        u16, u16);
    integer!(/// Reads a big-endian 32-bit integer.
        i32, i32);
    integer!(/// Reads a big-endian unsigned 32-bit integer.
        u32, u32);
    integer!(/// Reads a big-endian 64-bit integer.
        i64, i64);
    integer!(/// Reads a big-endian unsigned 64-bit integer.
        u64, u64);

    /// Reads `n` bytes.
    ///
    /// # Errors
    /// [`ReadError::Truncated`] when fewer bytes are left.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], ReadError> {
        let Some((head, tail)) = self.rest.split_at_checked(n) else {
            return Err(ReadError::Truncated {
                needed: n,
                left: self.rest.len(),
            });
        };
        self.rest = tail;
        Ok(head)
    }

    /// Reads a string up to its zero byte, which is consumed and not part of the result.
    ///
    /// # Errors
    /// [`ReadError::Unterminated`] when no zero byte follows.
    pub fn cstr(&mut self) -> Result<&'a [u8], ReadError> {
        // Which looks for the zero byte by words.
        let text = CStr::from_bytes_until_nul(self.rest).map_err(|_| ReadError::Unterminated)?;
        let text = text.to_bytes();
        self.rest = self.rest.get(text.len() + 1..).unwrap_or_default();
        Ok(text)
    }

    /// Reads a length-prefixed value as in `DataRow` and `Bind`: an `i32` length, -1 for NULL, then the bytes.
    ///
    /// # Errors
    /// [`ReadError::Invalid`] for a length below -1, [`ReadError::Truncated`] when the value is cut.
    pub fn value(&mut self) -> Result<Option<&'a [u8]>, ReadError> {
        let mut ahead = *self;
        let length = ahead.i32()?;
        let value = if length == -1 {
            None
        } else {
            let length = usize::try_from(length).map_err(|_| ReadError::Invalid("value length"))?;
            Some(ahead.bytes(length)?)
        };
        *self = ahead;
        Ok(value)
    }

    /// Takes all that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Ends reading.
    ///
    /// # Errors
    /// [`ReadError::TrailingBytes`] when bytes are left: a message longer than its fields is malformed.
    pub fn finish(self) -> Result<(), ReadError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(ReadError::TrailingBytes(left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_big_endian() {
        let body: Vec<u8> = (1..=29).collect();
        let mut reader = Reader::new(&body);
        assert_eq!(reader.u8(), Ok(0x01));
        assert_eq!(reader.i16(), Ok(0x0203));
        assert_eq!(reader.u16(), Ok(0x0405));
        assert_eq!(reader.i32(), Ok(0x0607_0809));
        assert_eq!(reader.u32(), Ok(0x0a0b_0c0d));
        assert_eq!(reader.i64(), Ok(0x0e0f_1011_1213_1415));
        assert_eq!(reader.u64(), Ok(0x1617_1819_1a1b_1c1d));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn a_failed_read_leaves_the_cursor_where_it_was() {
        let mut reader = Reader::new(&[0, 0, 0, 9, 1]);
        assert_eq!(
            reader.i64(),
            Err(ReadError::Truncated { needed: 8, left: 5 })
        );
        assert_eq!(
            reader.value(),
            Err(ReadError::Truncated { needed: 9, left: 1 })
        );
        assert!(reader.bytes(usize::MAX).is_err());
        assert_eq!(reader.remaining(), 5);
        assert_eq!(reader.i32(), Ok(9));
        assert_eq!(reader.cstr(), Err(ReadError::Unterminated));
        assert_eq!(reader.finish(), Err(ReadError::TrailingBytes(1)));
    }

    #[test]
    fn values_know_null_from_empty() {
        let mut reader = Reader::new(&[
            255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 1, 7, 255, 255, 255, 254,
        ]);
        assert_eq!(reader.value(), Ok(None));
        assert_eq!(reader.value(), Ok(Some(&[][..])));
        assert_eq!(reader.value(), Ok(Some(&[7][..])));
        assert_eq!(reader.value(), Err(ReadError::Invalid("value length")));
    }

    #[test]
    fn strings_end_at_their_zero_byte() {
        let mut reader = Reader::new(b"ab\0\0c");
        assert_eq!(reader.cstr(), Ok(&b"ab"[..]));
        assert_eq!(reader.cstr(), Ok(&b""[..]));
        assert_eq!(reader.cstr(), Err(ReadError::Unterminated));
        assert_eq!(reader.rest(), b"c");
        assert_eq!(reader.remaining(), 0);
    }
}
