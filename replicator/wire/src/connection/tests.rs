use bytes::BufMut;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::*;
use crate::encode::{ErrorReport, backend};

fn pair() -> (Connection, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    let mut connection = Connection::new(Stream::Unix(near));
    connection.set_logged_in();
    (connection, far)
}

fn row(length: usize) -> Vec<u8> {
    let mut bytes = vec![b'D'];
    bytes.put_u32(u32::try_from(length + 10).unwrap());
    bytes.put_u16(1);
    bytes.put_u32(u32::try_from(length).unwrap());
    bytes.resize(bytes.len() + length, b'x');
    bytes
}

const READY: &[u8] = b"Z\0\0\0\x05I";

#[tokio::test]
async fn messages_come_whole_however_they_arrive() {
    let (mut connection, mut server) = pair();
    let send = async {
        for byte in b"S\0\0\0\x11TimeZone\0UTC\0".iter().chain(READY) {
            server.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        server
            .write_all(&[&row(3)[..], READY, READY].concat())
            .await
            .unwrap();
    };
    let receive = async {
        let mut tags = Vec::new();
        for _ in 0..5 {
            tags.push(connection.recv().await.unwrap().tag);
        }
        assert_eq!(tags, b"SZDZZ");
        assert!(connection.try_recv().unwrap().is_none());
    };
    tokio::join!(send, receive);
}

#[tokio::test]
async fn reported_settings_are_kept() {
    let (mut connection, mut server) = pair();
    let mut out = BytesMut::new();
    for (name, value) in [
        ("TimeZone", "UTC"),
        ("is_superuser", "on"),
        ("TimeZone", "CET"),
    ] {
        backend::parameter_status(&mut out, name, value).unwrap();
    }
    server.write_all(&out).await.unwrap();
    for _ in 0..3 {
        assert_eq!(connection.recv().await.unwrap().tag, b'S');
    }
    assert_eq!(connection.parameter("TimeZone"), Some("CET"));
    assert_eq!(connection.parameters().len(), 2);
    assert_eq!(connection.parameter("nothing"), None);
}

#[tokio::test]
async fn a_server_cannot_fill_memory_with_settings() {
    let (mut connection, mut server) = pair();
    let mut out = BytesMut::new();
    for number in 0..=MAX_PARAMETERS {
        backend::parameter_status(&mut out, &format!("p{number}"), "").unwrap();
    }
    let receive = async {
        for _ in 0..MAX_PARAMETERS {
            connection.recv().await.unwrap();
        }
        assert!(matches!(
            connection.recv().await,
            Err(ConnectionError::Protocol(_))
        ));
    };
    let (sent, ()) = tokio::join!(server.write_all(&out), receive);
    sent.unwrap();
}

#[tokio::test]
async fn an_announced_length_allocates_nothing() {
    let (mut connection, mut server) = pair();
    server
        .write_all(b"D\x3f\xff\xff\xff0123456789")
        .await
        .unwrap();
    drop(server);
    assert!(matches!(
        connection.recv().await,
        Err(ConnectionError::Closed)
    ));
    assert_eq!(connection.rx.len(), 15);
    assert!(
        connection.rx.capacity() <= 2 * CHUNK,
        "{}",
        connection.rx.capacity()
    );
}

#[tokio::test]
async fn the_buffer_shrinks_back_after_a_large_message() {
    let (mut connection, mut server) = pair();
    let large = row(20_000_000);
    let send = async {
        server.write_all(&large).await.unwrap();
        server.write_all(READY).await.unwrap();
    };
    let receive = async {
        let frame = connection.recv().await.unwrap();
        assert_eq!(frame.body.len(), large.len() - HEADER_LEN);
        assert!(
            connection.rx.capacity() <= KEEP,
            "{}",
            connection.rx.capacity()
        );
        assert_eq!(connection.recv().await.unwrap().tag, b'Z');
    };
    tokio::join!(send, receive);
}

#[tokio::test]
async fn a_batch_larger_than_all_buffers_does_not_deadlock() {
    const MESSAGES: usize = 400;
    let (mut connection, mut server) = pair();
    for _ in 0..MESSAGES {
        encode::query(connection.out(), &"x".repeat(50_000)).unwrap();
    }
    // As a backend does: takes one message, sends its whole reply, and reads nothing meanwhile.
    let serve = tokio::spawn(async move {
        let mut query = vec![0; 50_006];
        let reply = [&row(50_000)[..], READY].concat();
        for _ in 0..MESSAGES {
            server.read_exact(&mut query).await.unwrap();
            assert_eq!(query[0], b'Q');
            server.write_all(&reply).await.unwrap();
        }
    });
    let mut replies = 0;
    let first = connection.flush_and_recv().await.unwrap();
    assert_eq!(first.tag, b'D');
    while replies < MESSAGES {
        replies += usize::from(connection.recv().await.unwrap().tag == b'Z');
    }
    serve.await.unwrap();
    assert!(connection.sending.is_empty() && !connection.sending_large);
}

#[tokio::test]
async fn a_cancelled_recv_loses_nothing() {
    let (mut connection, mut server) = pair();
    let send = async {
        for number in 0..200_u8 {
            let bytes = row(usize::from(number));
            let (start, end) = bytes.split_at(bytes.len() / 2);
            server.write_all(start).await.unwrap();
            tokio::task::yield_now().await;
            server.write_all(end).await.unwrap();
        }
    };
    let receive = async {
        let mut received = 0;
        while received < 200 {
            tokio::select! {
                biased;
                frame = connection.recv() => {
                    assert_eq!(frame.unwrap().body.len(), received + 6);
                    received += 1;
                }
                () = tokio::task::yield_now() => {}
            }
        }
    };
    tokio::join!(send, receive);
}

#[tokio::test]
async fn the_servers_last_words_come_before_the_broken_pipe() {
    let (mut connection, mut server) = pair();
    let mut words = BytesMut::new();
    backend::error(
        &mut words,
        &ErrorReport::fatal("57P01", "terminating connection"),
    );
    server.write_all(&words).await.unwrap();
    drop(server);
    encode::query(connection.out(), "select 1").unwrap();
    assert!(connection.flush().await.is_err());
    let frame = connection.recv().await.unwrap();
    assert_eq!(
        ErrorFields::parse(&frame.body).unwrap().code(),
        Some(&b"57P01"[..])
    );
    assert!(matches!(
        connection.recv().await,
        Err(ConnectionError::Io(_))
    ));
}

#[tokio::test]
async fn nothing_queued_is_sent_before_it_is_flushed() {
    let (mut connection, mut server) = pair();
    encode::sync(connection.out());
    server.write_all(READY).await.unwrap();
    assert_eq!(connection.recv().await.unwrap().tag, b'Z');
    let mut byte = [0; 1];
    assert_eq!(
        server.try_read(&mut byte).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    connection.flush().await.unwrap();
    server.read_exact(&mut byte).await.unwrap();
    assert_eq!(&byte, b"S");
}

#[tokio::test]
async fn small_messages_only_before_the_login() {
    let (near, mut server) = UnixStream::pair().unwrap();
    let mut connection = Connection::new(Stream::Unix(near));
    server.write_all(b"E\0\x10\0\0").await.unwrap();
    assert!(matches!(
        connection.recv().await,
        Err(ConnectionError::Protocol(_))
    ));
}

#[tokio::test]
async fn simple_query_collects_rows_of_all_statements() {
    let (mut connection, mut server) = pair();
    let mut out = BytesMut::new();
    backend::row_description(&mut out, &["a", "b"]).unwrap();
    backend::data_row(&mut out, [Some("1"), None]).unwrap();
    backend::command_complete(&mut out, "SELECT 1").unwrap();
    backend::notice(&mut out, &ErrorReport::new("NOTICE", "00000", "by the way"));
    backend::data_row(&mut out, [Some("2")]).unwrap();
    backend::command_complete(&mut out, "SELECT 1").unwrap();
    backend::ready_for_query(&mut out, b'I');
    server.write_all(&out).await.unwrap();
    let rows = connection
        .simple_query("select 1, null; select 2")
        .await
        .unwrap();
    assert_eq!(
        rows,
        [vec![Some("1".to_owned()), None], vec![Some("2".to_owned())]]
    );
}

#[tokio::test]
async fn after_a_failed_statement_the_next_one_runs() {
    let (mut connection, mut server) = pair();
    let mut out = BytesMut::new();
    backend::error(&mut out, &ErrorReport::error("42P01", "no such table"));
    backend::ready_for_query(&mut out, b'I');
    backend::data_row(&mut out, [Some("1")]).unwrap();
    backend::ready_for_query(&mut out, b'I');
    server.write_all(&out).await.unwrap();
    let failed = connection.simple_query("select * from nowhere").await;
    assert!(matches!(failed, Err(ConnectionError::Server(error)) if error.code == "42P01"));
    assert_eq!(connection.simple_query("select 1").await.unwrap().len(), 1);
}

#[tokio::test]
async fn close_says_goodbye_and_does_not_wait_for_a_stuck_server() {
    let (connection, mut server) = pair();
    connection.close().await;
    let mut bytes = Vec::new();
    server.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"X\0\0\0\x04");

    let (mut connection, _stuck) = pair();
    encode::query(connection.out(), &"x".repeat(10_000_000)).unwrap();
    connection.close().await;
}

#[tokio::test]
async fn parts_carry_what_was_read_ahead() {
    let (mut connection, mut server) = pair();
    connection.set_key_data(BackendKeyData {
        pid: 7,
        secret: &[1, 2, 3, 4],
    });
    server.write_all(&[READY, READY].concat()).await.unwrap();
    connection.recv().await.unwrap();
    assert_eq!(
        (connection.backend_pid(), connection.cancel_secret()),
        (7, &[1, 2, 3, 4][..])
    );
    let parts = connection.into_parts();
    assert_eq!((&parts.rx[..], parts.backend_pid), (READY, 7));
    assert!(!format!("{parts:?}").contains("secret"));
}
