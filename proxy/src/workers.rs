//! Owns the threads that serve clients. Each has a runtime of its own, so that whatever belongs to a client stays on one thread:
//! its task is woken without a lock, and most of what it needs is in that thread's cache.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

use crate::{pool::set_current_worker, timing};

/// The threads; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct Workers {
    handles: Vec<Handle>,
    next: AtomicUsize,
    _alive: Vec<oneshot::Sender<()>>,
}

impl Workers {
    /// Starts so many, at least one.
    ///
    /// # Errors
    /// The system gives no thread or no event queue.
    pub(crate) fn start(count: usize) -> io::Result<Workers> {
        let mut workers = Workers {
            handles: Vec::new(),
            next: AtomicUsize::new(0),
            _alive: Vec::new(),
        };
        for number in 0..count.max(1) {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .on_thread_unpark(timing::woken)
                .build()?;
            workers.handles.push(runtime.handle().clone());
            let (alive, ended) = oneshot::channel::<()>();
            workers._alive.push(alive);
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || {
                    set_current_worker(number);
                    // Nothing is ever sent: it ends when the sender is dropped.
                    let _ = runtime.block_on(ended);
                })?;
        }
        Ok(workers)
    }

    /// All of them, by number.
    pub(crate) fn handles(&self) -> &[Handle] {
        &self.handles
    }

    /// The one for the next client.
    pub(crate) fn next(&self) -> Option<&Handle> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.handles.get(next % self.handles.len().max(1))
    }
}
