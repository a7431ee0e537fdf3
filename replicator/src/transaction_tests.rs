use super::*;

/// Where all commits here begin, and when they are.
const COMMIT: u64 = 80;
const COMMITTED: i64 = 7;

fn begin() -> Bytes {
    let mut bytes = vec![b'B'];
    bytes.extend(COMMIT.to_be_bytes());
    bytes.extend(COMMITTED.to_be_bytes());
    bytes.extend(5u32.to_be_bytes());
    bytes.into()
}

fn commit(end: u64, timestamp: i64) -> Bytes {
    let mut bytes = vec![b'C', 0];
    bytes.extend(COMMIT.to_be_bytes());
    bytes.extend(end.to_be_bytes());
    bytes.extend(timestamp.to_be_bytes());
    bytes.into()
}

fn origin(name: &str, lsn: u64) -> Bytes {
    let mut bytes = vec![b'O'];
    bytes.extend(lsn.to_be_bytes());
    bytes.extend(name.as_bytes());
    bytes.push(0);
    bytes.into()
}

fn relation(oid: u32, schema: &str, name: &str) -> Bytes {
    let mut bytes = vec![b'R'];
    bytes.extend(oid.to_be_bytes());
    bytes.extend(format!("{schema}\0{name}\0d").as_bytes());
    bytes.extend(1u16.to_be_bytes());
    bytes.extend(b"\x01id\0");
    bytes.extend([0; 8]);
    bytes.into()
}

fn insert(oid: u32) -> Bytes {
    let mut bytes = vec![b'I'];
    bytes.extend(oid.to_be_bytes());
    bytes.extend(b"N\0\x01t\0\0\0\x011");
    bytes.into()
}

fn run(messages: &[Bytes]) -> Vec<Entry> {
    let mut assembler = Assembler::new(1, TableFilter::default(), Arc::default());
    messages
        .iter()
        .filter_map(|message| assembler.handle(message).expect("in order"))
        .collect()
}

#[test]
fn a_commit_gives_the_transaction_with_its_changes() {
    let entries = run(&[
        begin(),
        relation(1, "public", "t"),
        insert(1),
        insert(1),
        commit(90, 7),
    ]);
    let [Entry::Transaction(transaction)] = entries.as_slice() else {
        panic!("{entries:?}")
    };
    assert_eq!((transaction.end_lsn, transaction.timestamp), (Lsn(90), 7));
    assert_eq!(transaction.changes.len(), 2);
    assert_eq!(transaction.changes[0].relation.name, "t");
}

/// An INSERT of one value of so many bytes.
fn large_insert(oid: u32, length: usize) -> Bytes {
    let mut bytes = vec![b'I'];
    bytes.extend(oid.to_be_bytes());
    bytes.extend(b"N\0\x01t");
    bytes.extend(u32::try_from(length).expect("small").to_be_bytes());
    bytes.extend(vec![b'x'; length]);
    bytes.into()
}

#[test]
fn a_large_transaction_comes_in_parts_before_its_end() {
    let mut messages = vec![begin(), relation(1, "public", "t")];
    messages.extend((0..25).map(|_| large_insert(1, PART_BYTES / 10)));
    let before_the_end = run(&messages);
    assert_eq!(before_the_end.len(), 2, "not before the COMMIT");
    messages.push(commit(90, COMMITTED));
    let entries = run(&messages);
    let [
        Entry::Part {
            number: 1,
            part: one,
        },
        Entry::Part {
            number: 2,
            part: two,
        },
        Entry::End(rest),
    ] = entries.as_slice()
    else {
        panic!("{entries:?}")
    };
    for part in [one, two] {
        assert_eq!((part.end_lsn, part.timestamp), (Lsn(COMMIT), COMMITTED));
        assert_eq!((part.xid, part.changes.len()), (Some(5), 10));
        assert_eq!(
            part.size,
            part.changes.iter().map(Change::size).sum::<usize>()
        );
    }
    assert_eq!((rest.end_lsn, rest.timestamp), (Lsn(90), COMMITTED));
    assert_eq!(rest.changes.len(), 5);
    let positions: Vec<_> = entries.iter().map(Entry::position).collect();
    assert!(positions.is_sorted() && positions[0] > Lsn(COMMIT).into());
}

#[test]
fn a_large_transaction_that_ends_with_a_part_still_has_an_end() {
    let entries = run(&[
        begin(),
        relation(1, "public", "t"),
        large_insert(1, PART_BYTES),
        commit(90, COMMITTED),
    ]);
    let [Entry::Part { number: 1, .. }, Entry::End(rest)] = entries.as_slice() else {
        panic!("{entries:?}")
    };
    assert!(rest.changes.is_empty());
}

#[test]
fn a_large_transaction_we_applied_ourselves_has_no_parts() {
    let entries = run(&[
        begin(),
        origin("tandem_3_0", 55),
        relation(1, "public", "t"),
        large_insert(1, 2 * PART_BYTES),
        commit(90, COMMITTED),
    ]);
    assert!(
        matches!(entries.as_slice(), [Entry::Cause { .. }]),
        "{entries:?}"
    );
}

#[test]
fn a_commit_of_another_transaction_than_was_begun_is_an_error() {
    let mut assembler = Assembler::new(1, TableFilter::default(), Arc::default());
    assembler.handle(&begin()).expect("begin");
    let other = assembler.handle(&commit(90, COMMITTED + 1));
    assert!(matches!(other, Err(AssembleError::OutOfPlace { .. })));
}

#[test]
fn a_transaction_we_applied_ourselves_is_a_cause_and_not_a_change() {
    let entries = run(&[
        begin(),
        origin("tandem_3_0", 55),
        relation(1, "public", "t"),
        insert(1),
        commit(90, 7),
    ]);
    let [
        Entry::Cause {
            node: 3,
            lsn: Lsn(55),
            end_lsn: Lsn(90),
        },
    ] = entries.as_slice()
    else {
        panic!("{entries:?}")
    };
}

#[test]
fn what_a_node_learnt_of_its_own_deletes_is_no_cause_for_others() {
    let learnt = [
        begin(),
        origin("tandem_1_0", 55),
        relation(1, "public", "t"),
        insert(1),
        commit(90, 7),
    ];
    let entries = run(&learnt);
    assert!(
        matches!(entries.as_slice(), [Entry::Empty { end_lsn: Lsn(90) }]),
        "{entries:?}"
    );
}

#[test]
fn a_users_own_subscription_counts_as_a_write_of_this_node() {
    let entries = run(&[
        begin(),
        origin("pg_16400", 55),
        relation(1, "public", "t"),
        insert(1),
        commit(90, 7),
    ]);
    assert!(
        matches!(entries.as_slice(), [Entry::Transaction(_)]),
        "{entries:?}"
    );
}

#[test]
fn writes_of_our_own_schema_leave_an_empty_transaction() {
    let entries = run(&[
        begin(),
        relation(1, "tandem", "owner"),
        insert(1),
        commit(90, 7),
    ]);
    assert!(
        matches!(entries.as_slice(), [Entry::Empty { end_lsn: Lsn(90) }]),
        "{entries:?}"
    );
}

#[test]
fn a_watermark_is_delivered_although_it_writes_no_row() {
    let mut message = vec![b'M', 1];
    message.extend(0u64.to_be_bytes());
    message.extend(b"tandem.wm\0\0\0\0\x01x");
    let entries = run(&[begin(), message.into(), commit(90, 7)]);
    assert!(
        matches!(entries.as_slice(), [Entry::Transaction(_)]),
        "{entries:?}"
    );
}

#[test]
fn a_change_outside_a_transaction_is_an_error() {
    let mut assembler = Assembler::new(1, TableFilter::default(), Arc::default());
    assembler
        .handle(&relation(1, "public", "t"))
        .expect("a shape may come at any time");
    assert!(matches!(
        assembler.handle(&insert(1)),
        Err(AssembleError::OutOfPlace { .. })
    ));
}

#[test]
fn a_change_of_an_unknown_table_is_an_error() {
    let mut assembler = Assembler::new(1, TableFilter::default(), Arc::default());
    assembler.handle(&begin()).expect("begin");
    assert!(matches!(
        assembler.handle(&insert(9)),
        Err(AssembleError::UnknownRelation(9))
    ));
}

#[test]
fn what_is_kept_does_not_hold_on_to_the_receive_buffer() {
    let mut assembler = Assembler::new(1, TableFilter::default(), Arc::default());
    for message in [begin(), relation(1, "public", "t")] {
        assembler.handle(&message).expect("in order");
    }
    let received = insert(1);
    assembler.handle(&received).expect("in order");
    assert!(received.is_unique(), "a view of it is held");
    let entry = assembler.handle(&commit(90, 7)).expect("in order");
    let Some(Entry::Transaction(transaction)) = entry else {
        panic!("{entry:?}")
    };
    assert_eq!(transaction.changes[0].message, received);
}

#[test]
fn changes_of_any_length_are_kept_as_they_were() {
    let mut kept = Kept::default();
    let messages: Vec<Vec<u8>> = [
        0,
        1,
        KEPT_BLOCK - 1,
        KEPT_BLOCK,
        3,
        KEPT_BLOCK * 3,
        70,
        60_000,
        60_000,
    ]
    .iter()
    .zip(b'a'..)
    .map(|(&length, byte)| vec![byte; length])
    .collect();
    let copies: Vec<Bytes> = messages.iter().map(|message| kept.copy(message)).collect();
    for (copy, message) in copies.iter().zip(&messages) {
        assert_eq!(copy, message);
    }
}
