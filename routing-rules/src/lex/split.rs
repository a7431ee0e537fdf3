//! Owns where one statement of a string ends and the next begins.

use std::ops::Range;

use super::{Kind, LexError, Lexer, Token};

/// One statement of a string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement<'t> {
    /// From its first token to its last; comments before and behind it, and the semicolon, are left out.
    pub range: Range<usize>,
    /// Its bytes.
    pub text: &'t [u8],
    /// From the end of the statement before it to its first token: white space and comments.
    pub leading: &'t [u8],
}

impl<'t> Statement<'t> {
    /// The comments before its first token.
    pub fn leading_comments(&self) -> impl Iterator<Item = Token<'t>> {
        Lexer::new(self.leading, true)
    }
}

/// The statements of a simple query, without the empty ones.
///
/// The server scans and parses the whole string before it runs anything of it. So an error, which is the last item, means
/// that nothing ran of the statements before it either.
///
/// ```
/// use tandem_routing_rules::lex::split;
///
/// let texts: Result<Vec<_>, _> = split(b"SELECT ';'; COMMIT;", true).map(|item| item.map(|item| item.text)).collect();
/// assert_eq!(texts?, [&b"SELECT ';'"[..], b"COMMIT"]);
/// # Ok::<(), tandem_routing_rules::lex::LexError>(())
/// ```
#[must_use]
pub fn split(text: &[u8], standard_conforming_strings: bool) -> Split<'_> {
    Split {
        text,
        lexer: Lexer::new(text, standard_conforming_strings),
        position: 0,
    }
}

/// See [`split`].
#[derive(Debug, Clone)]
pub struct Split<'t> {
    text: &'t [u8],
    lexer: Lexer<'t>,
    /// Where the last statement ended, behind its semicolon.
    position: usize,
}

impl<'t> Split<'t> {
    fn statement(&self, range: Range<usize>) -> Statement<'t> {
        Statement {
            text: self.text.get(range.clone()).unwrap_or_default(),
            leading: self
                .text
                .get(self.position..range.start)
                .unwrap_or_default(),
            range,
        }
    }
}

impl<'t> Iterator for Split<'t> {
    type Item = Result<Statement<'t>, LexError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut range: Option<Range<usize>> = None;
        let mut nesting = Nesting::default();
        while let Some(token) = self.lexer.next() {
            if token.is_comment() {
                continue;
            }
            if let Kind::Error(error) = token.kind {
                return Some(Err(error));
            }
            if nesting.ends_statement(&token) {
                let ended = range.take().map(|range| self.statement(range));
                self.position = token.end();
                if let Some(statement) = ended {
                    return Some(Ok(statement));
                }
                continue;
            }
            range = Some(range.map_or(token.start, |range| range.start)..token.end());
        }
        let statement = self.statement(range?);
        self.position = self.text.len();
        Some(Ok(statement))
    }
}

/// What a semicolon can be inside of: parentheses (CREATE RULE), and the body of a SQL function, from BEGIN ATOMIC to
/// END. By the grammar a body is BEGIN ATOMIC, then statements that each end with a semicolon, then END; so its END, and
/// no other (of a CASE, a label), stands directly behind a semicolon or ATOMIC. psql, which guesses here, is less exact.
#[derive(Debug, Default)]
struct Nesting {
    parentheses: usize,
    bodies: usize,
    header: Header,
    before: Before,
}

/// How far the words since the beginning of a statement are those of a routine's definition. Only there BEGIN ATOMIC
/// opens a body: elsewhere both can be names.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Header {
    #[default]
    Start,
    Create,
    CreateOr,
    CreateOrReplace,
    Routine,
    Other,
}

/// The token before.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Before {
    #[default]
    Any,
    Begin,
    /// A statement of a body, or the closing END, comes next.
    Body,
}

impl Nesting {
    /// Takes the next token; whether it is the semicolon behind a whole statement.
    fn ends_statement(&mut self, token: &Token<'_>) -> bool {
        let before = std::mem::take(&mut self.before);
        if token.is_sign("(") {
            self.parentheses += 1;
        } else if token.is_sign(")") {
            self.parentheses = self.parentheses.saturating_sub(1);
        } else if self.parentheses == 0 && token.is_sign(";") {
            self.header = Header::Start;
            self.before = Before::Body;
            return self.bodies == 0;
        } else if self.parentheses == 0 {
            self.word(token, before);
            return false;
        }
        self.header = self.header.after_other();
        false
    }

    fn word(&mut self, token: &Token<'_>, before: Before) {
        if self.header == Header::Routine {
            if before == Before::Begin && token.is_word("atomic") {
                self.bodies += 1;
                self.header = Header::Start;
                self.before = Before::Body;
            } else if token.is_word("begin") {
                self.before = Before::Begin;
            }
        } else if self.bodies > 0 && before == Before::Body && token.is_word("end") {
            self.bodies -= 1;
            // What follows still belongs to the definition.
            self.header = Header::Other;
        } else {
            self.header = self.header.after_word(token);
        }
    }
}

impl Header {
    fn after_word(self, token: &Token<'_>) -> Self {
        match self {
            Self::Start if token.is_word("create") => Self::Create,
            Self::Create if token.is_word("or") => Self::CreateOr,
            Self::CreateOr if token.is_word("replace") => Self::CreateOrReplace,
            Self::Create | Self::CreateOrReplace
                if token.is_word("function") || token.is_word("procedure") =>
            {
                Self::Routine
            }
            _ => self.after_other(),
        }
    }

    fn after_other(self) -> Self {
        match self {
            Self::Routine => Self::Routine,
            _ => Self::Other,
        }
    }
}
