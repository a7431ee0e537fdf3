//! Command line scenarios: every command against real nodes, and the dev cluster.

mod check;
mod commands;
mod dev;
mod drill;
