//! Looks at each node twice a second: what its clock says, whether it may take writes with it, what its slot costs it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tandem_wire::lsn::Lsn;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_postgres::{Row, Statement};

use crate::clock::estimate::{Estimate, Estimator, Sample, reference};
use crate::clock::guard::{Guard, Said};
use crate::control::{Control, ControlError};
use crate::meter::lock;
use crate::node::Shared;
use crate::setup::slot_name;
use crate::version::pg_now;

/// How often a node is looked at.
const INTERVAL: Duration = Duration::from_millis(500);

/// What a node's slot costs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlotVitals {
    /// The end of the node's WAL.
    pub wal_end: Lsn,
    /// Bytes of WAL that the node cannot remove.
    pub retained_bytes: i64,
    /// Bytes of WAL between what was confirmed and the end.
    pub unconfirmed_bytes: i64,
    /// Transactions since the oldest whose catalog rows VACUUM has to keep.
    pub xid_age: Option<i32>,
    /// `reserved`, `extended`, `unreserved` or `lost`: PostgreSQL's `pg_replication_slots.wal_status`.
    pub wal_status: Option<String>,
    /// Bytes of WAL until the slot is in danger, where `max_slot_wal_keep_size` is set.
    pub safe_bytes: Option<i64>,
}

/// What was seen of a node last.
pub(crate) struct Vitals {
    clock: Mutex<Estimator>,
    slot: Mutex<Option<SlotVitals>>,
    /// Why the node gets no writes. It stays so while the node is away.
    fenced: Mutex<Option<String>>,
    guard: AsyncMutex<Guard>,
}

impl Vitals {
    /// Those of a node of which nothing is known; its clock may be off by so much.
    pub(crate) fn new(node: usize, offset_max: Duration) -> Self {
        Self {
            clock: Mutex::default(),
            slot: Mutex::default(),
            fenced: Mutex::default(),
            guard: AsyncMutex::new(Guard::new(node, offset_max)),
        }
    }

    /// Why it gets no writes, if it gets none.
    pub(crate) fn fenced(&self) -> Option<String> {
        lock(&self.fenced).clone()
    }

    /// How far its clock is off.
    pub(crate) fn clock(&self) -> Option<Estimate> {
        lock(&self.clock).estimate()
    }

    /// What its slot costs it.
    pub(crate) fn slot(&self) -> Option<SlotVitals> {
        lock(&self.slot).clone()
    }

    /// The node is away.
    pub(crate) fn forget(&self) {
        lock(&self.clock).forget();
        *lock(&self.slot) = None;
    }
}

/// Where the clock in the middle of all that are known stands against the daemon's; microseconds.
pub(crate) fn middle(vitals: &[Arc<Vitals>]) -> Option<i64> {
    let clocks = vitals.iter().filter_map(|vitals| vitals.clock());
    let mut offsets: Vec<_> = clocks.map(|clock| clock.offset_us).collect();
    reference(&mut offsets)
}

/// Looks at a node until its control connection fails, which others notice too.
pub(crate) async fn keep(shared: Arc<Shared>, node: usize, control: Arc<Control>) {
    let Some(vitals) = shared.vitals.get(node) else {
        return;
    };
    loop {
        if let Err(error) = look(&shared, vitals, &control).await {
            tracing::debug!(node, %error, "a node cannot be looked at");
        }
        if control.is_closed() {
            return;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn look(shared: &Shared, vitals: &Vitals, control: &Control) -> Result<(), ControlError> {
    let slot = slot_name(&shared.config.cluster);
    let (clock, costs) = (control.prepare(CLOCK).await?, control.prepare(SLOT).await?);
    let mut guard = vitals.guard.lock().await;
    guard.load(control).await?;
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let newest = guard.newest(shared);
        let (sample, said) = measure(control, &clock).await?;
        let estimate = {
            let mut estimator = lock(&vitals.clock);
            estimator.take(sample);
            estimator.estimate()
        };
        let rows = control.ask(&costs, &[&slot]).await?;
        let seen = rows.first().map(slot_vitals).transpose()?;
        *lock(&vitals.slot) = seen;
        if let Some(clock) = estimate.zip(middle(&shared.vitals)) {
            let looked = guard.on(shared, control, newest, said, clock).await;
            let reason = guard.reason().map(|reason| reason.to_string());
            *lock(&vitals.fenced) = reason;
            looked?;
        }
    }
}

/// Microseconds since 2000, as PostgreSQL counts them, and the oldest transaction that has not ended.
const CLOCK: &str = "SELECT (extract(epoch FROM clock_timestamp() - '2000-01-01 00:00:00+00') * 1000000)::int8, \
     pg_snapshot_xmin(pg_current_snapshot())::text::int8";

async fn measure(control: &Control, clock: &Statement) -> Result<(Sample, Said), ControlError> {
    // In this order: what passes between the two then counts as a longer round trip.
    let begun = Instant::now();
    let sent = pg_now();
    let rows = control.ask(clock, &[]).await?;
    let round_trip_us = i64::try_from(begun.elapsed().as_micros()).unwrap_or(i64::MAX);
    let row = rows
        .first()
        .ok_or(ControlError::Unexpected("clock_timestamp"))?;
    let said = Said {
        clock: row.try_get(0)?,
        xid: row.try_get(1)?,
    };
    let sample = Sample {
        sent,
        said: said.clock,
        round_trip_us,
    };
    Ok((sample, said))
}

const SLOT: &str = "SELECT w.lsn::text, pg_wal_lsn_diff(w.lsn, s.restart_lsn)::int8, \
     pg_wal_lsn_diff(w.lsn, s.confirmed_flush_lsn)::int8, age(s.catalog_xmin)::int4, s.wal_status, s.safe_wal_size \
     FROM pg_replication_slots s, pg_current_wal_lsn() w(lsn) WHERE s.slot_name = $1";

fn slot_vitals(row: &Row) -> Result<SlotVitals, ControlError> {
    let wal_end: String = row.try_get(0)?;
    let bytes = |column| Ok::<_, ControlError>(row.try_get::<_, Option<i64>>(column)?.unwrap_or(0));
    Ok(SlotVitals {
        wal_end: wal_end
            .parse()
            .map_err(|_| ControlError::Unexpected("pg_current_wal_lsn"))?,
        retained_bytes: bytes(1)?,
        unconfirmed_bytes: bytes(2)?,
        xid_age: row.try_get(3)?,
        wal_status: row.try_get(4)?,
        safe_bytes: row.try_get(5)?,
    })
}
