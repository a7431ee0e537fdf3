//! Owns what a text does to the session, as far as it is known without a server, and what was found out of texts that come
//! again and again; and what is sent instead of statements that would do something else on a shared server.

use std::{cell::RefCell, sync::Arc};

use tandem_routing_rules::{
    lex::split,
    state::{Change, Effect, Effects, Names, Settings, effects, is_plain},
};

use super::listening::shared;
use crate::texts::Texts;

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// What it does to the session.
    pub(super) effects: Effects,
    /// What is sent to the server instead; nearly never anything.
    pub(super) instead: Option<Box<Instead>>,
}

/// What is sent instead of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instead {
    /// What it does to the server.
    pub(super) effects: Effects,
    /// The command tag for the client.
    pub(super) tag: &'static str,
}

impl Step {
    fn new(effects: Effects) -> Step {
        Step {
            effects,
            instead: None,
        }
    }

    /// Whether a setting of the session gets the value that RESET gives.
    pub(super) fn resets(&self) -> bool {
        self.effects.changes.iter().any(Change::resets)
    }

    /// What it does to the server.
    pub(super) fn on_server(&self) -> &Effects {
        let instead = self.instead.as_ref();
        instead.map_or(&self.effects, |instead| &instead.effects)
    }
}

/// What the statements of one text do, where they do anything; in order.
pub(super) type Program = Arc<[Step]>;

/// What the statements of a text do to the session. None: nothing.
pub(super) fn program(text: &[u8]) -> Option<Program> {
    if is_plain(text) {
        return None;
    }
    KNOWN.with_borrow_mut(|known| known.get(0, text, || read(text)))
}

fn read(text: &[u8]) -> Option<Program> {
    let mut all = Vec::new();
    let mut any = false;
    // Most texts are one statement, for which there is nothing to split.
    if let Some(statement) = only_statement(text) {
        let one = effects(statement, true);
        return (one != Effects::default()).then(|| [Step::new(one)].into());
    }
    for statement in split(text, true) {
        let one = match statement {
            Ok(statement) => effects(statement.text, true),
            // Nothing of it will run.
            Err(_) => return None,
        };
        any |= one != Effects::default();
        all.push(Step::new(one));
    }
    any.then(|| all.into())
}

/// The statement of a text that surely has no second one.
fn only_statement(text: &[u8]) -> Option<&[u8]> {
    let trimmed = text.trim_ascii_end();
    let statement = trimmed.strip_suffix(b";").unwrap_or(trimmed);
    (!statement.contains(&b';')).then_some(statement)
}

/// The text to send, and what it does, where a RESET in it has to give what the session's login asked for and `server`'s
/// (any server's, where none is given) did not, or where the server is not the one that is to listen.
pub(super) fn restoring(
    text: &[u8],
    program: &Program,
    session: &Settings,
    server: Option<&Settings>,
    shares_channels: bool,
) -> Option<(Vec<u8>, Program)> {
    let mut steps = Vec::with_capacity(program.len());
    let (mut restored, mut taken) = (Vec::new(), 0);
    for (step, statement) in program.iter().zip(split(text, true)) {
        let statement = statement.ok()?;
        let mut step = step.clone();
        if let Some(found) = session.restoring(statement.text, &step.effects, server) {
            restored.extend_from_slice(text.get(taken..statement.range.start)?);
            restored.extend_from_slice(&found.text);
            taken = statement.range.end;
            step.instead = Some(Box::new(Instead {
                effects: found.effects,
                tag: found.tag,
            }));
        } else if shares_channels
            && let Some((text_instead, shared)) = shared(statement.text, &step)
        {
            restored.extend_from_slice(text.get(taken..statement.range.start)?);
            restored.extend_from_slice(&text_instead);
            taken = statement.range.end;
            step = shared;
        }
        steps.push(step);
    }
    if taken == 0 {
        return None;
    }
    restored.extend_from_slice(text.get(taken..)?);
    Some((restored, steps.into()))
}

/// The protocol-level statement that a text deallocates, if that is all it does.
pub(super) fn deallocated(program: Option<&Program>) -> Option<&[u8]> {
    match program.map(|program| &**program) {
        Some([step]) => match &step.effects.effect {
            Effect::Deallocate(Names::One(name)) => Some(name),
            _ => None,
        },
        _ => None,
    }
}

thread_local! {
    static KNOWN: RefCell<Texts<Option<Program>>> = const { RefCell::new(Texts::new()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_resets_is_replaced() {
        let session = Settings::new([(&b"work_mem"[..], &b"5MB"[..])]);
        let text = b"SELECT 1; RESET work_mem -- it\n; SHOW work_mem";
        let before = program(text).expect("it does something");
        let (restored, after) = restoring(text, &before, &session, None, false).expect("a RESET");
        assert_eq!(
            String::from_utf8(restored).expect("ASCII"),
            "SELECT 1; SET \"work_mem\" TO '5MB' -- it\n; SHOW work_mem"
        );
        let instead: Vec<bool> = after.iter().map(|step| step.instead.is_some()).collect();
        assert_eq!(instead, [false, true, false]);
        assert_ne!(after[1].on_server(), &after[1].effects);
        for _ in 0..3 {
            // It is the session's own, and remembered for nobody.
            assert_eq!(program(text), Some(Arc::clone(&before)));
        }
        let other = program(b"SET work_mem = '7MB'").expect("it does something");
        assert!(restoring(b"SET work_mem = '7MB'", &other, &session, None, false).is_none());
    }
}
