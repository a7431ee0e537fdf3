//! Owns the connection on which one node is listened to for all who listen in a database.

use std::{collections::BTreeSet, fmt::Write as _, sync::Arc, time::Duration};

use bytes::BytesMut;
use tandem_wire::{
    ConnectError, Connection, ConnectionError, ErrorReport,
    backend::{ErrorFields, NotificationResponse},
    connection::Frame,
    encode,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::Audience;
use crate::{bound::Bound, health::HealthBoard, node::Nodes};

/// Time between two attempts to reach a node.
const RETRY: Duration = Duration::from_millis(250);
/// How long a node may be silent before it is asked for a sign of life.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Listens to one node.
#[derive(Debug)]
pub(super) struct Ear {
    pub(super) audience: Arc<Audience>,
    pub(super) database: String,
    /// Its index.
    pub(super) node: usize,
    pub(super) nodes: Nodes,
    pub(super) health: Arc<HealthBoard>,
    /// On each answer.
    pub(super) bound: Bound,
}

/// Why a node is not listened to.
#[derive(Debug, thiserror::Error)]
enum EarError {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Connection(#[from] ConnectionError),
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
}

/// Listens for ever, while somebody wants it.
pub(super) async fn listen(ear: Ear) {
    let mut changes = ear.audience.changes.subscribe();
    let mut missed = false;
    loop {
        let wanted = changes.wait_for(|_| !ear.audience.wanted().1.is_empty());
        if wanted.await.is_err() {
            return;
        }
        if ear.health.usable(ear.node) {
            let ended = ear.hear(&mut changes, &mut missed).await;
            ear.set_heard(0);
            if let Err(error) = ended {
                missed = true;
                let (node, database) = (ear.name(), &ear.database);
                tracing::warn!(node, database, %error, "a node's notifications are not heard");
            } else {
                missed = false;
            }
        } else {
            missed = true;
        }
        sleep(RETRY).await;
    }
}

impl Ear {
    fn name(&self) -> &str {
        self.nodes.get(self.node).map_or("?", |node| node.name())
    }

    fn set_heard(&self, change: u64) {
        if let Some(heard) = self.audience.heard.get(self.node) {
            heard.send_replace(change);
        }
    }

    /// Listens on one connection until nobody wants it any more. `missed`: what was raised before may have been missed.
    async fn hear(
        &self,
        changes: &mut watch::Receiver<u64>,
        missed: &mut bool,
    ) -> Result<(), EarError> {
        let Some(node) = self.nodes.get(self.node) else {
            return Ok(());
        };
        let params = [
            ("application_name", "tandem notifications"),
            // What sessions of other encodings listen on is heard by a server of their own.
            ("client_encoding", "UTF8"),
            ("options", "-c idle_session_timeout=0"),
        ];
        let params = params.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let bound = self.bound.get();
        let options = node.own_options(&self.database, params.to_vec(), bound);
        let connecting = timeout(bound, tandem_wire::connect(&options)).await;
        let mut connection = connecting.map_err(|_| EarError::Timeout(bound))??;
        let mut on = BTreeSet::new();
        let Some(mut asked) = self
            .audience
            .asked
            .get(self.node)
            .map(watch::Sender::subscribe)
        else {
            return Ok(());
        };
        loop {
            changes.mark_unchanged();
            let (change, wanted) = self.audience.wanted();
            if let Some(text) = statements(&on, &wanted) {
                self.ask(&mut connection, &text).await?;
            }
            if wanted.is_empty() {
                connection.close().await;
                return Ok(());
            }
            on = wanted;
            self.set_heard(change);
            if std::mem::take(missed) {
                self.audience.tell_all(&gap(self.name()));
            }
            let mut due = Instant::now() + SILENCE_MAX;
            self.answer(&mut asked, &mut connection).await?;
            loop {
                tokio::select! {
                    changed = changes.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return Ok(()),
                    },
                    asks = asked.changed() => match asks {
                        Ok(()) => self.answer(&mut asked, &mut connection).await?,
                        Err(_) => return Ok(()),
                    },
                    frame = connection.recv() => {
                        self.take(&frame?)?;
                        due = Instant::now() + SILENCE_MAX;
                    }
                    () = sleep_until(due) => {
                        self.ask(&mut connection, "").await?;
                        due = Instant::now() + SILENCE_MAX;
                    }
                }
            }
        }
    }

    /// Whoever asks whether all is heard is answered: a backend sends what it was signalled before it is ready again
    /// (`ProcessNotifyInterrupt` in postgres.c), and whoever commits has signalled it before it answers its client.
    async fn answer(
        &self,
        asked: &mut watch::Receiver<u64>,
        connection: &mut Connection,
    ) -> Result<(), EarError> {
        let number = *asked.borrow_and_update();
        let answered = self.audience.answered.get(self.node);
        let Some(answered) = answered.filter(|answered| *answered.borrow() < number) else {
            return Ok(());
        };
        self.ask(connection, "").await?;
        answered.send_replace(number);
        Ok(())
    }

    /// Runs statements, and takes what is heard meanwhile.
    async fn ask(&self, connection: &mut Connection, text: &str) -> Result<(), EarError> {
        let bound = self.bound.get();
        let asked = async {
            encode::frontend::query(connection.out(), text).map_err(ConnectionError::Io)?;
            loop {
                let frame = connection.flush_and_recv().await?;
                if frame.tag == b'Z' {
                    return Ok(());
                }
                self.take(&frame)?;
            }
        };
        timeout(bound, asked)
            .await
            .unwrap_or(Err(EarError::Timeout(bound)))
    }

    fn take(&self, frame: &Frame) -> Result<(), ConnectionError> {
        match frame.tag {
            b'A' => {
                let heard = NotificationResponse::parse(&frame.body)?;
                if let Ok(channel) = std::str::from_utf8(heard.channel) {
                    self.audience.deliver(channel, &whole(frame));
                }
                Ok(())
            }
            b'E' => Err(ErrorFields::parse(&frame.body)?.to_owned().into()),
            _ => Ok(()),
        }
    }
}

/// The message with its header.
fn whole(frame: &Frame) -> BytesMut {
    let mut message = BytesMut::with_capacity(frame.body.len() + 5);
    message.extend_from_slice(&[frame.tag]);
    // A server's message of this type is far below 4 GB.
    let len = u32::try_from(frame.body.len() + 4).unwrap_or(u32::MAX);
    message.extend_from_slice(&len.to_be_bytes());
    message.extend_from_slice(&frame.body);
    message
}

/// What leads from the channels that a connection listens on to those that are wanted.
fn statements(on: &BTreeSet<Box<str>>, wanted: &BTreeSet<Box<str>>) -> Option<String> {
    let mut text = String::new();
    for (word, names) in [
        ("LISTEN", wanted.difference(on)),
        ("UNLISTEN", on.difference(wanted)),
    ] {
        for name in names {
            let _ = write!(text, "{word} \"{}\"; ", name.replace('"', "\"\""));
        }
    }
    (!text.is_empty()).then_some(text)
}

/// What those who listen are told when a node is heard again.
fn gap(node: &str) -> ErrorReport {
    let message = format!("notifications of node {node} may have been missed");
    ErrorReport::new("WARNING", "01000", message)
        .with_detail(
            "The connection on which Tandem listens to the node was lost; it is there again.",
        )
        .with_hint("Look at what the notifications would have told.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_come_and_go_with_their_exact_names() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
        let (on, wanted) = (set(&["a", "B\"c"]), set(&["a", "d e"]));
        assert_eq!(
            statements(&on, &wanted).as_deref(),
            Some("LISTEN \"d e\"; UNLISTEN \"B\"\"c\"; ")
        );
        assert_eq!(statements(&on, &on), None);
    }
}
