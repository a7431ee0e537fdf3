//! Owns what sessions listen on: who listens on which channel of a database, and the notifications that a session has not
//! taken yet.
//!
//! A session of transaction mode has no server of its own that could listen for it, and one server would hear its own node only.
//! So there is one connection for each node and database in which somebody listens (`ear.rs`), shared by all who do. NOTIFY does
//! not travel in the replication stream: each notification is heard once, at the node where it was raised, and those of
//! one node keep their order.

mod ear;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use tandem_wire::{ErrorReport, encode};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use crate::{bound::Bound, health::HealthBoard, node::Nodes, session::registry::SessionEntry};

/// Bytes of notifications that a session may leave untaken.
pub(crate) const UNTAKEN_MAX: usize = 4 << 20;
/// How long a LISTEN waits until all nodes are listened to.
const HEARD_MAX: Duration = Duration::from_secs(3);
/// How long a session's own notifications are waited for.
const CAUGHT_UP_MAX: Duration = Duration::from_secs(1);
/// `NAMEDATALEN - 1`
const NAME_MAX: usize = 63;

/// The channel that a name in a LISTEN means: cut off as by PostgreSQL's `truncate_identifier`. None: it is no UTF-8.
pub(crate) fn channel(name: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(name).ok()?;
    let end = (0..=NAME_MAX).rfind(|end| name.is_char_boundary(*end));
    match name.len() > NAME_MAX {
        true => name.get(..end?),
        false => Some(name),
    }
}

/// Who listens, in all databases.
#[derive(Debug)]
pub(crate) struct Notifications {
    nodes: Nodes,
    health: Arc<HealthBoard>,
    /// `server_connect_timeout`
    bound: Bound,
    audiences: Mutex<HashMap<Box<str>, Arc<Audience>>>,
}

impl Notifications {
    /// Of nobody yet.
    pub(crate) fn new(nodes: Nodes, health: Arc<HealthBoard>, bound: Bound) -> Notifications {
        Notifications {
            nodes,
            health,
            bound,
            audiences: Mutex::default(),
        }
    }

    /// A session that begins to listen in a database; it is woken when there is something for it.
    pub(crate) fn subscribe(&self, database: &str, entry: &Arc<SessionEntry>) -> Subscription {
        let mut audiences = lock(&self.audiences);
        let audience = audiences.entry(database.into()).or_insert_with(|| {
            let audience = Arc::new(Audience::new(self.nodes.len()));
            for node in 0..self.nodes.len() {
                // It ends with the worker, which ends with the daemon; without listeners it has no connection.
                tokio::spawn(ear::listen(ear::Ear {
                    audience: Arc::clone(&audience),
                    database: database.to_owned(),
                    node,
                    nodes: Arc::clone(&self.nodes),
                    health: Arc::clone(&self.health),
                    bound: self.bound.clone(),
                }));
            }
            audience
        });
        Subscription {
            audience: Arc::clone(audience),
            mailbox: Arc::new(Mailbox {
                held: Mutex::default(),
                has_news: AtomicBool::new(false),
                entry: Arc::clone(entry),
            }),
            wanted: BTreeSet::new(),
        }
    }

    /// Returns when all nodes are listened to that serve, or the time is up; with the names of those that are not.
    pub(crate) fn heard(
        &self,
        subscription: &Subscription,
    ) -> impl Future<Output = Vec<String>> + Send + 'static {
        let audience = Arc::clone(&subscription.audience);
        let since = audience.since(&subscription.wanted);
        let nodes = self.nodes.iter().enumerate();
        let nodes: Vec<_> = nodes
            .map(|(index, node)| (node.name().to_owned(), self.health.usable(index)))
            .collect();
        async move {
            let deadline = Instant::now() + HEARD_MAX;
            let mut deaf = Vec::new();
            for ((name, usable), heard) in nodes.into_iter().zip(&audience.heard) {
                let mut heard = heard.subscribe();
                let hears = heard.wait_for(|heard| *heard >= since);
                let in_time = usable && matches!(timeout_at(deadline, hears).await, Ok(Ok(_)));
                if !in_time {
                    deaf.push(name);
                }
            }
            deaf
        }
    }
}

/// Who listens in one database.
#[derive(Debug)]
struct Audience {
    channels: Mutex<Channels>,
    /// Counts the changes of `channels`, from 1.
    changes: watch::Sender<u64>,
    /// By node: up to which change it is listened to; 0: not at all.
    heard: Vec<watch::Sender<u64>>,
    /// By node: how often somebody has asked whether all is heard that was raised there before, and which of that was answered.
    asked: Vec<watch::Sender<u64>>,
    answered: Vec<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Channels {
    change: u64,
    by_name: HashMap<Box<str>, Listeners>,
}

/// Who listens on a channel.
#[derive(Debug)]
struct Listeners {
    /// The change that brought it in.
    since: u64,
    mailboxes: Vec<Arc<Mailbox>>,
}

impl Audience {
    fn new(nodes: usize) -> Audience {
        let counters = || (0..nodes).map(|_| watch::Sender::new(0)).collect();
        Audience {
            channels: Mutex::default(),
            changes: watch::Sender::new(0),
            heard: counters(),
            asked: counters(),
            answered: counters(),
        }
    }

    /// The change that brought in the last of these.
    fn since(&self, names: &BTreeSet<Box<str>>) -> u64 {
        let channels = lock(&self.channels);
        let known = names.iter().filter_map(|name| channels.by_name.get(name));
        known.map(|listeners| listeners.since).max().unwrap_or(0)
    }

    /// The channels, and the last change of them.
    fn wanted(&self) -> (u64, BTreeSet<Box<str>>) {
        let channels = lock(&self.channels);
        (channels.change, channels.by_name.keys().cloned().collect())
    }

    fn add(&self, name: &str, mailbox: &Arc<Mailbox>) {
        let mut channels = lock(&self.channels);
        let next = channels.change + 1;
        let listeners = channels.by_name.entry(name.into());
        let listeners = listeners.or_insert_with(|| Listeners {
            since: next,
            mailboxes: Vec::new(),
        });
        listeners.mailboxes.push(Arc::clone(mailbox));
        if listeners.since == next {
            channels.change = next;
            drop(channels);
            self.changes.send_replace(next);
        }
    }

    fn remove(&self, name: &str, mailbox: &Arc<Mailbox>) {
        let mut channels = lock(&self.channels);
        let Some(listeners) = channels.by_name.get_mut(name) else {
            return;
        };
        listeners
            .mailboxes
            .retain(|each| !Arc::ptr_eq(each, mailbox));
        if listeners.mailboxes.is_empty() {
            channels.by_name.remove(name);
            channels.change += 1;
            let change = channels.change;
            drop(channels);
            self.changes.send_replace(change);
        }
    }

    /// A whole NotificationResponse on a channel.
    fn deliver(&self, name: &str, message: &[u8]) {
        let channels = lock(&self.channels);
        let listeners = channels.by_name.get(name);
        for mailbox in listeners.into_iter().flat_map(|known| &known.mailboxes) {
            mailbox.put(Some(name), message);
        }
    }

    /// Returns when all is heard that was raised on a node before now, or the time is up.
    async fn caught_up(&self, node: usize) {
        let (Some(heard), Some(asked), Some(answered)) = (
            self.heard.get(node),
            self.asked.get(node),
            self.answered.get(node),
        ) else {
            return;
        };
        if *heard.borrow() == 0 {
            return;
        }
        let mut answered = answered.subscribe();
        let mut number = 0;
        asked.send_modify(|asked| {
            *asked += 1;
            number = *asked;
        });
        let answers = answered.wait_for(|answered| *answered >= number);
        // Then it comes a little later.
        let _ = timeout(CAUGHT_UP_MAX, answers).await;
    }

    /// Something that all who listen have to know.
    fn tell_all(&self, report: &ErrorReport) {
        let mut message = BytesMut::new();
        encode::backend::notice(&mut message, report);
        let channels = lock(&self.channels);
        let mut told: Vec<&Arc<Mailbox>> = Vec::new();
        for mailbox in channels.by_name.values().flat_map(|known| &known.mailboxes) {
            if !told.iter().any(|each| Arc::ptr_eq(each, mailbox)) {
                mailbox.put(None, &message);
                told.push(mailbox);
            }
        }
    }
}

/// What a session has not taken yet.
#[derive(Debug)]
struct Mailbox {
    held: Mutex<Held>,
    has_news: AtomicBool,
    entry: Arc<SessionEntry>,
}

#[derive(Debug, Default)]
struct Held {
    /// What a committed transaction has made it listen on.
    listens: BTreeSet<Box<str>>,
    /// Whole messages for the client.
    messages: BytesMut,
    /// There were more than may be.
    is_too_much: bool,
}

impl Mailbox {
    /// A message on a channel, or on none.
    fn put(&self, channel: Option<&str>, message: &[u8]) {
        let mut held = lock(&self.held);
        if held.is_too_much || channel.is_some_and(|channel| !held.listens.contains(channel)) {
            return;
        }
        let is_too_much = held.messages.len() + message.len() > UNTAKEN_MAX;
        if is_too_much {
            held.is_too_much = true;
            held.messages = BytesMut::new();
        } else {
            held.messages.extend_from_slice(message);
        }
        drop(held);
        // One that is in a transaction has left the news where they are, but must hear of this.
        if !self.has_news.swap(true, Ordering::AcqRel) || is_too_much {
            self.entry.wake();
        }
    }
}

/// A session has left more untaken than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMuch;

/// A session that listens. Dropped, it does not any more.
#[derive(Debug)]
pub(crate) struct Subscription {
    audience: Arc<Audience>,
    mailbox: Arc<Mailbox>,
    /// What the nodes are listened to for its sake.
    wanted: BTreeSet<Box<str>>,
}

impl Subscription {
    /// Whether the nodes are listened to for this channel already.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.wanted.contains(name)
    }

    /// Whether that is so for these channels and no others.
    pub(crate) fn wants_only(&self, names: &BTreeSet<Box<str>>) -> bool {
        self.wanted == *names
    }

    /// Has the nodes listened to. Nothing is taken for the session before [`listens`](Self::listens) says so.
    pub(crate) fn want(&mut self, name: &str) {
        if self.wanted.insert(name.into()) {
            self.audience.add(name, &self.mailbox);
        }
    }

    /// The session listens on these from now on. `is_settled`: no LISTEN of it is under way.
    pub(crate) fn listens(&mut self, names: &BTreeSet<Box<str>>, is_settled: bool) {
        lock(&self.mailbox.held).listens.clone_from(names);
        if is_settled {
            self.wanted.retain(|name| {
                let stays = names.contains(name);
                if !stays {
                    self.audience.remove(name, &self.mailbox);
                }
                stays
            });
        }
    }

    /// Returns when the session can take what it has raised on a node, or the time is up.
    pub(crate) fn caught_up(&self, node: usize) -> impl Future<Output = ()> + Send + 'static {
        let audience = Arc::clone(&self.audience);
        async move { audience.caught_up(node).await }
    }

    /// Whether there is anything to take.
    pub(crate) fn has_news(&self) -> bool {
        self.mailbox.has_news.load(Ordering::Acquire)
    }

    /// What the client is to be sent: whole messages.
    ///
    /// # Errors
    /// [`TooMuch`] when some were thrown away.
    pub(crate) fn take(&self) -> Result<BytesMut, TooMuch> {
        self.mailbox.has_news.store(false, Ordering::Release);
        let mut held = lock(&self.mailbox.held);
        match held.is_too_much {
            true => {
                // Whoever looks next ends the session.
                self.mailbox.has_news.store(true, Ordering::Release);
                Err(TooMuch)
            }
            false => Ok(std::mem::take(&mut held.messages)),
        }
    }

    /// Whether some were thrown away.
    pub(crate) fn is_too_much(&self) -> bool {
        self.has_news() && lock(&self.mailbox.held).is_too_much
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        for name in &self.wanted {
            self.audience.remove(name, &self.mailbox);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that can panic runs under these locks, so a poisoned value is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::registry::Registry;

    fn subscription(audience: &Arc<Audience>) -> Subscription {
        let registry = Arc::new(Registry::default());
        let registered = registry.enter(4).expect("entered");
        Subscription {
            audience: Arc::clone(audience),
            mailbox: Arc::new(Mailbox {
                held: Mutex::default(),
                has_news: AtomicBool::new(false),
                entry: Arc::clone(registered.entry()),
            }),
            wanted: BTreeSet::new(),
        }
    }

    fn names(names: &[&str]) -> BTreeSet<Box<str>> {
        names.iter().map(|name| (*name).into()).collect()
    }

    #[test]
    fn a_session_takes_what_is_raised_on_its_channels_once_and_in_order() {
        let audience = Arc::new(Audience::new(1));
        let (mut one, mut two) = (subscription(&audience), subscription(&audience));
        one.want("a");
        one.want("b");
        two.want("a");
        audience.deliver("a", b"early");
        assert!(!one.has_news(), "its LISTEN is not committed");
        one.listens(&names(&["a", "b"]), true);
        two.listens(&names(&["a"]), true);
        for (channel, message) in [("a", b"1"), ("b", b"2"), ("c", b"3"), ("a", b"4")] {
            audience.deliver(channel, message);
        }
        assert_eq!(one.take().as_deref(), Ok(&b"124"[..]));
        assert_eq!(two.take().as_deref(), Ok(&b"14"[..]));
        assert!(!one.has_news() && !two.has_news());
        one.listens(&names(&["b"]), true);
        audience.deliver("a", b"5");
        assert!(!one.has_news() && two.has_news());
    }

    #[test]
    fn nodes_are_listened_to_for_those_who_listen_and_no_longer() {
        let audience = Arc::new(Audience::new(1));
        let (mut one, mut two) = (subscription(&audience), subscription(&audience));
        one.want("a");
        let (first, _) = audience.wanted();
        two.want("a");
        two.want("b");
        assert_eq!(audience.since(&one.wanted), first, "that is heard already");
        assert_eq!(audience.wanted(), (first + 1, names(&["a", "b"])));
        drop(one);
        assert_eq!(audience.wanted().1, names(&["a", "b"]));
        // What a LISTEN under way wants stays.
        two.listens(&names(&["a"]), false);
        assert_eq!(audience.wanted().1, names(&["a", "b"]));
        two.listens(&names(&["a"]), true);
        assert_eq!(audience.wanted().1, names(&["a"]));
        drop(two);
        assert!(audience.wanted().1.is_empty());
    }

    #[test]
    fn who_takes_nothing_keeps_a_bounded_amount() {
        let audience = Arc::new(Audience::new(1));
        let mut session = subscription(&audience);
        session.want("a");
        session.listens(&names(&["a"]), true);
        let message = [0; 4096];
        for _ in 0..UNTAKEN_MAX / message.len() {
            audience.deliver("a", &message);
        }
        assert!(!session.is_too_much());
        audience.deliver("a", b"x");
        assert!(session.is_too_much());
        assert_eq!(session.take(), Err(TooMuch));
    }

    #[test]
    fn all_who_listen_are_told_of_a_gap_once() {
        let audience = Arc::new(Audience::new(1));
        let mut session = subscription(&audience);
        session.want("a");
        session.want("b");
        audience.tell_all(&ErrorReport::new("WARNING", "01000", "why"));
        let told = session.take().expect("little");
        let texts = told.windows(3).filter(|three| *three == b"why");
        assert_eq!(texts.count(), 1);
    }

    #[test]
    fn a_channels_name_is_cut_off_as_by_the_server() {
        let long = "x".repeat(70);
        assert_eq!(channel(long.as_bytes()), Some(&long[..63]));
        let wide = "é".repeat(40);
        assert_eq!(channel(wide.as_bytes()), Some(&wide[..62]));
        assert_eq!(channel(b"short"), Some("short"));
        assert_eq!(channel(b"\xff"), None);
    }
}
