//! The plans of the templates that were seen, within a number of bytes.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::AnalysisError;
use super::plan::Plan;
use crate::catalog::Catalog;
use crate::model::Rules;
use crate::template::{Literals, Shape};

/// Parts with a lock of their own; a power of two.
const SHARDS: usize = 64;
/// What an entry costs besides what it points to, about.
const ENTRY_BYTES: usize = 128;

/// The plans of templates. Sessions share it: each of its parts has a lock of its own, which a hit takes for reading only.
///
/// Entries that are not asked for while half of the bytes are filled with others go (two generations). A template is
/// compared byte by byte on a hit, and so are those of its literals that have to be the same.
#[derive(Debug)]
pub struct PlanCache {
    shards: Box<[RwLock<Shard>]>,
    generation_bytes_max: usize,
    bytes: AtomicUsize,
}

/// A plan, and whether the cache had it.
#[derive(Debug, Clone)]
pub struct Found {
    /// The plan.
    pub plan: Arc<Plan>,
    /// Whether the grammar was spared.
    pub hit: bool,
}

#[derive(Debug, Default)]
struct Shard {
    young: Generation,
    old: Generation,
}

#[derive(Debug, Default)]
struct Generation {
    entries: HashMap<u64, Entry, BuildHasherDefault<Same>>,
    bytes: usize,
}

/// Two templates of one hash put each other out.
#[derive(Debug, Clone)]
struct Entry {
    scope: u64,
    template: Arc<[u8]>,
    answer: Answer,
    bytes: usize,
}

#[derive(Debug, Clone)]
enum Answer {
    Plan(Arc<Plan>),
    /// It depends on the literals at these places: they are part of what the plan is asked for with.
    Kept(Arc<[usize]>),
}

impl PlanCache {
    /// A cache that holds about so many bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            generation_bytes_max: bytes_max / SHARDS / 2,
            bytes: AtomicUsize::new(0),
        }
    }

    /// How many bytes it holds, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The plan of a text's template. `scope` is another number for each set of rules, catalog, and search path.
    pub fn plan(
        &self,
        scope: u64,
        shape: &Shape<'_>,
        rules: &Rules,
        catalog: Option<&Catalog>,
        search_path: &[&str],
    ) -> Found {
        if let Some(plan) = self.known(scope, shape) {
            return Found { plan, hit: true };
        }
        let Ok(text) = core::str::from_utf8(shape.literals.text()) else {
            let because = AnalysisError::Grammar("the text is not UTF-8".to_owned());
            return Found {
                plan: Arc::new(Plan::unknown(because)),
                hit: false,
            };
        };
        let plan = Plan::of_shape(text, shape.literals, rules, catalog, search_path);
        let plan = Arc::new(plan);
        if plan.refused.is_none() {
            let answer = Answer::Plan(Arc::clone(&plan));
            if plan.kept.is_empty() {
                self.put(scope, shape.bytes, answer, plan.bytes());
            } else {
                // It is found by all that it depends on, and by which those are.
                let key = with_kept(shape.bytes, &shape.literals, &plan.kept);
                let kept: Arc<[usize]> = Arc::from(&*plan.kept);
                let bytes = size_of_val(&*kept);
                self.put(scope, shape.bytes, Answer::Kept(kept), bytes);
                self.put(scope, &key, answer, plan.bytes());
            }
        }
        Found { plan, hit: false }
    }

    /// The plan of a text's template, if it is there.
    #[must_use]
    pub fn known(&self, scope: u64, shape: &Shape<'_>) -> Option<Arc<Plan>> {
        let kept = match self.get(scope, shape.bytes)? {
            Answer::Plan(plan) => return Some(plan),
            Answer::Kept(kept) => kept,
        };
        let key = with_kept(shape.bytes, &shape.literals, &kept);
        match self.get(scope, &key)? {
            Answer::Plan(plan) => Some(plan),
            Answer::Kept(_) => None,
        }
    }

    fn get(&self, scope: u64, template: &[u8]) -> Option<Answer> {
        let hash = xxh3_64_with_seed(template, scope);
        let shard = self.shard(hash)?;
        {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(entry) = shard.young.get(hash, scope, template) {
                return Some(entry.answer.clone());
            }
            shard.old.get(hash, scope, template)?;
        }
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        // Another one may have moved it in the meantime.
        let entry = shard.old.get(hash, scope, template)?.clone();
        let answer = entry.answer.clone();
        self.insert(&mut shard, hash, entry);
        Some(answer)
    }

    fn put(&self, scope: u64, template: &[u8], answer: Answer, bytes: usize) {
        let hash = xxh3_64_with_seed(template, scope);
        let bytes = bytes + template.len() + ENTRY_BYTES;
        if bytes > self.generation_bytes_max {
            return;
        }
        let Some(shard) = self.shard(hash) else {
            return;
        };
        let entry = Entry {
            scope,
            template: Arc::from(template),
            answer,
            bytes,
        };
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        self.insert(&mut shard, hash, entry);
    }

    fn insert(&self, shard: &mut Shard, hash: u64, entry: Entry) {
        let before = shard.young.bytes + shard.old.bytes;
        shard.young.remove(hash);
        shard.old.remove(hash);
        if shard.young.bytes + entry.bytes > self.generation_bytes_max {
            shard.old = std::mem::take(&mut shard.young);
        }
        shard.young.bytes += entry.bytes;
        shard.young.entries.insert(hash, entry);
        let after = shard.young.bytes + shard.old.bytes;
        // Where it shrinks the difference wraps, and so does the sum.
        self.bytes
            .fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    fn shard(&self, hash: u64) -> Option<&RwLock<Shard>> {
        // The map takes the low bits.
        let place = usize::try_from(hash >> 48).unwrap_or_default();
        self.shards.get(place % SHARDS)
    }
}

impl Generation {
    fn get(&self, hash: u64, scope: u64, template: &[u8]) -> Option<&Entry> {
        let entry = self.entries.get(&hash)?;
        (entry.scope == scope && *entry.template == *template).then_some(entry)
    }

    fn remove(&mut self, hash: u64) {
        if let Some(entry) = self.entries.remove(&hash) {
            self.bytes -= entry.bytes;
        }
    }
}

/// A template and those of the literals that have to be the same.
fn with_kept(template: &[u8], literals: &Literals<'_>, kept: &[usize]) -> Vec<u8> {
    let mut key = template.to_vec();
    // No token begins with this.
    key.push(0);
    for place in kept {
        key.extend_from_slice(&place.to_le_bytes());
        for literal in literals.at(*place) {
            key.extend_from_slice(&literal.text.len().to_le_bytes());
            key.extend_from_slice(literal.text);
        }
    }
    key
}

/// What is hashed already.
#[derive(Debug, Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}
