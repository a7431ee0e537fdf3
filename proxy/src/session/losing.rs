//! Owns what is done about a session whose server is lost: what its client is told, and how it goes on.
//!
//! What is decided, and from what, is in `lost.rs`. The client hears of the loss where it waits for an answer; who waits for none
//! hears of it with what it says next, or never.

use std::{
    io,
    sync::{Arc, OnceLock, atomic::Ordering},
    task::Context,
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use tandem_wire::{ErrorReport, encode};
use tokio::time::{Instant, sleep};

use super::{
    Shared,
    block::Block,
    end::{Boundary, End},
    lost::{Facts, Lost, Segment},
    outbound::put_texts,
    owed::{By, Item, Sent, Status},
    parked::Why,
    policing::Policing,
    profile::ServerSettings,
    ready::{Errand, Portals},
    report,
    splice::Splice,
    task::{Place, Refusing, Task},
    trace::Control,
    unit::{Beside, Routed},
};
use crate::{auth::control::Control as Connections, health::HealthBoard, pool::Server};

/// A FunctionCall of `pg_current_xact_id_if_assigned()`, whose number is 5060 (pg_proc.dat): no arguments, and the result in
/// binary format. It costs a server much less than a statement that calls it.
const ASK_NUMBER: &[u8] = b"F\0\0\0\x0e\0\0\x13\xc4\0\0\0\0\0\x01";
/// What has become of the transaction `$1` of a connection that is `$2` seconds old and was lost `$3` seconds ago, and whether that is
/// surely of this one.
///
/// A server that crashes gives numbers once more of which nothing was on disk. The checkpointer is started anew then
/// (`PostmasterStateMachine` in postmaster.c), and what was committed before that is of before. But it may have crashed twice since:
/// what came behind the loss decides nothing. Nor does what has an origin: its time is that of another node's commit. All other times
/// are the node's own.
const OUTCOME: &str = "SELECT pg_catalog.pg_xact_status($1::pg_catalog.text::pg_catalog.xid8), \
    begun < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2) \
    OR done.roident = 0 AND done.timestamp \
    < LEAST(begun, pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $3)) \
    FROM (SELECT backend_start AS begun FROM pg_catalog.pg_stat_activity WHERE backend_type = 'checkpointer') AS life, \
    pg_catalog.pg_xact_commit_timestamp_origin($1::pg_catalog.text::pg_catalog.xid8::pg_catalog.xid) AS done";
/// How often a node is asked for that which has no answer yet.
const OUTCOME_GAP: Duration = Duration::from_millis(100);

/// A COMMIT of which nobody knows yet what has become.
#[derive(Debug)]
pub(super) struct Doubt {
    node: usize,
    /// What its client waits for.
    items: Vec<Item>,
    /// What the server was taken to have set.
    settings: ServerSettings,
    /// Whether it has committed, once that is known.
    found: Arc<OnceLock<bool>>,
}

/// Asks a node what has become of a transaction, until it is known. A transaction that a server still works on is in progress, and
/// one that was cut off by a crash is aborted.
async fn outcome(
    connections: Arc<Connections>,
    health: Arc<HealthBoard>,
    node: usize,
    xid: u64,
    opened: Instant,
    found: Arc<OnceLock<bool>>,
) {
    let xid = xid.to_string();
    let lost = Instant::now();
    loop {
        let news = health.news(node);
        let age = opened.elapsed().as_secs_f64();
        let lost = lost.elapsed().as_secs_f64();
        if let Ok(rows) = connections.query(node, OUTCOME, &[&xid, &age, &lost]).await {
            let row = rows.first();
            let status = row.and_then(|row| row.try_get::<_, Option<String>>(0).ok()?);
            let is_ours = row.and_then(|row| row.try_get::<_, Option<bool>>(1).ok()?);
            let committed = match (status.as_deref(), is_ours) {
                (Some("committed"), Some(true)) => Some(true),
                // So is ours, if the number is another one's by now.
                (Some("aborted"), _) => Some(false),
                _ => None,
            };
            if let Some(committed) = committed {
                // Nobody else says so.
                let _ = found.set(committed);
                return;
            }
        }
        tokio::select! {
            () = news => {}
            () = sleep(OUTCOME_GAP) => {}
        }
    }
}

/// Wakes those who wait for a node when it is given up, for ever: nothing that happens there would.
pub(crate) async fn wake(shared: Arc<Shared>) {
    let mut verdicts = shared.health.verdicts();
    let mut known = vec![false; shared.nodes.len()];
    while verdicts.changed().await.is_ok() {
        for (node, known) in known.iter_mut().enumerate() {
            let given_up = shared.health.is_given_up(node);
            if given_up && !std::mem::replace(known, given_up) {
                shared.registry.wake_all();
            }
            *known = given_up;
        }
    }
}

/// The answers that these messages are owed when all is well: one of them runs something, which has this command tag; none: it is
/// answered.
fn put_success(out: &mut BytesMut, items: &[Item], tag: Option<&[u8]>) {
    let put_tag = |out: &mut BytesMut| {
        if let Some(tag) = tag {
            put_texts(out, b'C', &[tag]);
        }
    };
    for item in items.iter().filter(|item| item.by == By::Client) {
        match item.sent {
            Sent::Parse => out.put_slice(b"1\0\0\0\x04"),
            Sent::Bind => out.put_slice(b"2\0\0\0\x04"),
            Sent::Close => out.put_slice(b"3\0\0\0\x04"),
            Sent::DescribeStatement => out.put_slice(b"t\0\0\0\x06\0\0n\0\0\0\x04"),
            Sent::DescribePortal => out.put_slice(b"n\0\0\0\x04"),
            Sent::Execute => put_tag(out),
            Sent::Query => {
                put_tag(out);
                encode::backend::ready_for_query(out, b'I');
            }
            Sent::Sync => encode::backend::ready_for_query(out, b'I'),
            Sent::FunctionCall | Sent::CopyEnd => {}
        }
    }
}

impl Task {
    /// Has the server tell the number of a transaction that has written, in the same write as the COMMIT that ends it and ahead of
    /// it: if the server is lost then, the node can be asked what has become of the transaction.
    pub(super) fn ask_number(&mut self, does: Control, input: &[u8], splice: &mut Splice<'_>) {
        if does != Control::Commits {
            return;
        }
        let (Some(routed), Place::Server(server)) = (&self.routed, &mut self.place) else {
            return;
        };
        let trace = &server.trace;
        let has_written = trace.has_written || self.state.has_called(&server.settings);
        if has_written
            && trace.xid.is_none()
            && routed.writes
            && routed.acknowledged.is_some()
            && server.owed.is_quiet()
            && server.owed.status() == Status::Transaction
        {
            server.owed.sent(Sent::FunctionCall, By::Proxy, 0);
            splice.make(input).put_slice(ASK_NUMBER);
        }
    }

    /// This of the client's has gone to its server: keeps what can be sent once more.
    pub(super) fn hold_sent(&mut self, bytes: &[u8]) {
        let (Some(routed), Place::Server(server)) = (&self.routed, &mut self.place) else {
            return;
        };
        if !routed.writes && server.owed.status() == Status::Idle && self.state.hold().is_none() {
            server.trace.hold(bytes);
        }
    }

    /// Whether the session may live on when it ends so.
    pub(super) fn may_survive(&self, end: &End) -> bool {
        self.shares() && matches!(end, End::ServerLost(_)) && self.boundary() == Boundary::Clean
    }

    /// Reads from a server whose node has not been given up.
    pub(super) fn read_answering(
        &mut self,
        cx: &mut Context<'_>,
        shared: &Shared,
    ) -> Result<bool, End> {
        // Behind what has come before.
        match self.read_server(cx)? {
            false if shared.health.is_given_up(self.node()) => {
                Err(End::ServerLost(Some(io::ErrorKind::TimedOut.into())))
            }
            read => Ok(read),
        }
    }

    fn facts(&self, server: &Server) -> Facts {
        let (owed, routed) = (&server.owed, self.routed.as_ref());
        let can_repeat = server.trace.held().is_some()
            && self.up.at_boundary()
            && self.refusing == Refusing::No
            && routed.is_some_and(|routed| !routed.repeats);
        Facts {
            is_held: self.state.hold().is_some(),
            status: owed.status(),
            segments: Segment::all(owed.items(), owed.ran(), owed.is_in_clients_batch()),
            is_told: owed.is_told(),
            is_unclear: owed.is_unclear(),
            may_write: routed.is_none_or(|routed| routed.writes),
            can_repeat,
            xid: server.trace.xid,
        }
    }

    /// Its server is lost.
    pub(super) fn lose_server(&mut self, end: End, shared: &Shared) -> Result<(), End> {
        let Place::Server(server) = &self.place else {
            return Err(end);
        };
        let facts = self.facts(server);
        let lost = Lost::decide(&facts);
        let node = server.face.node;
        shared.health.evidence(node);
        if lost == Lost::Unclear {
            return Err(end);
        }
        tracing::info!(
            node = self.pool.node_name(),
            backend = server.face.pid,
            %end,
            ?lost,
            "a session has lost its server"
        );
        let Place::Server(mut server) = std::mem::replace(&mut self.place, Place::Idle) else {
            return Err(end);
        };
        self.part(&mut server);
        let items: Vec<Item> = server.owed.items().copied().collect();
        let name = self.pool.node_name().to_owned();
        match lost {
            Lost::Idle => self.roll_back(),
            Lost::Between { told } => {
                self.roll_back();
                let modes = server.trace.modes;
                self.routed_here(node).block = match told {
                    true => Block::Failed(modes),
                    false => Block::Lost(modes),
                };
            }
            Lost::Again => {
                self.roll_back();
                let rest = std::mem::take(&mut self.from_client);
                self.from_client = server.trace.held().unwrap_or_default().into();
                self.from_client.extend_from_slice(&rest);
                self.stalled = true;
                self.routed_here(node).repeats = true;
            }
            Lost::RolledBack => {
                self.roll_back();
                self.asked = None;
                put_success(self.to_client.buffer(), &items, Some(b"ROLLBACK"));
            }
            Lost::Ended => {
                self.state.ready(Status::Idle, false, &mut server.settings);
                self.asked = None;
                put_success(self.to_client.buffer(), &items, None);
            }
            Lost::Nothing => self.fail_all(&facts, &report::lost_with(&name), &server, node),
            Lost::Unknown => self.fail_all(&facts, &report::in_doubt(&name), &server, node),
            Lost::Asks(xid) => {
                let found = Arc::new(OnceLock::new());
                let connections = Arc::clone(&shared.control);
                let health = Arc::clone(&shared.health);
                let opened = self.pool.opened(&server);
                let asks = outcome(connections, health, node, xid, opened, Arc::clone(&found));
                let nothing = ServerSettings::new(&[], &[]);
                let doubt = Doubt {
                    node,
                    items,
                    settings: std::mem::replace(&mut server.settings, nothing),
                    found,
                };
                let bound = shared.settings.load().config.proxy.commit_outcome_wait;
                self.park_for(Why::Outcome(Box::new(doubt)), asks, bound, None);
            }
            Lost::Over { in_doubt } => {
                let report = report::lost_for_good(&name, self.state.hold(), in_doubt);
                return Err(End::Lost(Box::new(report)));
            }
            Lost::Unclear => return Err(end),
        }
        // What is left of a large message goes nowhere.
        self.dropping_up |= !self.up.at_boundary();
        server.close();
        Ok(())
    }

    /// What the session has of its server goes with it.
    fn part(&mut self, server: &mut Server) {
        let undone = server.owed.items().filter(|item| item.sent == Sent::Parse);
        for attempt in undone.map(|item| item.note) {
            self.statements.undo(attempt);
            if self.unnamed.attempt == attempt {
                self.unnamed.attempt = 0;
            }
        }
        self.errand = Errand::None;
        self.portals = Portals::default();
        self.shown_hold = None;
        self.dropping_down = false;
        self.sent = None;
        self.registered.entry().detach();
        server.face.client.store(0, Ordering::Relaxed);
        if let Some(routed) = &mut self.routed {
            routed.numbers.forget_portals();
            routed.policing = Policing::default();
            routed.beside = Beside::No;
            if server.trace.is_heard {
                routed.seen.left(server.face.node, Instant::now());
            }
        }
    }

    /// What was set and not committed is not set any more; the client was told otherwise of some settings.
    fn roll_back(&mut self) {
        for (name, value) in self.state.lost() {
            put_texts(self.to_client.buffer(), b'S', &[&name, &value]);
        }
    }

    /// A session of a single node gets a place for its failed block only when it has one.
    fn routed_here(&mut self, node: usize) -> &mut Routed {
        self.routed
            .get_or_insert_with(|| Box::new(Routed::new(node, None)))
    }

    /// All that the client waits for has failed.
    fn fail_all(&mut self, facts: &Facts, report: &ErrorReport, server: &Server, node: usize) {
        self.roll_back();
        self.asked = None;
        let aborted = report::aborted();
        let mut is_open = facts.status != Status::Idle || self.block().status().is_some();
        let mut report = report;
        for (place, segment) in facts.segments.iter().enumerate() {
            let is_told = facts.is_told && place == 0;
            let out = self.to_client.buffer();
            if !is_told {
                encode::backend::error(out, report);
                is_open = segment.control.opens().unwrap_or(is_open);
            }
            if is_open && !facts.may_have_committed() {
                report = &aborted;
            }
            match segment.is_ended {
                true => encode::backend::ready_for_query(out, if is_open { b'E' } else { b'I' }),
                false => self.refusing = Refusing::ToSync,
            }
        }
        match (is_open, self.block()) {
            (false, Block::None) => {}
            (false, _) => self.routed_here(node).block = Block::None,
            (true, Block::Held(_)) => self.routed_here(node).block.fail(),
            (true, _) => self.routed_here(node).block = Block::Failed(server.trace.modes),
        }
    }

    /// It is known what has become of a COMMIT, or it will not be known in time.
    pub(super) fn resolve(&mut self, mut doubt: Box<Doubt>, shared: &Shared) {
        self.registered.entry().detach();
        self.asked = None;
        let name = shared.nodes.get(doubt.node).map_or("?", |node| node.name());
        let found = doubt.found.get().copied();
        tracing::info!(node = name, committed = found, "a COMMIT was in doubt");
        let report = match found {
            Some(true) => {
                let mut items = doubt.items.iter();
                let note = items.find(|item| item.control == Control::Commits);
                let note = note.map_or(0, |item| item.note);
                self.state.succeeded(note, &mut doubt.settings);
                self.state.ready(Status::Idle, false, &mut doubt.settings);
                if let Some(routed) = &mut self.routed {
                    if let Some(acknowledged) = &routed.acknowledged {
                        acknowledged.note(doubt.node);
                    }
                    routed.seen.left(doubt.node, Instant::now());
                }
                put_success(self.to_client.buffer(), &doubt.items, Some(b"COMMIT"));
                return;
            }
            Some(false) => report::lost_with(name),
            None => report::in_doubt(name),
        };
        self.roll_back();
        encode::backend::error(self.to_client.buffer(), &report);
        self.ready_for_query();
    }
}
