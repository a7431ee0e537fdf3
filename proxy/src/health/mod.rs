//! Owns what is known of the nodes' health: one probing task per node, and the snapshot that routing reads.
//!
//! A probe opens a fresh connection as Tandem's own role and runs a statement under a deadline. Sessions contribute
//! evidence, which brings the next probe forward; only a probe, or a refused connect, is a verdict.

pub mod machine;
mod probe;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use crate::{
    bound::Bound,
    node::{Node, Nodes},
};
use machine::{Event, Machine};

pub use machine::Health;
pub(crate) use probe::{Verdict, verdict};

/// Stands for a round trip that was not measured yet.
const RTT_UNKNOWN: u32 = u32::MAX;

/// The health of all nodes.
#[derive(Debug)]
pub(crate) struct HealthBoard {
    nodes: Vec<NodeHealth>,
    probe_timeout: Bound,
    /// Counts what may let others go to a node, or keep them off; moves with every probe that has ended, too.
    verdicts: watch::Sender<u64>,
}

/// The health of one node: the machine, and its outcome in atomics for readers that must not wait.
#[derive(Debug)]
struct NodeHealth {
    machine: Mutex<Machine>,
    probe_now: Notify,
    /// Probes that have begun.
    begun: AtomicU64,
    /// The last that has ended.
    ended: AtomicU64,
    usable: AtomicU8,
    /// It is down because it does not answer: nor will it on connections that are there.
    silent: AtomicBool,
    rtt_us: AtomicU32,
    problem: ArcSwapOption<String>,
    /// Why it gets no sessions although it is up, as long as another one can take them.
    fence: ArcSwapOption<String>,
    /// Whether there is a reason: what each transaction looks at.
    fenced: AtomicBool,
}

/// Settings of the probes.
#[derive(Debug, Clone)]
pub(crate) struct ProbeSettings {
    /// Time between two probes.
    pub(crate) interval: Duration,
    /// Bound of one probe.
    pub(crate) timeout: Bound,
    /// The database the probe connects to.
    pub(crate) database: String,
    /// The slot without which what is written there reaches no other node. None: there is no other.
    pub(crate) slot: Option<String>,
}

impl HealthBoard {
    /// A board that knows nothing yet, with one probing task per node in `tasks`.
    pub(crate) fn start(
        nodes: &Nodes,
        settings: &ProbeSettings,
        tasks: &mut JoinSet<()>,
    ) -> Arc<HealthBoard> {
        let board = Arc::new(HealthBoard::new(
            nodes.len(),
            settings.interval,
            settings.timeout.clone(),
            Instant::now(),
        ));
        for (index, node) in nodes.iter().enumerate() {
            let (board, node, settings) = (Arc::clone(&board), Arc::clone(node), settings.clone());
            tasks.spawn(async move { watch(&board, index, &node, &settings).await });
        }
        board
    }

    fn new(nodes: usize, interval: Duration, probe_timeout: Bound, now: Instant) -> HealthBoard {
        let node = || NodeHealth {
            machine: Mutex::new(Machine::new(interval, now)),
            probe_now: Notify::new(),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            usable: AtomicU8::new(0),
            silent: AtomicBool::new(false),
            rtt_us: AtomicU32::new(RTT_UNKNOWN),
            problem: ArcSwapOption::empty(),
            fence: ArcSwapOption::empty(),
            fenced: AtomicBool::new(false),
        };
        HealthBoard {
            nodes: std::iter::repeat_with(node).take(nodes).collect(),
            probe_timeout,
            verdicts: watch::Sender::new(0),
        }
    }

    /// Probes as often, and waits as long for each, from now on.
    pub(crate) fn set_probes(&self, interval: Duration, timeout: Duration) {
        self.probe_timeout.set(timeout);
        for node in &self.nodes {
            lock(&node.machine).set_interval(interval, Instant::now());
            node.probe_now.notify_one();
        }
    }

    /// Whether new sessions may go to this node. A fenced one gets them only while there is no other.
    pub(crate) fn usable(&self, node: usize) -> bool {
        let state = self.nodes.get(node);
        state.is_some_and(|state| {
            state.is_up() && (!state.is_fenced() || self.nodes.iter().all(NodeHealth::is_no_choice))
        })
    }

    /// Whether this node is up, as far as is known, fenced or not.
    pub(crate) fn is_up(&self, node: usize) -> bool {
        self.nodes.get(node).is_some_and(NodeHealth::is_up)
    }

    /// Waits while no node may be used and one of them may be in a moment: at the start of the daemon, and until a node is
    /// taken for the first time.
    pub(crate) async fn first_verdicts(&self) {
        let pending = |node: &NodeHealth| lock(&node.machine).health().is_pending();
        let settled =
            || self.nodes.iter().any(NodeHealth::is_up) || !self.nodes.iter().any(pending);
        if settled() {
            return;
        }
        // The sender lives as long as this.
        let _ = self.verdicts.subscribe().wait_for(|_| settled()).await;
    }

    /// Whether this node is down because it does not answer, while another one does: nobody waits for it any longer.
    pub(crate) fn is_given_up(&self, node: usize) -> bool {
        let state = self.nodes.get(node);
        state.is_some_and(|state| state.silent.load(Ordering::Acquire))
            && self.nodes.iter().any(NodeHealth::is_up)
    }

    /// What moves with verdicts.
    pub(crate) fn verdicts(&self) -> watch::Receiver<u64> {
        self.verdicts.subscribe()
    }

    /// Probes of this node that have begun.
    pub(crate) fn probes(&self, node: usize) -> u64 {
        let begun = |node: &NodeHealth| node.begun.load(Ordering::Acquire);
        self.nodes.get(node).map_or(0, begun)
    }

    /// Returns when more is known than at this call: see [`HealthBoard::news_since`].
    pub(crate) fn news(self: &Arc<Self>, node: usize) -> impl Future<Output = ()> + Send + 'static {
        self.news_since(node, self.probes(node))
    }

    /// Returns when more is known than when so many [probes](Self::probes) of this node had begun: one that has begun later has
    /// ended, or a verdict has moved since this call, of whichever node.
    pub(crate) fn news_since(
        self: &Arc<Self>,
        node: usize,
        begun: u64,
    ) -> impl Future<Output = ()> + Send + 'static {
        let mut verdicts = self.verdicts.subscribe();
        let known = *verdicts.borrow_and_update();
        let board = Arc::clone(self);
        async move {
            let ended = |node: &NodeHealth| node.ended.load(Ordering::Acquire) > begun;
            let is_news = |now: &u64| *now != known || board.nodes.get(node).is_some_and(ended);
            // The sender lives as long as the board.
            let _ = verdicts.wait_for(is_news).await;
        }
    }

    /// Says why a node should get no sessions, or that it may have them again.
    pub(crate) fn set_fence(&self, node: usize, reason: Option<String>) {
        if let Some(node) = self.nodes.get(node) {
            let fenced = reason.is_some();
            node.fence.store(reason.map(Arc::new));
            if node.fenced.swap(fenced, Ordering::AcqRel) != fenced {
                self.verdicts.send_modify(|count| *count += 1);
            }
        }
    }

    /// Why a node should get no sessions although it is up.
    pub(crate) fn fence(&self, node: usize) -> Option<Arc<String>> {
        self.nodes.get(node)?.fence.load_full()
    }

    /// The round trip to this node in microseconds, with hysteresis. None: not measured.
    pub(crate) fn rtt_us(&self, node: usize) -> Option<u32> {
        let rtt = self.nodes.get(node)?.rtt_us.load(Ordering::Relaxed);
        (rtt != RTT_UNKNOWN).then_some(rtt)
    }

    /// The verdict in full, for status and logs.
    pub(crate) fn health(&self, node: usize) -> Health {
        self.nodes
            .get(node)
            .map_or(Health::Down, |node| lock(&node.machine).health())
    }

    /// What the latest failed probe said, if the latest probe failed.
    pub(crate) fn problem(&self, node: usize) -> Option<Arc<String>> {
        self.nodes.get(node)?.problem.load_full()
    }

    /// A session lost its connection to this node: probe at once. Never a verdict by itself.
    pub(crate) fn evidence(&self, node: usize) {
        if let Some(node) = self.nodes.get(node) {
            lock(&node.machine).on(Event::Evidence, Instant::now());
            node.probe_now.notify_one();
        }
    }

    /// A fresh connect to this node was refused or reset: that decides.
    pub(crate) fn refused(&self, index: usize, node: &Node, problem: &str) {
        self.apply(index, node, Event::Refused, Some(problem), false);
    }

    /// A probe has found a node well.
    #[cfg(test)]
    pub(crate) fn found_well(&self, index: usize, node: &Node) {
        let rtt = Duration::from_millis(1);
        self.apply(index, node, Event::Success { rtt }, None, false);
    }

    fn apply(
        &self,
        index: usize,
        node: &Node,
        event: Event,
        problem: Option<&str>,
        is_silent: bool,
    ) {
        let Some(state) = self.nodes.get(index) else {
            return;
        };
        let (before, now) = {
            let mut machine = lock(&state.machine);
            let before = machine.on(event, Instant::now());
            state
                .usable
                .store(u8::from(machine.health().usable()), Ordering::Release);
            let is_silent = is_silent && machine.health() == Health::Down;
            state.silent.store(is_silent, Ordering::Release);
            let rtt = machine
                .rtt()
                .and_then(|rtt| u32::try_from(rtt.as_micros()).ok());
            state
                .rtt_us
                .store(rtt.unwrap_or(RTT_UNKNOWN), Ordering::Relaxed);
            (before, machine.health())
        };
        state
            .problem
            .store(problem.map(|text| Arc::new(text.to_owned())));
        let Some(before) = before else { return };
        self.verdicts.send_modify(|count| *count += 1);
        let name = node.name();
        match now {
            Health::Down => {
                tracing::warn!(
                    node = name,
                    before = before.word(),
                    reason = problem,
                    "node is down"
                );
            }
            Health::Untaken => {
                tracing::warn!(
                    node = name,
                    reason = problem,
                    "clients are kept off the node"
                );
            }
            Health::Suspect { .. } => {
                tracing::info!(node = name, reason = problem, "node is under suspicion");
            }
            Health::Up => tracing::info!(node = name, before = before.word(), "node is up"),
            Health::Unknown => {}
        }
    }
}

impl NodeHealth {
    fn is_up(&self) -> bool {
        self.usable.load(Ordering::Acquire) == 1
    }

    fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    fn is_no_choice(&self) -> bool {
        !self.is_up() || self.is_fenced()
    }
}

/// Probes one node for ever.
async fn watch(board: &HealthBoard, index: usize, node: &Node, settings: &ProbeSettings) {
    let Some(state) = board.nodes.get(index) else {
        return;
    };
    loop {
        let due = lock(&state.machine).next_probe();
        tokio::select! {
            () = tokio::time::sleep_until(due.into()) => {}
            // The time of the next probe may have moved: look again.
            () = state.probe_now.notified() => continue,
        }
        let number = state.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let outcome = probe::probe(node, settings).await;
        let problem = outcome.problem.as_deref();
        board.apply(index, node, outcome.event, problem, outcome.is_silent);
        state.ended.store(number, Ordering::Release);
        board.verdicts.send_modify(|_| {});
    }
}

fn lock(machine: &Mutex<Machine>) -> std::sync::MutexGuard<'_, Machine> {
    // The machine is pure and leaves no half-made state behind.
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::future::poll_immediate;

    use super::*;

    #[tokio::test]
    async fn news_are_a_verdict_or_a_probe_that_begins_later() {
        let bound = Bound::new(Duration::from_secs(1));
        let board = HealthBoard::new(2, Duration::from_secs(1), bound, Instant::now());
        let board = Arc::new(board);
        let ended = |node: usize, number| {
            board.nodes[node].ended.store(number, Ordering::Release);
            board.verdicts.send_modify(|_| {});
        };
        // One is under way when it is asked.
        board.nodes[0].begun.store(1, Ordering::Release);
        let mut news = pin!(board.news(0));
        ended(1, 7);
        assert!(poll_immediate(news.as_mut()).await.is_none());
        ended(0, 1);
        assert!(poll_immediate(news.as_mut()).await.is_none());
        ended(0, 2);
        assert!(poll_immediate(news.as_mut()).await.is_some());
        board.nodes[0].begun.store(2, Ordering::Release);
        let mut news = pin!(board.news(0));
        assert!(poll_immediate(news.as_mut()).await.is_none());
        board.set_fence(1, None);
        assert!(poll_immediate(news.as_mut()).await.is_none());
        board.set_fence(1, Some("its clock is off".to_owned()));
        assert!(poll_immediate(news.as_mut()).await.is_some());
    }

    #[test]
    fn a_fenced_node_gets_sessions_only_while_there_is_no_other() {
        let board = HealthBoard::new(
            3,
            Duration::from_secs(1),
            Bound::new(Duration::from_secs(1)),
            Instant::now(),
        );
        for node in &board.nodes {
            node.usable.store(1, Ordering::Release);
        }
        let usable = || [0, 1, 2].map(|node| board.usable(node));
        board.set_fence(1, Some("its clock is off".to_owned()));
        assert_eq!(usable(), [true, false, true]);
        assert_eq!(
            board.fence(1).as_deref().map(String::as_str),
            Some("its clock is off")
        );
        for down in [0, 2] {
            board.nodes[down].usable.store(0, Ordering::Release);
        }
        assert_eq!(usable(), [false, true, false]);
        board.nodes[2].usable.store(1, Ordering::Release);
        board.set_fence(2, Some("too".to_owned()));
        assert_eq!(usable(), [false, true, true]);
        board.set_fence(1, None);
        assert_eq!(usable(), [false, true, false]);
    }
}
