//! Replication scenarios: what is committed on one node arrives on all others, under one order of versions.

mod blocked;
mod capture;
mod causality;
mod changes;
mod clocks;
mod conflicts;
mod counters;
mod deletes;
mod faults;
mod folding;
mod group;
mod histories;
mod identity;
mod journal;
mod large;
mod multisets;
mod operator;
mod pgbench;
mod quarantine;
mod resolvers;
mod slot;
mod status;
mod tables;
mod uniques;
mod verify;
mod workload;
