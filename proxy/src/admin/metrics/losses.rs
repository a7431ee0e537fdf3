//! What it came to for sessions that their server was lost, in figures.

use super::Text;
use crate::session::losses::Loss;

/// How often each has happened.
pub(super) fn add(text: &mut Text, counts: impl Iterator<Item = (Loss, u64)>) {
    text.counter(
        "tandem_sessions_lost_server_total",
        "Sessions whose server connection was lost, by what that has come to for them.",
        counts.map(|(loss, count)| ([("outcome", loss.word())], count)),
    );
}
