//! Owns what becomes of a server's messages: whether they are owed, who gets them, and what they tell of the server.

use bytes::BufMut;
use tandem_wire::{
    Header, Scan, Sender,
    backend::{CommandComplete, ErrorFields, ParameterStatus},
    frame::{self, HEADER_LEN},
};

use super::{
    end::End,
    owed::{By, Event, Sent},
    splice::Splice,
    task::{Place, Task, whole_max},
};

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
            let Place::Server(server) = &mut self.place else {
                return (taken, None);
            };
            if rest.is_empty() {
                return (taken, None);
            }
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
                        (Some(need), Some(header))
                            if need > whole_max(header.tag, Sender::Server) =>
                        {
                            (header, None)
                        }
                        _ => return (taken, None),
                    }
                }
            };
            let end = more.unwrap_or(rest.len());
            let body = rest.get(HEADER_LEN..end).unwrap_or_default();
            let to = match self.on_server_message(header, body) {
                Ok(to) => to,
                Err(end) => return (taken, Some(end)),
            };
            match more {
                Some(more) => {
                    if to == By::Client && !self.put_error(header, body, input, splice) {
                        splice.pass(input, taken..taken + more);
                    }
                    taken += more;
                }
                None => {
                    // Too large to be collected: from here on its bytes pass as they come.
                    self.dropping_down = to == By::Proxy;
                    if let Place::Server(server) = &mut self.place {
                        server.scanner.begin_stream(header);
                    }
                }
            }
        }
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

    /// Decides about one message, of which `body` is what has come. Answers who gets it.
    fn on_server_message(&mut self, header: Header, body: &[u8]) -> Result<By, End> {
        let Place::Server(server) = &mut self.place else {
            return Ok(By::Client);
        };
        let reply = server
            .owed
            .reply(header.tag, body)
            .map_err(End::ServerMismatch)?;
        let (client, settings) = (reply.to == By::Client, &mut server.settings);
        match reply.event {
            Event::None | Event::Answered(Sent::Parse | Sent::Bind | Sent::Close, _) => {}
            Event::Parameter => {
                if let Ok(status) = ParameterStatus::parse(body) {
                    if client {
                        self.state.reported(status.name, status.value, settings);
                    } else {
                        settings.confirmed(status.name, status.value);
                    }
                }
            }
            Event::Completed(note) | Event::Answered(Sent::Execute, note) if client => {
                if header.tag != b'I' {
                    self.state.succeeded(note, settings);
                }
                self.on_complete(header, body);
            }
            Event::Completed(_) | Event::Answered(..) => {}
            Event::CopyBegun => self.take_back_undone(),
            Event::Ready if client => {
                self.registered.entry().ready();
                let (status, owes) = (server.owed.status(), !server.owed.is_quiet());
                self.state.ready(status, owes, settings);
                if !owes {
                    self.note_answered(status);
                }
            }
            Event::Ready => self.syncing = false,
            Event::Error(Some(Sent::Query), _) if !client => {
                let text = ErrorFields::parse(body).map(|fields| fields.to_owned().to_string());
                return Err(End::CannotSync(text.unwrap_or_default()));
            }
            Event::Error(sent, note) => {
                self.state.failed(settings);
                self.on_error(sent, note, body);
                // Whoever sent the message that failed, the client's own is what comes to nothing.
                return Ok(By::Client);
            }
        }
        Ok(reply.to)
    }

    fn on_error(&mut self, sent: Option<Sent>, statement: u64, body: &[u8]) {
        self.take_back_undone();
        let Place::Server(server) = &mut self.place else {
            return;
        };
        if !matches!(sent, Some(Sent::Bind | Sent::DescribeStatement)) || statement == 0 {
            return;
        }
        let fields = ErrorFields::parse(body);
        match fields.as_ref().ok().and_then(|fields| fields.code()) {
            // "cached plan must not change result type": what was prepared before the table was altered.
            Some(b"0A000") => self.statements.outdate(statement),
            // Somebody has deallocated it behind our back: who knows what else. Unless we did not prepare it any more.
            Some(b"26000") => server.spent |= !self.statements.is_outdated(statement),
            _ => {}
        }
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
        if header.tag != b'C' || body.first() != Some(&b'D') {
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
