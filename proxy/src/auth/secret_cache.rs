//! Owns what was learnt of users from nodes, for a short time, with one question at a time per user.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Lookup, LookupError};

/// How long an answer is used. A changed password is known after this at the latest.
const TTL: Duration = Duration::from_secs(2);
/// Users remembered. Names come from clients that have proved nothing yet.
const USERS_MAX: usize = 10_000;

type Slot = Arc<tokio::sync::Mutex<Option<(Instant, Lookup)>>>;

/// Answers by user.
#[derive(Debug, Default)]
pub(crate) struct SecretCache {
    slots: Mutex<HashMap<String, Slot>>,
}

impl SecretCache {
    /// The remembered answer, or that of `ask`, which is polled only then. Many who want the same user wait for one question. Errors are not
    /// remembered.
    pub(crate) async fn get(
        &self,
        user: &str,
        ask: impl Future<Output = Result<Lookup, LookupError>>,
    ) -> Result<Lookup, LookupError> {
        let slot = self.slot(user);
        let mut slot = slot.lock().await;
        if let Some((learnt, lookup)) = &*slot
            && learnt.elapsed() < TTL
        {
            return Ok(lookup.clone());
        }
        let lookup = ask.await?;
        *slot = Some((Instant::now(), lookup.clone()));
        Ok(lookup)
    }

    /// The answer was perhaps out of date.
    pub(crate) fn forget(&self, user: &str) {
        self.slots().remove(user);
    }

    fn slot(&self, user: &str) -> Slot {
        let mut slots = self.slots();
        if let Some(slot) = slots.get(user) {
            return Arc::clone(slot);
        }
        if slots.len() >= USERS_MAX {
            // Those in use live on in the hands of their users.
            slots.clear();
        }
        Arc::clone(slots.entry(user.to_owned()).or_default())
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tandem_wire::Secret;

    #[tokio::test]
    async fn many_who_ask_at_once_share_one_question() {
        let cache = SecretCache::default();
        let asked = AtomicU32::new(0);
        let ask = async || {
            asked.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok(Lookup::Secret(Secret::new("v")))
        };
        let (a, b, c) = tokio::join!(
            cache.get("app", ask()),
            cache.get("app", ask()),
            cache.get("app", ask())
        );
        for lookup in [a, b, c] {
            assert_eq!(lookup.expect("answered"), Lookup::Secret(Secret::new("v")));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        cache.forget("app");
        cache.get("app", ask()).await.expect("answered");
        assert_eq!(
            asked.load(Ordering::Relaxed),
            2,
            "forgotten means asked again"
        );
    }

    #[tokio::test]
    async fn an_error_is_not_remembered() {
        let cache = SecretCache::default();
        let failed = cache
            .get("app", async { Err(LookupError::NoAnswer(String::new())) })
            .await;
        assert!(failed.is_err());
        let found = cache.get("app", async { Ok(Lookup::Unknown) }).await;
        assert_eq!(found.expect("answered"), Lookup::Unknown);
    }

    #[tokio::test]
    async fn names_that_clients_invent_do_not_fill_the_memory() {
        let cache = SecretCache::default();
        for n in 0..USERS_MAX + 10 {
            let user = format!("user{n}");
            cache
                .get(&user, async { Ok(Lookup::Unknown) })
                .await
                .expect("answered");
        }
        assert!(cache.slots().len() <= USERS_MAX);
    }
}
