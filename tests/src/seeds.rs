//! Owns taking seed after seed: as many as are asked for, some at the same time, up to the first finding.
//!
//! `TANDEM_TEST_SEED` is the only one that is taken; else they follow each other from `SOAK_SEED` on, or from a random one.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// The number that a variable of the environment has.
#[must_use]
pub fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// How many are taken.
#[derive(Debug, Clone, Copy)]
pub enum Enough {
    /// So many.
    Count(u64),
    /// For so long.
    Time(Duration),
}

/// A test that takes seeds.
#[derive(Debug, Clone, Copy)]
pub struct Seeds {
    /// The file of tests that it is in, and its name: what runs it again.
    pub test: (&'static str, &'static str),
    /// So many at the same time.
    pub at_once: usize,
}

impl Seeds {
    /// Runs `one` of each seed, in a runtime of its own; the first finding ends it.
    ///
    /// # Panics
    /// As `one` did.
    pub fn take(self, enough: Enough, one: impl AsyncFn(u64) + Sync) {
        let (first, enough) = match number_of("TANDEM_TEST_SEED") {
            Some(seed) => (seed, Enough::Count(1)),
            None => (
                number_of("SOAK_SEED").unwrap_or_else(|| fastrand::u64(..)),
                enough,
            ),
        };
        let (taken, passed) = (AtomicU64::new(0), AtomicU64::new(0));
        let found = AtomicBool::new(false);
        let begun = Instant::now();
        let work = || {
            while !found.load(Ordering::Relaxed) {
                let number = taken.fetch_add(1, Ordering::Relaxed);
                let is_enough = match enough {
                    Enough::Count(count) => number >= count,
                    Enough::Time(time) => begun.elapsed() >= time,
                };
                if is_enough {
                    return;
                }
                let seed = first.wrapping_add(number);
                // Nothing of what a failed one has left is looked at.
                let ran = catch_unwind(AssertUnwindSafe(|| run(seed, &one)));
                if let Err(problem) = ran {
                    found.store(true, Ordering::Relaxed);
                    let (file, test) = self.test;
                    eprintln!(
                        "seed {seed} failed; again, in this environment, with:\nTANDEM_TEST_SEED={seed} cargo test --locked -p tandem-tests \
                         --test {file} -- --exact {test}"
                    );
                    resume_unwind(problem);
                }
                let passed = passed.fetch_add(1, Ordering::Relaxed) + 1;
                let seconds = begun.elapsed().as_secs();
                eprintln!("seed {seed} passed; {passed} in {seconds} s");
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.at_once {
                scope.spawn(work);
            }
        });
    }
}

fn run(seed: u64, one: &impl AsyncFn(u64)) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(one(seed));
}
