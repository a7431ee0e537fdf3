//! Owns handoffs: keys get another home without two nodes writing them at once, and without an error for anybody.
//!
//! New writes of the moving keys wait; those that were begun before come to their end; the homes that the keys go to are to show all
//! that was written; then the placement changes, and who waited goes there. `course.rs` decides what is done when, the sessions look
//! at the epoch behind taking a server (`session/checkout.rs`), and the nodes' states change in `health/machine.rs`.

mod course;
mod left;
mod report;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tandem_replicator::Point;
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, mpsc, oneshot},
    time::{MissedTickBehavior, sleep, timeout},
};

use crate::{
    config::{AtBound, HandoffConfig},
    health::{Admission, Event, Health},
    placement::Placement,
    session::{Shared, registry::Running},
};
use course::{Course, Direction, Step};
pub(crate) use report::{Kind, Outcome, Phase, Refused, Report};
use report::{Stayed, way};

/// How often the sessions are looked at while nobody waits, and while somebody does.
const LOOK: Duration = Duration::from_millis(10);
const LOOK_PARKED: Duration = Duration::from_millis(1);
/// How often a node is asked for prepared transactions while nobody waits.
const LOOK_PREPARED: Duration = Duration::from_millis(200);
/// How often the new homes are asked whether they are behind, while nobody waits.
const LOOK_BEHIND: Duration = Duration::from_millis(100);
/// How long the new homes may take to show all that was written so far, before anybody is made to wait.
const ALMOST_THERE: Duration = Duration::from_millis(500);
/// After this a node that has not caught up is better than none.
const LATE: Duration = Duration::from_secs(2);
/// How long one attempt to catch up goes on.
const CATCH_UP: Duration = Duration::from_secs(10);
/// How often it is looked at whether that still makes sense.
const CATCH_UP_LOOK: Duration = Duration::from_millis(50);
/// The least distance of two epochs that are written down.
const EPOCH_PAUSE: Duration = Duration::from_millis(100);
/// Handoffs that are asked for and not begun.
const ASKED_MAX: usize = 16;

/// All handoffs.
#[derive(Debug)]
pub(crate) struct Handoffs {
    placement: Placement,
    /// One at a time.
    turn: Arc<AsyncMutex<()>>,
    ask: mpsc::Sender<Asked>,
    /// The last one of each node.
    reports: Vec<Mutex<Option<Report>>>,
    /// How many there were of each kind, by outcome.
    counts: [[AtomicU64; Outcome::ALL.len()]; Kind::ALL.len()],
}

/// A handoff that somebody wants.
#[derive(Debug)]
pub(crate) struct Asked {
    node: usize,
    kind: Kind,
    turn: OwnedMutexGuard<()>,
    answer: oneshot::Sender<Report>,
}

impl Handoffs {
    /// None was made yet. What is asked for comes out of the other part, for [`keep`].
    pub(crate) fn new(placement: Placement, nodes: usize) -> (Handoffs, mpsc::Receiver<Asked>) {
        let (ask, asked) = mpsc::channel(ASKED_MAX);
        let handoffs = Handoffs {
            placement,
            turn: Arc::default(),
            ask,
            reports: (0..nodes).map(|_| Mutex::default()).collect(),
            counts: Default::default(),
        };
        (handoffs, asked)
    }

    /// The last one of a node, or the one that is under way.
    pub(crate) fn report(&self, node: usize) -> Option<Report> {
        let report = self.reports.get(node)?;
        report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn note(&self, node: usize, change: impl FnOnce(&mut Option<Report>)) {
        if let Some(report) = self.reports.get(node) {
            change(&mut report.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// How many there were since the start, by kind and outcome.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (Kind, Outcome, u64)> {
        let kinds = Kind::ALL.into_iter().zip(&self.counts);
        kinds.flat_map(|(kind, counts)| {
            let outcomes = Outcome::ALL.into_iter().zip(counts);
            outcomes.map(move |(outcome, count)| (kind, outcome, count.load(Ordering::Relaxed)))
        })
    }
}

/// Takes a node out of service, or back into it. What comes of it is told by the answer, as soon as that is known.
///
/// # Errors
/// [`Refused`] when it cannot even begin.
pub(crate) async fn ask(
    shared: &Shared,
    node: usize,
    kind: Kind,
) -> Result<oneshot::Receiver<Report>, Refused> {
    may_begin(shared, node, kind)?;
    let bound = shared.settings.load().config.proxy.handoff.hard;
    let turn = Arc::clone(&shared.handoffs.turn).lock_owned();
    let turn = timeout(bound, turn).await.map_err(|_| Refused::Busy)?;
    // It may have changed meanwhile.
    may_begin(shared, node, kind)?;
    let (answer, told) = oneshot::channel();
    let asked = Asked {
        node,
        kind,
        turn,
        answer,
    };
    shared
        .handoffs
        .note(node, |known| *known = Some(Report::begun(kind)));
    let sent = shared.handoffs.ask.send(asked).await;
    sent.map_err(|_| Refused::Stopping)?;
    Ok(told)
}

fn may_begin(shared: &Shared, node: usize, kind: Kind) -> Result<(), Refused> {
    let name = || {
        shared
            .nodes
            .get(node)
            .map_or("?", |node| node.name())
            .to_owned()
    };
    let health = shared.health.health(node);
    match kind {
        Kind::Drain if health == Health::Drained => Err(Refused::Drained(name())),
        Kind::Drain if !others(shared, node).any(|other| shared.health.serves(other)) => {
            Err(Refused::Last(name()))
        }
        Kind::Resume if health != Health::Drained => Err(Refused::NotDrained(name(), health)),
        Kind::Resume if !shared.health.is_up(node) => Err(Refused::Away(name())),
        Kind::Drain | Kind::Resume | Kind::Return => Ok(()),
    }
}

/// The other nodes.
fn others(shared: &Shared, node: usize) -> impl Iterator<Item = usize> + use<> {
    (0..shared.nodes.len()).filter(move |other| *other != node)
}

/// Makes the handoffs that are asked for, for ever.
pub(crate) async fn keep(shared: Arc<Shared>, mut asked: mpsc::Receiver<Asked>) {
    while let Some(Asked {
        node,
        kind,
        turn,
        answer,
    }) = asked.recv().await
    {
        let report = make(&shared, node, kind).await;
        drop(turn);
        // Who has asked may be gone.
        let _ = answer.send(report);
    }
}

/// Brings a node back each time that it has been away, for ever.
pub(crate) async fn keep_node(shared: Arc<Shared>, node: usize) {
    loop {
        let returned = shared.health.has_returned(node).await;
        // First, so that what they may still do is among what the others are to have.
        left::end(&shared, node, returned).await;
        if !catch_up(&shared, node, returned).await {
            continue;
        }
        let caught_up = Event::CaughtUp { returned };
        let serves = |other: usize| shared.health.admission(other) == Admission::All;
        let is_out = shared.health.health(node) == Health::Drained;
        if is_out || shared.replicator.is_foreign(node) || !others(&shared, node).any(serves) {
            shared.health.tell(node, caught_up);
            let name = shared.nodes.get(node).map_or("?", |node| node.name());
            tracing::info!(node = name, "node has caught up");
            continue;
        }
        let turn = Arc::clone(&shared.handoffs.turn).lock_owned().await;
        if shared.health.catching_up(node) == Some(returned) {
            make(&shared, node, Kind::Return).await;
        }
        drop(turn);
    }
}

/// Writes epochs down, for ever: the next daemon goes on behind them.
pub(crate) async fn keep_epoch(shared: Arc<Shared>) {
    let mut written = 0;
    loop {
        shared.health.later_than(written).await;
        written = write_epoch(&shared).await;
        sleep(EPOCH_PAUSE).await;
    }
}

/// Writes down which epoch it is; answers that.
async fn write_epoch(shared: &Shared) -> u64 {
    let epoch = shared.health.epoch();
    if let Err(error) = shared.handoffs.placement.set_epoch(epoch).await {
        tracing::error!(%error, "the placement's epoch is not written down");
    }
    epoch
}

/// Waits until a node that has come back has what the others have, and they what it has. False: it is gone again, or an attempt
/// was in vain.
async fn catch_up(shared: &Shared, node: usize, returned: u32) -> bool {
    let begun = Instant::now();
    let answering = || -> Vec<usize> {
        let others = others(shared, node);
        others.filter(|other| shared.health.is_up(*other)).collect()
    };
    let mut ticks = tokio::time::interval(CATCH_UP_LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked = answering();
    let attempt =
        |asked: &Vec<usize>| Box::pin(shared.replicator.caught_up(node, asked.clone(), CATCH_UP));
    let mut caught_up = attempt(&asked);
    loop {
        // A daemon that has just started does not know yet who is there.
        let is_unknown = |other: usize| shared.health.health(other) == Health::Unknown;
        let knows = !others(shared, node).any(is_unknown) || begun.elapsed() > LATE;
        tokio::select! {
            has = &mut caught_up, if knows => {
                if has {
                    return true;
                }
                ticks.tick().await;
                caught_up = attempt(&asked);
            }
            _ = ticks.tick() => {}
        }
        if shared.health.catching_up(node) != Some(returned) {
            return false;
        }
        // Then the other daemon keeps it as the others are.
        if shared.replicator.is_foreign(node) {
            return true;
        }
        if begun.elapsed() > LATE {
            shared.health.tell(node, Event::Late { returned });
        }
        let now = answering();
        if now != asked {
            asked = now;
            caught_up = attempt(&asked);
        }
    }
}

/// What has come of moving the keys.
struct Moved {
    /// Writes of before that went on.
    left: usize,
    /// Those that were ended.
    ended: usize,
}

/// One handoff under way.
struct Hand<'a> {
    shared: &'a Shared,
    node: usize,
    kind: Kind,
    begun: Instant,
    /// Since when writes wait.
    parked: Option<Instant>,
    /// The longest time that they did.
    longest: Duration,
    /// It is over, one way or the other.
    is_over: bool,
}

impl Drop for Hand<'_> {
    /// Nobody waits for what does not come.
    fn drop(&mut self) {
        if !self.is_over {
            self.stay();
        }
    }
}

/// Makes one handoff. Its turn has come.
async fn make(shared: &Shared, node: usize, kind: Kind) -> Report {
    let mut hand = Hand {
        shared,
        node,
        kind,
        begun: Instant::now(),
        parked: None,
        longest: Duration::ZERO,
        is_over: false,
    };
    shared
        .handoffs
        .note(node, |known| *known = Some(Report::begun(kind)));
    let made = match kind {
        Kind::Drain => hand.drain().await,
        Kind::Resume => hand.resume().await,
        Kind::Return => hand.hand(Direction::Home).await,
    };
    if made.is_err() {
        hand.stay();
    } else {
        hand.switch();
    }
    hand.is_over = true;
    // Before anybody is told.
    write_epoch(shared).await;
    let report = hand.concluded(made);
    let name = shared.nodes.get(node).map_or("?", |node| node.name());
    report.log(name);
    let outcomes = shared.handoffs.counts.get(kind.place());
    let outcome = report.outcome.map_or(0, Outcome::place);
    if let Some(count) = outcomes.and_then(|outcomes| outcomes.get(outcome)) {
        count.fetch_add(1, Ordering::Relaxed);
    }
    shared
        .handoffs
        .note(node, |known| *known = Some(report.clone()));
    report
}

impl Hand<'_> {
    fn config(&self) -> HandoffConfig {
        let config = self.shared.settings.load().config.proxy.handoff;
        match self.kind {
            Kind::Drain | Kind::Resume => config,
            // A node that has come back does not wait for ever until nobody takes long elsewhere.
            Kind::Return => HandoffConfig {
                at_bound: AtBound::GoOn,
                ..config
            },
        }
    }

    fn id(&self) -> u16 {
        self.shared
            .nodes
            .get(self.node)
            .map_or(0, |node| node.config().id)
    }

    fn name(&self, node: usize) -> &str {
        self.shared.nodes.get(node).map_or("?", |node| node.name())
    }

    async fn set_drained(&self, is_drained: bool) -> Result<(), Stayed> {
        let placement = &self.shared.handoffs.placement;
        let done = placement.set_drained(self.id(), is_drained).await;
        done.map_err(|error| Stayed(error.to_string()))
    }

    async fn drain(&mut self) -> Result<Moved, Stayed> {
        // Ahead of it: after a crash in the middle it is out of service, which loses nothing.
        self.set_drained(true).await?;
        self.shared.health.tell(self.node, Event::Drain);
        let moved = match self.shared.health.is_up(self.node) {
            true => self.hand(Direction::Away).await,
            // Its keys have moved when it was lost.
            false => Ok(Moved { left: 0, ended: 0 }),
        };
        if moved.is_err() {
            self.set_drained(false).await?;
        }
        moved
    }

    async fn resume(&mut self) -> Result<Moved, Stayed> {
        self.progress(Phase::CatchingUp, Vec::new());
        let answering = others(self.shared, self.node);
        let answering = answering.filter(|other| self.shared.health.is_up(*other));
        let hard = self.config().hard;
        let replicator = &self.shared.replicator;
        let returned = self.shared.health.catching_up(self.node);
        if !replicator
            .caught_up(self.node, answering.collect(), hard)
            .await
        {
            return Err(Stayed("it has not caught up with the others".to_owned()));
        }
        if let Some(returned) = returned {
            self.shared
                .health
                .tell(self.node, Event::CaughtUp { returned });
        }
        self.set_drained(false).await?;
        let moved = self.hand(Direction::Home).await;
        if moved.is_err() {
            self.set_drained(true).await?;
        }
        moved
    }

    /// The keys have another home from now on.
    fn switch(&mut self) {
        let (health, node) = (&self.shared.health, self.node);
        match self.kind {
            Kind::Drain => {
                health.tell(node, Event::Drained);
                self.shared.pools.retire(node, true);
            }
            Kind::Resume => {
                self.shared.pools.retire(node, false);
                health.tell(node, Event::Resumed);
            }
            Kind::Return => {
                if let Some(returned) = health.catching_up(node) {
                    health.tell(node, Event::CaughtUp { returned });
                }
            }
        }
        self.unpark();
    }

    /// All is as it was before.
    fn stay(&mut self) {
        let health = &self.shared.health;
        health.tell(self.node, Event::Park(false));
        if self.kind == Kind::Drain {
            health.tell(self.node, Event::Stay);
        }
        self.unpark();
    }

    fn unpark(&mut self) {
        if let Some(since) = self.parked.take() {
            self.longest = self.longest.max(since.elapsed());
        }
    }

    fn progress(&self, phase: Phase, waits_for: Vec<String>) {
        let took = self.begun.elapsed();
        self.shared.handoffs.note(self.node, |known| {
            if let Some(report) = known {
                report.go_on(phase, waits_for, took);
            }
        });
    }

    fn concluded(&self, made: Result<Moved, Stayed>) -> Report {
        let (outcome, left, ended, reason) = match made {
            Ok(Moved { left, ended }) => {
                let outcome = match (left, ended) {
                    (0, 0) => Outcome::Moved,
                    (0, _) => Outcome::MovedAborting,
                    _ => Outcome::MovedGoingOn,
                };
                (outcome, left, ended, None)
            }
            Err(Stayed(reason)) => (Outcome::Stayed, 0, 0, Some(reason)),
        };
        Report {
            kind: self.kind,
            phase: Phase::Done,
            waits_for: Vec::new(),
            outcome: Some(outcome),
            reason,
            took: self.begun.elapsed(),
            parked: self.longest,
            left,
            ended,
            epoch: self.shared.health.epoch(),
        }
    }

    /// Brings the keys to where they go, up to the moment at which the placement is to change.
    async fn hand(&mut self, direction: Direction) -> Result<Moved, Stayed> {
        let config = self.config();
        let mut course = Course::new(direction, self.node, config, self.begun);
        let (mut prepared, mut asked) = (Vec::new(), None::<Instant>);
        let mut ended = 0;
        loop {
            self.still_makes_sense(direction)?;
            let now = Instant::now();
            if direction == Direction::Away
                && asked.is_none_or(|asked| now.duration_since(asked) >= LOOK_PREPARED)
            {
                prepared = self.prepared().await?;
                asked = Some(now);
            }
            let running = self.shared.registry.running();
            let step = course.step(now, &running, prepared.len());
            let in_the_way = || {
                let units = course.in_the_way(now, &running);
                way(self.shared, &units, &prepared)
            };
            match step {
                Step::Wait => {
                    let (phase, pause) = match course.parks() {
                        true => (Phase::Parked, LOOK_PARKED),
                        false => (Phase::Waiting, LOOK),
                    };
                    self.progress(phase, in_the_way());
                    sleep(pause).await;
                }
                Step::Park => match self.behind(direction, ALMOST_THERE).await {
                    None => {
                        self.park()?;
                        course.has_parked(Instant::now(), &self.shared.registry.running());
                    }
                    Some(behind) if self.begun.elapsed() >= config.hard => {
                        return Err(Stayed(behind));
                    }
                    Some(behind) => {
                        self.progress(Phase::Waiting, vec![behind]);
                        sleep(LOOK_BEHIND).await;
                    }
                },
                Step::Lift => self.lift(config.soft).await,
                Step::End(units) => {
                    self.end(&units).await?;
                    ended = units.len();
                }
                Step::Stay => {
                    let way = in_the_way();
                    let way = match way.is_empty() {
                        true => "it did not come to an end in time".to_owned(),
                        false => way.join("; "),
                    };
                    return Err(Stayed(format!("after handoff_hard there was still: {way}")));
                }
                Step::Move { left } => {
                    if direction == Direction::Away && left == 0 {
                        // What was running may have been prepared.
                        prepared = self.prepared().await?;
                        asked = Some(now);
                        if !prepared.is_empty() {
                            continue;
                        }
                    }
                    let since = tokio::time::Instant::now();
                    loop {
                        let behind = self.behind_since(direction, config.soft, since).await;
                        let Some(behind) = behind else {
                            return Ok(Moved { left, ended });
                        };
                        self.still_makes_sense(direction)?;
                        self.progress(Phase::Parked, vec![behind.clone()]);
                        match course.is_behind(Instant::now()) {
                            Step::Lift => break self.lift(config.soft).await,
                            Step::Stay => return Err(Stayed(behind)),
                            _ => sleep(LOOK).await,
                        }
                    }
                }
            }
        }
    }

    /// Whether the nodes are as they have to be for it.
    fn still_makes_sense(&self, direction: Direction) -> Result<(), Stayed> {
        let health = &self.shared.health;
        let is_all = |other: usize| health.admission(other) == Admission::All;
        let lost = || Stayed(format!("node {} was lost", self.name(self.node)));
        match direction {
            _ if !health.is_up(self.node) => Err(lost()),
            // It was, and is back.
            _ if self.parked.is_some() && !health.parks(self.node) => Err(lost()),
            Direction::Away if !others(self.shared, self.node).any(is_all) => {
                Err(Stayed("no other node serves clients any more".to_owned()))
            }
            Direction::Away | Direction::Home => Ok(()),
        }
    }

    /// New writes of the keys wait from now on.
    fn park(&mut self) -> Result<(), Stayed> {
        self.shared.health.tell(self.node, Event::Park(true));
        self.parked = Some(Instant::now());
        match self.shared.health.parks(self.node) {
            true => Ok(()),
            false => Err(Stayed(format!("node {} was lost", self.name(self.node)))),
        }
    }

    /// They go on where they were, for a while at least.
    async fn lift(&mut self, pause: Duration) {
        self.shared.health.tell(self.node, Event::Park(false));
        self.unpark();
        sleep(pause).await;
    }

    /// The home that does not show all that was written up to now, if there is one.
    async fn behind(&self, direction: Direction, limit: Duration) -> Option<String> {
        self.behind_since(direction, limit, tokio::time::Instant::now())
            .await
    }

    /// The home that does not show within this time all that was written before `since`, if there is one.
    async fn behind_since(
        &self,
        direction: Direction,
        limit: Duration,
        since: tokio::time::Instant,
    ) -> Option<String> {
        let health = &self.shared.health;
        let others = others(self.shared, self.node).filter(|other| health.usable(*other));
        let shows = |points: Vec<usize>, to: usize| {
            let points = points.into_iter().map(|from| (from, Point::Time(since)));
            let shows = self.shared.replicator.shows(points.collect(), to, limit);
            async move { (!shows.await).then_some(to) }
        };
        let behind = match direction {
            // As ever after an absence: what is in quarantine there waits for somebody to look at it, but clients do not.
            Direction::Home if self.kind == Kind::Return => {
                let replicator = &self.shared.replicator;
                let has = replicator.caught_up(self.node, others.collect(), limit);
                vec![(!has.await).then_some(self.node)]
            }
            Direction::Away => join_all(others.map(|to| shows(vec![self.node], to))).await,
            Direction::Home => vec![shows(others.collect(), self.node).await],
        };
        let behind: Vec<&str> = behind
            .into_iter()
            .flatten()
            .map(|to| self.name(to))
            .collect();
        (!behind.is_empty()).then(|| {
            let behind = behind.join(", ");
            format!("{behind} does not have all that was written (see tandem status)")
        })
    }

    /// Names of transactions that are prepared on the node.
    async fn prepared(&self) -> Result<Vec<String>, Stayed> {
        let sql = "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database()";
        let rows = self.shared.control.query(self.node, sql, &[]).await;
        let rows = rows.map_err(|error| Stayed(format!("it cannot be asked: {error}")))?;
        let names = rows.iter().map(|row| row.try_get(0));
        let names: Result<Vec<String>, _> = names.collect();
        names.map_err(|error| Stayed(error.to_string()))
    }

    /// Ends the backends of these. Their sessions are told as after any loss of their server.
    async fn end(&self, units: &[Running]) -> Result<(), Stayed> {
        for node in 0..self.shared.nodes.len() {
            let of_node = units.iter().filter(|unit| unit.node == node);
            let servers: Vec<i32> = of_node.map(|unit| unit.server).collect();
            if servers.is_empty() {
                continue;
            }
            let sql = "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.unnest($1::int4[]) AS pid";
            let ended = self.shared.control.query(node, sql, &[&servers]).await;
            ended
                .map_err(|error| Stayed(format!("what is in the way cannot be ended: {error}")))?;
        }
        Ok(())
    }
}
