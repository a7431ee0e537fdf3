use std::path::Path;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use super::*;
use crate::backend::{ErrorFields, NegotiateProtocolVersion};
use crate::encode::frontend as encode;
use crate::stream::Stream;
use crate::tls::{ClientTls, ClientTlsMode, ServerTls, SslMode};

fn startup_bytes(minor: u16, params: &[(&str, &str)]) -> BytesMut {
    let mut buf = BytesMut::new();
    encode::startup(&mut buf, (3, minor), params.iter().copied()).unwrap();
    buf
}

fn packet(code: u32, rest: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(8 + rest.len())
        .unwrap()
        .to_be_bytes()
        .to_vec();
    bytes.extend(code.to_be_bytes());
    bytes.extend(rest);
    bytes
}

fn negotiated(minor: u16, params: &[(&str, &str)]) -> Result<Startup, StartupError> {
    let bytes = startup_bytes(minor, params);
    let Ok(Some((FirstPacket::Startup(packet), _))) = first_packet(&bytes) else {
        panic!("startup message")
    };
    packet.negotiate()
}

#[test]
fn length_is_checked_as_soon_as_it_is_there() {
    for length in [0_u32, 7, 10_005, 0x7fff_ffff, u32::MAX] {
        assert_eq!(
            first_packet(&length.to_be_bytes()),
            Err(StartupError::Length),
            "{length}"
        );
    }
    assert_eq!(first_packet(&[0, 0, 0]), Ok(None));
    assert_eq!(first_packet(&10_004_u32.to_be_bytes()), Ok(None));
    assert_eq!(first_packet(b""), Ok(None));
}

#[test]
fn requests_are_told_apart() {
    assert_eq!(first_packet(&[0x16]), Ok(Some((FirstPacket::DirectTls, 0))));
    let ssl = packet(SSL_REQUEST_CODE, b"");
    assert_eq!(first_packet(&ssl), Ok(Some((FirstPacket::SslRequest, 8))));
    let gss = packet(GSSENC_REQUEST_CODE, b"");
    assert_eq!(
        first_packet(&gss),
        Ok(Some((FirstPacket::GssEncRequest, 8)))
    );
    assert_eq!(
        first_packet(&packet(SSL_REQUEST_CODE, b"x")),
        Err(StartupError::Length)
    );
    for (length, fits) in [
        (0, false),
        (3, false),
        (4, true),
        (32, true),
        (256, true),
        (257, false),
    ] {
        let mut rest = vec![0, 0, 0, 9];
        rest.extend(vec![1; length]);
        assert_eq!(
            first_packet(&packet(CANCEL_REQUEST_CODE, &rest)).is_ok(),
            fits,
            "{length}"
        );
    }
    assert!(first_packet(&packet(CANCEL_REQUEST_CODE, b"ab")).is_err());
}

#[test]
fn startup_layout_is_checked() {
    for params in [
        &b""[..],
        b"user",
        b"user\0",
        b"user\0a",
        b"user\0a\0",
        b"user\0a\0\0x",
        b"\0\0",
        b"user\0\xff\0\0",
    ] {
        let bytes = packet(3 << 16, params);
        assert!(
            matches!(first_packet(&bytes), Err(StartupError::Layout(_))),
            "{}",
            params.escape_ascii()
        );
    }
    let empty = packet(3 << 16, b"\0");
    let Ok(Some((FirstPacket::Startup(packet), _))) = first_packet(&empty) else {
        panic!("a startup message without parameters")
    };
    assert_eq!(packet.params().count(), 0);
    assert_eq!(packet.negotiate(), Err(StartupError::NoUser));
}

#[test]
fn empty_values_do_not_end_the_list() {
    let bytes = startup_bytes(0, &[("user", "a"), ("options", ""), ("x", "y")]);
    let Ok(Some((FirstPacket::Startup(packet), _))) = first_packet(&bytes) else {
        panic!("startup message")
    };
    assert_eq!(
        packet.params().collect::<Vec<_>>(),
        [("user", "a"), ("options", ""), ("x", "y")]
    );
    assert_eq!(packet.get("options"), Some(""));
}

#[test]
fn versions_are_negotiated_down_to_what_both_speak() {
    let user = [("user", "anna")];
    for (minor, protocol, told) in [
        (0, PROTOCOL_3_0, false),
        (1, PROTOCOL_3_0, false),
        (2, PROTOCOL_3_2, false),
        (3, PROTOCOL_3_2, true),
        (9999, PROTOCOL_3_2, true),
    ] {
        let startup = negotiated(minor, &user).unwrap();
        assert_eq!(
            (startup.protocol, startup.needs_negotiation),
            (protocol, told),
            "{minor}"
        );
    }
    for major in [0, 1, 2, 4, 1234] {
        let bytes = packet(major << 16 | 1, b"whatever");
        let Ok(Some((FirstPacket::Startup(packet), _))) = first_packet(&bytes) else {
            panic!("startup message")
        };
        let error = packet.negotiate().unwrap_err();
        assert_eq!(error.code(), "0A000");
        assert_eq!(
            error.to_string(),
            format!("unsupported frontend protocol {major}.1: server supports 3.0 to 3.2")
        );
    }
}

#[test]
fn parameters_are_sorted() {
    let startup = negotiated(
        0,
        &[
            ("user", "anna"),
            ("database", ""),
            ("application_name", "psql"),
            ("_pq_.magic", "1"),
            ("replication", "database"),
            ("user", "berta"),
        ],
    )
    .unwrap();
    assert_eq!(
        (startup.user.as_str(), startup.database.as_str()),
        ("berta", "berta")
    );
    assert_eq!(
        startup.params,
        [("application_name".to_owned(), "psql".to_owned())]
    );
    assert_eq!(startup.replication.as_deref(), Some("database"));
    assert_eq!(startup.unsupported, ["_pq_.magic"]);
    assert!(startup.needs_negotiation);
    assert_eq!(startup.protocol, PROTOCOL_3_0);
}

// The driver, over loopback sockets.

async fn connected() -> (TcpStream, Stream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (near.unwrap(), Stream::Tcp(far.unwrap().0))
}

struct Files {
    _dir: tempfile::TempDir,
    server: ServerTls,
    root: std::path::PathBuf,
}

fn tls_files() -> Files {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("server.crt"), dir.path().join("server.key"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    Files {
        server: ServerTls::load(&cert, &key, None).unwrap(),
        root: cert,
        _dir: dir,
    }
}

async fn upgrade(tcp: TcpStream, root: &Path) -> Stream {
    let tls = ClientTls::new(SslMode::VerifyFull, Some(root)).unwrap();
    let stream = tls
        .connect(tls.config().unwrap(), "localhost", tcp)
        .await
        .unwrap();
    Stream::ClientTls(Box::new(stream))
}

/// Reads one server message from a stream that then ends.
async fn last_words(mut client: impl tokio::io::AsyncRead + Unpin) -> (String, String) {
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes[0], b'E');
    let error = ErrorFields::parse(&bytes[5..]).unwrap().to_owned();
    assert_eq!(error.severity, "FATAL");
    (error.code, error.message)
}

#[tokio::test]
async fn plain_session_leaves_what_follows_in_the_stream() {
    let (mut client, server) = connected().await;
    client
        .write_all(&startup_bytes(0, &[("user", "anna")]))
        .await
        .unwrap();
    client.write_all(b"next").await.unwrap();
    let accepted = accept(server, None, ClientTlsMode::Allow).await.unwrap();
    let Accepted::Session {
        mut stream,
        startup,
        tls,
    } = accepted
    else {
        panic!("a session")
    };
    assert_eq!((startup.database.as_str(), tls), ("anna", None));
    let mut rest = [0; 4];
    stream.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"next");
}

#[tokio::test]
async fn ssl_and_gss_requests_are_answered_once_each_in_any_order() {
    for codes in [
        [SSL_REQUEST_CODE, GSSENC_REQUEST_CODE],
        [GSSENC_REQUEST_CODE, SSL_REQUEST_CODE],
    ] {
        let (mut client, server) = connected().await;
        let talk = async {
            for code in codes {
                client.write_all(&packet(code, b"")).await.unwrap();
                assert_eq!(client.read_u8().await.unwrap(), b'N');
            }
            client.write_all(&packet(codes[0], b"")).await.unwrap();
            last_words(client).await
        };
        let (accepted, (code, message)) =
            tokio::join!(accept(server, None, ClientTlsMode::Allow), talk);
        assert!(matches!(
            accepted,
            Err(AcceptError::Startup(StartupError::Protocol {
                major: 1234,
                ..
            }))
        ));
        assert_eq!(code, "0A000");
        assert!(
            message.starts_with("unsupported frontend protocol 1234."),
            "{message}"
        );
    }
}

#[tokio::test]
async fn tls_is_negotiated_and_gss_before_it_refused() {
    let files = tls_files();
    let (mut client, server) = connected().await;
    let talk = async {
        client
            .write_all(&packet(GSSENC_REQUEST_CODE, b""))
            .await
            .unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'N');
        client
            .write_all(&packet(SSL_REQUEST_CODE, b""))
            .await
            .unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'S');
        let mut client = upgrade(client, &files.root).await;
        client
            .write_all(&startup_bytes(2, &[("user", "anna")]))
            .await
            .unwrap();
        client.flush().await.unwrap();
        client
    };
    let (accepted, client) = tokio::join!(
        accept(server, Some(&files.server), ClientTlsMode::Require),
        talk
    );
    let Accepted::Session {
        stream,
        startup,
        tls,
    } = accepted.unwrap()
    else {
        panic!("a session")
    };
    assert!(stream.is_tls());
    assert_eq!(startup.protocol, PROTOCOL_3_2);
    let info = tls.unwrap();
    assert_eq!(info.client_cn, None);
    assert_eq!(
        info.endpoint_binding.as_deref(),
        files.server.endpoint_binding()
    );
    // Both sides bind to the same certificate.
    let seen = client.peer_certificate().unwrap();
    assert_eq!(
        info.endpoint_binding,
        crate::tls::certificate::endpoint_binding(seen)
    );
}

#[tokio::test]
async fn bytes_in_clear_behind_the_tls_request_are_fatal() {
    let files = tls_files();
    let (mut client, server) = connected().await;
    let mut injected = packet(SSL_REQUEST_CODE, b"");
    injected.extend(startup_bytes(0, &[("user", "mallory")]));
    client.write_all(&injected).await.unwrap();
    let accepted = accept(server, Some(&files.server), ClientTlsMode::Allow).await;
    assert!(matches!(accepted, Err(AcceptError::DataBeforeTls)));
}

#[tokio::test]
async fn direct_tls_needs_alpn_and_a_certificate() {
    let files = tls_files();
    let (client, server) = connected().await;
    let talk = async {
        let mut client = upgrade(client, &files.root).await;
        client
            .write_all(&startup_bytes(0, &[("user", "anna")]))
            .await
            .unwrap();
        client.flush().await.unwrap();
        client
    };
    let (accepted, _client) = tokio::join!(
        accept(server, Some(&files.server), ClientTlsMode::Allow),
        talk
    );
    assert!(matches!(
        accepted,
        Ok(Accepted::Session { tls: Some(_), .. })
    ));

    let (client, server) = connected().await;
    let without_alpn = async {
        let tls = ClientTls::new(SslMode::Require, None).unwrap();
        let mut config = rustls::ClientConfig::clone(tls.config().unwrap());
        config.alpn_protocols.clear();
        tls.connect(&std::sync::Arc::new(config), "localhost", client)
            .await
    };
    let (accepted, _client) = tokio::join!(
        accept(server, Some(&files.server), ClientTlsMode::Allow),
        without_alpn
    );
    assert!(matches!(accepted, Err(AcceptError::AlpnMissing)));

    for (tls, mode) in [
        (None, ClientTlsMode::Allow),
        (Some(&files.server), ClientTlsMode::Disable),
    ] {
        let (mut client, server) = connected().await;
        client.write_all(&[TLS_HANDSHAKE]).await.unwrap();
        let accepted = accept(server, tls, mode).await;
        assert!(matches!(accepted, Err(AcceptError::TlsDisabled)));
    }
}

#[tokio::test]
async fn a_tls_request_inside_of_tls_is_refused() {
    let files = tls_files();
    let (client, server) = connected().await;
    let talk = async {
        let mut client = upgrade(client, &files.root).await;
        client
            .write_all(&packet(SSL_REQUEST_CODE, b""))
            .await
            .unwrap();
        client.flush().await.unwrap();
        last_words(client).await
    };
    let (accepted, (code, _)) = tokio::join!(
        accept(server, Some(&files.server), ClientTlsMode::Allow),
        talk
    );
    assert!(accepted.is_err());
    assert_eq!(code, "0A000");
}

#[tokio::test]
async fn required_tls_is_required_of_tcp_clients_only() {
    let files = tls_files();
    let (mut client, server) = connected().await;
    client
        .write_all(&startup_bytes(0, &[("user", "anna")]))
        .await
        .unwrap();
    let (accepted, (code, _)) = tokio::join!(
        accept(server, Some(&files.server), ClientTlsMode::Require),
        last_words(client)
    );
    assert!(matches!(accepted, Err(AcceptError::TlsRequired)));
    assert_eq!(code, "28000");

    let (mut client, server) = UnixStream::pair().unwrap();
    client
        .write_all(&startup_bytes(0, &[("user", "anna")]))
        .await
        .unwrap();
    let accepted = accept(
        Stream::Unix(server),
        Some(&files.server),
        ClientTlsMode::Require,
    )
    .await;
    assert!(matches!(accepted, Ok(Accepted::Session { tls: None, .. })));
}

#[tokio::test]
async fn a_client_that_asks_for_more_is_told_what_there_is() {
    for (minor, params, newest) in [
        (
            9999,
            &[("user", "anna"), ("_pq_.test_protocol_negotiation", "1")][..],
            3 << 16 | 2,
        ),
        // Not more than it asked for.
        (0, &[("user", "anna"), ("_pq_.x", "1")][..], 3 << 16),
        (9999, &[("user", "anna")][..], 3 << 16 | 2),
    ] {
        let (mut client, server) = connected().await;
        client
            .write_all(&startup_bytes(minor, params))
            .await
            .unwrap();
        let accepted = accept(server, None, ClientTlsMode::Allow).await.unwrap();
        drop(accepted);
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes[0], b'v');
        let told = NegotiateProtocolVersion::parse(&bytes[5..]).unwrap();
        assert_eq!(
            (told.newest, told.unsupported().count()),
            (newest, params.len() - 1)
        );
    }
}

#[tokio::test]
async fn cancel_requests_are_taken_without_tls_even_where_it_is_required() {
    let files = tls_files();
    let (mut client, server) = connected().await;
    let mut buf = BytesMut::new();
    encode::cancel_request(&mut buf, 42, &[7; 32]).unwrap();
    client.write_all(&buf).await.unwrap();
    let accepted = accept(server, Some(&files.server), ClientTlsMode::Require).await;
    assert!(matches!(accepted, Ok(Accepted::Cancel { pid: 42, secret, .. }) if secret == [7; 32]));
}

#[tokio::test]
async fn bad_packets_are_answered_and_a_silent_close_is_not_an_alarm() {
    for (bytes, expected) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "08P01"),
        (packet(3 << 16, b"user\0anna"), "08P01"),
        (packet(2 << 16, b"old"), "0A000"),
        (packet(3 << 16, b"database\0x\0\0"), "28000"),
    ] {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(&bytes).await.unwrap();
        let accepted = accept(Stream::Unix(server), None, ClientTlsMode::Allow).await;
        assert!(matches!(accepted, Err(AcceptError::Startup(_))));
        let mut answer = vec![0; 4096];
        let read = client.read(&mut answer).await.unwrap();
        assert_eq!(
            ErrorFields::parse(&answer[5..read]).unwrap().code(),
            Some(expected.as_bytes())
        );
    }
    let (client, server) = connected().await;
    drop(client);
    assert!(matches!(
        accept(server, None, ClientTlsMode::Allow).await,
        Err(AcceptError::Closed)
    ));
    let (mut client, server) = connected().await;
    client.write_all(&[0, 0, 0]).await.unwrap();
    drop(client);
    assert!(matches!(
        accept(server, None, ClientTlsMode::Allow).await,
        Err(AcceptError::Io(_))
    ));
}
