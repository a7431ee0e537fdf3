use super::*;

const TEXT: ColumnType = ColumnType::Text {
    deterministic: true,
};

fn of(value: &[u8], binary: bool, type_oid: u32, column: Option<ColumnType>) -> Option<String> {
    let source = Source {
        origin: Origin::Parameter(1),
        array: false,
        cast: None,
    };
    let parameters = [Parameter {
        value: Some(value),
        binary,
        type_oid,
    }];
    all(&source, column, &parameters)
}

fn all(
    source: &Source,
    column: Option<ColumnType>,
    parameters: &[Parameter<'_>],
) -> Option<String> {
    let mut found = Vec::new();
    let mut push = |key: Key| found.push(key.to_string());
    keys(source, column, Literals::default(), parameters, &mut push)?;
    Some(found.join("|"))
}

#[test]
fn an_integer_is_one_key_in_every_form() {
    let integer = Some(ColumnType::Integer);
    let table: [(&[u8], bool, u32); 9] = [
        (b"7", false, 0),
        (b" 007 ", false, 0),
        (b"0x7", false, 23),
        (b"7", false, 1043),
        (&[0, 7], true, 21),
        (&[0, 0, 0, 7], true, 23),
        (&[0, 0, 0, 0, 0, 0, 0, 7], true, 20),
        (&[0, 0, 0, 0, 0, 0, 0, 7], true, 0),
        (b"7", true, 25),
    ];
    for (value, binary, oid) in table {
        assert_eq!(
            of(value, binary, oid, integer).as_deref(),
            Some("7"),
            "{value:?} {oid}"
        );
    }
    assert_eq!(of(&[0xff, 0xff], true, 21, integer).as_deref(), Some("-1"));
}

#[test]
fn what_is_no_value_of_the_column_is_no_key() {
    let integer = Some(ColumnType::Integer);
    // Eight bytes of a float8, a numeric, a text that is no integer, too few bytes.
    assert_eq!(
        of(&[0x40, 0x1c, 0, 0, 0, 0, 0, 0], true, 701, integer),
        None
    );
    assert_eq!(of(b"7.0", false, 1700, integer), None);
    assert_eq!(of(b"seven", false, 0, integer), None);
    assert_eq!(of(&[7], true, 23, integer), None);
    assert_eq!(
        of(&[0, 0, 0, 7], true, 0, None),
        None,
        "binary, and nobody knows of what"
    );
    assert_eq!(of(b"x", false, 0, Some(ColumnType::Other)), None);
    let folds = ColumnType::Text {
        deterministic: false,
    };
    assert_eq!(of(b"x", false, 0, Some(folds)), None);
    assert_eq!(of(&[0xff], false, 0, Some(TEXT)), None, "not UTF-8");
    let null = Parameter::default();
    let source = Source {
        origin: Origin::Parameter(1),
        array: false,
        cast: None,
    };
    assert_eq!(all(&source, integer, &[null]), None);
    assert_eq!(all(&source, integer, &[]), None);
}

#[test]
fn other_types_have_one_form() {
    let bytes = [
        0xa0, 0xee, 0xbc, 0x99, 0x9c, 0x0b, 0x4e, 0xf8, 0xbb, 0x6d, 0x6b, 0xb9, 0xbd, 0x38, 0x0a,
        0x11,
    ];
    let canonical = Some("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11".to_owned());
    let uuid = Some(ColumnType::Uuid);
    for text in [
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
        "{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}",
        "a0eebc999c0b4ef8bb6d6bb9bd380a11",
        "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
    ] {
        assert_eq!(of(text.as_bytes(), false, 0, uuid), canonical, "{text}");
    }
    assert_eq!(of(&bytes, true, 2950, None), canonical);
    assert_eq!(
        of(b"{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", false, 0, uuid),
        None
    );
    assert_eq!(
        of(b"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1", false, 0, uuid),
        None
    );

    let boolean = Some(ColumnType::Bool);
    for text in ["t", "TRUE", "yes", "on", "1", " y "] {
        assert_eq!(
            of(text.as_bytes(), false, 0, boolean).as_deref(),
            Some("true"),
            "{text}"
        );
    }
    for text in ["f", "False", "n", "off", "of", "0"] {
        assert_eq!(
            of(text.as_bytes(), false, 0, boolean).as_deref(),
            Some("false"),
            "{text}"
        );
    }
    assert_eq!(of(b"o", false, 0, boolean), None);
    assert_eq!(of(&[1], true, 16, boolean).as_deref(), Some("true"));

    let date = Some(ColumnType::Date);
    assert_eq!(
        of(b"2026-11-22", false, 0, date).as_deref(),
        Some("2026-11-22")
    );
    assert_eq!(of(b"22.11.2026", false, 0, date), None);
    assert_eq!(of(b"2026-13-01", false, 0, date), None);
    let days = |days: i32| of(&days.to_be_bytes(), true, 1082, date);
    assert_eq!(days(0).as_deref(), Some("2000-01-01"));
    assert_eq!(days(59).as_deref(), Some("2000-02-29"));
    assert_eq!(days(9_822).as_deref(), Some("2026-11-22"));
    assert_eq!(days(-1).as_deref(), Some("1999-12-31"));
    assert_eq!(days(i32::MAX), None);

    let bytea = Some(ColumnType::Bytea);
    for text in ["\\x6142", "a\\102", "aB", "\\x61 42"] {
        assert_eq!(
            of(text.as_bytes(), false, 0, bytea).as_deref(),
            Some("\\x6142"),
            "{text}"
        );
    }
    assert_eq!(of(b"aB", true, 17, bytea).as_deref(), Some("\\x6142"));
    assert_eq!(of(b"\\x6", false, 0, bytea), None);
}

#[test]
fn a_cast_has_its_say_before_the_column() {
    let with = |cast, value: &[u8], binary, column| {
        let source = Source {
            origin: Origin::Parameter(1),
            array: false,
            cast,
        };
        let parameters = [Parameter {
            value: Some(value),
            binary,
            type_oid: 0,
        }];
        all(&source, column, &parameters)
    };
    assert_eq!(
        with(Some(ColumnType::Integer), b"007", false, None).as_deref(),
        Some("7")
    );
    assert_eq!(
        with(Some(ColumnType::Integer), &[0, 0, 0, 7], true, None).as_deref(),
        Some("7")
    );
    assert_eq!(
        with(Some(ColumnType::Integer), b"x", false, Some(TEXT)),
        None
    );
    assert_eq!(
        with(Some(ColumnType::Bool), b"t", false, Some(TEXT)).as_deref(),
        Some("true")
    );
}

#[test]
fn arrays_give_each_element_in_text_and_binary() {
    let source = Source {
        origin: Origin::Parameter(1),
        array: true,
        cast: None,
    };
    let of = |value: &[u8], binary, type_oid| {
        let parameters = [Parameter {
            value: Some(value),
            binary,
            type_oid,
        }];
        all(&source, Some(ColumnType::Integer), &parameters)
    };
    assert_eq!(of(b"{3, \"4\"}", false, 1016).as_deref(), Some("3|4"));
    assert_eq!(of(b"{3,NULL}", false, 1016), None);
    assert_eq!(of(b"{}", false, 1016), None);
    assert_eq!(of(b"{{1}}", false, 1016), None);
    assert_eq!(of(b"{1.5}", false, 1231), None);
    let mut binary = Vec::new();
    for word in [1_u32, 0, 23, 2, 1, 4, 5, 4, 6] {
        binary.extend_from_slice(&word.to_be_bytes());
    }
    assert_eq!(of(&binary, true, 1007).as_deref(), Some("5|6"));
    for length in 0..binary.len() {
        assert_eq!(of(&binary[..length], true, 1007), None, "{length} bytes");
    }
}
