//! Asking a server to cancel what a session runs.

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::connect::{ConnectError, ConnectOptions, bounded, dial_unbounded};
use crate::encode::frontend as encode;

/// Sends a cancel request for the session with this process number and secret, on a connection of its own, and waits
/// until the server closes it: then the signal was sent (whether it meets a running statement, nobody can say). Only
/// host, port and TLS of the options are used.
///
/// # Errors
/// [`ConnectError`], after `connect_timeout` at the latest.
pub async fn cancel(opts: &ConnectOptions, pid: i32, secret: &[u8]) -> Result<(), ConnectError> {
    bounded(opts, async {
        let mut request = BytesMut::new();
        encode::cancel_request(&mut request, pid, secret)?;
        let mut stream = dial_unbounded(opts).await?;
        stream.write_all(&request).await?;
        stream.flush().await?;
        // The server answers nothing. It may close with unread bytes, which shows as a reset.
        let mut sink = [0; 64];
        while !matches!(stream.read(&mut sink).await, Ok(0) | Err(_)) {}
        Ok(())
    })
    .await
}
