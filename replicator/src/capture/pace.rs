//! How a stream is read while its reader is behind: in large pieces, with pauses between them.
//!
//! A walsender makes one `send()` per change (`WalSndWriteData` in src/backend/replication/walsender.c). A reader that waits
//! for each of them is woken by each, and the wake-ups cost the *sender* more than the decoding; one that leaves the bytes
//! in the socket's buffer for a moment is sent them several times as fast. A reader that has caught up must not wait at
//! all: what it waits is lag.

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
/// A pause in which less than this came in for each millisecond was not worth it: the reader has caught up.
const BYTES_PER_MS: usize = 4 << 10;

/// The decision; does no waiting itself.
#[derive(Debug)]
pub(super) enum Pace {
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

impl Pace {
    /// For a stream that is opened now.
    pub(super) fn new(now: Instant) -> Self {
        Self::Eager {
            since: now,
            reads: 0,
            bytes: 0,
        }
    }

    /// Takes in that a read has found so many bytes; answers how long to stay away from the socket before the next.
    pub(super) fn read(&mut self, now: Instant, found: usize) -> Option<Duration> {
        let nap = match self {
            Self::Eager {
                since,
                reads,
                bytes,
            } => {
                if now.saturating_duration_since(*since) > SLOT {
                    (*since, *reads, *bytes) = (now, 0, 0);
                }
                *reads += 1;
                *bytes += found;
                (*reads >= READS_MAX || *bytes >= BYTES_MAX).then_some(NAP_MIN)
            }
            Self::Patient { nap } => {
                let worth = BYTES_PER_MS * usize::try_from(nap.as_millis()).unwrap_or(1);
                (found >= worth).then(|| (*nap * 2).min(NAP_MAX))
            }
        };
        *self = match nap {
            Some(nap) => Self::Patient { nap },
            None if matches!(self, Self::Patient { .. }) => Self::new(now),
            None => return None,
        };
        nap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Reads `count` times, `every` so often, and finds `bytes` each time; answers the pauses.
    fn naps(
        pace: &mut Pace,
        from: Instant,
        count: u32,
        every: Duration,
        bytes: usize,
    ) -> Vec<u128> {
        let read = |number| pace.read(from + every * number, bytes);
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
        assert_eq!(pace.read(now, 1000), None);
        assert_eq!(pace.read(now, 1000), None);
        // Large pieces are a backlog at once.
        assert_eq!(pace.read(now, 100_000), Some(NAP_MIN));
    }

    #[test]
    fn a_pause_that_brought_little_is_the_last() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!(pace.read(now, BYTES_MAX), Some(NAP_MIN));
        assert_eq!(pace.read(now, BYTES_PER_MS - 1), None);
        assert!(matches!(pace, Pace::Eager { reads: 0, .. }));
    }
}
