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
) -> Until {
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
                }));
                return Until::Answer;
            }
            b'P' => {
                if let Ok(name) = body.cstr() {
                    prepared.put(name, body.rest());
                }
            }
            b'B' => {
                let (Ok(portal), Ok(name)) = (body.cstr(), body.cstr()) else {
                    return Until::Answer;
                };
                let statement = prepared.get(name).or_else(|| known.statement(name));
                bound.put(portal, statement.map(|statement| (statement, body.rest())));
            }
            b'E' => {
                let made = bound.get(body.cstr().unwrap_or_default()).flatten();
                run(made.map(|(statement, values)| {
                    let mut reader = Reader::new(statement);
                    Run {
                        text: reader.cstr().unwrap_or_default(),
                        bound: Some(values),
                        types: reader.rest(),
                    }
                }));
            }
            b'D' | b'C' => {}
            b'S' => return Until::Sync,
            b'F' => {
                run(None);
                return Until::Answer;
            }
            _ => return Until::Answer,
        }
    }
    match frame::peek(frames.rest(), Sender::Client) {
        Ok(_) => Until::More,
        // Whoever takes it finds out.
        Err(_) => Until::Answer,
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
        let until = look_ahead(all, &Client, |run| {
            runs.push(run.map(|run| String::from_utf8_lossy(run.text).into_owned()));
        });
        (runs, until)
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
    fn what_is_not_whole_has_more_to_come() {
        let parse = message(b'P', b"\0SELECT 2\0\0\0");
        for end in 1..=parse.len() {
            assert_eq!(
                look_ahead(&parse.clone().leak()[..end], &Client, |_| ()),
                Until::More
            );
        }
        assert_eq!(look_ahead(b"P\0\0\0\0", &Client, |_| ()), Until::Answer);
    }
}
