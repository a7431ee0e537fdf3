//! Positions of nodes for who goes from one node to another and must not see less there than before.
//!
//! A position is a watermark: what was committed on its node before it was asked for is at or before it, and what the node had
//! of others by then is among its causes, so who has applied it has those too. Those who ask at the same time share one.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use tandem_wire::lsn::Lsn;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use crate::node::{NodeState, Shared};
use crate::watermark;

/// A point in the history of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// All that could be seen there at this time.
    Time(Instant),
    /// A position in its WAL: all that is at or before it, and what the node had of others when it wrote that.
    Position(Lsn),
}

/// A watermark of one node that was taken for this.
#[derive(Debug, Clone, Copy)]
struct Taken {
    /// When it was asked for.
    begun: Instant,
    lsn: Lsn,
}

/// The newest watermarks: of each node, and of each node that another one was seen to show.
#[derive(Debug)]
pub(crate) struct Positions {
    nodes: usize,
    /// Held by who takes one of this node: whoever waits behind gets the same.
    taking: Vec<AsyncMutex<()>>,
    newest: Vec<Mutex<Option<Taken>>>,
    /// Of source and target, at `source * nodes + target`.
    shown: Vec<Mutex<Option<Taken>>>,
}

impl Positions {
    /// None yet.
    pub(crate) fn new(nodes: usize) -> Positions {
        Positions {
            nodes,
            taking: (0..nodes).map(|_| AsyncMutex::default()).collect(),
            newest: (0..nodes).map(|_| Mutex::default()).collect(),
            shown: (0..nodes * nodes).map(|_| Mutex::default()).collect(),
        }
    }

    /// The newest one of a node, if it was taken after `since`.
    fn known(&self, node: usize, since: Instant) -> Option<Taken> {
        get(&self.newest, node).filter(|taken| taken.begun > since)
    }

    /// One of a node that was taken after `since`.
    async fn taken_since(
        &self,
        shared: &Shared,
        node: usize,
        since: Instant,
        deadline: Instant,
    ) -> Option<Taken> {
        if let Some(taken) = self.known(node, since) {
            return Some(taken);
        }
        let _taking = self.taking.get(node)?.lock().await;
        if let Some(taken) = self.known(node, since) {
            return Some(taken);
        }
        let begun = Instant::now();
        let lsn = watermark::write_on(shared, node, deadline).await.ok()?;
        let taken = Taken { begun, lsn };
        put(&self.newest, node, taken);
        Some(taken)
    }
}

fn get(all: &[Mutex<Option<Taken>>], place: usize) -> Option<Taken> {
    *all.get(place)?
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

fn put(all: &[Mutex<Option<Taken>>], place: usize, taken: Taken) {
    if let Some(slot) = all.get(place) {
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none_or(|known| known.begun < taken.begun) {
            *slot = Some(taken);
        }
    }
}

/// A watermark of a node that was taken after `since`. None: the node cannot be asked before the deadline.
pub(crate) async fn position(
    shared: Arc<Shared>,
    node: usize,
    since: Instant,
    deadline: Instant,
) -> Option<Lsn> {
    let taken = shared.positions.taken_since(&shared, node, since, deadline);
    let taken = tokio::time::timeout_at(deadline, taken).await;
    taken.ok().flatten().map(|taken| taken.lsn)
}

/// The same, if somebody has taken it already.
pub(crate) fn known_position(shared: &Shared, node: usize, since: Instant) -> Option<Lsn> {
    let known = shared.positions.known(node, since);
    known.map(|taken| taken.lsn)
}

/// Whether it is known without asking anybody that `to` shows this of `from`. Not of a target that is not worked on: what it had
/// not flushed may be lost, of which its link's position tells only when the target is taken again.
pub(crate) fn has_shown(shared: &Shared, from: usize, point: Point, to: usize) -> bool {
    if from == to {
        return true;
    }
    let Some(applied) = shared.links.get(from, to).map(|link| link.applied()) else {
        return false;
    };
    let positions = &shared.positions;
    let is_there = match point {
        Point::Position(lsn) => lsn <= applied,
        Point::Time(since) => {
            let shown = get(&positions.shown, from * positions.nodes + to);
            let covers = |taken: Taken| taken.begun > since && taken.lsn <= applied;
            shown.is_some_and(covers) || positions.known(from, since).is_some_and(covers)
        }
    };
    is_there && is_complete(shared, to)
}

/// Waits until `to` shows all these points of other nodes. Whether that is so before the deadline. What waits in quarantine there for
/// somebody to look at it may be missed by whoever goes there, so nobody waits for that.
pub(crate) async fn shows(
    shared: Arc<Shared>,
    points: Vec<(usize, Point)>,
    to: usize,
    deadline: Instant,
) -> bool {
    if holds_back(&shared, to) {
        return false;
    }
    let each = points.iter();
    let each = each.map(|(from, point)| applied(&shared, *from, *point, to, deadline));
    let all = tokio::time::timeout_at(deadline, join_all(each)).await;
    all.is_ok_and(|all| all.into_iter().all(|shows| shows)) && is_complete(&shared, to)
}

/// Waits until a node has what others wrote while it was away, and these what it wrote itself: all that was committed before the
/// call. Of those among the others that do not answer what was read from them counts. Whether that is so before the deadline;
/// what is in quarantine is not waited for.
pub(crate) async fn caught_up(
    shared: Arc<Shared>,
    node: usize,
    answering: Vec<usize>,
    deadline: Instant,
) -> bool {
    let since = Point::Time(Instant::now());
    let others = (0..shared.node_ids.len()).filter(|other| *other != node);
    let each = others.map(|other| {
        let (shared, answers) = (&shared, answering.contains(&other));
        async move {
            if !answers {
                let read = shared.journals.get(other).map(|journal| journal.tail());
                let read = Point::Position(read.unwrap_or_default());
                return applied(shared, other, read, node, deadline).await;
            }
            applied(shared, other, since, node, deadline).await
                && applied(shared, node, since, other, deadline).await
        }
    });
    let all = tokio::time::timeout_at(deadline, join_all(each)).await;
    all.is_ok_and(|all| all.into_iter().all(|has| has)) && shared.state(node) == NodeState::Up
}

async fn applied(shared: &Shared, from: usize, point: Point, to: usize, deadline: Instant) -> bool {
    if has_shown(shared, from, point, to) {
        return true;
    }
    let Some(link) = shared.links.get(from, to) else {
        return false;
    };
    match point {
        Point::Position(lsn) => link.wait_applied(lsn).await,
        Point::Time(since) => {
            let positions = &shared.positions;
            let taken = positions.taken_since(shared, from, since, deadline).await;
            let Some(taken) = taken else { return false };
            link.wait_applied(taken.lsn).await;
            put(&positions.shown, from * positions.nodes + to, taken);
        }
    }
    true
}

/// Whether this node is worked on, and nothing that was committed elsewhere is in quarantine there.
fn is_complete(shared: &Shared, node: usize) -> bool {
    shared.state(node) == NodeState::Up && !holds_back(shared, node)
}

/// Whether something that was committed elsewhere is in quarantine on this node.
fn holds_back(shared: &Shared, node: usize) -> bool {
    let quarantine = shared.quarantines.get(node);
    let mut sources = shared.node_ids.iter();
    quarantine.is_some_and(|quarantine| sources.any(|source| quarantine.of_source(*source) > 0))
}
