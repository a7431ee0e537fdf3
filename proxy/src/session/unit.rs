//! Owns the beginning of a unit of work: what of a client's messages is answered before any server gets them, and which node
//! the others go to.
//!
//! A unit is a transaction block, or what runs up to a Sync or with a Query outside of one. Its first statement tells where it
//! belongs, so a block begins on a server with that one, and not before (`block.rs`).

use std::{sync::Arc, task::Context};

use bytes::BufMut;
use tandem_routing_rules::{SessionFacts, Transaction, state::Isolation};
use tandem_wire::{Header, Reader, encode, frame::HEADER_LEN};
use tokio::time::Instant;

use super::{
    Shared,
    ahead::{BlockBatch, Frames, Known, Until, look_ahead},
    block::{Block, is_read_only},
    consistency::{Behind, Told},
    inbound::{Step, StopAt},
    numbers::Numbers,
    owed::Status,
    parked::Why,
    policing::Policing,
    prepared_transactions::{Search, ended},
    program::program,
    ready::{Errand, Unnamed},
    registry::Registered,
    report,
    runs::{Runs, commits},
    seen::Seen,
    task::{Place, Refusing, Task, WHOLE_MAX},
};
use crate::{
    acknowledged::Acknowledged,
    pool::{Key, Pool},
    reload::Settings,
    routing::{Chooser, Demand},
};

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
    /// What it has seen, and where.
    pub(super) seen: Seen,
    /// The node that it last wrote on, and the epoch: in another one that may be nobody's home any more.
    wrote: Option<(usize, u64)>,
    /// What it is doing may write.
    pub(super) writes: bool,
    /// Where it notes that a write is acknowledged; none: its database is not replicated.
    pub(super) acknowledged: Option<Arc<Acknowledged>>,
    /// The placement's epoch before its node was chosen.
    epoch: u64,
    /// A node that is behind, and until when it is left alone.
    pub(super) lags: Option<(usize, Instant)>,
    /// Its pools on the others that it has been on.
    elsewhere: Vec<Arc<Pool>>,
    /// What it was told of its position, and has not told its client yet.
    pub(super) told: Option<Box<Told>>,
    /// It has prepared a statement about that.
    pub(super) prepared_position: bool,
    /// What it waits for before it asks for a server.
    pub(super) behind: Option<Box<Behind>>,
    /// The transaction block that no server knows of.
    pub(super) block: Block,
    pub(super) beside: Beside,
    /// What it has sent is sent once more, to another server.
    pub(super) repeats: bool,
    pub(super) policing: Policing,
    /// What is known of the numbers (OIDs) in its messages.
    pub(super) numbers: Numbers,
    /// What the nodes are asked before it goes to one of them.
    pub(super) search: Option<Box<Search>>,
}

impl Routed {
    /// One that has just logged in.
    pub(super) fn new(near: usize, acknowledged: Option<Arc<Acknowledged>>) -> Routed {
        Routed {
            near,
            seen: Seen::default(),
            wrote: None,
            writes: false,
            acknowledged,
            epoch: 0,
            lags: None,
            elsewhere: Vec::new(),
            told: None,
            prepared_position: false,
            behind: None,
            block: Block::None,
            beside: Beside::No,
            repeats: false,
            policing: Policing::default(),
            numbers: Numbers::default(),
            search: None,
        }
    }

    /// What it does from now on may write, as others see it too.
    fn may_write(&mut self, registered: &Registered) {
        if !std::mem::replace(&mut self.writes, true) {
            registered.entry().may_write();
        }
    }

    /// Where it reads: where it was last, while the node that was chosen for it is behind.
    fn nearest(&self) -> usize {
        match (self.lags, self.seen.last()) {
            (Some((node, until)), Some(last)) if node == self.near && Instant::now() < until => {
                last
            }
            _ => self.near,
        }
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
        self.routed.as_ref()?;
        if matches!(&self.place, Place::Server(server) if !server.owed.is_untouched()) {
            // What waited here for its answers begins a unit of its own.
            self.release_if_done();
        }
        if let Some(step) = self.on_position(header, input, shared) {
            return Some(step);
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
                // What comes behind it in this batch is not known.
                if header.tag == b'H' && owed.is_in_batch() {
                    routed.may_write(&self.registered);
                }
                if self.state.hold().is_some() {
                    return self.ends_elsewhere(header, input, shared);
                }
                if !is_new || is_control {
                    return None;
                }
                let settings = shared.settings.load();
                return self.behind_another(header, input, shared, &settings);
            }
            (Place::Server(_), _) => true,
            _ => false,
        };
        match (header.tag, routed.beside) {
            (b'd' | b'c' | b'f', _) => return None,
            (tag, Beside::Goes) if has_server => {
                if matches!(tag, b'S' | b'Q') {
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
        if !has_server {
            routed.epoch = shared.health.epoch();
        }
        if !shared.health.takes_all(routed.near) {
            self.change_near(shared);
        }
        let is_whole = input.len() >= header.frame_len();
        let settings = shared.settings.load();
        let mut runs = self.look(input, shared, &settings)?;
        if runs.until == Until::More && is_whole && input.len() < WHOLE_MAX {
            return Some(Step::Stop(StopAt::More));
        }
        let has_failed = matches!(self.block(), Block::Failed(_) | Block::Lost(_));
        if runs.count == 1
            && runs.is_block
            && is_whole
            && (!has_server || has_failed)
            && let Some(taken) = self.answer(input, shared)
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
            return Some(self.refuse_in_failed_block(header.tag, runs.commits));
        }
        if let Place::Server(server) = &self.place {
            let stop = match server.owed.is_quiet() {
                true => StopAt::Begin,
                false => StopAt::Answers,
            };
            return Some(Step::Stop(stop));
        }
        if let Some(gid) = &runs.gid {
            match self.find_prepared(gid, header.tag, shared) {
                Ok(node) => runs.choice.node = node.or(runs.choice.node),
                Err(step) => return Some(step),
            }
        }
        self.go(runs, shared, &settings);
        Some(Step::Stop(StopAt::NeedServer))
    }

    /// Looks at a message behind which the server still has something to answer, outside of a transaction. It goes there too if
    /// that is where it belongs; else it waits until that is over.
    fn behind_another(
        &mut self,
        header: Header,
        input: &[u8],
        shared: &Shared,
        settings: &Settings,
    ) -> Option<Step> {
        let is_whole = input.len() >= header.frame_len();
        let runs = self.look(input, shared, settings)?;
        if runs.until == Until::More && is_whole && input.len() < WHOLE_MAX {
            return Some(Step::Stop(StopAt::More));
        }
        let node = self.node();
        let writes = runs.choice.demand >= Demand::Begin;
        // A node shows at least what it has shown before; others may have written elsewhere since.
        let stays = !runs.is_block
            && runs.gid.is_none()
            && (!writes || runs.choice.node == Some(node))
            && !self.is_behind(node, shared);
        if !stays || self.explains() {
            return Some(Step::Stop(StopAt::Answers));
        }
        if let Some(routed) = &mut self.routed {
            if writes || runs.until == Until::More {
                routed.may_write(&self.registered);
            }
            if writes {
                routed.wrote = Some((node, routed.epoch));
            }
        }
        if self.is_outdated(shared) {
            return Some(Step::Stop(StopAt::Answers));
        }
        self.note_choice(runs.choice, runs.count == 1, shared, settings);
        None
    }

    /// What these messages run.
    fn look(&self, input: &[u8], shared: &Shared, settings: &Settings) -> Option<Runs> {
        let mut chooser = self.chooser(shared, settings)?;
        let runs = self.look_as(input, &chooser);
        if !chooser.may_go_beside || runs.choice.demand != Demand::Read {
            return Some(runs);
        }
        // They read catalogs and nothing else: that belongs to no transaction, if it can be told from what does.
        let is_query = runs.count == 1 && input.first() == Some(&b'Q');
        let is_whole = runs.until == Until::Sync || runs.until == Until::Answer && is_query;
        if runs.count > 0 && is_whole && !runs.is_bound {
            return Some(Runs {
                goes_beside: true,
                ..runs
            });
        }
        chooser.may_go_beside = false;
        Some(self.look_as(input, &chooser))
    }

    fn look_as(&self, input: &[u8], chooser: &Chooser<'_>) -> Runs {
        let (block, is_read) = (self.block(), self.state.hold().is_none());
        let mut runs = Runs::new(chooser.anywhere(), self.state.shared_channels());
        let ahead = look_ahead(input, &self, |run| {
            runs.add(run, is_read, chooser, block);
        });
        runs.until = ahead.until;
        runs.is_bound |= ahead.suspends;
        if runs.count == 0 && (ahead.until != Until::Sync || ahead.binds) {
            let program = ahead.seen.and_then(|run| program(run.text));
            runs.gid = program.as_ref().and_then(ended);
        }
        if runs.count == 0 && ahead.until == Until::Sync && !ahead.binds {
            runs.goes_beside = match block {
                Block::None => false,
                Block::Held(held) => !held.has_savepoint(),
                // The end of the block may be prepared.
                Block::Failed(_) | Block::Lost(_) => ahead.seen.is_some_and(|run| {
                    let does = program(run.text);
                    block.takes(run.text, does.as_ref()) || does.as_ref().is_some_and(commits)
                }),
            };
        }
        let has_more = ahead.until != Until::Sync || ahead.binds;
        let begins = matches!(block, Block::Held(_)) && !runs.goes_beside;
        let is_in_sight = runs.count > 0 && ahead.until != Until::More;
        if !is_in_sight && (has_more || begins) {
            // What is in sight is all that there is to go by.
            let run = ahead.seen.filter(|_| is_read);
            let program = run.and_then(|run| program(run.text));
            runs.judge(run, program.as_ref(), chooser);
        } else if runs.count == 0 {
            runs.choice = chooser.prepares(ahead.seen.filter(|_| is_read));
        }
        runs
    }

    pub(super) fn chooser<'a>(
        &'a self,
        shared: &'a Shared,
        settings: &'a Settings,
    ) -> Option<Chooser<'a>> {
        let routed = self.routed.as_ref()?;
        let key = self.pool.key();
        let held = match &routed.block {
            Block::Held(held) => Some(held),
            Block::None | Block::Failed(_) | Block::Lost(_) => None,
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
        let hints = &self.about.who.hints;
        Some(Chooser {
            router: &shared.router,
            settings,
            nodes: &shared.nodes,
            health: &shared.health,
            session: SessionFacts {
                key: own.or(hints.key.as_deref()),
                ..hints.facts(&key.user, &key.database)
            },
            search_path: self.state.text_of(b"search_path"),
            transaction,
            serializable,
            near: routed.nearest(),
            last: routed.seen.last(),
            wrote: routed
                .wrote
                .and_then(|(node, epoch)| (epoch == routed.epoch).then_some(node)),
            tells: settings.tells || self.explains(),
            may_go_beside: transaction == Transaction::ReadWrite
                && held.is_some_and(|held| held.is_begun_only()),
        })
    }

    /// Goes to the node of what is to run.
    fn go(&mut self, runs: Runs, shared: &Shared, settings: &Settings) {
        let (node, demand) = (runs.choice.node, runs.choice.demand);
        self.note_choice(runs.choice, runs.count == 1, shared, settings);
        if let Some(routed) = &mut self.routed {
            // Nobody has looked at what is not in sight.
            routed.writes = demand >= Demand::Begin || runs.until == Until::More;
        }
        let Some(node) = node else { return };
        self.go_to(node, shared);
        let Some(routed) = &mut self.routed else {
            return;
        };
        routed.seen.goes();
        if demand >= Demand::Begin {
            routed.wrote = Some((node, routed.epoch));
        }
        if demand != Demand::Session {
            self.look_behind(demand == Demand::Read, shared);
        }
    }

    /// What it is about to write belongs on a node whose keys are on their way: it waits until they have arrived, and chooses again.
    pub(super) fn waits_for_handoff(&mut self, shared: &Shared) -> bool {
        let node = self.node();
        let Some(routed) = &mut self.routed else {
            return false;
        };
        if !routed.writes || !shared.health.parks(node) {
            return false;
        }
        routed.behind = None;
        let later = shared.health.later_than(routed.epoch);
        self.park(Why::Handoff, later, shared);
        true
    }

    /// Whether what it writes may have got another home since its node was chosen.
    pub(super) fn is_outdated(&self, shared: &Shared) -> bool {
        let routed = self.routed.as_ref();
        routed.is_some_and(|routed| routed.writes && routed.epoch != shared.health.epoch())
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
                server.trace.modes = held.modes();
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

    fn refuse_in_failed_block(&mut self, tag: u8, commits: bool) -> Step {
        let mut report = report::aborted();
        if let Some(routed) = &mut self.routed
            && let Block::Lost(modes) = routed.block
        {
            // The client hears of it now. A COMMIT that fails ends the block.
            report = report::lost_with(self.pool.node_name());
            routed.block = match commits {
                true => Block::None,
                false => Block::Failed(modes),
            };
        }
        encode::backend::error(self.to_client.buffer(), &report);
        if matches!(tag, b'Q' | b'F') {
            self.ready_for_query();
        } else {
            self.refusing = Refusing::ToSync;
        }
        Step::Drop
    }

    /// Answers messages that are about the block and nothing else, as far as they are of the plainest kind: a Query, or what
    /// drivers make of one in the extended protocol. Answers how many bytes they are.
    fn answer(&mut self, input: &[u8], shared: &Shared) -> Option<usize> {
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
        if tag == b'P' && !self.prepare_here(body.cstr().ok()?, frame, shared) {
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
    pub(super) fn prepare_here(&mut self, name: &[u8], frame: &[u8], shared: &Shared) -> bool {
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
        let statement = shared.pools.statements.intern(rest);
        let fits = self.statements.insert(name, statement, attempt);
        if !fits {
            self.statements.remove(name);
        }
        fits
    }
}
