use tempfile::TempDir;

use super::*;

#[path = "parts_tests.rs"]
mod parts;

use crate::transaction::Transaction;

fn source() -> Source {
    Source {
        cluster: "test".to_owned(),
        slot: "tandem_test".to_owned(),
        system: 1,
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

fn transaction(end: u64) -> Entry {
    Entry::Transaction(Transaction {
        xid: None,
        statements: Vec::new(),
        end_lsn: Lsn(end),
        timestamp: 5,
        changes: Vec::new(),
        size: 0,
    })
}

/// A journal in a directory of its own, of at most `bytes_max`.
struct Bench {
    dir: TempDir,
    journal: Arc<Journal>,
    bytes_max: u64,
    id: Option<u64>,
    writer: u64,
}

impl Bench {
    async fn new(bytes_max: u64) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let journal = Self::journal(&dir, bytes_max);
        let mut bench = Self {
            dir,
            journal,
            bytes_max,
            id: None,
            writer: 0,
        };
        bench.open(100, &[]).await;
        bench
    }

    fn journal(dir: &TempDir, bytes_max: u64) -> Arc<Journal> {
        let path = dir.path().join("node-1");
        Arc::new(Journal::new(path, bytes_max, Arc::default()))
    }

    async fn open(&mut self, confirmed: u64, carried: &[(u16, u64)]) -> Opened {
        let carried = carried.iter().map(|&(id, lsn)| (id, Lsn(lsn))).collect();
        let known = known(self.id, confirmed);
        let opened = self.journal.open(source(), known, Lsn(u64::MAX), carried);
        let opened = opened.await.expect("it opens");
        self.id = Some(opened.id);
        self.writer = opened.writer;
        opened
    }

    /// As another process would find it: no read that a reader did not wait for holds the files any more.
    async fn restart(&mut self) {
        drop(self.journal.files().await.take());
        self.journal = Self::journal(&self.dir, self.bytes_max);
    }

    async fn append(&self, ends: impl IntoIterator<Item = u64>) {
        let entries: Vec<_> = ends.into_iter().map(transaction).collect();
        self.append_entries(entries).await.expect("open");
    }

    async fn append_entries(&self, entries: Vec<Entry>) -> Result<(), JournalError> {
        self.journal.append(self.writer, entries, Lsn(0)).await
    }

    async fn trim(&self, durable: u64) -> bool {
        let durable = Lsn(durable);
        self.journal
            .trim(durable, durable, true)
            .await
            .expect("open")
    }

    /// Forgets what is in memory, so that it has to be read from the files.
    fn empty_window(&self) {
        let mut inner = self.journal.lock();
        let written = inner.written;
        inner.window.shrink(0, written);
        inner.window.trim(written.lsn);
    }

    async fn read(&self, cursor: &mut Cursor, known: u64) -> Vec<u64> {
        match self.run(cursor, known).await {
            Run::Entries(entries) => entries.iter().map(|entry| entry.position().lsn.0).collect(),
            Run::UpTo(lsn) => vec![1_000_000 + lsn.0],
            Run::Broken => vec![0],
            Run::Hole(hole) => panic!("a hole {hole}"),
        }
    }

    async fn run(&self, cursor: &mut Cursor, known: u64) -> Run {
        let run = self.journal.read(cursor, Lsn(known), 10, 1 << 20).await;
        run.expect("it can be read")
    }
}

fn cursor(has: u64) -> Cursor {
    Cursor::new(2, Lsn(has), true)
}

#[tokio::test]
async fn each_reader_sees_every_entry_once_and_in_order() {
    let bench = Bench::new(1 << 30).await;
    let (mut one, mut two) = (cursor(0), cursor(0));
    bench.append([110, 120]).await;
    assert_eq!(bench.read(&mut one, 0).await, [110, 120]);
    bench.append([130]).await;
    assert_eq!(bench.read(&mut one, 120).await, [130]);
    assert_eq!(bench.read(&mut two, 0).await, [110, 120, 130]);
}

#[tokio::test]
async fn a_reader_that_is_behind_reads_files_and_then_goes_on_in_memory() {
    let bench = Bench::new(1 << 30).await;
    let mut reader = cursor(0);
    bench.append(110..140).await;
    bench.empty_window();
    bench.append(140..145).await;
    let mut seen = Vec::new();
    while seen.len() < 35 {
        let known = seen.last().copied().unwrap_or(0);
        seen.extend(bench.read(&mut reader, known).await);
    }
    assert_eq!(seen, (110..145).collect::<Vec<_>>());
    assert_eq!(
        bench.read(&mut cursor(120), 120).await,
        (121..131).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn an_idle_source_still_tells_how_far_it_is() {
    let bench = Bench::new(1 << 30).await;
    bench
        .journal
        .append(bench.writer, Vec::new(), Lsn(177))
        .await
        .expect("open");
    assert_eq!(bench.read(&mut cursor(0), 0).await, [1_000_177]);
    let empty = vec![Entry::Empty { end_lsn: Lsn(188) }];
    bench.append_entries(empty).await.expect("open");
    assert_eq!(bench.read(&mut cursor(0), 177).await, [1_000_188]);
}

#[tokio::test]
async fn a_journal_goes_on_where_another_process_left_it() {
    let mut bench = Bench::new(1 << 30).await;
    bench.append([110, 120]).await;
    bench
        .journal
        .append(bench.writer, Vec::new(), Lsn(150))
        .await
        .expect("open");
    bench.journal.note(Lsn(150)).await.expect("open");
    bench.restart().await;
    let opened = bench.open(150, &[(2, 110)]).await;
    assert_eq!(opened.end, Lsn(150));
    // What the stream repeats is not there twice.
    bench.append([120, 160]).await;
    let mut reader = cursor(110);
    assert_eq!(bench.read(&mut reader, 110).await, [120, 160]);
}

#[tokio::test]
async fn a_target_that_went_back_behind_what_is_kept_is_told_of_the_hole() {
    let bench = Bench::new(1 << 30).await;
    bench.append([110, 120, 130]).await;
    let mut store = bench.journal.files().await;
    let store_mut = store.as_mut().expect("open");
    store_mut.restart(Lsn(130), Lsn(130)).expect("a new file");
    bench.journal.lock().take_over(store_mut);
    drop(store);
    let Run::Hole(hole) = bench.run(&mut cursor(120), 120).await else {
        panic!("no hole")
    };
    assert_eq!((hole.from, hole.to), (Lsn(120), Lsn(130)));
    assert!(hole.why.contains("backup"), "{hole}");
    let Run::Hole(hole) = bench.run(&mut cursor(0), 0).await else {
        panic!("no hole")
    };
    assert!(
        hole.from == Lsn(100) && hole.why.contains("nothing of it yet"),
        "{hole}"
    );
    bench.append([140]).await;
    assert_eq!(bench.read(&mut cursor(130), 130).await, [140]);
    // A node that reads its own stream does not remember how far it was.
    let mut own = Cursor::new(1, Lsn(0), false);
    assert_eq!(bench.read(&mut own, 0).await, [140]);
}

#[tokio::test]
async fn a_lost_journal_is_a_hole_for_those_who_depend_on_it_and_for_nobody_else() {
    let mut bench = Bench::new(1 << 30).await;
    bench.append([110, 120, 130]).await;
    bench.restart().await;
    std::fs::remove_dir_all(bench.dir.path().join("node-1")).expect("removed");
    bench.open(130, &[(2, 115)]).await;
    let Run::Hole(hole) = bench.run(&mut cursor(110), 110).await else {
        panic!("no hole")
    };
    assert_eq!((hole.from, hole.to), (Lsn(115), Lsn(130)));
    assert!(hole.why.contains("files are gone"), "{hole}");
    bench.append([140]).await;
    // Another target's progress may lie further back: the source wrote nothing since that it needed.
    let mut other = Cursor::new(3, Lsn(110), true);
    assert_eq!(bench.read(&mut other, 110).await, [140]);
    // As the message says, somebody may bring it up to date.
    assert_eq!(bench.read(&mut cursor(130), 130).await, [140]);
}

#[tokio::test]
async fn at_the_bound_those_who_keep_up_go_on_and_the_others_get_everything_later() {
    // One entry of this kind takes 33 bytes.
    let mut bench = Bench::new(1000).await;
    let (mut fast, mut slow) = (cursor(0), Cursor::new(3, Lsn(0), true));
    for end in 200..300 {
        bench.append([end]).await;
        assert_eq!(bench.read(&mut fast, end - 1).await, [end]);
        // The slow one is at 200 and carried, the others have everything.
        bench.journal.set_carried([(3, Lsn(200))].into(), Lsn(200));
        let trimmed = bench.journal.trim(Lsn(200), Lsn(end), true).await;
        assert!(!trimmed.expect("open"), "{end}");
    }
    let problem = bench.journal.problem().expect("it is full");
    assert!(problem.contains("journal_max"), "{problem}");
    assert!(bench.journal.figures().bytes <= 1000);
    let mut seen = Vec::new();
    let end = bench.journal.lock().complete.0;
    while seen.last() != Some(&end) {
        let known = seen.last().copied().unwrap_or(0);
        seen.extend(bench.read(&mut slow, known).await);
    }
    // It waits for what went past the files.
    let waits = bench.journal.read(&mut slow, Lsn(end), 10, 1000);
    let waited = tokio::time::timeout(std::time::Duration::from_millis(20), waits).await;
    assert!(waited.is_err(), "{waited:?}");
    assert!(bench.trim(end).await, "there is room again");
    let opened = bench.open(200, &[(3, 200)]).await;
    assert_eq!(opened.end, Lsn(end));
    let mut fast_seen = vec![299];
    while seen.last() != Some(&310) {
        // The stream is read again.
        let from = bench.journal.lock().complete.0 + 1;
        bench.append((from..=310).take(5)).await;
        let written = bench.journal.lock().complete.0;
        for (cursor, seen) in [(&mut slow, &mut seen), (&mut fast, &mut fast_seen)] {
            if seen.last() < Some(&written) {
                let known = seen.last().copied().unwrap_or(0);
                seen.extend(bench.read(cursor, known).await);
            }
        }
        if bench.trim(seen.last().copied().unwrap_or(0)).await {
            bench.open(200, &[]).await;
        }
    }
    assert_eq!(seen, (200..=310).collect::<Vec<_>>());
    assert_eq!(fast_seen, (299..=310).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_went_past_the_files_is_not_noted_as_nothing_while_it_comes_again() {
    let mut bench = Bench::new(1000).await;
    let mut slow = Cursor::new(3, Lsn(0), true);
    for end in 200..300 {
        bench.append([end]).await;
        let trimmed = bench.journal.trim(Lsn(200), Lsn(end), true).await;
        assert!(!trimmed.expect("open"), "{end}");
    }
    let end = bench.journal.lock().complete.0;
    assert!(end < 299 && bench.journal.tail() == Lsn(299));
    let mut seen = Vec::new();
    while seen.last() < Some(&end) {
        seen.extend(bench.read(&mut slow, 200).await);
    }
    assert_eq!(seen.last(), Some(&end));
    assert!(bench.trim(end).await, "there is room again");
    assert_eq!(bench.open(200, &[(3, 200)]).await.end, Lsn(end));
    // Before the stream has brought anything of it, and when it has brought a little.
    bench.journal.note_read().await.expect("open");
    bench.append([end + 1, end + 2]).await;
    bench.journal.note_read().await.expect("open");
    bench.append([end + 3]).await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(bench.read(&mut slow, end).await);
    }
    assert_eq!(seen, [end + 1, end + 2, end + 3]);
}

#[tokio::test]
async fn where_all_keep_up_a_full_disk_holds_nothing_back() {
    let mut bench = Bench::new(1000).await;
    let mut reader = cursor(0);
    for end in 200..300 {
        bench.append([end]).await;
        assert_eq!(bench.read(&mut reader, end - 1).await, [end]);
        bench.journal.lock().window.trim(Lsn(end));
    }
    assert!(bench.journal.problem().is_some());
    // The slot was confirmed beyond the files: they begin anew there.
    let opened = bench.open(299, &[]).await;
    assert_eq!((opened.end, opened.floor), (Lsn(299), Lsn(299)));
    assert_eq!(bench.journal.problem(), None);
    bench.append([299, 300]).await;
    assert_eq!(bench.read(&mut reader, 299).await, [300]);
    bench.restart().await;
    assert_eq!(bench.open(299, &[]).await.end, Lsn(300));
}

#[tokio::test]
async fn a_full_memory_makes_the_stream_wait_only_while_the_files_take_nothing() {
    let bench = Bench::new(1 << 30).await;
    let large = |end| {
        Entry::Transaction(Transaction {
            xid: None,
            statements: Vec::new(),
            end_lsn: Lsn(end),
            timestamp: 5,
            changes: Vec::new(),
            size: WINDOW_BYTES,
        })
    };
    bench
        .journal
        .append(bench.writer, vec![large(110), large(120)], Lsn(0))
        .await
        .expect("open");
    bench.journal.has_room().await;
    assert_eq!(bench.journal.figures().memory_bytes, WINDOW_BYTES);
    bench.journal.lock().problem = Some("no space".to_owned());
    bench
        .journal
        .append(bench.writer, vec![large(130)], Lsn(0))
        .await
        .expect("open");
    tokio::select! {
        biased;
        () = bench.journal.has_room() => panic!("it is full"),
        () = tokio::task::yield_now() => {}
    }
    let lifted = bench.journal.lift_bound();
    bench.journal.has_room().await;
    drop(lifted);
    assert!(bench.journal.is_full());
    bench
        .journal
        .trim(Lsn(100), Lsn(130), false)
        .await
        .expect("open");
    bench.journal.has_room().await;
}

#[tokio::test]
async fn a_part_of_a_transaction_wakes_nobody() {
    let bench = Bench::new(1 << 30).await;
    bench.append([110]).await;
    let woken = bench.journal.written.notified();
    tokio::pin!(woken);
    woken.as_mut().enable();
    bench.append_entries(Vec::new()).await.expect("open");
    tokio::select! {
        biased;
        () = &mut woken => panic!("woken for nothing"),
        () = tokio::task::yield_now() => {}
    }
    bench.append([120]).await;
    woken.await;
}

#[tokio::test]
async fn a_target_is_woken_before_the_nodes_own_link() {
    let bench = Bench::new(1 << 30).await;
    let (sender, mut woken) = tokio::sync::mpsc::unbounded_channel();
    // The own link waits first.
    for exact in [false, true] {
        let (journal, sender) = (Arc::clone(&bench.journal), sender.clone());
        tokio::spawn(async move {
            let mut cursor = Cursor::new(2, Lsn(100), exact);
            let read = journal.read(&mut cursor, Lsn(100), 10, 1 << 20).await;
            sender.send(read.map(|_| exact))
        });
    }
    tokio::task::yield_now().await;
    bench.append([110]).await;
    for exact in [true, false] {
        let next = woken.recv().await.expect("it is woken").expect("it reads");
        assert_eq!(next, exact);
    }
}

#[tokio::test]
async fn what_an_older_reader_of_the_stream_brings_is_refused() {
    let mut bench = Bench::new(1 << 30).await;
    bench.append([110]).await;
    let older = bench.writer;
    bench.open(100, &[]).await;
    let late = bench
        .journal
        .append(older, vec![transaction(130)], Lsn(140));
    assert!(matches!(late.await, Err(JournalError::Superseded)));
    // What is between would be skipped otherwise.
    bench.append([120, 130]).await;
    assert_eq!(bench.read(&mut cursor(110), 110).await, [120, 130]);
}

#[tokio::test]
async fn a_file_that_somebody_removed_does_not_count_as_safe() {
    let bench = Bench::new(1 << 30).await;
    bench.append([110]).await;
    bench.journal.sync().await.expect("synced");
    assert_eq!(bench.journal.synced(), Lsn(110));
    bench.append([120]).await;
    std::fs::remove_dir_all(bench.dir.path().join("node-1")).expect("removed");
    bench.journal.sync().await.expect_err("it is gone");
    assert_eq!(bench.journal.synced(), Lsn(110));
}

#[tokio::test]
async fn a_server_that_lost_what_was_read_from_it_is_refused() {
    let mut bench = Bench::new(1 << 30).await;
    bench.append([110, 120]).await;
    bench.restart().await;
    let known = known(bench.id, 110);
    let opened = bench
        .journal
        .open(source(), known, Lsn(115), BTreeMap::new())
        .await;
    assert!(
        matches!(opened, Err(JournalError::Rewound { .. })),
        "{opened:?}"
    );
}

/// Appends, readers at different paces, trims, restarts, from a seed.
#[tokio::test]
async fn random_readers_see_every_entry_once_and_in_order_whatever_happens_between() {
    for seed in 0..30 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bench = Bench::new(1 << 30).await;
        let mut last = 100;
        let mut all = vec![last];
        let mut readers: Vec<_> = (0..3).map(|_| (cursor(0), vec![100])).collect();
        for _ in 0..300 {
            match random.u32(0..10) {
                0..4 => {
                    let ends: Vec<_> = (0..random.u64(1..8))
                        .map(|_| {
                            last += random.u64(1..9);
                            last
                        })
                        .collect();
                    all.extend(&ends);
                    bench.append(ends).await;
                }
                4..8 => {
                    let (cursor, seen) = &mut readers[random.usize(0..3)];
                    let known = seen.last().copied().unwrap_or(0);
                    if known < last {
                        seen.extend(bench.read(cursor, known).await);
                    }
                }
                8 => {
                    let least = readers.iter().filter_map(|(_, seen)| seen.last()).min();
                    bench.trim(least.copied().unwrap_or(0)).await;
                    if random.bool() {
                        bench.empty_window();
                    }
                }
                _ => {
                    bench.restart().await;
                    let least = readers.iter().filter_map(|(_, seen)| seen.last()).min();
                    bench.open(least.copied().unwrap_or(0), &[]).await;
                    for (cursor, seen) in &mut readers {
                        *cursor = self::cursor(seen.last().copied().unwrap_or(0));
                    }
                }
            }
            for (_, seen) in &readers {
                assert!(all.starts_with(seen), "seed {seed}: {seen:?} of {all:?}");
            }
        }
    }
}
