//! Owns the reasons why a session can not leave its server connection.

use std::fmt;

/// What a session has on its server connection that can not be moved to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Pin {
    /// A temporary table, view or sequence that outlives the transaction, or a `search_path` that makes such.
    TemporaryObject,
    /// `pg_advisory_lock` and its relatives, not those that end with the transaction.
    SessionAdvisoryLock,
    /// A cursor WITH HOLD.
    HeldCursor,
    /// LISTEN.
    Listen,
    /// `currval` or `lastval`: what they answer depends on an earlier `nextval` of this session.
    SequenceValue,
    /// `setseed`, or SET seed: what `random()` answers from now on.
    RandomSeed,
    /// LOAD.
    LoadedLibrary,
    /// `dblink_connect`.
    ForeignConnection,
    /// `pg_replication_origin_session_setup`.
    ReplicationOrigin,
    /// A large object's descriptor. Ends with the transaction.
    LargeObject,
    /// `pg_export_snapshot`. Ends with the transaction.
    ExportedSnapshot,
}

impl Pin {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::TemporaryObject,
        Self::SessionAdvisoryLock,
        Self::HeldCursor,
        Self::Listen,
        Self::SequenceValue,
        Self::RandomSeed,
        Self::LoadedLibrary,
        Self::ForeignConnection,
        Self::ReplicationOrigin,
        Self::LargeObject,
        Self::ExportedSnapshot,
    ];

    /// Whether it goes when the transaction ends, so that it concerns only who looks inside of transactions.
    #[must_use]
    pub fn ends_with_transaction(self) -> bool {
        matches!(self, Self::LargeObject | Self::ExportedSnapshot)
    }

    fn bit(self) -> u16 {
        1 << self as u8
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TemporaryObject => "temporary table",
            Self::SessionAdvisoryLock => "session advisory lock",
            Self::HeldCursor => "cursor WITH HOLD",
            Self::Listen => "LISTEN",
            Self::SequenceValue => "currval",
            Self::RandomSeed => "setseed",
            Self::LoadedLibrary => "LOAD",
            Self::ForeignConnection => "dblink connection",
            Self::ReplicationOrigin => "replication origin",
            Self::LargeObject => "large object",
            Self::ExportedSnapshot => "exported snapshot",
        })
    }
}

/// A set of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pins(u16);

impl Pins {
    /// All reasons.
    #[must_use]
    pub fn all() -> Self {
        Pin::ALL.into_iter().collect()
    }

    /// Whether there is no reason.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn contains(self, pin: Pin) -> bool {
        self.0 & pin.bit() != 0
    }

    /// Adds one.
    pub fn insert(&mut self, pin: Pin) {
        self.0 |= pin.bit();
    }

    /// These and those.
    #[must_use]
    pub fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// These but for those.
    #[must_use]
    pub fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Each, in the order of [`Pin::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Pin> {
        Pin::ALL.into_iter().filter(move |&pin| self.contains(pin))
    }
}

impl FromIterator<Pin> for Pins {
    fn from_iter<I: IntoIterator<Item = Pin>>(pins: I) -> Self {
        let mut set = Self::default();
        pins.into_iter().for_each(|pin| set.insert(pin));
        set
    }
}
