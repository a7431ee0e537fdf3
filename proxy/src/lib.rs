//! The daemon and its command line: listener, sessions, health, admin, configuration, dev cluster.
pub mod admin;
pub mod auth;
mod cancel;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod dev;
mod fence;
pub mod health;
pub mod listener;
pub mod log;
mod node;
mod pool;
mod session;
mod workers;
