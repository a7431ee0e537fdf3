//! Transactions that come in parts.

use super::*;

/// A part of the transaction that ends at `end`, of so many bytes.
fn part_of_size(end: u64, number: u32, size: usize) -> Entry {
    let Entry::Transaction(part) = transaction(end - 1) else {
        panic!("a transaction")
    };
    let part = Transaction { size, ..part };
    Entry::Part { number, part }
}

fn part(end: u64, number: u32) -> Entry {
    part_of_size(end, number, 10)
}

fn end_of(end: u64) -> Entry {
    match transaction(end) {
        Entry::Transaction(rest) => Entry::End(rest),
        other => panic!("{other:?}"),
    }
}

/// What the next read gives: where the stream then stands, and in which part.
async fn read(bench: &Bench, cursor: &mut Cursor) -> Vec<(u64, u32)> {
    match bench.run(cursor, 0).await {
        Run::Entries(entries) => entries
            .iter()
            .map(|entry| (entry.position().lsn.0, entry.position().part))
            .collect(),
        run => panic!("{run:?}"),
    }
}

async fn is_broken(bench: &Bench, cursor: &mut Cursor) -> bool {
    matches!(bench.run(cursor, 0).await, Run::Broken)
}

async fn waits(bench: &Bench, cursor: &mut Cursor) -> bool {
    let read = bench.journal.read(cursor, Lsn(1000), 10, 1 << 20);
    let waited = tokio::time::timeout(std::time::Duration::from_millis(20), read).await;
    waited.is_err()
}

#[tokio::test]
async fn a_reader_gets_parts_one_by_one_as_they_come() {
    for from_files in [false, true] {
        let bench = Bench::new(1 << 30).await;
        let mut reader = cursor(0);
        let entries = vec![transaction(110), part(120, 1)];
        bench.append_entries(entries).await.expect("open");
        assert_eq!(read(&bench, &mut reader).await, [(110, 0), (119, 1)]);
        assert!(waits(&bench, &mut reader).await);
        let entries = vec![part(120, 2), part(120, 3), end_of(120), transaction(130)];
        bench.append_entries(entries).await.expect("open");
        if from_files {
            bench.empty_window();
        }
        for at in [(119, 2), (119, 3), (120, 0), (130, 0)] {
            assert_eq!(read(&bench, &mut reader).await, [at]);
        }
        let mut other = cursor(119);
        assert_eq!(read(&bench, &mut other).await[..], [(110, 0), (119, 1)]);
        // From the middle, and when the end was just read.
        for most in [1, 3] {
            for _ in 0..most {
                read(&bench, &mut other).await;
            }
            other.rewind();
            assert_eq!(read(&bench, &mut other).await, [(119, 1)]);
        }
        for at in [(119, 2), (119, 3), (120, 0), (130, 0)] {
            assert_eq!(read(&bench, &mut other).await, [at]);
        }
    }
}

#[tokio::test]
async fn a_stream_that_ends_in_the_middle_takes_its_parts_back() {
    for from_files in [false, true] {
        let mut bench = Bench::new(1 << 30).await;
        let (mut inside, mut before) = (cursor(0), cursor(0));
        let entries = vec![transaction(110), part(120, 1), part(120, 2)];
        let streaming = bench.journal.streaming(bench.writer);
        bench.append_entries(entries).await.expect("open");
        if from_files {
            bench.empty_window();
        }
        assert_eq!(read(&bench, &mut inside).await, [(110, 0), (119, 1)]);
        drop(streaming);
        assert!(is_broken(&bench, &mut inside).await);
        // Nothing of it is shown before it comes again.
        assert!(waits(&bench, &mut inside).await);
        assert_eq!(read(&bench, &mut before).await, [(110, 0)]);
        assert!(waits(&bench, &mut before).await);
        assert_eq!(bench.open(100, &[]).await.end, Lsn(110));
        assert!(waits(&bench, &mut inside).await);
        let entries = vec![part(120, 1), part(120, 2), end_of(120)];
        bench.append_entries(entries).await.expect("open");
        for reader in [&mut inside, &mut before] {
            for at in [(119, 1), (119, 2), (120, 0)] {
                assert_eq!(read(&bench, reader).await, [at]);
            }
        }
    }
}

/// Its place in the file may then be anywhere in what is written there again.
#[tokio::test]
async fn a_reader_of_a_file_that_was_cut_begins_again() {
    let mut bench = Bench::new(1 << 30).await;
    let mut reader = cursor(0);
    let entries = (1..=3).map(|number| part(120, number)).collect();
    bench.append_entries(entries).await.expect("open");
    bench.empty_window();
    assert_eq!(read(&bench, &mut reader).await, [(119, 1)]);
    assert_eq!(read(&bench, &mut reader).await, [(119, 2)]);
    bench.open(100, &[]).await;
    let entries = vec![transaction(115), part(120, 1)];
    bench.append_entries(entries).await.expect("open");
    bench.empty_window();
    assert!(is_broken(&bench, &mut reader).await);
    assert_eq!(read(&bench, &mut reader).await, [(115, 0), (119, 1)]);
}

#[tokio::test]
async fn a_reader_may_want_the_end_first() {
    let bench = Bench::new(1 << 30).await;
    let (mut patient, mut other) = (cursor(0), cursor(0));
    bench
        .append_entries(vec![part(120, 1)])
        .await
        .expect("open");
    assert_eq!(read(&bench, &mut patient).await, [(119, 1)]);
    patient.rewind();
    patient.await_end(Lsn(119));
    assert!(waits(&bench, &mut patient).await);
    assert_eq!(read(&bench, &mut other).await, [(119, 1)]);
    bench.append_entries(vec![end_of(120)]).await.expect("open");
    for at in [(119, 1), (120, 0)] {
        assert_eq!(read(&bench, &mut patient).await, [at]);
    }
}

#[tokio::test]
async fn memory_does_not_hold_what_files_have() {
    let bench = Bench::new(1 << 30).await;
    let mut reader = cursor(0);
    for number in 1..=10 {
        let part = part_of_size(120, number, WINDOW_BYTES / 4);
        bench.append_entries(vec![part]).await.expect("open");
        assert!(bench.journal.figures().memory_bytes <= WINDOW_BYTES);
    }
    bench.append_entries(vec![end_of(120)]).await.expect("open");
    for number in 1..=10 {
        assert_eq!(read(&bench, &mut reader).await, [(119, number)]);
    }
    assert_eq!(read(&bench, &mut reader).await, [(120, 0)]);
}

#[tokio::test]
async fn through_memory_only_a_transaction_is_shown_when_it_is_whole_and_a_larger_one_waits() {
    let bench = Bench::new(1 << 30).await;
    bench.journal.lock().problem = Some("no space".to_owned());
    let mut reader = cursor(0);
    let half = |number| part_of_size(120, number, WINDOW_BYTES / 2);
    bench.append_entries(vec![half(1)]).await.expect("open");
    assert!(waits(&bench, &mut reader).await);
    bench.append_entries(vec![half(2)]).await.expect("open");
    assert!(bench.journal.is_full());
    // Nothing of it may go before it is applied, and it is not.
    let trimmed = bench.journal.trim(Lsn(100), Lsn(119), false).await;
    assert!(!trimmed.expect("open"));
    assert!(bench.journal.is_full());
    bench.append_entries(vec![end_of(120)]).await.expect("open");
    for at in [(119, 1), (119, 2), (120, 0)] {
        assert_eq!(read(&bench, &mut reader).await, [at]);
    }
    let trimmed = bench.journal.trim(Lsn(100), Lsn(120), false).await;
    assert!(!trimmed.expect("open"));
    assert!(!bench.journal.is_full());
}

#[tokio::test]
async fn what_memory_has_whole_is_not_passed_over_while_the_stream_brings_it_once_more() {
    let mut bench = Bench::new(1 << 30).await;
    let full = |bench: &Bench| bench.journal.lock().problem = Some("no space".to_owned());
    full(&bench);
    let (mut inside, mut before) = (cursor(0), cursor(0));
    let entries = vec![part(120, 1), part(120, 2), end_of(120), part(130, 1)];
    bench.append_entries(entries).await.expect("open");
    assert_eq!(read(&bench, &mut inside).await, [(119, 1)]);
    assert_eq!(bench.open(100, &[]).await.end, Lsn(100));
    full(&bench);
    bench
        .append_entries(vec![part(120, 1)])
        .await
        .expect("open");
    for at in [(119, 2), (120, 0)] {
        assert_eq!(read(&bench, &mut inside).await, [at]);
    }
    assert_eq!(read(&bench, &mut before).await, [(119, 1)]);
}

/// A reader that keeps of a transaction in parts only what came whole.
struct Reader {
    cursor: Cursor,
    /// What it has, and the parts of what it is reading.
    seen: Vec<u64>,
    parts: u32,
}

impl Reader {
    fn new(seen: Vec<u64>) -> Self {
        let cursor = cursor(seen.last().copied().unwrap_or(0));
        let parts = 0;
        Self {
            cursor,
            seen,
            parts,
        }
    }

    /// Reads what is ready, or in a file.
    async fn read(&mut self, bench: &Bench) {
        let known = self.seen.last().copied().unwrap_or(0);
        let read = bench.journal.read(&mut self.cursor, Lsn(known), 3, 1 << 20);
        let wait = std::time::Duration::from_millis(2);
        if let Ok(run) = tokio::time::timeout(wait, read).await {
            self.take(run.expect("it can be read"));
        }
    }

    fn take(&mut self, run: Run) {
        let entries = match run {
            Run::Entries(entries) => entries,
            Run::Broken => {
                self.parts = 0;
                return;
            }
            Run::UpTo(_) | Run::Hole(_) => return,
        };
        for entry in entries {
            let position = entry.position();
            match entry.as_ref() {
                Entry::Part { number, .. } => {
                    assert_eq!(*number, self.parts + 1);
                    self.parts = *number;
                    continue;
                }
                // As many as they are, see below.
                Entry::End(_) => assert_eq!(u64::from(self.parts), position.lsn.0 % 4),
                _ => assert_eq!(self.parts, 0),
            }
            self.parts = 0;
            self.seen.push(position.lsn.0);
        }
    }
}

/// The stream: a transaction's position says how many parts it comes in.
fn stream(all: &[u64]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for &end in all {
        let parts = u32::try_from(end % 4).expect("small");
        entries.extend((1..=parts).map(|number| part(end, number)));
        entries.push(match parts {
            0 => transaction(end),
            _ => end_of(end),
        });
    }
    entries
}

/// Streams that break anywhere, files that take no more, readers at different paces, trims, restarts, from a seed.
#[tokio::test]
async fn random_readers_see_every_transaction_whole_once_and_in_order_whatever_happens_between() {
    let mut seen = 0;
    for seed in 0..80 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bench = Bench::new(if seed % 2 == 0 { 1 << 30 } else { 2000 }).await;
        let mut all = vec![100];
        while all.len() < 150 {
            all.push(all.last().copied().unwrap_or(0) + random.u64(2..9));
        }
        let mut readers: Vec<_> = (0..3).map(|_| Reader::new(vec![100])).collect();
        let mut sent = 0;
        let mut rest = stream(&all[1..]).into_iter();
        for _ in 0..600 {
            let mut from = None;
            match random.u32(0..20) {
                0..8 => {
                    let entries: Vec<_> = rest.by_ref().take(random.usize(1..6)).collect();
                    if let Some(last) = entries.last() {
                        sent = last.position().lsn.0;
                    }
                    bench.append_entries(entries).await.expect("open");
                }
                8..16 => {
                    let reader = &mut readers[random.usize(0..3)];
                    reader.read(&bench).await;
                    if reader.parts > 0 && random.u32(0..20) == 0 {
                        reader.cursor.rewind();
                        reader.parts = 0;
                    }
                }
                16 => {
                    let seen = |reader: &Reader| reader.seen.last().copied().unwrap_or(0);
                    let least = readers.iter().map(seen).min().unwrap_or(0);
                    // Those behind may be carried.
                    let keeping_up = seen(&readers[random.usize(0..3)]);
                    let trimmed = bench.journal.trim(Lsn(least), Lsn(keeping_up), true);
                    if trimmed.await.expect("open") {
                        from = Some(bench.open(100, &[]).await.end);
                    }
                }
                17 if random.bool() => bench.journal.note_read().await.expect("open"),
                17 => bench.empty_window(),
                18 => {
                    drop(bench.journal.streaming(bench.writer));
                    if random.bool() {
                        readers[random.usize(0..3)].read(&bench).await;
                    }
                    from = Some(bench.open(100, &[]).await.end);
                }
                _ => {
                    bench.restart().await;
                    let least = readers.iter().filter_map(|reader| reader.seen.last()).min();
                    let least = least.copied().unwrap_or(0);
                    from = Some(bench.open(least, &[]).await.end);
                    for reader in &mut readers {
                        *reader = Reader::new(std::mem::take(&mut reader.seen));
                    }
                }
            }
            if let Some(from) = from {
                let again: Vec<_> = all.iter().copied().filter(|&end| Lsn(end) > from).collect();
                rest = stream(&again).into_iter();
            }
            for reader in &readers {
                assert!(all.starts_with(&reader.seen), "seed {seed}");
            }
        }
        assert!(sent > 100);
        seen += readers
            .iter()
            .map(|reader| reader.seen.len())
            .sum::<usize>();
    }
    // Of a single one nothing is certain: on a busy machine it may wait in vain nearly always.
    assert!(seen > 80 * 3 * 10, "{seen}");
}
