//! Reads one node's slot into its journal, and confirms to the slot what may be forgotten.

mod pace;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use tandem_wire::connect::{ConnectError, ConnectOptions, connect};
use tandem_wire::connection::{Connection, ConnectionError};
use tandem_wire::lsn::Lsn;
use tandem_wire::replication::{ReplicationError, ReplicationMessage, ReplicationStream};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use pace::Pace;

use crate::carry::{self, Bounds, Carrier, Carry};
use crate::control::{Control, ControlError};
use crate::journal::{Journal, JournalError, Known, Opened, Source};
use crate::meter::{Course, lock};
use crate::progress::Links;
use crate::relation::Interner;
use crate::setup::{SlotFacts, application_name, slot_name};
use crate::tables::{TableFilter, Tables};
use crate::tail::{Tail, asked_once};
use crate::transaction::{AssembleError, Assembler, Change, Entry};
use crate::witness::Witness;

/// What one read of the socket brings goes to the journal together; not more than this, though.
const BURST_BYTES: usize = 4 << 20;

/// Why a capture ended.
#[derive(Debug, Error)]
pub(crate) enum CaptureError {
    /// The node was not reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection was lost, or the server refused.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The connection was lost, or the server refused.
    #[error(transparent)]
    Stream(#[from] ReplicationError),
    /// The stream cannot be understood.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The node cannot be told about its journal.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// An answer that makes no sense.
    #[error("unexpected answer to IDENTIFY_SYSTEM")]
    Unidentified,
    /// The journal takes entries again, so those that went past it are read once more.
    #[error("the journal has room again")]
    Room,
}

/// What a capture works with.
pub(crate) struct Capture {
    /// The cluster's name.
    pub cluster: String,
    /// The node's connection.
    pub connect: ConnectOptions,
    /// The node's epoch, for the session's name.
    pub epoch: i64,
    /// What the node says about its slot.
    pub slot: SlotFacts,
    /// Which tables.
    pub tables: TableFilter,
    /// The node's id.
    pub(crate) node: u16,
    /// Where to.
    pub journal: Arc<Journal>,
    /// Counts what the stream brings.
    pub(crate) course: Arc<Mutex<Course>>,
    /// Remembers which transactions it has brought.
    pub(crate) witness: Arc<Mutex<Witness>>,
    /// Counts what nobody had read when the node was found gone.
    pub(crate) tail: Arc<Mutex<Option<Tail>>>,
    /// How changes of which table are brought together.
    pub(crate) policies: Arc<Tables>,
    /// Positions of all links.
    pub links: Arc<Links>,
    /// Index of the node in the configuration.
    pub source: usize,
    /// Node ids by index.
    pub node_ids: Arc<[u16]>,
    /// The shapes of all sources' tables.
    pub(crate) interner: Arc<Interner>,
    /// The node's control connection.
    pub control: Arc<Control>,
    /// How far targets may fall behind.
    pub bounds: Bounds,
}

impl Capture {
    /// Streams until something ends it; it can be run again at once. Says when the stream has `begun`. Pauses the thread
    /// while it is behind, so it wants [one of its own](crate::thread::on_own_thread).
    ///
    /// # Errors
    /// Whatever ended it.
    pub(crate) async fn run(&mut self, begun: impl FnOnce()) -> Result<(), CaptureError> {
        let mut connection = self.connect().await?;
        connection.read_in_bulk().map_err(ConnectionError::Io)?;
        let (source, server) = identify(&mut connection, &self.cluster).await?;
        let opened = self.open_journal(source, server).await?;
        // No streaming: what is sent before its commit names the origin that it came from but not its position there
        // (`pgoutput_stream_start` in src/backend/replication/pgoutput/pgoutput.c), so it could not become a cause.
        let plugin = [
            ("proto_version", "1"),
            ("publication_names", "tandem"),
            ("messages", "true"),
        ];
        let slot = slot_name(&self.cluster);
        let stream = ReplicationStream::start(connection, &slot, opened.end, &plugin).await?;
        lock(&self.course).begin(opened.end);
        lock(&self.witness).begin(tokio::time::Instant::now());
        if let Some(tail) = lock(&self.tail).as_mut() {
            tail.begin(opened.end);
        }
        begun();
        let targets = self.links.of_source(self.source);
        let targets = targets.filter_map(|link| self.node_ids.get(link.target).copied());
        let (confirmed, confirmations) = watch::channel(self.slot.confirmed);
        let mut carrier = Carrier {
            carry: Carry::new(
                self.bounds,
                targets,
                &self.slot.carried,
                self.slot.confirmed,
            ),
            journal: Arc::clone(&self.journal),
            links: Arc::clone(&self.links),
            source: self.source,
            control: Arc::clone(&self.control),
            slot,
            confirmed,
        };
        let ended = tokio::select! {
            streamed = self.stream(opened.writer, stream, confirmations) => streamed,
            carried = carrier.run() => match carried {
                Ok(()) => Err(CaptureError::Room),
                Err(error) => Err(error.into()),
            },
        };
        // The next run begins where this one ended.
        self.slot.confirmed = *carrier.confirmed.borrow();
        self.slot.carried = carrier.carry.carried();
        ended
    }

    async fn connect(&self) -> Result<Connection, ConnectError> {
        let mut options = self.connect.clone();
        let name = application_name(&self.cluster, self.epoch, "capture");
        // What columns print as depends on the sender's settings.
        let settings = "-c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=3 -c bytea_output=hex \
             -c timezone=UTC -c lc_monetary=C -c client_encoding=UTF8 -c wal_sender_timeout=60s";
        for (key, value) in [
            ("application_name", name.as_str()),
            ("replication", "database"),
            ("options", settings),
        ] {
            options.params.push((key.to_owned(), value.to_owned()));
        }
        connect(&options).await
    }

    /// A new journal is made known to the node before anything depends on it.
    async fn open_journal(&mut self, source: Source, server: Lsn) -> Result<Opened, CaptureError> {
        let known = Known {
            id: self.slot.journal,
            confirmed: self.slot.confirmed,
            created: self.slot.created,
            floor: self.slot.floor,
        };
        let carried = self.slot.carried.clone();
        let opened = self.journal.open(source, known, server, carried).await?;
        if self.slot.journal != Some(opened.id) {
            let id = format!("{:016x}", opened.id);
            let slot = slot_name(&self.cluster);
            let sql = "INSERT INTO tandem.journal VALUES ($1, $2, $3::text::pg_lsn) \
                 ON CONFLICT (slot) DO UPDATE SET id = excluded.id, floor = excluded.floor";
            self.control
                .query(sql, &[&slot, &id, &opened.floor.to_string()])
                .await?;
            self.slot.journal = Some(opened.id);
        }
        Ok(opened)
    }

    async fn stream(
        &self,
        writer: u64,
        mut stream: ReplicationStream,
        confirmations: watch::Receiver<Lsn>,
    ) -> Result<(), CaptureError> {
        let _streaming = self.journal.streaming(writer);
        let interner = Arc::clone(&self.interner);
        let mut assembler = Assembler::new(self.node, self.tables.clone(), interner);
        let mut ticks = tokio::time::interval(carry::INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pace = Pace::new(Instant::now());
        let mut counts = asked_once(|change: &Change| {
            let relation = &change.relation;
            let policy = self.policies.policy(&relation.schema, &relation.name);
            !policy.counters.is_empty()
        });
        loop {
            let reading = async {
                self.journal.has_room().await;
                stream.next().await
            };
            let answer = tokio::select! {
                message = reading => {
                    let mut burst = Burst::default();
                    burst.take(&mut assembler, message?)?;
                    while burst.bytes < BURST_BYTES
                        && let Some(message) = stream.next_ready().await?
                    {
                        burst.take(&mut assembler, message)?;
                    }
                    lock(&self.course).take(&burst.entries);
                    lock(&self.witness).take(&burst.entries);
                    if let Some(tail) = lock(&self.tail).as_mut() {
                        tail.take(&burst.entries, burst.tail, &mut counts);
                    }
                    self.journal.append(writer, burst.entries, burst.tail).await?;
                    if let Some(nap) = pace.read(Instant::now(), burst.bytes) {
                        // The thread, not the task: nobody polls the socket meanwhile.
                        std::thread::sleep(nap);
                    }
                    burst.answer
                }
                _ = ticks.tick() => true,
            };
            if answer {
                let confirmed = *confirmations.borrow();
                let written = self.journal.tail().max(confirmed);
                stream.status(written, confirmed, confirmed, false).await?;
            }
            // A stream that always has more would leave no time for the carrier.
            tokio::task::yield_now().await;
        }
    }
}

/// What one read of the socket brought.
#[derive(Default)]
struct Burst {
    entries: Vec<Entry>,
    bytes: usize,
    tail: Lsn,
    /// The server wants to hear how far we are.
    answer: bool,
}

impl Burst {
    fn take(
        &mut self,
        assembler: &mut Assembler,
        message: ReplicationMessage,
    ) -> Result<(), AssembleError> {
        match message {
            ReplicationMessage::XLogData { data, .. } => {
                self.bytes += data.len();
                self.entries.extend(assembler.handle(&data)?);
            }
            ReplicationMessage::KeepAlive { end, reply, .. } => {
                if assembler.is_between_transactions() {
                    self.tail = self.tail.max(end);
                }
                self.answer |= reply;
            }
        }
        Ok(())
    }
}

/// Whose stream it is, and the end of its WAL.
async fn identify(
    connection: &mut Connection,
    cluster: &str,
) -> Result<(Source, Lsn), CaptureError> {
    let rows = connection.simple_query("IDENTIFY_SYSTEM").await?;
    let text = |column: usize| rows.first()?.get(column)?.as_deref();
    let parsed = || {
        let source = Source {
            cluster: cluster.to_owned(),
            slot: slot_name(cluster),
            system: text(0)?.parse().ok()?,
            timeline: text(1)?.parse().ok()?,
        };
        Some((source, text(2)?.parse().ok()?))
    };
    parsed().ok_or(CaptureError::Unidentified)
}
