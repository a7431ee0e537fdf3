//! The nodes' clocks: how far they are off.
//!
//! Nothing here decides what is applied: the applied statement itself compares the target's clock with the change's
//! timestamp.

pub(crate) mod estimate;
