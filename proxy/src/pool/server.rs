//! Owns one server connection of a pool: its stream, what it owes, what it has prepared, and what others may see of it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Waker},
    time::{Duration, SystemTime},
};

use bytes::BytesMut;
use tandem_wire::{
    Scanner, Secret, Sender, Stream,
    connection::Parts,
    frame::{self, HEADER_LEN},
};
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::{Key, Pool, current_worker, lock};
use crate::{
    identity::Numbered,
    session::{
        outbox::Outbox, owed::Owed, prepared::ServerStatements, profile::ServerSettings,
        state::Hold, trace::Trace,
    },
};

/// A server connection. Whoever has it uses it alone; dropping it closes it and makes room in its pool.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) stream: Stream,
    /// Finds the messages in what arrives.
    pub(crate) scanner: Scanner,
    /// Arrived, but not a whole message yet.
    pub(crate) received: BytesMut,
    /// What the server has not taken yet.
    pub(crate) unsent: Outbox,
    pub(crate) owed: Owed,
    pub(crate) statements: ServerStatements,
    pub(crate) settings: ServerSettings,
    /// What is known of the unit of work that it has.
    pub(crate) trace: Trace,
    /// What becomes of the numbers (OIDs) in its messages, for the client that has it.
    pub(crate) numbers: Option<Numbered>,
    pub(crate) face: Arc<Face>,
    /// When it was opened, from the daemon's start.
    pub(super) born: Duration,
    /// The worker whose reactor the stream is registered with.
    pub(super) home: usize,
    /// Not to be used for another client.
    pub(crate) spent: bool,
    seat: Seat,
}

/// A place in a pool, free again when dropped.
#[derive(Debug)]
pub(super) struct Seat(pub(super) Weak<Pool>);

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.on_lost();
        }
    }
}

impl Drop for Face {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.keep_totals(self);
        }
    }
}

/// What others see of a server connection: whoever cancels, and whoever asks for figures.
#[derive(Debug)]
pub(crate) struct Face {
    /// Counts the daemon's server connections.
    pub(crate) id: u64,
    /// Index of the node.
    pub(crate) node: usize,
    /// The backend's process number there.
    pub(crate) pid: i32,
    /// What cancels it.
    pub(crate) secret: Secret,
    /// When it was opened.
    pub(crate) opened: SystemTime,
    /// The system identifier that the node was known by then.
    pub(crate) system: Option<i64>,
    /// Whether it is encrypted.
    pub(crate) tls: bool,
    pub(crate) counters: Counters,
    /// The process number that its client was given; 0: nobody has it.
    pub(crate) client: AtomicU32,
    /// Prepared statements on it.
    pub(crate) prepared: AtomicU32,
    /// Why its client keeps it beyond its transaction.
    hold: Mutex<Option<Hold>>,
    pool: Weak<Pool>,
    /// Cancel requests on their way. Those that begin are begun by whoever has the server, or while it is kept from being
    /// given back: what is none when it is given back stays none.
    cancels: AtomicU32,
    /// The server that waits for the last of them.
    held: Mutex<Option<Box<Server>>>,
    doubtful: AtomicBool,
}

#[cfg(test)]
impl Face {
    /// Of a backend that belongs to no pool.
    pub(crate) fn of(node: usize, pid: i32, secret: Secret) -> Face {
        Face {
            id: 0,
            node,
            pid,
            secret,
            opened: SystemTime::now(),
            system: None,
            tls: false,
            counters: Counters::default(),
            client: AtomicU32::new(0),
            prepared: AtomicU32::new(0),
            hold: Mutex::default(),
            pool: Weak::new(),
            cancels: AtomicU32::new(0),
            held: Mutex::default(),
            doubtful: AtomicBool::new(false),
        }
    }
}

/// What went through a server connection. Only its user writes, so no update is ever lost.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Times that it was given back: transactions, as far as pooling is concerned.
    pub(crate) transactions: AtomicU64,
    /// Microseconds of those transactions, as their clients saw them.
    pub(crate) transaction_us: AtomicU64,
    /// Query, Execute and FunctionCall messages.
    pub(crate) queries: AtomicU64,
    /// Microseconds in which the server had something to do.
    pub(crate) query_us: AtomicU64,
    /// Bytes from the client.
    pub(crate) received: AtomicU64,
    /// Bytes to the client.
    pub(crate) sent: AtomicU64,
}

/// Adds to a counter that nobody else writes.
pub(crate) fn add(counter: &AtomicU64, more: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(more),
        Ordering::Relaxed,
    );
}

impl Server {
    /// A connection that has just logged in.
    pub(super) fn new(
        parts: Parts,
        key: &Key,
        id: u64,
        prepared_max: usize,
        born: Duration,
        pool: &Arc<Pool>,
    ) -> Server {
        let system = pool.env.health.system(key.node);
        let pool = Arc::downgrade(pool);
        Server {
            scanner: Scanner::new(Sender::Server),
            received: parts.rx,
            unsent: Outbox::default(),
            owed: Owed::new(),
            statements: ServerStatements::new(prepared_max),
            settings: ServerSettings::new(&key.params, &parts.parameters),
            numbers: None,
            trace: Trace::default(),
            face: Arc::new(Face {
                id,
                node: key.node,
                pid: parts.backend_pid,
                secret: Secret::new(parts.cancel_secret),
                opened: SystemTime::now(),
                system,
                tls: parts.stream.is_tls(),
                counters: Counters::default(),
                client: AtomicU32::new(0),
                prepared: AtomicU32::new(0),
                hold: Mutex::default(),
                pool: Weak::clone(&pool),
                cancels: AtomicU32::new(0),
                held: Mutex::default(),
                doubtful: AtomicBool::new(false),
            }),
            stream: parts.stream,
            born,
            home: current_worker(),
            spent: false,
            seat: Seat(pool),
        }
    }

    /// Registers the stream with the reactor of the worker that this runs on, so that its events come up there.
    pub(super) fn move_here(mut self: Box<Self>) -> io::Result<Box<Self>> {
        let here = current_worker();
        if self.home != here {
            self.stream = self.stream.rehome()?;
            self.home = here;
        }
        Ok(self)
    }

    /// The next message that it sends: its type and its body. For what the proxy asks while no client has it.
    ///
    /// # Errors
    /// The connection ends, or what comes is no message.
    pub(crate) async fn message(&mut self) -> io::Result<(u8, BytesMut)> {
        loop {
            let header = frame::peek(&self.received, Sender::Server).map_err(io::Error::other)?;
            if let Some(header) = header
                && self.received.len() >= header.frame_len()
            {
                let mut frame = self.received.split_to(header.frame_len());
                return Ok((header.tag, frame.split_off(HEADER_LEN)));
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The pool that it belongs to, as long as that exists.
    pub(super) fn pool(&self) -> Option<Arc<Pool>> {
        self.seat.0.upgrade()
    }

    /// Ends the session politely, if the server stands between two messages; best effort.
    pub(crate) fn close(mut self: Box<Self>) {
        if self.unsent.is_empty() && !self.owed.is_fatal() {
            let mut cx = Context::from_waker(Waker::noop());
            // Terminate. A server that is gone or does not read need not be told.
            let _ = Pin::new(&mut self.stream).poll_write(&mut cx, b"X\0\0\0\x04");
            let _ = Pin::new(&mut self.stream).poll_flush(&mut cx);
        }
    }

    /// Whether another client may have it.
    pub(crate) fn is_reusable(&self) -> bool {
        !self.spent
            && self.owed.is_settled()
            && self.scanner.at_boundary()
            && self.received.is_empty()
            && self.unsent.is_empty()
            && !self.face.doubtful.load(Ordering::Acquire)
    }
}

impl Face {
    /// A cancel request is on its way: until it has arrived nobody else gets the server.
    pub(crate) fn begin_cancel(self: &Arc<Face>) -> CancelUnderWay {
        self.cancels.fetch_add(1, Ordering::AcqRel);
        CancelUnderWay {
            face: Arc::clone(self),
            arrived: false,
        }
    }

    /// Keeps the server until no cancel request is on its way; gives it back at once when none is.
    pub(super) fn wait_for_cancels(server: Box<Server>) -> Option<Box<Server>> {
        if server.face.cancels_under_way() == 0 {
            return Some(server);
        }
        let face = Arc::clone(&server.face);
        let mut held = lock(&face.held);
        // The last one may have ended meanwhile.
        if face.cancels_under_way() == 0 {
            return Some(server);
        }
        *held = Some(server);
        None
    }

    /// Says why its client keeps it.
    pub(crate) fn set_hold(&self, hold: Option<Hold>) {
        *lock(&self.hold) = hold;
    }

    /// Why its client keeps it.
    pub(crate) fn hold(&self) -> Option<Hold> {
        *lock(&self.hold)
    }

    /// Whether a client has ever had the server.
    pub(crate) fn has_served(&self) -> bool {
        self.counters.transactions.load(Ordering::Relaxed) > 0
    }

    /// Cancel requests on their way.
    pub(crate) fn cancels_under_way(&self) -> u32 {
        self.cancels.load(Ordering::Acquire)
    }
}

/// A cancel request on its way to a server.
#[derive(Debug)]
pub(crate) struct CancelUnderWay {
    face: Arc<Face>,
    arrived: bool,
}

impl CancelUnderWay {
    /// The server has closed the connection of the request: the signal was sent, and meets nothing that comes later.
    pub(crate) fn arrived(mut self) {
        self.arrived = true;
    }

    /// The server it is for.
    pub(crate) fn face(&self) -> &Face {
        &self.face
    }
}

impl Drop for CancelUnderWay {
    fn drop(&mut self) {
        if !self.arrived {
            // It may still arrive, at any time.
            self.face.doubtful.store(true, Ordering::Release);
        }
        let held = {
            let mut held = lock(&self.face.held);
            match self.face.cancels.fetch_sub(1, Ordering::AcqRel) {
                1 => held.take(),
                _ => None,
            }
        };
        if let Some(server) = held {
            super::release(server);
        }
    }
}
