//! Owns whose values of sequences a server may hold: what `currval` and `lastval` answer there.
//!
//! Any statement may advance a sequence: by `nextval`, a column's default, a trigger. So whoever has had a server may have left
//! values on it. A session that looks at one keeps its server from then on (`Pin::SequenceValue`). Its first look must not meet
//! another session's: before the session has run anything on the server, this is made to forget them, and PostgreSQL says that
//! there is none yet. Behind statements of its own, which may have given the value that it looks for, it is too late for that:
//! in a pool of which a client has ever looked, a server forgets them when it changes hands.

use bytes::BufMut;
use tandem_routing_rules::state::Pin;

use super::{
    owed::{By, Sent, Status},
    program::Program,
    ready::Errand,
    splice::Splice,
    task::{Place, Task},
};

/// What makes a server forget them.
pub(super) const DISCARD: &[u8] = b"DISCARD SEQUENCES";
/// The same as a Query.
const DISCARD_QUERY: &[u8] = b"Q\0\0\0\x16DISCARD SEQUENCES\0";

/// Whose values a server may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sequences {
    /// Nobody's.
    Forgotten,
    /// Those of the session of this number.
    Of(u32),
    /// Several sessions'.
    Mixed,
}

impl Sequences {
    /// The session of this number has the server now.
    #[must_use]
    pub(super) fn and(self, session: u32) -> Sequences {
        match self {
            Sequences::Forgotten => Sequences::Of(session),
            Sequences::Of(other) if other == session => self,
            Sequences::Of(_) | Sequences::Mixed => Sequences::Mixed,
        }
    }

    /// Whether they may be others' than the session's of this number.
    pub(super) fn are_foreign_to(self, session: u32) -> bool {
        self.and(session) == Sequences::Mixed
    }
}

/// Whether a text calls `currval` or `lastval`.
pub(super) fn looks(program: Option<&Program>) -> bool {
    program.is_some_and(|program| {
        let mut each = program.iter();
        each.any(|one| one.pins.contains(Pin::SequenceValue))
    })
}

impl Task {
    /// The client's next message looks at a sequence's value. Whether it has to wait until the server has forgotten others'.
    pub(super) fn forgets_sequences(&mut self, input: &[u8], splice: &mut Splice<'_>) -> bool {
        self.pool.note_look();
        let Place::Server(server) = &mut self.place else {
            return false;
        };
        if !self.state.must_forget(&server.settings)
            || !server.owed.is_quiet()
            || server.owed.status() == Status::Failed
        {
            return false;
        }
        if server.owed.is_untouched() {
            self.registered.entry().prepare();
        }
        server.owed.sent(Sent::Query, By::Proxy, 0);
        server.statements.unnamed = 0;
        self.errand = Errand::Sequences;
        splice.make(input).put_slice(DISCARD_QUERY);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_foreign_once_two_sessions_have_had_the_server() {
        let fresh = Sequences::Forgotten;
        assert!(!fresh.are_foreign_to(1) && !fresh.and(1).and(1).are_foreign_to(1));
        assert!(fresh.and(1).are_foreign_to(2));
        // Whose they are is not known any more, so not even the last one may look.
        assert!(fresh.and(1).and(2).are_foreign_to(2));
        assert!(fresh.and(1).and(2).are_foreign_to(1));
    }

    #[test]
    fn the_query_is_what_it_says() {
        let len = u32::try_from(DISCARD.len() + 5).expect("small");
        let query = [&b"Q"[..], &len.to_be_bytes(), DISCARD, b"\0"].concat();
        assert_eq!(DISCARD_QUERY, query);
    }
}
