//! What a node's loss costs: Tandem by `tandem drill`, HAProxy with the same instruments and under the same load.
//!
//! HAProxy stands before two primaries that know nothing of each other, so that nothing has to be promoted: what is measured is
//! how soon it goes to the other one, and what its clients hear of it.

mod peers;
mod tandem;

use std::time::Duration;

pub use peers::{Kind, PEERS, Primaries};
pub use tandem::{SCENARIOS, Tandem};

/// pgbench's scale on all nodes: so many branches.
const SCALE: u32 = 5;

/// How each is drilled.
#[derive(Debug, Clone, Copy)]
pub struct Course {
    /// Transactions of pgbench a second.
    pub rate: u32,
    /// When it happens, after the load's start.
    pub at: Duration,
    /// How long it lasts.
    pub hold: Duration,
    /// How long the load goes on behind it.
    pub after: Duration,
    /// How long the same load runs without it before.
    pub control: Duration,
}

impl Course {
    /// `tandem drill`'s own defaults.
    #[must_use]
    pub fn new(rate: u32) -> Self {
        let seconds = Duration::from_secs;
        Self {
            rate,
            at: seconds(5),
            hold: seconds(5),
            after: seconds(10),
            control: seconds(5),
        }
    }
}
