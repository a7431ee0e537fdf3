//! The version of a row: which transaction wrote it, in the total order that every node shares.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Microseconds since 2000-01-01 00:00:00 UTC: PostgreSQL's `TimestampTz` (src/include/datatype/timestamp.h).
pub(crate) type PgTimestamp = i64;

/// Seconds between the Unix epoch and PostgreSQL's.
const EPOCH_OFFSET_SECONDS: i64 = 946_684_800;

/// The version of a row: commit timestamp, then origin node, of the transaction that wrote it.
///
/// Invariant: the order is total over versions and the same on each node, because it compares the nodes
/// *of the versions* and never the node that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Version {
    /// When the transaction committed, by the clock of the node where it was first committed.
    pub timestamp: PgTimestamp,
    /// The node where it was first committed.
    pub node: u16,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}us@{}", self.timestamp, self.node)
    }
}

impl Version {
    /// Its timestamp as SQL, exactly.
    pub(crate) fn timestamp_sql(self) -> String {
        format!(
            "(timestamptz '2000-01-01 00:00:00+00' + make_interval(secs => {}) + {} * interval '1 microsecond')",
            self.timestamp.div_euclid(1_000_000),
            self.timestamp.rem_euclid(1_000_000)
        )
    }

    /// Its timestamp as a person and PostgreSQL read it, in UTC.
    pub(crate) fn timestamp_text(self) -> String {
        timestamp_text(self.timestamp)
    }
}

/// A timestamp as a person and PostgreSQL read it, in UTC.
pub(crate) fn timestamp_text(timestamp: PgTimestamp) -> String {
    const DAY_US: i64 = 86_400_000_000;
    let (days, rest_us) = (timestamp.div_euclid(DAY_US), timestamp.rem_euclid(DAY_US));
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days: days since 0000-03-01.
    let days = days + 730_425;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let seconds = rest_us / 1_000_000;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{:06}+00",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        rest_us % 1_000_000
    )
}

/// A point in time by the daemon's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(PgTimestamp);

impl Moment {
    /// Now.
    pub fn now() -> Self {
        Self(pg_now())
    }

    /// How long it is after another one; nothing if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        let passed_us = self.0.saturating_sub(earlier.0);
        Duration::from_micros(u64::try_from(passed_us).unwrap_or_default())
    }

    /// In the unit and from the epoch of the nodes' timestamps.
    pub(crate) fn timestamp(self) -> PgTimestamp {
        self.0
    }
}

impl fmt::Display for Moment {
    /// As PostgreSQL prints it, in UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&timestamp_text(self.0))
    }
}

/// SQL of a `timestamptz` as microseconds since 2000-01-01, exactly; NULL stays NULL.
pub(crate) fn microseconds_sql(timestamp: &str) -> String {
    format!(
        "(extract(epoch FROM {timestamp} - timestamptz '2000-01-01 00:00:00+00') * 1000000)::int8"
    )
}

/// The wall clock in PostgreSQL's unit and epoch.
pub(crate) fn pg_now() -> PgTimestamp {
    let unix_us = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| {
            i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX)
        });
    unix_us.saturating_sub(EPOCH_OFFSET_SECONDS.saturating_mul(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newer_timestamp_wins_and_the_higher_node_breaks_a_tie() {
        let at = |timestamp, node| Version { timestamp, node };
        assert!(at(2, 1) > at(1, 3));
        assert!(at(2, 2) > at(2, 1));
        assert_eq!(at(2, 2), at(2, 2));
    }

    #[test]
    fn timestamps_read_as_postgresql_prints_them() {
        let text = |timestamp| Version { timestamp, node: 1 }.timestamp_text();
        assert_eq!(text(1), "2000-01-01 00:00:00.000001+00");
        assert_eq!(text(-1), "1999-12-31 23:59:59.999999+00");
        // SELECT extract(epoch FROM timestamptz '…' - timestamptz '2000-01-01 00:00:00+00')
        assert_eq!(text(762_523_199_500_000), "2024-02-29 11:59:59.500000+00");
        assert_eq!(text(825_593_696_789_012), "2026-02-28 11:34:56.789012+00");
    }
}
