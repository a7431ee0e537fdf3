use super::*;

fn begin() -> Bytes {
    let mut bytes = vec![b'B'];
    bytes.extend([0; 20]);
    bytes.into()
}

fn commit(end: u64, timestamp: i64) -> Bytes {
    let mut bytes = vec![b'C', 0];
    bytes.extend(0u64.to_be_bytes());
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
