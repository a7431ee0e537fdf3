//! Owns how long a session's transactions and statements take, and what the log says of slow ones.
//!
//! A statement is logged without its literals and comments, so that no user's data comes into the log.

use std::time::Duration;

use tandem_routing_rules::lex::{Kind, Lexer};

use super::{
    owed::Status,
    task::{Place, Task},
};
use crate::{
    pool::add,
    timing::{self, Span},
};

/// Bytes of a statement that are looked at.
const TEXT_MAX: usize = 2048;

impl Task {
    /// A transaction begins, or goes on waiting for a server.
    pub(super) fn note_asked(&mut self) {
        self.asked.get_or_insert_with(timing::now);
    }

    /// It has a server.
    pub(super) fn note_served(&self) {
        if let Some(asked) = self.asked {
            let waited = timing::now().micros_since(asked);
            timing::record(self.node(), Span::Wait, waited);
        }
    }

    /// The server has got something to do; before it had nothing.
    pub(super) fn note_sent(&mut self) {
        let now = timing::now();
        self.asked.get_or_insert(now);
        self.sent = Some(now);
    }

    /// Keeps a statement's text for the case that it is slow.
    pub(super) fn note_text(&mut self, text: &[u8]) {
        if !self.slow_statement.get().is_zero() {
            let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
            self.text = text.get(..TEXT_MAX).unwrap_or(text).into();
        }
    }

    /// The server has done all that it had to do.
    pub(super) fn note_answered(&mut self, status: Status) {
        let Some(sent) = self.sent.take() else {
            return;
        };
        let text = std::mem::take(&mut self.text);
        let Place::Server(server) = &self.place else {
            return;
        };
        let (now, node) = (timing::now(), server.face.node);
        let counters = &server.face.counters;
        let took = now.micros_since(sent);
        timing::record(node, Span::Query, took);
        add(&counters.query_us, took);
        if status == Status::Idle
            && let Some(asked) = self.asked.take()
        {
            let took = now.micros_since(asked);
            timing::record(node, Span::Transaction, took);
            add(&counters.transaction_us, took);
        }
        let limit = self.slow_statement.get();
        if !limit.is_zero() && Duration::from_micros(took) >= limit {
            let key = self.pool.key();
            tracing::warn!(
                user = key.user,
                database = key.database,
                node = self.pool.node_name(),
                backend = server.face.pid,
                ms = took / 1000,
                statement = without_literals(&text),
                "slow statement"
            );
        }
    }
}

/// A statement without its literals and comments. What cannot be told from a literal is left out.
fn without_literals(text: &[u8]) -> String {
    let [plain, escaping] = [true, false].map(|conforming| template(text, conforming));
    if plain == escaping {
        return plain;
    }
    // It depends on a setting where a string ends: only the first word is none in any case.
    let first = Lexer::new(text, true).significant().next();
    let word = first.filter(|token| token.kind == Kind::Identifier);
    let word = word.map_or_else(String::new, |word| {
        String::from_utf8_lossy(word.text).into_owned()
    });
    format!("{word} …")
}

fn template(text: &[u8], standard_conforming_strings: bool) -> String {
    let mut template = String::new();
    let mut end = 0;
    for token in Lexer::new(text, standard_conforming_strings).significant() {
        if token.start > end && !template.is_empty() {
            template.push(' ');
        }
        end = token.end();
        match token.kind {
            Kind::String
            | Kind::EscapeString
            | Kind::UnicodeString
            | Kind::BitString
            | Kind::HexString
            | Kind::DollarString
            | Kind::Integer
            | Kind::Numeric => template.push('?'),
            Kind::Error(_) => {
                template.push('…');
                return template;
            }
            Kind::Identifier
            | Kind::QuotedIdentifier
            | Kind::UnicodeIdentifier
            | Kind::Parameter
            | Kind::Operator
            | Kind::Punctuation
            | Kind::Other
            | Kind::LineComment
            | Kind::BlockComment => template.push_str(&String::from_utf8_lossy(token.text)),
        }
    }
    template
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_literal_and_no_comment_is_logged() {
        for (text, wanted) in [
            ("SELECT  1", "SELECT ?"),
            (
                "UPDATE t SET a = 'secret', b=$1 -- secret\n WHERE id IN (7, 0x7, 1e5)",
                "UPDATE t SET a = ?, b=$1 WHERE id IN (?, ?, ?)",
            ),
            ("DO $x$ secret $x$", "DO ?"),
            ("SELECT E'a\\'secret', X'7'", "SELECT ?, ?"),
            ("SELECT 'secret that was cut", "SELECT …"),
            ("SELECT $x$secret that was cut", "SELECT …"),
            ("SELECT /* secret that was cut", "SELECT …"),
            ("SELECT 'a\\', ' secret ', 'b'", "SELECT …"),
            ("", ""),
        ] {
            assert_eq!(without_literals(text.as_bytes()), wanted, "{text}");
        }
    }
}
