//! Owns the transaction block that a client is in while no server knows of it: what is said of it waits for the first
//! statement that does something, because only that one tells which node the transaction belongs to. Pure.
//!
//! What is held cannot fail, or fails later in PostgreSQL's own words: behind an error nothing of the client's runs.

use tandem_routing_rules::{
    lex::Lexer,
    state::{Change, Effect, Effects, Modes, Scope, Transaction, Value},
};

use super::program::Program;

/// Bytes that are held at most.
const HELD_MAX: usize = 4096;

/// Settings of which a server reports each change (`GUC_REPORT` in guc_tables.c, 15 to 18): the client is to be told at once.
const REPORTED: [&[u8]; 11] = [
    b"application_name",
    b"client_encoding",
    b"datestyle",
    b"default_transaction_read_only",
    b"in_hot_standby",
    b"intervalstyle",
    b"role",
    b"search_path",
    b"session_authorization",
    b"standard_conforming_strings",
    b"timezone",
];

/// A client's transaction block, as far as no server knows of it.
#[derive(Debug, Default)]
pub(super) enum Block {
    /// There is none, or the session's server knows of it.
    #[default]
    None,
    /// The client has begun it.
    Held(Box<Held>),
    /// It has failed, and no server knows of it: nothing but its end is taken.
    Failed(Modes),
    /// The same, because its server was lost, and the client has not been told.
    Lost(Modes),
}

/// What was said of a block so far.
#[derive(Debug, Default, Clone)]
pub(super) struct Held {
    text: Vec<u8>,
    modes: Modes,
    /// What SET LOCAL has made of `tandem.key`.
    key: Option<Box<str>>,
    /// Something of it can be rolled back without the rest.
    has_savepoint: bool,
    /// It is said how it begins, and nothing more.
    is_begun_only: bool,
}

impl Held {
    /// What makes a server begin it: statements, in the order in which the client has said them.
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Its modes, as far as they were said.
    pub(super) fn modes(&self) -> Modes {
        self.modes
    }

    /// What SET LOCAL has made of `tandem.key`.
    pub(super) fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// Whether something of it can be rolled back without the rest.
    pub(super) fn has_savepoint(&self) -> bool {
        self.has_savepoint
    }

    /// Whether it was said how it begins, and nothing more.
    pub(super) fn is_begun_only(&self) -> bool {
        self.is_begun_only
    }

    fn add(&mut self, statement: &[u8]) {
        self.is_begun_only = self.text.is_empty();
        if !self.text.is_empty() {
            self.text.extend_from_slice(b"; ");
        }
        self.text.extend_from_slice(statement);
    }

    fn set(&mut self, modes: Modes) {
        self.modes.isolation = modes.isolation.or(self.modes.isolation);
        self.modes.read_only = modes.read_only.or(self.modes.read_only);
        self.modes.deferrable = modes.deferrable.or(self.modes.deferrable);
    }

    /// A new one with these modes.
    fn chained(modes: Modes) -> Held {
        let mut text = b"BEGIN".to_vec();
        if let Some(isolation) = modes.isolation {
            text.extend_from_slice(b" ISOLATION LEVEL ");
            text.extend_from_slice(isolation.name().as_bytes());
        }
        match modes.read_only {
            Some(true) => text.extend_from_slice(b" READ ONLY"),
            Some(false) => text.extend_from_slice(b" READ WRITE"),
            None => {}
        }
        match modes.deferrable {
            Some(true) => text.extend_from_slice(b" DEFERRABLE"),
            Some(false) => text.extend_from_slice(b" NOT DEFERRABLE"),
            None => {}
        }
        Held {
            text,
            modes,
            ..Held::default()
        }
    }
}

impl Block {
    /// The one that COMMIT AND CHAIN begins behind a block with these modes.
    pub(super) fn chained(modes: Modes) -> Block {
        next(true, modes)
    }

    /// The transaction status that the client sees; none: that of its server.
    pub(super) fn status(&self) -> Option<u8> {
        match self {
            Block::None => None,
            Block::Held(_) | Block::Lost(_) => Some(b'T'),
            Block::Failed(_) => Some(b'E'),
        }
    }

    /// Something that the client has said in it has failed.
    pub(super) fn fail(&mut self) {
        match self {
            Block::Held(held) => *self = Block::Failed(held.modes),
            Block::Lost(modes) => *self = Block::Failed(*modes),
            Block::None | Block::Failed(_) => {}
        }
    }

    /// Whether a text that does this can be taken without a server.
    pub(super) fn takes(&self, text: &[u8], program: Option<&Program>) -> bool {
        self.after(text, program).is_some()
    }

    /// Takes a text without a server, if it is about the block and nothing else. Answers the command tag for the client.
    pub(super) fn take(&mut self, text: &[u8], program: Option<&Program>) -> Option<&'static str> {
        let (after, tag) = self.after(text, program)?;
        *self = after;
        Some(tag)
    }

    fn after(&self, text: &[u8], program: Option<&Program>) -> Option<(Block, &'static str)> {
        let [step] = &**program? else { return None };
        let transaction = match &step.effects.effect {
            Effect::Transaction(transaction) if is_nothing_else(&step.effects) => transaction,
            Effect::None => {
                let Block::Held(held) = self else { return None };
                let is_set = Lexer::new(text, true).significant().next()?.is_word("set");
                if !is_set || !is_local(&step.effects) {
                    return None;
                }
                let mut held = Held::clone(held);
                held.note_key(&step.effects.changes);
                return held.with(text, "SET");
            }
            _ => return None,
        };
        match (self, transaction) {
            (Block::None, Transaction::Begin(modes)) => {
                let mut held = Held::default();
                held.set(*modes);
                let tag = match Lexer::new(text, true)
                    .significant()
                    .next()?
                    .is_word("start")
                {
                    true => "START TRANSACTION",
                    false => "BEGIN",
                };
                held.with(text, tag)
            }
            (Block::Held(held), Transaction::Modes(modes)) => {
                let mut held = Held::clone(held);
                held.set(*modes);
                held.with(text, "SET")
            }
            (Block::Held(held), Transaction::Savepoint(_)) => {
                let mut held = Held::clone(held);
                held.has_savepoint = true;
                held.with(text, "SAVEPOINT")
            }
            (Block::Held(held), Transaction::Commit { chain }) => {
                Some((next(*chain, held.modes), "COMMIT"))
            }
            (Block::Held(held), Transaction::Rollback { chain }) => {
                Some((next(*chain, held.modes), "ROLLBACK"))
            }
            (
                Block::Failed(modes),
                Transaction::Commit { chain } | Transaction::Rollback { chain },
            )
            | (Block::Lost(modes), Transaction::Rollback { chain }) => {
                Some((next(*chain, *modes), "ROLLBACK"))
            }
            _ => None,
        }
    }
}

impl Held {
    /// The same with one more statement, unless it is too much to be held.
    fn with(mut self, text: &[u8], tag: &'static str) -> Option<(Block, &'static str)> {
        let statement = text.trim_ascii_end();
        let statement = statement.strip_suffix(b";").unwrap_or(statement);
        // A comment at its end would swallow what follows.
        let comments = statement.windows(2).any(|two| two == b"--");
        if comments || self.text.len() + statement.len() > HELD_MAX {
            return None;
        }
        self.add(statement);
        Some((Block::Held(Box::new(self)), tag))
    }

    fn note_key(&mut self, changes: &[Change]) {
        for change in changes {
            if let Change::Set { name, value, .. } = change
                && name == b"tandem.key"
                && let Value::Text(key) = value
            {
                self.key = std::str::from_utf8(key).ok().map(Into::into);
            }
        }
    }
}

fn next(chain: bool, modes: Modes) -> Block {
    match chain {
        true => Block::Held(Box::new(Held::chained(modes))),
        false => Block::None,
    }
}

fn is_nothing_else(effects: &Effects) -> bool {
    effects.doubt.is_none() && effects.pins.iter().next().is_none()
}

/// Whether it is a SET LOCAL that the client need not be told of.
fn is_local(effects: &Effects) -> bool {
    let is_held = |change: &Change| match change {
        Change::Set { name, value, scope } => {
            *scope == Scope::Local
                && matches!(value, Value::Text(_))
                && !REPORTED.contains(&name.as_slice())
                && !name.starts_with(b"transaction_")
        }
        Change::FromCurrent { .. } | Change::ResetAll => false,
    };
    is_nothing_else(effects) && !effects.changes.is_empty() && effects.changes.iter().all(is_held)
}

/// Whether a transaction with these modes writes nothing.
pub(super) fn is_read_only(modes: Modes) -> bool {
    modes.read_only == Some(true)
}

#[cfg(test)]
mod tests {
    use tandem_routing_rules::state::Isolation;

    use super::{super::program::program, *};

    fn take(block: &mut Block, text: &str) -> Option<&'static str> {
        block.take(text.as_bytes(), program(text.as_bytes()).as_ref())
    }

    fn held(block: &Block) -> Option<String> {
        match block {
            Block::Held(held) => Some(String::from_utf8(held.text.clone()).expect("ASCII")),
            _ => None,
        }
    }

    #[test]
    fn what_is_said_of_a_block_waits_in_its_order() {
        let mut block = Block::default();
        assert_eq!(
            take(&mut block, "START TRANSACTION;"),
            Some("START TRANSACTION")
        );
        assert_eq!(
            take(&mut block, "set transaction isolation level serializable"),
            Some("SET")
        );
        assert_eq!(
            take(&mut block, "SET LOCAL statement_timeout = '5s'; "),
            Some("SET")
        );
        assert_eq!(
            take(&mut block, "SET LOCAL tandem.key = 'a:1'"),
            Some("SET")
        );
        assert!(matches!(&block, Block::Held(held) if !held.has_savepoint()));
        assert_eq!(take(&mut block, "SAVEPOINT a"), Some("SAVEPOINT"));
        assert!(
            matches!(&block, Block::Held(held) if held.has_savepoint() && held.key() == Some("a:1"))
        );
        assert_eq!(
            held(&block).as_deref(),
            Some(
                "START TRANSACTION; set transaction isolation level serializable; \
                 SET LOCAL statement_timeout = '5s'; SET LOCAL tandem.key = 'a:1'; SAVEPOINT a"
            )
        );
        assert_eq!(block.status(), Some(b'T'));
        assert!(
            matches!(&block, Block::Held(held) if held.modes().isolation == Some(Isolation::Serializable))
        );
        assert_eq!(take(&mut block, "COMMIT"), Some("COMMIT"));
        assert!(matches!(block, Block::None));
    }

    #[test]
    fn whatever_else_a_text_does_needs_a_server() {
        for text in [
            "SELECT 1",
            "BEGIN; SELECT 1",
            "BEGIN -- why\n",
            "SET TRANSACTION READ ONLY",
            "COMMIT",
            "ROLLBACK",
            "SAVEPOINT a",
            "SET LOCAL a.b = 'c'",
            "",
        ] {
            assert_eq!(take(&mut Block::default(), text), None, "{text}");
        }
        let begun = || {
            let mut block = Block::default();
            take(&mut block, "BEGIN").expect("a BEGIN");
            block
        };
        for text in [
            "BEGIN",
            "ROLLBACK TO a",
            "RELEASE a",
            "SET a.b = 'c'",
            "SET LOCAL TimeZone = 'UTC'",
            "SET LOCAL work_mem TO DEFAULT",
            "SET LOCAL transaction_isolation = 'serializable'",
            "PREPARE TRANSACTION 'a'",
            "SELECT set_config('a.b', 'c', true)",
            "COMMIT; SELECT 1",
            "",
        ] {
            assert_eq!(take(&mut begun(), text), None, "{text}");
        }
        let long = format!("SET LOCAL a.b = '{}'", "c".repeat(HELD_MAX));
        assert_eq!(take(&mut begun(), &long), None);
    }

    #[test]
    fn a_lost_block_takes_only_what_rolls_it_back() {
        let lost = || Block::Lost(Modes::default());
        assert_eq!(lost().status(), Some(b'T'));
        for text in [
            "SELECT 1",
            "COMMIT",
            "END",
            "SAVEPOINT a",
            "ROLLBACK TO a",
            "BEGIN",
        ] {
            assert_eq!(take(&mut lost(), text), None, "{text}");
        }
        let mut block = lost();
        assert_eq!(take(&mut block, "ROLLBACK AND CHAIN"), Some("ROLLBACK"));
        assert_eq!(held(&block).as_deref(), Some("BEGIN"));
        let mut block = lost();
        block.fail();
        assert_eq!(block.status(), Some(b'E'));
        let mut block = lost();
        assert_eq!(take(&mut block, "ABORT"), Some("ROLLBACK"));
        assert_eq!(block.status(), None);
    }

    #[test]
    fn a_failed_block_takes_its_end_only() {
        let mut block = Block::default();
        take(
            &mut block,
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY NOT DEFERRABLE",
        );
        block.fail();
        assert_eq!(block.status(), Some(b'E'));
        for text in ["SELECT 1", "BEGIN", "ROLLBACK TO a", "SET LOCAL a.b = 'c'"] {
            assert_eq!(take(&mut block, text), None, "{text}");
        }
        assert_eq!(take(&mut block, "COMMIT AND CHAIN"), Some("ROLLBACK"));
        assert_eq!(
            held(&block).as_deref(),
            Some("BEGIN ISOLATION LEVEL repeatable read READ ONLY NOT DEFERRABLE")
        );
        block.fail();
        assert_eq!(take(&mut block, "COMMIT"), Some("ROLLBACK"));
        assert_eq!(block.status(), None);
    }
}
