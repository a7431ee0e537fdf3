//! Owns what is known of the nodes' health: one probing task per node, and the snapshot that routing reads.
//!
//! A probe opens a fresh connection as Tandem's own role and runs a statement under a deadline. Sessions contribute
//! evidence, which brings the next probe forward; only a probe, or a refused connect, is a verdict. How long silence is borne is
//! decided in `vigil.rs`.
//!
//! **Invariant:** whenever what clients may do on a node changes, the epoch moves on behind it. So who reads the epoch first and then
//! chooses a node can tell later whether the choice is still good.

mod left;
pub mod machine;
mod probe;
mod vigil;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::MissedTickBehavior,
};

use crate::{
    bound::Bound,
    node::{Node, Nodes},
};
use left::Left;
use machine::Machine;
use probe::Outcome;
use vigil::{BEAT, Look, Patience, Signs, Vigil};

pub use machine::{Admission, Event, Health, Presence};
pub(crate) use probe::{Verdict, verdict};

/// Stands for a round trip that was not measured yet.
const RTT_UNKNOWN: u32 = u32::MAX;
/// A probe that nobody waits for any more ends after so many times its bound: a daemon that is starved is patient.
const STARVED_TIMES: u32 = 16;

/// The health of all nodes.
#[derive(Debug)]
pub(crate) struct HealthBoard {
    nodes: Vec<NodeHealth>,
    /// What times are counted from.
    started: Instant,
    probe_timeout: Bound,
    /// Counts what may let others go to a node, or keep them off; moves with every probe that has ended, too.
    verdicts: watch::Sender<u64>,
    /// The placement's: of which node takes what.
    epoch: AtomicU64,
}

/// What is known of the nodes before the first probe.
#[derive(Debug, Clone, Default)]
pub(crate) struct Before {
    /// The last epoch.
    pub(crate) epoch: u64,
    /// Whether each was out of service; those that are not listed were not.
    pub(crate) drained: Vec<bool>,
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
    /// An [`Admission`].
    admission: AtomicU8,
    answers: AtomicBool,
    /// It is down because it does not answer: nor will it on connections that are there.
    silent: AtomicBool,
    rtt_us: AtomicU32,
    /// When the last probe began that was answered, and when something last came to a session, both in microseconds; 0: never.
    answered_us: AtomicU64,
    heard_us: AtomicU64,
    /// The node's system identifier; 0: not known.
    system: AtomicI64,
    left: Mutex<Left>,
    problem: ArcSwapOption<String>,
    /// Why it gets no sessions although it is up, as long as another one can take them.
    fence: ArcSwapOption<String>,
    /// It lacks what others have written too long ago.
    lags: AtomicBool,
}

/// Settings of the probes.
#[derive(Debug, Clone)]
pub(crate) struct ProbeSettings {
    /// Time between two probes.
    pub(crate) interval: Duration,
    /// Bound of one probe.
    pub(crate) timeout: Bound,
    /// How long a node keeps its keys while it restarts after a crash.
    pub(crate) restart_wait: Duration,
    /// The database the probe connects to.
    pub(crate) database: String,
    /// The slot without which what is written there reaches no other node. None: there is no other.
    pub(crate) slot: Option<String>,
}

impl HealthBoard {
    /// A board that knows nothing but what was `before`, with one probing task per node in `tasks`.
    pub(crate) fn start(
        nodes: &Nodes,
        settings: &ProbeSettings,
        before: &Before,
        tasks: &mut JoinSet<()>,
    ) -> Arc<HealthBoard> {
        let board = Arc::new(HealthBoard::new(
            nodes.len(),
            settings,
            before,
            Instant::now(),
        ));
        for (index, node) in nodes.iter().enumerate() {
            let (board, node, settings) = (Arc::clone(&board), Arc::clone(node), settings.clone());
            tasks.spawn(async move { watch(&board, index, &node, &settings).await });
        }
        board
    }

    fn new(nodes: usize, settings: &ProbeSettings, before: &Before, now: Instant) -> HealthBoard {
        let catches_up = settings.slot.is_some();
        let node = |index: usize| {
            let is_drained = before.drained.get(index).copied().unwrap_or_default();
            let mut machine = Machine::new(settings.interval, now, catches_up, is_drained);
            machine.set_restart_wait(settings.restart_wait);
            NodeHealth {
                machine: Mutex::new(machine),
                probe_now: Notify::new(),
                begun: AtomicU64::new(0),
                ended: AtomicU64::new(0),
                admission: AtomicU8::new(code(Admission::Nobody)),
                answers: AtomicBool::new(false),
                silent: AtomicBool::new(false),
                rtt_us: AtomicU32::new(RTT_UNKNOWN),
                answered_us: AtomicU64::new(0),
                heard_us: AtomicU64::new(0),
                system: AtomicI64::new(0),
                left: Mutex::default(),
                problem: ArcSwapOption::empty(),
                fence: ArcSwapOption::empty(),
                lags: AtomicBool::new(false),
            }
        };
        // No session knows an epoch of an earlier daemon's.
        let epoch = before.epoch + 1;
        HealthBoard {
            nodes: (0..nodes).map(node).collect(),
            started: now,
            probe_timeout: settings.timeout.clone(),
            verdicts: watch::Sender::new(0),
            epoch: AtomicU64::new(epoch),
        }
    }

    /// Probes as often, and waits as long for each, and for restarts, from now on.
    pub(crate) fn set_probes(&self, interval: Duration, timeout: Duration, restart_wait: Duration) {
        self.probe_timeout.set(timeout);
        for node in &self.nodes {
            let mut machine = lock(&node.machine);
            machine.set_interval(interval, Instant::now());
            machine.set_restart_wait(restart_wait);
            drop(machine);
            node.probe_now.notify_one();
        }
    }

    /// What clients may do on this node.
    pub(crate) fn admission(&self, node: usize) -> Admission {
        self.nodes
            .get(node)
            .map_or(Admission::Nobody, NodeHealth::admission)
    }

    /// Whether this node is one that keys are at home on. One that is the last resort is so only while there is no other.
    pub(crate) fn usable(&self, node: usize) -> bool {
        match self.admission(node) {
            Admission::All | Admission::Writes | Admission::Parked => true,
            Admission::LastResort => self.nodes.iter().all(NodeHealth::is_no_choice),
            Admission::Nobody => false,
        }
    }

    /// Whether new sessions, and reads that are at home nowhere, may go to this node: not to one that does not [serve](Self::serves), nor
    /// to one that is behind while another is not.
    pub(crate) fn takes_all(&self, node: usize) -> bool {
        let is_better = |other: usize| self.serves(other) && !self.lags(other);
        self.serves(node) && !(self.lags(node) && (0..self.nodes.len()).any(is_better))
    }

    /// Whether this node lacks what others have written too long ago.
    pub(crate) fn lags(&self, node: usize) -> bool {
        let lags = |node: &NodeHealth| node.lags.load(Ordering::Relaxed);
        self.nodes.get(node).is_some_and(lags)
    }

    /// Says whether it does.
    pub(crate) fn set_lags(&self, node: usize, lags: bool) {
        if let Some(node) = self.nodes.get(node) {
            node.lags.store(lags, Ordering::Relaxed);
        }
    }

    /// Whether this node is in service: not when it is on its way out, or back, while there is another.
    pub(crate) fn serves(&self, node: usize) -> bool {
        match self.admission(node) {
            Admission::All => true,
            Admission::Nobody => false,
            Admission::Writes | Admission::Parked | Admission::LastResort => {
                let mut all = self.nodes.iter();
                self.usable(node) && !all.any(|other| other.admission() == Admission::All)
            }
        }
    }

    /// Whether writes that belong on this node wait.
    pub(crate) fn parks(&self, node: usize) -> bool {
        self.admission(node) == Admission::Parked
    }

    /// Whether this node answers, in service or not.
    pub(crate) fn is_up(&self, node: usize) -> bool {
        self.nodes
            .get(node)
            .is_some_and(|node| node.answers.load(Ordering::Acquire))
    }

    /// The number of what counts now of [`Self::admission`], on all nodes. To be read before it.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Returns when another epoch has begun than this one.
    pub(crate) fn later_than(
        self: &Arc<Self>,
        epoch: u64,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (mut verdicts, board) = (self.verdicts.subscribe(), Arc::clone(self));
        async move {
            // The sender lives as long as the board.
            let _ = verdicts.wait_for(|_| board.epoch() != epoch).await;
        }
    }

    /// Waits while no node may be used and one of them may be in a moment: at the start of the daemon, and until a node is
    /// taken for the first time.
    pub(crate) async fn first_verdicts(&self) {
        let pending = |node: &NodeHealth| lock(&node.machine).health().is_pending();
        let settled = || {
            (0..self.nodes.len()).any(|node| self.takes_all(node))
                || !self.nodes.iter().any(pending)
        };
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
            && self
                .nodes
                .iter()
                .any(|node| node.answers.load(Ordering::Acquire))
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
    pub(crate) fn set_fence(&self, index: usize, reason: Option<String>) {
        let is_fenced = reason.is_some();
        if let Some(node) = self.nodes.get(index) {
            node.fence.store(reason.map(Arc::new));
        }
        self.tell(index, Event::Fence(is_fenced));
    }

    /// Why a node should get no sessions although it is up.
    pub(crate) fn fence(&self, node: usize) -> Option<Arc<String>> {
        self.nodes.get(node)?.fence.load_full()
    }

    /// Whether this node is there, in service or not.
    pub(crate) fn presence(&self, node: usize) -> Presence {
        self.nodes
            .get(node)
            .map_or(Presence::Unknown, |node| lock(&node.machine).presence())
    }

    /// Which return of this node it is that it has to catch up from.
    pub(crate) fn catching_up(&self, node: usize) -> Option<u32> {
        lock(&self.nodes.get(node)?.machine).catching_up()
    }

    /// Returns when this node has to catch up, with which return that is.
    pub(crate) async fn has_returned(&self, node: usize) -> u32 {
        let mut verdicts = self.verdicts.subscribe();
        loop {
            if let Some(returned) = self.catching_up(node) {
                return returned;
            }
            // The sender lives as long as this.
            let _ = verdicts.changed().await;
        }
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

    /// A session lost its connection to this node, or waits for an answer there: probe at once. Never a verdict by itself.
    pub(crate) fn evidence(&self, node: usize) {
        self.hurry(node, Event::Evidence);
    }

    /// A server of this node said that another server process of it has crashed. No verdict either.
    pub(crate) fn crashed(&self, node: usize) {
        self.hurry(node, Event::Crashed);
    }

    fn hurry(&self, node: usize, event: Event) {
        if let Some(node) = self.nodes.get(node) {
            lock(&node.machine).on(event, Instant::now());
            node.probe_now.notify_one();
        }
    }

    /// Something has come from this node to a session.
    pub(crate) fn heard(&self, node: usize) {
        if let Some(node) = self.nodes.get(node) {
            node.heard_us
                .store(self.micros(Instant::now()), Ordering::Release);
        }
    }

    /// The system identifier of this node, as a probe has found it last. None: not known.
    pub(crate) fn system(&self, node: usize) -> Option<i64> {
        let system = self.nodes.get(node)?.system.load(Ordering::Acquire);
        (system != 0).then_some(system)
    }

    /// The connection of this server process is closed.
    pub(crate) fn left(&self, node: usize, pid: i32) {
        if let Some(node) = self.nodes.get(node) {
            lock(&node.left).add(pid, Instant::now());
        }
    }

    /// The server processes whose connections were closed since this node was last seen well, before it was lost; and when that was.
    pub(crate) fn take_left(&self, node: usize) -> (Vec<i32>, Option<Instant>) {
        let Some(node) = self.nodes.get(node) else {
            return (Vec::new(), None);
        };
        let lost = lock(&node.machine).lost();
        (lock(&node.left).take(), lost)
    }

    /// A fresh connect to this node has shown something that decides.
    pub(crate) fn decided(&self, index: usize, node: &Node, event: Event, problem: &str) {
        self.apply(index, node, event, Some(problem), false);
    }

    /// Something other than a probe has happened to a node. Answers its health before, if that has changed in kind.
    pub(crate) fn tell(&self, index: usize, event: Event) -> Option<Health> {
        let state = self.nodes.get(index)?;
        let (before, is_news, has_returned) = {
            let mut machine = lock(&state.machine);
            let returned = machine.catching_up();
            let before = machine.on(event, Instant::now());
            let is_news = state.publish(&machine);
            (before, is_news, machine.catching_up() != returned)
        };
        if is_news {
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
        if is_news || before.is_some() || has_returned {
            self.verdicts.send_modify(|count| *count += 1);
        }
        before
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
        state
            .problem
            .store(problem.map(|text| Arc::new(text.to_owned())));
        let before = self.tell(index, event);
        let is_silent = is_silent && !state.answers.load(Ordering::Acquire);
        if state.silent.swap(is_silent, Ordering::AcqRel) != is_silent {
            self.verdicts.send_modify(|count| *count += 1);
        }
        let Some(before) = before else {
            return;
        };
        let name = node.name();
        match self.health(index) {
            Health::Down => {
                tracing::warn!(
                    node = name,
                    before = before.word(),
                    reason = problem,
                    "node is down"
                );
            }
            Health::Restarting => {
                tracing::warn!(
                    node = name,
                    reason = problem,
                    "node restarts after a crash; it keeps its keys"
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
            Health::CatchingUp => {
                tracing::info!(
                    node = name,
                    before = before.word(),
                    "node answers; it catches up"
                );
            }
            Health::Up => tracing::info!(node = name, before = before.word(), "node is up"),
            // Who brings these about says so.
            Health::Unknown | Health::Fenced | Health::Draining | Health::Drained => {}
        }
    }

    /// So many microseconds after the start; never 0.
    fn micros(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.started).as_micros();
        u64::try_from(since).unwrap_or(u64::MAX).max(1)
    }

    /// What there is to be seen besides a probe of this node that began then.
    fn signs(&self, index: usize, begun: Instant) -> Signs {
        let begun_us = self.micros(begun);
        let others = self.nodes.iter().enumerate();
        let mut others = others.filter(|(other, _)| *other != index);
        let answers = |node: &NodeHealth| node.answered_us.load(Ordering::Acquire) >= begun_us;
        let heard = self
            .nodes
            .get(index)
            .map_or(0, |node| node.heard_us.load(Ordering::Acquire));
        Signs {
            others_answer: others.any(|(_, node)| answers(node)),
            heard: (heard > 0).then(|| self.started + Duration::from_micros(heard)),
        }
    }

    /// Asks a node how it is. While there is no answer, a second probe begins beside the first, and the other nodes are asked too.
    async fn ask(
        &self,
        index: usize,
        node: &Node,
        settings: &ProbeSettings,
        patience: &mut Patience,
    ) -> Outcome {
        let bound = settings.timeout.get();
        let limit = self.is_up(index).then(|| patience.limit(bound));
        let begun = Instant::now();
        let mut vigil = Vigil::new(limit, bound, begun);
        let timed = || async {
            let begun = Instant::now();
            let outcome = probe::probe(node, settings, bound * STARVED_TIMES).await;
            (outcome, begun.elapsed())
        };
        let mut probes = FuturesUnordered::new();
        probes.push(timed());
        let mut beats = tokio::time::interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // An answer that is there counts, however late it is.
                biased;
                Some((outcome, took)) = probes.next() => {
                    if outcome.is_answer() {
                        patience.answered(took);
                    }
                    return outcome;
                }
                _ = beats.tick() => match vigil.look(Instant::now(), self.signs(index, begun)) {
                    Look::Wait => {}
                    Look::Second => {
                        probes.push(timed());
                        let others = (0..self.nodes.len()).filter(|other| *other != index);
                        others.for_each(|other| self.evidence(other));
                    }
                    Look::Silent => return Outcome::silent(begun.elapsed()),
                    Look::Late => return Outcome::late(bound),
                }
            }
        }
    }
}

/// An admission as a number.
fn code(admission: Admission) -> u8 {
    match admission {
        Admission::Nobody => 0,
        Admission::LastResort => 1,
        Admission::Parked => 2,
        Admission::Writes => 3,
        Admission::All => 4,
    }
}

impl NodeHealth {
    fn admission(&self) -> Admission {
        match self.admission.load(Ordering::Acquire) {
            0 => Admission::Nobody,
            1 => Admission::LastResort,
            2 => Admission::Parked,
            3 => Admission::Writes,
            _ => Admission::All,
        }
    }

    /// Lets readers see the machine's outcome. Whether clients may do something else now than before.
    fn publish(&self, machine: &Machine) -> bool {
        self.answers.store(machine.answers(), Ordering::Release);
        let rtt = machine
            .rtt()
            .and_then(|rtt| u32::try_from(rtt.as_micros()).ok());
        self.rtt_us
            .store(rtt.unwrap_or(RTT_UNKNOWN), Ordering::Relaxed);
        let admission = code(machine.admission());
        self.admission.swap(admission, Ordering::AcqRel) != admission
    }

    fn is_no_choice(&self) -> bool {
        matches!(self.admission(), Admission::Nobody | Admission::LastResort)
    }
}

/// Probes one node for ever.
async fn watch(board: &HealthBoard, index: usize, node: &Node, settings: &ProbeSettings) {
    let Some(state) = board.nodes.get(index) else {
        return;
    };
    let mut patience = Patience::default();
    loop {
        let due = lock(&state.machine).next_probe();
        tokio::select! {
            () = tokio::time::sleep_until(due.into()) => {}
            // The time of the next probe may have moved: look again.
            () = state.probe_now.notified() => continue,
        }
        let number = state.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let begun = Instant::now();
        let outcome = board.ask(index, node, settings, &mut patience).await;
        if outcome.is_answer() {
            state
                .answered_us
                .store(board.micros(begun), Ordering::Release);
        }
        if let Some(system) = outcome.system {
            state.system.store(system, Ordering::Release);
        }
        // Those that it had when it was lost are ended before it gets clients again.
        let is_back = board.is_up(index) && board.catching_up(index).is_none();
        if outcome.system.is_some() && is_back {
            lock(&state.left).seen_well(begun);
        }
        let problem = outcome.problem.as_deref();
        board.apply(index, node, outcome.event, problem, outcome.is_silent);
        state.ended.store(number, Ordering::Release);
        board.verdicts.send_modify(|_| {});
    }
}

fn lock<T>(state: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is in there is pure and leaves no half-made state behind.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
