//! Owns what to send to a server connection so that it has the settings that a session wants.

use std::collections::BTreeSet;

use super::{
    Value,
    settings::{Identity, ROLE, SESSION_AUTHORIZATION, Settings, is_list_of_names},
    startup::Startup,
};

/// The statements that give `server`, a connection on which no transaction is open, what is committed in `wanted`. Sent
/// as one string they are one transaction.
///
/// Each setting is set by whom the session itself was when it set it, since that role may be the only one that is
/// allowed to; the session authorization and the role come last. What neither a session nor its login set is reset on the
/// server: it is left to the server's configuration. So is what the session's first server reported and this one does not,
/// because majors report more and more (`scram_iterations` from 16 on, `search_path` from 18 on).
///
/// A role that the session took while SET LOCAL SESSION AUTHORIZATION made it somebody else for a transaction can be one
/// that its own authorization is not allowed to take: then the server refuses the SET ROLE.
///
/// RESET gives on a server what *its* login had. So after a RESET of the session's there can be a difference between
/// the two even if both were applied.
///
/// ```
/// use tandem_routing_rules::state::{Settings, Status, difference, effects};
///
/// let (server, mut wanted) = (Settings::default(), Settings::default());
/// wanted.apply(&effects(b"SET work_mem = '64MB'", true));
/// wanted.ready(Status::Idle)?;
/// assert_eq!(difference(&server, &wanted), [b"SET \"work_mem\" TO '64MB'".to_vec()]);
/// # Ok::<(), tandem_routing_rules::state::Disagreement>(())
/// ```
#[must_use]
pub fn difference(server: &Settings, wanted: &Settings) -> Vec<Vec<u8>> {
    let mut changes = changes(server, wanted);
    let (from, to) = (committed_identity(server), committed_identity(wanted));
    if changes.is_empty() && from == to {
        return Vec::new();
    }
    let mut statements = Vec::new();
    let mut current = from;
    loop {
        let (now, later): (Vec<_>, Vec<_>) = changes
            .into_iter()
            .partition(|(identity, _)| *identity == current);
        statements.extend(now.into_iter().map(|(_, statement)| statement));
        changes = later;
        // The wanted one last.
        let next = changes.iter().map(|(identity, _)| identity);
        let next = next
            .clone()
            .find(|&identity| *identity != to)
            .unwrap_or(&to)
            .clone();
        if next == current {
            return statements;
        }
        become_identity(&mut current, next, &mut statements);
    }
}

/// What to set and to reset, each with who may do it.
fn changes(server: &Settings, wanted: &Settings) -> Vec<(Identity, Vec<u8>)> {
    let keys = [server.layer().keys(), wanted.layer().keys()];
    let names: BTreeSet<&Vec<u8>> = keys
        .into_iter()
        .flatten()
        .chain(wanted.startup().keys())
        .collect();
    let names = names
        .into_iter()
        .filter(|name| *name != ROLE && *name != SESSION_AUTHORIZATION);
    // Values are in the session's encoding.
    let (encoding, others): (Vec<_>, Vec<_>) = names.partition(|name| *name == b"client_encoding");
    let names = encoding.into_iter().chain(others);
    names
        .filter_map(|name| {
            let value = wanted.committed(name);
            if value == server.committed(name) || is_unknown_there(server, wanted, name) {
                return None;
            }
            let on_server = server.layer().get(name);
            let at_login = server.startup().get(name).map(|startup| &startup.value);
            let is_reset = *value == Value::Default || at_login == Some(value);
            match on_server {
                Some(setting) if is_reset => {
                    let reset = [b"RESET ", quoted_name(name).as_slice()].concat();
                    Some((setting.by.clone(), reset))
                }
                None if is_reset => None,
                _ => {
                    let Some(setting) = wanted.layer().get(name) else {
                        let set = set(name, value, ascii_literal);
                        return Some((Identity::default(), set));
                    };
                    Some((setting.by.clone(), set(name, value, literal)))
                }
            }
        })
        .collect()
}

/// Whether the session only has it because its first server reported it, as this one does not: an older major may not know it.
fn is_unknown_there(server: &Settings, wanted: &Settings, name: &[u8]) -> bool {
    let is_reported = |startup: &Startup| startup.is_reported;
    wanted.startup().get(name).is_some_and(is_reported)
        && !server.startup().contains_key(name)
        && [server, wanted]
            .iter()
            .all(|settings| !settings.layer().contains_key(name))
}

fn committed_identity(settings: &Settings) -> Identity {
    let value = |name: &[u8]| {
        let setting = settings.layer().get(name);
        setting
            .map(|setting| setting.value.clone())
            .unwrap_or_default()
    };
    Identity {
        authorization: value(SESSION_AUTHORIZATION),
        role: value(ROLE),
    }
}

/// From one identity to another: a new session authorization takes the role away.
fn become_identity(current: &mut Identity, next: Identity, statements: &mut Vec<Vec<u8>>) {
    if current.authorization != next.authorization {
        let (name, role) = match &next.authorization {
            Value::Text(name) => (literal(name), Value::Text(b"none".to_vec())),
            _ => (b"DEFAULT".to_vec(), Value::Default),
        };
        statements.push([b"SET SESSION AUTHORIZATION ", name.as_slice()].concat());
        current.role = role;
    }
    if current.role != next.role {
        statements.push(match &next.role {
            Value::Text(name) => [b"SET ROLE ", literal(name).as_slice()].concat(),
            _ => b"RESET ROLE".to_vec(),
        });
    }
    *current = next;
}

fn set(name: &[u8], value: &Value, quote: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    if let Value::Text(text) = value
        && is_list_of_names(name)
    {
        // SET would quote it.
        return [
            b"SELECT pg_catalog.set_config(",
            quote(name).as_slice(),
            b", ",
            quote(text).as_slice(),
            b", false)",
        ]
        .concat();
    }
    [b"SET ", assignment(name, value, quote).as_slice()].concat()
}

/// What stands behind SET.
pub(super) fn assignment(name: &[u8], value: &Value, quote: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let value = match value {
        Value::Text(text) => quote(text),
        Value::List(names) => {
            let names: Vec<Vec<u8>> = names.iter().map(|name| quote(name)).collect();
            names.join(&b", "[..])
        }
        Value::Default => b"DEFAULT".to_vec(),
    };
    let name = quoted_name(name);
    [name.as_slice(), b" TO ", value.as_slice()].concat()
}

/// A name whose parts are quoted.
fn quoted_name(name: &[u8]) -> Vec<u8> {
    let parts = name.split(|&byte| byte == b'.');
    let parts: Vec<Vec<u8>> = parts.map(|part| quoted(part, b"\"")).collect();
    parts.join(&b"."[..])
}

/// A string literal of bytes in the database's encoding, as those of a startup message are, whatever `client_encoding` is.
pub(super) fn ascii_literal(text: &[u8]) -> Vec<u8> {
    if text.is_ascii() {
        return literal(text);
    }
    let mut escaped = b"E'".to_vec();
    for &byte in text {
        match byte {
            b'\'' | b'\\' => escaped.extend([byte, byte]),
            0x80.. => escaped.extend(format!("\\x{byte:02X}").bytes()),
            _ => escaped.push(byte),
        }
    }
    escaped.push(b'\'');
    escaped
}

/// A string literal that means the same whatever `standard_conforming_strings` is.
pub(super) fn literal(text: &[u8]) -> Vec<u8> {
    if !text.contains(&b'\\') {
        return quoted(text, b"'");
    }
    let mut escaped = Vec::with_capacity(text.len() + 2);
    for &byte in text {
        escaped.push(byte);
        if byte == b'\\' {
            escaped.push(byte);
        }
    }
    [b"E", quoted(&escaped, b"'").as_slice()].concat()
}

fn quoted(text: &[u8], quote: &[u8; 1]) -> Vec<u8> {
    let pieces: Vec<&[u8]> = text.split(|byte| byte == &quote[0]).collect();
    let doubled = [quote[0], quote[0]];
    let content = pieces.join(&doubled[..]);
    [&quote[..], content.as_slice(), &quote[..]].concat()
}
