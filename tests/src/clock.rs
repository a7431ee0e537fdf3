//! Owns the clocks of a test's servers: a small library, preloaded into each, adds to the time of day what a file holds.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

const SOURCE: &str = include_str!("clock.c");

/// The compiled library; it lies in the test's directory, where the servers' user can read it.
#[derive(Debug, Clone)]
pub struct ClockLibrary(PathBuf);

impl ClockLibrary {
    /// Compiles it in `dir`.
    ///
    /// # Panics
    /// There is no C compiler `cc`.
    #[must_use]
    pub fn compile(dir: &Path) -> Self {
        let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
        fs::write(&source, SOURCE).expect("a file can be written");
        let compiled = Command::new("cc")
            .args(["-O2", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .output()
            .expect("cc, which building Tandem needs too, can be run");
        assert!(
            compiled.status.success(),
            "cc: {}",
            String::from_utf8_lossy(&compiled.stderr)
        );
        Self(library)
    }
}

/// The clock of one server.
#[derive(Debug, Clone)]
pub struct Clock {
    library: ClockLibrary,
    offset: PathBuf,
}

impl Clock {
    /// One that is right, until it is set; `offset` is its file.
    ///
    /// # Panics
    /// The file cannot be written.
    #[must_use]
    pub fn new(library: ClockLibrary, offset: PathBuf) -> Self {
        let clock = Self { library, offset };
        fs::write(&clock.offset, 0_i64.to_ne_bytes()).expect("the clock's file");
        clock
    }

    /// What the server's environment needs.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, OsString)> {
        vec![
            ("LD_PRELOAD".to_owned(), self.library.0.clone().into()),
            ("TANDEM_TEST_CLOCK".to_owned(), self.offset.clone().into()),
        ]
    }

    /// From now on the server's clock is so many milliseconds ahead of the real one, or behind it.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn set_offset_ms(&self, offset_ms: i64) {
        // In place: the servers have the file mapped, and eight aligned bytes are written at once.
        let file = fs::OpenOptions::new().write(true).open(&self.offset);
        let bytes = (offset_ms * 1_000_000).to_ne_bytes();
        file.and_then(|file| file.write_all_at(&bytes, 0))
            .expect("the clock's file");
    }
}
