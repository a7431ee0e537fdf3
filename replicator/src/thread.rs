//! A thread and a runtime of its own for one stream, or for one link.
//!
//! The reader pauses while it is behind. On a shared runtime the sockets would be polled by other threads meanwhile, and
//! the sender would pay for waking them all the same; and the work on a backlog would hold up whatever shares the thread.
//!
//! A link is woken for each transaction, and for each reply. On a shared runtime each of these wakes a second thread that
//! looks for more work and finds none, before the first one has sent anything; on its own thread a wake-up is one.

use std::io;

use tokio::sync::oneshot;

/// Runs `work` there. When the answer is dropped, `work` is dropped at its next await.
///
/// # Errors
/// The system has no thread left, or the work panicked.
pub(crate) async fn on_own_thread<T: Send + 'static>(
    name: impl Into<String> + Send,
    work: impl Future<Output = T> + Send + 'static,
) -> io::Result<T> {
    let (done, answer) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => runtime.block_on(run(done, work)),
                // Nobody may be there any more to hear it.
                Err(error) => _ = done.send(Err(error)),
            }
        })?;
    answer.await.map_err(io::Error::other)?
}

async fn run<T>(mut done: oneshot::Sender<io::Result<T>>, work: impl Future<Output = T>) {
    tokio::select! {
        biased;
        () = done.closed() => {}
        result = work => {
            // As above.
            let _ = done.send(Ok(result));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn work_answers_from_a_thread_of_that_name() {
        let name = async { std::thread::current().name().map(str::to_owned) };
        let name = on_own_thread("reader", name).await.expect("a thread");
        assert_eq!(name.as_deref(), Some("reader"));
    }

    #[tokio::test]
    async fn work_ends_when_nobody_waits_for_it_any_more() {
        let (held, gone) = oneshot::channel::<()>();
        let began = Arc::new(Notify::new());
        let begins = Arc::clone(&began);
        let work = async move {
            let _held = held;
            begins.notify_one();
            std::future::pending::<()>().await;
        };
        let waiting = tokio::spawn(on_own_thread("reader", work));
        began.notified().await;
        waiting.abort();
        // What the work held goes with it.
        assert!(gone.await.is_err());
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let work = async { panic!("on purpose") };
        let ended: io::Result<()> = on_own_thread("reader", work).await;
        assert!(ended.is_err());
    }
}
