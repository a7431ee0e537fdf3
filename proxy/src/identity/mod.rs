//! Owns which numbers (OIDs) clients are told where a session's work goes to several nodes: those of one node, the *reference
//! node*. What users have made has another number on each node, and drivers remember numbers for as long as they are connected.
//!
//! The reference node is the one with the lowest major version, then the lowest id, of those that answer when the daemon
//! starts; it is kept as long as the daemon runs, also while it is down. Types, tables and functions are told apart by their
//! qualified names.
//!
//! **Invariant:** while all nodes have given the same numbers there is no [`View`], and nobody looks at any message for it.

pub(crate) mod frames;
mod numbered;
mod read;
#[cfg(test)]
pub(crate) mod tests;
mod values;
mod view;

use std::{
    collections::HashSet,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use futures_util::future::join_all;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use crate::{health::HealthBoard, node::Nodes};
pub(crate) use numbered::Numbered;
use read::{ReadError, Said};
pub(crate) use values::Toward;
pub(crate) use view::Form;
use view::View;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same while some node has never answered.
const INTERVAL_UNREAD: Duration = Duration::from_secs(1);
/// The same before any has.
const INTERVAL_FIRST: Duration = Duration::from_millis(100);
/// Bound of the first look: logins wait for it.
const LIMIT_FIRST: Duration = Duration::from_secs(2);
/// The first looks behind a statement that may change what there is: it is seen before it is run. Each takes four times as
/// long to come as the one before.
const AFTER_CHANGE: Duration = Duration::from_millis(50);
const LOOKS_AFTER_CHANGE: u32 = 4;
/// The least time between two looks that somebody waits for.
const PAUSE: Duration = Duration::from_millis(20);
/// How long an unknown number is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Unknown numbers that are remembered.
const STRANGERS_MAX: usize = 10_000;

/// The numbers of all nodes.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    /// None before any node has answered.
    known: ArcSwapOption<Known>,
    /// Counts looks.
    looks: watch::Sender<u64>,
    /// Somebody waits for a look.
    wanted: Notify,
    /// Somebody may have changed what there is.
    changed: Notify,
    /// Numbers that were waited for in vain.
    strangers: Mutex<HashSet<Unknown>>,
}

/// What is known of all nodes.
#[derive(Debug)]
struct Known {
    reference: usize,
    server_version: Box<str>,
    /// A catalog says on another node something else than on the reference node.
    differs: bool,
    names: Box<[Box<str>]>,
    /// By node; none where numbers are those of the reference node.
    views: Box<[Option<Arc<View>>]>,
}

/// A number of a type that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Unknown {
    /// Index of the node.
    pub(crate) node: usize,
    /// The number.
    pub(crate) oid: u32,
    /// Which one is wanted: that of the reference node for a number of the node, or the other way.
    pub(crate) toward: Toward,
}

/// Waits until a number is known, or was waited for long enough.
pub(crate) struct Meeting(Pin<Box<dyn Future<Output = ()> + Send>>);

impl Meeting {
    /// To be polled until it is over.
    pub(crate) fn wait(&mut self) -> Pin<&mut (dyn Future<Output = ()> + Send)> {
        self.0.as_mut()
    }
}

impl fmt::Debug for Meeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meeting")
    }
}

impl Identities {
    /// What becomes of the numbers of a node; none: clients are told them as they are.
    pub(crate) fn numbered(self: &Arc<Self>, node: usize) -> Option<Numbered> {
        let known = self.known.load();
        let known = known.as_ref()?;
        let view = Arc::clone(known.views.get(node)?.as_ref()?);
        Some(Numbered::new(Arc::clone(self), view, node, known.reference))
    }

    /// The reference node, where it makes a difference for what catalogs say.
    pub(crate) fn reference(&self) -> Option<usize> {
        let known = self.known.load();
        let known = known.as_ref().filter(|known| known.differs);
        known.map(|known| known.reference)
    }

    /// The `server_version` that clients are told; none: that of their node.
    pub(crate) fn server_version(&self) -> Option<String> {
        let known = self.known.load();
        known.as_ref().map(|known| known.server_version.to_string())
    }

    /// Returns after the first answer.
    pub(crate) async fn first(&self) {
        // The sender lives in self.
        let _ = self.looks.subscribe().wait_for(|looks| *looks > 0).await;
    }

    /// Somebody may be about to change what there is.
    pub(crate) fn note_change(&self) {
        self.changed.notify_one();
    }

    /// Somebody has met an unknown number. None: it was waited for in vain, and nothing has changed since.
    pub(crate) fn meet(self: &Arc<Self>, unknown: Unknown) -> Option<Meeting> {
        if self.strangers().contains(&unknown) {
            return None;
        }
        let identities = Arc::clone(self);
        Some(Meeting(Box::pin(async move {
            let mut looks = identities.looks.subscribe();
            let found = async {
                while !identities.knows(unknown) {
                    identities.wanted.notify_one();
                    // The sender lives as long as this.
                    let _ = looks.changed().await;
                }
            };
            if timeout(PATIENCE, found).await.is_err() {
                identities.give_up(unknown);
            }
        })))
    }

    fn knows(&self, unknown: Unknown) -> bool {
        let known = self.known.load();
        let view = known
            .as_ref()
            .and_then(|known| known.views.get(unknown.node));
        view.is_none_or(|view| {
            view.as_ref().is_none_or(|view| match unknown.toward {
                Toward::Reference => view.to_reference(unknown.oid).is_some(),
                Toward::Node => view.to_node(unknown.oid).is_some(),
            })
        })
    }

    fn give_up(&self, unknown: Unknown) {
        let known = self.known.load();
        let names = known.as_ref().map(|known| &known.names);
        tracing::warn!(
            node = names
                .and_then(|names| names.get(unknown.node))
                .map_or("?", |name| &**name),
            oid = unknown.oid,
            "a type is not known on both this node and the reference node: its OID is passed on as it is"
        );
        let mut strangers = self.strangers();
        if strangers.len() >= STRANGERS_MAX {
            strangers.clear();
        }
        strangers.insert(unknown);
    }

    fn strangers(&self) -> std::sync::MutexGuard<'_, HashSet<Unknown>> {
        self.strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The first node has these numbers, and the next one is the reference node.
    #[cfg(test)]
    pub(crate) fn know(&self, view: View) {
        self.known.store(Some(Arc::new(Known {
            reference: 1,
            server_version: "15".into(),
            differs: true,
            names: Box::new(["n1".into()]),
            views: Box::new([Some(Arc::new(view))]),
        })));
        self.looks.send_modify(|looks| *looks += 1);
    }

    /// Looks for ever.
    pub(crate) async fn keep(&self, nodes: &Nodes, health: &HealthBoard, database: &str) {
        let mut said: Vec<Option<Said>> = nodes.iter().map(|_| None).collect();
        let mut looks_left = 0;
        let mut last = Instant::now();
        let mut asks_all = true;
        loop {
            let is_first = self.known.load().is_none();
            let limit = if is_first { LIMIT_FIRST } else { read::LIMIT };
            let is_unread = |node: usize| said.get(node).is_some_and(Option::is_none);
            let asked = (0..nodes.len())
                .filter(|node| is_first || health.usable(*node) && (asks_all || is_unread(*node)));
            let answers = join_all(asked.map(|node| ask(nodes, node, database, limit))).await;
            let mut news = false;
            for (node, answer) in answers {
                let (Some(answer), Some(before)) = (answer, said.get_mut(node)) else {
                    continue;
                };
                news |= before.as_ref() != Some(&answer);
                *before = Some(answer);
            }
            if news {
                self.put(&said, nodes);
            }
            if self.known.load().is_some() {
                self.looks.send_modify(|looks| *looks += 1);
            }
            let is_soon;
            (looks_left, is_soon) = self.next_look(looks_left, &said).await;
            asks_all = is_soon || last.elapsed() >= INTERVAL;
            if asks_all {
                last = Instant::now();
            }
        }
    }

    /// Waits until the next look is due. Answers how many are to come soon, and whether this one did.
    async fn next_look(&self, looks_left: u32, said: &[Option<Said>]) -> (u32, bool) {
        let is_read = |said: &&Option<Said>| said.is_some();
        let pause = match (looks_left, said.iter().filter(is_read).count()) {
            (_, 0) => INTERVAL_FIRST,
            (0, read) if read < said.len() => INTERVAL_UNREAD,
            (0, _) => INTERVAL,
            (left, _) => AFTER_CHANGE * 4_u32.pow(LOOKS_AFTER_CHANGE.saturating_sub(left)),
        };
        tokio::select! {
            () = sleep(pause) => (looks_left.saturating_sub(1), looks_left > 0),
            () = self.changed.notified() => (LOOKS_AFTER_CHANGE, true),
            () = self.wanted.notified() => {
                sleep(PAUSE).await;
                (looks_left, true)
            }
        }
    }

    fn put(&self, said: &[Option<Said>], nodes: &Nodes) {
        let kept = self.known.load().as_ref().map(|known| known.reference);
        let Some(reference) = kept.or_else(|| choose(said, nodes)) else {
            return;
        };
        let Some(chosen) = said.get(reference).and_then(Option::as_ref) else {
            return;
        };
        let numbers = &chosen.numbering;
        let agrees = |said: &Said| said.numbering.agrees_with(numbers);
        let mut read = said.iter().flatten();
        let agree = read.clone().all(agrees);
        let differs = !agree || read.any(|said| said.server_version != chosen.server_version);
        let views = said.iter().enumerate().map(|(node, said)| match said {
            // Nothing is known of it: whatever it says is waited for.
            None => Some(View::default()),
            Some(_) if agree => None,
            Some(_) if node == reference => Some(View::of_reference(numbers)),
            Some(said) => Some(View::new(&said.numbering, numbers)),
        });
        if kept.is_none() {
            let node = nodes.get(reference).map_or("?", |node| node.name());
            tracing::info!(node, "the reference node: clients are told its OIDs");
        }
        self.known.store(Some(Arc::new(Known {
            reference,
            server_version: chosen.server_version.as_str().into(),
            differs,
            names: nodes.iter().map(|node| node.name().into()).collect(),
            views: views.map(|view| view.map(Arc::new)).collect(),
        })));
        self.strangers().clear();
    }
}

/// The one with the lowest major version, then the lowest id, of those that have answered.
fn choose(said: &[Option<Said>], nodes: &Nodes) -> Option<usize> {
    let answered = said.iter().enumerate();
    let answered = answered.filter_map(|(node, said)| Some((node, said.as_ref()?.major())));
    let id = |node: usize| nodes.get(node).map(|node| node.config().id);
    answered
        .min_by_key(|(node, major)| (*major, id(*node)))
        .map(|(node, _)| node)
}

async fn ask(
    nodes: &Nodes,
    index: usize,
    database: &str,
    limit: Duration,
) -> (usize, Option<Said>) {
    let Some(node) = nodes.get(index) else {
        return (index, None);
    };
    let said = match timeout(limit, read::read(node, database)).await {
        Ok(said) => said,
        Err(_) => Err(ReadError::Timeout(limit.as_secs())),
    };
    let said = said.inspect_err(|error| {
        tracing::debug!(node = node.name(), %error, "a node does not say its OIDs");
    });
    (index, said.ok())
}
