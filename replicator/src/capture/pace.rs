//! How a stream is read while its reader is behind: in large pieces, with pauses between them.
//!
//! A walsender makes one `send()` per change (`WalSndWriteData` in src/backend/replication/walsender.c). A reader that waits
//! for each of them is woken by each, and the wake-ups cost the *sender* more than the decoding; one that leaves the bytes
//! in the socket's buffer for a moment is sent them several times as fast. A reader that has caught up must not wait at
//! all: what it waits is lag. But nobody waits for what Tandem itself applied to a node. It becomes visible to the stream in
//! lumps, with each flush of the node, and a reader that is woken for each transaction of them takes the processor away
//! from those that are being applied.

use std::time::{Duration, Instant};

/// Reads are counted over this time.
const SLOT: Duration = Duration::from_millis(2);
/// So many reads in a slot mean that the sender is at it without a pause. A few hundred transactions a second make five.
const READS_MAX: u32 = 64;
/// So do so many bytes.
const BYTES_MAX: usize = 64 << 10;
/// The first pause. Bounds what a wrong guess costs.
const NAP_MIN: Duration = Duration::from_millis(1);
/// The longest pause. A sender does not fill the socket's buffer in it
/// ([`read_in_bulk`](tandem_wire::Connection::read_in_bulk)).
const NAP_MAX: Duration = Duration::from_millis(4);
/// A node whose clients have written nothing for so long is taken for one that only receives. What its next client writes may
/// then be read [`NAP_MIN`] late.
const QUIET: Duration = Duration::from_millis(100);
/// A pause in which less than this came in for each millisecond was not worth it: the reader has caught up.
const BYTES_PER_MS: usize = 4 << 10;

/// What a read has found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    /// Bytes of the stream.
    pub bytes: usize,
    /// The transactions that ended in it.
    pub ended: Ended,
}

/// Whose transactions ended in a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Nobody's, or the next has begun and may be anybody's.
    Unknown,
    /// Only those that Tandem itself has applied there; no other has begun.
    Received,
    /// Of others too, for which a target waits.
    Written,
}

/// The decision; does no waiting itself.
#[derive(Debug)]
pub(super) struct Pace {
    mode: Mode,
    /// When the last transaction was read that targets wait for.
    written: Instant,
}

#[derive(Debug)]
enum Mode {
    /// Reads at once whatever comes.
    Eager {
        /// When the slot began.
        since: Instant,
        /// Reads in it.
        reads: u32,
        /// What they brought.
        bytes: usize,
    },
    /// Has stayed away for so long before the last read.
    Patient { nap: Duration },
}

impl Mode {
    fn eager(now: Instant) -> Self {
        Self::Eager {
            since: now,
            reads: 0,
            bytes: 0,
        }
    }
}

impl Pace {
    /// For a stream that is opened now.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            mode: Mode::eager(now),
            written: now,
        }
    }

    /// Takes in what a read has found; answers how long to stay away from the socket before the next.
    pub(super) fn read(&mut self, now: Instant, found: Found) -> Option<Duration> {
        if found.ended == Ended::Written {
            self.written = now;
        }
        let quiet = now.saturating_duration_since(self.written) > QUIET;
        let receives = quiet && found.ended == Ended::Received;
        let nap = match &mut self.mode {
            Mode::Eager {
                since,
                reads,
                bytes,
            } => {
                if now.saturating_duration_since(*since) > SLOT {
                    (*since, *reads, *bytes) = (now, 0, 0);
                }
                *reads += 1;
                *bytes += found.bytes;
                (receives || *reads >= READS_MAX || *bytes >= BYTES_MAX).then_some(NAP_MIN)
            }
            Mode::Patient { nap } => {
                let worth = BYTES_PER_MS * usize::try_from(nap.as_millis()).unwrap_or(1);
                (found.bytes >= worth).then(|| (*nap * 2).min(NAP_MAX))
            }
        };
        self.mode = match nap {
            Some(nap) => Mode::Patient { nap },
            None if matches!(self.mode, Mode::Patient { .. }) => Mode::eager(now),
            None => return None,
        };
        nap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn written(bytes: usize) -> Found {
        Found {
            bytes,
            ended: Ended::Written,
        }
    }

    fn received(bytes: usize) -> Found {
        Found {
            bytes,
            ended: Ended::Received,
        }
    }

    /// Reads `count` times, `every` so often, and finds `bytes` each time; answers the pauses.
    fn naps(
        pace: &mut Pace,
        from: Instant,
        count: u32,
        every: Duration,
        bytes: usize,
    ) -> Vec<u128> {
        let read = |number| pace.read(from + every * number, written(bytes));
        let naps = (1..=count).filter_map(read);
        naps.map(|nap| nap.as_millis()).collect()
    }

    #[test]
    fn a_reader_that_keeps_up_never_waits() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        // Two thousand transactions a second of five messages each.
        let naps = naps(&mut pace, now, 100_000, MS / 10, 200);
        assert!(naps.is_empty(), "{naps:?}");
    }

    #[test]
    fn a_backlog_is_read_in_growing_pieces() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let eager = naps(&mut pace, now, READS_MAX, MS / 100, 200);
        assert_eq!(eager, [1]);
        assert_eq!(naps(&mut pace, now, 4, MS, 400_000), [2, 4, 4, 4]);
        // The end of it.
        assert_eq!(pace.read(now, written(1000)), None);
        assert_eq!(pace.read(now, written(1000)), None);
        // Large pieces are a backlog at once.
        assert_eq!(pace.read(now, written(100_000)), Some(NAP_MIN));
    }

    #[test]
    fn a_pause_that_brought_little_is_the_last() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!(pace.read(now, written(BYTES_MAX)), Some(NAP_MIN));
        assert_eq!(pace.read(now, written(BYTES_PER_MS - 1)), None);
        assert!(matches!(pace.mode, Mode::Eager { reads: 0, .. }));
    }

    #[test]
    fn nobody_hurries_for_what_a_node_only_receives() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!(pace.read(now + QUIET, received(200)), None);
        assert_eq!(pace.read(now + QUIET + MS, received(200)), Some(NAP_MIN));
        // The rest of what a flush has brought.
        assert_eq!(pace.read(now + QUIET + 2 * MS, received(3000)), None);
        // A part of a transaction may be anybody's.
        let part = Found {
            bytes: 20,
            ended: Ended::Unknown,
        };
        assert_eq!(pace.read(now + QUIET + 3 * MS, part), None);
        assert_eq!(
            pace.read(now + QUIET + 4 * MS, received(200)),
            Some(NAP_MIN)
        );
    }

    #[test]
    fn a_node_with_clients_of_its_own_is_read_at_once() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for ms in (0..5000).step_by(10) {
            let now = start + ms * MS;
            assert_eq!(pace.read(now, received(200)), None, "{ms}");
            if ms % 100 == 0 {
                assert_eq!(pace.read(now, written(20)), None, "{ms}");
            }
        }
    }
}
