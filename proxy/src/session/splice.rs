//! Owns what is made of a piece of input: as long as nothing is left out or put in, its own bytes.

use std::ops::Range;

use bytes::BytesMut;

/// Puts output together from ranges of one input and from new bytes, in order. A single range is passed on without a copy.
#[derive(Debug)]
pub(super) struct Splice<'a> {
    range: Range<usize>,
    /// Used when the output is no single range any more.
    out: &'a mut BytesMut,
    copying: bool,
}

impl<'a> Splice<'a> {
    /// An empty one. `out` is for what must be copied; its content is thrown away.
    pub(super) fn new(out: &'a mut BytesMut) -> Self {
        out.clear();
        Self {
            range: 0..0,
            out,
            copying: false,
        }
    }

    /// Passes on a range of the input.
    pub(super) fn pass(&mut self, input: &[u8], range: Range<usize>) {
        if self.copying {
            self.out
                .extend_from_slice(input.get(range).unwrap_or_default());
        } else if self.range.is_empty() {
            self.range = range;
        } else if self.range.end == range.start {
            self.range.end = range.end;
        } else {
            self.make(input)
                .extend_from_slice(input.get(range).unwrap_or_default());
        }
    }

    /// Where to put new bytes.
    pub(super) fn make(&mut self, input: &[u8]) -> &mut BytesMut {
        if !self.copying {
            self.copying = true;
            self.out
                .extend_from_slice(input.get(self.range.clone()).unwrap_or_default());
        }
        self.out
    }

    /// The output.
    pub(super) fn bytes<'b>(&'b self, input: &'b [u8]) -> &'b [u8] {
        if self.copying {
            self.out
        } else {
            input.get(self.range.clone()).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_whole_is_not_copied_and_the_rest_is_put_together_in_order() {
        let input = b"aabbccdd";
        let mut out = BytesMut::new();
        let mut splice = Splice::new(&mut out);
        assert_eq!(splice.bytes(input), b"");
        splice.pass(input, 2..4);
        splice.pass(input, 4..6);
        assert_eq!(splice.bytes(input).as_ptr(), input[2..].as_ptr());
        assert_eq!(splice.bytes(input), b"bbcc");
        splice.make(input).extend_from_slice(b"--");
        splice.pass(input, 6..8);
        assert_eq!(splice.bytes(input), b"bbcc--dd");

        let mut splice = Splice::new(&mut out);
        splice.pass(input, 0..2);
        splice.pass(input, 6..8);
        assert_eq!(splice.bytes(input), b"aadd");
    }
}
