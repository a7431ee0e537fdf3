//! Decides up to where a slot may be confirmed, and for whose sake its source's journal has to be safe.
//!
//! While all targets keep up, the slot is confirmed only to what all of them have durably applied: a journal that is lost
//! then loses nothing. A target that is further behind than a bound is *carried*: the slot moves on without it, as far as
//! the journal is safe on disk. Who is carried stands in `tandem.carried` on the source before the slot moves on, so that
//! the loss of a journal somebody depends on can be told from one that does not matter.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tandem_wire::lsn::Lsn;
use tokio::time::{Instant, MissedTickBehavior};

use crate::control::{Control, ControlError};
use crate::journal::{Journal, JournalError};
use crate::progress::Links;

/// How often positions are looked at. The server's `wal_sender_timeout` is far longer.
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);
/// How often the journal is synced while somebody is carried, and room is looked for while there was none.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// How far a target may fall behind before it is carried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes of the source's WAL.
    pub bytes: u64,
    /// Time.
    pub time: Duration,
}

/// One target of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    id: u16,
    /// It has everything up to here, durably.
    assured: Lsn,
    carried: bool,
}

/// What has to be written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// The slot may move on without this target, which has everything up to here.
    Begin(u16, Lsn),
    /// This target has caught up.
    End(u16),
}

/// The decision; knows no clock and does no I/O.
#[derive(Debug)]
pub(crate) struct Carry {
    bounds: Bounds,
    targets: Vec<Target>,
    /// Where the stream was when.
    tails: VecDeque<(Instant, Lsn)>,
}

impl Carry {
    /// `carried` is what is written down; the other targets have everything that the slot was confirmed to.
    pub(crate) fn new(
        bounds: Bounds,
        targets: impl Iterator<Item = u16>,
        carried: &BTreeMap<u16, Lsn>,
        confirmed: Lsn,
    ) -> Self {
        let target = |id| Target {
            id,
            assured: carried.get(&id).copied().unwrap_or(confirmed),
            carried: carried.contains_key(&id),
        };
        Self {
            bounds,
            targets: targets.map(target).collect(),
            tails: VecDeque::new(),
        }
    }

    /// Takes in how far the stream and the targets (in the order that was given) are. Answers who begins or ceases to be
    /// carried; the caller writes it down, then says so with [`changed`](Self::changed).
    fn observe(
        &mut self,
        now: Instant,
        tail: Lsn,
        confirmed: Lsn,
        durable: impl Iterator<Item = Lsn>,
    ) -> Vec<Change> {
        self.tails.push_back((now, tail));
        while self
            .tails
            .get(1)
            .is_some_and(|&(at, _)| now - at >= self.bounds.time)
        {
            self.tails.pop_front();
        }
        let long_ago = self
            .tails
            .front()
            .filter(|&&(at, _)| now - at >= self.bounds.time)
            .map_or(Lsn(0), |&(_, tail)| tail);
        let mut changes = Vec::new();
        for (target, durable) in self.targets.iter_mut().zip(durable) {
            target.assured = target.assured.max(durable);
            let behind = tail.0.saturating_sub(target.assured.0) > self.bounds.bytes
                || target.assured < long_ago;
            if !target.carried && behind {
                changes.push(Change::Begin(target.id, target.assured));
            }
            // Its word, not ours: after a restart it first has to say where it is.
            if target.carried && durable >= confirmed && !behind {
                changes.push(Change::End(target.id));
            }
        }
        changes
    }

    fn changed(&mut self, change: Change) {
        let (id, carried) = match change {
            Change::Begin(id, _) => (id, true),
            Change::End(id) => (id, false),
        };
        for target in self.targets.iter_mut().filter(|target| target.id == id) {
            target.carried = carried;
        }
    }

    /// Who is carried, and up to where each has everything.
    pub(crate) fn carried(&self) -> BTreeMap<u16, Lsn> {
        let carried = self.targets.iter().filter(|target| target.carried);
        carried.map(|target| (target.id, target.assured)).collect()
    }

    /// What every target has. Without targets: everything.
    fn all_have(&self, tail: Lsn) -> Lsn {
        let assured = self.targets.iter().map(|target| target.assured);
        assured.min().unwrap_or(tail)
    }

    /// What every target has that is not carried.
    fn keeping_up_have(&self, tail: Lsn) -> Lsn {
        let keeping_up = self.targets.iter().filter(|target| !target.carried);
        let assured = keeping_up.map(|target| target.assured);
        assured.min().unwrap_or(tail)
    }

    /// Up to where the slot may be confirmed. `safe`: the end of what the journal has safely.
    fn confirmable(&self, tail: Lsn, safe: Lsn) -> Lsn {
        let keeping_up = self.keeping_up_have(tail);
        if self.targets.iter().any(|target| target.carried) {
            keeping_up.min(safe)
        } else {
            keeping_up
        }
    }
}

/// The decision's surroundings.
pub(crate) struct Carrier {
    /// The decision.
    pub carry: Carry,
    /// The source's journal.
    pub journal: Arc<Journal>,
    /// Positions of all links.
    pub links: Arc<Links>,
    /// Index of the source in the configuration.
    pub source: usize,
    /// The source's control connection.
    pub control: Arc<Control>,
    /// The slot.
    pub slot: String,
    /// Up to where the slot may be confirmed; never moves back, because older servers let a slot do so
    /// (src/backend/replication/logical/logical.c, `LogicalConfirmReceivedLocation`).
    pub confirmed: tokio::sync::watch::Sender<Lsn>,
}

impl Carrier {
    /// Works until the stream has to be read once more, because the journal takes entries again.
    ///
    /// # Errors
    /// The journal is closed.
    pub(crate) async fn run(&mut self) -> Result<(), JournalError> {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut synced = Instant::now();
        let mut floor = self.journal.floor();
        loop {
            ticks.tick().await;
            let now = Instant::now();
            let due = now - synced >= SYNC_INTERVAL;
            if due {
                synced = now;
            }
            self.look(now).await;
            let tail = self.journal.tail();
            let carried = self.carry.carried();
            if due && !carried.is_empty() {
                self.sync().await?;
            }
            self.confirm(tail).await?;
            self.journal.set_carried(carried, *self.confirmed.borrow());
            let all = self.carry.all_have(tail);
            let keeping_up = self.carry.keeping_up_have(tail).min(self.own_has(tail));
            match self.journal.trim(all, keeping_up, due).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error @ JournalError::Closed) => return Err(error),
                Err(error) => tracing::warn!(%error, "replication: the journal cannot be trimmed"),
            }
            if due && self.journal.floor() != floor && self.note_floor().await.is_ok() {
                floor = self.journal.floor();
            }
        }
    }

    /// What the node has learnt of itself: what follows stays in memory for it even if it is carried. Every other link into
    /// the node may be waiting for it to learn what they meet.
    fn own_has(&self, tail: Lsn) -> Lsn {
        let mut links = self.links.of_source(self.source);
        let own = links.find(|link| link.target == self.source);
        own.map_or(tail, |own| own.durable())
    }

    async fn look(&mut self, now: Instant) {
        let durable: Vec<_> = self
            .links
            .of_source(self.source)
            .map(|link| link.durable())
            .collect();
        let (tail, confirmed) = (self.journal.tail(), *self.confirmed.borrow());
        for change in self
            .carry
            .observe(now, tail, confirmed, durable.into_iter())
        {
            // Otherwise it is tried again; until then the slot stays.
            match self.write_down(change).await {
                Ok(()) => {
                    tracing::info!(source = self.source, ?change, "replication: journal");
                    self.carry.changed(change);
                }
                Err(error) => tracing::debug!(%error, "tandem.carried cannot be written"),
            }
        }
    }

    async fn write_down(&self, change: Change) -> Result<(), ControlError> {
        let (id, sql, lsn) = match change {
            Change::Begin(id, lsn) => {
                let sql = "INSERT INTO tandem.carried VALUES ($1, $2, $3::text::pg_lsn) ON CONFLICT DO NOTHING";
                (id, sql, Some(lsn.to_string()))
            }
            Change::End(id) => (
                id,
                "DELETE FROM tandem.carried WHERE slot = $1 AND target = $2",
                None,
            ),
        };
        let id = i32::from(id);
        match lsn {
            Some(lsn) => self.control.query(sql, &[&self.slot, &id, &lsn]).await?,
            None => self.control.query(sql, &[&self.slot, &id]).await?,
        };
        Ok(())
    }

    async fn note_floor(&self) -> Result<(), ControlError> {
        let sql = "UPDATE tandem.journal SET floor = $2::text::pg_lsn WHERE slot = $1";
        let floor = self.journal.floor().to_string();
        self.control.query(sql, &[&self.slot, &floor]).await?;
        Ok(())
    }

    /// Also what the source has written that is none of anybody's business: its WAL need not be kept either.
    async fn sync(&self) -> Result<(), JournalError> {
        self.journal.note_read().await?;
        match self.journal.sync().await {
            Err(error @ JournalError::Closed) => Err(error),
            Err(error) => {
                tracing::warn!(%error, "replication: the journal cannot be synced; the slot stays where it is");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn confirm(&self, tail: Lsn) -> Result<(), JournalError> {
        let confirmable = self.carry.confirmable(tail, self.journal.synced());
        if confirmable > *self.confirmed.borrow() {
            // Otherwise the journal would seem to end too early at the next start.
            self.journal.note(confirmable).await?;
            self.confirmed.send_replace(confirmable);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn carry(carried: &[(u16, u64)], confirmed: u64) -> Carry {
        let bounds = Bounds {
            bytes: 1000,
            time: 10 * SECOND,
        };
        let carried = carried.iter().map(|&(id, lsn)| (id, Lsn(lsn))).collect();
        Carry::new(bounds, [1, 2].into_iter(), &carried, Lsn(confirmed))
    }

    fn observe(
        carry: &mut Carry,
        now: Instant,
        tail: u64,
        confirmed: u64,
        durable: [u64; 2],
    ) -> Vec<Change> {
        let changes = carry.observe(now, Lsn(tail), Lsn(confirmed), durable.map(Lsn).into_iter());
        for &change in &changes {
            carry.changed(change);
        }
        changes
    }

    #[test]
    fn while_all_keep_up_the_slot_waits_for_the_slowest() {
        let mut carry = carry(&[], 100);
        let now = Instant::now();
        assert_eq!(observe(&mut carry, now, 500, 100, [400, 300]), []);
        assert_eq!(carry.confirmable(Lsn(500), Lsn(9999)), Lsn(300));
        // A target that was not heard of yet has what the slot was confirmed to.
        let mut carry = self::carry(&[], 100);
        observe(&mut carry, now, 500, 100, [400, 0]);
        assert_eq!(carry.confirmable(Lsn(500), Lsn(9999)), Lsn(100));
    }

    #[test]
    fn a_target_that_is_too_many_bytes_behind_is_carried_until_it_has_caught_up() {
        let mut carry = carry(&[], 100);
        let now = Instant::now();
        let begun = observe(&mut carry, now, 2000, 100, [1900, 300]);
        assert_eq!(begun, [Change::Begin(2, Lsn(300))]);
        assert_eq!(carry.confirmable(Lsn(2000), Lsn(1500)), Lsn(1500));
        assert_eq!(carry.confirmable(Lsn(2000), Lsn(2000)), Lsn(1900));
        assert_eq!(carry.all_have(Lsn(2000)), Lsn(300));
        assert_eq!(observe(&mut carry, now, 2000, 1900, [2000, 1800]), []);
        assert_eq!(
            observe(&mut carry, now, 2000, 1900, [2000, 1900]),
            [Change::End(2)]
        );
        assert_eq!(carry.confirmable(Lsn(2000), Lsn(0)), Lsn(1900));
    }

    #[test]
    fn a_target_that_is_behind_for_too_long_is_carried_however_little_it_lacks() {
        let mut carry = carry(&[], 100);
        let start = Instant::now();
        for seconds in 0..10 {
            let now = start + SECOND * seconds;
            assert_eq!(
                observe(&mut carry, now, 200, 100, [200, 150]),
                [],
                "{seconds}"
            );
        }
        let begun = observe(&mut carry, start + 10 * SECOND, 200, 100, [200, 150]);
        assert_eq!(begun, [Change::Begin(2, Lsn(150))]);
    }

    #[test]
    fn a_steady_stream_is_no_reason_to_carry_anybody() {
        let mut carry = carry(&[], 100);
        let start = Instant::now();
        for second in 0..60u32 {
            let tail = 100 + 100 * u64::from(second);
            let behind = tail.saturating_sub(500).max(100);
            let changes = observe(
                &mut carry,
                start + SECOND * second,
                tail,
                100,
                [tail, behind],
            );
            assert_eq!(changes, [], "{second}");
        }
    }

    #[test]
    fn who_was_carried_is_carried_after_a_restart_until_it_says_where_it_is() {
        let mut carry = carry(&[(2, 50)], 800);
        let now = Instant::now();
        assert_eq!(observe(&mut carry, now, 900, 800, [900, 0]), []);
        assert_eq!(carry.all_have(Lsn(900)), Lsn(50));
        assert_eq!(carry.confirmable(Lsn(900), Lsn(850)), Lsn(850));
        assert_eq!(
            observe(&mut carry, now, 900, 850, [900, 900]),
            [Change::End(2)]
        );
    }
}
