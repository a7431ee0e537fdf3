//! Which tables of a target have rows that lost against others on a unique or exclusion constraint (`tandem.shadow`), or,
//! without a key, owe rows (`tandem.debt`).

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::control::{Control, ControlError};

/// See the module. A table may stand here although it has none; never the other way round.
#[derive(Debug, Default)]
pub(crate) struct Shadows {
    tables: Mutex<HashSet<String>>,
    any: AtomicBool,
}

impl Shadows {
    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads them; nobody may be applying to the target.
    ///
    /// # Errors
    /// When the target cannot be asked.
    pub(crate) async fn load(&self, control: &Control) -> Result<(), ControlError> {
        let rows = control
            .query(
                "SELECT relation FROM tandem.shadow UNION SELECT relation FROM tandem.debt",
                &[],
            )
            .await?;
        let mut tables = HashSet::new();
        for row in rows {
            tables.insert(row.try_get(0)?);
        }
        self.any.store(!tables.is_empty(), Ordering::Release);
        *self.lock() = tables;
        Ok(())
    }

    /// Whether the table, quoted with its schema, may have shadowed rows.
    pub(crate) fn may_have(&self, table: &str) -> bool {
        self.any.load(Ordering::Acquire) && self.lock().contains(table)
    }

    /// Whether any table may.
    pub(crate) fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    /// Says whether a table has, or is about to have, shadowed rows.
    pub(crate) fn set(&self, table: &str, has: bool) {
        let mut tables = self.lock();
        if has {
            tables.insert(table.to_owned());
        } else {
            tables.remove(table);
        }
        self.any.store(!tables.is_empty(), Ordering::Release);
    }
}
