//! Owns the look at the configuration's files: a change is taken as by SIGHUP, without one.
//!
//! A file that is replaced as a whole (by rename) and one that is written over both work: what is there counts once it was the
//! same at two looks. An empty file is not taken, and one that is cut is refused if it makes no sense: the whole is taken when it
//! is there. One cut between two of its tables does make sense; who writes slowly does it by rename.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::sleep,
};
use xxhash_rust::xxh3::Xxh3;

use super::{ReloadError, reload};
use crate::{config::Config, session::Shared};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// What became of the files.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// Held while they are read.
    reading: Mutex<()>,
    /// What was in them when they were read last; see [`content`].
    read: AtomicU64,
    /// Why that was refused.
    refused: ArcSwapOption<String>,
}

impl Files {
    /// The files of a configuration that was just read.
    pub(crate) fn read_just_now(path: &Path) -> Files {
        Files {
            read: AtomicU64::new(content(path)),
            ..Files::default()
        }
    }

    /// Nobody else reads them meanwhile.
    pub(super) async fn alone(&self) -> MutexGuard<'_, ()> {
        self.reading.lock().await
    }

    /// They were read, and perhaps refused.
    pub(super) fn note(&self, content: u64, refused: Option<&ReloadError>) {
        self.read.store(content, Ordering::Relaxed);
        let refused = refused.map(|error| Arc::new(error.to_string()));
        self.refused.store(refused);
    }

    /// Why what is in the files does not count, a problem each; nothing: it does.
    pub(crate) fn refused(&self) -> Vec<String> {
        let refused = self.refused.load();
        let lines = refused.iter().flat_map(|refused| refused.lines());
        lines.map(str::to_owned).collect()
    }
}

/// Another number for other contents of the files.
pub(super) fn content(path: &Path) -> u64 {
    let mut content = Xxh3::new();
    for file in Config::files(path) {
        let read = fs::read(&file);
        // One that cannot be read is another than an empty one.
        content.update(&[u8::from(read.is_ok())]);
        let bytes = read.unwrap_or_default();
        content.update(&bytes.len().to_le_bytes());
        content.update(&bytes);
    }
    content.digest()
}

/// Whether one of the files has nothing in it: cut, and not written yet. Whoever means it says RELOAD.
fn is_cut(path: &Path) -> bool {
    let mut files = Config::files(path).into_iter();
    files.any(|file| fs::metadata(file).is_ok_and(|found| found.len() == 0))
}

/// Looks for ever.
pub(crate) async fn watch(shared: Arc<Shared>) {
    let mut before = None;
    loop {
        sleep(INTERVAL).await;
        let path = shared.settings.load().config.path.clone();
        let look = move || (content(&path), is_cut(&path));
        let Ok((now, is_cut)) = tokio::task::spawn_blocking(look).await else {
            continue;
        };
        let is_settled = before.replace(now) == Some(now);
        if !is_settled || is_cut || now == shared.files.read.load(Ordering::Relaxed) {
            continue;
        }
        // What is refused is not looked at again before it changes.
        if let Err(error) = reload(&shared).await {
            tracing::error!("the configuration's files have changed: nothing is reloaded: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_is_another_one_when_any_of_the_files_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = dir.path().join("tandem.toml");
        let write =
            |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("a file");
        let mut seen = vec![content(&config)];
        let mut changed = |what: &str| {
            let now = content(&config);
            assert!(!seen.contains(&now), "{what}");
            seen.push(now);
        };
        write("tandem.toml", "[proxy]\nrules = \"rules.toml\"\n");
        changed("the configuration is there");
        write("rules.toml", "");
        changed("so are the rules, which are empty");
        write("rules.toml", "mode = \"advise\"\n");
        changed("the rules are others");
        write("other.toml", "");
        write(
            "tandem.toml",
            "[proxy]\nrules = \"other.toml\"\nlisten = [\n",
        );
        changed("a configuration that is no TOML names others");
        write("other.toml", "# a comment\n");
        changed("and these change");
        write("rules.toml", "");
        assert_eq!(seen.last(), Some(&content(&config)), "nobody names them");
    }
}
