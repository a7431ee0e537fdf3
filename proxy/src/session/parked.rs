//! Owns how a session waits for something that no server does for it: it is parked for a reason, woken by a change, and bounded in
//! time. Nothing of what its client has sent has gone anywhere meanwhile.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tandem_wire::encode;
use tokio::time::{Sleep, sleep, timeout};

use super::{
    Shared,
    end::End,
    report, route,
    task::{Place, Task},
};
use crate::timing;

/// Why a session is parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Its node could not be connected to: probes are to say what has become of it.
    Verdict,
    /// The keys that it writes are on their way to another home.
    Handoff,
}

/// A session that waits.
pub(super) struct Parked {
    why: Why,
    /// Whether what it waits for has come in time.
    change: Pin<Box<dyn Future<Output = bool> + Send>>,
    /// When the client is told that it waits.
    notice: Option<Pin<Box<Sleep>>>,
}

impl fmt::Debug for Parked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Parked").field(&self.why).finish()
    }
}

impl Task {
    /// Waits for a change, as long as its client may still wait for a server (`query_wait_timeout`). One place for all that
    /// a session is parked for.
    pub(super) fn park(
        &mut self,
        why: Why,
        change: impl Future<Output = ()> + Send + 'static,
        shared: &Shared,
    ) {
        let settings = shared.settings.load();
        let pool = &settings.config.proxy.pool;
        self.note_asked();
        let waited = self
            .asked
            .map_or(0, |asked| timing::now().micros_since(asked));
        let waited = Duration::from_micros(waited);
        let left = pool.wait_max.saturating_sub(waited);
        // Who has waited for longer was told before.
        let notice = pool.notice_after.checked_sub(waited);
        let notice = notice.filter(|after| !after.is_zero() && *after < left);
        self.registered.entry().wait();
        self.place = Place::Parked(Box::new(Parked {
            why,
            change: Box::pin(async move { timeout(left, change).await.is_ok() }),
            notice: notice.map(|after| Box::pin(sleep(after))),
        }));
    }

    /// Waits for what it is parked for.
    pub(super) fn parked_goes_on(
        &mut self,
        cx: &mut Context<'_>,
        shared: &Shared,
    ) -> Result<bool, End> {
        let Place::Parked(parked) = &mut self.place else {
            return Ok(false);
        };
        let why = parked.why;
        let Poll::Ready(has_changed) = parked.change.as_mut().poll(cx) else {
            if self.registered.entry().is_cancelled() {
                self.place = Place::Idle;
                self.registered.entry().detach();
                self.refuse(&report::cancelled());
                return Ok(true);
            }
            let notice = parked.notice.as_mut();
            if notice.is_none_or(|notice| notice.as_mut().poll(cx).is_pending()) {
                return Ok(false);
            }
            parked.notice = None;
            encode::backend::notice(self.to_client.buffer(), &report::parked(why));
            return Ok(true);
        };
        self.place = Place::Idle;
        match (why, has_changed) {
            (Why::Verdict, true) => self.verdict_came(cx, shared)?,
            (Why::Handoff, true) => {
                self.registered.entry().detach();
                // What it has sent may belong elsewhere now: that is looked at once more.
                self.stalled = true;
            }
            (Why::Verdict | Why::Handoff, false) => {
                self.registered.entry().detach();
                let mut problems = String::new();
                route::add_problems(shared, &mut problems);
                self.refuse(&report::no_node_in_time(self.pool.node_name(), &problems));
            }
        }
        Ok(true)
    }

    /// No connection to its node can be opened: goes elsewhere, or waits until it is known what has become of the node.
    ///
    /// That it could not be opened is evidence, and brings a probe. Without its verdict other nodes are not asked: the keys
    /// of a node that lives are not written elsewhere.
    pub(super) fn await_verdict(
        &mut self,
        cx: &mut Context<'_>,
        shared: &Shared,
    ) -> Result<(), End> {
        let node = self.node();
        // From before the look at what is known now.
        let news = shared.health.news(node);
        if self.goes_elsewhere(cx, shared)? {
            return Ok(());
        }
        if shared.health.usable(node) {
            shared.health.evidence(node);
        }
        self.park(Why::Verdict, news, shared);
        Ok(())
    }

    /// More is known of the nodes.
    fn verdict_came(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Result<(), End> {
        let node = self.node();
        let news = shared.health.news(node);
        if self.goes_elsewhere(cx, shared)? {
            return Ok(());
        }
        if shared.health.usable(node) {
            return self.seek(cx, shared);
        }
        // All nodes are down: whoever comes back first changes that.
        self.park(Why::Verdict, news, shared);
        Ok(())
    }
}
