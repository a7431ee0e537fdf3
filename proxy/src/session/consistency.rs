//! Owns how a session waits until the node that it goes to shows what it has seen, and what its client is told when that is in vain.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tandem_replicator::Point;
use tandem_routing_rules::{Consistency, Lost, ReadRules, Scope};
use tandem_wire::encode;
use tokio::time::Instant;

use super::{
    Shared,
    end::End,
    owed::Status,
    report,
    task::{Place, Task},
};
use crate::timing::{self, Moment, Span};

/// How long a unit waits for the node to show what the session has seen elsewhere.
pub(super) const BEHIND_MAX: Duration = Duration::from_secs(1);
/// How long the session's own node is left alone after it did not show that in time.
const LAGS: Duration = Duration::from_secs(10);

/// The session's position as a text, or the node that does not tell.
pub(super) type Told = Result<String, String>;

/// What a session waits for before it asks for a server.
pub(super) enum Behind {
    /// That its node shows what it has seen on others.
    Shows(Shows),
    /// Its position.
    Position(Pin<Box<dyn Future<Output = Told> + Send>>),
}

/// What has come of that.
enum Heard {
    Shows(bool),
    Position(Told),
}

/// Waits until a node shows what the session has seen on others.
pub(super) struct Shows {
    wait: Pin<Box<dyn Future<Output = bool> + Send>>,
    since: Moment,
    /// What is waited for.
    wanted: Vec<(usize, Point)>,
    /// Nodes that are down, of which nobody can tell whether all that was seen there has come here.
    lost: Vec<usize>,
    /// It can go back to where it has seen it: it does not have to write here.
    may_go_back: bool,
}

impl fmt::Debug for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Behind")
    }
}

/// Whether what was seen on a node may have gone with it.
fn is_lost(shared: &Shared, node: usize) -> bool {
    !shared.health.is_up(node)
}

fn names(shared: &Shared, nodes: &[usize]) -> String {
    let named = shared.nodes.iter().enumerate();
    let named = named.filter(|(index, _)| nodes.contains(index));
    let names: Vec<&str> = named.map(|(_, node)| node.name()).collect();
    names.join(", ")
}

impl Task {
    /// What a node has to show before the session goes on there, as far as it is not known to show it.
    pub(super) fn wanted(
        &self,
        to: usize,
        read: ReadRules,
        shared: &Shared,
    ) -> Vec<(usize, Point)> {
        let Some(routed) = &self.routed else {
            return Vec::new();
        };
        let scope = (read.consistency, read.scope);
        let written = routed.acknowledged.as_ref();
        let written = written.filter(|_| scope == (Consistency::Session, Scope::Database));
        // Of a node that is down only what was acknowledged while the session was there: each new one would hear of it.
        let begun = self.about.since;
        let is_known = |node, at| begun < at || !is_lost(shared, node);
        let written = written.into_iter().flat_map(|all| {
            let last = all.last();
            last.filter(move |(node, at)| is_known(*node, *at))
        });
        let mut wanted = routed.seen.wanted(to, written);
        wanted.retain(|(from, point)| !shared.replicator.has_shown(*from, *point, to));
        wanted
    }

    /// Whether there is something that this node has to show first.
    pub(super) fn is_behind(&self, to: usize, shared: &Shared) -> bool {
        let read = shared.settings.load().config.rules.read;
        read.consistency == Consistency::Session && !self.wanted(to, read, shared).is_empty()
    }

    /// It goes to its node to do something: what has it wait there first, if anything does.
    pub(super) fn look_behind(&mut self, may_go_back: bool, shared: &Shared) {
        let (to, read) = (self.node(), shared.settings.load().config.rules.read);
        if read.consistency == Consistency::Eventual {
            return;
        }
        let mut wanted = self.wanted(to, read, shared);
        let mut lost = Vec::new();
        let last = self.routed.as_ref().and_then(|routed| routed.seen.last());
        wanted.retain_mut(|(from, point)| {
            // At the home nobody waits; who was there last is told all the same when it is down.
            let at_home = read.consistency == Consistency::Home;
            if !is_lost(shared, *from) || at_home && last != Some(*from) {
                return !at_home;
            }
            let known = match *point {
                Point::Time(since) => shared.replicator.known_position(*from, since),
                Point::Position(lsn) => Some(lsn),
            };
            match known {
                Some(lsn) => *point = Point::Position(lsn),
                None => lost.push(*from),
            }
            known.is_some()
        });
        let Some(routed) = &mut self.routed else {
            return;
        };
        if wanted.is_empty() && lost.is_empty() {
            if read.consistency == Consistency::Session {
                routed.seen.shows(to);
            }
            return;
        }
        let wait = shared.replicator.shows(wanted.clone(), to, BEHIND_MAX);
        routed.behind = Some(Box::new(Behind::Shows(Shows {
            wait: Box::pin(wait),
            since: timing::now(),
            wanted,
            lost,
            may_go_back,
        })));
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
        let polled = match &mut **behind {
            Behind::Shows(shows) => shows.wait.as_mut().poll(cx).map(Heard::Shows),
            Behind::Position(wait) => wait.as_mut().poll(cx).map(Heard::Position),
        };
        if polled.is_pending() && !self.registered.entry().is_cancelled() {
            return Ok(false);
        }
        let place = std::mem::replace(&mut self.place, Place::Idle);
        match (polled, place) {
            (Poll::Ready(Heard::Shows(shows)), Place::Behind(behind)) => {
                if let Behind::Shows(behind) = *behind
                    && self.waited(shows, behind, shared)
                {
                    self.seek(cx, shared)?;
                }
            }
            (Poll::Ready(Heard::Position(told)), _) => {
                self.registered.entry().detach();
                self.asked = None;
                if let Some(routed) = &mut self.routed {
                    routed.told = Some(Box::new(told));
                }
                // The message that asks for it is looked at once more.
                self.stalled = true;
            }
            _ => {
                self.registered.entry().detach();
                self.refuse(&report::cancelled());
            }
        }
        Ok(true)
    }

    /// The node shows what the session has seen elsewhere, or does not in time. Whether the session goes on.
    fn waited(&mut self, shows: bool, behind: Shows, shared: &Shared) -> bool {
        let to = self.node();
        let (mut late, mut lost) = (behind.wanted, behind.lost);
        if !late.is_empty() {
            shared.acknowledged.waited(to, shows);
            let waited = timing::now().micros_since(behind.since);
            timing::record(to, Span::Consistency, waited);
        }
        late.retain(|(from, point)| {
            let is_there = shows || shared.replicator.has_shown(*from, *point, to);
            let is_lost = !is_there && is_lost(shared, *from);
            if is_lost {
                lost.push(*from);
            }
            !is_there && !is_lost
        });
        let Some(routed) = &mut self.routed else {
            return true;
        };
        if late.is_empty() && lost.is_empty() {
            routed.seen.shows(to);
            return true;
        }
        let nodes: Vec<usize> = late.iter().map(|(from, _)| *from).collect();
        if behind.may_go_back
            && lost.is_empty()
            && let Some(back) = nodes.first().filter(|back| {
                shared.health.usable(**back) && nodes.iter().all(|node| node == *back)
            })
        {
            routed.lags = Some((to, Instant::now() + LAGS));
            routed.seen.goes();
            self.go_to(*back, shared);
            // What it has seen on others is waited for there.
            self.look_behind(false, shared);
            return true;
        }
        if !late.is_empty() {
            routed.seen.gave_up(to, &late);
            let report = report::behind(self.pool.node_name(), &names(shared, &nodes));
            encode::backend::notice(self.to_client.buffer(), &report);
        }
        self.tell_lost(&lost, shared)
    }

    /// What was seen on these nodes may be missing from now on. Whether the session goes on.
    fn tell_lost(&mut self, lost: &[usize], shared: &Shared) -> bool {
        let Some(routed) = self.routed.as_mut().filter(|_| !lost.is_empty()) else {
            return true;
        };
        for node in lost {
            routed.seen.lost(*node, Instant::now());
        }
        let policy = shared.settings.load().config.rules.read.lost;
        let report = report::lost(&names(shared, lost), self.pool.node_name(), policy);
        match policy {
            Lost::Notice => encode::backend::notice(self.to_client.buffer(), &report),
            Lost::Error => {
                self.registered.entry().detach();
                self.refuse(&report);
            }
        }
        policy == Lost::Notice
    }

    /// The client is about to be told by this message of its server's that something is done. Others may be told of it by the
    /// client, so this is noted first.
    pub(super) fn note_acknowledged(&self, tag: u8, body: &[u8]) {
        let (Some(routed), Place::Server(server)) = (&self.routed, &self.place) else {
            return;
        };
        let is_done = match tag {
            b'C' => server.owed.status() != Status::Transaction || body.starts_with(b"COMMIT"),
            b'Z' => body.first() == Some(&b'I'),
            _ => false,
        };
        if is_done
            && (routed.writes || self.state.hold().is_some())
            && let Some(acknowledged) = &routed.acknowledged
        {
            acknowledged.note(server.face.node);
        }
    }
}
