//! Command line scenarios: every command against real nodes, and the dev cluster.

mod commands;
mod dev;
