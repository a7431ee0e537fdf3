//! The daemon and its command line: listener, sessions, health, admin, configuration, dev cluster.
pub mod admin;
pub mod auth;
mod cancel;
pub mod cli;
pub mod config;
mod console;
pub mod daemon;
pub mod dev;
mod fence;
pub mod health;
mod limits;
pub mod listener;
pub mod log;
mod node;
pub mod pgbouncer;
pub mod reload;
mod session;
