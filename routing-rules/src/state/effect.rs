//! Owns the words for what a statement does to a session.

use std::ops::Range;

use super::{Homed, Pins, Value, set::ConfigCall};

/// What one statement does to the session if it succeeds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effects {
    /// What the statement is, where that concerns the session.
    pub effect: Effect,
    /// The settings that it changes, in this order.
    pub changes: Vec<Change>,
    /// What keeps the session on its server connection from now on.
    pub pins: Pins,
    /// What no longer does, once the transaction has committed.
    pub releases: Pins,
    /// It may do more than is said here.
    pub doubt: Option<Doubt>,
    /// Where the names of the functions stand that gave [`Doubt::Function`], each with its schema if that is said.
    pub unknown_functions: Vec<Range<usize>>,
    /// What the functions that it calls use, see [`Effects::homed`].
    pub(super) calls_homed: Option<Homed>,
    /// Whether it calls `pg_notify`, see [`Effects::notifies`].
    pub(super) calls_notify: bool,
    /// Calls with parameters, see [`Effects::bind`].
    pub(super) unbound: Vec<ConfigCall>,
}

/// What a statement is, where that concerns the session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Effect {
    /// Nothing of this; SET and RESET too, whose doing is in [`Effects::changes`].
    #[default]
    None,
    /// Begins, ends or divides a transaction.
    Transaction(Transaction),
    /// SHOW.
    Show(Names),
    /// PREPARE: the statement behind AS runs with each EXECUTE, and has its effects then.
    Prepare {
        /// The prepared statement's name.
        name: Vec<u8>,
        /// Where the statement stands in the text.
        statement: Range<usize>,
    },
    /// EXECUTE of the prepared statement of this name; also in CREATE TABLE AS and EXPLAIN.
    Execute(Vec<u8>),
    /// DEALLOCATE.
    Deallocate(Names),
    /// DECLARE of a cursor.
    Declare {
        /// The cursor's name.
        name: Vec<u8>,
        /// WITH HOLD.
        hold: bool,
    },
    /// CLOSE.
    Close(Names),
    /// LISTEN on a channel.
    Listen(Vec<u8>),
    /// UNLISTEN.
    Unlisten(Names),
    /// NOTIFY on a channel.
    Notify(Vec<u8>),
    /// DISCARD.
    Discard(Discard),
    /// LOAD.
    Load,
}

/// One thing or all of its sort.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// ALL or `*`.
    All,
    /// The one of this name.
    One(Vec<u8>),
}

/// What DISCARD throws away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// Everything: settings, cursors, prepared statements, channels, locks, temporary objects, sequences' values.
    All,
    /// Cached plans.
    Plans,
    /// Sequences' values.
    Sequences,
    /// Temporary objects.
    Temporary,
}

/// What begins, ends or divides a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transaction {
    /// BEGIN or START TRANSACTION.
    Begin(Modes),
    /// COMMIT or END.
    Commit {
        /// AND CHAIN.
        chain: bool,
    },
    /// ROLLBACK or ABORT.
    Rollback {
        /// AND CHAIN.
        chain: bool,
    },
    /// SAVEPOINT of this name.
    Savepoint(Vec<u8>),
    /// RELEASE.
    Release(Vec<u8>),
    /// ROLLBACK TO.
    RollbackTo(Vec<u8>),
    /// PREPARE TRANSACTION with this gid.
    Prepare(Vec<u8>),
    /// COMMIT PREPARED, of another transaction than the session's.
    CommitPrepared(Vec<u8>),
    /// ROLLBACK PREPARED, of another transaction than the session's.
    RollbackPrepared(Vec<u8>),
    /// SET TRANSACTION: these modes for the rest of the transaction.
    Modes(Modes),
    /// SET TRANSACTION SNAPSHOT with this id.
    Snapshot(Vec<u8>),
}

/// A transaction's modes, as far as they are said; the last one of each counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Modes {
    /// ISOLATION LEVEL
    pub isolation: Option<Isolation>,
    /// READ ONLY, or READ WRITE.
    pub read_only: Option<bool>,
    /// DEFERRABLE, or NOT DEFERRABLE.
    pub deferrable: Option<bool>,
}

/// An isolation level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// READ UNCOMMITTED
    ReadUncommitted,
    /// READ COMMITTED
    ReadCommitted,
    /// REPEATABLE READ
    RepeatableRead,
    /// SERIALIZABLE
    Serializable,
}

impl Isolation {
    /// As the setting `transaction_isolation` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadUncommitted => "read uncommitted",
            Self::ReadCommitted => "read committed",
            Self::RepeatableRead => "repeatable read",
            Self::Serializable => "serializable",
        }
    }
}

/// How long a change of a setting lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// SET and SET SESSION: from the commit on for the session.
    Session,
    /// SET LOCAL: to the end of the transaction.
    Local,
}

/// A change of settings. Names are in lower case, their parts joined with points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// SET; with [`Value::Default`] RESET too.
    Set {
        /// The setting.
        name: Vec<u8>,
        /// Its new value.
        value: Value,
        /// How long it lasts.
        scope: Scope,
    },
    /// SET name FROM CURRENT: the value that it has just now.
    FromCurrent {
        /// The setting.
        name: Vec<u8>,
        /// How long it lasts.
        scope: Scope,
    },
    /// RESET ALL: all but the session authorization and the role.
    ResetAll,
}

impl Change {
    /// Whether something gets the value that RESET gives.
    #[must_use]
    pub fn resets(&self) -> bool {
        match self {
            Self::ResetAll => true,
            Self::Set { value, .. } => *value == Value::Default,
            Self::FromCurrent { .. } => false,
        }
    }
}

/// Why a statement may do more to the session than can be said. What a trigger, a rule, an operator, or a function that
/// is called in the notation of a column does is never seen, and gives no doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Doubt {
    /// `set_config` with a value that is not in the text, but surely for the transaction only.
    #[error("set_config for the transaction")]
    LocalSetting,
    /// A call of a function that is not known to leave the session as it is.
    #[error("call of an unknown function")]
    Function,
    /// `set_config` of which it is not certain that it runs once, or with what.
    #[error("set_config with values that are not in the text")]
    SetConfig,
    /// CALL: a procedure can also end the transaction.
    #[error("CALL")]
    Call,
    /// DO: the block can also end the transaction.
    #[error("DO")]
    Do,
    /// A statement about the session that was not understood.
    #[error("statement that was not understood")]
    Syntax,
}
