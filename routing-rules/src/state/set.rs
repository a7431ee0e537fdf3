//! Owns reading SET, RESET and `set_config`.

use super::{
    Change, Doubt, Effect, Effects, Modes, Pin, Scope, Transaction, Value,
    cursor::Cursor,
    parse::modes,
    settings::{is_list_of_names, normalized},
};
use crate::lex::Kind;

/// SET, from behind that word on. Nothing if it is not understood.
pub(super) fn set(cursor: &mut Cursor<'_>, effects: &mut Effects) -> Option<()> {
    let mut scope = Scope::Session;
    if !is_assignment(cursor) {
        if cursor.word("local") {
            scope = Scope::Local;
        } else if !session_phrase(cursor) {
            cursor.word("session");
        }
    }
    if !is_assignment(cursor) {
        if cursor.words(&["session", "characteristics", "as", "transaction"]) {
            characteristics(modes(cursor)?, scope, effects);
            return Some(());
        }
        if cursor.word("transaction") {
            let transaction = if cursor.word("snapshot") {
                Transaction::Snapshot(cursor.string()?)
            } else {
                Transaction::Modes(modes(cursor)?)
            };
            effects.effect = Effect::Transaction(transaction);
            return cursor.end();
        }
    }
    let change = match special(cursor)? {
        Some((name, value)) => Change::Set { name, value, scope },
        None => assignment(cursor, scope)?,
    };
    cursor.end()?;
    changed(change, effects);
    Some(())
}

/// Whether the next words are a form of SET that begins with SESSION itself.
fn session_phrase(cursor: &Cursor<'_>) -> bool {
    let second = cursor.peek_behind(1);
    let is = |word: &str| second.is_some_and(|token| token.is_word(word));
    is("characteristics") || is("authorization")
}

/// Whether what follows is a setting's name and not one of the forms with words of their own: such a word is the name if
/// a value or a part of a name comes behind it.
fn is_assignment(cursor: &Cursor<'_>) -> bool {
    let Some(next) = cursor.peek_behind(1) else {
        return false;
    };
    next.is_sign("=") || next.is_sign(".") || next.is_word("to") || next.is_word("from")
}

/// The forms with words of their own. Nothing inside if it is none of them, nothing at all if it is not understood.
#[expect(
    clippy::option_option,
    reason = "not understood, and none of them, are two things"
)]
fn special(cursor: &mut Cursor<'_>) -> Option<Option<(Vec<u8>, Value)>> {
    if is_assignment(cursor) {
        return Some(None);
    }
    let (name, value) = if cursor.words(&["time", "zone"]) {
        ("timezone", zone(cursor)?)
    } else if cursor.word("names") {
        let is_default = cursor.is_at_end() || cursor.word("default");
        let value = if is_default {
            Value::Default
        } else {
            Value::Text(cursor.string()?)
        };
        ("client_encoding", value)
    } else if cursor.word("schema") {
        ("search_path", Value::List(vec![cursor.string()?]))
    } else if cursor.word("role") {
        ("role", Value::Text(cursor.name_or_string()?))
    } else if cursor.words(&["session", "authorization"]) {
        let value = if cursor.word("default") {
            Value::Default
        } else {
            Value::Text(cursor.name_or_string()?)
        };
        ("session_authorization", value)
    } else if cursor.words(&["xml", "option"]) {
        let is_document = cursor.word("document");
        if !is_document && !cursor.word("content") {
            return None;
        }
        let option = if is_document { "document" } else { "content" };
        ("xmloption", Value::Text(option.into()))
    } else {
        return Some(None);
    };
    Some(Some((name.into(), value)))
}

/// What SET TIME ZONE can be followed by.
fn zone(cursor: &mut Cursor<'_>) -> Option<Value> {
    if cursor.word("default") || cursor.word("local") {
        return Some(Value::Default);
    }
    if cursor.word("interval") {
        while !matches!(cursor.peek()?.kind, Kind::String | Kind::EscapeString) {
            cursor.skip();
        }
        let interval = cursor.string()?;
        // HOUR TO MINUTE and the like.
        while !cursor.is_at_end() {
            cursor.skip();
        }
        let text = [b"INTERVAL '", interval.as_slice(), b"'"].concat();
        return Some(Value::Text(text));
    }
    element(cursor).map(Value::Text)
}

/// `name = values`, `name TO values`, `name FROM CURRENT`.
fn assignment(cursor: &mut Cursor<'_>, scope: Scope) -> Option<Change> {
    let name = name(cursor)?;
    if cursor.words(&["from", "current"]) {
        return Some(Change::FromCurrent { name, scope });
    }
    if !cursor.sign("=") && !cursor.word("to") {
        return None;
    }
    if cursor.word("default") {
        let value = Value::Default;
        return Some(Change::Set { name, value, scope });
    }
    let mut elements = vec![element(cursor)?];
    while cursor.sign(",") {
        elements.push(element(cursor)?);
    }
    let value = if is_list_of_names(&name) {
        Value::List(elements)
    } else {
        Value::Text(elements.join(&b", "[..]))
    };
    Some(Change::Set { name, value, scope })
}

/// One value of SET, as the server turns it into text.
fn element(cursor: &mut Cursor<'_>) -> Option<Vec<u8>> {
    if let Some(text) = cursor.name_or_string() {
        return Some(text);
    }
    let is_negative = cursor.sign("-");
    if !is_negative {
        cursor.sign("+");
    }
    let token = *cursor.peek()?;
    let number = match token.kind {
        Kind::Integer => integer(token.text),
        Kind::Numeric => token.text.to_vec(),
        _ => return None,
    };
    cursor.skip();
    let sign: &[u8] = if is_negative { b"-" } else { b"" };
    Some([sign, number.as_slice()].concat())
}

/// What fits into 32 bits is a number for the grammar, in decimal from then on; what does not stays as it is written.
fn integer(text: &[u8]) -> Vec<u8> {
    let (radix, digits) = match text {
        [b'0', b'x' | b'X', digits @ ..] => (16, digits),
        [b'0', b'o' | b'O', digits @ ..] => (8, digits),
        [b'0', b'b' | b'B', digits @ ..] => (2, digits),
        digits => (10, digits),
    };
    let digits: String = digits
        .iter()
        .filter(|&&digit| digit != b'_')
        .map(|&digit| char::from(digit))
        .collect();
    i32::from_str_radix(&digits, radix)
        .map_or_else(|_| text.to_vec(), |number| number.to_string().into_bytes())
}

/// A setting's name: identifiers with points between them.
pub(super) fn name(cursor: &mut Cursor<'_>) -> Option<Vec<u8>> {
    let mut name = cursor.name()?;
    while cursor.sign(".") {
        name.push(b'.');
        name.extend(cursor.name()?);
    }
    Some(normalized(&name))
}

/// The name of a setting that RESET and SHOW know in words.
pub(super) fn spoken_name(cursor: &mut Cursor<'_>) -> Option<Vec<u8>> {
    let forms = [
        (&["time", "zone"][..], "timezone"),
        (
            &["transaction", "isolation", "level"],
            "transaction_isolation",
        ),
        (&["session", "authorization"], "session_authorization"),
    ];
    let found = forms.into_iter().find(|(words, _)| cursor.words(words));
    found.map(|(_, name)| name.into())
}

/// RESET, from behind that word on. Nothing if it is not understood.
pub(super) fn reset(cursor: &mut Cursor<'_>, effects: &mut Effects) -> Option<()> {
    let change = if cursor.word("all") {
        Change::ResetAll
    } else {
        Change::Set {
            name: spoken_name(cursor).or_else(|| name(cursor))?,
            value: Value::Default,
            scope: Scope::Session,
        }
    };
    cursor.end()?;
    changed(change, effects);
    Some(())
}

/// SET SESSION CHARACTERISTICS.
fn characteristics(modes: Modes, scope: Scope, effects: &mut Effects) {
    let on_off = |on: bool| if on { "on" } else { "off" };
    let isolation = modes.isolation.map(super::Isolation::name);
    let values = [
        ("default_transaction_isolation", isolation),
        ("default_transaction_read_only", modes.read_only.map(on_off)),
        (
            "default_transaction_deferrable",
            modes.deferrable.map(on_off),
        ),
    ];
    for (name, value) in values {
        if let Some(value) = value {
            let (name, value) = (name.into(), Value::Text(value.into()));
            effects.changes.push(Change::Set { name, value, scope });
        }
    }
}

/// Writes a change down, with what it pins.
fn changed(change: Change, effects: &mut Effects) {
    if let Change::Set { name, value, .. } = &change {
        if name == b"seed" {
            effects.pins.insert(Pin::RandomSeed);
        }
        if name == b"search_path" && is_temporary_first(value) {
            effects.pins.insert(Pin::TemporaryObject);
        }
    }
    effects.changes.push(change);
}

/// Whether new objects go to the temporary schema with this `search_path`.
#[must_use]
pub fn is_temporary_first(search_path: &Value) -> bool {
    let first = match search_path {
        Value::Default => return false,
        Value::List(names) => names.first().map(Vec::as_slice),
        Value::Text(text) => text.split(|&byte| byte == b',').next(),
    };
    first.is_some_and(|first| {
        let first = first.trim_ascii();
        let first = first.strip_prefix(b"\"").unwrap_or(first);
        let first = first.strip_suffix(b"\"").unwrap_or(first);
        first.eq_ignore_ascii_case(b"pg_temp")
    })
}

/// A query that calls `set_config`: certain if it is `SELECT set_config(..), ..` and nothing else, with literals or
/// parameters.
pub(super) fn config_call(mut cursor: Cursor<'_>, effects: &mut Effects) {
    let Some(calls) = config_calls(&mut cursor) else {
        effects.doubt(Doubt::SetConfig);
        return;
    };
    if calls.iter().any(ConfigCall::has_parameter) {
        effects.unbound = calls;
        *effects = std::mem::take(effects).bind(|_| None);
    } else {
        calls.into_iter().for_each(|call| configured(call, effects));
    }
}

impl Effects {
    /// The effects where these are the values of `$1` and so on, as text or as they are sent in binary format; NULL is
    /// `Some(None)`, and what is not known `None`. Only calls of `set_config` depend on them.
    #[must_use]
    pub fn bind<'v>(mut self, value_of: impl Fn(u16) -> Option<Option<&'v [u8]>>) -> Self {
        if self.unbound.is_empty() {
            return self;
        }
        // A statement with such calls has no other effects.
        let mut bound = Self::default();
        for call in &self.unbound {
            configured(call.bound(&value_of), &mut bound);
        }
        bound.unbound = std::mem::take(&mut self.unbound);
        bound
    }
}

/// One call of `set_config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConfigCall {
    name: Argument<Value>,
    value: Argument<Value>,
    scope: Argument<Scope>,
}

/// An argument: a literal, or a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Argument<T> {
    Known(T),
    Parameter(u16),
}

impl ConfigCall {
    fn has_parameter(&self) -> bool {
        let names = [&self.name, &self.value];
        names
            .iter()
            .any(|argument| matches!(argument, Argument::Parameter(_)))
            || matches!(self.scope, Argument::Parameter(_))
    }

    fn bound<'v>(&self, value_of: &impl Fn(u16) -> Option<Option<&'v [u8]>>) -> Self {
        let text = |argument: &Argument<Value>| match argument {
            Argument::Parameter(number) => match value_of(*number) {
                Some(Some(text)) => Argument::Known(Value::Text(text.into())),
                Some(None) => Argument::Known(Value::Default),
                None => Argument::Parameter(*number),
            },
            Argument::Known(value) => Argument::Known(value.clone()),
        };
        let scope = match &self.scope {
            Argument::Parameter(number) => match value_of(*number) {
                // NULL is false here.
                Some(None) => Some(Scope::Session),
                Some(Some([0])) => Some(Scope::Session),
                Some(Some([1])) => Some(Scope::Local),
                Some(Some(text)) => scope_of(text),
                None => None,
            }
            .map_or(Argument::Parameter(*number), Argument::Known),
            Argument::Known(scope) => Argument::Known(*scope),
        };
        Self {
            name: text(&self.name),
            value: text(&self.value),
            scope,
        }
    }
}

/// Writes down what a call does, as far as it is known.
fn configured(call: ConfigCall, effects: &mut Effects) {
    match (call.name, call.value, call.scope) {
        (Argument::Known(Value::Text(name)), Argument::Known(value), Argument::Known(scope)) => {
            let name = normalized(&name);
            changed(Change::Set { name, value, scope }, effects);
        }
        (_, _, Argument::Known(Scope::Local)) => effects.doubt(Doubt::LocalSetting),
        _ => effects.doubt(Doubt::SetConfig),
    }
}

/// What `is_local` says; nothing if it is none of the words for true and false.
fn scope_of(text: &[u8]) -> Option<Scope> {
    Some(match text.trim_ascii().to_ascii_lowercase().as_slice() {
        b"t" | b"true" | b"on" | b"y" | b"yes" | b"1" => Scope::Local,
        b"f" | b"false" | b"off" | b"n" | b"no" | b"0" => Scope::Session,
        _ => return None,
    })
}

fn config_calls(cursor: &mut Cursor<'_>) -> Option<Vec<ConfigCall>> {
    cursor.word("select").then_some(())?;
    let mut calls = Vec::new();
    loop {
        let mut function = cursor.name()?;
        if cursor.sign(".") && function == b"pg_catalog" {
            function = cursor.name()?;
        }
        (function == b"set_config" && cursor.sign("(")).then_some(())?;
        let name = argument(cursor)?;
        cursor.sign(",").then_some(())?;
        let value = argument(cursor)?;
        cursor.sign(",").then_some(())?;
        let scope = local(cursor)?;
        cursor.sign(")").then_some(())?;
        calls.push(ConfigCall { name, value, scope });
        if cursor.word("as") {
            cursor.name()?;
        }
        if !cursor.sign(",") {
            break;
        }
    }
    cursor.end()?;
    Some(calls)
}

fn argument(cursor: &mut Cursor<'_>) -> Option<Argument<Value>> {
    let argument = if let Some(text) = cursor.string() {
        Argument::Known(Value::Text(text))
    } else if cursor.word("null") {
        Argument::Known(Value::Default)
    } else {
        Argument::Parameter(parameter(cursor)?)
    };
    cast(cursor, &["text", "varchar"])?;
    Some(argument)
}

fn local(cursor: &mut Cursor<'_>) -> Option<Argument<Scope>> {
    let argument = if cursor.word("true") {
        Argument::Known(Scope::Local)
    } else if cursor.word("false") {
        Argument::Known(Scope::Session)
    } else if let Some(text) = cursor.string() {
        Argument::Known(scope_of(&text)?)
    } else {
        Argument::Parameter(parameter(cursor)?)
    };
    cast(cursor, &["bool", "boolean"])?;
    Some(argument)
}

/// Takes a parameter: its number.
fn parameter(cursor: &mut Cursor<'_>) -> Option<u16> {
    let token = cursor
        .peek()
        .filter(|token| token.kind == Kind::Parameter)?;
    let number = std::str::from_utf8(token.text.get(1..)?)
        .ok()?
        .parse()
        .ok()?;
    cursor.skip();
    Some(number)
}

/// `::type`, which may be left out.
fn cast(cursor: &mut Cursor<'_>, types: &[&str]) -> Option<()> {
    if cursor.sign("::") {
        types.iter().any(|name| cursor.word(name)).then_some(())?;
    }
    Some(())
}
