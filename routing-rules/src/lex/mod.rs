//! The lexical structure of SQL, exactly as PostgreSQL 15 to 18 reads it: tokens, the values of literals, and where one
//! statement of a string ends and the next begins.
//!
//! The rules are those of the manual's chapter "Lexical Structure" and of `src/backend/parser/scan.l`. Where majors differ
//! (underscores in numbers, `0x`, vertical tabs) the newest is followed: what an older one does not know it refuses.
//!
//! The text is what the server's scanner sees. It may be any bytes, but under a client encoding in which a byte below
//! 0x80 may be the second of a character (SJIS, BIG5, GBK, UHC, GB18030, JOHAB) the server converts before it scans, and
//! what is said here of the unconverted text can be wrong.

mod scan;
mod split;
mod value;

#[cfg(test)]
mod tests;

pub use split::{Split, Statement, split};
pub use value::{ValueError, unicode_value, value};

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A word without quotes: a name or a keyword. The `N` of `N'..'` is one.
    Identifier,
    /// `".."`
    QuotedIdentifier,
    /// `U&".."`
    UnicodeIdentifier,
    /// `'..'` in which a backslash means itself.
    String,
    /// `E'..'`; and `'..'` while `standard_conforming_strings` is off.
    EscapeString,
    /// `U&'..'`, without the UESCAPE that may follow as two tokens of its own.
    UnicodeString,
    /// `B'..'`
    BitString,
    /// `X'..'`
    HexString,
    /// `$tag$..$tag$`
    DollarString,
    /// Digits, with underscores between them or behind `0x`, `0o`, `0b`.
    Integer,
    /// A number with a point or an exponent.
    Numeric,
    /// `$1`
    Parameter,
    /// One or more of `~!@#^&|` and the grave accent, `?+-*/%<>=`; so `=>` too.
    Operator,
    /// `,` `(` `)` `[` `]` `.` `;` `:` `::` `:=` `..`
    Punctuation,
    /// A character that begins no token of SQL. PostgreSQL's grammar has no place for it.
    Other,
    /// `-- ..` up to the end of the line.
    LineComment,
    /// `/* .. */`, nested.
    BlockComment,
    /// The server refuses the whole text, here and before any of it runs. The last token.
    Error(LexError),
}

/// Why the server's scanner refuses a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LexError {
    /// A string in single quotes.
    #[error("unterminated quoted string")]
    UnterminatedString,
    /// A bit or hexadecimal string.
    #[error("unterminated bit string literal")]
    UnterminatedBitString,
    /// A string in dollar quotes.
    #[error("unterminated dollar-quoted string")]
    UnterminatedDollarString,
    /// A name in double quotes.
    #[error("unterminated quoted identifier")]
    UnterminatedIdentifier,
    /// A comment, perhaps because it contains another one.
    #[error("unterminated /* comment")]
    UnterminatedComment,
    /// `""`
    #[error("zero-length delimited identifier")]
    EmptyIdentifier,
    /// `1a`, `0x`, `1e+`
    #[error("trailing junk after numeric literal")]
    NumberJunk,
    /// `$1a`
    #[error("trailing junk after parameter")]
    ParameterJunk,
    /// 64 characters or more.
    #[error("operator too long")]
    OperatorTooLong,
    /// `U&'..'` while `standard_conforming_strings` is off.
    #[error("unsafe use of string constant with Unicode escapes")]
    UnsafeUnicodeString,
}

/// A piece of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'t> {
    /// What it is.
    pub kind: Kind,
    /// Where it begins, in bytes from the beginning of the text.
    pub start: usize,
    /// Its bytes.
    pub text: &'t [u8],
}

impl Token<'_> {
    /// Where it ends.
    #[must_use]
    pub fn end(&self) -> usize {
        self.start + self.text.len()
    }

    /// Whether it is this word without quotes, given in lower case.
    #[must_use]
    pub fn is_word(&self, lower_case: &str) -> bool {
        self.kind == Kind::Identifier && self.text.eq_ignore_ascii_case(lower_case.as_bytes())
    }

    /// Whether it is this operator or punctuation.
    #[must_use]
    pub fn is_sign(&self, sign: &str) -> bool {
        matches!(self.kind, Kind::Operator | Kind::Punctuation) && self.text == sign.as_bytes()
    }

    /// Whether it is a comment.
    #[must_use]
    pub fn is_comment(&self) -> bool {
        matches!(self.kind, Kind::LineComment | Kind::BlockComment)
    }
}

/// The tokens of a text, comments too, white space not. Allocates nothing and takes time in proportion to the text.
///
/// ```
/// use tandem_routing_rules::lex::{Kind, Lexer};
///
/// let texts: Vec<_> = Lexer::new(b"SELECT 'it''s' -- why", true).map(|token| (token.kind, token.text)).collect();
/// assert_eq!(texts[1], (Kind::String, &b"'it''s'"[..]));
/// assert_eq!(texts[2], (Kind::LineComment, &b"-- why"[..]));
/// ```
#[derive(Debug, Clone)]
pub struct Lexer<'t> {
    text: &'t [u8],
    position: usize,
    standard_conforming_strings: bool,
    /// Up to here every `+` and `-` is a token, see [`scan::operator`].
    signs_end: usize,
}

impl<'t> Lexer<'t> {
    /// Begins at the beginning of `text`.
    #[must_use]
    pub fn new(text: &'t [u8], standard_conforming_strings: bool) -> Self {
        Self {
            text,
            position: 0,
            standard_conforming_strings,
            signs_end: 0,
        }
    }

    /// The tokens without the comments.
    pub fn significant(self) -> impl Iterator<Item = Token<'t>> {
        self.filter(|token| !token.is_comment())
    }
}

impl<'t> Iterator for Lexer<'t> {
    type Item = Token<'t>;

    fn next(&mut self) -> Option<Token<'t>> {
        let start = scan::while_true(self.text, self.position, scan::is_space);
        let found = scan::token(
            self.text,
            start,
            self.standard_conforming_strings,
            &mut self.signs_end,
        )?;
        // After an error there is nothing: the server does not look any further.
        self.position = match found.kind {
            Kind::Error(_) => self.text.len(),
            _ => found.end,
        };
        Some(Token {
            kind: found.kind,
            start,
            text: self.text.get(start..found.end).unwrap_or_default(),
        })
    }
}
