use super::*;

fn shape(oid: u32, name: &str) -> Vec<u8> {
    let mut bytes = vec![b'R'];
    bytes.extend(oid.to_be_bytes());
    bytes.extend(format!("public\0{name}\0d").as_bytes());
    bytes.extend(b"\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\0note\0\0\0\0\x19\xff\xff\xff\xff");
    bytes
}

fn transaction(interner: &Interner) -> Transaction {
    let (one, two) = (shape(7, "one"), shape(8, "two"));
    let (one, two) = (interner.intern(&one), interner.intern(&two));
    let (one, two) = (one.expect("a shape"), two.expect("a shape"));
    let changes: Vec<Change> = [
        (&one, &b"I\0\0\0\x07N\0\x02t\0\0\0\x011n"[..]),
        (&two, b"U\0\0\0\x08K\0\x02t\0\0\0\x012nN\0\x02t\0\0\0\x013u"),
        (&one, b"D\0\0\0\x07K\0\x02t\0\0\0\x011n"),
        (&one, b"T\0\0\0\x02\0\0\0\0\x07\0\0\0\x08"),
        (&two, b"T\0\0\0\x02\0\0\0\0\x07\0\0\0\x08"),
    ]
    .into_iter()
    .map(|(relation, message)| Change {
        relation: Arc::clone(relation),
        operation: operation(message).expect("a change"),
        message: Bytes::copy_from_slice(message),
    })
    .collect();
    Transaction {
        xid: None,
        statements: Vec::new(),
        end_lsn: Lsn(0x1_0000_0002),
        timestamp: -5,
        size: changes.iter().map(Change::size).sum(),
        changes,
    }
}

fn encoded(transaction: &Transaction) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_transaction(transaction, &mut bytes).expect("short");
    bytes
}

fn assert_same(one: &Transaction, other: &Transaction) {
    let stamp = |transaction: &Transaction| (transaction.end_lsn, transaction.timestamp);
    assert_eq!(stamp(one), stamp(other));
    assert_eq!(
        (one.size, one.changes.len()),
        (other.size, other.changes.len())
    );
    for (one, other) in one.changes.iter().zip(&other.changes) {
        assert_eq!(one.relation.id, other.relation.id);
        assert_eq!(one.operation, other.operation);
        assert_eq!(one.message, other.message);
    }
}

#[test]
fn a_transaction_reads_back_as_written() {
    let interner = Interner::default();
    let written = transaction(&interner);
    let read = decode_transaction(&encoded(&written), &interner).expect("as written");
    assert_same(&written, &read);
    let empty = Transaction {
        changes: Vec::new(),
        size: 0,
        ..written
    };
    let read = decode_transaction(&encoded(&empty), &interner).expect("as written");
    assert_same(&empty, &read);
}

#[test]
fn the_form_is_the_one_that_is_written_down() {
    let interner = Interner::default();
    let mut short = transaction(&interner);
    short.changes.truncate(1);
    let mut expected =
        b"\x01\0\0\0\x01\0\0\0\x02\xff\xff\xff\xff\xff\xff\xff\xfb\0\0\0\x01".to_vec();
    let shape = shape(7, "one");
    expected.extend(u32::try_from(shape.len()).expect("short").to_be_bytes());
    expected.extend(shape);
    expected.extend(b"\0\0\0\x01\0\0\0\0\0\0\0\x0fI\0\0\0\x07N\0\x02t\0\0\0\x011n");
    assert_eq!(encoded(&short), expected);
}

#[test]
fn statements_read_back_as_written_wherever_they_stand() {
    let interner = Interner::default();
    let mut written = transaction(&interner);
    for (before, text) in [(0, "first"), (2, "second"), (2, "third"), (9, "")] {
        let statement = Statement {
            before,
            message: Bytes::from_static(text.as_bytes()),
        };
        written.size += statement.size();
        written.statements.push(statement);
    }
    let told = |transaction: &Transaction| -> Vec<(usize, Bytes)> {
        let statements = transaction.statements.iter();
        statements
            .map(|one| (one.before, one.message.clone()))
            .collect()
    };
    let bytes = encoded(&written);
    let read = decode_transaction(&bytes, &interner).expect("as written");
    assert_same(&written, &read);
    assert_eq!(told(&written), told(&read));
    for end in 0..bytes.len() {
        assert!(
            decode_transaction(&bytes[..end], &interner).is_err(),
            "{end}"
        );
    }
    let shapes = written.changes.iter().take(2);
    let shapes: Vec<_> = shapes.map(|change| Arc::clone(&change.relation)).collect();
    let number = |relation: &Relation| {
        let place = shapes.iter().position(|shape| shape.id == relation.id);
        place.and_then(|place| u32::try_from(place).ok())
    };
    let statements = told(&written);
    let mut record = Vec::new();
    put_entry(&Entry::Transaction(written), &mut record, number).expect("short");
    assert_eq!(record.first(), Some(&b't'));
    match decode_record(&record.into(), &shapes, Position::default(), &interner) {
        Ok(Record::Entry(Entry::Transaction(read))) => assert_eq!(told(&read), statements),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_does_not_belong_is_an_error() {
    let interner = Interner::default();
    let bytes = encoded(&transaction(&interner));
    let mut newer = bytes.clone();
    newer[0] = 3;
    assert!(matches!(
        decode_transaction(&newer, &interner),
        Err(CodecError::UnknownVersion(3))
    ));
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(
        decode_transaction(&longer, &interner),
        Err(CodecError::Read(ReadError::TrailingBytes(1)))
    ));
    for cut in 0..bytes.len() {
        assert!(
            decode_transaction(&bytes[..cut], &interner).is_err(),
            "{cut}"
        );
    }
    let no_shapes = b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0";
    assert!(matches!(
        decode_transaction(no_shapes, &interner),
        Err(CodecError::UnknownShape(0))
    ));
}

#[test]
fn hostile_bytes_give_an_error_and_never_a_panic() {
    let seed = 0x6a_6f_75_72;
    let mut random = fastrand::Rng::with_seed(seed);
    let interner = Interner::default();
    let template = encoded(&transaction(&interner));
    let mut decoded = 0u32;
    for round in 0..100_000 {
        let mut bytes = template.clone();
        for _ in 0..random.usize(0..4) {
            let at = random.usize(0..bytes.len());
            bytes[at] = random.u8(..);
        }
        if round % 4 == 0 {
            bytes.truncate(random.usize(0..=bytes.len()));
        }
        if let Ok(transaction) = decode_transaction(&bytes, &interner) {
            decoded += 1;
            // What is read can be written again, and is then the same.
            let again = decode_transaction(&encoded(&transaction), &interner);
            assert_same(&transaction, &again.expect("just encoded"));
        }
    }
    assert!(
        decoded > 1000,
        "seed {seed}: only {decoded} inputs were decodable"
    );
}
