//! Owns which channels a session listens on, as its transactions make it, and how it comes to hear of notifications.
//!
//! The session's server is sent UNLISTEN instead of LISTEN: it takes it wherever it would take the other, in a transaction that
//! may still fail, and hears nothing itself. Before that the nodes are listened to for the session (`crate::notifications`), so
//! that whoever is told that LISTEN has succeeded hears whatever is raised from then on, on any node.
//!
//! Where a text cannot be looked into, or the client has another encoding than UTF-8, LISTEN goes as it is, and keeps the
//! session on its server (`Pin::Listen`).

use std::{
    collections::BTreeSet,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::BytesMut;
use tandem_routing_rules::state::{Discard, Effect, Effects, Names, Pins, Status, Transaction};
use tandem_wire::encode;

use super::{
    Shared,
    end::{Boundary, End},
    program::{Instead, Program, Step},
    registry::Activity,
    report,
    task::{Place, Task},
};
use crate::notifications::{Subscription, TooMuch, channel};

/// What a transaction does to the channels, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Savepoint(Vec<u8>),
    Listen(Box<str>),
    Unlisten(Box<str>),
    UnlistenAll,
}

/// The channels that a session listens on: LISTEN and UNLISTEN take effect when their transaction is committed
/// (`AtCommit_Notify` and `AtSubAbort_Notify` in async.c). Pure.
#[derive(Debug, Default)]
pub(super) struct Listening {
    now: BTreeSet<Box<str>>,
    /// Of the transaction under way.
    actions: Vec<Action>,
    has_failed: bool,
    has_changed: bool,
}

impl Listening {
    /// Whether a statement that does this concerns it.
    pub(super) fn concerns(&self, step: &Step) -> bool {
        match &step.effects.effect {
            Effect::Listen(_) => step.instead.is_some(),
            Effect::Unlisten(_) | Effect::Discard(Discard::All) => {
                !self.now.is_empty() || !self.actions.is_empty()
            }
            _ => false,
        }
    }

    /// Whether the transaction under way changes it.
    pub(super) fn is_changing(&self) -> bool {
        let changes = |action: &Action| !matches!(action, Action::Savepoint(_));
        self.actions.iter().any(changes)
    }

    /// A statement has succeeded.
    pub(super) fn apply(&mut self, step: &Step) {
        let text = |name: &[u8]| channel(name).map(Into::into);
        match &step.effects.effect {
            Effect::Listen(name) if step.instead.is_some() => {
                self.actions.extend(text(name).map(Action::Listen));
            }
            Effect::Unlisten(Names::One(name)) => {
                self.actions.extend(text(name).map(Action::Unlisten));
            }
            Effect::Unlisten(Names::All) | Effect::Discard(Discard::All) => {
                self.actions.push(Action::UnlistenAll);
            }
            Effect::Transaction(transaction) => self.transaction(transaction),
            _ => {}
        }
    }

    fn transaction(&mut self, transaction: &Transaction) {
        let place = |actions: &[Action], name: &[u8]| {
            let is_it =
                |action: &Action| matches!(action, Action::Savepoint(known) if known == name);
            actions.iter().rposition(is_it)
        };
        match transaction {
            Transaction::Savepoint(name) => self.actions.push(Action::Savepoint(name.clone())),
            Transaction::RollbackTo(name) => {
                self.has_failed = false;
                // One that is not known stands before all of these.
                let kept = place(&self.actions, name).map_or(0, |place| place + 1);
                self.actions.truncate(kept);
            }
            Transaction::Release(name) => {
                if let Some(place) = place(&self.actions, name) {
                    let released = self.actions.split_off(place);
                    let is_left = |action: &Action| !matches!(action, Action::Savepoint(_));
                    self.actions.extend(released.into_iter().filter(is_left));
                }
            }
            Transaction::Commit { .. } => self.end(),
            Transaction::Rollback { .. } | Transaction::Prepare(_) => {
                self.has_failed = true;
                self.end();
            }
            _ => {}
        }
    }

    /// A statement has failed.
    pub(super) fn failed(&mut self) {
        self.has_failed = true;
    }

    /// The server is ready.
    pub(super) fn ready(&mut self, status: Status) {
        if status == Status::Idle {
            self.end();
        }
    }

    /// The transaction is over.
    fn end(&mut self) {
        let actions = std::mem::take(&mut self.actions);
        if std::mem::take(&mut self.has_failed) {
            return;
        }
        for action in actions {
            self.has_changed |= match action {
                Action::Savepoint(_) => false,
                Action::Listen(name) => self.now.insert(name),
                Action::Unlisten(name) => self.now.remove(&name),
                Action::UnlistenAll => !std::mem::take(&mut self.now).is_empty(),
            };
        }
    }

    /// The channels, and whether they are others since the last call.
    pub(super) fn now(&mut self) -> (&BTreeSet<Box<str>>, bool) {
        (&self.now, std::mem::take(&mut self.has_changed))
    }
}

/// Whether a statement listens on a channel.
pub(super) fn listens(step: &Step) -> bool {
    matches!(step.effects.effect, Effect::Listen(_))
}

/// Whether a text listens on a channel.
pub(super) fn has_listen(program: Option<&Program>) -> bool {
    program.is_some_and(|program| program.iter().any(listens))
}

/// What is sent instead of a LISTEN, and the step that it is then. None: it is none, or its channel has no name that could be
/// told to all nodes.
pub(super) fn shared(text: &[u8], step: &Step) -> Option<(Vec<u8>, Step)> {
    let Effect::Listen(name) = &step.effects.effect else {
        return None;
    };
    channel(name)?;
    let (mut here, mut there) = (step.effects.clone(), Effects::default());
    here.pins = Pins::default();
    there.effect = Effect::Unlisten(Names::One(name.clone()));
    let instead = Instead {
        effects: there,
        tag: "LISTEN",
    };
    let shared = Step {
        effects: here,
        instead: Some(Box::new(instead)),
    };
    Some(([b"UN", text].concat(), shared))
}

/// What a session hears of.
#[derive(Default)]
pub(super) struct Hearing {
    pub(super) listening: Listening,
    subscription: Option<Subscription>,
    /// The client's next message waits until the nodes are listened to.
    wait: Option<Pin<Box<dyn Future<Output = Vec<String>> + Send>>>,
    /// The client's transaction has raised notifications, as far as its text says.
    pub(super) raised: bool,
    /// The client is told that the server is ready when it has been told of those.
    own: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// What it listens on, if the nodes are not listened to for that yet.
    asked: Vec<Box<str>>,
}

impl Hearing {
    /// Whether the client is still to be told that its server is ready.
    pub(super) fn owes_ready(&self) -> bool {
        self.own.is_some()
    }
}

impl fmt::Debug for Hearing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut hearing = f.debug_struct("Hearing");
        hearing.field("subscription", &self.subscription).finish()
    }
}

impl Task {
    /// Whether a message that does this has to wait until the nodes are listened to.
    pub(super) fn waits_to_hear(&mut self, program: Option<&Program>) -> bool {
        let steps = program.into_iter().flat_map(|program| program.iter());
        let mut asked = Vec::new();
        for step in steps {
            let Effect::Listen(name) = &step.effects.effect else {
                continue;
            };
            let known = self.state.hearing.as_ref();
            let known = known.and_then(|hearing| hearing.subscription.as_ref());
            let is_known = |name: &&str| known.is_some_and(|known| known.wants(name));
            asked.extend(channel(name).filter(|name| !is_known(name)).map(Into::into));
        }
        if asked.is_empty() {
            return false;
        }
        self.state.hearing.get_or_insert_default().asked = asked;
        true
    }

    /// Whether a portal has to wait for that.
    pub(super) fn portal_waits_to_hear(&mut self, portal: &[u8]) -> bool {
        let program = self.portals.get(portal);
        let program = program.and_then(|bound| bound.program.as_ref());
        let is_shared = |step: &Step| listens(step) && step.instead.is_some();
        let program = program.filter(|program| program.iter().any(is_shared));
        let program = program.cloned();
        program.is_some() && self.waits_to_hear(program.as_ref())
    }

    /// What the client's next message waits for; `Some(true)`: for nothing any more, and there is something for the client.
    pub(super) fn waits_for_news(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Option<bool> {
        let is_cut = self.boundary() == Boundary::Cut;
        let hearing = self.state.hearing.as_mut()?;
        if let Some(own) = &mut hearing.own {
            if own.as_mut().poll(cx).is_pending() {
                return Some(false);
            }
            hearing.own = None;
            let news = self.news();
            let out = self.to_client.buffer();
            out.extend_from_slice(&news.unwrap_or_default());
            encode::backend::ready_for_query(out, b'I');
            return Some(true);
        }
        if !hearing.asked.is_empty() {
            let subscription = hearing.subscription.get_or_insert_with(|| {
                let database = &self.pool.key().database;
                shared
                    .notifications
                    .subscribe(database, self.registered.entry())
            });
            for name in std::mem::take(&mut hearing.asked) {
                subscription.want(&name);
            }
            hearing.wait = Some(Box::pin(shared.notifications.heard(subscription)));
        }
        if is_cut && hearing.wait.is_some() {
            // Nothing may come between the parts of a message; what the server sends next wakes the session.
            return Some(false);
        }
        let Poll::Ready(deaf) = hearing.wait.as_mut()?.as_mut().poll(cx) else {
            return Some(false);
        };
        hearing.wait = None;
        if deaf.is_empty() {
            return None;
        }
        let report = report::not_heard(&deaf);
        encode::backend::notice(self.to_client.buffer(), &report);
        Some(true)
    }

    /// The server is ready. Whether the client is told so later, because it raised what it will hear itself, and PostgreSQL
    /// would tell it of that first.
    pub(super) fn is_told_later(&mut self) -> bool {
        let (Some(hearing), Place::Server(server)) = (&mut self.state.hearing, &self.place) else {
            return false;
        };
        let raised = std::mem::take(&mut hearing.raised);
        let hears = !hearing.listening.now.is_empty();
        let subscription = hearing.subscription.as_ref();
        let Some(subscription) = subscription.filter(|_| raised && hears) else {
            return false;
        };
        let is_settled = server.owed.is_settled();
        if is_settled {
            hearing.own = Some(Box::pin(subscription.caught_up(server.face.node)));
        }
        is_settled
    }

    /// A transaction is over: what it has made of the channels counts.
    pub(super) fn note_channels(&mut self, is_settled: bool) {
        let Some(hearing) = &mut self.state.hearing else {
            return;
        };
        let Hearing {
            listening,
            subscription,
            ..
        } = &mut **hearing;
        if let Some(subscription) = subscription {
            let (now, has_changed) = listening.now();
            if has_changed || is_settled && !subscription.wants_only(now) {
                subscription.listens(now, is_settled);
            }
        }
    }

    /// What is to be told in front of a ReadyForQuery outside of a transaction.
    pub(super) fn news(&self) -> Option<BytesMut> {
        let subscription = self.state.hearing.as_ref()?.subscription.as_ref()?;
        if !subscription.has_news() || !self.to_client.is_empty() {
            return None;
        }
        subscription.take().ok()
    }

    /// Tells the client of notifications, if it is idle, as PostgreSQL does. Whether there were any.
    ///
    /// # Errors
    /// It has left more of them untaken than it may.
    pub(super) fn tell_news(&mut self) -> Result<bool, End> {
        let subscription = self.state.hearing.as_ref();
        let Some(subscription) = subscription.and_then(|hearing| hearing.subscription.as_ref())
        else {
            return Ok(false);
        };
        if !subscription.has_news() {
            return Ok(false);
        }
        if subscription.is_too_much() {
            return Err(End::Untaken);
        }
        let is_free = self.to_client.is_empty() && self.boundary() == Boundary::Clean;
        if !is_free || self.activity() != Activity::Idle {
            return Ok(false);
        }
        let news = subscription.take().map_err(|TooMuch| End::Untaken)?;
        self.to_client.buffer().extend_from_slice(&news);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::program::program, *};

    /// Plays statements that succeed, then what the server is.
    fn play(listening: &mut Listening, text: &str, status: Option<Status>) {
        for step in program(text.as_bytes())
            .iter()
            .flat_map(|steps| steps.iter())
        {
            let step = shared(text.as_bytes(), step).map_or_else(|| step.clone(), |(_, step)| step);
            listening.apply(&step);
        }
        if let Some(status) = status {
            listening.ready(status);
        }
    }

    fn now(listening: &mut Listening) -> String {
        let (now, _) = listening.now();
        now.iter().map(|name| &**name).collect::<Vec<_>>().join(" ")
    }

    const IDLE: Option<Status> = Some(Status::Idle);
    const BLOCK: Option<Status> = Some(Status::InTransaction);

    #[test]
    fn channels_change_when_their_transaction_is_committed() {
        let mut session = Listening::default();
        play(&mut session, "LISTEN a", IDLE);
        assert_eq!(now(&mut session), "a");
        play(&mut session, "BEGIN", BLOCK);
        play(&mut session, "LISTEN \"B\"; LISTEN C", BLOCK);
        play(&mut session, "UNLISTEN a", BLOCK);
        assert_eq!(now(&mut session), "a");
        play(&mut session, "COMMIT", IDLE);
        assert_eq!(now(&mut session), "B c");
        play(&mut session, "BEGIN; LISTEN d; ROLLBACK", IDLE);
        assert_eq!(now(&mut session), "B c");
        play(&mut session, "UNLISTEN *; LISTEN e", IDLE);
        assert_eq!(now(&mut session), "e");
        play(&mut session, "DISCARD ALL", IDLE);
        assert_eq!(now(&mut session), "");
    }

    #[test]
    fn what_fails_changes_nothing() {
        let mut session = Listening::default();
        play(&mut session, "LISTEN a", None);
        session.failed();
        session.ready(Status::Idle);
        assert_eq!(now(&mut session), "");
        play(&mut session, "BEGIN; LISTEN a", BLOCK);
        session.failed();
        session.ready(Status::Failed);
        // The server answers it with ROLLBACK.
        play(&mut session, "COMMIT", IDLE);
        assert_eq!(now(&mut session), "");
        play(&mut session, "LISTEN b; COMMIT", None);
        session.failed();
        session.ready(Status::Idle);
        assert_eq!(now(&mut session), "b", "it was committed before");
    }

    #[test]
    fn a_savepoint_from_before_the_first_listen_takes_it_back() {
        // One that has listened before has seen the savepoint.
        let mut session = Listening::default();
        play(&mut session, "LISTEN a; ROLLBACK TO before", BLOCK);
        play(&mut session, "COMMIT", IDLE);
        assert_eq!(now(&mut session), "");
    }

    #[test]
    fn savepoints_take_back_their_part() {
        let mut session = Listening::default();
        play(
            &mut session,
            "BEGIN; LISTEN a; SAVEPOINT s; LISTEN b",
            BLOCK,
        );
        session.failed();
        session.ready(Status::Failed);
        play(
            &mut session,
            "ROLLBACK TO s; LISTEN c; SAVEPOINT t; LISTEN d; RELEASE s",
            BLOCK,
        );
        play(&mut session, "COMMIT", IDLE);
        assert_eq!(now(&mut session), "a c d");
    }

    #[test]
    fn the_server_is_told_the_opposite_in_the_same_words() {
        let steps = program(b"LISTEN \"A b\"").expect("it does something");
        let (text, step) = shared(b"LISTEN \"A b\"", &steps[0]).expect("a LISTEN");
        assert_eq!(text, b"UNLISTEN \"A b\"");
        assert!(step.effects.pins.is_empty() && !steps[0].effects.pins.is_empty());
        let instead = program(&text).expect("it does something");
        assert_eq!(step.on_server().effect, instead[0].effects.effect);
        assert!(shared(b"SELECT 1", &program(b"UNLISTEN a").unwrap()[0]).is_none());
    }
}
