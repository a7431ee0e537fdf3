//! Owns how often sessions have lost their server, by what that has come to for them.

use std::sync::atomic::{AtomicU64, Ordering};

/// What it has come to that a session's server was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Its client has noticed nothing: nothing was under way.
    Unnoticed,
    /// What it had asked for only reads, and was sent once more.
    Resent,
    /// Its transaction was over: it was told so.
    Ended,
    /// Its transaction has failed, and nothing of it has committed: 40001.
    Aborted,
    /// Its COMMIT was in doubt, and has committed.
    Committed,
    /// Its COMMIT was in doubt, and has not committed: 40001.
    NotCommitted,
    /// It is not known whether its transaction has committed: 08007.
    Unknown,
    /// It has ended, with what it had there only.
    Disconnected,
}

impl Loss {
    /// All, in their order.
    pub(crate) const ALL: [Loss; 8] = [
        Loss::Unnoticed,
        Loss::Resent,
        Loss::Ended,
        Loss::Aborted,
        Loss::Committed,
        Loss::NotCommitted,
        Loss::Unknown,
        Loss::Disconnected,
    ];

    /// The word for figures.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Loss::Unnoticed => "unnoticed",
            Loss::Resent => "resent",
            Loss::Ended => "ended",
            Loss::Aborted => "aborted",
            Loss::Committed => "in_doubt_committed",
            Loss::NotCommitted => "in_doubt_aborted",
            Loss::Unknown => "in_doubt_unknown",
            Loss::Disconnected => "disconnected",
        }
    }
}

/// How often each has happened since the start.
#[derive(Debug, Default)]
pub(crate) struct Losses([AtomicU64; Loss::ALL.len()]);

impl Losses {
    /// One more.
    pub(super) fn count(&self, loss: Loss) {
        if let Some(count) = self.0.get(loss as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All of them.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (Loss, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        Loss::ALL.into_iter().zip(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_under_its_own_word() {
        let losses = Losses::default();
        for (times, loss) in Loss::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| losses.count(loss));
        }
        let counts: Vec<(Loss, u64)> = losses.counts().collect();
        let wanted: Vec<(Loss, u64)> = Loss::ALL.into_iter().zip(0..).collect();
        assert_eq!(counts, wanted);
    }
}
