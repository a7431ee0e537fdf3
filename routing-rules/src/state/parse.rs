//! Owns reading what one statement does to the session.

use super::{
    Discard, Doubt, Effect, Effects, Isolation, Modes, Names, Pin, Pins, Transaction,
    cursor::Cursor,
    functions::{Calls, scan},
    set,
};
use crate::lex::{Lexer, Token, value};

/// What a statement does to the session if it succeeds. `statement` is one statement, as [`split`](crate::lex::split) or
/// a Parse message gives it.
///
/// A query is looked through once, for the functions that it calls; where none concerns the session nothing is allocated.
/// A statement that the server refuses may have any effects.
///
/// ```
/// use tandem_routing_rules::state::{Pin, effects};
///
/// assert_eq!(effects(b"SELECT count(*) FROM t WHERE id = 7", true), Default::default());
/// assert!(effects(b"SELECT pg_advisory_lock(7)", true).pins.contains(Pin::SessionAdvisoryLock));
/// ```
#[must_use]
pub fn effects(statement: &[u8], standard_conforming_strings: bool) -> Effects {
    let mut effects = Effects::default();
    let lexer = Lexer::new(statement, standard_conforming_strings);
    let Some(first) = lexer.clone().significant().next() else {
        return effects;
    };
    let mut buffer = [0; KEYWORD_LENGTH_MAX];
    let keyword = buffer.get_mut(..first.text.len()).map(|word| {
        word.copy_from_slice(first.text);
        word.make_ascii_lowercase();
        &*word
    });
    match keyword {
        Some(b"select" | b"with" | b"values" | b"(") => {
            let seen = scan(lexer.significant(), Calls::All, &mut effects);
            if seen.set_config {
                let cursor = Cursor::new(statement, standard_conforming_strings);
                set::config_call(cursor, &mut effects);
            }
        }
        Some(b"insert" | b"update" | b"delete" | b"merge" | b"table" | b"copy") => {
            query(lexer, Calls::All, &mut effects)
        }
        Some(keyword) => {
            let mut cursor = Cursor::new(statement, standard_conforming_strings);
            cursor.skip();
            if command(keyword, &mut cursor, &mut effects).is_none() {
                effects.doubt(Doubt::Syntax);
            }
        }
        // No keyword is that long.
        None => effects.doubt(Doubt::Syntax),
    }
    effects
}

/// `transaction` and `deallocate` are shorter.
const KEYWORD_LENGTH_MAX: usize = 16;

/// What is called by a text of which `set_config` is no certain part.
fn query<'t>(tokens: impl Iterator<Item = Token<'t>>, calls: Calls, effects: &mut Effects) {
    let tokens = tokens.filter(|token| !token.is_comment());
    if scan(tokens, calls, effects).set_config {
        effects.doubt(Doubt::SetConfig);
    }
}

/// The statement that begins with `keyword`, from behind that on. Nothing if it is not understood.
fn command(keyword: &[u8], cursor: &mut Cursor<'_>, effects: &mut Effects) -> Option<()> {
    match keyword {
        b"begin" | b"start" | b"commit" | b"end" | b"rollback" | b"abort" | b"savepoint"
        | b"release" => {
            effects.effect = Effect::Transaction(transaction(keyword, cursor)?);
        }
        b"set" => set::set(cursor, effects)?,
        b"reset" => set::reset(cursor, effects)?,
        b"show" => effects.effect = Effect::Show(show(cursor)?),
        b"prepare" => effects.effect = prepare(cursor)?,
        b"execute" => {
            effects.effect = Effect::Execute(cursor.name()?);
            query(cursor.rest().iter().copied(), Calls::All, effects);
        }
        b"deallocate" => {
            // A prepared statement can be named prepare.
            if cursor.peek_behind(1).is_some() {
                cursor.word("prepare");
            }
            effects.effect = Effect::Deallocate(names(cursor, "all")?);
        }
        b"declare" => declare(cursor, effects)?,
        b"close" => {
            let names = names(cursor, "all")?;
            if names == Names::All {
                effects.releases.insert(Pin::HeldCursor);
            }
            effects.effect = Effect::Close(names);
        }
        b"listen" => {
            effects.effect = Effect::Listen(cursor.name()?);
            effects.pins.insert(Pin::Listen);
        }
        b"unlisten" => {
            let names = if cursor.sign("*") {
                effects.releases.insert(Pin::Listen);
                Names::All
            } else {
                Names::One(cursor.name()?)
            };
            effects.effect = Effect::Unlisten(names);
        }
        b"notify" => effects.effect = Effect::Notify(cursor.name()?),
        b"load" => {
            effects.effect = Effect::Load;
            effects.pins.insert(Pin::LoadedLibrary);
        }
        b"discard" => discard(cursor, effects)?,
        b"do" => effects.doubt(Doubt::Do),
        b"call" => {
            effects.doubt(Doubt::Call);
            query(cursor.rest().iter().copied(), Calls::Known, effects);
        }
        b"create" => create(cursor, effects),
        b"explain" => explain(cursor, effects),
        _ => query(cursor.rest().iter().copied(), Calls::Known, effects),
    }
    Some(())
}

fn transaction(keyword: &[u8], cursor: &mut Cursor<'_>) -> Option<Transaction> {
    let is_rollback = matches!(keyword, b"rollback" | b"abort");
    let found = match keyword {
        b"savepoint" => Transaction::Savepoint(cursor.name()?),
        b"release" => {
            savepoint_word(cursor);
            Transaction::Release(cursor.name()?)
        }
        b"start" => {
            cursor.word("transaction").then_some(())?;
            Transaction::Begin(modes(cursor)?)
        }
        b"begin" => {
            work(cursor);
            Transaction::Begin(modes(cursor)?)
        }
        b"rollback" if cursor.word("prepared") => Transaction::RollbackPrepared(cursor.string()?),
        b"commit" if cursor.word("prepared") => Transaction::CommitPrepared(cursor.string()?),
        _ => {
            work(cursor);
            if keyword == b"rollback" && cursor.word("to") {
                savepoint_word(cursor);
                Transaction::RollbackTo(cursor.name()?)
            } else {
                let mut chain = false;
                if cursor.word("and") {
                    chain = !cursor.word("no");
                    cursor.word("chain").then_some(())?;
                }
                if is_rollback {
                    Transaction::Rollback { chain }
                } else {
                    Transaction::Commit { chain }
                }
            }
        }
    };
    cursor.end()?;
    Some(found)
}

fn work(cursor: &mut Cursor<'_>) {
    if !cursor.word("work") {
        cursor.word("transaction");
    }
}

/// SAVEPOINT, where it is not the savepoint's name.
fn savepoint_word(cursor: &mut Cursor<'_>) {
    if cursor.peek_behind(1).is_some() {
        cursor.word("savepoint");
    }
}

/// The modes of a transaction up to the end of the statement.
pub(super) fn modes(cursor: &mut Cursor<'_>) -> Option<Modes> {
    let mut modes = Modes::default();
    while !cursor.is_at_end() {
        if cursor.words(&["isolation", "level"]) {
            modes.isolation = Some(isolation(cursor)?);
        } else if cursor.words(&["read", "only"]) {
            modes.read_only = Some(true);
        } else if cursor.words(&["read", "write"]) {
            modes.read_only = Some(false);
        } else if cursor.word("deferrable") {
            modes.deferrable = Some(true);
        } else if cursor.words(&["not", "deferrable"]) {
            modes.deferrable = Some(false);
        } else {
            return None;
        }
        cursor.sign(",");
    }
    Some(modes)
}

fn isolation(cursor: &mut Cursor<'_>) -> Option<Isolation> {
    let levels = [
        (&["read", "uncommitted"][..], Isolation::ReadUncommitted),
        (&["read", "committed"], Isolation::ReadCommitted),
        (&["repeatable", "read"], Isolation::RepeatableRead),
        (&["serializable"], Isolation::Serializable),
    ];
    let found = levels.into_iter().find(|(words, _)| cursor.words(words));
    found.map(|(_, level)| level)
}

/// ALL, or a name, at the end of the statement.
fn names(cursor: &mut Cursor<'_>, all: &str) -> Option<Names> {
    let names = if cursor.word(all) {
        Names::All
    } else {
        Names::One(cursor.name()?)
    };
    cursor.end()?;
    Some(names)
}

fn show(cursor: &mut Cursor<'_>) -> Option<Names> {
    Some(if cursor.word("all") {
        Names::All
    } else {
        Names::One(set::spoken_name(cursor).or_else(|| set::name(cursor))?)
    })
}

/// PREPARE of a statement, or of the transaction.
fn prepare(cursor: &mut Cursor<'_>) -> Option<Effect> {
    let is_transaction = cursor
        .peek_behind(1)
        .is_some_and(|next| !next.is_word("as") && !next.is_sign("("));
    if is_transaction && cursor.word("transaction") {
        let gid = cursor.string()?;
        cursor.end()?;
        return Some(Effect::Transaction(Transaction::Prepare(gid)));
    }
    let name = cursor.name()?;
    let mut depth = 0_usize;
    while depth > 0 || !cursor.word("as") {
        let token = cursor.peek()?;
        if token.is_sign("(") {
            depth += 1;
        } else if token.is_sign(")") {
            depth = depth.saturating_sub(1);
        }
        cursor.skip();
    }
    Some(Effect::Prepare {
        name,
        statement: cursor.rest_range()?,
    })
}

fn declare(cursor: &mut Cursor<'_>, effects: &mut Effects) -> Option<()> {
    let name = cursor.name()?;
    while !cursor.word("cursor") {
        cursor.peek()?;
        cursor.skip();
    }
    let hold = cursor.words(&["with", "hold"]);
    if !hold {
        cursor.words(&["without", "hold"]);
    }
    cursor.word("for").then_some(())?;
    effects.effect = Effect::Declare { name, hold };
    if hold {
        effects.pins.insert(Pin::HeldCursor);
    }
    query(cursor.rest().iter().copied(), Calls::All, effects);
    Some(())
}

fn discard(cursor: &mut Cursor<'_>, effects: &mut Effects) -> Option<()> {
    let what = if cursor.word("all") {
        effects.releases = [
            Pin::TemporaryObject,
            Pin::SessionAdvisoryLock,
            Pin::HeldCursor,
            Pin::Listen,
            Pin::SequenceValue,
        ]
        .into_iter()
        .collect();
        Discard::All
    } else if cursor.word("plans") {
        Discard::Plans
    } else if cursor.word("sequences") {
        effects.releases.insert(Pin::SequenceValue);
        Discard::Sequences
    } else if cursor.word("temp") || cursor.word("temporary") {
        effects.releases.insert(Pin::TemporaryObject);
        Discard::Temporary
    } else {
        return None;
    };
    effects.effect = Effect::Discard(what);
    cursor.end()
}

fn create(cursor: &mut Cursor<'_>, effects: &mut Effects) {
    cursor.words(&["or", "replace"]);
    if !cursor.word("global") {
        cursor.word("local");
    }
    let mut is_temporary = cursor.word("temporary") || cursor.word("temp");
    let is_query = !cursor.is_at_end() && {
        cursor.word("unlogged");
        cursor.word("table") || cursor.words(&["materialized", "view"])
    };
    let rest = cursor.rest();
    let mut pairs = rest.iter().zip(rest.iter().skip(1));
    is_temporary |= pairs.any(|(schema, point)| {
        let is_schema = schema.is_word("pg_temp") || schema.text == b"\"pg_temp\"";
        is_schema && point.is_sign(".")
    });
    let drops = rest.windows(3).any(|words| {
        let mut drop = words.iter().zip(["on", "commit", "drop"]);
        drop.all(|(token, word)| token.is_word(word))
    });
    if is_temporary && !drops {
        effects.pins.insert(Pin::TemporaryObject);
    }
    // The bodies of routines, views and rules do not run now.
    if !is_query {
        return;
    }
    let queries = ["select", "with", "values", "table", "execute"];
    let begins = |place: usize| {
        let next = rest.get(place + 1);
        rest.get(place).is_some_and(|token| token.is_word("as"))
            && next.is_some_and(|next| {
                next.is_sign("(") || queries.iter().any(|query| next.is_word(query))
            })
    };
    let Some(place) = (0..rest.len()).find(|&place| begins(place)) else {
        return;
    };
    let behind = rest.get(place + 1..).unwrap_or_default();
    executed(behind, effects);
    query(behind.iter().copied(), Calls::All, effects);
}

/// EXPLAIN, whose ANALYZE runs the statement. That is looked for nowhere: what the statement would do is told anyway.
fn explain(cursor: &Cursor<'_>, effects: &mut Effects) {
    let rest = cursor.rest();
    let inner = rest.iter().position(|token| token.is_word("execute"));
    executed(
        inner
            .and_then(|place| rest.get(place..))
            .unwrap_or_default(),
        effects,
    );
    let is_create = rest.iter().any(|token| token.is_word("create"));
    let is_temporary = |token: &Token<'_>| token.is_word("temp") || token.is_word("temporary");
    if is_create && rest.iter().any(is_temporary) {
        effects.pins.insert(Pin::TemporaryObject);
    }
    query(rest.iter().copied(), Calls::All, effects);
}

/// The EXECUTE that stands inside of another statement.
fn executed(tokens: &[Token<'_>], effects: &mut Effects) {
    if let [execute, name, ..] = tokens
        && execute.is_word("execute")
        && let Ok(name) = value(name)
    {
        effects.effect = Effect::Execute(name.into_owned());
    }
}

impl Effects {
    /// Whether it raises a notification, as far as its text says.
    #[must_use]
    pub fn notifies(&self) -> bool {
        self.calls_notify || matches!(self.effect, Effect::Notify(_))
    }

    /// What keeps the session where it is, after this statement, if these did before. What a transaction releases counts
    /// from its commit on; what it pins may be kept although it is rolled back.
    #[must_use]
    pub fn pins_after(&self, before: Pins) -> Pins {
        before.without(self.releases).with(self.pins)
    }
}
