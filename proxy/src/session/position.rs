//! Owns `tandem.position`: what a session has seen, as a text by which another session, of another proxy too, sees at least that.
//!
//! The text is `node:LSN`, or several of these with commas between them. `SHOW tandem.position` and `SET tandem.position = '…'` are
//! answered by the proxy and never reach a server; what is SET is not taken back by ROLLBACK or RESET.

use std::collections::BTreeMap;

use bytes::{BufMut, BytesMut};
use futures_util::future::join_all;
use tandem_replicator::Point;
use tandem_routing_rules::lex::{Kind, Lexer, Token};
use tandem_wire::{ErrorReport, Header, encode, lsn::Lsn};

use super::{
    Shared,
    ahead::{Frames, Known},
    consistency::{BEHIND_MAX, Behind, Told},
    inbound::{Step, StopAt},
    ready::Unnamed,
    report,
    task::{Place, Task, WHOLE_MAX},
    unit::Beside,
};
use crate::node::Nodes;

/// The name, and the column of the answer.
const NAME: &str = "tandem.position";
/// Tokens of a statement that are looked at.
const TOKENS_MAX: usize = 10;
/// No node: everything was seen elsewhere.
const NOWHERE: usize = usize::MAX;

/// A statement about the position.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Statement {
    Show,
    /// To this text; none: it is no string constant.
    Set(Option<String>),
}

impl Statement {
    /// What a text says of it, if that is what it is about.
    fn read(text: &[u8]) -> Option<Statement> {
        let first = text.trim_ascii_start().get(..3)?;
        let may_be = first.eq_ignore_ascii_case(b"sho")
            || first.eq_ignore_ascii_case(b"set")
            || first.starts_with(b"--")
            || first.starts_with(b"/*");
        if !may_be {
            return None;
        }
        let tokens = Lexer::new(text, true).significant().take(TOKENS_MAX);
        let tokens: Vec<Token<'_>> = tokens.collect();
        let tokens = match tokens.split_last() {
            Some((last, rest)) if last.is_sign(";") => rest,
            _ => &tokens[..],
        };
        let (first, rest) = tokens.split_first()?;
        let rest = match rest.split_first() {
            Some((scope, rest)) if scope.is_word("session") || scope.is_word("local") => rest,
            _ => rest,
        };
        let [tandem, dot, position, value @ ..] = rest else {
            return None;
        };
        if !(tandem.is_word("tandem") && dot.is_sign(".") && position.is_word("position")) {
            return None;
        }
        match value {
            [] if first.is_word("show") => Some(Statement::Show),
            [sign, value] if first.is_word("set") && (sign.is_sign("=") || sign.is_word("to")) => {
                Some(Statement::Set(string(value)))
            }
            _ if first.is_word("set") => Some(Statement::Set(None)),
            _ => None,
        }
    }
}

/// The value of a string constant.
fn string(token: &Token<'_>) -> Option<String> {
    let text = std::str::from_utf8(token.text).ok()?;
    let text = text.strip_prefix('\'')?.strip_suffix('\'')?;
    (token.kind == Kind::String).then(|| text.replace("''", "'"))
}

/// The positions of a text.
fn positions(text: &str, nodes: &Nodes) -> Option<Vec<(usize, Lsn)>> {
    let all = text.split(',').map(str::trim);
    let all = all.filter(|_| !text.trim().is_empty());
    all.map(|one| {
        let (name, lsn) = one.rsplit_once(':')?;
        let node = nodes.iter().position(|node| node.name() == name)?;
        Some((node, lsn.parse().ok()?))
    })
    .collect()
}

/// Messages up to a Sync, or a Query, about one statement of this kind and nothing else.
#[derive(Debug)]
struct Batch<'a> {
    statement: Statement,
    /// Bytes of its messages.
    len: usize,
    prepared: Option<&'a [u8]>,
    portal: Option<&'a [u8]>,
    executes: bool,
}

/// What there is to read.
enum Ahead<'a> {
    Batch(Batch<'a>),
    /// More has to come.
    Part,
}

impl<'a> Ahead<'a> {
    fn read<'k>(input: &'a [u8], known: &impl Known<'k>) -> Option<Ahead<'a>> {
        let mut found: Option<Batch<'a>> = None;
        let mut len = 0;
        for (tag, mut body, frame) in Frames::new(input) {
            len += frame.len();
            match tag {
                b'Q' => {
                    return found.is_none().then_some(Ahead::Batch(Batch {
                        executes: true,
                        ..Batch::new(Statement::read(body.cstr().ok()?)?, len)
                    }));
                }
                b'P' if found.is_none() => {
                    let name = body.cstr().ok()?;
                    let statement = Statement::read(body.cstr().ok()?)?;
                    found = Some(Batch {
                        prepared: Some(name),
                        ..Batch::new(statement, len)
                    });
                }
                b'B' => {
                    let (portal, name) = (body.cstr().ok()?, body.cstr().ok()?);
                    let batch = of(&mut found, name, known)?;
                    let formats = usize::from(body.u16().ok()?);
                    body.bytes(2 * formats).ok()?;
                    if body.u16().ok()? != 0 {
                        return None;
                    }
                    batch.portal = Some(portal);
                }
                b'D' | b'C' => match (body.u8().ok()?, body.cstr().ok()?) {
                    (b'S', name) => {
                        of(&mut found, name, known)?;
                    }
                    (_, portal) => {
                        let batch = found.as_ref()?;
                        batch.portal.filter(|bound| *bound == portal)?;
                    }
                },
                b'E' => {
                    let (batch, portal) = (found.as_mut()?, body.cstr().ok()?);
                    batch.portal.filter(|bound| *bound == portal)?;
                    batch.executes = true;
                }
                b'S' => {
                    return found.map(|batch| Ahead::Batch(Batch { len, ..batch }));
                }
                _ => return None,
            }
        }
        found.map(|_| Ahead::Part)
    }
}

/// The batch of the statement of this name.
fn of<'f, 'a, 'k>(
    found: &'f mut Option<Batch<'a>>,
    name: &[u8],
    known: &impl Known<'k>,
) -> Option<&'f mut Batch<'a>> {
    if found.as_ref().and_then(|batch| batch.prepared) != Some(name) {
        let text = known.statement(name)?.split(|byte| *byte == 0).next()?;
        let statement = Statement::read(text)?;
        if found
            .as_ref()
            .is_some_and(|batch| batch.statement != statement)
        {
            return None;
        }
        found.get_or_insert_with(|| Batch::new(statement, 0));
    }
    found.as_mut()
}

impl Batch<'_> {
    fn new(statement: Statement, len: usize) -> Self {
        Batch {
            statement,
            len,
            prepared: None,
            portal: None,
            executes: false,
        }
    }
}

impl Task {
    /// Answers messages that are about the position and nothing else; `input` begins with one. None: they are about something
    /// else, or a server has to say something about it: that it is in a failed transaction, or does not know such a setting.
    pub(super) fn on_position(
        &mut self,
        header: Header,
        input: &[u8],
        shared: &Shared,
    ) -> Option<Step> {
        let routed = self.routed.as_ref()?;
        let may_be = match header.tag {
            b'Q' | b'P' => true,
            b'B' | b'D' | b'C' => routed.prepared_position,
            _ => false,
        };
        if !may_be || routed.beside != Beside::No || self.status() == b'E' {
            return None;
        }
        let known: &Task = self;
        let batch = match Ahead::read(input, &known)? {
            Ahead::Batch(batch) => batch,
            Ahead::Part if input.len() < WHOLE_MAX => return Some(Step::Stop(StopAt::More)),
            Ahead::Part => return None,
        };
        match &self.place {
            Place::Server(server) if server.owed.is_in_batch() => return None,
            Place::Server(server) if !server.owed.is_quiet() => {
                return Some(Step::Stop(StopAt::Answers));
            }
            Place::Server(_) if batch.statement == Statement::Show => return None,
            _ => {}
        }
        let mut value = None;
        if batch.executes && batch.statement == Statement::Show {
            value = self.routed.as_mut()?.told.take();
            if value.is_none() {
                self.ask_position(shared);
                return Some(Step::Stop(StopAt::NeedServer));
            }
        }
        let (len, input) = (batch.len, input.get(..batch.len)?);
        let statement = batch.statement.clone();
        self.answer_position(&statement, value.as_deref(), input, shared)?;
        Some(Step::Answered(len))
    }

    /// Writes the answers to the messages of a batch.
    fn answer_position(
        &mut self,
        statement: &Statement,
        value: Option<&Told>,
        input: &[u8],
        shared: &Shared,
    ) -> Option<()> {
        let mut out = BytesMut::new();
        let mut error = None;
        for (tag, mut body, frame) in Frames::new(input) {
            if error.is_some() && tag != b'S' {
                continue;
            }
            match tag {
                b'P' => {
                    if !self.prepare_here(body.cstr().ok()?, frame, shared) {
                        return None;
                    }
                    self.routed.as_mut()?.prepared_position = true;
                    out.put_slice(b"1\0\0\0\x04");
                }
                b'B' => out.put_slice(b"2\0\0\0\x04"),
                b'C' => {
                    if let (b'S', name) = (body.u8().ok()?, body.cstr().ok()?) {
                        self.statements.remove(name);
                    }
                    out.put_slice(b"3\0\0\0\x04");
                }
                b'D' => {
                    if body.u8() == Ok(b'S') {
                        out.put_slice(b"t\0\0\0\x06\0\0");
                    }
                    match statement {
                        Statement::Show => {
                            encode::backend::row_description(&mut out, &[NAME]).ok()?
                        }
                        Statement::Set(_) => out.put_slice(b"n\0\0\0\x04"),
                    }
                }
                b'Q' | b'E' => {
                    if tag == b'Q' {
                        // It ends the unnamed statement.
                        self.unnamed = Unnamed::default();
                    }
                    let done = match (statement, value) {
                        (Statement::Show, Some(Ok(text))) => {
                            if tag == b'Q' {
                                encode::backend::row_description(&mut out, &[NAME]).ok()?;
                            }
                            encode::backend::data_row(&mut out, [Some(text.as_str())]).ok()?;
                            Ok("SHOW")
                        }
                        (Statement::Show, Some(Err(node))) => Err(report::no_position(node)),
                        (Statement::Show, None) => return None,
                        (Statement::Set(text), _) => self.set_position(text.as_deref(), shared),
                    };
                    match done {
                        Ok(tag) => encode::backend::command_complete(&mut out, tag).ok()?,
                        Err(report) => {
                            encode::backend::error(&mut out, &report);
                            self.routed.as_mut()?.block.fail();
                            error = Some(report);
                        }
                    }
                }
                _ => {}
            }
            if matches!(tag, b'Q' | b'S') {
                encode::backend::ready_for_query(&mut out, self.status());
            }
        }
        self.to_client.buffer().put_slice(&out);
        Some(())
    }

    fn set_position(
        &mut self,
        text: Option<&str>,
        shared: &Shared,
    ) -> Result<&'static str, ErrorReport> {
        let found = text.and_then(|text| positions(text, &shared.nodes));
        let found = found.ok_or_else(|| report::bad_position(text.unwrap_or_default()))?;
        if let Some(routed) = &mut self.routed {
            for (node, lsn) in found {
                routed.seen.add(node, Point::Position(lsn));
            }
        }
        Ok("SET")
    }

    /// Has the nodes asked for the session's position.
    fn ask_position(&mut self, shared: &Shared) {
        let read = shared.settings.load().config.rules.read;
        let seen = self.wanted(NOWHERE, read, shared);
        let each = seen.into_iter().map(|(node, point)| {
            let name = shared.nodes.get(node).map_or("?", |node| node.name());
            let name = name.to_owned();
            let taken = match point {
                Point::Time(since) => Err(shared.replicator.position(node, since, BEHIND_MAX)),
                Point::Position(lsn) => Ok(lsn),
            };
            async move {
                match taken {
                    Ok(lsn) => Ok((name, lsn)),
                    Err(taken) => taken.await.map(|lsn| (name.clone(), lsn)).ok_or(name),
                }
            }
        });
        let all = join_all(each);
        let wait = Box::pin(async move { told(all.await) });
        if let Some(routed) = &mut self.routed {
            routed.behind = Some(Box::new(Behind::Position(wait)));
        }
    }
}

/// A position as it is shown, of the latest of each node.
fn told(found: Vec<Result<(String, Lsn), String>>) -> Told {
    let mut latest = BTreeMap::new();
    for one in found {
        let (name, lsn) = one?;
        let known = latest.entry(name).or_insert(lsn);
        *known = lsn.max(*known);
    }
    let texts: Vec<String> = latest
        .iter()
        .map(|(name, lsn)| format!("{name}:{lsn}"))
        .collect();
    Ok(texts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_about_the_position_are_told_from_others() {
        let set = |text: &str| Some(Statement::Set(Some(text.to_owned())));
        for (text, wanted) in [
            ("SHOW tandem.position", Some(Statement::Show)),
            (" show /* it */ Tandem.Position ; ", Some(Statement::Show)),
            ("SET tandem.position = 'paris:0/1'", set("paris:0/1")),
            (
                "-- why\nset session tandem.position to 'o''s:0/1';",
                set("o's:0/1"),
            ),
            ("SET LOCAL tandem.position = ''", set("")),
            ("SET tandem.position = 7", Some(Statement::Set(None))),
            ("SET tandem.position TO DEFAULT", Some(Statement::Set(None))),
            (
                "SET tandem.position = 'a:0/1'; SELECT 1",
                Some(Statement::Set(None)),
            ),
            ("SHOW tandem.position; SELECT 1", None),
            ("SHOW tandem.key", None),
            ("SET tandem.key = 'tandem.position'", None),
            ("SELECT 'SHOW tandem.position'", None),
            ("RESET tandem.position", None),
            ("SET", None),
            ("", None),
        ] {
            assert_eq!(Statement::read(text.as_bytes()), wanted, "{text}");
        }
    }

    #[test]
    fn a_position_names_each_node_once_at_its_latest() {
        let found = [("paris", 0x16_B374), ("delhi", 7), ("paris", 8)];
        let found = found.map(|(name, lsn)| Ok((name.to_owned(), Lsn(lsn))));
        assert_eq!(
            told(found.to_vec()),
            Ok("delhi:0/7,paris:0/16B374".to_owned())
        );
        assert_eq!(told(Vec::new()), Ok(String::new()));
        assert_eq!(told(vec![Err("paris".to_owned())]), Err("paris".to_owned()));
    }
}
