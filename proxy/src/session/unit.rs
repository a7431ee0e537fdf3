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
use tandem_routing_rules::{
    Consistency, SessionFacts, Transaction,
    state::{self, Effect, Isolation},
};
use tandem_wire::{Header, Reader, encode, frame::HEADER_LEN};
use tokio::time::Instant;

use super::{
    Shared,
    ahead::{Frames, Known, Until, look_ahead},
    block::{Block, is_read_only},
    end::End,
    inbound::Step,
    owed::Status,
    program::{self, program},
    ready::{Errand, Unnamed},
    report,
    task::{Place, Refusing, StopAt, Task, WHOLE_MAX},
};
use crate::{
    pool::{Key, Pool},
    reload::Settings,
    routing::{Choice, Chooser, Demand, Run},
};

/// How long a unit waits for the node to show what the session has seen elsewhere.
const BEHIND_MAX: Duration = Duration::from_secs(1);
/// How long the session's own node is left alone after it did not show that in time.
const LAGS: Duration = Duration::from_secs(10);

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
    /// The node that it last had a server of, and up to when.
    pub(super) last: Option<(usize, Instant)>,
    /// The node that it last wrote on.
    wrote: Option<usize>,
    /// A node that is behind, and until when it is left alone.
    lags: Option<(usize, Instant)>,
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
    pub(super) fn new(near: usize) -> Routed {
        Routed {
            near,
            last: None,
            wrote: None,
            lags: None,
            elsewhere: Vec::new(),
            behind: None,
            block: Block::None,
            beside: Beside::No,
        }
    }

    /// Where it reads: where it was last, while the node that was chosen for it is behind.
    fn nearest(&self) -> usize {
        match (self.lags, self.last) {
            (Some((node, until)), Some((last, _)))
                if node == self.near && Instant::now() < until =>
            {
                last
            }
            _ => self.near,
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
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.wait.as_mut().poll(cx)
    }
}

impl fmt::Debug for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Behind")
    }
}

/// What the messages ahead run.
#[derive(Debug)]
struct Runs {
    count: usize,
    until: Until,
    /// Where the first goes of those that demand most.
    choice: Choice,
    /// The first is about the block and nothing else.
    is_block: bool,
    /// They run nothing, so the block need not begin for them.
    goes_beside: bool,
}

impl Runs {
    /// Nothing yet, which goes there.
    fn new(choice: Choice) -> Runs {
        Runs {
            count: 0,
            until: Until::More,
            choice,
            is_block: false,
            goes_beside: false,
        }
    }

    fn add(&mut self, run: Option<Run<'_>>, chooser: &Chooser<'_>, is_block: bool) {
        if self.count == 0 {
            self.is_block = is_block;
        }
        self.judge(run, chooser);
        self.count += 1;
    }

    fn judge(&mut self, run: Option<Run<'_>>, chooser: &Chooser<'_>) {
        if self.choice.demand == Demand::Write {
            return;
        }
        let choice = chooser.choose(run.map(|run| Run {
            begins: begins(run.text),
            ..run
        }));
        if self.count == 0 || choice.demand > self.choice.demand {
            self.choice = choice;
        }
    }
}

/// Whether it is about the block and nothing else.
fn takes(block: &Block, run: Run<'_>) -> bool {
    block.takes(run.text, program(run.text).as_ref())
}

/// Whether a text begins a transaction block, or something that keeps the session on its server.
fn begins(text: &[u8]) -> bool {
    let begins = |step: &program::Step| {
        step.effects.pins.iter().next().is_some()
            || matches!(
                step.effects.effect,
                Effect::Transaction(state::Transaction::Begin(_)) | Effect::Prepare { .. }
            )
    };
    program(text).is_some_and(|program| program.iter().any(begins))
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
        self.routed.as_ref()?;
        if matches!(&self.place, Place::Server(server) if !server.owed.is_untouched()) {
            // What waited here for its answers begins a unit of its own.
            self.release_if_done();
        }
        let routed = self.routed.as_mut()?;
        let has_server = match (&self.place, &routed.block) {
            (Place::Server(server), Block::None) => {
                let owed = &server.owed;
                let is_new = !owed.is_quiet()
                    && !owed.is_in_batch()
                    && !owed.is_copying_in()
                    && owed.status() == Status::Idle;
                let is_control = matches!(header.tag, b'd' | b'c' | b'f' | b'H' | b'S');
                if !is_new || is_control || self.state.hold().is_some() {
                    return None;
                }
                return self.behind_another(header, input, shared);
            }
            (Place::Server(_), _) => true,
            _ => false,
        };
        match (header.tag, routed.beside) {
            (b'd' | b'c' | b'f', _) => return None,
            (tag, Beside::Goes) if has_server => {
                if tag == b'S' {
                    routed.beside = Beside::Gone;
                }
                return None;
            }
            // That is still being answered.
            (_, Beside::Gone) if has_server => return Some(Step::Stop(StopAt::Answers)),
            (b'H', _) => return None,
            (b'S', _) if !has_server => {
                self.ready_for_query();
                return Some(Step::Drop);
            }
            _ => {}
        }
        if !shared.health.usable(routed.near) {
            self.change_near(shared);
        }
        let is_whole = input.len() >= header.frame_len();
        let runs = self.look(input, shared)?;
        if runs.until == Until::More && is_whole && input.len() < WHOLE_MAX {
            return Some(Step::Stop(StopAt::More));
        }
        let has_failed = matches!(self.block(), Block::Failed(_));
        if runs.count == 1
            && runs.is_block
            && is_whole
            && (!has_server || has_failed)
            && let Some(taken) = self.answer(input)
        {
            return Some(Step::Answered(taken));
        }
        let routed = self.routed.as_mut()?;
        if runs.goes_beside {
            routed.beside = Beside::Goes;
            if has_server {
                return self.before(header, input, shared);
            }
        } else if has_failed {
            return Some(self.refuse_in_failed_block(header.tag));
        }
        if let Place::Server(server) = &self.place {
            let stop = match server.owed.is_quiet() {
                true => StopAt::Begin,
                false => StopAt::Answers,
            };
            return Some(Step::Stop(stop));
        }
        self.go(&runs.choice, shared);
        Some(Step::Stop(StopAt::NeedServer))
    }

    /// Looks at a message behind which the server still has something to answer, outside of a transaction. It goes there too if
    /// that is where it belongs; else it waits until that is over.
    fn behind_another(&mut self, header: Header, input: &[u8], shared: &Shared) -> Option<Step> {
        let is_whole = input.len() >= header.frame_len();
        let runs = self.look(input, shared)?;
        if runs.until == Until::More && is_whole && input.len() < WHOLE_MAX {
            return Some(Step::Stop(StopAt::More));
        }
        let node = self.node();
        let writes = runs.choice.demand >= Demand::Begin;
        // A node shows at least what it has shown before.
        let stays = !runs.is_block && (!writes || runs.choice.node == Some(node));
        if !stays {
            return Some(Step::Stop(StopAt::Answers));
        }
        if writes && let Some(routed) = &mut self.routed {
            routed.wrote = Some(node);
        }
        None
    }

    /// What these messages run.
    fn look(&self, input: &[u8], shared: &Shared) -> Option<Runs> {
        let settings = shared.settings.load();
        let chooser = self.chooser(shared, &settings)?;
        let (block, is_read) = (self.block(), self.state.hold().is_none());
        let mut runs = Runs::new(chooser.anywhere());
        let known = |run: Option<Run<'_>>| run.is_some_and(|run| takes(block, run));
        let ahead = look_ahead(input, &self, |run| {
            runs.add(run.filter(|_| is_read), &chooser, known(run));
        });
        runs.until = ahead.until;
        if runs.count == 0 && ahead.until == Until::Sync && !ahead.binds {
            runs.goes_beside = match block {
                Block::None => false,
                Block::Held(held) => !held.has_savepoint(),
                // The end of the block may be prepared.
                Block::Failed(_) => known(ahead.seen),
            };
        }
        let has_more = ahead.until != Until::Sync || ahead.binds;
        let begins = matches!(block, Block::Held(_)) && !runs.goes_beside;
        let is_in_sight = runs.count > 0 && ahead.until != Until::More;
        if !is_in_sight && (has_more || begins) {
            // What is in sight is all that there is to go by.
            runs.judge(ahead.seen.filter(|_| is_read), &chooser);
        }
        Some(runs)
    }

    fn chooser<'a>(&'a self, shared: &'a Shared, settings: &'a Settings) -> Option<Chooser<'a>> {
        let routed = self.routed.as_ref()?;
        let key = self.pool.key();
        let held = match &routed.block {
            Block::Held(held) => Some(held),
            Block::None | Block::Failed(_) => None,
        };
        let transaction = match held {
            Some(held) if is_read_only(held.modes()) => Transaction::ReadOnly,
            Some(_) => Transaction::ReadWrite,
            None => Transaction::Autocommit,
        };
        let said = held.and_then(|held| held.modes().isolation);
        let serializable = match said {
            Some(isolation) => isolation == Isolation::Serializable,
            None => self
                .state
                .text_of(b"default_transaction_isolation")
                .is_some_and(|isolation| isolation.eq_ignore_ascii_case("serializable")),
        };
        // Without a placement no key has a meaning.
        let asks = !settings.config.rules.placements.is_empty();
        let own = || {
            held.and_then(|held| held.key())
                .or_else(|| self.state.text_of(b"tandem.key"))
        };
        let own = asks.then(own).flatten();
        let hints = &self.about.hints;
        Some(Chooser {
            router: &shared.router,
            settings,
            nodes: &shared.nodes,
            health: &shared.health,
            session: SessionFacts {
                user: &key.user,
                database: &key.database,
                application_name: hints.application_name.as_deref(),
                key: own.or(hints.key.as_deref()),
            },
            search_path: self.state.text_of(b"search_path"),
            transaction,
            serializable,
            near: routed.nearest(),
            last: routed.last.map(|(node, _)| node),
            wrote: routed.wrote,
        })
    }

    /// Goes to the node of what is to run.
    fn go(&mut self, choice: &Choice, shared: &Shared) {
        let Some(node) = choice.node else { return };
        self.go_to(node, shared);
        let Some(routed) = &mut self.routed else {
            return;
        };
        match choice.demand {
            Demand::Session => return,
            Demand::Read => {}
            Demand::Begin | Demand::Write => routed.wrote = Some(node),
        }
        let settings = shared.settings.load();
        if settings.config.rules.read.consistency != Consistency::Session {
            return;
        }
        let Some((before, since)) = routed.last.filter(|(before, _)| *before != node) else {
            return;
        };
        // What a node had that does not serve was lost with it, or comes back with it: nobody can tell now.
        if shared.health.usable(before) {
            let wait = shared.replicator.shows(before, node, since, BEHIND_MAX);
            routed.behind = Some(Box::new(Behind {
                wait: Box::pin(wait),
                before: (choice.demand == Demand::Read).then_some(before),
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

    /// Waits until the node shows what the session has seen elsewhere.
    pub(super) fn behind_goes_on(
        &mut self,
        cx: &mut Context<'_>,
        shared: &Shared,
    ) -> Result<bool, End> {
        let Place::Behind(behind) = &mut self.place else {
            return Ok(false);
        };
        let polled = behind.poll(cx);
        if polled.is_pending() && !self.registered.entry().is_cancelled() {
            return Ok(false);
        }
        let place = std::mem::replace(&mut self.place, Place::Idle);
        match (polled, place) {
            (Poll::Ready(shows), Place::Behind(behind)) => {
                self.caught_up(shows, &behind, shared);
                self.seek(cx, shared)?;
            }
            _ => {
                self.registered.entry().detach();
                self.refuse(&report::cancelled());
            }
        }
        Ok(true)
    }

    /// The node shows what the session has seen elsewhere, or does not in time.
    fn caught_up(&mut self, shows: bool, behind: &Behind, shared: &Shared) {
        if shows {
            return;
        }
        tracing::debug!(
            node = self.pool.node_name(),
            "a node does not show in time what a session has seen on another one"
        );
        let Some(before) = behind.before.filter(|node| shared.health.usable(*node)) else {
            return;
        };
        let lags = (self.node(), Instant::now() + LAGS);
        self.go_to(before, shared);
        if let Some(routed) = &mut self.routed {
            routed.lags = Some(lags);
        }
    }

    /// Begins the block on the server, before anything else of the client's goes there.
    pub(super) fn begin_block(&mut self, cx: &mut Context<'_>) {
        let (Block::Held(held), Place::Server(_)) = (self.block(), &self.place) else {
            return;
        };
        let text = held.text().to_vec();
        self.run_errand(Errand::Begin { refused: false }, &[text], cx);
    }

    /// The server has answered that.
    pub(super) fn block_begun(&mut self, refused: bool) {
        let (Place::Server(server), Some(routed)) = (&mut self.place, &mut self.routed) else {
            return;
        };
        let status = server.owed.status();
        if !refused && status == Status::Transaction {
            if let Block::Held(held) = std::mem::take(&mut routed.block) {
                self.state.began(held.text(), status, &mut server.settings);
            }
            // From here on it cannot be replaced by another one that knows of no transaction.
            server.owed.touch();
            return;
        }
        // What has failed on the way is known there, unless it was the BEGIN.
        match status {
            Status::Idle => routed.block.fail(),
            Status::Transaction | Status::Failed => routed.block = Block::None,
        }
        if refused {
            self.begin_refusing();
        } else {
            self.refuse(&report::aborted());
        }
    }

    /// The transaction block that no server knows of.
    pub(super) fn block(&self) -> &Block {
        self.routed
            .as_ref()
            .map_or(&Block::None, |routed| &routed.block)
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
            // It ends the unnamed statement.
            self.unnamed = Unnamed::default();
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

    /// Notes a statement that no server has yet. False when there is one of this name, or it is too much.
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
        let fits = self.statements.insert(name, statement, attempt);
        if !fits {
            self.statements.remove(name);
        }
        fits
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
