//! Owns what outlives the daemon of which node is home to what: the epoch, and which nodes an operator has taken out of service.
//!
//! It is one small file in the state directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::durable::replace;

/// The file's name.
const FILE: &str = "placement.json";
/// The newest form of the file that is understood.
const VERSION: u32 = 1;

/// What is in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    /// The newest epoch that was written down.
    epoch: u64,
    /// Ids of the nodes that are out of service.
    drained: Vec<u16>,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// It cannot be read or written.
    #[error("cannot use `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It says something that is not understood.
    #[error(
        "`{}` says which nodes are out of service, and cannot be understood: {problem}; delete it to have all nodes in service",
        path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// The file, and what it says.
#[derive(Debug)]
pub(crate) struct Placement {
    path: PathBuf,
    kept: Mutex<Kept>,
}

impl Placement {
    /// Reads the file of a state directory; where there is none every node is in service.
    pub(crate) fn read(state_dir: &Path) -> Result<Placement, PlacementError> {
        let path = state_dir.join(FILE);
        let kept = match fs::read(&path) {
            Ok(bytes) => understood(&bytes).map_err(|problem| PlacementError::Content {
                path: path.clone(),
                problem,
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kept {
                version: VERSION,
                epoch: 0,
                drained: Vec::new(),
            },
            Err(source) => return Err(PlacementError::Io { path, source }),
        };
        Ok(Placement {
            path,
            kept: Mutex::new(kept),
        })
    }

    /// The newest epoch, and whether the nodes with these ids are out of service.
    pub(crate) async fn known(&self, ids: impl IntoIterator<Item = u16>) -> (u64, Vec<bool>) {
        let kept = self.kept.lock().await;
        let is_drained = |id| kept.drained.contains(&id);
        (kept.epoch, ids.into_iter().map(is_drained).collect())
    }

    /// Writes down that a node is out of service, or in it again. It is on disk when this returns.
    pub(crate) async fn set_drained(
        &self,
        id: u16,
        is_drained: bool,
    ) -> Result<(), PlacementError> {
        self.change(|kept| {
            kept.drained.retain(|drained| *drained != id);
            if is_drained {
                kept.drained.push(id);
            }
        })
        .await
    }

    /// Writes down an epoch.
    pub(crate) async fn set_epoch(&self, epoch: u64) -> Result<(), PlacementError> {
        self.change(|kept| kept.epoch = kept.epoch.max(epoch)).await
    }

    async fn change(&self, change: impl FnOnce(&mut Kept)) -> Result<(), PlacementError> {
        let mut kept = self.kept.lock().await;
        let mut next = kept.clone();
        change(&mut next);
        if next == *kept {
            return Ok(());
        }
        let (path, written) = (self.path.clone(), next.clone());
        let done = tokio::task::spawn_blocking(move || replace(&path, &written)).await;
        let done = done.unwrap_or_else(|error| Err(io::Error::other(error)));
        done.map_err(|source| PlacementError::Io {
            path: self.path.clone(),
            source,
        })?;
        *kept = next;
        Ok(())
    }
}

fn understood(bytes: &[u8]) -> Result<Kept, String> {
    let kept: Kept = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    match kept.version {
        VERSION => Ok(kept),
        other => Err(format!(
            "it is of version {other}, this daemon knows {VERSION}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_written_down_is_there_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        // Not even the directory is.
        let dir = dir.path().join("state");
        let first = Placement::read(&dir).expect("nothing is there");
        assert_eq!(first.known([1, 2]).await, (0, vec![false, false]));
        first.set_drained(2, true).await.expect("written");
        first.set_drained(7, true).await.expect("written");
        first.set_epoch(9).await.expect("written");
        first.set_epoch(4).await.expect("it never goes back");
        let second = Placement::read(&dir).expect("read");
        assert_eq!(second.known([1, 2, 7]).await, (9, vec![false, true, true]));
        second.set_drained(2, false).await.expect("written");
        let third = Placement::read(&dir).expect("read");
        assert_eq!(third.known([1, 2, 7]).await, (9, vec![false, false, true]));
        let left = fs::read_dir(&dir).expect("listed").count();
        assert_eq!(left, 1, "nothing else is left there");
    }

    #[test]
    fn a_file_that_is_not_understood_is_no_empty_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let texts = [
            "",
            "{}",
            "{\"version\":2,\"epoch\":1,\"drained\":[]}",
            "{\"version\":1,\"epoch\":1,\"drained\":[70000]}",
            "{\"version\":1,\"epoch\":1,\"drained\":[],\"more\":1}",
        ];
        for text in texts {
            fs::write(dir.path().join(FILE), text).expect("written");
            let error = Placement::read(dir.path()).expect_err(text);
            assert!(matches!(error, PlacementError::Content { .. }), "{error}");
        }
    }
}
