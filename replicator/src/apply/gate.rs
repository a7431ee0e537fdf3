//! The target's gate: what adds to the remembered deletes and kept versions of a node does not run
//! beside what reads them.

use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// The target's gate, held while a batch is under way. After the loss of a session it is held on until that one has
/// surely ended, and with it what it may still have been working on.
pub(super) enum Gate {
    /// Beside others that only read.
    Shared {
        /// Held, not read.
        _guard: OwnedRwLockReadGuard<()>,
    },
    /// Alone.
    Alone {
        /// Held, not read.
        _guard: OwnedRwLockWriteGuard<()>,
    },
}

impl Gate {
    /// Waits for it.
    pub(super) async fn pass(gate: &Arc<RwLock<()>>, alone: bool) -> Self {
        let gate = Arc::clone(gate);
        if alone {
            Self::Alone {
                _guard: gate.write_owned().await,
            }
        } else {
            Self::Shared {
                _guard: gate.read_owned().await,
            }
        }
    }
}
