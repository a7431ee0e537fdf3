//! Owns waiting for conditions: polled with a deadline, never slept for.

use std::{fmt::Display, time::Duration};

use tokio::time::Instant;

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// Asks until the answer is `Ok`, at most `limit` long; answers the last problem otherwise.
///
/// # Errors
/// The condition did not come true in time.
pub async fn poll<T, E: Display>(
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, String> {
    let deadline = Instant::now() + limit;
    let mut problem = "nothing was learnt".to_owned();
    loop {
        // An answer that hangs must not outlast the deadline.
        match tokio::time::timeout_at(deadline, ask()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => problem = error.to_string(),
            Err(_) => return Err(format!("no answer in time; before that: {problem}")),
        }
        if Instant::now() + INTERVAL >= deadline {
            return Err(problem);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// As [`poll`], for tests: fails the test when the condition does not come true.
///
/// # Panics
/// The condition did not come true in time.
pub async fn eventually<T, E: Display>(
    what: &str,
    limit: Duration,
    ask: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    match poll(limit, ask).await {
        Ok(value) => value,
        Err(problem) => panic!("{what}: not within {limit:?}: {problem}"),
    }
}
