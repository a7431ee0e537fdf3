//! Owns what becomes of a server's messages: whether they are owed, who gets them, and what they tell of the server.

use std::io;

use bytes::{BufMut, BytesMut};
use tandem_wire::{
    ErrorReport, Header, Scan, Sender,
    backend::{CommandComplete, ErrorFields, ParameterStatus},
    encode,
    frame::{self, HEADER_LEN},
};

use super::{
    end::End,
    numbers::Renumbered,
    owed::{By, Event, Note, Sent, Status},
    ready::{Errand, REFUSED, patch_len},
    report,
    splice::Splice,
    task::{Place, Task},
    unit::Beside,
};
use crate::config::PoolMode;

/// What becomes of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// The client gets it.
    Passed,
    /// The client never hears of it.
    Kept,
    /// It refuses what had to be refused, in other words: the client gets PostgreSQL's.
    Outdated,
    /// It is of what was sent instead of a message that the proxy has refused: the client gets this.
    Refused(Box<ErrorReport>),
    /// It tells the end of a statement that was sent instead of the client's, which has this command tag.
    Tagged(&'static str),
    /// The server is ready, and the client is in a block that no server knows of: it is told this status.
    Ready(u8),
    /// The server is ready, and has thrown away all that was set: the client is told first what its settings are. Who asked
    /// whether it is ready gets that.
    Discarded(By),
}

impl Fate {
    /// Of a message for these.
    fn of(to: By) -> Fate {
        match to {
            By::Client => Fate::Passed,
            By::Proxy => Fate::Kept,
        }
    }
}

impl Task {
    /// Takes all whole messages. Answers how many bytes of `input` were taken, and whether this is the session's end.
    pub(super) fn on_server_bytes(
        &mut self,
        input: &[u8],
        splice: &mut Splice<'_>,
    ) -> (usize, Option<End>) {
        let mut taken = 0;
        loop {
            let rest = input.get(taken..).unwrap_or_default();
            let Place::Server(server) = &self.place else {
                return (taken, None);
            };
            if rest.is_empty() {
                return (taken, None);
            }
            if server.scanner.at_boundary() && server.owed.passes_rows() && !self.renumbers_rows() {
                // Most of what servers send.
                let rows = frame::run_len(rest, b'D', Sender::Server);
                if rows > 0 {
                    splice.pass(input, taken..taken + rows);
                    taken += rows;
                    continue;
                }
            }
            let Place::Server(server) = &mut self.place else {
                return (taken, None);
            };
            let scan = match server.scanner.next(rest) {
                Ok(scan) => scan,
                Err(error) => return (taken, Some(End::ServerViolation(error))),
            };
            let (header, more) = match scan {
                Scan::Continue(more) => {
                    if !self.dropping_down {
                        splice.pass(input, taken..taken + more);
                    }
                    taken += more;
                    continue;
                }
                Scan::Frame(header) => (header, Some(header.frame_len())),
                Scan::Incomplete { need } => {
                    let header = frame::peek(rest, Sender::Server).ok().flatten();
                    match (need, header) {
                        (Some(need), Some(header)) if need > self.whole_from_server(header.tag) => {
                            (header, None)
                        }
                        _ => return (taken, None),
                    }
                }
            };
            let end = more.unwrap_or(rest.len());
            let body = rest.get(HEADER_LEN..end).unwrap_or_default();
            let told = match more {
                Some(_) => self.told(header, body),
                None => Some(Renumbered::Same),
            };
            let Some(told) = told else {
                // It is looked at once more when its numbers are known.
                return (taken, None);
            };
            let body = match &told {
                Renumbered::Other(own) => own,
                Renumbered::Same => body,
            };
            self.note_acknowledged(header.tag, body);
            let fate = match self.on_server_message(header, body) {
                Ok(fate) => fate,
                Err(end) => return (taken, Some(end)),
            };
            let fate = match fate {
                Fate::Outdated => {
                    encode::backend::error(splice.make(input), &report::outdated());
                    Fate::Kept
                }
                Fate::Refused(report) => {
                    encode::backend::error(splice.make(input), &report);
                    Fate::Kept
                }
                Fate::Tagged(tag) => {
                    put_texts(splice.make(input), b'C', &[tag.as_bytes()]);
                    Fate::Kept
                }
                Fate::Ready(status) => {
                    encode::backend::ready_for_query(splice.make(input), status);
                    Fate::Kept
                }
                Fate::Discarded(to) => {
                    for (name, value) in self.state.discarded() {
                        put_texts(splice.make(input), b'S', &[&name, &value]);
                    }
                    Fate::of(to)
                }
                fate => fate,
            };
            let fate = match header.tag {
                b'Z' => self.before_ready(fate, body, input, splice),
                _ => fate,
            };
            match more {
                Some(more) => {
                    match (fate, &told) {
                        (Fate::Passed, Renumbered::Other(own)) => {
                            let out = splice.make(input);
                            let start = out.len();
                            out.put_u8(header.tag);
                            out.put_u32(0);
                            out.put_slice(own);
                            patch_len(out, start, own.len() + 4);
                        }
                        (Fate::Passed, Renumbered::Same)
                            if !self.put_error(header, body, input, splice) =>
                        {
                            splice.pass(input, taken..taken + more);
                        }
                        _ => {}
                    }
                    taken += more;
                }
                None => {
                    // Too large to be collected: from here on its bytes pass as they come.
                    self.dropping_down = fate != Fate::Passed;
                    if let Place::Server(server) = &mut self.place {
                        server.scanner.begin_stream(header);
                    }
                }
            }
        }
    }

    /// The client hears of what was raised before it is told that the server is ready outside of a transaction.
    fn before_ready(
        &mut self,
        fate: Fate,
        body: &[u8],
        input: &[u8],
        splice: &mut Splice<'_>,
    ) -> Fate {
        let is_settled = matches!(&self.place, Place::Server(server) if server.owed.is_settled());
        self.note_channels(is_settled);
        if fate != Fate::Passed || body != b"I" {
            return fate;
        }
        if self.is_told_later() {
            return Fate::Kept;
        }
        if let Some(news) = self.news() {
            splice.make(input).put_slice(&news);
        }
        fate
    }

    /// Writes an error that speaks of a statement by its name on servers. Whether it was one.
    fn put_error(
        &self,
        header: Header,
        body: &[u8],
        input: &[u8],
        splice: &mut Splice<'_>,
    ) -> bool {
        if header.tag != b'E' {
            return false;
        }
        let Some(body) = self.statements.with_own_names(body) else {
            return false;
        };
        let Ok(len) = u32::try_from(body.len() + 4) else {
            return false;
        };
        let out = splice.make(input);
        out.put_u8(header.tag);
        out.put_u32(len);
        out.put_slice(&body);
        true
    }

    /// Decides about one message, of which `body` is what has come.
    fn on_server_message(&mut self, header: Header, body: &[u8]) -> Result<Fate, End> {
        if header.tag == b'N' && is_crash(body) {
            self.pool.note_crash();
            if self.mode == PoolMode::Transaction {
                // The session lives on; its client is told what that means for it.
                return Ok(Fate::Kept);
            }
        }
        let Place::Server(server) = &mut self.place else {
            return Ok(Fate::Passed);
        };
        let reply = server
            .owed
            .reply(header.tag, body)
            .map_err(End::ServerMismatch)?;
        let readied = self.errand.is_under_way() && server.owed.is_untouched();
        let (client, settings) = (reply.to == By::Client, &mut server.settings);
        let discards = self.errand == Errand::Discard;
        if header.tag == b'V' && !client {
            server.trace.numbered(body);
        }
        match reply.event {
            Event::None | Event::Answered(Sent::Parse | Sent::Bind | Sent::Close, _) => {}
            Event::Parameters(attempt) => self.on_parameters(reply.to, attempt, body),
            Event::Answered(Sent::DescribePortal, attempt) => {
                self.on_described(reply.to, attempt, (header.tag == b'T').then_some(body));
            }
            Event::Parameter => {
                if let Ok(status) = ParameterStatus::parse(body) {
                    if client && discards && self.state.is_default(status.name) {
                        // What the client's login asked for is to come.
                        settings.now.reported(status.name, status.value);
                        return Ok(Fate::Kept);
                    }
                    if client {
                        self.state.reported(status.name, status.value, settings);
                    } else {
                        settings.confirmed(status.name, status.value);
                    }
                }
            }
            Event::Completed(note) | Event::Answered(Sent::Execute, note) if client => {
                let tag = match header.tag {
                    b'I' => None,
                    _ => self.state.succeeded(note, settings),
                };
                self.on_complete(header, body);
                if let Some(tag) = tag {
                    return Ok(Fate::Tagged(tag));
                }
            }
            Event::Completed(_) | Event::Answered(..) => {}
            Event::CopyBegun => {
                if discards {
                    // The server reads data, and ignores the Sync that was to end it.
                    self.errand = Errand::None;
                }
                self.take_back_undone();
            }
            Event::Ready if client || discards => {
                if client {
                    self.registered.entry().ready();
                }
                let (status, owes) = (server.owed.status(), !server.owed.is_quiet());
                if status == Status::Idle {
                    server.trace.over();
                }
                self.state.ready(status, owes, settings);
                if !owes {
                    self.note_answered(status);
                }
                if discards && !owes {
                    self.errand = Errand::None;
                    return Ok(Fate::Discarded(reply.to));
                }
                if let Some(routed) = &mut self.routed {
                    routed.repeats = false;
                    if routed.beside == Beside::Gone && !owes {
                        routed.beside = Beside::No;
                        return Ok(Fate::Ready(self.status()));
                    }
                }
            }
            Event::Ready => {}
            Event::Error(sent, _) if self.errand.is_query() || sent.is_none() && readied => {
                return self.on_refused(sent.is_none(), body);
            }
            // The client has no need to know, or is told in other words.
            Event::Error(None, _) if self.mode == PoolMode::Transaction && is_node_ending(body) => {
                return Err(node_ends(body));
            }
            Event::Error(sent, note) => {
                if let Some(routed) = &mut self.routed
                    && routed.beside != Beside::No
                {
                    routed.block.fail();
                }
                self.state.failed(settings);
                // Whoever sent the message that failed, the client's own is what comes to nothing.
                return Ok(self.on_error(sent, note, body));
            }
        }
        Ok(Fate::of(reply.to))
    }

    /// The server refuses what makes it ready for the client, or ends the session.
    fn on_refused(&mut self, is_fatal: bool, body: &[u8]) -> Result<Fate, End> {
        match self.errand {
            Errand::Settings { cleaned } if !is_fatal => {
                self.errand = Errand::Refused { cleaned };
                if !cleaned || !self.stalled {
                    return Ok(Fate::Kept);
                }
                // Something that the session relies on is gone: its statement fails for that.
                self.begin_refusing();
                Ok(Fate::Passed)
            }
            // Another part of them too.
            Errand::Refused { .. } if !is_fatal => Ok(Fate::Kept),
            // The client's statement has come to nothing for that.
            Errand::Begin { .. } if !is_fatal => {
                self.errand = Errand::Begin { refused: true };
                Ok(Fate::Passed)
            }
            // The transaction has failed: the client's statement will be told so.
            Errand::Sequences if !is_fatal && !self.is_untouched() => {
                self.errand = Errand::None;
                Ok(Fate::Kept)
            }
            _ => {
                if is_fatal && is_node_ending(body) {
                    return Err(node_ends(body));
                }
                Err(End::NotReady(text_of(body)))
            }
        }
    }

    fn on_error(&mut self, sent: Option<Sent>, note: Note, body: &[u8]) -> Fate {
        if is_evidence(body) {
            self.pool.note_evidence();
        }
        self.take_back_undone();
        if self.errand.is_under_way()
            && matches!(&self.place, Place::Server(server) if server.owed.is_skipping())
        {
            // What it was asked is thrown away with the rest.
            self.errand = Errand::None;
        }
        if let Some(report) = self.was_refused(note, body) {
            return Fate::Refused(Box::new(report));
        }
        let Place::Server(server) = &mut self.place else {
            return Fate::Passed;
        };
        if !matches!(sent, Some(Sent::Bind | Sent::DescribeStatement)) || note == 0 {
            return Fate::Passed;
        }
        let Ok(fields) = ErrorFields::parse(body) else {
            return Fate::Passed;
        };
        match fields.code() {
            // What was prepared before the table was altered. Whoever was told so gets it elsewhere too.
            Some(b"0A000") if fields.get(b'R') == Some(report::REVALIDATE.as_bytes()) => {
                if let Some(prepared) = self.statements.of(note) {
                    prepared.statement.outdate();
                    server.statements.remove(&prepared.statement);
                }
            }
            Some(b"26000") if note == REFUSED => return Fate::Outdated,
            // Somebody has deallocated it behind our back: who knows what else.
            Some(b"26000") => {
                server.spent = true;
                server.statements.clear();
            }
            _ => {}
        }
        Fate::Passed
    }

    /// Forgets statements whose preparation has come to nothing.
    fn take_back_undone(&mut self) {
        let Place::Server(server) = &mut self.place else {
            return;
        };
        for attempt in server.owed.take_undone() {
            server.statements.undo(attempt);
            self.statements.undo(attempt);
            if self.unnamed.attempt == attempt {
                self.unnamed.attempt = 0;
            }
        }
    }

    /// A statement has ended: its command tag tells whether prepared statements have gone with it.
    fn on_complete(&mut self, header: Header, body: &[u8]) {
        if header.tag != b'C' {
            return;
        }
        if let Place::Server(server) = &mut self.place {
            server.trace.completed(body);
        }
        if body.first() != Some(&b'D') {
            return;
        }
        let Ok(command) = CommandComplete::parse(body) else {
            return;
        };
        let Place::Server(server) = &mut self.place else {
            return;
        };
        if matches!(command.tag, b"DISCARD ALL" | b"DEALLOCATE ALL") {
            server.statements.clear();
            self.statements.clear(server.owed.oldest_attempt());
        }
    }
}

/// Whether a server ends the session because its node ends, or may: an operator's request, a crash, a shutdown.
fn is_node_ending(body: &[u8]) -> bool {
    let code = ErrorFields::parse(body).map(|fields| fields.code());
    matches!(code, Ok(Some(b"57P01" | b"57P02" | b"57P03")))
}

/// Whether a notice tells that the server process ends because another one of its node has crashed: it comes from the signal handler
/// for that (`quickdie` in postgres.c, 15 to 18), which no client can raise.
fn is_crash(body: &[u8]) -> bool {
    ErrorFields::parse(body).is_ok_and(|fields| {
        fields.code() == Some(b"57P02") && fields.get(b'R') == Some(b"quickdie")
    })
}

/// Whether a server that has sent this and ended while nobody used it has not said why, as when its process is killed.
pub(super) fn is_without_a_word(mut received: &[u8]) -> bool {
    while let Ok(Some(header)) = frame::peek(received, Sender::Server)
        && let Some((_, rest)) = received.split_at_checked(header.frame_len())
    {
        if header.tag == b'E' {
            return false;
        }
        received = rest;
    }
    true
}

/// Whether an error is worth a look at the node. It is never more than that: every client can raise any of these.
fn is_evidence(body: &[u8]) -> bool {
    let code = ErrorFields::parse(body).map(|fields| fields.code());
    let is_read_only_or_full = matches!(code, Ok(Some(b"25006" | b"53100" | b"53300")));
    is_read_only_or_full || is_node_ending(body)
}

fn text_of(body: &[u8]) -> String {
    let fields = ErrorFields::parse(body).map(|fields| fields.to_owned().to_string());
    fields.unwrap_or_default()
}

fn node_ends(body: &[u8]) -> End {
    End::ServerLost(Some(io::Error::other(text_of(body))))
}

/// A message of terminated texts, which hold no zero byte.
pub(super) fn put_texts(out: &mut BytesMut, tag: u8, texts: &[&[u8]]) {
    let start = out.len();
    out.put_u8(tag);
    out.put_u32(0);
    for text in texts {
        out.put_slice(text);
        out.put_u8(0);
    }
    patch_len(out, start, out.len() - start - 1);
}
