//! Owns what the functions that a statement calls do to the session, and SELECT INTO.
//!
//! One pass over the tokens. A name before an opening parenthesis is taken for a call, unless it surely is none: so a name
//! that is not known gives a doubt too often rather than too seldom.

use std::{collections::HashSet, sync::LazyLock};

use super::{Doubt, Effects, Pin, homed::of_function};
use crate::lex::{Kind, Token};

/// Built-in functions that neither change what a session has nor answer differently in another one. A test compares them
/// with the servers' catalogs.
pub const HARMLESS_FUNCTIONS: &str = include_str!("harmless_functions.txt");

/// Words that may stand before a parenthesis without being a function's name: keywords, and functions and types that
/// the grammar itself knows.
const KEYWORDS: &str = "
    all analyze and any array as between bit both by case cast char character coalesce conflict copy cube current_time
    current_timestamp dec decimal distinct do else escape except execute exists explain extract fetch filter float from
    greatest group grouping having ilike in insert int integer intersect interval into join json_array json_arrayagg
    json_exists json_object json_objectagg json_query json_scalar json_serialize json_table json_value lateral leading
    least left like limit localtime localtimestamp materialized merge_action national nchar normalize not nullif numeric
    offset on only or over overlaps overlay position precision real returning right rollup row select set sets smallint
    some stdin stdout substring symmetric then time timestamp to trailing treat trim union using values varchar varying
    variadic when where with xmlattributes xmlconcat xmlelement xmlexists xmlforest xmlnamespaces xmlparse xmlpi xmlroot
    xmlserialize xmltable zone";

static HARMLESS: LazyLock<HashSet<&'static [u8]>> = LazyLock::new(|| {
    let words = HARMLESS_FUNCTIONS.split_ascii_whitespace();
    let words = words.chain(KEYWORDS.split_ascii_whitespace());
    words.map(str::as_bytes).collect()
});

/// What a scan looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Calls {
    /// All calls: those of functions that are not known give a doubt.
    All,
    /// Only those that are known to concern the session: in a text that need not be a query.
    Known,
}

/// What a scan found beside what it wrote down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Seen {
    pub(super) set_config: bool,
}

/// Looks through the tokens of one statement or a part of it.
pub(super) fn scan<'t>(
    tokens: impl Iterator<Item = Token<'t>>,
    calls: Calls,
    effects: &mut Effects,
) -> Seen {
    let mut seen = Seen::default();
    let mut before = Before::default();
    for token in tokens {
        if token.is_sign("(") {
            seen.set_config |= call(&before, calls, effects);
        } else if before.is_into_temporary(&token) {
            effects.pins.insert(Pin::TemporaryObject);
        } else if let Kind::Error(_) = token.kind {
            effects.doubt(Doubt::Syntax);
        }
        before.push(token);
    }
    seen
}

impl Effects {
    pub(super) fn doubt(&mut self, doubt: Doubt) {
        self.doubt = self.doubt.max(Some(doubt));
    }
}

/// How many tokens [`Before`] remembers.
const REMEMBERED: usize = 4;

/// The last tokens, in a ring: moving them along costs more than looking at them.
#[derive(Debug, Default)]
struct Before<'t> {
    ring: [Option<Token<'t>>; REMEMBERED],
    newest: usize,
}

impl<'t> Before<'t> {
    fn push(&mut self, token: Token<'t>) {
        self.newest = (self.newest + 1) % REMEMBERED;
        self.ring[self.newest] = Some(token);
    }

    /// The newest is at place 0.
    fn at(&self, place: usize) -> Option<&Token<'t>> {
        self.ring[(self.newest + REMEMBERED - place) % REMEMBERED].as_ref()
    }

    fn is_sign(&self, place: usize, sign: &str) -> bool {
        self.at(place).is_some_and(|token| token.is_sign(sign))
    }

    fn is_word(&self, place: usize, words: &[&str]) -> bool {
        self.at(place)
            .is_some_and(|token| words.iter().any(|word| token.is_word(word)))
    }

    /// SELECT .. INTO TEMP x: `token` is the x. A table can be named temp itself, but then no name follows.
    fn is_into_temporary(&self, token: &Token<'_>) -> bool {
        if !self.is_word(0, &["temp", "temporary"]) {
            return false;
        }
        let into = 1 + usize::from(self.is_word(1, &["local", "global"]));
        let clauses = [
            "from",
            "where",
            "group",
            "having",
            "window",
            "union",
            "intersect",
            "except",
            "order",
            "limit",
            "offset",
            "fetch",
            "for",
        ];
        self.is_word(into, &["into"])
            && !self.is_word(into + 1, &["insert", "merge"])
            && is_name(token)
            && !clauses.iter().any(|clause| token.is_word(clause))
    }

    /// Whether the name that ends here, before an opening parenthesis, and has so many tokens, is none of a function.
    fn is_no_call(&self, length: usize) -> bool {
        // Columns of a table, of an alias, of a WITH query; a type; arguments of a prepared statement.
        let introduced = ["into", "as", "with", "recursive", "copy", "execute"];
        self.is_word(length, &introduced) || self.is_sign(length, ")") || self.is_sign(length, "::")
    }
}

fn is_name(token: &Token<'_>) -> bool {
    matches!(
        token.kind,
        Kind::Identifier | Kind::QuotedIdentifier | Kind::UnicodeIdentifier
    )
}

/// A parenthesis opens behind these tokens; whether that calls `set_config`.
fn call(before: &Before<'_>, calls: Calls, effects: &mut Effects) -> bool {
    let Some(name) = before.at(0).filter(|token| is_name(token)) else {
        return false;
    };
    let qualifier = before
        .at(2)
        .filter(|token| before.is_sign(1, ".") && is_name(token));
    let mut buffer = [0; BUFFER];
    let mut qualifier_buffer = [0; BUFFER];
    let function = folded(name, &mut buffer);
    let is_catalog =
        qualifier.is_none_or(|token| folded(token, &mut qualifier_buffer) == Some(b"pg_catalog"));
    if is_catalog {
        let homed = function.and_then(of_function);
        effects.calls_homed = effects.calls_homed.max(homed);
        effects.calls_notify |= function == Some(b"pg_notify");
    }
    match function.and_then(pin_of) {
        Some(pin) => effects.pins.insert(pin),
        None if is_catalog && function == Some(b"set_config") => {
            return true;
        }
        None if calls == Calls::Known => {}
        None => {
            let length = if qualifier.is_some() { 3 } else { 1 };
            let is_harmless = is_catalog && function.is_some_and(|name| HARMLESS.contains(name));
            if !is_harmless && !before.is_no_call(length) {
                effects.doubt(Doubt::Function);
                let start = qualifier.map_or(name.start, |qualifier| qualifier.start);
                effects.unknown_functions.push(start..name.end());
            }
        }
    }
    false
}

/// No name of interest is longer.
const BUFFER: usize = 64;

/// What a name means, without an allocation; nothing if that takes more than folding.
fn folded<'b>(token: &Token<'_>, buffer: &'b mut [u8; BUFFER]) -> Option<&'b [u8]> {
    let text = match token.kind {
        Kind::Identifier => token.text,
        Kind::QuotedIdentifier => token.text.strip_prefix(b"\"")?.strip_suffix(b"\"")?,
        _ => return None,
    };
    let folded = buffer.get_mut(..text.len())?;
    folded.copy_from_slice(text);
    match token.kind {
        Kind::Identifier => folded.make_ascii_lowercase(),
        _ if text.contains(&b'"') => return None,
        _ => {}
    }
    Some(folded)
}

/// What a function pins, in whatever schema it is.
fn pin_of(function: &[u8]) -> Option<Pin> {
    Some(match function {
        b"pg_advisory_lock"
        | b"pg_advisory_lock_shared"
        | b"pg_try_advisory_lock"
        | b"pg_try_advisory_lock_shared" => Pin::SessionAdvisoryLock,
        b"currval" | b"lastval" => Pin::SequenceValue,
        b"setseed" => Pin::RandomSeed,
        b"dblink_connect" | b"dblink_connect_u" => Pin::ForeignConnection,
        b"pg_replication_origin_session_setup" => Pin::ReplicationOrigin,
        b"pg_export_snapshot" => Pin::ExportedSnapshot,
        b"loread" | b"lowrite" => Pin::LargeObject,
        _ if function.starts_with(b"lo_") => Pin::LargeObject,
        _ => return None,
    })
}
