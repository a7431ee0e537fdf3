//! Owns what becomes of a client's write when the policies of the rules find something in it, and what the client is told of
//! where its units of work go.
//!
//! A statement is examined when it is about to go to its server, because only then is it certain where its transaction
//! stands. What is refused fails in its place: the server gets, instead, something of the same kind that fails there, so
//! that the answers before it, the transaction block, savepoints and the rest of a batch are as behind any other error; the
//! client gets the proxy's words for it.

use std::{collections::VecDeque, ops::Range};

use bytes::{BufMut, BytesMut};
use tandem_routing_rules::{CrossHome, state::Effect};
use tandem_wire::{ErrorReport, Header, Reader, backend::ErrorFields, encode, frame::HEADER_LEN};

use super::{
    Shared,
    ahead::{Known, made_of},
    end::Boundary,
    inbound::{Step, StopAt},
    owed::{By, Note, Sent, Status},
    program::program,
    ready::{Bound, REFUSED, Unnamed, patch_len, put_query},
    splice::Splice,
    state::Hold,
    task::{Place, Task},
};
use crate::{
    pool::add,
    reload::Settings,
    routing::{Choice, Found, Run},
};

/// Fails on every server: nobody has prepared it.
const FAILS: &[u8] = b"EXECUTE tandem_refused";
/// The same in the extended protocol.
const NOWHERE: &[u8] = b"tandem_refused\0";
/// How a server says so: invalid_sql_statement_name.
const NOT_PREPARED: &[u8] = b"26000";
/// From here on the note of a message names a refusal. No attempt to prepare something has so high a number.
const REFUSALS: Note = 1 << 63;

/// What a session keeps for that.
#[derive(Debug, Default)]
pub(super) struct Policing {
    /// The next statement is known to be all right, or the client was told already.
    pub(super) is_clear: bool,
    /// Where the unit of work under way was sent and why, if somebody may want to know.
    stands: Option<Box<str>>,
    /// None until one is refused.
    refusals: Option<Box<Refusals>>,
}

#[derive(Debug, Default)]
struct Refusals {
    /// What the client is told when its server has failed to run what it was given instead; in order.
    awaited: VecDeque<(Note, ErrorReport)>,
    /// Refusals so far.
    count: Note,
}

impl Policing {
    /// The note for a message that stands for a refused one.
    fn refuse(&mut self, report: ErrorReport) -> Note {
        let refusals = self.refusals.get_or_insert_default();
        refusals.count += 1;
        let note = REFUSALS | refusals.count;
        refusals.awaited.push_back((note, report));
        note
    }

    /// What the client is told of this one. Those before it were thrown away with their batch.
    fn take(&mut self, note: Note) -> Option<ErrorReport> {
        let awaited = &mut self.refusals.as_mut()?.awaited;
        while let Some((known, _)) = awaited.front()
            && *known < note
        {
            awaited.pop_front();
        }
        let is_it = awaited.front().is_some_and(|(known, _)| *known == note);
        is_it
            .then(|| awaited.pop_front())
            .flatten()
            .map(|(_, report)| report)
    }
}

impl Task {
    /// Whether the client wants to be told where its units of work go: `tandem.explain`, read as a boolean.
    pub(super) fn explains(&self) -> bool {
        let on = |text: &str| {
            let is = |word: &str| text.eq_ignore_ascii_case(word);
            ["on", "true", "yes", "1"].into_iter().any(is)
        };
        self.state.text_of(b"tandem.explain").is_some_and(on)
    }

    /// A unit of work goes where this says. `alone`: it is one statement, which is the next.
    pub(super) fn note_choice(
        &mut self,
        choice: Choice,
        alone: bool,
        shared: &Shared,
        settings: &Settings,
    ) {
        let counts = &shared.router.counts;
        counts.note(choice.why, &settings.rule_counts);
        if let Some(line) = choice.line.as_deref() {
            if choice.why.advised {
                counts.advise(line);
            }
            if self.explains() {
                let notice = ErrorReport::new("NOTICE", "00000", line);
                encode::backend::notice(self.to_client.buffer(), &notice);
            }
        }
        if let Some(routed) = &mut self.routed {
            routed.policing.is_clear = alone && choice.is_clear;
            routed.policing.stands = choice.line;
        }
    }

    /// Looks at a Query or a Bind, `input[at]`, that is about to go to its server. None: it goes there.
    pub(super) fn examine(
        &mut self,
        header: Header,
        input: &[u8],
        at: Range<usize>,
        splice: &mut Splice<'_>,
        shared: &Shared,
    ) -> Option<Step> {
        if self.routed.as_ref()?.policing.is_clear {
            return None;
        }
        let settings = shared.settings.load();
        let Place::Server(server) = &self.place else {
            return None;
        };
        // In a failed block nothing runs, and data of a COPY comes to an end first.
        let owed = &server.owed;
        if !settings.examines || owed.status() == Status::Failed || owed.is_copying_in() {
            return None;
        }
        let node = server.face.node;
        let frame = input.get(at).unwrap_or_default();
        let body = frame.get(HEADER_LEN..).unwrap_or_default();
        let run = self.runs(header, frame)?;
        let found = self.chooser(shared, &settings)?.examine(run, node);
        // What is only prepared runs with other values.
        if found != Found::Nothing && run.is_some_and(|run| is_prepare(run.text)) {
            return None;
        }
        match found {
            Found::Nothing => {}
            // Nothing may come between the parts of a message.
            Found::CrossHome(CrossHome::Notice, _) if self.boundary() == Boundary::Cut => {
                return Some(Step::Stop(StopAt::Answers));
            }
            Found::CrossHome(policy, away) => {
                shared.router.counts.note_cross_home(policy);
                match policy {
                    CrossHome::Allow => {}
                    CrossHome::Notice => {
                        let notice = self.cross_home("NOTICE", "01000", &away);
                        encode::backend::notice(self.to_client.buffer(), &notice);
                    }
                    CrossHome::Reject => {
                        let report = self.cross_home("ERROR", "0A000", &away);
                        return Some(self.fail(header.tag, body, report, input, splice));
                    }
                }
            }
            Found::NoKey(because) => {
                shared.router.counts.without_key.add();
                let report = without_key(&because);
                return Some(self.fail(header.tag, body, report, input, splice));
            }
        }
        self.routed.as_mut()?.policing.is_clear = true;
        None
    }

    /// What a Query or a Bind runs; outer none: a statement that nobody knows, inner none: one that cannot be read.
    fn runs<'a>(&'a self, header: Header, frame: &'a [u8]) -> Option<Option<Run<'a>>> {
        if matches!(self.state.hold(), Some(Hold::Lexing | Hold::Mode)) {
            return None;
        }
        let mut body = Reader::new(frame.get(HEADER_LEN..).unwrap_or_default());
        if header.tag == b'Q' {
            let text = body
                .cstr()
                .ok()
                .filter(|_| frame.len() >= header.frame_len());
            return Some(text.map(|text| Run {
                text,
                bound: None,
                types: &[],
                begins: false,
                homed: None,
            }));
        }
        let name = body.cstr().and_then(|_| body.cstr()).ok()?;
        let known: &'a Task = self;
        let statement = (&known).statement(name)?;
        Some(Some(made_of(statement, Some(body.rest()))))
    }

    /// What is said of a write that reaches over homes.
    fn cross_home(&self, severity: &'static str, code: &'static str, away: &str) -> ErrorReport {
        let name = self.pool.node_name();
        let stands = self
            .routed
            .as_ref()
            .and_then(|routed| routed.policing.stands.as_deref());
        let stands = match stands {
            Some(line) => format!("The transaction is on {line}."),
            None => format!("The transaction is on node {name}."),
        };
        let message = format!("a write on node {name} has a key that is at home on another node");
        ErrorReport::new(severity, code, message)
            .with_detail(format!("The {away}. {stands}"))
            .with_hint("Write keys of different homes in transactions of their own, or give their tables one placement with one key. cross_home = \"allow\" in the rules lets such writes through.")
    }

    /// A Query, Bind or FunctionCall goes nowhere; what goes there instead fails.
    pub(super) fn fail(
        &mut self,
        tag: u8,
        body: &[u8],
        report: ErrorReport,
        input: &[u8],
        splice: &mut Splice<'_>,
    ) -> Step {
        let (Place::Server(server), Some(routed)) = (&mut self.place, &mut self.routed) else {
            return Step::Stop(StopAt::NeedServer);
        };
        let note = routed.policing.refuse(report);
        let out = splice.make(input);
        if matches!(tag, b'Q' | b'F') {
            add(&server.face.counters.queries, 1);
            // It ends the unnamed statement, on the server also if the client's is none that does.
            server.statements.unnamed = 0;
            if tag == b'Q' {
                self.unnamed = Unnamed::default();
            }
            server.owed.sent(Sent::Query, By::Client, note);
            put_query(out, FAILS);
            return Step::Drop;
        }
        let portal = Reader::new(body).cstr().unwrap_or_default();
        self.portals.note(portal, Bound::default());
        server.owed.sent(Sent::Bind, By::Client, note);
        put_bind(out, portal);
        Step::Drop
    }

    /// Whether an error of the server's answers what stood for a refused message: the client is told what it was refused for.
    pub(super) fn was_refused(&mut self, note: Note, body: &[u8]) -> Option<ErrorReport> {
        if note < REFUSALS || note == REFUSED {
            return None;
        }
        let report = self.routed.as_mut()?.policing.take(note)?;
        // Another error came before.
        let fields = ErrorFields::parse(body).ok()?;
        (fields.code() == Some(NOT_PREPARED)).then_some(report)
    }
}

fn without_key(because: &str) -> ErrorReport {
    ErrorReport::error("0A000", "the write names no key, and the rules require one")
        .with_detail(format!("{}.", capitalized(because)))
        .with_hint("Name the key in WHERE or VALUES, by SET tandem.key = 'placement:key', or in a leading comment /* tandem.key='placement:key' */.")
}

fn capitalized(sentence: &str) -> String {
    let mut letters = sentence.chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

/// Whether a text only prepares what it says.
fn is_prepare(text: &[u8]) -> bool {
    let program = program(text);
    program.is_some_and(|program| {
        let is =
            |step: &super::program::Step| matches!(step.effects.effect, Effect::Prepare { .. });
        program.iter().any(is)
    })
}

/// A Bind, without values, of a statement that no server has.
fn put_bind(out: &mut BytesMut, portal: &[u8]) {
    let start = out.len();
    out.put_u8(b'B');
    out.put_u32(0);
    out.put_slice(portal);
    out.put_u8(0);
    out.put_slice(NOWHERE);
    // Neither formats of values, nor values, nor formats of results.
    out.put_slice(&[0; 6]);
    patch_len(out, start, out.len() - start - 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_once_and_those_thrown_away_before_it_never() {
        let mut policing = Policing::default();
        let report = |text: &str| ErrorReport::error("0A000", text);
        let notes = ["a", "b", "c"].map(|text| policing.refuse(report(text)));
        assert!(notes.iter().all(|note| *note > REFUSALS));
        let mut told = |note| policing.take(note).map(|report| report.message);
        assert_eq!(told(notes[1]).as_deref(), Some("b"));
        assert_eq!(told(notes[1]), None);
        assert_eq!(told(notes[0]), None);
        assert_eq!(told(notes[2]).as_deref(), Some("c"));
        assert_eq!(told(notes[2]), None);
    }
}
