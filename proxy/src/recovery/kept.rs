//! Owns what is written down of a node's absences: the one that is not over, and the reports of those that are. One small file
//! for each node in the state directory, because of two daemons that share it each works on other nodes.
//!
//! Not a table: while the node is away it could not be written there, and no other node is there for certain.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::report::{Absence, Report};
use crate::durable::replace;

/// The newest form of the file that is understood.
const VERSION: u32 = 1;
/// Reports of a node that are kept; with their rows each is some 500 kB at most.
const REPORTS_MAX: usize = 10;

/// What is in a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Kept {
    version: u32,
    /// How many reports there ever were.
    made: u64,
    absence: Option<Absence>,
    /// The newest of them, which comes last.
    reports: Vec<Report>,
}

impl Default for Kept {
    fn default() -> Kept {
        Kept {
            version: VERSION,
            made: 0,
            absence: None,
            reports: Vec::new(),
        }
    }
}

/// What is known of a node's absences.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// The one that is not over.
    pub(crate) absence: Option<Absence>,
    /// How many are over.
    pub(crate) made: u64,
    /// The newest of these, which comes last.
    pub(crate) reports: Vec<Arc<Report>>,
}

impl From<Kept> for Known {
    fn from(kept: Kept) -> Known {
        Known {
            absence: kept.absence,
            made: kept.made,
            reports: kept.reports.into_iter().map(Arc::new).collect(),
        }
    }
}

/// The file of one node.
#[derive(Debug)]
pub(super) struct KeptFile {
    path: PathBuf,
    known: Mutex<Known>,
}

impl KeptFile {
    /// Reads the file of the node with this id. One that cannot be used is set aside: reports are no reason not to serve.
    pub(super) fn read(state_dir: &Path, id: u16) -> KeptFile {
        let path = state_dir.join(format!("recovery-{id}.json"));
        let kept = read(&path).unwrap_or_else(|problem| {
            let aside = path.with_extension("json.unusable");
            let moved = fs::rename(&path, &aside).err();
            tracing::error!(
                file = %path.display(), aside = %aside.display(), problem, moved = moved.map(|error| error.to_string()),
                "what is written down of a node's recoveries cannot be used, and is set aside"
            );
            Kept::default()
        });
        KeptFile {
            path,
            known: Mutex::new(kept.into()),
        }
    }

    /// What is known now.
    pub(super) fn known(&self) -> Known {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Notes an absence that is not over, or that there is none any more.
    pub(super) async fn set_absence(&self, absence: Option<Absence>) {
        self.change(move |kept| kept.absence = absence).await;
    }

    /// Notes what an absence has come to: it is over.
    pub(super) async fn conclude(&self, report: Report) {
        self.change(move |kept| {
            kept.absence = None;
            kept.made += 1;
            kept.reports.push(report);
            let more = kept.reports.len().saturating_sub(REPORTS_MAX);
            kept.reports.drain(..more);
        })
        .await;
    }

    /// Another daemon may have written the file since; what it knows stays. What cannot be written counts all the same while
    /// this daemon lives.
    async fn change(&self, change: impl FnOnce(&mut Kept) + Send + 'static) {
        let (path, known) = (self.path.clone(), self.known());
        let changed = tokio::task::spawn_blocking(move || {
            let mut kept = read(&path).unwrap_or_else(|_| Kept {
                version: VERSION,
                made: known.made,
                absence: known.absence,
                reports: known
                    .reports
                    .iter()
                    .map(|report| (**report).clone())
                    .collect(),
            });
            change(&mut kept);
            (replace(&path, &kept), kept)
        });
        let Ok((written, kept)) = changed.await else {
            return;
        };
        if let Err(error) = written {
            tracing::error!(file = %self.path.display(), %error, "a node's absence is not written down");
        }
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = kept.into();
    }
}

/// What a file says; where there is none, nothing has happened yet.
fn read(path: &Path) -> Result<Kept, String> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
        Err(error) => return Err(error.to_string()),
    };
    let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    match kept.version {
        VERSION => Ok(kept),
        other => Err(format!(
            "it is of version {other}, this daemon knows {VERSION}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use tandem_replicator::{Moment, Tail, operator::Judged};

    use super::*;
    use crate::recovery::report::tests::report;

    #[tokio::test]
    async fn absences_and_the_newest_reports_outlive_the_daemon() {
        let dir = tempfile::tempdir().expect("a directory");
        let absence = Absence {
            epoch: 3,
            down: Moment::now(),
            back: None,
            tail: Tail::default(),
        };
        let first = KeptFile::read(dir.path(), 2);
        assert!(first.known().absence.is_none());
        first.set_absence(Some(absence.clone())).await;
        let second = KeptFile::read(dir.path(), 2);
        assert_eq!(second.known().absence, Some(absence));
        for transactions in 0..15 {
            second
                .conclude(report(transactions, Judged::default()))
                .await;
        }
        // The one before has seen none of these, and loses none.
        first.conclude(report(15, Judged::default())).await;
        let known = KeptFile::read(dir.path(), 2).known();
        assert_eq!((known.absence, known.made), (None, 16));
        let kept: Vec<u64> = known
            .reports
            .iter()
            .map(|report| report.tail.transactions)
            .collect();
        assert_eq!(kept, (6..16).collect::<Vec<_>>());
        assert_eq!(KeptFile::read(dir.path(), 1).known().made, 0);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_used_is_set_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        for text in [
            "",
            "{}",
            "{\"version\":2,\"made\":0,\"absence\":null,\"reports\":[]}",
        ] {
            fs::write(dir.path().join("recovery-1.json"), text).expect("written");
            let file = KeptFile::read(dir.path(), 1);
            assert_eq!(file.known().made, 0, "{text}");
            let aside = fs::read_to_string(dir.path().join("recovery-1.json.unusable"));
            assert_eq!(aside.expect("it is there"), text);
        }
    }
}
