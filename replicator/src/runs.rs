//! Runs: stretches of one source's transactions that were applied as one local transaction, under the version of the
//! newest of them. Their rows look newer than they are; `tandem.run` holds what they really are until no older change can
//! arrive any more.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BufMut;
use tandem_wire::reader::{ReadError, Reader};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::control::{Control, ControlError};
use crate::version::{PgTimestamp, Version, microseconds_sql};

/// So many rows of open runs are looked after on one target; with more, transactions are applied one by one again.
const ROWS_MAX: usize = 4_000_000;

/// The true versions of a run's rows, as `tandem.run.versions` has them: for each table the length of its name, its name
/// (quoted, with its schema), how many rows; for each row its timestamp, the length of its key, its key. Lengths and
/// numbers of four bytes, timestamps of eight, all big-endian. A key is the text of each column behind its length.
#[derive(Debug, Default)]
pub(crate) struct Versions {
    bytes: Vec<u8>,
    hashes: Vec<u32>,
}

impl Versions {
    /// Adds a table's rows.
    pub(crate) fn add<'a>(
        &mut self,
        table: &str,
        rows: impl ExactSizeIterator<Item = (&'a [u8], PgTimestamp)>,
    ) {
        self.put(table.as_bytes());
        self.bytes.put_u32(length(rows.len()));
        for (key, timestamp) in rows {
            self.bytes.put_i64(timestamp);
            self.put(key);
            self.hashes.push(hash(table, key));
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.put_u32(length(bytes.len()));
        self.bytes.put_slice(bytes);
    }

    /// What is stored.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Gives each row's table, key and timestamp of what is stored.
    ///
    /// # Errors
    /// When the bytes are not what [`add`](Self::add) makes.
    pub(crate) fn read<'a>(
        bytes: &'a [u8],
        mut each: impl FnMut(&'a str, &'a [u8], PgTimestamp),
    ) -> Result<(), ReadError> {
        let mut reader = Reader::new(bytes);
        while reader.remaining() > 0 {
            let table = sized(&mut reader)?;
            let table = std::str::from_utf8(table).unwrap_or_default();
            for _ in 0..reader.u32()? {
                let timestamp = reader.i64()?;
                each(table, sized(&mut reader)?, timestamp);
            }
        }
        Ok(())
    }
}

fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn sized<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], ReadError> {
    let length = usize::try_from(reader.u32()?).unwrap_or(usize::MAX);
    reader.bytes(length)
}

fn hash(table: &str, key: &[u8]) -> u32 {
    let hash = xxh3_64_with_seed(key, xxh3_64(table.as_bytes()));
    u32::try_from(hash & u64::from(u32::MAX)).unwrap_or_default()
}

/// Appends one column of a key to what [`Versions`] takes for one.
pub(crate) fn put_key_column(key: &mut Vec<u8>, text: &[u8]) {
    key.put_u32(length(text.len()));
    key.put_slice(text);
}

/// The columns of such a key.
///
/// # Errors
/// When it is none.
pub(crate) fn key_columns(key: &[u8]) -> Result<Vec<&[u8]>, ReadError> {
    let mut reader = Reader::new(key);
    let mut columns = Vec::new();
    while reader.remaining() > 0 {
        columns.push(sized(&mut reader)?);
    }
    Ok(columns)
}

/// A run whose rows an older change may still meet.
#[derive(Debug)]
struct Open {
    id: i64,
    stamp: Version,
    /// Hashes of its rows' tables and keys, sorted.
    hashes: Vec<u32>,
}

/// The open runs of one target, as the daemon knows them.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    open: Mutex<Vec<Open>>,
    rows: AtomicUsize,
}

impl Runs {
    fn lock(&self) -> MutexGuard<'_, Vec<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is room for another one.
    pub(crate) fn has_room(&self) -> bool {
        self.rows.load(Ordering::Acquire) < ROWS_MAX
    }

    /// Forgets all: the target may have lost some.
    pub(crate) fn clear(&self) {
        self.set(Vec::clear);
    }

    /// Reads those of a source that are not known yet; that source's link may not be adding to them meanwhile.
    ///
    /// # Errors
    /// When the target cannot be asked.
    pub(crate) async fn load(&self, control: &Control, source: u16) -> Result<(), ControlError> {
        let stamp = microseconds_sql("stamp");
        let sql = format!(
            "SELECT id, {stamp} FROM tandem.run WHERE versions IS NOT NULL AND source = $1"
        );
        for row in control.query(&sql, &[&i32::from(source)]).await? {
            let (id, timestamp) = (row.try_get(0)?, row.try_get(1)?);
            if self.lock().iter().any(|run| run.id == id) {
                continue;
            }
            let mut hashes = Vec::new();
            if let Some(bytes) = read(control, id).await? {
                Versions::read(&bytes, |table, key, _| hashes.push(hash(table, key)))
                    .map_err(|_| ControlError::Unexpected("tandem.run"))?;
            }
            let stamp = Version {
                timestamp,
                node: source,
            };
            self.set(|runs| runs.push(Open::new(id, stamp, hashes)));
        }
        Ok(())
    }

    fn set(&self, change: impl FnOnce(&mut Vec<Open>)) {
        let mut open = self.lock();
        change(&mut open);
        let rows = open.iter().map(|run| run.hashes.len()).sum();
        self.rows.store(rows, Ordering::Release);
    }

    /// A run is committed.
    pub(crate) fn add(&self, id: i64, stamp: Version, versions: Versions) {
        self.set(|runs| runs.push(Open::new(id, stamp, versions.hashes)));
    }

    /// No older change can arrive any more at runs up to this number.
    pub(crate) fn close(&self, last: i64) {
        self.set(|runs| runs.retain(|run| run.id > last));
    }

    /// Whether rows may look newer than a change of this version although they are older.
    pub(crate) fn may_deceive(&self, version: Version) -> bool {
        self.lock().iter().any(|run| run.stamp > version)
    }

    /// The runs, by number and stamp, whose stamp is newer than `version` and which may have written one of the rows: of
    /// the table that has a key, or all where it has none.
    pub(crate) fn suspects(
        &self,
        version: Version,
        rows: &[(String, Option<Vec<u8>>)],
    ) -> Vec<(i64, Version)> {
        let open = self.lock();
        let newer = open.iter().filter(|run| run.stamp > version);
        let suspects = newer.filter(|run| {
            rows.iter().any(|(table, key)| match key {
                Some(key) => run.hashes.binary_search(&hash(table, key)).is_ok(),
                None => true,
            })
        });
        suspects.map(|run| (run.id, run.stamp)).collect()
    }
}

impl Open {
    fn new(id: i64, stamp: Version, mut hashes: Vec<u32>) -> Self {
        hashes.sort_unstable();
        Self { id, stamp, hashes }
    }
}

/// What is stored of a run; `None` when it is closed.
///
/// # Errors
/// When the target cannot be asked.
pub(crate) async fn read(control: &Control, id: i64) -> Result<Option<Vec<u8>>, ControlError> {
    let sql = "SELECT versions FROM tandem.run WHERE id = $1";
    let rows = control.query(sql, &[&id]).await?;
    let versions = rows.first().map(|row| row.try_get(0)).transpose()?;
    Ok(versions.flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(columns: &[&str]) -> Vec<u8> {
        let mut key = Vec::new();
        for column in columns {
            put_key_column(&mut key, column.as_bytes());
        }
        key
    }

    fn versions() -> Versions {
        let (one, two) = (key(&["1"]), key(&["a", "b"]));
        let mut versions = Versions::default();
        versions.add("\"public\".\"t\"", [(one.as_slice(), 7)].into_iter());
        versions.add("\"public\".\"u\"", [(two.as_slice(), -8)].into_iter());
        versions
    }

    #[test]
    fn what_is_stored_reads_back() {
        let versions = versions();
        let mut found = Vec::new();
        Versions::read(versions.bytes(), |table, key, at| {
            found.push((table.to_owned(), key.to_vec(), at));
        })
        .expect("reads");
        let expected = [
            ("\"public\".\"t\"".to_owned(), key(&["1"]), 7),
            ("\"public\".\"u\"".to_owned(), key(&["a", "b"]), -8),
        ];
        assert_eq!(found, expected);
        assert_eq!(
            key_columns(&key(&["a", "b"])).expect("reads"),
            [b"a".as_slice(), b"b"]
        );
        for end in 1..versions.bytes().len() {
            let cut = &versions.bytes()[..end];
            let mut rows = 0;
            let read = Versions::read(cut, |_, _, _| rows += 1);
            assert!(read.is_err() || rows < 2, "{end}");
        }
    }

    #[test]
    fn only_an_older_change_of_a_row_of_an_open_run_is_deceived() {
        let stamp = |timestamp| Version { timestamp, node: 1 };
        let runs = Runs::default();
        runs.add(3, stamp(50), versions());
        let row = |table: &str, columns: &[&str]| {
            [(format!("\"public\".\"{table}\""), Some(key(columns)))]
        };
        assert!(runs.may_deceive(stamp(49)) && !runs.may_deceive(stamp(50)));
        assert_eq!(runs.suspects(stamp(9), &row("t", &["1"])), [(3, stamp(50))]);
        assert_eq!(runs.suspects(stamp(50), &row("t", &["1"])), []);
        assert_eq!(runs.suspects(stamp(9), &row("t", &["2"])), []);
        assert_eq!(runs.suspects(stamp(9), &row("u", &["1"])), []);
        let whole = [("\"public\".\"t\"".to_owned(), None)];
        assert_eq!(runs.suspects(stamp(9), &whole), [(3, stamp(50))]);
        runs.close(3);
        assert!(!runs.may_deceive(stamp(9)));
    }
}
