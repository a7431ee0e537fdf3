//! Owns the decisions of one pool: who gets which server connection, when one is opened, checked or closed. Pure: it
//! knows neither sockets nor clocks, and whoever waits is served in the order of asking.
//!
//! **Invariant:** `open` counts every connection that exists or is being made: idle, in use, `opening`. It is never made to exceed
//! the pool's size and reserve; a pool that was made smaller comes down to them as connections become free. Each is uncounted exactly once, by [`Queue::lost`] or [`Queue::failed`].

use std::{collections::VecDeque, time::Duration};

use crate::config::PoolConfig;

/// Whoever waits for a server connection.
pub(super) trait Waiter<S> {
    /// Takes the server, unless it has stopped waiting.
    fn offer(&self, server: S) -> Result<(), S>;
    /// Whether both are one and the same.
    fn is(&self, other: &Self) -> bool;
}

/// What must be done, outside of any lock, to bring a server to the queue.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Job<S> {
    /// Nothing.
    None,
    /// Open a connection; its end is told by [`Queue::arrived`] or [`Queue::failed`].
    Open,
    /// Ask this one for a sign of life; its end is told by [`Queue::arrived`] or [`Queue::check_failed`].
    Check(S),
}

/// The answer to a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked<S> {
    /// A server.
    Have(S),
    /// One will be offered; do this first.
    Wait(Job<S>),
}

/// What is due by time.
#[derive(Debug)]
pub(super) struct Due<S, W> {
    /// They have waited too long and are not in the queue any more.
    pub(super) expired: Vec<W>,
    /// They should be told that they wait.
    pub(super) told: Vec<W>,
    /// To be closed: not needed, or too old. Still counted until [`Queue::lost`].
    pub(super) surplus: Vec<S>,
    /// So many connections are to be opened; they are counted.
    pub(super) open: usize,
}

#[derive(Debug)]
struct Idle<S> {
    server: S,
    since: Duration,
    born: Duration,
}

#[derive(Debug)]
struct Waiting<W> {
    waiter: W,
    since: Duration,
    told: bool,
}

/// How many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    /// Connections that exist or are being made.
    pub(super) open: usize,
    /// Of them, being opened or checked.
    pub(super) opening: usize,
    /// Of them, idle.
    pub(super) idle: usize,
    /// Who waits.
    pub(super) waiting: usize,
    /// Since when the first in the queue does.
    pub(super) waiting_since: Option<Duration>,
}

/// The servers that nobody uses, and those who wait for one. Times count from the daemon's start.
#[derive(Debug)]
pub(super) struct Queue<S, W> {
    limits: PoolConfig,
    /// By worker; the one used last is taken first.
    idle: Vec<Vec<Idle<S>>>,
    waiting: VecDeque<Waiting<W>>,
    open: usize,
    opening: usize,
    retry_at: Duration,
    /// Nobody gets a server, and each is closed when it is free.
    paused: bool,
    /// Each server is closed when it is free, and none is kept.
    retired: bool,
    /// What was opened up to then is closed when it is free.
    renewed: Option<Duration>,
}

impl<S, W: Waiter<S> + Clone> Queue<S, W> {
    /// An empty one, for servers that live on `workers` threads.
    pub(super) fn new(limits: PoolConfig, workers: usize) -> Self {
        Self {
            limits,
            idle: std::iter::repeat_with(Vec::new)
                .take(workers.max(1))
                .collect(),
            waiting: VecDeque::new(),
            open: 0,
            opening: 0,
            retry_at: Duration::ZERO,
            paused: false,
            retired: false,
            renewed: None,
        }
    }

    /// Other limits from now on. What they make superfluous goes when it is not in use.
    pub(super) fn set_limits(&mut self, limits: PoolConfig) {
        self.limits = limits;
    }

    /// The limits.
    pub(super) fn limits(&self) -> &PoolConfig {
        &self.limits
    }

    /// Connections at most, the reserve included.
    fn most(&self) -> usize {
        self.limits.size.saturating_add(self.limits.reserve)
    }

    /// Takes an idle server, of the same worker if there is one, or puts a waiter at the end of the queue.
    pub(super) fn ask(
        &mut self,
        worker: usize,
        now: Duration,
        waiter: impl FnOnce() -> W,
    ) -> Asked<S> {
        if self.waiting.is_empty()
            && !self.paused
            && let Some(idle) = self.take_idle(worker)
        {
            if now.saturating_sub(idle.since) <= self.limits.check_after {
                return Asked::Have(idle.server);
            }
            self.wait(now, waiter());
            self.opening += 1;
            return Asked::Wait(Job::Check(idle.server));
        }
        self.wait(now, waiter());
        Asked::Wait(self.open_another(now))
    }

    fn wait(&mut self, now: Duration, waiter: W) {
        self.waiting.push_back(Waiting {
            waiter,
            since: now,
            told: false,
        });
    }

    fn take_idle(&mut self, worker: usize) -> Option<Idle<S>> {
        if let Some(idle) = self.idle.get_mut(worker).and_then(Vec::pop) {
            return Some(idle);
        }
        self.idle
            .iter_mut()
            .max_by_key(|others| others.len())
            .and_then(Vec::pop)
    }

    /// Counts one more connection if those who wait need it and it may be opened.
    fn open_another(&mut self, now: Duration) -> Job<S> {
        let front = self.waiting.front();
        let reserve =
            front.is_some_and(|front| now.saturating_sub(front.since) >= self.limits.reserve_after);
        let room = self.limits.size + if reserve { self.limits.reserve } else { 0 };
        // While there are others, a node that refused one more is not asked again at once.
        let allowed = !self.paused && (self.open == 0 || now >= self.retry_at);
        if self.waiting.len() > self.opening && self.open < room && allowed {
            self.open += 1;
            self.opening += 1;
            return Job::Open;
        }
        Job::None
    }

    /// Gives a server to whoever waits longest, or keeps it. An error returns one that is not to be
    /// used any more: close it.
    pub(super) fn give(
        &mut self,
        mut server: S,
        worker: usize,
        born: Duration,
        now: Duration,
    ) -> Result<(), S> {
        if self.paused || self.too_old(born, now) || self.open > self.most() {
            return Err(server);
        }
        while let Some(next) = self.waiting.pop_front() {
            match next.waiter.offer(server) {
                Ok(()) => return Ok(()),
                Err(back) => server = back,
            }
        }
        let place = worker.min(self.idle.len().saturating_sub(1));
        match self.idle.get_mut(place).filter(|_| !self.retired) {
            Some(idle) => {
                idle.push(Idle {
                    server,
                    since: now,
                    born,
                });
                Ok(())
            }
            None => Err(server),
        }
    }

    fn too_old(&self, born: Duration, now: Duration) -> bool {
        let max = self.limits.lifetime_max;
        let expired = !max.is_zero() && now.saturating_sub(born) >= max;
        expired || self.renewed.is_some_and(|renewed| born <= renewed)
    }

    /// A connection was opened, or has given a sign of life.
    pub(super) fn arrived(
        &mut self,
        server: S,
        worker: usize,
        born: Duration,
        now: Duration,
    ) -> Result<(), S> {
        self.opening = self.opening.saturating_sub(1);
        self.give(server, worker, born, now)
    }

    /// A connection could not be opened. Answers who must hear of it: with other connections nobody, they will be served.
    pub(super) fn failed(&mut self, now: Duration) -> Vec<W> {
        self.opening = self.opening.saturating_sub(1);
        self.open = self.open.saturating_sub(1);
        self.retry_at = now + self.limits.retry_after;
        // While it is paused a node that does not serve is no surprise.
        if self.open > 0 || self.paused {
            return Vec::new();
        }
        self.waiting.drain(..).map(|each| each.waiter).collect()
    }

    /// A connection gave no sign of life. It is uncounted by [`Queue::lost`] when it is closed.
    pub(super) fn check_failed(&mut self) {
        self.opening = self.opening.saturating_sub(1);
    }

    /// A connection is closed. Those who wait may need another one.
    pub(super) fn lost(&mut self, now: Duration) -> Job<S> {
        self.open = self.open.saturating_sub(1);
        self.open_another(now)
    }

    /// Somebody stops waiting. Whether it did: its turn may have come already.
    pub(super) fn leave(&mut self, waiter: &W) -> bool {
        let place = self.waiting.iter().position(|each| each.waiter.is(waiter));
        place.is_some_and(|place| self.waiting.remove(place).is_some())
    }

    /// Nobody gets a server any more. Answers those that nobody uses: close them.
    pub(super) fn pause(&mut self) -> Vec<S> {
        self.paused = true;
        self.drain_idle()
    }

    /// Servers are given again; the next [`Queue::tick`] says what is to be opened.
    pub(super) fn resume(&mut self) {
        self.paused = false;
    }

    /// The node is out of service, or in it again. Answers those that nobody uses, to be closed, and those who wait.
    pub(super) fn retire(&mut self, retired: bool) -> (Vec<S>, Vec<W>) {
        if std::mem::replace(&mut self.retired, retired) || !retired {
            return (Vec::new(), Vec::new());
        }
        let waiting = self.waiting.drain(..).map(|each| each.waiter).collect();
        (self.drain_idle(), waiting)
    }

    /// Whether nobody gets a server.
    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// What was opened up to now is not used again. Answers those that nobody uses: close them.
    pub(super) fn renew(&mut self, now: Duration) -> Vec<S> {
        self.renewed = Some(now);
        self.drain_idle()
    }

    /// Takes all idle servers out; each stays counted until [`Queue::lost`].
    pub(super) fn drain_idle(&mut self) -> Vec<S> {
        let all = self.idle.iter_mut().flat_map(std::mem::take);
        all.map(|idle| idle.server).collect()
    }

    /// What is due now.
    pub(super) fn tick(&mut self, now: Duration) -> Due<S, W> {
        let mut due = Due {
            expired: Vec::new(),
            told: Vec::new(),
            surplus: Vec::new(),
            open: 0,
        };
        let waited = |since: Duration| now.saturating_sub(since);
        while self
            .waiting
            .front()
            .is_some_and(|front| waited(front.since) >= self.limits.wait_max)
        {
            due.expired
                .extend(self.waiting.pop_front().map(|each| each.waiter));
        }
        if !self.limits.notice_after.is_zero() {
            let late = self
                .waiting
                .iter_mut()
                .take_while(|each| waited(each.since) >= self.limits.notice_after);
            for each in late.filter(|each| !each.told) {
                each.told = true;
                due.told.push(each.waiter.clone());
            }
        }
        self.take_surplus(now, &mut due.surplus);
        while matches!(self.open_another(now), Job::Open) {
            due.open += 1;
        }
        let kept_open = match self.paused || self.retired {
            true => 0,
            false => self.limits.min.min(self.limits.size),
        };
        while self.open < kept_open && now >= self.retry_at {
            self.open += 1;
            self.opening += 1;
            due.open += 1;
        }
        due
    }

    fn take_surplus(&mut self, now: Duration, surplus: &mut Vec<S>) {
        let (idle_max, lifetime_max) = (self.limits.idle_max, self.limits.lifetime_max);
        let mut spare = self.open.saturating_sub(self.limits.min);
        let mut excess = self.open.saturating_sub(self.most());
        for worker in &mut self.idle {
            // The one used last is at the end.
            let mut place = 0;
            while let Some(idle) = worker.get(place) {
                let old = !lifetime_max.is_zero() && now.saturating_sub(idle.born) >= lifetime_max;
                let unused =
                    !idle_max.is_zero() && now.saturating_sub(idle.since) >= idle_max && spare > 0;
                if old || unused || excess > 0 {
                    spare = spare.saturating_sub(1);
                    excess = excess.saturating_sub(1);
                    surplus.push(worker.remove(place).server);
                } else {
                    place += 1;
                }
            }
        }
    }

    /// How many there are.
    pub(super) fn counts(&self) -> Counts {
        Counts {
            open: self.open,
            opening: self.opening,
            idle: self.idle.iter().map(Vec::len).sum(),
            waiting: self.waiting.len(),
            waiting_since: self.waiting.front().map(|front| front.since),
        }
    }
}

#[cfg(test)]
mod tests;
