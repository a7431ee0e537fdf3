//! Owns time limits that a reload may change while others use them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// A time limit; its copies are one and the same. Precise to a microsecond.
#[derive(Debug, Clone)]
pub(crate) struct Bound(Arc<AtomicU64>);

fn micros(limit: Duration) -> u64 {
    u64::try_from(limit.as_micros()).unwrap_or(u64::MAX)
}

impl Bound {
    pub(crate) fn new(limit: Duration) -> Bound {
        Bound(Arc::new(AtomicU64::new(micros(limit))))
    }

    /// The limit now.
    pub(crate) fn get(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }

    /// Changes it for all copies; what is being waited for goes on as it has begun.
    pub(crate) fn set(&self, limit: Duration) {
        self.0.store(micros(limit), Ordering::Relaxed);
    }
}
