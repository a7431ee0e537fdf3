//! Owns how a client comes to a server, and gives it back.

use std::{
    pin::Pin,
    sync::atomic::Ordering,
    task::{Context, Poll},
};

use bytes::BytesMut;
use tandem_wire::{
    Sender,
    backend::ParameterStatus,
    encode,
    frame::{self, HEADER_LEN},
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    time::Instant,
};

use super::{
    Shared,
    end::End,
    outbound::is_without_a_word,
    owed::{By, Sent},
    profile::CLEANUP,
    ready::{Errand, Portals, SYNC, put_query},
    report, route,
    task::{Place, Refusing, Task},
};
use crate::{
    health::Verdict,
    pool::{Server, Turn, WaitError, add, release},
};

/// New servers that may break in a row before they are ready for a session.
const BROKEN_MAX: u8 = 2;

impl Task {
    /// Asks for a server until there is one that works, or a place in the queue.
    pub(super) fn seek(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Result<(), End> {
        self.note_asked();
        if self.waits_for_handoff(shared) {
            return Ok(());
        }
        let routed = self.routed.as_mut();
        if let Some(behind) = routed.and_then(|routed| routed.behind.take()) {
            self.registered.entry().wait();
            self.place = Place::Behind(behind);
            return Ok(());
        }
        if self.routed.is_none()
            && !shared.health.usable(self.pool.key().node)
            && let Some(node) = self.change_near(shared)
        {
            self.go_to(node, shared);
        }
        loop {
            match self.pool.ask() {
                Turn::Now(server) => {
                    if self.attach(server, cx, shared) {
                        return Ok(());
                    }
                }
                Turn::Later(wait) => {
                    self.registered.entry().wait();
                    self.place = Place::Waiting(wait);
                    return Ok(());
                }
            }
        }
    }

    /// Waits in the queue of its node, as long as that has not been given up.
    pub(super) fn wait_goes_on(
        &mut self,
        cx: &mut Context<'_>,
        shared: &Shared,
    ) -> Result<bool, End> {
        if shared.health.is_given_up(self.node()) {
            let queue = std::mem::replace(&mut self.place, Place::Idle);
            if self.goes_elsewhere(cx, shared)? {
                return Ok(true);
            }
            self.place = queue;
        }
        let Place::Waiting(wait) = &self.place else {
            return Ok(false);
        };
        match wait.poll(cx) {
            Poll::Pending if self.registered.entry().is_cancelled() => {
                self.place = Place::Idle;
                self.registered.entry().detach();
                self.refuse(&report::cancelled());
                Ok(true)
            }
            Poll::Pending => {
                let late = matches!(&self.place, Place::Waiting(wait) if wait.take_notice());
                if late {
                    encode::backend::notice(self.to_client.buffer(), &report::waiting());
                }
                Ok(late)
            }
            Poll::Ready(Ok(server)) => {
                self.place = Place::Idle;
                if !self.attach(server, cx, shared) {
                    self.seek(cx, shared)?;
                }
                Ok(true)
            }
            Poll::Ready(Err(error)) => {
                self.place = Place::Idle;
                self.no_server(&error, cx, shared)?;
                Ok(true)
            }
        }
    }

    /// Takes a server, unless it has died while nobody used it.
    pub(super) fn attach(
        &mut self,
        mut server: Box<Server>,
        cx: &mut Context<'_>,
        shared: &Shared,
    ) -> bool {
        if !is_alive(cx, &mut server) {
            tracing::debug!(
                backend = server.face.pid,
                "a server connection has ended while it was idle"
            );
            match is_without_a_word(&server.received) {
                true => shared.health.crashed(server.face.node),
                false => shared.health.evidence(server.face.node),
            }
            return false;
        }
        let cancelled = self.take(server);
        self.learn_numbers(shared);
        // Whether it lives was asked until it had nothing more to say.
        self.dry.server = true;
        if cancelled {
            self.release_server();
            self.refuse(&report::cancelled());
        } else if self.is_outdated(shared) {
            // Its keys may be on their way to another node: where it goes is looked at once more.
            self.release_server();
            self.stalled = true;
        } else {
            self.sync(false, cx);
        }
        true
    }

    /// Gives the server the session's settings, if it has others.
    fn sync(&mut self, cleaned: bool, cx: &mut Context<'_>) {
        let Place::Server(server) = &mut self.place else {
            return;
        };
        let sequences = self.pool.has_looked();
        let texts = self.state.sync(&mut server.settings, sequences);
        if !texts.is_empty() {
            self.registered.entry().prepare();
            self.run_errand(Errand::Settings { cleaned }, &texts, cx);
        } else if cleaned {
            self.synced();
        }
    }

    /// The session's server has thrown away all that was set: it gets what the session's login asked for, if it has it still.
    /// In a transaction nothing can be set that lasts: the next server gets it then.
    pub(super) fn restore_settings(&mut self, cx: &mut Context<'_>) {
        if matches!(&self.place, Place::Server(server) if server.owed.is_settled()) {
            self.sync(false, cx);
        }
    }

    /// The server is asked for something of the proxy's own, by a Query for each text.
    pub(super) fn run_errand(
        &mut self,
        errand: Errand,
        texts: &[impl AsRef<[u8]>],
        cx: &mut Context<'_>,
    ) {
        let Place::Server(server) = &mut self.place else {
            return;
        };
        let mut messages = BytesMut::new();
        for text in texts {
            server.owed.sent(Sent::Query, By::Proxy, 0);
            put_query(&mut messages, text.as_ref());
        }
        server.statements.unnamed = 0;
        self.errand = errand;
        self.write_server(cx, &messages);
    }

    /// Takes the next step once the server has answered one of those that make it ready.
    ///
    /// What an earlier session left can be impossible to undo, such as what it had set as a role that was dropped. Then the
    /// server is cleaned as after a login, and asked again: from there on only the session's own settings can be refused.
    /// Each of the texts that set them is a transaction of its own, so what was refused has to be cleaned away once more.
    pub(super) fn go_on_readying(&mut self, cx: &mut Context<'_>) {
        let Place::Server(server) = &mut self.place else {
            return;
        };
        if self.errand == Errand::Discard && server.owed.awaits_sync() {
            server.owed.sent(Sent::Sync, By::Proxy, 0);
            self.write_server(cx, SYNC);
            return;
        }
        if !self.errand.is_query() || !server.owed.is_quiet() {
            return;
        }
        match std::mem::replace(&mut self.errand, Errand::None) {
            Errand::Refused { cleaned } => {
                self.run_errand(Errand::Cleanup { last: cleaned }, &[CLEANUP], cx);
            }
            Errand::Cleanup { last: false } => {
                server.settings.cleaned();
                self.sync(true, cx);
            }
            Errand::Cleanup { last: true } => {
                server.settings.cleaned();
                // A cancel request comes too late: the statement has failed.
                self.registered.entry().prepared();
                self.release_server();
            }
            Errand::Begin { refused } => {
                self.block_begun(refused);
                self.release_if_done();
            }
            Errand::Sequences => {
                self.state.forgotten(&mut server.settings);
                self.synced();
            }
            _ => self.synced(),
        }
    }

    /// Whether nothing of the client's has gone to its server, which is still being made ready.
    pub(super) fn is_untouched(&self) -> bool {
        matches!(&self.place, Place::Server(server) if server.owed.is_untouched())
            && self.errand.is_under_way()
    }

    /// Goes on with another server: this one has broken while it was made ready.
    pub(super) fn replace_server(
        &mut self,
        end: End,
        cx: &mut Context<'_>,
        shared: &Shared,
    ) -> Result<(), End> {
        let Place::Server(server) = std::mem::replace(&mut self.place, Place::Idle) else {
            return Err(end);
        };
        self.errand = Errand::None;
        self.shown_hold = None;
        tracing::warn!(
            node = self.pool.node_name(),
            backend = server.face.pid,
            %end,
            "a server connection could not be made ready for a session"
        );
        let probes = shared.health.probes(server.face.node);
        match end.is_abrupt() {
            true => shared.health.crashed(server.face.node),
            false => shared.health.evidence(server.face.node),
        }
        // There are only so many that have served somebody, and none comes back. Of new ones there is no end.
        if !server.face.has_served() {
            self.broken += 1;
        }
        server.close();
        if self.refusing != Refusing::No {
            // The client has been told already, and needs none.
            self.registered.entry().detach();
            return Ok(());
        }
        if self.broken == 0 {
            self.registered.entry().wait();
            return match self.chooses_again(shared) {
                true => Ok(()),
                false => self.seek(cx, shared),
            };
        }
        // A node that opens connections and loses them again is not asked for ever, if nothing else is wrong with it.
        if !shared.health.usable(self.node()) {
            self.broken = 0;
        } else if self.broken >= BROKEN_MAX {
            return Err(match end {
                End::NotReady(_) => end,
                end => End::NotReady(end.to_string()),
            });
        }
        self.await_verdict(probes, cx, shared)
    }

    /// Goes to another node, if its own does not serve and another one does. Whether it has.
    pub(super) fn goes_elsewhere(
        &mut self,
        cx: &mut Context<'_>,
        shared: &Shared,
    ) -> Result<bool, End> {
        if shared.health.usable(self.node()) {
            return Ok(false);
        }
        if self.routed.is_some() {
            return Ok(self.chooses_again(shared));
        }
        let Some(node) = self.change_near(shared) else {
            return Ok(false);
        };
        self.go_to(node, shared);
        self.seek(cx, shared)?;
        Ok(true)
    }

    /// Whether the client's messages are looked at once more, because their node does not serve and another one does.
    fn chooses_again(&mut self, shared: &Shared) -> bool {
        let chooses = self.routed.is_some()
            && !self.from_client.is_empty()
            && !shared.health.usable(self.pool.key().node)
            && (0..shared.nodes.len()).any(|node| shared.health.usable(node));
        if chooses {
            self.registered.entry().detach();
            self.stalled = true;
        }
        chooses
    }

    /// The server has the session's settings, or what was asked of it is not wanted any more: a cancel request is for the
    /// message that waits for it, if one does.
    fn synced(&mut self) {
        self.broken = 0;
        if self.registered.entry().prepared() && self.stalled {
            if self.state.hold().is_none() {
                self.release_server();
            }
            self.refuse(&report::cancelled());
        }
    }

    /// Has this server from now on. Whether a cancel request came while it waited for it.
    pub(super) fn take(&mut self, mut server: Box<Server>) -> bool {
        let writes = self.routed.as_ref().is_none_or(|routed| routed.writes);
        let cancelled = self.registered.entry().attach(&server.face, writes);
        let pid = self.registered.pid().unsigned_abs();
        server.face.client.store(pid, Ordering::Relaxed);
        server.owed.begin();
        server.trace.begin();
        self.place = Place::Server(server);
        self.show_hold();
        self.note_served();
        self.dry.server = false;
        cancelled
    }

    /// The node that was chosen at the login does not serve: chooses another one, if there is any.
    pub(super) fn change_near(&mut self, shared: &Shared) -> Option<usize> {
        let key = self.pool.key();
        let unusable = route::unusable(shared);
        let hints = &self.about.who.hints;
        let chosen = route::choose(shared, &key.user, &key.database, hints, &unusable);
        let near = self.routed.as_ref().map_or(key.node, |routed| routed.near);
        let chosen = chosen.filter(|chosen| chosen.node != near)?;
        tracing::debug!(
            node = chosen.node,
            why = chosen.why,
            "a session goes to another node"
        );
        if let Some(routed) = &mut self.routed {
            routed.near = chosen.node;
        }
        if let Some(node) = shared.nodes.get(chosen.node) {
            self.counted = node.count_session();
        }
        Some(chosen.node)
    }

    /// There is no server for what the client has sent, of which nothing has gone anywhere.
    fn no_server(
        &mut self,
        error: &WaitError,
        cx: &mut Context<'_>,
        shared: &Shared,
    ) -> Result<(), End> {
        match error {
            WaitError::Open(open) if open.verdict != Verdict::Answer => {
                self.await_verdict(open.probes, cx, shared)
            }
            // What it wants is elsewhere now.
            WaitError::Left if self.routed.is_some() => {
                self.registered.entry().detach();
                self.stalled = true;
                Ok(())
            }
            WaitError::Open(_) | WaitError::TooLong(_) | WaitError::Left => {
                let report = report::no_server(self.pool.node_name(), error);
                Err(End::NoServer(Box::new(report)))
            }
        }
    }

    /// Gives the server back when the client's transaction is over.
    pub(super) fn release_if_done(&mut self) {
        self.show_hold();
        let Place::Server(server) = &self.place else {
            return;
        };
        if self.state.hold().is_none()
            && self.errand == Errand::None
            && server.owed.is_settled()
            && self.up.at_boundary()
            && server.scanner.at_boundary()
            && server.received.is_empty()
            && server.unsent.is_empty()
            && !(self.unnamed.attempt != 0 && self.unnamed.frame.is_empty())
        {
            self.release_server();
        }
    }

    /// Lets others see why it keeps its server.
    fn show_hold(&mut self) {
        let hold = self.state.hold();
        if let Place::Server(server) = &self.place
            && hold != self.shown_hold
        {
            self.shown_hold = hold;
            server.face.set_hold(hold);
        }
    }

    fn release_server(&mut self) {
        if let Place::Server(server) = std::mem::replace(&mut self.place, Place::Idle) {
            if self.shown_hold.take().is_some() {
                server.face.set_hold(None);
            }
            self.portals = Portals::default();
            if let Some(routed) = &mut self.routed {
                routed.numbers.forget_portals();
            }
            self.registered.entry().detach();
            let face = &server.face;
            face.client.store(0, Ordering::Relaxed);
            add(&face.counters.transactions, 1);
            if let Some(routed) = &mut self.routed {
                routed.seen.left(face.node, Instant::now());
            }
            release(server);
        }
    }
}

/// Looks at what has come from a server while nobody used it: notices and new settings, or its end.
pub(super) fn is_alive(cx: &mut Context<'_>, server: &mut Server) -> bool {
    loop {
        // Nothing has come, but for once in a while: a buffer for it would be thrown away each time.
        let mut space = [0; 256];
        let mut chunk = ReadBuf::new(&mut space);
        match Pin::new(&mut server.stream).poll_read(cx, &mut chunk) {
            Poll::Pending => break,
            Poll::Ready(Ok(())) if !chunk.filled().is_empty() => {
                server.received.extend_from_slice(chunk.filled());
            }
            Poll::Ready(Ok(()) | Err(_)) => return false,
        }
    }
    if server.received.is_empty() {
        return true;
    }
    while let Ok(Some(header)) = frame::peek(&server.received, Sender::Server) {
        if server.received.len() < header.frame_len() {
            break;
        }
        let frame = server.received.split_to(header.frame_len());
        let body = frame.get(HEADER_LEN..).unwrap_or_default();
        match header.tag {
            b'S' => {
                if let Ok(status) = ParameterStatus::parse(body) {
                    server.settings.reported(status.name, status.value);
                }
            }
            b'N' | b'A' => {}
            _ => return false,
        }
    }
    server.received.is_empty()
}
