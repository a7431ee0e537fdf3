//! How fast the source can decode a backlog at all: the slot is read over TCP and everything thrown away.
//!
//! A walsender makes one send() per change (`WalSndWriteData` in src/backend/replication/walsender.c). A reader that waits
//! for each of them is woken by each, and the wake-ups cost the *sender* more than the decoding; one that leaves the bytes
//! in the socket's buffer for a while is sent them several times as fast. Both run on a thread and runtime of their own: a
//! shared runtime polls the socket, and is woken, also while the reader stays away.

use std::io;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tandem_tests::{Node, eventually};
use tandem_wire::encode::frontend;
use tandem_wire::lsn::Lsn;
use tandem_wire::replication::ReplicationMessage;
use tandem_wire::{Connection, Reader};
use tokio::task::spawn_blocking;

use super::backlog::mark;
use super::raw_session;
use super::stage::CAPTURE_SLOT;

/// The socket's buffer: what the patient reader lets the server send in the meantime. The kernel may bound it lower.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How long the patient reader stays away when it has read everything.
const NAP: Duration = Duration::from_millis(5);
/// How long the slot may take to be free.
const FREE_LIMIT: Duration = Duration::from_secs(20);

/// How the socket is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    /// Whenever there is something.
    Eager,
    /// In large pieces.
    Patient,
}

impl Capture {
    /// What it is called in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eager => "capture, eager",
            Self::Patient => "capture, patient",
        }
    }

    /// Reads the slot up to where the source's WAL ends now; the slot stays where it is.
    ///
    /// # Errors
    /// When the stream ends.
    ///
    /// # Panics
    /// The slot does not become free afterwards.
    pub async fn read(self, source: &Node) -> io::Result<Duration> {
        let end = source.value("SELECT pg_current_wal_flush_lsn()").await;
        let end: Lsn = end.parse().map_err(io::Error::other)?;
        // Its commit lies behind `end`, and is in the stream: that is where reading stops.
        mark(source).await;
        let port = source.port();
        let reading = spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(self.read_to(port, end))
        });
        let took = reading.await.map_err(io::Error::other)??;
        let active =
            format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{CAPTURE_SLOT}'");
        eventually("the slot is free", FREE_LIMIT, async || {
            match source.value(&active).await.as_str() {
                "f" => Ok(()),
                _ => Err("it is being read"),
            }
        })
        .await;
        Ok(took)
    }

    async fn read_to(self, port: u16, end: Lsn) -> io::Result<Duration> {
        let mut session = raw_session(port, &[("replication", "database")]).await?;
        if let (Self::Patient, Some(tcp)) = (self, session.stream().tcp()) {
            SockRef::from(tcp).set_recv_buffer_size(RECEIVE_BUFFER)?;
        }
        let command = format!(
            "START_REPLICATION SLOT {CAPTURE_SLOT} LOGICAL 0/0 (proto_version '1', publication_names 'bench')"
        );
        let began = Instant::now();
        frontend::query(session.out(), &command)?;
        let answer = session.flush_and_recv().await.map_err(io::Error::other)?;
        if answer.tag != b'W' {
            return Err(io::Error::other("the source does not stream"));
        }
        while self
            .next(&mut session)
            .await?
            .is_none_or(|commit| commit < end)
        {}
        let took = began.elapsed();
        session.close().await;
        Ok(took)
    }

    /// Takes one message; answers where its transaction ends if it is a Commit.
    async fn next(self, session: &mut Connection) -> io::Result<Option<Lsn>> {
        let frame = if self == Self::Patient {
            tokio::select! {
                biased;
                frame = session.recv() => frame,
                () = std::future::ready(()) => {
                    // Blocks the thread, so that nobody polls the socket.
                    std::thread::sleep(NAP);
                    session.recv().await
                }
            }
        } else {
            session.recv().await
        };
        let frame = frame.map_err(io::Error::other)?;
        if frame.tag != b'd' {
            return Err(io::Error::other("the source has ended the stream"));
        }
        Ok(
            match ReplicationMessage::parse(&frame.body).map_err(io::Error::other)? {
                ReplicationMessage::XLogData { data, .. } => end_of_commit(&data),
                // It is told only when everything before it was sent.
                ReplicationMessage::KeepAlive { end, .. } => Some(end),
            },
        )
    }
}

/// Moves the slot to where the source's WAL ends now.
///
/// # Panics
/// The source refuses.
pub async fn forget(source: &Node) {
    let sql =
        format!("SELECT pg_replication_slot_advance('{CAPTURE_SLOT}', pg_current_wal_flush_lsn())");
    source.execute(&sql).await;
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
