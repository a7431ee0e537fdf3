//! Owns a client's place in a pool's queue.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;

use super::{OpenError, Pool, Server, Turn, lock, queue::Waiter, release};

/// Why a client gets no server.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum WaitError {
    /// None became free in time.
    #[error("no server connection became free within {} s", .0.as_secs_f64())]
    TooLong(Duration),
    /// The node is out of service since.
    #[error("the node is out of service")]
    Left,
    /// None could be opened, and there is no other.
    #[error(transparent)]
    Open(#[from] Arc<OpenError>),
}

/// What stands in for a client in the queue.
#[derive(Debug)]
pub(super) struct Ticket {
    slot: Mutex<Slot>,
    waker: AtomicWaker,
    told: AtomicBool,
}

#[derive(Debug)]
enum Slot {
    Waiting,
    Server(Box<Server>),
    Failed(WaitError),
    /// Nobody waits any more.
    Gone,
}

impl Ticket {
    pub(super) fn new() -> Ticket {
        Ticket {
            slot: Mutex::new(Slot::Waiting),
            waker: AtomicWaker::new(),
            told: AtomicBool::new(false),
        }
    }

    /// There will be no server.
    pub(super) fn fail(&self, error: WaitError) {
        let mut slot = lock(&self.slot);
        if matches!(*slot, Slot::Waiting) {
            *slot = Slot::Failed(error);
        }
        drop(slot);
        self.waker.wake();
    }

    /// It takes long.
    pub(super) fn tell(&self) {
        self.told.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl Waiter<Box<Server>> for Arc<Ticket> {
    fn offer(&self, server: Box<Server>) -> Result<(), Box<Server>> {
        let mut slot = lock(&self.slot);
        if !matches!(*slot, Slot::Waiting) {
            return Err(server);
        }
        *slot = Slot::Server(server);
        drop(slot);
        self.waker.wake();
        Ok(())
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(self, other)
    }
}

/// A place in the queue; leaves it when dropped, and gives back a server that has come meanwhile.
#[derive(Debug)]
pub(crate) struct Wait {
    pool: Arc<Pool>,
    ticket: Arc<Ticket>,
    since: Instant,
}

impl Wait {
    pub(super) fn new(pool: Arc<Pool>, ticket: Arc<Ticket>) -> Wait {
        Wait {
            pool,
            ticket,
            since: Instant::now(),
        }
    }

    /// The server, once there is one.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<Box<Server>, WaitError>> {
        self.ticket.waker.register(cx.waker());
        let mut slot = lock(&self.ticket.slot);
        match std::mem::replace(&mut *slot, Slot::Gone) {
            Slot::Waiting => {
                *slot = Slot::Waiting;
                Poll::Pending
            }
            Slot::Server(server) => {
                drop(slot);
                self.pool.note_wait(self.since);
                Poll::Ready(match server.move_here() {
                    Ok(server) => Ok(server),
                    Err(error) => Err(WaitError::Open(Arc::new(OpenError::moved(error)))),
                })
            }
            Slot::Failed(error) => Poll::Ready(Err(error)),
            Slot::Gone => Poll::Pending,
        }
    }

    /// Whether the client should be told that it waits; once.
    pub(crate) fn take_notice(&self) -> bool {
        self.ticket.told.swap(false, Ordering::AcqRel)
    }
}

impl Pool {
    /// A server, as soon as there is one.
    ///
    /// # Errors
    /// [`WaitError`] when there will be none.
    pub(crate) async fn server(self: &Arc<Pool>) -> Result<Box<Server>, WaitError> {
        match self.ask() {
            Turn::Now(server) => Ok(server),
            Turn::Later(wait) => poll_fn(|cx| wait.poll(cx)).await,
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let left = std::mem::replace(&mut *lock(&self.ticket.slot), Slot::Gone);
        match left {
            Slot::Waiting => {
                lock(&self.pool.queue).leave(&self.ticket);
            }
            Slot::Server(server) => release(server),
            Slot::Failed(_) | Slot::Gone => {}
        }
    }
}
