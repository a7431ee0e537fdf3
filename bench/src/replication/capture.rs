//! How fast the source can decode a backlog at all: the slot is read over TCP and everything thrown away.

use std::io;
use std::time::{Duration, Instant};

use tandem_tests::Node;
use tandem_wire::Reader;
use tandem_wire::lsn::Lsn;
use tandem_wire::replication::{ReplicationMessage, ReplicationStream};

use super::raw_session;
use super::stage::CAPTURE_SLOT;

/// Reads the slot up to where the source's WAL ends now, and confirms it.
///
/// # Errors
/// When the stream ends.
pub async fn drain(source: &Node) -> io::Result<Duration> {
    let end = source.value("SELECT pg_current_wal_flush_lsn()").await;
    let end: Lsn = end.parse().map_err(io::Error::other)?;
    let session = raw_session(source.port(), &[("replication", "database")]).await?;
    let options = [("proto_version", "1"), ("publication_names", "bench")];
    let began = Instant::now();
    let mut stream = ReplicationStream::start(session, CAPTURE_SLOT, Lsn(0), &options)
        .await
        .map_err(io::Error::other)?;
    loop {
        let reached = match stream.next().await.map_err(io::Error::other)? {
            ReplicationMessage::XLogData { data, .. } => end_of_commit(&data),
            ReplicationMessage::KeepAlive { end, reply, .. } => {
                if reply {
                    let status = stream.status(end, Lsn(0), Lsn(0), false).await;
                    status.map_err(io::Error::other)?;
                }
                // It is told only when everything before it was sent.
                Some(end)
            }
        };
        if reached.is_some_and(|reached| reached >= end) {
            break;
        }
    }
    let took = began.elapsed();
    let status = stream.status(end, end, end, false).await;
    status.map_err(io::Error::other)?;
    stream.stop().await;
    Ok(took)
}

/// Where a transaction ends, if this is its Commit: tag, flags, position of the commit, end.
fn end_of_commit(message: &[u8]) -> Option<Lsn> {
    let mut reader = Reader::new(message);
    if reader.u8().ok()? != b'C' {
        return None;
    }
    reader.bytes(1 + 8).ok()?;
    Some(Lsn(reader.u64().ok()?))
}
