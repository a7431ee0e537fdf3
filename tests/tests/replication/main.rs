//! Replication scenarios: what is committed on one node arrives on all others, under one order of versions.

mod blocked;
mod causality;
mod changes;
mod clocks;
mod conflicts;
mod counters;
mod deletes;
mod faults;
mod histories;
mod journal;
mod operator;
mod pgbench;
mod quarantine;
mod slot;
mod status;
mod tables;
mod uniques;
mod verify;
mod workload;
