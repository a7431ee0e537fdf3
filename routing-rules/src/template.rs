//! What a text has in common with all others that differ from it only in their literals.
//!
//! A [`Template`] reads a text once, by PostgreSQL's lexical rules, into buffers that it uses again: it allocates nothing
//! once they are large enough. What it yields, a [`Shape`], names the same plan for every text of the same template; the
//! plan then says which of the literals have to be the same too (an option's, a setting's name).
//!
//! Two shapes have equal bytes if and only if their texts are the same tokens but for the values of literals of the same
//! kind, for comments, for white space, and for the number of literals in a list behind IN. Words keep their case.
//!
//! The text is read as with `standard_conforming_strings` on; while it is off, or under a client encoding whose characters
//! may contain bytes below 0x80 after the first, nothing here is to be asked.

use core::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use crate::lex::{Kind, Lexer, Token};

/// Texts of more bytes than this are not looked into.
pub const TEXT_MAX: usize = 64 << 10;

/// Ends each token of a template.
const TOKEN_END: u8 = b' ';
/// Stands for a list of literals behind IN; no token begins with it, nor with the marks of [`mark`].
const LIST: u8 = 0x1f;

/// The buffers that texts are read into.
#[derive(Debug, Clone, Default)]
pub struct Template {
    bytes: Vec<u8>,
    spans: Vec<Span>,
    places: Vec<Place>,
    /// The value of the leading comment's `tandem.key`.
    key: Option<Span>,
}

/// Where something stands in the text, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Texts are shorter than [`TEXT_MAX`].
    fn of(range: Range<usize>) -> Option<Self> {
        Some(Self {
            start: u32::try_from(range.start).ok()?,
            end: u32::try_from(range.end).ok()?,
        })
    }

    fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// A place of a template where each text has a literal of its own, or a list of them.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Its first literal; the next place's first ends it.
    first: u32,
    kind: Kind,
}

/// A text as it was read.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'t> {
    /// The tokens without the literals: what a cache of plans is asked with.
    pub bytes: &'t [u8],
    /// The literals by place.
    pub literals: Literals<'t>,
    /// `placement:key` of a leading comment `/* tandem.key='placement:key' */`.
    pub key: Option<&'t str>,
}

impl Shape<'_> {
    /// A hash of the bytes, by XXH3.
    #[must_use]
    pub fn hash(&self) -> u64 {
        xxh3_64(self.bytes)
    }
}

/// The literals of a text, by their place in the template.
#[derive(Debug, Clone, Copy, Default)]
pub struct Literals<'t> {
    text: &'t [u8],
    spans: &'t [Span],
    places: &'t [Place],
}

/// One literal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Literal<'t> {
    /// Which sort of string or number.
    pub kind: Kind,
    /// Where it begins in the text, in bytes.
    pub start: usize,
    /// As it stands there, quotes and all.
    pub text: &'t [u8],
}

impl<'t> Literals<'t> {
    /// The text that they stand in.
    #[must_use]
    pub fn text(&self) -> &'t [u8] {
        self.text
    }

    /// How many places there are.
    #[must_use]
    pub fn places(&self) -> usize {
        self.places.len()
    }

    /// The literals at a place: one, or those of the list behind IN; none where there is no such place.
    pub fn at(&self, place: usize) -> impl Iterator<Item = Literal<'t>> + use<'t> {
        let text = self.text;
        let found = self.places.get(place).copied();
        let first = found.map_or(0, |place| place.first as usize);
        let end = match self.places.get(place + 1) {
            Some(next) => next.first as usize,
            None => found.map_or(0, |_| self.spans.len()),
        };
        let spans = self.spans.get(first..end).unwrap_or_default();
        spans.iter().map(move |span| Literal {
            kind: found.map_or(Kind::Other, |place| place.kind),
            start: span.start as usize,
            text: text.get(span.range()).unwrap_or_default(),
        })
    }

    /// The first literal that begins at `start` or later, and its place.
    #[must_use]
    pub fn from(&self, start: usize) -> Option<(usize, Literal<'t>)> {
        let index = self
            .spans
            .partition_point(|span| (span.start as usize) < start);
        let span = self.spans.get(index)?;
        let place = self
            .places
            .partition_point(|place| place.first as usize <= index)
            .checked_sub(1)?;
        let literal = Literal {
            kind: self.places.get(place)?.kind,
            start: span.start as usize,
            text: self.text.get(span.range())?,
        };
        Some((place, literal))
    }
}

impl Template {
    /// Reads a text. `None`: the server's scanner refuses it, or it is longer than [`TEXT_MAX`].
    ///
    /// ```
    /// use tandem_routing_rules::template::Template;
    ///
    /// let (mut one, mut other) = (Template::default(), Template::default());
    /// let one = one.read(b"SELECT * FROM bikes WHERE id IN (1, 2)").unwrap();
    /// let other = other.read(b"SELECT  *  FROM bikes WHERE id IN (7) -- why").unwrap();
    /// assert_eq!(one.bytes, other.bytes);
    /// assert_eq!(one.literals.at(0).map(|literal| literal.text).collect::<Vec<_>>(), [b"1", b"2"]);
    /// ```
    pub fn read<'t>(&'t mut self, text: &'t [u8]) -> Option<Shape<'t>> {
        self.bytes.clear();
        self.spans.clear();
        self.places.clear();
        self.key = None;
        if text.len() > TEXT_MAX {
            return None;
        }
        let mut list = List::No;
        for token in Lexer::new(text, true) {
            match token.kind {
                Kind::Error(_) | Kind::Other => return None,
                Kind::LineComment => {}
                Kind::BlockComment => {
                    if self.bytes.is_empty() && self.key.is_none() {
                        self.key = key(&token);
                    }
                }
                _ => list = self.token(&token, list)?,
            }
        }
        let key = self.key.and_then(|key| text.get(key.range()));
        Some(Shape {
            bytes: &self.bytes,
            literals: Literals {
                text,
                spans: &self.spans,
                places: &self.places,
            },
            key: key.and_then(|key| core::str::from_utf8(key).ok()),
        })
    }

    /// Writes a token that is no comment. Answers how far a list behind IN is then.
    fn token(&mut self, token: &Token<'_>, list: List) -> Option<List> {
        let Some(mark) = mark(token.kind) else {
            if let List::Literal(run) = list
                && token.is_sign(")")
            {
                self.fold(run);
            }
            self.bytes.extend_from_slice(token.text);
            self.bytes.push(TOKEN_END);
            return Some(list.after(token));
        };
        let run = Run {
            kind: token.kind,
            begin: self.bytes.len(),
            place: self.places.len(),
        };
        self.places.push(Place {
            first: u32::try_from(self.spans.len()).ok()?,
            kind: token.kind,
        });
        self.spans.push(Span::of(token.start..token.end())?);
        self.bytes.extend_from_slice(&[mark, TOKEN_END]);
        Some(match list {
            List::Open => List::Literal(run),
            List::Comma(first) if first.kind == run.kind => List::Literal(first),
            _ => List::No,
        })
    }

    /// Makes one place of a whole list.
    fn fold(&mut self, run: Run) {
        self.bytes.truncate(run.begin);
        self.places.truncate(run.place + 1);
        if let Some(mark) = mark(run.kind) {
            self.bytes.extend_from_slice(&[LIST, mark, TOKEN_END]);
        }
    }
}

/// Where a list of literals of one kind begins.
#[derive(Debug, Clone, Copy)]
struct Run {
    kind: Kind,
    /// In the bytes of the template.
    begin: usize,
    /// The place of its first literal.
    place: usize,
}

/// How far a list of literals behind IN is.
#[derive(Debug, Clone, Copy)]
enum List {
    No,
    In,
    Open,
    Literal(Run),
    Comma(Run),
}

impl List {
    /// After a token that is no literal.
    fn after(self, token: &Token<'_>) -> Self {
        match self {
            Self::Literal(run) if token.is_sign(",") => Self::Comma(run),
            Self::In if token.is_sign("(") => Self::Open,
            _ if token.is_word("in") => Self::In,
            _ => Self::No,
        }
    }
}

/// The byte that stands for a literal of a kind; `None`: it is none.
fn mark(kind: Kind) -> Option<u8> {
    Some(match kind {
        Kind::String => 1,
        Kind::EscapeString => 2,
        Kind::UnicodeString => 3,
        Kind::BitString => 4,
        Kind::HexString => 5,
        Kind::DollarString => 6,
        Kind::Integer => 7,
        Kind::Numeric => 8,
        _ => return None,
    })
}

/// Where the value of `tandem.key` stands in a comment of the form `/* name='value', name='value' */`.
fn key(comment: &Token<'_>) -> Option<Span> {
    let inside = comment.text.get(2..comment.text.len().checked_sub(2)?)?;
    let mut rest = inside;
    loop {
        rest = rest.trim_ascii_start();
        let equals = rest.iter().position(|byte| *byte == b'=')?;
        let name = rest.get(..equals)?.trim_ascii();
        let quoted = rest
            .get(equals + 1..)?
            .trim_ascii_start()
            .strip_prefix(b"'")?;
        let length = quoted.iter().position(|byte| *byte == b'\'')?;
        let behind = quoted.get(length + 1..)?;
        if name == b"tandem.key" {
            let start = comment.start + 2 + (inside.len() - quoted.len());
            return Span::of(start..start + length);
        }
        rest = behind.trim_ascii_start().strip_prefix(b",")?;
    }
}

#[cfg(test)]
mod tests;
