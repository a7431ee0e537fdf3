//! Owns what is kept of a unit of work while a server has it, for the case that the server is lost. Pure.

use tandem_routing_rules::state::{Doubt, Effect, Modes, Transaction};

use super::program::Program;

/// Bytes of a unit that are kept to be sent once more; of larger ones nothing is.
const HELD_MAX: usize = 8 * 1024;

/// What a text does to the transaction that it runs in, as far as that decides what a lost server leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Control {
    /// Nothing.
    #[default]
    None,
    /// Commits nothing, and leaves a block open.
    Opens,
    /// ROLLBACK, and nothing else.
    RollsBack,
    /// COMMIT, and nothing else.
    Commits,
    /// COMMIT AND CHAIN, and nothing else.
    Chains,
    /// PREPARE TRANSACTION, and nothing else.
    Prepares,
    /// May commit, and leaves the block as it was: CALL, DO.
    MayCommit,
    /// May commit, and leaves a block open.
    MayCommitOpens,
    /// May commit, and ends the block.
    MayCommitEnds,
}

impl Control {
    /// Of a text that does this to the session.
    pub(super) fn of(program: Option<&Program>) -> Control {
        let Some(program) = program else {
            return Control::None;
        };
        let mut all = Control::None;
        for step in program.iter() {
            all = all.then(match &step.effects.effect {
                Effect::Transaction(Transaction::Begin(_)) => Control::Opens,
                Effect::Transaction(Transaction::Commit { chain: true }) => Control::Chains,
                Effect::Transaction(Transaction::Commit { chain: false }) => Control::Commits,
                Effect::Transaction(Transaction::Rollback { chain: true }) => Control::Opens,
                Effect::Transaction(Transaction::Rollback { chain: false }) => Control::RollsBack,
                Effect::Transaction(Transaction::Prepare(_)) => Control::Prepares,
                Effect::Transaction(Transaction::CommitPrepared(_)) => Control::MayCommit,
                _ => match step.effects.doubt {
                    Some(Doubt::Call | Doubt::Do | Doubt::Syntax) => Control::MayCommit,
                    _ => Control::None,
                },
            });
        }
        // What stands beside it in the same text would be answered too.
        match all {
            _ if program.len() == 1 => all,
            Control::Commits | Control::RollsBack | Control::Prepares => Control::MayCommitEnds,
            Control::Chains => Control::MayCommitOpens,
            all => all,
        }
    }

    /// This, and then that.
    pub(crate) fn then(self, next: Control) -> Control {
        let opens = match (next.opens(), self.opens()) {
            (None, before) => before,
            (after, _) => after,
        };
        match (self, next) {
            (Control::None, only) | (only, Control::None) => only,
            _ => match (self.may_commit() || next.may_commit(), opens) {
                (true, Some(true)) => Control::MayCommitOpens,
                (true, Some(false)) => Control::MayCommitEnds,
                (true, None) => Control::MayCommit,
                (false, Some(true)) => Control::Opens,
                (false, Some(false)) => Control::RollsBack,
                (false, None) => Control::None,
            },
        }
    }

    /// Whether something of it may commit.
    pub(crate) fn may_commit(self) -> bool {
        match self {
            Control::None | Control::Opens | Control::RollsBack => false,
            Control::Commits
            | Control::Chains
            | Control::Prepares
            | Control::MayCommit
            | Control::MayCommitOpens
            | Control::MayCommitEnds => true,
        }
    }

    /// Whether a block is open behind it; none: as before.
    pub(crate) fn opens(self) -> Option<bool> {
        match self {
            Control::None | Control::MayCommit => None,
            Control::Opens | Control::Chains | Control::MayCommitOpens => Some(true),
            Control::RollsBack | Control::Commits | Control::Prepares | Control::MayCommitEnds => {
                Some(false)
            }
        }
    }

    /// The command tag that it ends with, if its node can tell what has become of the transaction.
    pub(crate) fn can_be_asked_for(self) -> Option<&'static [u8]> {
        match self {
            Control::Commits | Control::Chains => Some(b"COMMIT"),
            Control::Prepares => Some(b"PREPARE TRANSACTION"),
            _ => None,
        }
    }
}

/// Whether the bytes of a unit can be sent once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Held {
    /// All that went to the server is here.
    #[default]
    Whole,
    /// It was too much, or the client has heard of it.
    Not,
}

/// What is kept of the unit of work that a server has.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    bytes: Vec<u8>,
    held: Held,
    /// The client has been told something of it.
    pub(crate) is_heard: bool,
    /// The transaction has written, as far as command tags say.
    pub(crate) has_written: bool,
    /// The transaction's number, once it is known to have one.
    pub(crate) xid: Option<u64>,
    /// How its block was begun.
    pub(crate) modes: Modes,
}

impl Trace {
    /// A client has the server now. Keeps its memory.
    pub(crate) fn begin(&mut self) {
        self.bytes.clear();
        self.held = Held::Whole;
        self.is_heard = false;
        self.over();
    }

    /// The transaction is over.
    pub(crate) fn over(&mut self) {
        self.has_written = false;
        self.xid = None;
        self.modes = Modes::default();
    }

    /// This of the client's has gone to the server.
    pub(crate) fn hold(&mut self, bytes: &[u8]) {
        if self.held == Held::Whole && !self.is_heard && self.bytes.len() + bytes.len() <= HELD_MAX
        {
            self.bytes.extend_from_slice(bytes);
        } else {
            self.let_go();
        }
    }

    /// What goes to the server cannot be sent once more.
    pub(crate) fn let_go(&mut self) {
        self.held = Held::Not;
    }

    /// What can be sent once more; none: nothing can.
    pub(crate) fn held(&self) -> Option<&[u8]> {
        let is_whole = self.held == Held::Whole && !self.is_heard && !self.bytes.is_empty();
        is_whole.then_some(&*self.bytes)
    }

    /// A statement has ended with this command tag.
    pub(crate) fn completed(&mut self, tag: &[u8]) {
        // SELECT, SET, SHOW, SAVEPOINT; FETCH; BEGIN; ROLLBACK, RELEASE, RESET; LOCK, LISTEN.
        let reads = matches!(tag.first(), Some(b'S' | b'F' | b'B' | b'R' | b'L'));
        self.has_written |= !reads;
    }

    /// The server tells the transaction's number: the body of a FunctionCallResponse, in binary format.
    pub(crate) fn numbered(&mut self, body: &[u8]) {
        let (len, value) = body.split_at_checked(4).unwrap_or_default();
        let value = <[u8; 8]>::try_from(value).ok();
        self.xid = value
            .filter(|_| len == 8_u32.to_be_bytes())
            .map(u64::from_be_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::program::program, *};

    #[test]
    fn what_a_text_may_commit_and_leaves_open() {
        let table = [
            ("SELECT 1", Control::None),
            ("INSERT INTO t VALUES (1)", Control::None),
            ("SAVEPOINT a", Control::None),
            ("ROLLBACK TO a", Control::None),
            ("SET work_mem = '1MB'", Control::None),
            ("BEGIN", Control::Opens),
            ("BEGIN; INSERT INTO t VALUES (1)", Control::Opens),
            ("ROLLBACK AND CHAIN", Control::Opens),
            ("ABORT", Control::RollsBack),
            ("BEGIN; ROLLBACK", Control::MayCommitEnds),
            ("COMMIT", Control::Commits),
            ("END", Control::Commits),
            ("COMMIT AND CHAIN", Control::Chains),
            ("COMMIT AND CHAIN; SELECT 1", Control::MayCommitOpens),
            ("SELECT 1; COMMIT AND CHAIN", Control::MayCommitOpens),
            ("COMMIT; BEGIN", Control::MayCommitOpens),
            ("COMMIT; ROLLBACK", Control::MayCommitEnds),
            ("INSERT INTO t VALUES (1); COMMIT", Control::MayCommitEnds),
            ("PREPARE TRANSACTION 'a'", Control::Prepares),
            ("PREPARE TRANSACTION 'a'; SELECT 1", Control::MayCommitEnds),
            ("COMMIT PREPARED 'a'", Control::MayCommit),
            ("CALL p()", Control::MayCommit),
            ("DO $$ BEGIN COMMIT; END $$", Control::MayCommit),
        ];
        for (text, wanted) in table {
            let does = program(text.as_bytes());
            assert_eq!(Control::of(does.as_ref()), wanted, "{text}");
        }
    }

    #[test]
    fn a_unit_is_held_until_it_is_heard_of_or_too_large() {
        let mut trace = Trace::default();
        assert_eq!(trace.held(), None);
        trace.hold(b"a");
        trace.hold(b"b");
        assert_eq!(trace.held(), Some(&b"ab"[..]));
        trace.is_heard = true;
        assert_eq!(trace.held(), None);
        trace.hold(b"c");
        trace.is_heard = false;
        assert_eq!(trace.held(), None);
        trace.begin();
        trace.hold(&[0; HELD_MAX]);
        assert!(trace.held().is_some());
        trace.hold(b"a");
        assert_eq!(trace.held(), None);
    }

    #[test]
    fn a_transactions_number_is_read_as_a_server_sends_it() {
        let mut trace = Trace::default();
        trace.numbered(b"\0\0\0\x08\0\0\0\x01\0\0\0\x02");
        assert_eq!(trace.xid, Some((1 << 32) + 2));
        for none in [
            &b"\xff\xff\xff\xff"[..],
            b"",
            b"\0\0\0\x08\0",
            b"\0\0\0\x04\0\0\0\x01",
        ] {
            trace.numbered(none);
            assert_eq!(trace.xid, None);
        }
    }

    #[test]
    fn command_tags_tell_what_has_written() {
        for (tag, writes) in [
            ("SELECT 1", false),
            ("FETCH 1", false),
            ("INSERT 0 1", true),
            ("UPDATE 0", true),
            ("CREATE TABLE", true),
            ("COPY 7", true),
            ("NOTIFY", true),
        ] {
            let mut trace = Trace::default();
            trace.completed(tag.as_bytes());
            assert_eq!(trace.has_written, writes, "{tag}");
        }
    }
}
