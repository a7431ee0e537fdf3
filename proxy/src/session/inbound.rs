//! Owns what becomes of a client's messages: which are passed on, under which names, and what must go ahead of them.

use std::{ops::Range, sync::Arc};

use bytes::BufMut;
use tandem_wire::{
    FrameError, Header, Reader, Scan, Sender, encode,
    frame::{self, HEADER_LEN},
};

use super::{
    Shared,
    listening::has_listen,
    owed::{By, Note, Sent},
    prepared::Statement,
    program::{deallocated, program},
    ready::{
        Bound, Errand, FLUSH, REFUSED, Ready, patch_len, prepare, put_frame, put_name, put_named,
        put_parse, put_query, put_unnamed,
    },
    sequences::looks,
    splice::Splice,
    state::Hold,
    task::{Place, Refusing, Task},
    trace::Control,
};
use crate::pool::{Server, add};

/// Why the client's messages were not all taken.
#[derive(Debug)]
pub(super) enum StopAt {
    /// The next one needs a server.
    NeedServer,
    /// More of them must come before it can be told where they go.
    More,
    /// The server is asked something first.
    Errand,
    /// A number in it is not known yet.
    Number,
    /// What the server still has to answer comes first.
    Answers,
    /// The server has to begin the client's transaction block first.
    Begin,
    /// Terminate.
    Goodbye,
    /// What it sent is no message of the protocol.
    Violation(FrameError),
    /// It has prepared more than it may.
    TooMuchPrepared,
}

/// What becomes of one message.
pub(super) enum Step {
    /// It is passed on as it is.
    Pass,
    /// It goes nowhere.
    Drop,
    /// So many of its bytes were written anew; the rest is passed on.
    Written(usize),
    /// It is answered, with others behind it: so many bytes.
    Answered(usize),
    /// Nothing yet.
    Stop(StopAt),
}

impl Task {
    /// Takes messages until one must wait. Answers how many bytes of `input` were taken, and why not all whole messages were.
    pub(super) fn on_client_bytes(
        &mut self,
        input: &[u8],
        splice: &mut Splice<'_>,
        shared: &Shared,
    ) -> (usize, Option<StopAt>) {
        let mut taken = 0;
        loop {
            let rest = input.get(taken..).unwrap_or_default();
            if rest.is_empty() {
                return (taken, None);
            }
            if self.errand == Errand::Discard {
                return (taken, Some(StopAt::Errand));
            }
            let scan = match self.up.next(rest) {
                Ok(scan) => scan,
                Err(error) => return (taken, Some(StopAt::Violation(error))),
            };
            match scan {
                Scan::Continue(more) => {
                    if !self.dropping_up {
                        splice.pass(input, taken..taken + more);
                    }
                    taken += more;
                }
                Scan::Frame(header) => {
                    let mut at = taken..taken + header.frame_len();
                    match self.on_client_message(header, input, at.clone(), splice, shared) {
                        Step::Pass => splice.pass(input, at.clone()),
                        Step::Drop => {}
                        Step::Answered(len) => at.end = at.start + len,
                        Step::Written(new) => splice.pass(input, at.start + new..at.end),
                        Step::Stop(why) => return (taken, Some(why)),
                    }
                    taken = at.end;
                }
                Scan::Incomplete { need } => {
                    let header = frame::peek(rest, Sender::Client).ok().flatten();
                    let (Some(need), Some(header)) = (need, header) else {
                        return (taken, None);
                    };
                    if need <= self.whole_from_client(header, rest) {
                        return (taken, None);
                    }
                    match self.begin_large(header, input, taken..input.len(), splice, shared) {
                        Ok(written) => taken += written,
                        Err(why) => return (taken, Some(why)),
                    }
                }
            }
        }
    }

    /// A message that is too large to be collected: from here on its bytes pass as they come. Answers how many are dealt with.
    fn begin_large(
        &mut self,
        header: Header,
        input: &[u8],
        at: Range<usize>,
        splice: &mut Splice<'_>,
        shared: &Shared,
    ) -> Result<usize, StopAt> {
        let step = self.on_client_message(header, input, at.clone(), splice, shared);
        if let Step::Stop(why) = step {
            return Err(why);
        }
        self.up.begin_stream(header);
        self.dropping_up = matches!(step, Step::Drop);
        let is_text = matches!(header.tag, b'Q' | b'P') && !self.dropping_up;
        if is_text && matches!(self.place, Place::Server(_)) {
            // Nobody knows what the rest of it does to the session.
            self.state.keep(Hold::LargeStatement);
        }
        let Step::Written(new) = step else {
            return Ok(0);
        };
        let written = input.get(at.start..at.start + new).unwrap_or_default();
        self.up.next(written).map_err(StopAt::Violation)?;
        Ok(new)
    }

    /// Decides about one message: `input[at]`, whole or, if it is large, what of it is there.
    fn on_client_message(
        &mut self,
        header: Header,
        input: &[u8],
        at: Range<usize>,
        splice: &mut Splice<'_>,
        shared: &Shared,
    ) -> Step {
        let tag = header.tag;
        if tag == b'X' {
            return Step::Stop(StopAt::Goodbye);
        }
        if tag == b'p' {
            let from = Sender::Client;
            return Step::Stop(StopAt::Violation(FrameError::UnknownTag { tag, from }));
        }
        if self.refusing != Refusing::No {
            return self.refuse_message(tag);
        }
        let ahead = input.get(at.start..).unwrap_or_default();
        if let Some(step) = self.before(header, ahead, shared) {
            return step;
        }
        let Place::Server(server) = &mut self.place else {
            return self.without_server(tag);
        };
        if server.owed.is_skipping() && tag != b'S' {
            // The server would throw it away.
            return Step::Drop;
        }
        if matches!(tag, b'Q' | b'F') && server.owed.is_in_implicit_batch() {
            // Nobody else shall meet what is left behind.
            self.state.keep(Hold::Unclear);
        }
        if matches!(tag, b'Q' | b'B') {
            let refused = self.examine(header, input, at.clone(), splice, shared);
            return refused.unwrap_or_else(|| self.on_statement(header, input, at, splice, shared));
        }
        let Place::Server(server) = &mut self.place else {
            return self.without_server(tag);
        };
        let client = |server: &mut Server, sent| {
            server.owed.sent(sent, By::Client, 0);
            Step::Pass
        };
        let body = input.get(at.start + HEADER_LEN..at.end).unwrap_or_default();
        match tag {
            b'F' => self.on_function_call(header, input, at, splice, shared),
            b'E' => self.on_execute(input, at, splice),
            b'S' => client(server, Sent::Sync),
            b'c' | b'f' => client(server, Sent::CopyEnd),
            b'P' if self.lacks_types(body) => Step::Stop(StopAt::Number),
            b'P' => self.on_parse(header, input, at, splice, shared),
            b'D' => self.on_describe(input, body, splice),
            b'C' => self.on_close(body),
            _ => Step::Pass,
        }
    }

    /// A Query or a Bind that may go to the server.
    fn on_statement(
        &mut self,
        header: Header,
        input: &[u8],
        at: Range<usize>,
        splice: &mut Splice<'_>,
        shared: &Shared,
    ) -> Step {
        let body = input.get(at.start + HEADER_LEN..at.end).unwrap_or_default();
        let step = match header.tag {
            b'Q' => {
                let step = self.on_query(header, input, body, splice, shared);
                if !matches!(step, Step::Stop(_)) {
                    self.number_query(body, shared);
                }
                step
            }
            _ => {
                let step = self.on_bind(header, input, body, splice, shared);
                self.bind_numbered(step, input, at, splice, shared)
            }
        };
        // What waits for an errand is not examined twice.
        if !matches!(step, Step::Stop(_))
            && let Some(routed) = &mut self.routed
        {
            routed.policing.is_clear = false;
        }
        step
    }

    /// A message of a client that has no server.
    fn without_server(&mut self, tag: u8) -> Step {
        match tag {
            // What is left of a COPY that has failed, or nothing to flush: the server would ignore it.
            b'd' | b'c' | b'f' | b'H' => Step::Drop,
            b'S' => {
                encode::backend::ready_for_query(self.to_client.buffer(), b'I');
                Step::Drop
            }
            _ => Step::Stop(StopAt::NeedServer),
        }
    }

    /// A message behind an error that the proxy has answered with.
    fn refuse_message(&mut self, tag: u8) -> Step {
        if self.refusing == Refusing::One || tag == b'S' {
            self.refusing = Refusing::No;
            self.ready_for_query();
        }
        Step::Drop
    }

    fn on_query(
        &mut self,
        header: Header,
        input: &[u8],
        body: &[u8],
        splice: &mut Splice<'_>,
        shared: &Shared,
    ) -> Step {
        self.note_text(body);
        let is_read = self.shares() && body.len() >= header.body_len();
        let text = body.strip_suffix(b"\0").unwrap_or(body);
        let program = is_read.then(|| program(text)).flatten();
        if looks(program.as_ref()) && self.forgets_sequences(input, splice)
            || has_listen(program.as_ref())
                && self.state.shares_channels_of(text)
                && self.waits_to_hear(program.as_ref())
        {
            return Step::Stop(StopAt::Errand);
        }
        let Place::Server(server) = &mut self.place else {
            return Step::Stop(StopAt::NeedServer);
        };
        add(&server.face.counters.queries, 1);
        // It ends the unnamed statement (`exec_simple_query`).
        server.statements.unnamed = 0;
        self.unnamed.attempt = 0;
        self.unnamed.frame = Vec::new();
        if let Some(report) = self.refusal(program.as_ref(), shared) {
            return self.fail(header.tag, body, report, input, splice);
        }
        let does = Control::of(program.as_ref());
        self.ask_number(does, input, splice);
        let Place::Server(server) = &mut self.place else {
            return Step::Stop(StopAt::NeedServer);
        };
        let named = deallocated(program.as_ref()).and_then(|name| self.statements.remove(name));
        if let Some(statement) = named {
            // Said once more, it would be of nothing.
            server.trace.let_go();
            return self.deallocate(&statement, input, HEADER_LEN + body.len(), splice);
        }
        let settings = &mut server.settings;
        let (program, step) = match self.state.restoring(text, program.as_ref(), settings) {
            Some((text, does)) => {
                put_query(splice.make(input), &text);
                (Some(does), Step::Written(HEADER_LEN + body.len()))
            }
            None => (program, Step::Pass),
        };
        let note = self.state.sent(program.as_ref(), settings);
        if server.owed.sent(Sent::Query, By::Client, note) {
            server.owed.controls(does);
        }
        if self.state.discards(program.as_ref(), settings) {
            self.errand = Errand::Discard;
        }
        step
    }

    fn on_function_call(
        &mut self,
        header: Header,
        input: &[u8],
        at: Range<usize>,
        splice: &mut Splice<'_>,
        shared: &Shared,
    ) -> Step {
        let frame = input.get(at.clone()).unwrap_or_default();
        let body = frame.get(HEADER_LEN..).unwrap_or_default();
        if let Some(report) = self.refusal_of_call(body, shared) {
            return self.fail(header.tag, body, report, input, splice);
        }
        if let Place::Server(server) = &mut self.place {
            add(&server.face.counters.queries, 1);
            self.state.touch(&mut server.settings);
            server.owed.sent(Sent::FunctionCall, By::Client, 0);
        }
        self.call_numbered(input, at, splice)
    }

    /// DEALLOCATE of a statement that has another name on the server; some drivers say it in SQL.
    fn deallocate(
        &mut self,
        statement: &Statement,
        input: &[u8],
        len: usize,
        splice: &mut Splice<'_>,
    ) -> Step {
        let attempt = self.next_attempt();
        let Place::Server(server) = &mut self.place else {
            return Step::Stop(StopAt::NeedServer);
        };
        let out = splice.make(input);
        if !server.statements.has(statement) {
            prepare(server, statement, By::Proxy, attempt, out);
        }
        server.statements.remove(statement);
        server.owed.sent(Sent::Query, By::Client, 0);
        let start = out.len();
        out.put_u8(b'Q');
        out.put_u32(0);
        out.put_slice(b"DEALLOCATE ");
        statement.write_name(out);
        patch_len(out, start, out.len() - start - 1);
        Step::Written(len)
    }

    fn on_execute(&mut self, input: &[u8], at: Range<usize>, splice: &mut Splice<'_>) -> Step {
        let frame = input.get(at).unwrap_or_default();
        let body = frame.get(HEADER_LEN..).unwrap_or_default();
        let portal = Reader::new(body).cstr().unwrap_or_default();
        if self.portal_waits_to_hear(portal) {
            return Step::Stop(StopAt::Errand);
        }
        let Place::Server(server) = &mut self.place else {
            return Step::Stop(StopAt::NeedServer);
        };
        add(&server.face.counters.queries, 1);
        let bound = self.portals.get(portal);
        let program = bound.and_then(|bound| bound.program.as_ref());
        let routed = self.routed.as_ref();
        let number = routed.map_or(0, |routed| routed.numbers.portal(portal));
        let discards = self.state.discards(program, &server.settings);
        let does = Control::of(program);
        let note = self.state.sent(program, &mut server.settings);
        let goes = server.owed.sent(Sent::Execute, By::Client, note);
        if goes {
            server.owed.names_portal(number);
            server.owed.controls(does);
        }
        if goes && discards {
            self.errand = Errand::Discard;
            let out = splice.make(input);
            out.put_slice(frame);
            out.put_slice(FLUSH);
            return Step::Written(frame.len());
        }
        Step::Pass
    }

    fn on_parse(
        &mut self,
        header: Header,
        input: &[u8],
        at: Range<usize>,
        splice: &mut Splice<'_>,
        shared: &Shared,
    ) -> Step {
        let attempt = self.next_attempt();
        let body = input.get(at.start + HEADER_LEN..at.end).unwrap_or_default();
        let text = body.splitn(2, |byte| *byte == 0).nth(1);
        self.note_text(text.unwrap_or_default());
        let frame = input.get(at.clone()).unwrap_or_default();
        let body = frame.get(HEADER_LEN..).unwrap_or_default();
        let mut reader = Reader::new(body);
        let name = reader.cstr();
        let is_read = self.shares() && frame.len() == header.frame_len();
        let rest = reader.rest();
        let instead = is_read.then(|| self.state.restoring_prepared(rest));
        let instead = instead.flatten();
        match name {
            Ok([]) => {
                let program = match &instead {
                    Some((_, does)) => Some(Arc::clone(does)),
                    None if is_read => Reader::new(rest).cstr().ok().and_then(program),
                    None => None,
                };
                if looks(program.as_ref()) && self.forgets_sequences(input, splice) {
                    return Step::Stop(StopAt::Errand);
                }
                self.ask_number(Control::of(program.as_ref()), input, splice);
                let Place::Server(server) = &mut self.place else {
                    return Step::Stop(StopAt::NeedServer);
                };
                if server.owed.sent(Sent::Parse, By::Client, attempt) {
                    server.statements.unnamed = attempt;
                    self.unnamed.attempt = attempt;
                    self.unnamed.frame.clear();
                    self.unnamed.program = program;
                    self.unnamed.told = None;
                    if let Some((rest, _)) = instead {
                        let out = splice.make(input);
                        let start = out.len();
                        put_unnamed(out, &rest);
                        let written = out.split_off(start);
                        self.unnamed.frame.extend_from_slice(&written);
                        put_frame(out, &written, b"", server);
                        return Step::Written(frame.len());
                    }
                    if is_read {
                        self.unnamed.frame.extend_from_slice(frame);
                    }
                }
                if server.numbers.is_none() || !is_read {
                    return Step::Pass;
                }
                put_frame(splice.make(input), frame, b"", server);
                Step::Written(frame.len())
            }
            Ok(name) if is_read => {
                let Some((_, known)) = self.statements.get(name) else {
                    let statements = &shared.pools.statements;
                    let statement = match instead {
                        Some((rest, does)) => statements.intern_instead(&rest, &does),
                        None => statements.intern(rest),
                    };
                    if looks(statement.program()) && self.forgets_sequences(input, splice) {
                        return Step::Stop(StopAt::Errand);
                    }
                    self.ask_number(Control::of(statement.program()), input, splice);
                    let Place::Server(server) = &mut self.place else {
                        return Step::Stop(StopAt::NeedServer);
                    };
                    let out = splice.make(input);
                    prepare(server, &statement, By::Client, attempt, out);
                    if !self.statements.insert(name, statement, attempt) {
                        return Step::Stop(StopAt::TooMuchPrepared);
                    }
                    return Step::Written(frame.len());
                };
                let Place::Server(server) = &mut self.place else {
                    return Step::Stop(StopAt::NeedServer);
                };
                let out = splice.make(input);
                // It exists already: so the server shall say, in its turn.
                if !server.statements.has(&known.statement) {
                    prepare(server, &known.statement, By::Proxy, attempt, out);
                }
                server.owed.sent(Sent::Parse, By::Client, 0);
                put_parse(out, &known.statement, server);
                Step::Written(frame.len())
            }
            _ => self.pass_as(Sent::Parse),
        }
    }

    fn on_bind(
        &mut self,
        header: Header,
        input: &[u8],
        body: &[u8],
        splice: &mut Splice<'_>,
        shared: &Shared,
    ) -> Step {
        let mut reader = Reader::new(body);
        let names = reader
            .cstr()
            .and_then(|portal| Ok((portal, reader.cstr()?)));
        let Ok((portal, name)) = names else {
            return self.pass_as(Sent::Bind);
        };
        let program = match self.statements.get(name) {
            Some((_, prepared)) => prepared.statement.program(),
            None => self.unnamed.program.as_ref().filter(|_| name.is_empty()),
        };
        if let Some(report) = self.refusal(program, shared) {
            return self.fail(header.tag, body, report, input, splice);
        }
        let does = Control::of(program);
        if looks(program) && self.forgets_sequences(input, splice) {
            return Step::Stop(StopAt::Errand);
        }
        self.ask_number(does, input, splice);
        let (statement, attempt, bound) = match self.ready_statement(name, input, splice) {
            Ready::Later => return Step::Stop(StopAt::Errand),
            Ready::AsItIs => {
                let program = self.unnamed.program.clone().filter(|_| name.is_empty());
                self.portals.note(portal, Bound { program, untold: 0 });
                return self.pass_as(Sent::Bind);
            }
            Ready::Named {
                statement,
                attempt,
                untold,
            } => {
                let bound = Bound {
                    program: statement.program().cloned(),
                    untold: if untold { attempt } else { 0 },
                };
                (Some(statement), attempt, bound)
            }
            Ready::Outdated => (None, REFUSED, Bound::default()),
        };
        if let Some(statement) = &statement {
            self.note_text(statement.rest());
        }
        self.portals.note(portal, bound);
        let Place::Server(server) = &mut self.place else {
            return Step::Stop(StopAt::NeedServer);
        };
        server.owed.sent(Sent::Bind, By::Client, attempt);
        let out = splice.make(input);
        let start = out.len();
        out.put_u8(b'B');
        out.put_u32(0);
        out.put_slice(portal);
        out.put_u8(0);
        let before_name = out.len();
        put_name(out, statement.as_deref());
        let old = HEADER_LEN + portal.len() + 1 + name.len() + 1;
        let new_name = out.len() - before_name;
        // Both names are shorter than the message, which is far below 4 GB.
        let len = (header.len as usize + new_name).saturating_sub(name.len() + 1);
        patch_len(out, start, len);
        Step::Written(old)
    }

    fn on_describe(&mut self, input: &[u8], body: &[u8], splice: &mut Splice<'_>) -> Step {
        let mut reader = Reader::new(body);
        let name = match (reader.u8(), reader.cstr()) {
            (Ok(b'S'), Ok(name)) => name,
            (Ok(b'S'), Err(_)) => return self.pass_as(Sent::DescribeStatement),
            (Ok(b'P'), Ok(portal)) => {
                let untold = self.portals.get(portal).map_or(0, |bound| bound.untold);
                let routed = self.routed.as_ref();
                let number = routed.map_or(0, |routed| routed.numbers.portal(portal));
                let step = self.pass_with(Sent::DescribePortal, untold);
                if let Place::Server(server) = &mut self.place {
                    server.owed.names_portal(number);
                }
                return step;
            }
            _ => return self.pass_as(Sent::DescribePortal),
        };
        let (statement, attempt) = match self.ready_statement(name, input, splice) {
            Ready::Later => return Step::Stop(StopAt::Errand),
            Ready::AsItIs => {
                let is_shared = name.is_empty() && self.shares();
                let attempt = if is_shared { self.unnamed.attempt } else { 0 };
                return self.pass_with(Sent::DescribeStatement, attempt);
            }
            Ready::Named {
                statement, attempt, ..
            } => (Some(statement), attempt),
            Ready::Outdated => (None, REFUSED),
        };
        let Place::Server(server) = &mut self.place else {
            return Step::Stop(StopAt::NeedServer);
        };
        server
            .owed
            .sent(Sent::DescribeStatement, By::Client, attempt);
        put_named(splice.make(input), b'D', statement.as_deref());
        Step::Written(HEADER_LEN + body.len())
    }

    fn on_close(&mut self, body: &[u8]) -> Step {
        let mut reader = Reader::new(body);
        if let (Ok(b'S'), Ok(name)) = (reader.u8(), reader.cstr()) {
            if name.is_empty() {
                self.unnamed.attempt = 0;
                if let Place::Server(server) = &mut self.place {
                    server.statements.unnamed = 0;
                }
            } else {
                // The server keeps its own for whoever needs it next; it has none of this name, which is no error.
                self.statements.remove(name);
            }
        }
        self.pass_as(Sent::Close)
    }

    fn pass_as(&mut self, sent: Sent) -> Step {
        self.pass_with(sent, 0)
    }

    fn pass_with(&mut self, sent: Sent, note: Note) -> Step {
        if let Place::Server(server) = &mut self.place {
            server.owed.sent(sent, By::Client, note);
        }
        Step::Pass
    }
}
