//! Owns how a server comes to have the statement that a client's message needs, in the shape that the client was told.
//!
//! A statement that the server has, as the client was told it, is used as it is. Otherwise the proxy prepares it there. To a
//! client that was told nothing of it that makes no difference; for one that was, the server is asked what it has prepared, and
//! the client's message waits for the answer, because an Execute behind it cannot be taken back. When the shape is another one,
//! the client gets what PostgreSQL would say to it.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::{
    numbers::renumber_types,
    owed::{Attempt, By, Note, Sent},
    prepared::{Prepared, ServerStatements, Statement},
    program::Program,
    shape::{Parameters, Shape, varies},
    splice::Splice,
    task::{Place, Task},
};
use crate::{identity::Numbered, pool::Server};

/// What no server has a statement under: who is to be refused is sent there, so that the transaction fails as it has to.
const NOWHERE: &[u8] = b"tandem_outdated\0";
/// The note of a message that goes there.
pub(super) const REFUSED: Note = Note::MAX;
const CLOSE_UNNAMED: &[u8] = b"C\0\0\0\x06S\0";
const DESCRIBE_UNNAMED: &[u8] = b"D\0\0\0\x06S\0";
pub(super) const FLUSH: &[u8] = b"H\0\0\0\x04";
pub(super) const SYNC: &[u8] = b"S\0\0\0\x04";

/// What the proxy does with the server before the client's next message may go there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errand {
    None,
    /// It is given the session's settings. `cleaned`: it had nobody's before, so what it refuses now is the session's own.
    Settings {
        cleaned: bool,
    },
    /// It has refused some of them; ReadyForQuery is still to come.
    Refused {
        cleaned: bool,
    },
    /// All that sessions may have left there is thrown away. `last`: it is not asked again.
    Cleanup {
        last: bool,
    },
    /// It throws away all that the client has set, also what its login asked for: it will need that again. What follows in
    /// a batch is, as for PostgreSQL, behind the end of a transaction, so a Sync of the proxy's own stands there.
    Discard,
    /// It is made to forget others' values of sequences.
    Sequences,
    /// It begins the client's transaction block, and is told what was said of it so far.
    Begin {
        /// It has refused; ReadyForQuery is still to come.
        refused: bool,
    },
    /// It is asked what shape this has that the next message needs: by the attempt of the client that prepared it.
    Shape(Attempt),
    /// It has said so: the next message's statement is as the client was told, or not.
    Told {
        kept: bool,
    },
}

impl Errand {
    /// Whether the client has to wait.
    pub(super) fn is_under_way(self) -> bool {
        !matches!(self, Errand::None | Errand::Told { .. })
    }

    /// Whether it is a Query of the proxy's own.
    pub(super) fn is_query(self) -> bool {
        self.is_under_way() && !matches!(self, Errand::Shape(_) | Errand::Discard)
    }
}

/// What a portal was made of, as far as that matters.
#[derive(Debug, Default)]
pub(super) struct Bound {
    /// What it does to the session.
    pub(super) program: Option<Program>,
    /// The attempt that prepared its statement, of which the client was told nothing yet; 0: it was.
    pub(super) untold: Attempt,
}

/// The portals, as far as they matter. Small until there is one that does.
#[derive(Debug, Default)]
pub(super) struct Portals(Option<Box<Known>>);

#[derive(Debug, Default)]
struct Known {
    unnamed: Bound,
    named: Vec<(Box<[u8]>, Bound)>,
}

impl Portals {
    /// What this one was made of.
    pub(super) fn get(&self, name: &[u8]) -> Option<&Bound> {
        let known = self.0.as_deref()?;
        if name.is_empty() {
            return Some(&known.unnamed);
        }
        let found = known.named.iter().find(|(known, _)| **known == *name);
        found.map(|(_, bound)| bound)
    }

    /// It is made of this.
    pub(super) fn note(&mut self, name: &[u8], bound: Bound) {
        let matters = bound.program.is_some() || bound.untold != 0;
        if self.0.is_none() && !matters {
            return;
        }
        let known = self.0.get_or_insert_default();
        if name.is_empty() {
            known.unnamed = bound;
            return;
        }
        known.named.retain(|(known, _)| **known != *name);
        if matters {
            known.named.push((name.into(), bound));
        }
    }
}

/// The unnamed statement, to be prepared again on another server.
#[derive(Debug, Default)]
pub(super) struct Unnamed {
    /// Which attempt made it; 0: there is none.
    pub(super) attempt: Attempt,
    /// The whole Parse message; empty when it was too large to be kept.
    pub(super) frame: Vec<u8>,
    /// What it does to the session.
    pub(super) program: Option<Program>,
    /// What the client was told of it when it asked for the statement.
    pub(super) told: Option<Box<Shape>>,
}

impl Unnamed {
    /// What stands behind its name in a Parse, if there is one that is known.
    pub(super) fn rest(&self) -> Option<&[u8]> {
        let rest = self.frame.get(tandem_wire::frame::HEADER_LEN + 1..);
        rest.filter(|_| self.attempt != 0)
    }

    pub(super) fn text(&self) -> &[u8] {
        // Behind the header there is a name without a character.
        let text = self.frame.get(tandem_wire::frame::HEADER_LEN + 1..);
        let mut texts = text.unwrap_or_default().split(|byte| *byte == 0);
        texts.next().unwrap_or_default()
    }
}

/// What the server has of the statement that a message names.
pub(super) enum Ready {
    /// The name can go as it is, because it is the unnamed statement's, or one that the client has not prepared.
    AsItIs,
    /// It has it, or will have when the message arrives.
    Named {
        statement: Arc<Statement>,
        /// Which attempt of the client prepared it.
        attempt: Attempt,
        /// Whether the client was told nothing of it.
        untold: bool,
    },
    /// It has it in another shape than the client was told.
    Outdated,
    /// It is asked.
    Later,
}

impl Task {
    /// Sees to it that the server has the client's statement of this name.
    pub(super) fn ready_statement(
        &mut self,
        name: &[u8],
        input: &[u8],
        splice: &mut Splice<'_>,
    ) -> Ready {
        let errand = std::mem::replace(&mut self.errand, Errand::None);
        if name.is_empty() {
            return self.ready_unnamed(errand, input, splice);
        }
        let attempt = self.next_attempt();
        let Place::Server(server) = &mut self.place else {
            return Ready::AsItIs;
        };
        let Some((key, Prepared { statement, told })) = self.statements.get(name) else {
            return Ready::AsItIs;
        };
        let untold = told.is_none();
        match errand {
            Errand::Told { kept: false } => {
                statement.outdate();
                return Ready::Outdated;
            }
            // Nobody knows which shape this client relies on.
            _ if untold && statement.is_outdated() => return Ready::Outdated,
            Errand::Told { kept: true } => {}
            _ if server.statements.fits(statement, told.as_ref()) => {}
            _ => {
                let out = splice.make(input);
                prepare(server, statement, By::Proxy, attempt, out);
                if !untold && ask(server, out, |out| put_named(out, b'D', Some(statement))) {
                    self.errand = Errand::Shape(key);
                    return Ready::Later;
                }
            }
        }
        Ready::Named {
            statement: Arc::clone(statement),
            attempt: key,
            untold,
        }
    }

    fn ready_unnamed(&mut self, errand: Errand, input: &[u8], splice: &mut Splice<'_>) -> Ready {
        let Place::Server(server) = &mut self.place else {
            return Ready::AsItIs;
        };
        let (has, wants) = (server.statements.unnamed, self.unnamed.attempt);
        let is_outdated = errand == Errand::Told { kept: false };
        if has == wants && !is_outdated {
            return Ready::AsItIs;
        }
        let out = splice.make(input);
        if wants == 0 || is_outdated {
            // It must not meet another client's, and is compared again next time.
            server.statements.unnamed = 0;
            server.owed.sent(Sent::Close, By::Proxy, 0);
            out.put_slice(CLOSE_UNNAMED);
            return if is_outdated {
                Ready::Outdated
            } else {
                Ready::AsItIs
            };
        }
        server.statements.unnamed = wants;
        server.owed.sent(Sent::Parse, By::Proxy, wants);
        put_frame(out, &self.unnamed.frame, b"", server);
        if self.unnamed.told.is_some() && ask(server, out, |out| out.put_slice(DESCRIBE_UNNAMED)) {
            self.errand = Errand::Shape(wants);
            return Ready::Later;
        }
        Ready::AsItIs
    }

    /// Whether it is worth knowing what the client is told of the statement that this attempt has prepared.
    fn wants_shape(&self, attempt: Attempt) -> bool {
        let (told, text) = if attempt == 0 {
            return false;
        } else if attempt == self.unnamed.attempt {
            (self.unnamed.told.as_deref(), self.unnamed.text())
        } else if let Some(prepared) = self.statements.of(attempt) {
            (prepared.told.as_ref(), prepared.statement.text())
        } else {
            return false;
        };
        !told.is_some_and(Shape::is_whole) && !varies(text)
    }

    /// The server tells the types of a statement's parameters; its rows follow.
    pub(super) fn on_parameters(&mut self, to: By, attempt: Note, body: &[u8]) {
        let wanted = to == By::Proxy || self.wants_shape(attempt);
        if let Place::Server(server) = &mut self.place {
            server.statements.describing = wanted.then(|| Parameters::read(body)).flatten();
        }
    }

    /// The server tells the rows of a portal or, behind its parameters, of a statement: a RowDescription's body, or none.
    pub(super) fn on_described(&mut self, to: By, attempt: Note, rows: Option<&[u8]>) {
        if to == By::Client && !self.wants_shape(attempt) {
            return;
        }
        let Place::Server(server) = &mut self.place else {
            return;
        };
        let parameters = server.statements.describing.take();
        let numbers = server.numbers.as_ref();
        let node = numbers.map_or(server.face.node, Numbered::told_as);
        let shape = Shape::read(node, parameters, rows);
        match (to, self.errand) {
            (By::Client, _) => {
                let Some(shape) = shape else { return };
                // What is being prepared anew meanwhile may be another one.
                if server.owed.oldest_attempt() == 0
                    && let Some(prepared) = self.statements.of(attempt)
                {
                    server.statements.note_shape(&prepared.statement, shape);
                }
                if attempt == self.unnamed.attempt {
                    self.unnamed.told = Some(Box::new(shape));
                } else {
                    self.statements.tell(attempt, shape);
                }
            }
            (By::Proxy, Errand::Shape(attempt)) => {
                let prepared = self.statements.of(attempt);
                if let (Some(prepared), Some(shape)) = (prepared, shape) {
                    server.statements.note_shape(&prepared.statement, shape);
                }
                let told = match prepared {
                    Some(prepared) => prepared.told.as_ref(),
                    None => self.unnamed.told.as_deref(),
                };
                let kept = told
                    .zip(shape.as_ref())
                    .is_some_and(|(told, shape)| told.is_kept_by(shape));
                self.errand = Errand::Told { kept };
            }
            (By::Proxy, _) => {}
        }
    }
}

/// Asks the server for the shape of what it has just been given to prepare, at once. False when it will not answer.
fn ask(server: &mut Server, out: &mut BytesMut, put_describe: impl FnOnce(&mut BytesMut)) -> bool {
    if !server.owed.sent(Sent::DescribeStatement, By::Proxy, 0) {
        return false;
    }
    put_describe(out);
    out.put_slice(FLUSH);
    true
}

/// Prepares a statement under its own name, whatever the server has there.
pub(super) fn prepare(
    server: &mut Server,
    statement: &Statement,
    by: By,
    attempt: Attempt,
    out: &mut BytesMut,
) {
    if let Some(evicted) = server.statements.insert(statement, attempt) {
        server.owed.sent(Sent::Close, By::Proxy, 0);
        put_named(out, b'C', Some(&evicted));
    }
    server.owed.sent(Sent::Close, By::Proxy, 0);
    put_named(out, b'C', Some(statement));
    server.owed.sent(Sent::Parse, by, attempt);
    put_parse(out, statement, server);
    note_count(server);
}

fn note_count(server: &Server) {
    let count = |statements: &ServerStatements| u32::try_from(statements.len()).unwrap_or(u32::MAX);
    server.face.prepared.store(
        count(&server.statements),
        std::sync::atomic::Ordering::Relaxed,
    );
}

/// A statement's name on servers; none: one that no server has.
pub(super) fn put_name(out: &mut BytesMut, statement: Option<&Statement>) {
    match statement {
        Some(statement) => statement.write_name(out),
        None => out.put_slice(NOWHERE),
    }
}

/// A Describe or Close of a statement, under its name on servers.
pub(super) fn put_named(out: &mut BytesMut, tag: u8, statement: Option<&Statement>) {
    let start = out.len();
    out.put_u8(tag);
    out.put_u32(0);
    out.put_u8(b'S');
    put_name(out, statement);
    patch_len(out, start, out.len() - start - 1);
}

/// A Parse of a statement under its name on servers, for this one.
pub(super) fn put_parse(out: &mut BytesMut, statement: &Statement, server: &Server) {
    let start = out.len();
    out.put_u8(b'P');
    out.put_u32(0);
    statement.write_name(out);
    let rest = out.len();
    out.put_slice(statement.rest());
    renumber_types(server, out.get_mut(rest..).unwrap_or_default());
    patch_len(out, start, out.len() - start - 1);
}

/// A Parse with this name as it came, for this server.
pub(super) fn put_frame(out: &mut BytesMut, frame: &[u8], name: &[u8], server: &Server) {
    let rest = out.len() + tandem_wire::frame::HEADER_LEN + name.len() + 1;
    out.put_slice(frame);
    renumber_types(server, out.get_mut(rest..).unwrap_or_default());
}

/// A Parse of the unnamed statement; `rest` is what stands behind the name.
pub(super) fn put_unnamed(out: &mut BytesMut, rest: &[u8]) {
    let start = out.len();
    out.put_u8(b'P');
    out.put_u32(0);
    out.put_u8(0);
    out.put_slice(rest);
    patch_len(out, start, out.len() - start - 1);
}

/// A Query.
pub(super) fn put_query(out: &mut BytesMut, text: &[u8]) {
    let start = out.len();
    out.put_u8(b'Q');
    out.put_u32(0);
    out.put_slice(text);
    out.put_u8(0);
    patch_len(out, start, out.len() - start - 1);
}

/// Sets the length of the message that begins at `start`.
pub(super) fn patch_len(out: &mut BytesMut, start: usize, len: usize) {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(start + 1..start + tandem_wire::frame::HEADER_LEN) {
        place.copy_from_slice(&len.to_be_bytes());
    }
}
