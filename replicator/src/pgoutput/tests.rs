use super::*;

fn insert() -> Vec<u8> {
    let mut bytes = vec![b'I'];
    bytes.extend(16_400u32.to_be_bytes());
    bytes.push(b'N');
    bytes.extend(4u16.to_be_bytes());
    bytes.push(b't');
    bytes.extend(2u32.to_be_bytes());
    bytes.extend(b"42");
    bytes.push(b'n');
    bytes.push(b'u');
    bytes.push(b'b');
    bytes.extend(1u32.to_be_bytes());
    bytes.push(7);
    bytes
}

#[test]
fn an_insert_yields_its_columns() {
    let bytes = insert();
    let Ok(Message::Insert { relation, new }) = decode(&bytes) else {
        panic!("not an insert")
    };
    assert_eq!(relation, 16_400);
    let columns: Vec<_> = new.columns().collect();
    assert_eq!(
        columns,
        [
            Column::Text(b"42"),
            Column::Null,
            Column::Unchanged,
            Column::Binary(&[7])
        ]
    );
}

#[test]
fn inside_a_stream_the_id_of_the_transaction_stands_behind_the_tag() {
    let mut bytes = insert();
    bytes.splice(1..1, 745u32.to_be_bytes());
    let Ok((Some(745), Message::Insert { relation, new })) = decode_streamed(&bytes) else {
        panic!("not a streamed insert")
    };
    assert_eq!((relation, new.columns().count()), (16_400, 4));
    assert!(matches!(
        decode_streamed(b"E"),
        Ok((None, Message::StreamStop))
    ));
}

#[test]
fn a_shape_tells_the_replica_identity_and_its_columns() {
    let mut bytes = b"R\0\0\0\x09shop\0orders\0i\0\x02".to_vec();
    bytes.extend(b"\x01id\0\0\0\0\x14\xff\xff\xff\xff");
    bytes.extend(b"\x00price\0\0\0\x06\xa4\0\x0c\0\x06");
    let Ok(Message::Relation(relation)) = decode(&bytes) else {
        panic!("not a relation")
    };
    assert_eq!(
        (relation.oid, relation.schema, relation.name),
        (9, "shop", "orders")
    );
    assert_eq!(relation.identity, ReplicaIdentity::Index);
    let column = |name, is_key, type_oid, type_modifier| ColumnView {
        name,
        is_key,
        type_oid,
        type_modifier,
    };
    assert_eq!(
        relation.columns,
        [
            column("id", true, 20, -1),
            column("price", false, 1700, 0x000c_0006)
        ]
    );
}

#[test]
fn an_abort_has_its_position_only_where_parallel_streaming_was_asked_for() {
    let short = b"A\0\0\0\x05\0\0\0\x06";
    assert!(matches!(
        decode(short),
        Ok(Message::StreamAbort {
            xid: 5,
            subxid: 6,
            at: None
        })
    ));
    let mut long = short.to_vec();
    long.extend(77u64.to_be_bytes());
    long.extend(88i64.to_be_bytes());
    assert!(matches!(
        decode(&long),
        Ok(Message::StreamAbort {
            at: Some((Lsn(77), 88)),
            ..
        })
    ));
    long.pop();
    assert!(matches!(
        decode(&long),
        Err(DecodeError::Read { tag: 'A', .. })
    ));
}

#[test]
fn two_phase_commit_is_refused_by_name() {
    for tag in b"bPKrp" {
        assert!(matches!(decode(&[*tag, 0]), Err(DecodeError::TwoPhase(_))));
    }
}

#[test]
fn bytes_behind_the_end_are_an_error() {
    let mut bytes = insert();
    bytes.push(0);
    assert!(matches!(
        decode(&bytes),
        Err(DecodeError::Read { tag: 'I', .. })
    ));
}

#[test]
fn hostile_bytes_give_an_error_and_never_a_panic() {
    let seed = 0x7a_6d_64_65;
    let mut random = fastrand::Rng::with_seed(seed);
    let templates = [
        insert(),
        b"U\0\0\0\x01K\0\x01nN\0\x01u".to_vec(),
        b"T\0\0\0\x02\0\0\0\0\x01\0\0\0\x02".to_vec(),
        b"R\0\0\0\x09s\0t\0d\0\x01\x01id\0\0\0\0\x14\xff\xff\xff\xff".to_vec(),
        b"M\x01\0\0\0\0\0\0\0\x01p\0\0\0\0\x02xy".to_vec(),
        b"A\0\0\0\x05\0\0\0\x06".to_vec(),
    ];
    let mut decoded = 0u32;
    for round in 0..200_000 {
        let mut bytes = templates[round % templates.len()].clone();
        for _ in 0..random.usize(0..4) {
            let at = random.usize(0..bytes.len());
            bytes[at] = random.u8(..);
        }
        bytes.truncate(random.usize(0..=bytes.len()));
        if let Ok(message) = decode(&bytes) {
            decoded += 1;
            if let Message::Insert { new, .. } = message {
                let count = u16::from_be_bytes([bytes[6], bytes[7]]);
                assert_eq!(new.columns().count(), usize::from(count));
            }
        }
        // Must not panic either; what it answers is the oracle's business.
        let _ = decode_streamed(&bytes);
    }
    assert!(
        decoded > 1000,
        "seed {seed}: only {decoded} inputs were decodable"
    );
}
