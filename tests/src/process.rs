//! Owns finding the programs that cargo built beside the running test, and cargo's target directory.

use std::path::PathBuf;

/// A program of this crate that cargo built for the same profile: tests run in `PROFILE/deps`, programs lie in `PROFILE`.
#[must_use]
pub fn sibling(name: &str) -> Option<PathBuf> {
    let here = std::env::current_exe().ok()?;
    here.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// Where things that outlive a test run are kept: cargo's target directory, which it marks, else the temporary one.
#[must_use]
pub fn cache_dir() -> PathBuf {
    let here = std::env::current_exe().unwrap_or_default();
    let target = here
        .ancestors()
        .skip(1)
        .find(|dir| dir.join("CACHEDIR.TAG").is_file());
    target.map_or_else(std::env::temp_dir, |target| target.join("test-templates"))
}
