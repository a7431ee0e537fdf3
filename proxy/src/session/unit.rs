//! Owns the beginning of a unit of work: what of a client's messages is answered before any server gets them, and which node
//! the others go to.
//!
//! A unit is a transaction block, or what runs up to a Sync or with a Query outside of one. Its first statement tells where it
//! belongs, so a block begins on a server with that one, and not before (`block.rs`).

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::BufMut;
use tandem_routing_rules::Consistency;
use tandem_wire::{Header, Reader, encode, frame::HEADER_LEN};
use tokio::time::Instant;

use super::{
    Shared,
    ahead::{Frames, Known, Run, Until, look_ahead},
    block::{Block, is_read_only, is_serializable},
    inbound::Step,
    owed::Status,
    program::program,
    ready::{Errand, Unnamed},
    report,
    task::{Place, Refusing, StopAt, Task, WHOLE_MAX},
};
use crate::{
    pool::{Key, Pool},
    routing::{Class, Work, class, node_for},
};

/// How long a unit waits for the node to show what the session has seen elsewhere.
const BEHIND_MAX: Duration = Duration::from_secs(1);

/// A batch of messages that runs nothing, in a block that no server knows of: it goes to a server, but the block is not begun
/// for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beside {
    No,
    /// Its Sync is still to come.
    Goes,
    /// Its Sync has gone to the server.
    Gone,
}

/// A session of which each unit of work goes to a node of its own.
#[derive(Debug)]
pub(super) struct Routed {
    /// The node that was chosen at the login.
    pub(super) near: usize,
    /// The rules name it for the whole session.
    pub(super) is_bound: bool,
    /// The node that it last had a server of, and up to when.
    pub(super) last: Option<(usize, Instant)>,
    /// Its pools on the others that it has been on.
    elsewhere: Vec<Arc<Pool>>,
    /// What it waits for before it asks for a server.
    pub(super) behind: Option<Box<Behind>>,
    /// The transaction block that no server knows of.
    pub(super) block: Block,
    pub(super) beside: Beside,
}

impl Routed {
    /// One that has just logged in.
    pub(super) fn new(near: usize, is_bound: bool) -> Routed {
        Routed {
            near,
            is_bound,
            last: None,
            elsewhere: Vec::new(),
            behind: None,
            block: Block::None,
            beside: Beside::No,
        }
    }
}

/// Waits until a node shows what the session has seen on another one.
pub(super) struct Behind {
    wait: Pin<Box<dyn Future<Output = bool> + Send>>,
    /// Where it has seen it, and can go back to, unless it has to write.
    before: Option<usize>,
}

impl Behind {
    /// Whether it does, once that is certain.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.wait.as_mut().poll(cx)
    }
}

impl fmt::Debug for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Behind")
    }
}

/// What the messages ahead run.
#[derive(Debug, Default)]
struct Runs {
    count: usize,
    /// The most that they do.
    class: Option<Class>,
    /// The first is about the block and nothing else.
    is_block: bool,
}

impl Runs {
    fn add(&mut self, run: Option<Run<'_>>, block: &Block) {
        let class = run.map_or(Class::Write, |run| class(run.text));
        if self.count == 0 {
            self.is_block = run.is_some_and(|run| block.takes(run.text, program(run.text).as_ref()));
        }
        self.count += 1;
        self.class = self.class.max(Some(class));
    }
}

impl<'a> Known<'a> for &'a Task {
    fn statement(&self, name: &[u8]) -> Option<&'a [u8]> {
        match self.statements.get(name) {
            Some((_, prepared)) => Some(prepared.statement.rest()),
            None if name.is_empty() => self.unnamed.rest(),
            None => None,
        }
    }
}

impl Task {
    /// Looks at a message, and at those behind it, before any server gets them: `input` begins with it. None: it takes its
    /// ordinary way.
    pub(super) fn before(&mut self, header: Header, input: &[u8], shared: &Shared) -> Option<Step> {
        let has_server = matches!(self.place, Place::Server(_));
        let routed = self.routed.as_mut()?;
        if has_server && matches!(routed.block, Block::None) {
            return None;
        }
        match (header.tag, routed.beside) {
            (b'd' | b'c' | b'f', _) => return None,
            (tag, Beside::Goes) => {
                if tag == b'S' {
                    routed.beside = Beside::Gone;
                }
                return None;
            }
            // That is still being answered.
            (_, Beside::Gone) if has_server => return Some(Step::Stop(StopAt::Errand)),
            (b'H', _) => return None,
            (b'S', _) if !has_server => {
                self.ready_for_query();
                return Some(Step::Drop);
            }
            _ => {}
        }
        let is_whole = input.len() >= header.frame_len();
        let mut runs = Runs::default();
        let known: &Task = self;
        let until = look_ahead(input, &known, |run| runs.add(run, known.block()));
        if until == Until::More && is_whole && input.len() < WHOLE_MAX {
            return Some(Step::Stop(StopAt::More));
        }
        if runs.count == 1
            && runs.is_block
            && is_whole
            && !has_server
            && let Some(taken) = self.answer(input)
        {
            return Some(Step::Answered(taken));
        }
        let routed = self.routed.as_mut()?;
        if matches!(routed.block, Block::Failed(_)) {
            return Some(self.refuse_in_failed_block(header.tag));
        }
        if until == Until::Sync && runs.count == 0 && matches!(routed.block, Block::Held(_)) {
            routed.beside = Beside::Goes;
            if has_server {
                return self.before(header, input, shared);
            }
        }
        if has_server {
            return Some(Step::Stop(StopAt::Begin));
        }
        self.choose(runs.class, shared);
        Some(Step::Stop(StopAt::NeedServer))
    }

    /// Goes to the node of what is to run.
    fn choose(&mut self, class: Option<Class>, shared: &Shared) {
        if matches!(&self.routed, Some(routed) if !shared.health.usable(routed.near)) {
            self.change_near(shared);
        }
        let Some(routed) = &self.routed else { return };
        let settings = shared.settings.load();
        let rules = &settings.config.rules;
        let class = match &routed.block {
            _ if routed.beside == Beside::Goes => Class::Session,
            Block::Held(held) if is_read_only(held.modes()) && !is_serializable(held.modes()) => {
                Class::Read
            }
            // What it will do is not known yet.
            Block::Held(_) => Class::Write,
            Block::None | Block::Failed(_) => class.unwrap_or(Class::Session),
        };
        let work = Work {
            class,
            near: routed.near,
            is_bound: routed.is_bound,
            last: routed.last.map(|(node, _)| node),
        };
        let last = routed.last;
        let Some(node) = node_for(shared, rules, &self.pool.key().database, work) else {
            return;
        };
        self.go_to(node, shared);
        if class == Class::Session || rules.read.consistency != Consistency::Session {
            return;
        }
        let Some((before, since)) = last.filter(|(before, _)| *before != node) else {
            return;
        };
        // What a node had that does not serve was lost with it, or comes back with it: nobody can tell now.
        if shared.health.usable(before)
            && let Some(routed) = &mut self.routed
        {
            let wait = shared.replicator.shows(before, node, since, BEHIND_MAX);
            routed.behind = Some(Box::new(Behind {
                wait: Box::pin(wait),
                before: (class == Class::Read).then_some(before),
            }));
        }
    }

    /// From now on it asks this node for servers.
    pub(super) fn go_to(&mut self, node: usize, shared: &Shared) {
        let key = self.pool.key();
        if key.node == node {
            return;
        }
        let mut been = self.routed.as_mut().map(|routed| &mut routed.elsewhere);
        let known = been.as_mut().and_then(|been| {
            let place = been.iter().position(|pool| pool.key().node == node)?;
            Some(been.swap_remove(place))
        });
        let pool = known.unwrap_or_else(|| {
            let key = Key {
                node,
                ..key.clone()
            };
            shared.pools.get(key, &self.pool.credentials())
        });
        let before = std::mem::replace(&mut self.pool, pool);
        if let Some(been) = been {
            been.push(before);
        }
    }

    /// The node shows what the session has seen elsewhere, or does not in time.
    pub(super) fn caught_up(&mut self, shows: bool, behind: &Behind, shared: &Shared) {
        if shows {
            return;
        }
        tracing::debug!(
            node = self.pool.node_name(),
            "a node does not show in time what a session has seen on another one"
        );
        if let Some(before) = behind.before.filter(|node| shared.health.usable(*node)) {
            self.go_to(before, shared);
        }
    }

    /// Begins the block on the server, before anything else of the client's goes there.
    pub(super) fn begin_block(&mut self, cx: &mut Context<'_>) {
        let (Block::Held(held), Place::Server(server)) = (self.block(), &self.place) else {
            return;
        };
        if server.owed.is_quiet() {
            let text = held.text().to_vec();
            self.run_errand(Errand::Begin { refused: false }, &[text], cx);
        }
    }

    /// The server has answered that.
    pub(super) fn block_begun(&mut self, refused: bool) {
        let (Place::Server(server), Some(routed)) = (&mut self.place, &mut self.routed) else {
            return;
        };
        let status = server.owed.status();
        if !refused {
            if let Block::Held(held) = std::mem::take(&mut routed.block) {
                self.state.began(held.text(), status, &mut server.settings);
            }
            return;
        }
        // What has failed on the way is known there, unless it was the BEGIN.
        match status {
            Status::Idle => routed.block.fail(),
            Status::Transaction | Status::Failed => routed.block = Block::None,
        }
        self.begin_refusing();
    }

    /// The transaction block that no server knows of.
    pub(super) fn block(&self) -> &Block {
        self.routed.as_ref().map_or(&Block::None, |routed| &routed.block)
    }

    /// The transaction status that the client is told.
    pub(super) fn status(&self) -> u8 {
        match (self.block().status(), &self.place) {
            (Some(status), _) => status,
            (None, Place::Server(server)) => server.owed.status().byte(),
            (None, _) => b'I',
        }
    }

    pub(super) fn ready_for_query(&mut self) {
        let status = self.status();
        encode::backend::ready_for_query(self.to_client.buffer(), status);
    }

    fn refuse_in_failed_block(&mut self, tag: u8) -> Step {
        encode::backend::error(self.to_client.buffer(), &report::aborted());
        if matches!(tag, b'Q' | b'F') {
            self.ready_for_query();
        } else {
            self.refusing = Refusing::ToSync;
        }
        Step::Drop
    }

    /// Answers messages that are about the block and nothing else, as far as they are of the plainest kind: a Query, or what
    /// drivers make of one in the extended protocol. Answers how many bytes they are.
    fn answer(&mut self, input: &[u8]) -> Option<usize> {
        let mut frames = Frames::new(input);
        let (tag, mut body, frame) = frames.next()?;
        if tag == b'Q' {
            let text = body.cstr().ok()?;
            self.take_block(text)?;
            self.ready_for_query();
            return Some(frame.len());
        }
        let known: &Task = self;
        let batch = BlockBatch::read(Frames::new(input), &known)?;
        let (len, text) = (batch.len, batch.text.to_vec());
        if tag == b'P' && !self.prepare_here(body.cstr().ok()?, frame) {
            return None;
        }
        for (tag, mut body, _) in Frames::new(input.get(..len)?) {
            let out = self.to_client.buffer();
            match tag {
                b'P' => out.put_slice(b"1\0\0\0\x04"),
                b'B' => out.put_slice(b"2\0\0\0\x04"),
                b'D' => {
                    if body.u8() == Ok(b'S') {
                        out.put_slice(b"t\0\0\0\x06\0\0");
                    }
                    out.put_slice(b"n\0\0\0\x04");
                }
                b'E' => {
                    self.take_block(&text);
                }
                b'S' => self.ready_for_query(),
                _ => {}
            }
        }
        Some(len)
    }

    /// A text is about the block and nothing else.
    fn take_block(&mut self, text: &[u8]) -> Option<()> {
        let routed = self.routed.as_mut()?;
        let tag = routed.block.take(text, program(text).as_ref())?;
        let tag = [tag.as_bytes(), b"\0"].concat();
        let out = self.to_client.buffer();
        out.put_u8(b'C');
        out.put_u32(u32::try_from(tag.len() + 4).unwrap_or_default());
        out.put_slice(&tag);
        Some(())
    }

    /// Notes a statement that no server has yet. False when there is one of this name.
    fn prepare_here(&mut self, name: &[u8], frame: &[u8]) -> bool {
        let attempt = self.next_attempt();
        let rest = frame.get(HEADER_LEN + name.len() + 1..).unwrap_or_default();
        if name.is_empty() {
            self.unnamed = Unnamed {
                attempt,
                frame: frame.to_vec(),
                program: Reader::new(rest).cstr().ok().and_then(program),
                told: None,
            };
            return true;
        }
        if self.statements.get(name).is_some() {
            return false;
        }
        let statement = self.interner.intern(rest);
        self.statements.insert(name, statement, attempt)
    }
}

/// A batch of the extended protocol that runs one statement, in the plainest way.
struct BlockBatch<'a> {
    len: usize,
    text: &'a [u8],
}

impl<'a> BlockBatch<'a> {
    /// Parse or not, Bind of the unnamed portal without a value, Describe or not, Execute, Sync.
    fn read(frames: Frames<'a>, known: &impl Known<'a>) -> Option<BlockBatch<'a>> {
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
