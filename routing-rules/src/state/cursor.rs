//! Owns reading the tokens of one statement, one after the other.

use std::ops::Range;

use crate::lex::{Kind, Lexer, Token, unicode_value, value};

/// Where a reader is among the tokens of a statement.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'t> {
    tokens: Vec<Token<'t>>,
    position: usize,
}

impl<'t> Cursor<'t> {
    pub(super) fn new(statement: &'t [u8], standard_conforming_strings: bool) -> Self {
        Self {
            tokens: Lexer::new(statement, standard_conforming_strings)
                .significant()
                .collect(),
            position: 0,
        }
    }

    pub(super) fn peek(&self) -> Option<&Token<'t>> {
        self.peek_behind(0)
    }

    /// The token so many behind the next.
    pub(super) fn peek_behind(&self, distance: usize) -> Option<&Token<'t>> {
        self.tokens.get(self.position + distance)
    }

    pub(super) fn rest(&self) -> &[Token<'t>] {
        self.tokens.get(self.position..).unwrap_or_default()
    }

    /// From the next token to the last.
    pub(super) fn rest_range(&self) -> Option<Range<usize>> {
        let rest = self.rest();
        Some(rest.first()?.start..rest.last()?.end())
    }

    pub(super) fn skip(&mut self) {
        self.position += 1;
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.position >= self.tokens.len()
    }

    /// Nothing, if this was the last token.
    pub(super) fn end(&self) -> Option<()> {
        self.is_at_end().then_some(())
    }

    fn take_if(&mut self, is: impl Fn(&Token<'t>) -> bool) -> bool {
        let taken = self.peek().is_some_and(is);
        self.position += usize::from(taken);
        taken
    }

    /// Takes this word, if it is the next token.
    pub(super) fn word(&mut self, lower_case: &str) -> bool {
        self.take_if(|token| token.is_word(lower_case))
    }

    /// Takes these words, if they are the next tokens.
    pub(super) fn words(&mut self, lower_case: &[&str]) -> bool {
        let next = lower_case.iter().enumerate();
        let mut found = next.map(|(distance, word)| {
            self.peek_behind(distance)
                .is_some_and(|token| token.is_word(word))
        });
        let taken = found.all(|found| found);
        self.position += if taken { lower_case.len() } else { 0 };
        taken
    }

    /// Takes this operator or punctuation, if it is the next token.
    pub(super) fn sign(&mut self, sign: &str) -> bool {
        self.take_if(|token| token.is_sign(sign))
    }

    /// Takes a name: what it means.
    pub(super) fn name(&mut self) -> Option<Vec<u8>> {
        let token = *self.peek()?;
        match token.kind {
            Kind::Identifier | Kind::QuotedIdentifier => {
                self.skip();
                Some(value(&token).ok()?.into_owned())
            }
            Kind::UnicodeIdentifier => self.unicode(&token),
            _ => None,
        }
    }

    /// Takes a string of any form: what it means.
    pub(super) fn string(&mut self) -> Option<Vec<u8>> {
        let token = *self.peek()?;
        match token.kind {
            Kind::String | Kind::EscapeString | Kind::DollarString => {
                self.skip();
                Some(value(&token).ok()?.into_owned())
            }
            Kind::UnicodeString => self.unicode(&token),
            _ => None,
        }
    }

    pub(super) fn name_or_string(&mut self) -> Option<Vec<u8>> {
        self.name().or_else(|| self.string())
    }

    fn unicode(&mut self, token: &Token<'t>) -> Option<Vec<u8>> {
        self.skip();
        let mut escape = b'\\';
        if self.word("uescape") {
            let text = self.string()?;
            let &[byte] = text.as_slice() else {
                return None;
            };
            let forbidden = byte.is_ascii_hexdigit()
                || byte.is_ascii_whitespace()
                || matches!(byte, b'+' | b'\'' | b'"' | 0x0b);
            if forbidden {
                return None;
            }
            escape = byte;
        }
        Some(unicode_value(token, escape).ok()?.into_owned())
    }
}
