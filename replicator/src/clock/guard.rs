//! Watches one node's clock: fences the node while it is wrong, and has mended what was written meanwhile.

use std::time::Duration;

use tokio::time::Instant;

use super::estimate::Estimate;
use super::fence::{Fence, Look, Reason};
use super::stream::SetBack;
use super::touch;
use crate::control::{Control, ControlError};
use crate::meter::{Course, lock};
use crate::node::Shared;
use crate::version::PgTimestamp;

/// How often it is noted on the node what its clock has said: what a daemon that starts again begins with.
const NOTE_INTERVAL: Duration = Duration::from_secs(10);
/// A commit has its timestamp before it is visible: so long after the clock has passed, all are.
const VISIBLE_US: i64 = 1_000_000;

/// What a node said when it was asked for the time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Said {
    /// Its clock.
    pub clock: PgTimestamp,
    /// Every transaction before this one has ended.
    pub xid: i64,
}

/// A time in which the clock was behind what it had said before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    /// No transaction in it is older.
    xid: i64,
    /// What the clock had said.
    until: PgTimestamp,
}

impl Window {
    fn join(self, other: Option<Self>) -> Self {
        let other = other.unwrap_or(self);
        Self {
            xid: self.xid.min(other.xid),
            until: self.until.max(other.until),
        }
    }
}

/// See the module.
pub(crate) struct Guard {
    node: usize,
    fence: Fence,
    /// The newest timestamp that the node has given or taken, as far as an earlier daemon knew.
    floor: PgTimestamp,
    /// Every transaction before this one ended while the clock was right.
    good_xid: Option<i64>,
    window: Option<Window>,
    noted: Option<Noted>,
}

/// What stands in `tandem.clock`.
#[derive(Debug, Clone, Copy)]
struct Noted {
    at: Instant,
    newest: PgTimestamp,
    window: Option<Window>,
}

impl Guard {
    /// For a node; its clock may be off by so much.
    pub(crate) fn new(node: usize, offset_max: Duration) -> Self {
        Self {
            node,
            fence: Fence::new(offset_max),
            floor: PgTimestamp::MIN,
            good_xid: None,
            window: None,
            noted: None,
        }
    }

    /// Reads what an earlier daemon has noted.
    ///
    /// # Errors
    /// When the node cannot be asked.
    pub(crate) async fn load(&mut self, control: &Control) -> Result<(), ControlError> {
        let sql = "SELECT (extract(epoch FROM newest - '2000-01-01 00:00:00+00') * 1000000)::int8, xid, set_back \
             FROM tandem.clock";
        for row in control.query(sql, &[]).await? {
            let (newest, xid) = (row.try_get(0)?, row.try_get(1)?);
            self.floor = self.floor.max(newest);
            self.good_xid.get_or_insert(xid);
            if row.try_get(2)? {
                let noted = Window { xid, until: newest };
                self.window = Some(noted.join(self.window));
            }
        }
        Ok(())
    }

    /// The newest timestamp that the node has given or taken. To be asked *before* the node is asked for the time: then
    /// a clock that runs forward is past it.
    pub(crate) fn newest(&self, shared: &Shared) -> PgTimestamp {
        let given = shared
            .meter
            .read(self.node, |course: &Course| course.clock().newest());
        let taken = shared.links.of_target(self.node);
        let taken = taken.filter_map(|link| link.last_timestamp());
        given
            .into_iter()
            .chain(taken)
            .fold(self.floor, PgTimestamp::max)
    }

    /// Takes a look. `newest` as above, `middle` the clock in the middle against the daemon's.
    ///
    /// # Errors
    /// When the node refuses to be written; it is tried again at the next look.
    pub(crate) async fn on(
        &mut self,
        shared: &Shared,
        control: &Control,
        newest: PgTimestamp,
        said: Said,
        clock: (Estimate, i64),
    ) -> Result<(), ControlError> {
        let noticed = shared.meter.course(self.node);
        let noticed = lock(&noticed).take_set_back();
        self.notice(noticed, newest, said);
        let (estimate, middle) = clock;
        let look = Look {
            offset_us: estimate.offset_us - middle,
            error_us: estimate.error_us,
            behind_us: newest.saturating_sub(said.clock),
            untouched: self.window.is_some(),
        };
        if self.fence.on(look, Instant::now()) {
            self.tell(shared);
        }
        let passed = |window: &Window| said.clock - VISIBLE_US > window.until;
        if let Some(window) = self.window.filter(passed) {
            self.mend(shared, window).await?;
            self.window = None;
        }
        if self.is_note_due(newest) {
            self.note(control, newest, said).await?;
        }
        Ok(())
    }

    /// A window is noted at once, its end too; else now and then what the clock has said.
    fn is_note_due(&self, newest: PgTimestamp) -> bool {
        let Some(noted) = self.noted else {
            return newest > PgTimestamp::MIN;
        };
        let moved = noted.at.elapsed() > NOTE_INTERVAL && noted.newest < newest;
        noted.window != self.window || moved
    }

    /// Widens the window, or moves on what is known to be good.
    fn notice(&mut self, noticed: Option<SetBack>, newest: PgTimestamp, said: Said) {
        if let Some(set_back) = noticed {
            let xid = full_xid(said.xid, set_back.xid);
            let until = set_back.until;
            self.window = Some(Window { xid, until }.join(self.window));
        }
        if said.clock < newest {
            let xid = self.good_xid.unwrap_or(said.xid);
            self.window = Some(Window { xid, until: newest }.join(self.window));
        } else if self.window.is_none() {
            self.good_xid = Some(said.xid);
        }
    }

    async fn mend(&self, shared: &Shared, window: Window) -> Result<(), ControlError> {
        let Some(node) = shared.config.nodes.get(self.node) else {
            return Ok(());
        };
        let name = format!("tandem:{}:clock", shared.config.cluster);
        let filter = &shared.config.tables.filter;
        let rows = touch::rows(&node.connect, &name, filter, window.xid, window.until).await?;
        tracing::warn!(
            node = node.name,
            rows,
            "the node's clock was set back; what was written meanwhile has a newer version now"
        );
        Ok(())
    }

    async fn note(
        &mut self,
        control: &Control,
        newest: PgTimestamp,
        said: Said,
    ) -> Result<(), ControlError> {
        let window = self.window;
        let xid = window.map_or(said.xid, |window| window.xid);
        let newest = window.map_or(newest, |window| window.until.max(newest));
        let sql = "INSERT INTO tandem.clock (newest, xid, set_back) VALUES (timestamptz '2000-01-01 00:00:00+00' \
             + make_interval(secs => $1::int8 / 1000000) + ($1::int8 % 1000000) * interval '1 microsecond', $2, $3) \
             ON CONFLICT (id) DO UPDATE SET newest = excluded.newest, xid = excluded.xid, set_back = excluded.set_back";
        control
            .query(sql, &[&newest, &xid, &window.is_some()])
            .await?;
        self.noted = Some(Noted {
            at: Instant::now(),
            newest,
            window,
        });
        Ok(())
    }

    /// Says that the node was fenced or let in again.
    fn tell(&self, shared: &Shared) {
        let name = shared.config.nodes.get(self.node);
        let node = name.map_or("?", |node| node.name.as_str());
        match self.fence.reason() {
            Some(reason) => {
                tracing::error!(node, %reason, "the node is fenced: it gets no writes through Tandem")
            }
            None => tracing::info!(node, "the node's clock is right again: it is let in"),
        }
    }

    /// Why the node is fenced, if it is.
    pub(crate) fn reason(&self) -> Option<Reason> {
        self.fence.reason()
    }
}

/// The 64-bit number of a transaction that is not newer than `now`.
fn full_xid(now: i64, xid: u32) -> i64 {
    let low = u32::try_from(now.rem_euclid(1 << 32)).unwrap_or_default();
    let newer = xid.wrapping_sub(low);
    // It may have begun after the node was asked.
    if newer < 1 << 31 {
        now
    } else {
        now - i64::from(low.wrapping_sub(xid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(clock: PgTimestamp, xid: i64) -> Said {
        Said { clock, xid }
    }

    fn guard() -> Guard {
        Guard::new(0, Duration::from_millis(500))
    }

    #[test]
    fn a_window_begins_with_the_last_transaction_that_was_surely_good() {
        let mut guard = guard();
        guard.notice(None, 1000, said(1001, 70));
        guard.notice(None, 2000, said(2001, 80));
        assert_eq!(guard.window, None);
        guard.notice(None, 2500, said(900, 95));
        assert_eq!(
            guard.window,
            Some(Window {
                xid: 80,
                until: 2500
            })
        );
        // While it is open nothing counts as good, and it only grows.
        guard.notice(None, 2500, said(2600, 99));
        guard.notice(None, 2700, said(2650, 120));
        assert_eq!(
            guard.window,
            Some(Window {
                xid: 80,
                until: 2700
            })
        );
    }

    #[test]
    fn what_the_stream_says_later_takes_the_window_further_back() {
        let mut guard = guard();
        guard.notice(None, 1000, said(1001, 70));
        let until = 1500;
        guard.notice(Some(SetBack { xid: 60, until }), 1500, said(1600, 90));
        assert_eq!(guard.window, Some(Window { xid: 60, until }));
    }

    #[test]
    fn transaction_numbers_are_completed_over_a_wrap() {
        let epoch = 1_i64 << 32;
        assert_eq!(full_xid(3 * epoch + 100, 90), 3 * epoch + 90);
        assert_eq!(full_xid(3 * epoch + 5, u32::MAX), 3 * epoch - 1);
        assert_eq!(full_xid(100, 120), 100);
    }
}
