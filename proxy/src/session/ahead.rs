//! Owns a look at the messages that a client has sent and nobody has taken yet: which statements they run, and with what. Pure.

use tandem_wire::{
    Reader, Sender,
    frame::{self, HEADER_LEN},
};

use crate::routing::Run;

/// Where what was looked at ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// With a Sync.
    Sync,
    /// With a Query, a Flush, or whatever else makes a server answer.
    Answer,
    /// In the middle: more of it has to come.
    More,
}

/// What there is besides what runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead<'a> {
    pub(super) until: Until,
    /// The statement that was bound last, else the one that was prepared last; also in a Bind that is not whole.
    pub(super) seen: Option<Run<'a>>,
    /// Something is bound.
    pub(super) binds: bool,
    /// A portal that runs may be wanted again: it has a name, or not all of its rows are asked for.
    pub(super) suspends: bool,
}

/// What is known of a statement before these messages.
pub(super) trait Known<'a> {
    /// The text and the types of the statement of this name.
    fn statement(&self, name: &[u8]) -> Option<&'a [u8]>;
}

/// What is prepared and bound on the way.
#[derive(Debug, Default)]
struct Names<'a, T> {
    unnamed: Option<T>,
    named: Vec<(&'a [u8], T)>,
}

impl<'a, T: Copy> Names<'a, T> {
    fn put(&mut self, name: &'a [u8], what: T) {
        match name {
            [] => self.unnamed = Some(what),
            name => self.named.push((name, what)),
        }
    }

    fn get(&self, name: &[u8]) -> Option<T> {
        match name {
            [] => self.unnamed,
            name => {
                let mut all = self.named.iter().rev();
                all.find(|(known, _)| *known == name).map(|(_, what)| *what)
            }
        }
    }
}

/// The whole messages at the start of some bytes.
#[derive(Debug, Clone)]
pub(super) struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    /// Of these bytes, which begin with one.
    pub(super) fn new(rest: &'a [u8]) -> Frames<'a> {
        Frames { rest }
    }

    /// What is behind those that were taken.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Frames<'a> {
    /// Type, body, and the whole of it.
    type Item = (u8, Reader<'a>, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = frame::peek(self.rest, Sender::Client).ok().flatten()?;
        let (frame, rest) = self.rest.split_at_checked(header.frame_len())?;
        self.rest = rest;
        let body = Reader::new(frame.get(HEADER_LEN..).unwrap_or_default());
        Some((header.tag, body, frame))
    }
}

/// Goes through the messages of `input`, which begins with one, up to where a server would answer, and shows each statement
/// that they run: none of it, where it cannot be told what is run.
pub(super) fn look_ahead<'a>(
    input: &'a [u8],
    known: &impl Known<'a>,
    mut run: impl FnMut(Option<Run<'a>>),
) -> Ahead<'a> {
    let mut ahead = Ahead {
        until: Until::Answer,
        seen: None,
        binds: false,
        suspends: false,
    };
    let mut frames = Frames::new(input);
    let mut prepared = Names::default();
    let mut bound = Names::default();
    for (tag, mut body, _) in frames.by_ref() {
        match tag {
            b'Q' => {
                let text = body.cstr().ok();
                run(text.map(|text| Run {
                    text,
                    bound: None,
                    types: &[],
                    begins: false,
                    homed: None,
                }));
                return ahead;
            }
            b'P' => {
                if let Ok(name) = body.cstr() {
                    let statement = body.rest();
                    prepared.put(name, statement);
                    ahead.seen = Some(made_of(statement, None));
                }
            }
            b'B' => {
                let (Ok(portal), Ok(name)) = (body.cstr(), body.cstr()) else {
                    return ahead;
                };
                let statement = prepared.get(name).or_else(|| known.statement(name));
                let made = statement.map(|statement| made_of(statement, Some(body.rest())));
                bound.put(portal, made);
                ahead.binds = true;
                ahead.seen = made;
            }
            b'E' => {
                let portal = body.cstr().unwrap_or_default();
                ahead.suspends |= !portal.is_empty() || body.i32().is_ok_and(|rows| rows != 0);
                run(bound.get(portal).flatten());
            }
            b'D' | b'C' => {}
            b'S' => {
                ahead.until = Until::Sync;
                return ahead;
            }
            b'F' => {
                run(None);
                return ahead;
            }
            _ => return ahead,
        }
    }
    let Ok(cut) = frame::peek(frames.rest(), Sender::Client) else {
        // Whoever takes it finds out.
        return ahead;
    };
    ahead.until = Until::More;
    let mut body = Reader::new(frames.rest().get(HEADER_LEN..).unwrap_or_default());
    match cut.map(|header| header.tag) {
        Some(b'B') => {
            let name = body.cstr().and_then(|_| body.cstr());
            let statement = name.ok().and_then(|name| {
                let known = || known.statement(name);
                prepared.get(name).or_else(known)
            });
            ahead.seen = statement.map(|statement| made_of(statement, Some(body.rest())));
        }
        Some(b'P' | b'Q') => ahead.seen = None,
        _ => {}
    }
    ahead
}

/// What a portal runs that is made of this statement, a text with its types, and with these values.
pub(super) fn made_of<'a>(statement: &'a [u8], bound: Option<&'a [u8]>) -> Run<'a> {
    let mut reader = Reader::new(statement);
    Run {
        text: reader.cstr().unwrap_or_default(),
        bound,
        types: reader.rest(),
        begins: false,
        homed: None,
    }
}

/// A batch of the extended protocol that runs one statement, in the plainest way.
pub(super) struct BlockBatch<'a> {
    pub(super) len: usize,
    pub(super) text: &'a [u8],
}

impl<'a> BlockBatch<'a> {
    /// Parse or not, Bind of the unnamed portal without a value, Describe or not, Execute, Sync.
    pub(super) fn read(frames: Frames<'a>, known: &impl Known<'a>) -> Option<BlockBatch<'a>> {
        let mut statement = None;
        let (mut bound, mut executed) = (false, false);
        let mut len = 0;
        for (tag, mut body, frame) in frames {
            len += frame.len();
            match tag {
                b'P' if len == frame.len() => {
                    let name = body.cstr().ok()?;
                    statement = Some((name, body.rest()));
                }
                b'B' if !bound => {
                    let (portal, name) = (body.cstr().ok()?, body.cstr().ok()?);
                    let formats = usize::from(body.u16().ok()?);
                    body.bytes(2 * formats).ok()?;
                    if !portal.is_empty() || body.u16().ok()? != 0 {
                        return None;
                    }
                    match statement {
                        Some((parsed, _)) if parsed != name => return None,
                        Some(_) => {}
                        None => statement = Some((name, known.statement(name)?)),
                    }
                    bound = true;
                }
                b'D' => match (body.u8().ok()?, body.cstr().ok()?) {
                    (b'P', b"") if bound => {}
                    (b'S', name) if statement.is_some_and(|(known, _)| known == name) => {}
                    _ => return None,
                },
                b'E' if bound && !executed && body.cstr() == Ok(b"") => executed = true,
                b'S' if executed => {
                    let (_, rest) = statement?;
                    let text = Reader::new(rest).cstr().ok()?;
                    return Some(BlockBatch { len, text });
                }
                _ => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Client;

    impl Known<'static> for Client {
        fn statement(&self, name: &[u8]) -> Option<&'static [u8]> {
            match name {
                b"known" => Some(b"SELECT known\0\0\0"),
                _ => None,
            }
        }
    }

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(body.len() + 4).expect("small");
        [&[tag][..], &len.to_be_bytes(), body].concat()
    }

    fn seen(messages: &[(u8, &[u8])]) -> (Vec<Option<String>>, Until) {
        let all: Vec<u8> = messages
            .iter()
            .flat_map(|(tag, body)| message(*tag, body))
            .collect();
        let all: &'static [u8] = all.leak();
        let mut runs = Vec::new();
        let ahead = look_ahead(all, &Client, |run| {
            runs.push(run.map(|run| String::from_utf8_lossy(run.text).into_owned()));
        });
        (runs, ahead.until)
    }

    fn some(texts: &[&str]) -> Vec<Option<String>> {
        texts.iter().map(|text| Some((*text).to_owned())).collect()
    }

    #[test]
    fn what_runs_is_seen_up_to_where_the_server_answers() {
        let query: (u8, &[u8]) = (b'Q', b"SELECT 1\0");
        assert_eq!(seen(&[query, query]), (some(&["SELECT 1"]), Until::Answer));
        let parse: (u8, &[u8]) = (b'P', b"\0SELECT 2\0\0\0");
        let bind: (u8, &[u8]) = (b'B', b"\0\0\0\0\0\0\0\0");
        let execute: (u8, &[u8]) = (b'E', b"\0\0\0\0\0");
        let sync: (u8, &[u8]) = (b'S', b"");
        assert_eq!(
            seen(&[parse, bind, (b'D', b"P\0"), execute, sync, query]),
            (some(&["SELECT 2"]), Until::Sync)
        );
        assert_eq!(seen(&[parse, (b'D', b"S\0"), sync]), (vec![], Until::Sync));
        assert_eq!(seen(&[parse, (b'H', b"")]), (vec![], Until::Answer));
        let known: (u8, &[u8]) = (b'B', b"p\0known\0\0\0\0\0\0\0");
        let named: (u8, &[u8]) = (b'E', b"p\0\0\0\0\0");
        assert_eq!(
            seen(&[known, parse, bind, named, execute, sync]),
            (some(&["SELECT known", "SELECT 2"]), Until::Sync)
        );
        // What cannot be told.
        assert_eq!(seen(&[execute, sync]), (vec![None], Until::Sync));
        let unknown: (u8, &[u8]) = (b'B', b"\0unknown\0\0\0\0\0\0\0");
        assert_eq!(
            seen(&[parse, unknown, execute, sync]),
            (vec![None], Until::Sync)
        );
        assert_eq!(seen(&[(b'F', b"\0\0\0\0")]), (vec![None], Until::Answer));
    }

    #[test]
    fn what_is_prepared_or_bound_last_is_seen_where_nothing_runs_yet() {
        let last = |messages: &[(u8, &[u8])]| {
            let all = messages.iter();
            let all: Vec<u8> = all.flat_map(|(tag, body)| message(*tag, body)).collect();
            let ahead = look_ahead(all.leak(), &Client, |_| ());
            ahead.seen.map(|run| (run.text, run.bound.is_some()))
        };
        let parse: (u8, &[u8]) = (b'P', b"a\0SELECT 2\0\0\0");
        let describe: (u8, &[u8]) = (b'D', b"Sa\0");
        let flush: (u8, &[u8]) = (b'H', b"");
        assert_eq!(
            last(&[parse, describe, flush]),
            Some((&b"SELECT 2"[..], false))
        );
        let bind: (u8, &[u8]) = (b'B', b"\0known\0\0\0\0\0\0\0");
        assert_eq!(
            last(&[parse, bind, flush]),
            Some((&b"SELECT known"[..], true))
        );
        assert_eq!(last(&[flush]), None);
    }

    #[test]
    fn a_portal_that_may_be_wanted_again_suspends() {
        let suspends = |bind: &[u8], execute: &[u8]| {
            let all = [message(b'B', bind), message(b'E', execute)].concat();
            look_ahead(all.leak(), &Client, |_| ()).suspends
        };
        assert!(!suspends(b"\0known\0\0\0\0\0\0\0", b"\0\0\0\0\0"));
        assert!(suspends(b"\0known\0\0\0\0\0\0\0", b"\0\0\0\0\x05"));
        assert!(suspends(b"p\0known\0\0\0\0\0\0\0", b"p\0\0\0\0\0"));
    }

    #[test]
    fn what_is_not_whole_has_more_to_come() {
        let parse = message(b'P', b"\0SELECT 2\0\0\0");
        for end in 1..=parse.len() {
            assert_eq!(
                look_ahead(&parse.clone().leak()[..end], &Client, |_| ()).until,
                Until::More
            );
        }
        let nonsense = look_ahead(b"P\0\0\0\0", &Client, |_| ());
        assert_eq!(nonsense.until, Until::Answer);
    }

    #[test]
    fn the_statement_of_a_bind_that_is_not_whole_is_seen() {
        let bind: &[u8] = message(b'B', b"\0known\0\0\0\0\x01\0\0\0\x02ab\0\0").leak();
        let cut = look_ahead(&bind[..bind.len() - 4], &Client, |_| ());
        assert_eq!(cut.until, Until::More);
        assert_eq!(cut.seen.map(|run| run.text), Some(&b"SELECT known"[..]));
        let parse = message(b'P', b"\0SELECT 2\0\0\0");
        let cut: &[u8] = [&parse[..], &parse[..9]].concat().leak();
        assert!(look_ahead(cut, &Client, |_| ()).seen.is_none());
    }
}
