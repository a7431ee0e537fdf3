use super::*;

#[test]
fn bind_yields_parameters_and_formats() {
    let body = b"po\0st\0\0\x01\0\x01\0\x02\0\0\0\x01a\xff\xff\xff\xff\0\x01\0\0";
    let bind = Bind::parse(body).unwrap();
    assert_eq!((bind.portal, bind.statement), (&b"po"[..], &b"st"[..]));
    assert_eq!(bind.params().collect::<Vec<_>>(), [Some(&b"a"[..]), None]);
    assert_eq!(bind.param_count(), 2);
    assert_eq!((bind.format_of(0), bind.format_of(1)), (1, 1));
    assert_eq!(bind.result_formats().collect::<Vec<_>>(), [0]);
    for cut in 0..body.len() {
        assert!(Bind::parse(&body[..cut]).is_err(), "{cut}");
    }
}

#[test]
fn bind_formats_are_none_or_one_or_one_for_each() {
    let none = Bind::parse(b"\0\0\0\0\0\x01\0\0\0\x01a\0\0").unwrap();
    assert_eq!(none.format_of(0), 0);
    let each =
        Bind::parse(b"\0\0\0\x02\0\0\0\x01\0\x02\xff\xff\xff\xff\xff\xff\xff\xff\0\0").unwrap();
    assert_eq!((each.format_of(0), each.format_of(1)), (0, 1));
    // Two formats for one parameter: for the server to refuse.
    let strange = Bind::parse(b"\0\0\0\x02\0\0\0\x01\0\x01\xff\xff\xff\xff\0\0").unwrap();
    assert_eq!((strange.format_of(1), strange.format_of(2)), (1, 0));
}

#[test]
fn hostile_counts_and_lengths_are_errors() {
    // The frames that make decoders of the field panic: many types or a huge value in a short body.
    assert!(Parse::parse(b"\0select 1\0\xff\xff").is_err());
    assert!(Bind::parse(b"\0\0\0\0\0\x01\x3f\xff\xff\xff").is_err());
    assert!(Bind::parse(b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0").is_err());
    assert!(Bind::parse(b"").is_err());
    assert!(Execute::parse(b"").is_err());
    assert!(Describe::parse(b"").is_err());
    assert!(SaslInitialResponse::parse(b"S\0\x7f\xff\xff\xff").is_err());
    assert!(SaslInitialResponse::parse(b"S\0\xff\xff\xff\xfe").is_err());
    assert!(SaslResponse::parse(b"").is_err());
    assert!(FunctionCall::parse(b"\0\0\0").is_err());
}

#[test]
fn messages_are_read() {
    assert_eq!(Query::parse(b"select 1\0").unwrap().sql, b"select 1");
    let parse = Parse::parse(b"n\0select $1\0\0\x01\0\0\0\x17").unwrap();
    assert_eq!((parse.name, parse.sql), (&b"n"[..], &b"select $1"[..]));
    assert_eq!(parse.types().collect::<Vec<_>>(), [23]);
    assert_eq!(
        Describe::parse(b"Sn\0").unwrap().target,
        Target::Statement(b"n")
    );
    assert_eq!(Close::parse(b"P\0").unwrap().target, Target::Portal(b""));
    assert!(Close::parse(b"Xn\0").is_err());
    let execute = Execute::parse(b"p\0\0\0\0\x05").unwrap();
    assert_eq!((execute.portal, execute.max_rows), (&b"p"[..], 5));
    assert_eq!(PasswordMessage::parse(b"pw\0").unwrap().password, b"pw");
    let initial = SaslInitialResponse::parse(b"M\0\0\0\0\x02hi").unwrap();
    assert_eq!(
        (initial.mechanism, initial.data),
        (&b"M"[..], Some(&b"hi"[..]))
    );
    assert_eq!(
        SaslInitialResponse::parse(b"M\0\xff\xff\xff\xff")
            .unwrap()
            .data,
        None
    );
    assert_eq!(
        FunctionCall::parse(b"\0\0\x01\0rest").unwrap().function,
        256
    );
}

#[test]
fn a_message_with_more_behind_it_is_an_error() {
    // What pgwire's decoders take for the next message.
    assert!(Query::parse(b"select 1\0x").is_err());
    assert!(Describe::parse(b"Sn\0x").is_err());
    assert!(PasswordMessage::parse(b"pw\0x").is_err());
    assert!(Execute::parse(b"p\0\0\0\0\x05x").is_err());
}

#[test]
fn secrets_and_values_do_not_print() {
    let shown = format!(
        "{:?} {:?} {:?} {:?}",
        PasswordMessage {
            password: b"hunter2"
        },
        SaslResponse { data: b"hunter2" },
        SaslInitialResponse::parse(b"M\0\0\0\0\x07hunter2").unwrap(),
        Bind::parse(b"\0\0\0\0\0\x01\0\0\0\x07hunter2\0\0").unwrap()
    );
    let bytes = format!("{:?}", b"hunter2");
    assert!(
        !shown.contains("hunter2") && !shown.contains(&bytes),
        "{shown}"
    );
}
