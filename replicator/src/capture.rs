//! Reads one node's slot into its feed, and confirms to the slot what every target has durably applied.

use std::sync::Arc;
use std::time::Duration;

use tandem_wire::connect::{ConnectError, ConnectOptions, connect};
use tandem_wire::lsn::Lsn;
use tandem_wire::replication::{ReplicationError, ReplicationMessage, ReplicationStream};
use thiserror::Error;
use tokio::time::MissedTickBehavior;

use crate::feed::Feed;
use crate::progress::{LinkState, Links};
use crate::relation::Interner;
use crate::setup::{application_name, slot_name};
use crate::tables::TableFilter;
use crate::transaction::{AssembleError, Assembler};

/// How often the slot's position is confirmed. The server's `wal_sender_timeout` is far longer.
const CONFIRM_INTERVAL: Duration = Duration::from_millis(100);

/// Why a capture ended.
#[derive(Debug, Error)]
pub(crate) enum CaptureError {
    /// The node was not reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection was lost, or the server refused.
    #[error(transparent)]
    Stream(#[from] ReplicationError),
    /// The stream cannot be understood.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// A target needs what was trimmed.
    #[error("the stream is read again for a target that was away")]
    Reread,
}

/// What a capture works with.
pub(crate) struct Capture {
    /// The cluster's name.
    pub cluster: String,
    /// The node's connection.
    pub connect: ConnectOptions,
    /// The node's epoch, for the session's name.
    pub epoch: i64,
    /// The slot's position when the node was taken.
    pub confirmed: Lsn,
    /// Which tables.
    pub tables: TableFilter,
    /// The node's id.
    pub(crate) node: u16,
    /// Where to.
    pub feed: Arc<Feed>,
    /// Positions of all links.
    pub links: Arc<Links>,
    /// Index of the node in the configuration.
    pub source: usize,
    /// A target asks for the stream to be read again.
    pub reread: Arc<tokio::sync::Notify>,
    /// The shapes of all sources' tables.
    pub(crate) interner: Arc<Interner>,
}

impl Capture {
    /// Streams until something ends it; it can be run again at once.
    ///
    /// # Errors
    /// Whatever ended it.
    pub(crate) async fn run(&mut self) -> Result<(), CaptureError> {
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
        let connection = connect(&options).await?;
        self.feed.restart();
        self.feed.advance(self.confirmed);
        let plugin = [
            ("proto_version", "1"),
            ("publication_names", "tandem"),
            ("messages", "true"),
        ];
        let mut stream =
            ReplicationStream::start(connection, &slot_name(&self.cluster), Lsn(0), &plugin)
                .await?;
        let mut assembler =
            Assembler::new(self.node, self.tables.clone(), Arc::clone(&self.interner));
        let mut ticks = tokio::time::interval(CONFIRM_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let reading = async {
                self.feed.has_room().await;
                stream.next().await
            };
            tokio::select! {
                message = reading => {
                    let mut answer = false;
                    match message? {
                        ReplicationMessage::XLogData { data, .. } => {
                            if let Some(entry) = assembler.handle(&data)? {
                                self.feed.push(entry);
                            }
                        }
                        ReplicationMessage::KeepAlive { end, reply, .. } => {
                            if assembler.is_between_transactions() {
                                self.feed.advance(end);
                            }
                            answer = reply;
                        }
                    }
                    if answer {
                        self.confirm(&mut stream).await?;
                    }
                }
                _ = ticks.tick() => self.confirm(&mut stream).await?,
                () = self.reread.notified() => return Err(CaptureError::Reread),
            }
        }
    }

    async fn confirm(&mut self, stream: &mut ReplicationStream) -> Result<(), CaptureError> {
        let durable = self.durable();
        self.feed.trim(durable);
        if self.feed.is_full() {
            self.leave_out_targets_that_are_down();
        }
        // Older servers let a slot move backwards (src/backend/replication/logical/logical.c,
        // LogicalConfirmReceivedLocation), so an earlier position is never sent.
        self.confirmed = self.confirmed.max(durable);
        let written = self.feed.tail().max(self.confirmed);
        Ok(stream
            .status(written, self.confirmed, self.confirmed, false)
            .await?)
    }

    /// What every target has flushed. Without targets: everything that was read.
    fn durable(&self) -> Lsn {
        let targets = self.links.of_source(self.source).map(|link| link.durable());
        targets.min().unwrap_or_else(|| self.feed.tail())
    }

    /// The slot keeps what they miss; the others go on.
    fn leave_out_targets_that_are_down(&self) {
        let up = self
            .links
            .of_source(self.source)
            .filter(|link| link.state() == LinkState::Streaming);
        if let Some(durable) = up.map(|link| link.durable()).min() {
            self.feed.trim(durable);
        }
    }
}
