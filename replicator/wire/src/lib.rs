//! One PostgreSQL connection, either side: frames, bounded readers, startup, TLS, authentication, cancel, CopyBoth.
//!
//! This crate has no policy. It treats every byte of a peer, client or server, as hostile: lengths are checked
//! before they are used, memory grows only with bytes that really arrived, and no input makes it panic. What a
//! peer sent is decoded by the readers of this crate only. Messages are produced by `postgres_protocol`
//! (frontend) and `pgwire` (backend).
//!
//! The protocol itself is described in the PostgreSQL manual, chapter "Frontend/Backend Protocol"
//! (protocol-message-formats, protocol-flow, protocol-replication).
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

pub mod auth;
pub mod backend;
pub mod cancel;
pub mod connect;
pub mod connection;
pub mod encode;
pub mod frame;
pub mod frontend;
pub mod lsn;
pub mod reader;
pub mod replication;
pub mod secret;
pub mod startup;
pub mod stream;
pub mod tls;

pub use auth::Credentials;
pub use backend::ServerError;
pub use connect::{ConnectError, ConnectOptions, connect, dial};
pub use connection::{Connection, ConnectionError, Frame};
pub use encode::ErrorReport;
pub use frame::{FrameError, Header, Scan, Scanner, Sender};
pub use lsn::Lsn;
pub use reader::{ReadError, Reader};
pub use replication::{ReplicationMessage, ReplicationStream};
pub use secret::Secret;
pub use stream::Stream;
