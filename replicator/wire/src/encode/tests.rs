use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::backend as read;
use crate::frame::{self, Sender};
use crate::frontend as read_client;
use crate::startup::{FirstPacket, first_packet};

/// Splits what was written into its only frame.
fn single(buf: &BytesMut, from: Sender) -> (u8, &[u8]) {
    let header = frame::peek(buf, from).unwrap().unwrap();
    assert_eq!(header.frame_len(), buf.len(), "exactly one message");
    (header.tag, &buf[frame::HEADER_LEN..])
}

fn text() -> impl Strategy<Value = String> {
    "[^\0]{0,40}"
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn client_messages_come_back_as_written(
        name in text(), sql in text(), types in vec(any::<u32>(), 0..20),
        params in vec(option::of(vec(any::<u8>(), 0..50)), 0..20), rows in any::<i32>(),
    ) {
        let mut buf = BytesMut::new();
        frontend::query(&mut buf, &sql).unwrap();
        let (tag, body) = single(&buf, Sender::Client);
        prop_assert_eq!((tag, read_client::Query::parse(body).unwrap().sql), (b'Q', sql.as_bytes()));

        buf.clear();
        frontend::parse(&mut buf, &name, &sql, types.iter().copied()).unwrap();
        let (tag, body) = single(&buf, Sender::Client);
        let view = read_client::Parse::parse(body).unwrap();
        prop_assert_eq!((tag, view.name, view.sql), (b'P', name.as_bytes(), sql.as_bytes()));
        prop_assert_eq!(view.types().collect::<Vec<_>>(), types);

        buf.clear();
        frontend::bind_text(&mut buf, &name, &sql, params.iter().map(Option::as_deref)).unwrap();
        let (tag, body) = single(&buf, Sender::Client);
        let view = read_client::Bind::parse(body).unwrap();
        prop_assert_eq!((tag, view.portal, view.statement), (b'B', name.as_bytes(), sql.as_bytes()));
        prop_assert_eq!(view.params().collect::<Vec<_>>(), params.iter().map(Option::as_deref).collect::<Vec<_>>());
        prop_assert_eq!(view.formats().count() + view.result_formats().count(), 0);

        buf.clear();
        frontend::execute(&mut buf, &name, rows).unwrap();
        let (_, body) = single(&buf, Sender::Client);
        prop_assert_eq!(read_client::Execute::parse(body).unwrap(), read_client::Execute { portal: name.as_bytes(), max_rows: rows });

        buf.clear();
        frontend::describe_statement(&mut buf, &name).unwrap();
        let (_, body) = single(&buf, Sender::Client);
        prop_assert_eq!(read_client::Describe::parse(body).unwrap().target, read_client::Target::Statement(name.as_bytes()));

        buf.clear();
        frontend::close_portal(&mut buf, &name).unwrap();
        let (_, body) = single(&buf, Sender::Client);
        prop_assert_eq!(read_client::Close::parse(body).unwrap().target, read_client::Target::Portal(name.as_bytes()));

        buf.clear();
        frontend::password(&mut buf, sql.as_bytes()).unwrap();
        let (_, body) = single(&buf, Sender::Client);
        prop_assert_eq!(read_client::PasswordMessage::parse(body).unwrap().password, sql.as_bytes());

        buf.clear();
        frontend::sasl_initial(&mut buf, &name, sql.as_bytes()).unwrap();
        let (_, body) = single(&buf, Sender::Client);
        let view = read_client::SaslInitialResponse::parse(body).unwrap();
        prop_assert_eq!((view.mechanism, view.data), (name.as_bytes(), Some(sql.as_bytes())));
    }

    #[test]
    fn startup_and_cancel_packets_come_back_as_written(
        pid in any::<i32>(), secret in vec(any::<u8>(), 4..=256), minor in any::<u16>(),
        params in vec(("[^\0]{1,20}", text()), 0..20),
    ) {
        let mut buf = BytesMut::new();
        frontend::cancel_request(&mut buf, pid, &secret).unwrap();
        prop_assert_eq!(first_packet(&buf), Ok(Some((FirstPacket::Cancel { pid, secret: &secret }, buf.len()))));

        buf.clear();
        let pairs = params.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        frontend::startup(&mut buf, (3, minor), pairs.clone()).unwrap();
        let Ok(Some((FirstPacket::Startup(packet), length))) = first_packet(&buf) else { panic!("startup message") };
        prop_assert_eq!((packet.major, packet.minor, length), (3, minor, buf.len()));
        prop_assert_eq!(packet.params().collect::<Vec<_>>(), pairs.collect::<Vec<_>>());
    }

    #[test]
    fn server_messages_come_back_as_written(
        name in text(), value in text(), pid in any::<i32>(), secret in vec(any::<u8>(), 4..=256),
        row in vec(option::of(any::<String>()), 0..20), names in vec("[^\0]{0,20}", 0..20), salt in any::<[u8; 4]>(),
    ) {
        let mut buf = BytesMut::new();
        backend::parameter_status(&mut buf, &name, &value).unwrap();
        let (tag, body) = single(&buf, Sender::Server);
        let view = read::ParameterStatus::parse(body).unwrap();
        prop_assert_eq!((tag, view.name, view.value), (b'S', name.as_bytes(), value.as_bytes()));

        buf.clear();
        backend::backend_key_data(&mut buf, pid, &secret).unwrap();
        let (_, body) = single(&buf, Sender::Server);
        prop_assert_eq!(read::BackendKeyData::parse(body).unwrap(), read::BackendKeyData { pid, secret: &secret });

        buf.clear();
        backend::data_row(&mut buf, row.iter().map(Option::as_deref)).unwrap();
        let (_, body) = single(&buf, Sender::Server);
        let view = read::DataRow::parse(body).unwrap();
        prop_assert_eq!(view.columns().collect::<Vec<_>>(), row.iter().map(|v| v.as_ref().map(String::as_bytes)).collect::<Vec<_>>());

        buf.clear();
        let columns: Vec<&str> = names.iter().map(String::as_str).collect();
        backend::row_description(&mut buf, &columns).unwrap();
        let (_, body) = single(&buf, Sender::Server);
        let view = read::RowDescription::parse(body).unwrap();
        prop_assert_eq!(view.columns().map(|c| c.name).collect::<Vec<_>>(), names.iter().map(String::as_bytes).collect::<Vec<_>>());

        buf.clear();
        backend::negotiate_protocol_version(&mut buf, pid, columns.iter().copied()).unwrap();
        let (_, body) = single(&buf, Sender::Server);
        let view = read::NegotiateProtocolVersion::parse(body).unwrap();
        prop_assert_eq!((view.newest, view.unsupported().count()), (pid, names.len()));

        buf.clear();
        backend::command_complete(&mut buf, &name).unwrap();
        let (_, body) = single(&buf, Sender::Server);
        prop_assert_eq!(read::CommandComplete::parse(body).unwrap().tag, name.as_bytes());

        buf.clear();
        backend::authentication_md5(&mut buf, salt);
        let (_, body) = single(&buf, Sender::Server);
        prop_assert_eq!(read::Authentication::parse(body).unwrap(), read::Authentication::Md5Password { salt });

        buf.clear();
        backend::sasl_continue(&mut buf, name.as_bytes()).unwrap();
        let (_, body) = single(&buf, Sender::Server);
        prop_assert_eq!(read::Authentication::parse(body).unwrap(), read::Authentication::SaslContinue(name.as_bytes()));
    }

    #[test]
    fn an_error_stays_one_message_whatever_its_text(message in any::<String>(), detail in option::of(any::<String>())) {
        let report = ErrorReport { detail, ..ErrorReport::fatal("57P01", message) };
        let mut buf = BytesMut::new();
        backend::error(&mut buf, &report);
        let (tag, body) = single(&buf, Sender::Server);
        let fields = read::ErrorFields::parse(body).unwrap();
        prop_assert_eq!((tag, fields.code(), fields.severity()), (b'E', Some(&b"57P01"[..]), Some(&b"FATAL"[..])));
        prop_assert_eq!(fields.get(b'D').is_some(), report.detail.is_some());
        prop_assert_eq!(fields.message().map(<[u8]>::len), Some(report.message.replace('\0', "\u{fffd}").len()));
    }
}

#[test]
fn messages_without_content_have_the_length_their_tag_allows() {
    let mut buf = BytesMut::new();
    for write in [
        frontend::sync,
        frontend::flush,
        frontend::terminate,
        frontend::copy_done,
    ] {
        buf.clear();
        write(&mut buf);
        assert!(single(&buf, Sender::Client).1.is_empty());
    }
    for status in [b'I', b'T', b'E'] {
        buf.clear();
        backend::ready_for_query(&mut buf, status);
        let (_, body) = single(&buf, Sender::Server);
        assert_eq!(read::ReadyForQuery::parse(body).unwrap().status, status);
    }
    buf.clear();
    backend::ready_for_query(&mut buf, b'?');
    assert_eq!(single(&buf, Sender::Server).1, b"E");
    buf.clear();
    frontend::ssl_request(&mut buf);
    assert_eq!(first_packet(&buf), Ok(Some((FirstPacket::SslRequest, 8))));
    buf.clear();
    backend::authentication_sasl(&mut buf, &["A", "B"]);
    assert_eq!(single(&buf, Sender::Server).1, b"\0\0\0\x0aA\0B\0\0");
    for (write, code) in [
        (backend::authentication_ok as fn(&mut BytesMut), 0),
        (backend::authentication_cleartext, 3),
    ] {
        buf.clear();
        write(&mut buf);
        assert_eq!(single(&buf, Sender::Server).1, [0, 0, 0, code]);
    }
}

#[test]
fn a_message_that_cannot_be_written_leaves_nothing_behind() {
    let mut buf = BytesMut::from(&b"before"[..]);
    let many = vec![None; 70_000];
    let long = "x".repeat(40_000);
    let failed = [
        frontend::query(&mut buf, "select '\0'"),
        frontend::parse(&mut buf, "a", "\0", []),
        frontend::bind_text(&mut buf, "", "", many.clone()),
        frontend::password(&mut buf, b"a\0b"),
        frontend::cancel_request(&mut buf, 1, &[0; 3]),
        frontend::cancel_request(&mut buf, 1, &[0; 257]),
        frontend::startup(&mut buf, (3, 0), [("user", long.as_str())]),
        frontend::startup(&mut buf, (3, 0), [("", "x")]),
        frontend::startup(&mut buf, (3, 0), [("user", "a\0b")]),
        backend::backend_key_data(&mut buf, 1, &[0; 3]),
        backend::parameter_status(&mut buf, "a", &long),
        backend::parameter_status(&mut buf, "a\0", "b"),
        backend::data_row(&mut buf, vec![None; 40_000]),
        backend::row_description(&mut buf, &["a\0b"]),
        backend::sasl_continue(&mut buf, long.as_bytes()),
        backend::sasl_final(&mut buf, long.as_bytes()),
        backend::command_complete(&mut buf, "a\0b"),
    ];
    for (index, result) in failed.iter().enumerate() {
        assert!(result.is_err(), "{index}");
    }
    assert_eq!(&buf[..], b"before");
}

#[test]
fn long_error_texts_are_cut_between_characters() {
    let report = ErrorReport::error("XX000", "ä".repeat(50_000))
        .with_hint("h")
        .with_detail("d");
    let mut buf = BytesMut::new();
    backend::notice(&mut buf, &report);
    let (tag, body) = single(&buf, Sender::Server);
    let fields = read::ErrorFields::parse(body).unwrap();
    assert_eq!((tag, fields.get(b'H')), (b'N', Some(&b"h"[..])));
    let message = std::str::from_utf8(fields.message().unwrap()).unwrap();
    assert_eq!(message.len(), 64 * 1024);
}
