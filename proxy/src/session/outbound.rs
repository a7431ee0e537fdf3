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
    task::{Hold, Place, Task, whole_max},
};
use crate::pool::note_reported;

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
        match reply.event {
            Event::None | Event::Ready => {}
            Event::Parameter => {
                if let Ok(status) = ParameterStatus::parse(body) {
                    note_reported(&mut server.reported, status.name, status.value);
                }
            }
            Event::Answered(Sent::Execute) | Event::Completed => self.on_complete(header, body),
            Event::Answered(..) => {}
            Event::CopyBegun => self.take_back_undone(),
            Event::Error(sent, statement) => {
                self.on_error(sent, statement, body);
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
            // Somebody has deallocated it behind our back: who knows what else.
            Some(b"26000") => server.spent = true,
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

    /// A statement has ended: its command tag tells of some things that concern more than the client.
    fn on_complete(&mut self, header: Header, body: &[u8]) {
        if header.tag != b'C' || !matches!(body.first(), Some(b'D' | b'S' | b'R' | b'L' | b'P')) {
            return;
        }
        let Ok(command) = CommandComplete::parse(body) else {
            return;
        };
        let Place::Server(server) = &mut self.place else {
            return;
        };
        match command.tag {
            b"DISCARD ALL" | b"DEALLOCATE ALL" => {
                server.statements.clear();
                self.statements.clear(server.owed.oldest_attempt());
            }
            b"SET" | b"RESET" | b"LISTEN" | b"LOAD" | b"PREPARE" | b"DECLARE CURSOR" => {
                self.hold.get_or_insert(Hold::State);
            }
            _ => {}
        }
    }
}
