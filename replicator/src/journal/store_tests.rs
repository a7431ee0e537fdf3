use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::journal::codec::Record;
use crate::journal::reader::SegmentReader;
use crate::transaction::{Change, Operation, Transaction};

const MANY: u64 = 1 << 30;

fn source() -> Source {
    Source {
        cluster: "test".to_owned(),
        slot: "tandem_test".to_owned(),
        system: 7_312_000_000_000_000_001,
        timeline: 1,
    }
}

fn known(id: Option<u64>, confirmed: u64) -> Known {
    Known {
        id,
        confirmed: Lsn(confirmed),
        created: Lsn(100),
        floor: Lsn(100),
    }
}

fn open(dir: &TempDir, known: Known) -> (Store, Option<String>) {
    let path = dir.path().join("node-1");
    Store::open(&path, &source(), known, MANY, &Interner::default()).expect("a store")
}

/// A transaction of one insert into one of three tables.
fn transaction(interner: &Interner, end: u64, size: usize) -> Entry {
    let mut shape = vec![b'R', 0, 0, 0, b'0' + u8::try_from(end % 3).expect("small")];
    shape.extend(b"public\0t\0d\0\x01\x01id\0\0\0\0\x19\xff\xff\xff\xff");
    let mut message = vec![b'I', 0, 0, 0, 1, b'N', 0, 1, b't'];
    message.extend(u32::try_from(size).expect("small").to_be_bytes());
    message.extend(std::iter::repeat_n(b'x', size));
    let change = Change {
        relation: interner.intern(&shape).expect("a shape"),
        operation: Operation::Insert,
        message: Bytes::from(message),
    };
    Entry::Transaction(Transaction {
        xid: None,
        statements: Vec::new(),
        end_lsn: Lsn(end),
        timestamp: 5,
        size: change.size(),
        changes: vec![change],
    })
}

fn cause(end: u64) -> Entry {
    Entry::Cause {
        node: 2,
        lsn: Lsn(9),
        end_lsn: Lsn(end),
    }
}

/// What the files hold.
fn ends(store: &Store) -> Vec<u64> {
    let interner = Interner::default();
    let mut ends = Vec::new();
    for segment in store.segments() {
        let limit = segment.len();
        let mut reader = SegmentReader::open(segment).expect("a file");
        while let Some(record) = reader
            .next(limit, Position::default(), &interner)
            .expect("sound")
        {
            if let Record::Entry(entry) = record {
                ends.push(entry.position().lsn.0);
            }
        }
    }
    ends
}

#[test]
fn what_was_written_is_there_after_a_restart_and_private() {
    let dir = tempfile::tempdir().expect("a directory");
    let interner = Interner::default();
    let (mut store, problem) = open(&dir, known(None, 100));
    assert_eq!((problem, store.end), (None, Lsn(100)));
    let entries = [
        transaction(&interner, 110, 5),
        cause(120),
        transaction(&interner, 130, 5),
    ];
    store.append(entries.iter()).expect("room");
    store.append([cause(125), cause(140)].iter()).expect("room");
    store.note(Lsn(150)).expect("room");
    let id = store.identity.id;
    drop(store);
    let (store, problem) = open(&dir, known(Some(id), 150));
    assert_eq!((problem, store.end), (None, Lsn(150)));
    assert_eq!(store.last_transaction, Lsn(130));
    assert_eq!(ends(&store), [110, 120, 130, 140]);
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("node-1")), 0o700);
    assert_eq!(mode(&store.current.segment.path), 0o600);
}

#[test]
fn two_processes_never_write_the_same_journal() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_store, _) = open(&dir, known(None, 100));
    let path = dir.path().join("node-1");
    let second = Store::open(
        &path,
        &source(),
        known(None, 100),
        MANY,
        &Interner::default(),
    );
    assert!(matches!(second, Err(StoreError::Locked(_))), "{second:?}");
}

#[test]
fn a_crash_at_any_byte_leaves_every_entry_that_was_written_before() {
    let interner = Interner::default();
    let dir = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(&dir, known(None, 100));
    let mut lengths = vec![(100, store.bytes())];
    for end in [110, 120, 130, 140] {
        store
            .append([transaction(&interner, end, 3), cause(end + 5)].iter())
            .expect("room");
        lengths.push((end + 5, store.bytes()));
    }
    let (path, id) = (store.current.segment.path.clone(), store.identity.id);
    drop(store);
    let whole = fs::read(&path).expect("the file");
    let header = usize::try_from(lengths[0].1).expect("small");
    for cut in header..whole.len() {
        fs::write(&path, whole.get(..cut).expect("shorter")).expect("written");
        let (mut store, problem) = open(&dir, known(Some(id), 100));
        assert_eq!(problem, None, "cut at {cut}");
        let least = lengths
            .iter()
            .rev()
            .find(|(_, length)| *length <= cut as u64);
        let least = least.expect("the header").0;
        assert!(
            store.end >= Lsn(least) && store.end <= Lsn(145),
            "{} at {cut}",
            store.end
        );
        // It goes on as if nothing had been.
        store
            .append(
                [
                    transaction(&interner, 200, 3),
                    transaction(&interner, 201, 3),
                ]
                .iter(),
            )
            .expect("room");
        let there = ends(&store);
        drop(store);
        let (store, _) = open(&dir, known(Some(id), 100));
        assert_eq!(ends(&store), there, "cut at {cut}");
        assert!(there.ends_with(&[200, 201]), "{there:?} at {cut}");
    }
}

#[test]
fn a_flipped_byte_ends_the_journal_there_and_is_never_read_as_something_else() {
    let interner = Interner::default();
    let dir = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(&dir, known(None, 100));
    let header = usize::try_from(store.bytes()).expect("small");
    let entries: Vec<_> = [110, 120, 130]
        .map(|end| transaction(&interner, end, 3))
        .into();
    store.append(entries.iter()).expect("room");
    let (path, id) = (store.current.segment.path.clone(), store.identity.id);
    drop(store);
    let whole = fs::read(&path).expect("the file");
    for at in header..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, damaged).expect("written");
        let (store, problem) = open(&dir, known(Some(id), 100));
        assert_eq!(problem, None, "flipped at {at}");
        let there = ends(&store);
        assert!(
            there.len() < 3 && [110, 120, 130].starts_with(&there),
            "{there:?} at {at}"
        );
    }
    // If the slot has moved on, that is a loss, and it is said.
    let mut damaged = whole.clone();
    damaged[whole.len() - 1] ^= 1;
    fs::write(&path, damaged).expect("written");
    let (store, problem) = open(&dir, known(Some(id), 130));
    let problem = problem.expect("a loss");
    assert!(
        problem.contains("ends at 0/78") && problem.contains("checksum"),
        "{problem}"
    );
    assert_eq!((store.end, store.identity.origin), (Lsn(130), Lsn(130)));
    assert!(
        dir.path()
            .join("node-1.aside")
            .join(path.file_name().expect("a name"))
            .exists()
    );
}

#[test]
fn what_does_not_fit_is_set_aside_and_said() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, _) = open(&dir, known(None, 100));
    let id = store.identity.id;
    drop(store);
    let path = dir.path().join("node-1");
    let reopen = |source: &Source, known: Known| {
        let (store, problem) =
            Store::open(&path, source, known, MANY, &Interner::default()).expect("a store");
        let problem = problem.expect("a problem");
        assert_eq!(
            (store.end, store.identity.origin),
            (known.confirmed, known.confirmed)
        );
        (store.identity.id, problem)
    };
    let other = Source {
        timeline: 2,
        ..source()
    };
    let (id, problem) = reopen(&other, known(Some(id), 100));
    assert!(problem.contains("timeline"), "{problem}");
    let (_, problem) = reopen(&other, known(Some(id.wrapping_add(1)), 100));
    assert!(
        problem.contains("not the journal that was last used"),
        "{problem}"
    );
    fs::remove_dir_all(&path).expect("removed");
    let (_, problem) = reopen(&other, known(Some(id), 300));
    assert!(problem.contains("gone"), "{problem}");
}

/// Random appends, trims and restarts against a plain list.
#[test]
fn random_histories_leave_exactly_what_was_not_trimmed() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let interner = Interner::default();
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("node-1");
        // Segments of the smallest size.
        let max = SEGMENT_BYTES_MIN * 8;
        let open = |known| Store::open(&path, &source(), known, max, &Interner::default());
        let (mut store, _) = open(known(None, 100)).expect("a store");
        let id = store.identity.id;
        let (mut all, mut durable) = (Vec::new(), 100);
        for _ in 0..200 {
            match random.u32(0..10) {
                0..6 => {
                    let mut entries = Vec::new();
                    for _ in 0..random.usize(1..4) {
                        let end = all.last().copied().unwrap_or(100) + random.u64(1..50);
                        let size = random.usize(0..12_000);
                        entries.push(if random.u32(0..4) == 0 {
                            cause(end)
                        } else {
                            transaction(&interner, end, size)
                        });
                        all.push(end);
                    }
                    match store.append(entries.iter()) {
                        Ok(()) => {}
                        Err(StoreError::Full(_)) => all.truncate(
                            all.len()
                                - entries
                                    .iter()
                                    .filter(|e| e.position() > store.end.into())
                                    .count(),
                        ),
                        Err(error) => panic!("{error}"),
                    }
                }
                6..9 => {
                    if let Some(&last) = all.last() {
                        durable = random.u64(durable..=last.max(durable));
                        store.trim(Lsn(durable)).expect("trimmed");
                    }
                }
                _ => {
                    drop(store);
                    let (again, problem) = open(known(Some(id), durable)).expect("a store");
                    assert_eq!(problem, None, "seed {seed}");
                    store = again;
                }
            }
            assert!(store.bytes() <= max, "seed {seed}");
            let there = ends(&store);
            assert!(all.ends_with(&there), "seed {seed}: {there:?} of {all:?}");
            let needed = all.iter().filter(|&&end| end > durable).count();
            assert!(there.len() >= needed, "seed {seed}");
            let begin = store.segments()[0].begin;
            assert_eq!(
                there.len(),
                all.iter().filter(|&&end| Lsn(end) > begin).count()
            );
        }
    }
}

/// Without a sync the machine may lose any part of what the slot was not confirmed to.
#[test]
fn damage_in_the_middle_ends_the_journal_there_if_the_slot_still_has_the_rest() {
    let interner = Interner::default();
    for removed in [false, true] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("node-1");
        // Segments of the smallest size.
        let max = SEGMENT_BYTES_MIN * 8;
        let open = |known| Store::open(&path, &source(), known, max, &Interner::default());
        let (mut store, _) = open(known(None, 100)).expect("a store");
        let id = store.identity.id;
        for end in 101..120 {
            let entry = transaction(&interner, end, 12_000);
            store.append(std::iter::once(&entry)).expect("room");
        }
        let segments = store.segments();
        assert_eq!(segments.len(), 4);
        let (second, third) = (&segments[1], &segments[2]);
        drop(store);
        if removed {
            fs::remove_file(&second.path).expect("removed");
        } else {
            let mut bytes = fs::read(&second.path).expect("the file");
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            fs::write(&second.path, bytes).expect("written");
        }
        let (store, problem) = open(known(Some(id), 101)).expect("a store");
        assert_eq!(problem, None);
        let there = ends(&store);
        let until = if removed {
            second.begin.0
        } else {
            third.begin.0 - 1
        };
        assert_eq!(there, (101..=until).collect::<Vec<_>>());
        drop(store);
        let (_, problem) = open(known(Some(id), 119)).expect("a store");
        assert!(problem.is_some_and(|problem| problem.contains("ends at")));
    }
}

#[test]
fn what_is_synced_is_not_synced_again() {
    let interner = Interner::default();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("node-1");
    let max = SEGMENT_BYTES_MIN * 8;
    let open = |known| Store::open(&path, &source(), known, max, &Interner::default());
    let (mut store, _) = open(known(None, 100)).expect("a store");
    let id = store.identity.id;
    for end in 101..120 {
        let entry = transaction(&interner, end, 12_000);
        store.append(std::iter::once(&entry)).expect("room");
    }
    let sync = store.sync();
    assert_eq!((sync.files.len(), sync.end), (4, Lsn(119)));
    sync.run().expect("synced");
    store.synced(&sync);
    assert_eq!(store.sync().files.len(), 1);
    let third = store.segments()[2].begin;
    drop(store);
    // After a restart, everything that the slot was not confirmed to.
    let (store, _) = open(known(Some(id), third.0)).expect("a store");
    assert_eq!(store.sync().files.len(), 2);
}

#[test]
fn shapes_that_a_file_has_twice_do_not_shift_the_numbers_of_later_ones() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(&dir, known(None, 100));
    let id = store.identity.id;
    // Another interner gives the same shapes other ids.
    for end in [111, 112] {
        let entry = transaction(&Interner::default(), end, 3);
        store.append(std::iter::once(&entry)).expect("room");
        let again = transaction(&Interner::default(), end + 9, 3);
        store.append(std::iter::once(&again)).expect("room");
    }
    drop(store);
    let (mut store, _) = open(&dir, known(Some(id), 100));
    let interner = Interner::default();
    for end in [132, 133, 134, 135] {
        let entry = transaction(&interner, end, 3);
        store.append(std::iter::once(&entry)).expect("room");
    }
    let segment = store.segments().remove(0);
    let limit = segment.len();
    let mut reader = SegmentReader::open(segment).expect("a file");
    while let Some(record) = reader
        .next(limit, Position::default(), &interner)
        .expect("sound")
    {
        let Record::Entry(Entry::Transaction(read)) = record else {
            panic!("{record:?}")
        };
        let Entry::Transaction(written) = transaction(&interner, read.end_lsn.0, 3) else {
            panic!("not a transaction")
        };
        assert_eq!(read.changes[0].relation.id, written.changes[0].relation.id);
    }
}

#[test]
fn one_transaction_of_any_size_finds_its_way() {
    let interner = Interner::default();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("node-1");
    let (mut store, _) =
        Store::open(&path, &source(), known(None, 100), 1000, &interner).expect("a store");
    let (first, large, small) = (
        transaction(&interner, 105, 9),
        transaction(&interner, 110, 9000),
        transaction(&interner, 120, 9),
    );
    store.append(std::iter::once(&first)).expect("it is empty");
    // Who waits for it may be what those wait for who hold the first one back.
    store
        .append(std::iter::once(&large))
        .expect("more than half of the room is free");
    let refused = store.append(std::iter::once(&small));
    assert!(
        matches!(refused, Err(StoreError::Full(1000))),
        "{refused:?}"
    );
    assert_eq!(store.end, Lsn(110));
    store.restart(Lsn(110), Lsn(110)).expect("a new file");
    store.append(std::iter::once(&small)).expect("room again");
    assert_eq!(ends(&store), [120]);
}

/// A transaction that comes in so many parts, each of one change of `size` bytes, and its end.
fn in_parts(interner: &Interner, end: u64, parts: u32, size: usize) -> Vec<Entry> {
    let piece = |end_lsn: u64| match transaction(interner, end_lsn, size) {
        Entry::Transaction(transaction) => transaction,
        other => panic!("{other:?}"),
    };
    let mut entries: Vec<_> = (1..=parts)
        .map(|number| Entry::Part {
            number,
            part: piece(end - 1),
        })
        .collect();
    entries.push(Entry::End(piece(end)));
    entries
}

#[test]
fn a_large_transaction_is_written_and_read_in_parts() {
    let interner = Interner::default();
    let dir = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(&dir, known(None, 100));
    let mut entries = vec![transaction(&interner, 110, 3)];
    entries.extend(in_parts(&interner, 120, 3, 5_000_000));
    entries.extend([cause(125), transaction(&interner, 130, 3)]);
    entries.extend(in_parts(&interner, 140, 2, 10));
    for entry in &entries {
        store.append(std::iter::once(entry)).expect("room");
        assert_eq!(store.position(), entry.position());
        assert_eq!(store.is_open(), entry.position().is_inside());
        let segment = &store.current.segment;
        assert_eq!(segment.len() == segment.complete(), !store.is_open());
    }
    assert_eq!((store.end, store.last_transaction), (Lsn(140), Lsn(140)));
    let segment = store.segments().remove(0);
    let limit = segment.len();
    for after in entries.iter().map(Entry::position) {
        let mut reader = SegmentReader::open(Arc::clone(&segment)).expect("a file");
        let mut behind = entries.iter().filter(|entry| entry.position() > after);
        while let Some(record) = reader.next(limit, after, &interner).expect("sound") {
            if let Record::Entry(entry) = record {
                let written = behind.next().expect("no more than was written");
                assert_eq!(format!("{entry:?}"), format!("{written:?}"));
            }
        }
        assert!(behind.next().is_none(), "after {after:?}");
    }
}

#[test]
fn a_crash_at_any_byte_of_a_large_transaction_leaves_nothing_of_it() {
    let interner = Interner::default();
    let dir = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(&dir, known(None, 100));
    store
        .append([transaction(&interner, 110, 3)].iter())
        .expect("room");
    let before = usize::try_from(store.bytes()).expect("small");
    let large = in_parts(&interner, 120, 3, 40);
    store.append(large.iter()).expect("room");
    let id = store.identity.id;
    let path = store.current.segment.path.clone();
    drop(store);
    let bytes = fs::read(&path).expect("a file");
    for length in before..bytes.len() {
        fs::write(&path, &bytes[..length]).expect("written");
        let (mut store, problem) = open(&dir, known(Some(id), 110));
        assert_eq!((problem, store.end), (None, Lsn(110)), "at {length}");
        assert_eq!((store.is_open(), store.bytes()), (false, before as u64));
        // It comes again, with the table of another shape that was cut off.
        store.append(large.iter()).expect("room");
        assert_eq!(ends(&store), [110, 119, 119, 119, 120], "at {length}");
        drop(store);
        let (store, problem) = open(&dir, known(Some(id), 110));
        assert_eq!((problem, store.end), (None, Lsn(120)), "at {length}");
    }
}

#[test]
fn parts_whose_end_does_not_come_are_cut_off_and_may_come_again() {
    let interner = Interner::default();
    let dir = tempfile::tempdir().expect("a directory");
    let (mut store, _) = open(&dir, known(None, 100));
    store
        .append([transaction(&interner, 111, 3)].iter())
        .expect("room");
    let before = store.bytes();
    let large = in_parts(&interner, 121, 3, 10);
    store.append(large[..2].iter()).expect("room");
    let segment = Arc::clone(&store.current.segment);
    let cuts = segment.cuts();
    store.cut();
    assert_eq!((store.end, store.bytes()), (Lsn(111), before));
    assert!(segment.cuts() > cuts, "readers of it have to know");
    let file = fs::metadata(&segment.path).expect("there");
    assert_eq!(file.len(), before);
    store.append(large.iter()).expect("room");
    assert_eq!(ends(&store), [111, 120, 120, 120, 121]);
    store.cut();
    assert_eq!(store.end, Lsn(121), "what has its end stays");
}

#[test]
fn what_was_begun_below_the_bound_comes_to_its_end_in_one_file() {
    let interner = Interner::default();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("node-1");
    // Segments of the smallest size.
    let bound = SEGMENT_BYTES_MIN * 8;
    let (mut store, _) =
        Store::open(&path, &source(), known(None, 100), bound, &interner).expect("a store");
    store
        .append([transaction(&interner, 110, 300_000)].iter())
        .expect("room");
    for entry in in_parts(&interner, 120, 3, 200_000) {
        store.append(std::iter::once(&entry)).expect("it is begun");
    }
    assert_eq!(store.segments().len(), 2, "its own and the one before");
    let next = in_parts(&interner, 130, 1, 10);
    let refused = store.append(next.iter());
    assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    assert_eq!((store.end, store.is_open()), (Lsn(120), false));
}
