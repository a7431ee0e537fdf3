//! Owns the protocol of the console: simple and extended queries of one client, one after the other.
//!
//! Every column is a text, whose text and binary forms are the same bytes, so clients may ask for either.

use std::{collections::HashMap, io, sync::Arc, vec};

use bytes::{BufMut, Bytes, BytesMut};
use tandem_wire::{
    ErrorReport,
    auth::ClientIo,
    encode::backend as encode,
    frame::{self, HEADER_LEN, Sender},
    frontend::{Bind, Close, Describe, Execute, Parse, Query, Target},
};
use tokio::{io::AsyncReadExt, sync::watch};

use super::{
    act,
    answer::{Answer, Row},
    statement::{Statement, parse},
};
use crate::session::{Shared, registry::Stop, report, stopping};

/// The longest message.
const MESSAGE_MAX: usize = 1 << 20;
/// Prepared statements, and portals, of one client.
const NAMES_MAX: usize = 100;
/// Answers are sent at the latest when they are this long.
const SEND_FROM: usize = 64 << 10;

/// A statement that was parsed; none for an empty text.
type Prepared = Option<Arc<Statement>>;

/// What Execute works on.
struct Portal {
    prepared: Prepared,
    /// Rows that the client did not want yet.
    left: Option<vec::IntoIter<Row>>,
}

/// Why a client's connection ends.
enum End {
    /// It said so, or is gone.
    Client,
    /// It does not speak the protocol.
    Violation(String),
    /// The daemon ends.
    Stopped,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        End::Client
    }
}

/// One client that is in.
pub(super) struct Conversation<'a> {
    shared: &'a Shared,
    user: &'a str,
    io: ClientIo,
    out: BytesMut,
    prepared: HashMap<Bytes, Prepared>,
    portals: HashMap<Bytes, Portal>,
    /// After an error nothing is done until the next Sync.
    skipping: bool,
}

impl<'a> Conversation<'a> {
    pub(super) fn new(shared: &'a Shared, user: &'a str, io: ClientIo) -> Conversation<'a> {
        Conversation {
            shared,
            user,
            io,
            out: BytesMut::new(),
            prepared: HashMap::new(),
            portals: HashMap::new(),
            skipping: false,
        }
    }

    pub(super) fn into_io(self) -> ClientIo {
        self.io
    }

    /// Answers until the end; returns the last words.
    pub(super) async fn run(&mut self, stop: &mut watch::Receiver<Stop>) -> BytesMut {
        loop {
            // A statement that has begun is finished: what it does is not done by halves.
            let message = tokio::select! {
                message = self.message() => message,
                () = stopping(stop) => Err(End::Stopped),
            };
            let done = match message {
                Ok((tag, body)) => self.on_message(tag, &body).await,
                Err(end) => Err(end),
            };
            return match done {
                Ok(()) => continue,
                Err(End::Client) => BytesMut::new(),
                Err(End::Violation(what)) => report::bytes(&report::client_violation(&what)),
                Err(End::Stopped) => report::bytes(&report::administrator_command()),
            };
        }
    }

    /// The next message. Nothing is lost when the wait for it is given up.
    async fn message(&mut self) -> Result<(u8, Bytes), End> {
        loop {
            let header = frame::peek(&self.io.rx, Sender::Client)
                .map_err(|error| End::Violation(error.to_string()))?;
            if let Some(header) = header {
                if header.body_len() > MESSAGE_MAX {
                    return Err(End::Violation("a message is too long".to_owned()));
                }
                if self.io.rx.len() >= header.frame_len() {
                    let frame = self.io.rx.split_to(header.frame_len()).freeze();
                    return Ok((header.tag, frame.slice(HEADER_LEN..)));
                }
            }
            if self.io.stream.read_buf(&mut self.io.rx).await? == 0 {
                return Err(End::Client);
            }
        }
    }

    async fn send(&mut self) -> Result<(), End> {
        let out = self.out.split();
        Ok(self.io.send(&out).await?)
    }

    async fn on_message(&mut self, tag: u8, body: &Bytes) -> Result<(), End> {
        match tag {
            b'X' => return Err(End::Client),
            b'Q' => {
                self.skipping = false;
                let query = Query::parse(body).map_err(violation)?;
                self.simple(query.sql).await?;
                encode::ready_for_query(&mut self.out, b'I');
                return self.send().await;
            }
            b'S' => {
                self.skipping = false;
                self.portals.clear();
                encode::ready_for_query(&mut self.out, b'I');
                return self.send().await;
            }
            b'H' => return self.send().await,
            // Of a COPY that was never asked for; a server ignores them too.
            b'd' | b'c' | b'f' => return Ok(()),
            b'F' => {
                let error = ErrorReport::error("0A000", "the console has no functions");
                encode::error(&mut self.out, &error);
                encode::ready_for_query(&mut self.out, b'I');
                return self.send().await;
            }
            b'P' | b'B' | b'D' | b'E' | b'C' if self.skipping => return Ok(()),
            b'P' | b'B' | b'D' | b'E' | b'C' => {}
            other => {
                let what = format!("message type {:?} is not expected", char::from(other));
                return Err(End::Violation(what));
            }
        }
        let mut then = None;
        let done = match tag {
            b'P' => self.parse(body),
            b'B' => self.bind(body),
            b'D' => self.describe(body),
            b'E' => self.execute(body).await.map(|shutdown| then = shutdown),
            _ => self.close(body),
        };
        if let Err(error) = done {
            encode::error(&mut self.out, &error);
            self.skipping = true;
        }
        if self.out.len() > SEND_FROM || then.is_some() {
            self.send().await?;
        }
        self.shut_down(then);
        Ok(())
    }

    fn shut_down(&self, how: Option<crate::daemon::Shutdown>) {
        if how.is_some() {
            self.shared.console.shutdown.send_replace(how);
        }
    }

    /// Runs the statements of a simple query until one fails.
    async fn simple(&mut self, sql: &[u8]) -> Result<(), End> {
        let statements = text(sql).and_then(parse);
        let statements = match statements {
            Ok(statements) => statements,
            Err(error) => {
                encode::error(&mut self.out, &error);
                return Ok(());
            }
        };
        if statements.is_empty() {
            empty_query(&mut self.out);
        }
        for statement in statements {
            let answer = match act::run(self.shared, self.user, &statement).await {
                Ok(answer) => answer,
                Err(error) => {
                    encode::error(&mut self.out, &error);
                    return Ok(());
                }
            };
            let then = answer.then;
            notices(&mut self.out, &answer);
            let columns = statement.columns();
            if !columns.is_empty() {
                encode::row_description(&mut self.out, columns)?;
            }
            for row in answer.rows {
                self.row(&row).await?;
            }
            encode::command_complete(&mut self.out, statement.tag())?;
            if then.is_some() {
                self.send().await?;
            }
            self.shut_down(then);
        }
        Ok(())
    }

    async fn row(&mut self, row: &Row) -> Result<(), End> {
        encode::data_row(&mut self.out, row.iter().map(Option::as_deref))?;
        if self.out.len() > SEND_FROM {
            self.send().await?;
        }
        Ok(())
    }

    fn parse(&mut self, body: &Bytes) -> Result<(), ErrorReport> {
        let message = Parse::parse(body).map_err(malformed)?;
        let mut statements = parse(text(message.sql)?)?.into_iter();
        let prepared = statements.next().map(Arc::new);
        if statements.next().is_some() {
            return Err(ErrorReport::error(
                "42601",
                "cannot insert multiple commands into a prepared statement",
            ));
        }
        keep(
            &mut self.prepared,
            message.name,
            prepared,
            "42P05",
            "prepared statement",
        )?;
        self.out.put_slice(b"1\0\0\0\x04");
        Ok(())
    }

    fn prepared(&self, name: &[u8]) -> Result<Prepared, ErrorReport> {
        let found = self.prepared.get(name).cloned();
        found.ok_or_else(|| unknown("26000", "prepared statement", name))
    }

    fn bind(&mut self, body: &Bytes) -> Result<(), ErrorReport> {
        let message = Bind::parse(body).map_err(malformed)?;
        if message.param_count() > 0 {
            return Err(ErrorReport::error(
                "08P01",
                "statements of the console have no parameters",
            ));
        }
        let portal = Portal {
            prepared: self.prepared(message.statement)?,
            left: None,
        };
        keep(&mut self.portals, message.portal, portal, "42P03", "portal")?;
        self.out.put_slice(b"2\0\0\0\x04");
        Ok(())
    }

    fn describe(&mut self, body: &Bytes) -> Result<(), ErrorReport> {
        let prepared = match Describe::parse(body).map_err(malformed)?.target {
            Target::Statement(name) => {
                let prepared = self.prepared(name)?;
                // No parameters.
                self.out.put_slice(b"t\0\0\0\x06\0\0");
                prepared
            }
            Target::Portal(name) => {
                let portal = self.portals.get(name);
                let portal = portal.ok_or_else(|| unknown("34000", "portal", name))?;
                portal.prepared.clone()
            }
        };
        let columns = prepared.as_deref().map_or(&[][..], Statement::columns);
        match columns.is_empty() {
            true => self.out.put_slice(b"n\0\0\0\x04"),
            false => encode::row_description(&mut self.out, columns).map_err(too_large)?,
        }
        Ok(())
    }

    async fn execute(
        &mut self,
        body: &Bytes,
    ) -> Result<Option<crate::daemon::Shutdown>, ErrorReport> {
        let message = Execute::parse(body).map_err(malformed)?;
        let (shared, user) = (self.shared, self.user);
        let portal = self.portals.get_mut(message.portal);
        let portal = portal.ok_or_else(|| unknown("34000", "portal", message.portal))?;
        let Some(statement) = portal.prepared.clone() else {
            empty_query(&mut self.out);
            return Ok(None);
        };
        let mut then = None;
        let rows = match &mut portal.left {
            Some(rows) => rows,
            none => {
                let answer = act::run(shared, user, &statement).await?;
                then = answer.then;
                notices(&mut self.out, &answer);
                none.insert(answer.rows.into_iter())
            }
        };
        let most = usize::try_from(message.max_rows).unwrap_or(0);
        let most = if most == 0 { usize::MAX } else { most };
        for row in rows.by_ref().take(most) {
            let row = row.iter().map(Option::as_deref);
            encode::data_row(&mut self.out, row).map_err(too_large)?;
        }
        match rows.len() {
            0 => encode::command_complete(&mut self.out, statement.tag()).map_err(too_large)?,
            _ => self.out.put_slice(b"s\0\0\0\x04"),
        }
        Ok(then)
    }

    fn close(&mut self, body: &Bytes) -> Result<(), ErrorReport> {
        match Close::parse(body).map_err(malformed)?.target {
            Target::Statement(name) => drop(self.prepared.remove(name)),
            Target::Portal(name) => drop(self.portals.remove(name)),
        }
        self.out.put_slice(b"3\0\0\0\x04");
        Ok(())
    }
}

/// Keeps something under a name that is not in use; the empty name always can be used again.
fn keep<T>(
    named: &mut HashMap<Bytes, T>,
    name: &[u8],
    value: T,
    taken: &'static str,
    what: &str,
) -> Result<(), ErrorReport> {
    if !name.is_empty() && named.contains_key(name) {
        let name = String::from_utf8_lossy(name);
        return Err(ErrorReport::error(
            taken,
            format!("{what} \"{name}\" already exists"),
        ));
    }
    if named.len() >= NAMES_MAX && !named.contains_key(name) {
        return Err(ErrorReport::error(
            "53000",
            format!("too many names for a {what}"),
        ));
    }
    // A copy: the name must not keep the whole message.
    named.insert(Bytes::copy_from_slice(name), value);
    Ok(())
}

fn text(sql: &[u8]) -> Result<&str, ErrorReport> {
    std::str::from_utf8(sql).map_err(|_| ErrorReport::error("22021", "the statement is not UTF-8"))
}

fn notices(out: &mut BytesMut, answer: &Answer) {
    for sentence in &answer.notices {
        encode::notice(out, &ErrorReport::new("NOTICE", "00000", sentence));
    }
}

fn empty_query(out: &mut BytesMut) {
    out.put_slice(b"I\0\0\0\x04");
}

fn unknown(code: &'static str, what: &str, name: &[u8]) -> ErrorReport {
    let name = String::from_utf8_lossy(name);
    ErrorReport::error(code, format!("{what} \"{name}\" does not exist"))
}

fn violation(error: impl std::fmt::Display) -> End {
    End::Violation(error.to_string())
}

fn malformed(error: impl std::fmt::Display) -> ErrorReport {
    ErrorReport::error("08P01", error.to_string())
}

fn too_large(error: impl std::fmt::Display) -> ErrorReport {
    ErrorReport::error("54000", error.to_string())
}
