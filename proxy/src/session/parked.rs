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
    outcome::Doubt,
    report, route,
    task::{Place, Task},
};
use crate::timing;

/// Why a session is parked.
#[derive(Debug)]
pub(super) enum Why {
    /// Its node could not be connected to: probes are to say what has become of it.
    Verdict,
    /// The keys that it writes are on their way to another home.
    Handoff,
    /// It is asked what has become of the session's COMMIT.
    Outcome(Box<Doubt>),
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
    /// Waits for a change, as long as its client may still wait for a server (`query_wait_timeout`).
    pub(super) fn park(
        &mut self,
        why: Why,
        change: impl Future<Output = ()> + Send + 'static,
        shared: &Shared,
    ) {
        let settings = shared.settings.load();
        let pool = &settings.config.proxy.pool;
        self.note_asked();
        let waited = self.asked;
        let waited = waited.map_or(0, |asked| timing::now().micros_since(asked));
        let waited = Duration::from_micros(waited);
        // Who has waited for longer was told before.
        let notice = pool.notice_after.checked_sub(waited);
        let notice = notice.filter(|after| !after.is_zero());
        self.park_for(why, change, pool.wait_max.saturating_sub(waited), notice);
    }

    /// Waits for a change, for so long at most, and tells its client after so long. The one place for all that sessions are
    /// parked for.
    pub(super) fn park_for(
        &mut self,
        why: Why,
        change: impl Future<Output = ()> + Send + 'static,
        bound: Duration,
        notice: Option<Duration>,
    ) {
        self.registered.entry().wait();
        self.place = Place::Parked(Box::new(Parked {
            why,
            change: Box::pin(async move { timeout(bound, change).await.is_ok() }),
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
        let polled = parked.change.as_mut().poll(cx);
        let is_cancelled = self.registered.entry().is_cancelled();
        if polled.is_pending() && !is_cancelled {
            let notice = parked.notice.as_mut();
            if notice.is_none_or(|notice| notice.as_mut().poll(cx).is_pending()) {
                return Ok(false);
            }
            parked.notice = None;
            encode::backend::notice(self.to_client.buffer(), &report::parked(&parked.why));
            return Ok(true);
        }
        let Place::Parked(parked) = std::mem::replace(&mut self.place, Place::Idle) else {
            return Ok(false);
        };
        match (parked.why, polled) {
            // It cannot be taken back, but its client need not wait for it.
            (Why::Outcome(doubt), _) => self.resolve(doubt, shared),
            (Why::Verdict | Why::Handoff, Poll::Pending) => {
                self.registered.entry().detach();
                self.refuse(&report::cancelled());
            }
            (Why::Verdict, Poll::Ready(true)) => self.verdict_came(cx, shared)?,
            (Why::Handoff, Poll::Ready(true)) => {
                self.registered.entry().detach();
                // What it has sent may belong elsewhere now: that is looked at once more.
                self.stalled = true;
            }
            (Why::Verdict | Why::Handoff, Poll::Ready(false)) => {
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
    /// of a node that lives are not written elsewhere. `probes`: those of the node that had begun by then.
    pub(super) fn await_verdict(
        &mut self,
        probes: u64,
        cx: &mut Context<'_>,
        shared: &Shared,
    ) -> Result<(), End> {
        let node = self.node();
        // From before the look at what is known now.
        let news = shared.health.news_since(node, probes);
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
