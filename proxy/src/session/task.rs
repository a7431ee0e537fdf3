//! Owns a client between its login and its goodbye: one task with both sockets, which has a server only while it needs one.
//!
//! Each wake-up lets both directions move as far as they can. Reading happens into buffers of the worker thread; a client
//! keeps only what could not be passed on: a message that is not complete, or what a slow receiver has not taken.
//!
//! **Invariant:** a message of up to [`whole_max`] bytes is written only when all of it has arrived, so a sender that dies leaves
//! its receiver at the start of a message, unless a larger one was on its way.

use std::{
    cell::RefCell,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::{Buf, BytesMut};
use tandem_wire::{ErrorReport, Scanner, Sender, Stream, encode};
use tokio::{io::AsyncWrite, task::coop::has_budget_remaining};

use super::{
    Shared,
    consistency::Behind,
    end::{Boundary, End},
    inbound::StopAt,
    input::{Input, READ_MAX, keep, read_some},
    outbox::Outbox,
    owed::Attempt,
    parked::Parked,
    prepared::ClientStatements,
    profile::Profile,
    ready::{Errand, Portals, Unnamed},
    registry::{Activity, Registered, Stop},
    splice::Splice,
    state::{Hold, State},
    unit::{Beside, Routed},
};
use crate::{
    bound::Bound,
    config::PoolMode,
    console::clients::About,
    node::CountedSession,
    pool::{Pool, Server, Wait, add},
    timing::Moment,
};

/// Messages up to this size are forwarded whole; larger ones are streamed.
pub(super) const WHOLE_MAX: usize = 64 * 1024;
/// The same for statements and descriptions, which are looked into.
const WHOLE_STATEMENT_MAX: usize = 1024 * 1024;

thread_local! {
    /// Taken only inside of one poll of one task, never across an await.
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        input: Input::default(),
        output: BytesMut::with_capacity(WHOLE_MAX),
    });
}

struct Scratch {
    input: Input,
    output: BytesMut,
}

/// Up to which size a message is forwarded whole.
pub(super) fn whole_max(tag: u8, from: Sender) -> usize {
    match (from, tag) {
        (Sender::Client, b'Q' | b'P') | (Sender::Server, b'T' | b't') => WHOLE_STATEMENT_MAX,
        _ => WHOLE_MAX,
    }
}

/// What a client has of the node.
#[derive(Debug)]
pub(super) enum Place {
    /// Nothing, and needs nothing.
    Idle,
    /// Nothing yet: its node is to show first what the session has seen elsewhere.
    Behind(Box<Behind>),
    /// Nothing yet: something has to change first.
    Parked(Box<Parked>),
    /// A place in the queue.
    Waiting(Wait),
    /// A server of its own.
    Server(Box<Server>),
}

/// Whether a client has said that it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goodbye {
    No,
    /// Nothing more will come from it; it may still read.
    Said,
    /// So the server was told, which waits for more.
    PassedOn,
}

/// What becomes of messages that the proxy has refused by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusing {
    No,
    /// The next message is the refused one: thrown away, and answered with ReadyForQuery.
    One,
    /// All up to the next Sync are thrown away.
    ToSync,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Task {
    pub(super) client: Stream,
    pub(super) up: Scanner,
    /// Arrived, and not passed on: the start of a message, or whole ones while there is no server.
    pub(super) from_client: BytesMut,
    /// What the client has not taken yet; whole messages but for one that is streamed.
    pub(super) to_client: Outbox,
    pub(super) place: Place,
    pub(super) pool: Arc<Pool>,
    pub(super) counted: CountedSession,
    pub(super) registered: Registered,
    pub(super) statements: ClientStatements,
    pub(super) unnamed: Unnamed,
    pub(super) state: State,
    /// What the proxy does with the server: nothing of the client's goes there before.
    pub(super) errand: Errand,
    /// How many servers in a row broke before they were ready that nobody had used before.
    pub(super) broken: u8,
    /// What others see of why it keeps its server; none while it has none.
    pub(super) shown_hold: Option<Hold>,
    /// What is bound.
    pub(super) portals: Portals,
    pub(super) about: Arc<About>,
    pub(super) refusing: Refusing,
    /// The message being streamed from the client goes nowhere.
    pub(super) dropping_up: bool,
    /// The message being streamed from the server goes nowhere.
    pub(super) dropping_down: bool,
    pub(super) mode: PoolMode,
    /// Each unit of its work goes to a node of its own; none: all of it goes to one.
    pub(super) routed: Option<Box<Routed>>,
    /// When the transaction began, while one is under way.
    pub(super) asked: Option<Moment>,
    /// Since when the server has something to do.
    pub(super) sent: Option<Moment>,
    /// Statements that take as long are logged; zero: none.
    pub(super) slow_statement: Bound,
    /// The beginning of the statement that the server works on, while slow ones are logged.
    pub(super) text: Box<[u8]>,
    /// `from_client` holds a whole message.
    pub(super) stalled: bool,
    goodbye: Goodbye,
    /// Numbers the attempts of this session to prepare something; the session's number is in the upper half.
    attempts: Attempt,
    waker: Option<Waker>,
    /// Sockets of which the last read found nothing. Their next event wakes the task: no need to ask them before it.
    pub(super) dry: Dry,
    published: Activity,
}

/// See [`Task::dry`].
#[derive(Debug, Default)]
pub(super) struct Dry {
    client: bool,
    pub(super) server: bool,
}

/// What a client begins with.
pub(super) struct Begin {
    pub(super) client: Stream,
    pub(super) from_client: BytesMut,
    pub(super) server: Option<Box<Server>>,
    pub(super) profile: Profile,
    pub(super) about: Arc<About>,
    pub(super) pool: Arc<Pool>,
    pub(super) counted: CountedSession,
    pub(super) registered: Registered,
    pub(super) session: u32,
    pub(super) mode: PoolMode,
    pub(super) routed: Option<Box<Routed>>,
    pub(super) slow_statement: Bound,
}

impl Task {
    /// A client that has just got its first ReadyForQuery. `server`: the one that it keeps.
    pub(super) fn new(begin: Begin) -> Task {
        let mut task = Task {
            client: begin.client,
            up: Scanner::new(Sender::Client),
            stalled: !begin.from_client.is_empty(),
            // An idle client keeps no buffer, not even the login's.
            from_client: Some(begin.from_client)
                .filter(|rest| !rest.is_empty())
                .unwrap_or_default(),
            to_client: Outbox::default(),
            place: Place::Idle,
            routed: begin.routed,
            pool: begin.pool,
            counted: begin.counted,
            registered: begin.registered,
            statements: ClientStatements::default(),
            unnamed: Unnamed::default(),
            state: State::new(
                begin.profile,
                begin.session,
                (begin.mode == PoolMode::Session).then_some(Hold::Mode),
            ),
            errand: Errand::None,
            broken: 0,
            shown_hold: None,
            portals: Portals::default(),
            about: begin.about,
            refusing: Refusing::No,
            dropping_up: false,
            dropping_down: false,
            mode: begin.mode,
            asked: None,
            sent: None,
            slow_statement: begin.slow_statement,
            text: Box::default(),
            goodbye: Goodbye::No,
            attempts: Attempt::from(begin.session) << 32,
            waker: None,
            dry: Dry::default(),
            published: Activity::Idle,
        };
        if let Some(server) = begin.server {
            task.take(server);
        }
        task
    }

    /// Serves the client until the session ends.
    pub(super) async fn run(&mut self, shared: &Shared) -> End {
        poll_fn(|cx| self.poll(cx, shared)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Poll<End> {
        // Registering takes a lock, and the waker of a task does not change: once is enough.
        let known = self.waker.as_ref();
        if known.is_some_and(|known| known.will_wake(cx.waker())) {
            self.dry.client &= !self.client.has_news();
            self.dry.server &=
                matches!(&self.place, Place::Server(server) if !server.stream.has_news());
        } else {
            self.registered.entry().register(cx.waker());
            self.waker = Some(cx.waker().clone());
            self.dry = Dry::default();
        }
        loop {
            match self.turn(cx, shared) {
                Ok(true) => {}
                Ok(false) => break,
                Err(end) => return Poll::Ready(end),
            }
        }
        if !has_budget_remaining() {
            // Others have their turn. A read that was put off for that is not registered to hear of the next byte.
            self.dry = Dry::default();
        }
        let activity = self.activity();
        if activity != self.published {
            self.published = activity;
            self.registered.entry().publish(activity);
        }
        if self.registered.entry().is_awaited() && self.has_caught_up() {
            self.registered.entry().has_caught_up();
        }
        if self.may_stop(self.registered.entry().stop(), activity) {
            return Poll::Ready(End::Stopped);
        }
        Poll::Pending
    }

    /// Lets both directions move once. Whether one did.
    fn turn(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Result<bool, End> {
        if self.waits_for_numbers(cx) {
            return Ok(false);
        }
        let down = self.down(cx, shared)?;
        // Behind what was held for the client: nobody wakes the session again for these.
        let told = self.tell_news()?;
        let up = self.up(cx, shared)?;
        Ok(told || down || up)
    }

    // From the server to the client.

    fn down(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Result<bool, End> {
        if !self.flush_client(cx)? {
            return Ok(false);
        }
        match &self.place {
            Place::Idle => Ok(false),
            Place::Behind(_) => self.behind_goes_on(cx, shared),
            Place::Parked(_) => self.parked_goes_on(cx, shared),
            Place::Waiting(_) => self.wait_goes_on(cx, shared),
            Place::Server(_) => match self.read_answering(cx, shared) {
                // The client need not know: nothing of its was there.
                Err(end) if self.is_untouched() && end.is_of_server() => {
                    self.replace_server(end, cx, shared)?;
                    Ok(true)
                }
                Err(end) if self.may_survive(&end) => {
                    self.lose_server(end, shared)?;
                    Ok(true)
                }
                read => read,
            },
        }
    }

    pub(super) fn read_server(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let again = self.looks_again();
        if self.dry.server && !again {
            return Ok(false);
        }
        SCRATCH.with_borrow_mut(|Scratch { input, output }| {
            let Place::Server(server) = &mut self.place else {
                return Ok(false);
            };
            input.begin(&server.received);
            if !again {
                let read = match input.read(cx, &mut server.stream) {
                    Poll::Pending => {
                        self.dry.server = true;
                        return Ok(false);
                    }
                    Poll::Ready(read) => read,
                };
                match read {
                    Ok(0) => return Err(self.server_gone(None)),
                    Err(error) => return Err(self.server_gone(Some(error))),
                    Ok(more) => add(&server.face.counters.sent, more as u64),
                }
            }
            let input = input.bytes();
            let mut splice = Splice::new(output);
            let discards = self.errand == Errand::Discard;
            let (taken, end) = self.on_server_bytes(input, &mut splice);
            let told = splice.bytes(input);
            if let Place::Server(server) = &mut self.place
                && !told.is_empty()
            {
                server.trace.is_heard = true;
            }
            self.write_client(cx, told)?;
            if let Some(end) = end {
                return Err(end);
            }
            if let Place::Server(server) = &mut self.place {
                keep(&mut server.received, input, taken);
            }
            self.go_on_readying(cx);
            // What the server was made ready for comes first.
            if !self.stalled {
                self.release_if_done();
            }
            if discards && self.errand == Errand::None {
                self.restore_settings(cx);
            }
            Ok(true)
        })
    }

    fn server_gone(&self, error: Option<std::io::Error>) -> End {
        match &self.place {
            Place::Server(server) if server.owed.is_fatal() => End::ServerFatal,
            _ if self.goodbye != Goodbye::No => End::Client,
            _ => End::ServerLost(error),
        }
    }

    /// Writes what is held for the client. Whether all of it is on its way.
    fn flush_client(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let Task {
            client, to_client, ..
        } = self;
        if to_client.is_empty() {
            return Ok(true);
        }
        to_client.flush(cx, client).map_err(End::ClientLost)
    }

    /// Writes to the client behind what is held for it; keeps what it does not take.
    fn write_client(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Result<(), End> {
        let Task {
            client, to_client, ..
        } = self;
        if bytes.is_empty() {
            return Ok(());
        }
        to_client.write(cx, client, bytes).map_err(End::ClientLost)
    }

    // From the client to the server.

    fn up(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Result<bool, End> {
        match &mut self.place {
            Place::Waiting(_) | Place::Behind(_) | Place::Parked(_) => return Ok(false),
            Place::Server(server) if !server.unsent.is_empty() => {
                let Server { stream, unsent, .. } = &mut **server;
                match unsent.flush(cx, stream) {
                    Ok(true) => {}
                    Ok(false) => return Ok(false),
                    // What the server has to say about it comes by the other direction.
                    Err(_) => spend(server),
                }
                self.release_if_done();
            }
            Place::Server(_) | Place::Idle => {}
        }
        if let Some(goes_on) = self.waits_for_news(cx, shared) {
            return Ok(goes_on);
        }
        if self.errand.is_under_way() || self.is_searching(cx) {
            return Ok(false);
        }
        if self.goodbye != Goodbye::No && !self.stalled {
            return self.leave(cx);
        }
        if self.to_client.len() > READ_MAX {
            // Who does not take the answers gets no more of them.
            return Ok(false);
        }
        self.read_client(cx, shared)
    }

    fn read_client(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Result<bool, End> {
        if self.dry.client && !self.stalled {
            return Ok(false);
        }
        SCRATCH.with_borrow_mut(|Scratch { input, output }| {
            // A large message is collected where it is; anything else in the thread's buffer.
            let large = self.from_client.len() > READ_MAX;
            let mut own = BytesMut::new();
            if large {
                own = std::mem::take(&mut self.from_client);
            } else {
                input.begin(&self.from_client);
            }
            if !std::mem::take(&mut self.stalled) {
                let read = match large {
                    true => read_some(cx, &mut self.client, &mut own),
                    false => input.read(cx, &mut self.client),
                };
                match read {
                    Poll::Ready(Ok(0)) => {
                        self.goodbye = Goodbye::Said;
                        self.from_client = BytesMut::new();
                        return Ok(true);
                    }
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => return Err(End::ClientLost(error)),
                    Poll::Pending => {
                        self.dry.client = true;
                        if large {
                            self.from_client = own;
                        }
                        return Ok(false);
                    }
                }
            }
            let buffer = if large { &own } else { input.bytes() };
            let mut taken = 0;
            let stop = loop {
                let rest = buffer.get(taken..).unwrap_or_default();
                let mut splice = Splice::new(output);
                let (before, had) = (self.in_flight(), matches!(self.place, Place::Server(_)));
                let (more, stop) = self.on_client_bytes(rest, &mut splice, shared);
                if !before && self.in_flight() {
                    self.note_sent();
                }
                self.write_server(cx, splice.bytes(rest));
                if had {
                    self.hold_sent(rest.get(..more).unwrap_or_default());
                }
                taken += more;
                if !matches!(stop, Some(StopAt::NeedServer)) {
                    break stop;
                }
                self.seek(cx, shared)?;
                // Most get one at once, which is ready for them: what they have sent need not be kept.
                if !matches!(self.place, Place::Server(_)) || self.errand.is_under_way() {
                    break stop;
                }
            };
            if large {
                own.advance(taken);
                if !own.is_empty() {
                    self.from_client = own;
                }
            } else {
                keep(&mut self.from_client, buffer, taken);
            }
            if stop.is_none() && self.dropping_up && self.up.at_boundary() {
                // What went in the place of a large message may be answered already.
                self.dropping_up = false;
                self.release_if_done();
            }
            match stop {
                None | Some(StopAt::More) => {}
                Some(StopAt::NeedServer | StopAt::Errand | StopAt::Number) => self.stalled = true,
                Some(StopAt::Begin) => {
                    self.stalled = true;
                    self.begin_block(cx);
                }
                Some(StopAt::Answers) => {
                    self.stalled = true;
                    return Ok(false);
                }
                Some(StopAt::Goodbye) => {
                    self.goodbye = Goodbye::Said;
                    self.from_client = BytesMut::new();
                }
                Some(StopAt::Violation(what)) => return Err(End::ClientViolation(what)),
                Some(StopAt::TooMuchPrepared) => return Err(End::TooMuchPrepared),
            }
            Ok(true)
        })
    }

    pub(super) fn write_server(&mut self, cx: &mut Context<'_>, bytes: &[u8]) {
        if let Place::Server(server) = &mut self.place
            && !bytes.is_empty()
        {
            add(&server.face.counters.received, bytes.len() as u64);
            let Server { stream, unsent, .. } = &mut **server;
            if unsent.write(cx, stream, bytes).is_err() {
                // It may have said why: the other direction finds out.
                spend(server);
            }
        }
    }

    /// The client sends nothing more: what it has sent is still answered, as by PostgreSQL.
    fn leave(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        match &mut self.place {
            Place::Idle => Err(End::Client),
            Place::Waiting(_) | Place::Behind(_) | Place::Parked(_) => Ok(false),
            Place::Server(server) if server.owed.is_quiet() && self.up.at_boundary() => {
                Err(End::Client)
            }
            // It does what it was sent, and then meets the end, also where it waits for a Sync, for COPY data or for the rest
            // of a message. Which of these it will come to is not always known from here, and the server must come free.
            Place::Server(server) => {
                if self.goodbye == Goodbye::Said
                    && Pin::new(&mut server.stream).poll_shutdown(cx).is_ready()
                {
                    server.spent = true;
                    self.goodbye = Goodbye::PassedOn;
                }
                Ok(false)
            }
        }
    }

    /// Answers the message that waits for a server with an error.
    pub(super) fn refuse(&mut self, report: &ErrorReport) {
        encode::backend::error(self.to_client.buffer(), report);
        self.begin_refusing();
    }

    /// The message that waits for a server is answered with an error.
    pub(super) fn begin_refusing(&mut self) {
        self.asked = None;
        if let Some(routed) = &mut self.routed {
            routed.beside = Beside::No;
            routed.block.fail();
            routed.policing.is_clear = false;
        }
        self.refusing = match self.from_client.first() {
            Some(b'Q' | b'F') => Refusing::One,
            _ => Refusing::ToSync,
        };
    }

    /// The next number for an attempt to prepare a statement.
    pub(super) fn next_attempt(&mut self) -> Attempt {
        self.attempts += 1;
        self.attempts
    }

    /// Whether it shares its servers with others: then statements have names of their own there, and texts are looked into.
    pub(super) fn shares(&self) -> bool {
        self.mode == PoolMode::Transaction
    }

    // What others want to know.

    pub(super) fn activity(&self) -> Activity {
        let hearing = self.state.hearing.as_ref();
        let owes_ready = hearing.is_some_and(|hearing| hearing.owes_ready());
        match &self.place {
            _ if owes_ready => Activity::Active,
            Place::Idle if self.block().status().is_some() => Activity::InTransaction,
            Place::Idle => Activity::Idle,
            Place::Waiting(_) | Place::Behind(_) | Place::Parked(_) => Activity::Active,
            Place::Server(server) if !server.owed.is_quiet() => Activity::Active,
            Place::Server(_) if self.status() == b'I' => Activity::Idle,
            Place::Server(_) => Activity::InTransaction,
        }
    }

    /// Whether it has taken what its client has sent so far, as far as that is not behind what it is doing.
    fn has_caught_up(&self) -> bool {
        self.activity() == Activity::Active || !self.client.has_unread()
    }

    fn may_stop(&self, stop: Stop, activity: Activity) -> bool {
        match stop {
            Stop::No => false,
            Stop::WhenIdle => {
                activity == Activity::Idle
                    && self.up.at_boundary()
                    && self.from_client.is_empty()
                    && self.to_client.is_empty()
                    && !self.client.has_unread()
            }
            Stop::AtOnce => self.boundary() == Boundary::Clean,
        }
    }

    /// Whether the client may be sent a last message behind `to_client`.
    pub(super) fn boundary(&self) -> Boundary {
        match &self.place {
            Place::Server(server) if !server.scanner.at_boundary() && !self.dropping_down => {
                Boundary::Cut
            }
            _ => Boundary::Clean,
        }
    }

    /// The node that it works on, or last did.
    pub(super) fn node(&self) -> usize {
        self.pool.key().node
    }

    /// Takes it apart: the client, whole messages for it, and its server.
    pub(super) fn into_parts(mut self) -> (Stream, BytesMut, Option<Box<Server>>) {
        let server = match self.place {
            Place::Server(server) => Some(server),
            _ => None,
        };
        (self.client, self.to_client.take(), server)
    }

    /// Whether a server may still be working for this client.
    pub(super) fn in_flight(&self) -> bool {
        matches!(&self.place, Place::Server(server) if !server.owed.is_quiet())
    }
}

#[cfg(test)]
impl Task {
    /// Bytes of memory that it keeps for messages.
    pub(super) fn held_capacity(&self) -> usize {
        self.from_client.capacity() + self.to_client.capacity()
    }
}

/// No other client may have it. It is spent for this one too, as far as writing goes.
fn spend(server: &mut Server) {
    server.spent = true;
    server.unsent.take();
}
