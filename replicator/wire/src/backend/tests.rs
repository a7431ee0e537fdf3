use super::*;

#[test]
fn authentication_requests_are_told_apart() {
    assert_eq!(Authentication::parse(&[0, 0, 0, 0]), Ok(Authentication::Ok));
    assert_eq!(
        Authentication::parse(&[0, 0, 0, 3]),
        Ok(Authentication::CleartextPassword)
    );
    assert_eq!(
        Authentication::parse(&[0, 0, 0, 5, 1, 2, 3, 4]),
        Ok(Authentication::Md5Password { salt: [1, 2, 3, 4] })
    );
    assert_eq!(
        Authentication::parse(b"\0\0\0\x0bdata"),
        Ok(Authentication::SaslContinue(b"data"))
    );
    assert_eq!(
        Authentication::parse(b"\0\0\0\x0cdata"),
        Ok(Authentication::SaslFinal(b"data"))
    );
    assert_eq!(
        Authentication::parse(b"\0\0\0\x08token"),
        Ok(Authentication::Unsupported(8))
    );
    let Ok(Authentication::Sasl(names)) = Authentication::parse(b"\0\0\0\x0aA\0BC\0\0") else {
        panic!("a list of mechanisms")
    };
    assert_eq!(names.collect::<Vec<_>>(), [&b"A"[..], b"BC"]);
}

#[test]
fn malformed_authentication_requests_are_errors() {
    for body in [
        &b""[..],
        b"\0\0\0",
        b"\0\0\0\0x",
        b"\0\0\0\x05abc",
        b"\0\0\0\x05abcde",
        b"\0\0\0\x0a",
        b"\0\0\0\x0aA\0",
        b"\0\0\0\x0aA\0\0x",
    ] {
        assert!(
            Authentication::parse(body).is_err(),
            "{}",
            body.escape_ascii()
        );
    }
}

#[test]
fn error_fields_are_optional() {
    // CVE-2026-6666: an error without SQLSTATE.
    let fields = ErrorFields::parse(b"Mboom\0\0").unwrap();
    assert_eq!(fields.code(), None);
    let error = fields.to_owned();
    assert_eq!(error.to_string(), "ERROR: boom (SQLSTATE unknown)");
    assert_eq!(
        ErrorFields::parse(b"\0").unwrap().to_owned().to_string(),
        "ERROR: no message (SQLSTATE unknown)"
    );

    let fields = ErrorFields::parse(b"SFEHLER\0VERROR\0C23505\0Mduplicate\0Dkey\0Hno\0\0").unwrap();
    assert_eq!(fields.severity(), Some(&b"ERROR"[..]));
    assert_eq!(fields.get(b'D'), Some(&b"key"[..]));
    assert_eq!(fields.fields().count(), 6);
    assert_eq!(
        fields.to_owned().to_string(),
        "ERROR: duplicate (SQLSTATE 23505); detail: key; hint: no"
    );
}

#[test]
fn a_servers_error_text_is_bounded() {
    let mut body = vec![b'M'];
    body.extend(vec![b'x'; 1_000_000]);
    body.extend(b"\0\0");
    assert_eq!(
        ErrorFields::parse(&body).unwrap().to_owned().message.len(),
        ERROR_TEXT_LIMIT
    );
}

#[test]
fn cancel_keys_have_4_to_256_bytes() {
    for (length, fits) in [(0, false), (3, false), (4, true), (256, true), (257, false)] {
        let mut body = vec![0, 0, 0, 7];
        body.extend(vec![9; length]);
        let parsed = BackendKeyData::parse(&body);
        assert_eq!(parsed.is_ok(), fits, "{length}");
        if let Ok(key) = parsed {
            assert_eq!((key.pid, key.secret.len()), (7, length));
            assert!(!format!("{key:?}").contains("secret"));
        }
    }
}

#[test]
fn transaction_status_is_one_of_three() {
    for status in 0..=u8::MAX {
        let known = matches!(status, b'I' | b'T' | b'E');
        assert_eq!(ReadyForQuery::parse(&[status]).is_ok(), known);
    }
    assert!(ReadyForQuery::parse(b"").is_err());
    assert!(ReadyForQuery::parse(b"II").is_err());
}

#[test]
fn rows_yield_their_values() {
    let row = DataRow::parse(b"\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\0").unwrap();
    assert_eq!(row.len(), 3);
    assert_eq!(
        row.columns().collect::<Vec<_>>(),
        [Some(&b"ab"[..]), None, Some(&b""[..])]
    );
    for body in [
        &b""[..],
        b"\0\x01",
        b"\0\x01\0\0\0\x02a",
        b"\0\x01\xff\xff\xff\xfe",
        b"\0\0x",
        b"\xff\xff\0\0\0\0",
        b"\0\x01\x7f\xff\xff\xff",
    ] {
        assert!(DataRow::parse(body).is_err(), "{}", body.escape_ascii());
    }
}

#[test]
fn row_descriptions_yield_their_columns() {
    let body = b"\0\x01id\0\0\0\x40\0\0\x01\0\0\0\x17\0\x04\xff\xff\xff\xff\0\x01";
    let columns: Vec<_> = RowDescription::parse(body).unwrap().columns().collect();
    assert_eq!(
        columns,
        [Column {
            name: b"id",
            table_oid: 0x4000,
            attribute: 1,
            type_oid: 23,
            type_size: 4,
            type_modifier: -1,
            format: 1
        }]
    );
    for cut in 0..body.len() {
        assert!(RowDescription::parse(&body[..cut]).is_err(), "{cut}");
    }
}

#[test]
fn counts_beyond_the_message_are_errors_at_once() {
    assert!(NegotiateProtocolVersion::parse(b"\0\x03\0\0\xff\xff\xff\xffa\0").is_err());
    assert!(ParameterDescription::parse(b"\xff\xff\0\0\0\x17").is_err());
    assert!(CopyResponse::parse(b"\0\xff\xff\0\0").is_err());
}

#[test]
fn small_messages_are_read() {
    let negotiated = NegotiateProtocolVersion::parse(b"\0\x03\0\x02\0\0\0\x01_pq_.x\0").unwrap();
    assert_eq!(negotiated.newest, 3 << 16 | 2);
    assert_eq!(negotiated.unsupported().collect::<Vec<_>>(), [b"_pq_.x"]);

    let copy = CopyResponse::parse(b"\x01\0\x02\0\x01\0\0").unwrap();
    assert_eq!(
        (copy.format, copy.columns().collect::<Vec<_>>()),
        (1, vec![1, 0])
    );

    let types: Vec<_> = ParameterDescription::parse(b"\0\x02\0\0\0\x17\0\0\0\x19")
        .unwrap()
        .types()
        .collect();
    assert_eq!(types, [23, 25]);

    let status = ParameterStatus::parse(b"TimeZone\0UTC\0").unwrap();
    assert_eq!((status.name, status.value), (&b"TimeZone"[..], &b"UTC"[..]));

    assert_eq!(
        CommandComplete::parse(b"INSERT 0 1\0").unwrap().tag,
        b"INSERT 0 1"
    );

    let note = NotificationResponse::parse(b"\0\0\0\x05chan\0hello\0").unwrap();
    assert_eq!(
        (note.pid, note.channel, note.payload),
        (5, &b"chan"[..], &b"hello"[..])
    );
}
