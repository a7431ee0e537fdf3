//! The test harness: real clusters of PostgreSQL servers with a real daemon, faults, and the comparison of nodes.
//!
//! Everything that a test starts lives in a [`scratch::Scratch`] directory and is ended with it: when the test ends, when it
//! panics, and when its process is killed.

pub mod audit;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod compare;
pub mod daemon;
pub mod dev;
pub mod ledger;
pub mod node;
pub mod ports;
pub mod process;
pub mod program;
pub mod relay;
pub mod scratch;
pub mod seeds;
pub mod template;
pub mod wait;

pub use cluster::{Cluster, ClusterBuilder};
pub use daemon::Daemon;
pub use node::Node;
pub use program::Program;
pub use wait::{eventually, poll};
