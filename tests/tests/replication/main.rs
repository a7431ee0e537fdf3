//! Replication scenarios: what is committed on one node arrives on all others, under one order of versions.

mod changes;
mod pgbench;
