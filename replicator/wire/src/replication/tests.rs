use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::*;
use crate::encode::{ErrorReport, backend};
use crate::stream::Stream;

fn copy_data(body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![b'd'];
    bytes.put_u32(u32::try_from(body.len() + 4).unwrap());
    bytes.extend(body);
    bytes
}

fn xlog(start: u64, data: &[u8]) -> Vec<u8> {
    let mut body = vec![b'w'];
    body.put_u64(start);
    body.put_u64(start + 100);
    body.put_i64(-5);
    body.extend(data);
    body
}

#[test]
fn messages_are_read_without_a_copy() {
    let body = Bytes::from(xlog(0x1_0000_0001, b"payload"));
    let ReplicationMessage::XLogData {
        start,
        end,
        sent_us,
        data,
    } = ReplicationMessage::parse(&body).unwrap()
    else {
        panic!("log data")
    };
    assert_eq!(
        (start, end, sent_us),
        (Lsn(0x1_0000_0001), Lsn(0x1_0000_0065), -5)
    );
    assert_eq!(data, "payload");
    assert_eq!(data.as_ptr(), body[25..].as_ptr());

    let mut alive = vec![b'k'];
    alive.put_u64(9);
    alive.put_i64(7);
    alive.put_u8(1);
    assert_eq!(
        ReplicationMessage::parse(&Bytes::from(alive.clone())),
        Ok(ReplicationMessage::KeepAlive {
            end: Lsn(9),
            sent_us: 7,
            reply: true
        })
    );
    for bad in [
        Vec::new(),
        vec![b'x'],
        alive[..17].to_vec(),
        [&alive[..], b"x"].concat(),
        xlog(1, b"")[..24].to_vec(),
    ] {
        assert!(ReplicationMessage::parse(&Bytes::from(bad)).is_err());
    }
}

#[test]
fn the_command_quotes_names_and_values() {
    assert_eq!(
        start_command("tandem", Lsn(0), &[]),
        "START_REPLICATION SLOT \"tandem\" LOGICAL 0/0"
    );
    assert_eq!(
        start_command(
            "a\"b",
            Lsn(0x16_0000_0001),
            &[("proto_version", "2"), ("publication_names", "it's")]
        ),
        "START_REPLICATION SLOT \"a\"\"b\" LOGICAL 16/1 (\"proto_version\" '2', \"publication_names\" 'it''s')"
    );
}

#[test]
fn the_status_has_the_layout_of_the_manual() {
    let message = status_message([Lsn(3), Lsn(2), Lsn(1)], -1, true);
    let mut reader = Reader::new(&message);
    assert_eq!(reader.u8(), Ok(b'r'));
    assert_eq!(
        (reader.u64(), reader.u64(), reader.u64()),
        (Ok(3), Ok(2), Ok(1))
    );
    assert_eq!(
        (reader.i64(), reader.u8(), reader.finish()),
        (Ok(-1), Ok(1), Ok(()))
    );
    assert!(now_us() > 0);
}

fn pair() -> (Connection, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    let mut connection = Connection::new(Stream::Unix(near));
    connection.set_logged_in();
    (connection, far)
}

const COPY_BOTH: &[u8] = b"W\0\0\0\x07\0\0\0";

async fn started() -> (ReplicationStream, UnixStream) {
    let (connection, mut server) = pair();
    server.write_all(COPY_BOTH).await.unwrap();
    let stream = ReplicationStream::start(connection, "s", Lsn(5), &[])
        .await
        .unwrap();
    let expected = "START_REPLICATION SLOT \"s\" LOGICAL 0/5\0";
    let mut command = vec![0; 5 + expected.len()];
    server.read_exact(&mut command).await.unwrap();
    assert_eq!(&command[5..], expected.as_bytes());
    (stream, server)
}

#[tokio::test]
async fn streams_data_and_reports_positions() {
    let (mut stream, mut server) = started().await;
    server.write_all(&copy_data(&xlog(1, b"a"))).await.unwrap();
    server.write_all(&copy_data(&xlog(2, b"b"))).await.unwrap();
    for (position, byte) in [(1, "a"), (2, "b")] {
        let message = stream.next().await.unwrap();
        assert!(
            matches!(&message, ReplicationMessage::XLogData { start: Lsn(at), data, .. } if *at == position && data == byte)
        );
    }
    stream.status(Lsn(3), Lsn(2), Lsn(2), false).await.unwrap();
    let mut status = vec![0; 5 + 34];
    server.read_exact(&mut status).await.unwrap();
    assert_eq!(&status[..6], b"d\0\0\0\x26r");
}

#[tokio::test]
async fn the_end_and_errors_are_told_apart() {
    let (mut stream, mut server) = started().await;
    server.write_all(b"c\0\0\0\x04").await.unwrap();
    assert!(matches!(stream.next().await, Err(ReplicationError::Ended)));

    let (mut stream, mut server) = started().await;
    let mut out = BytesMut::new();
    backend::error(&mut out, &ErrorReport::fatal("57P01", "shutting down"));
    server.write_all(&out).await.unwrap();
    assert!(matches!(
        stream.next().await,
        Err(ReplicationError::Connection(ConnectionError::Server(error))) if error.code == "57P01"
    ));

    let (mut stream, mut server) = started().await;
    server.write_all(&copy_data(b"?")).await.unwrap();
    assert!(matches!(
        stream.next().await,
        Err(ReplicationError::Malformed(_))
    ));

    let (mut stream, server) = started().await;
    drop(server);
    assert!(matches!(
        stream.next().await,
        Err(ReplicationError::Connection(ConnectionError::Closed))
    ));
}

#[tokio::test]
async fn a_refused_start_is_the_servers_error() {
    let (connection, mut server) = pair();
    let mut out = BytesMut::new();
    backend::error(
        &mut out,
        &ErrorReport::error("55006", "replication slot is active"),
    );
    backend::ready_for_query(&mut out, b'I');
    server.write_all(&out).await.unwrap();
    let refused = ReplicationStream::start(connection, "s", Lsn(0), &[]).await;
    assert!(matches!(
        refused,
        Err(ReplicationError::Connection(ConnectionError::Server(error))) if error.code == "55006"
    ));
}

#[tokio::test]
async fn stop_ends_the_copy_and_the_session() {
    let (stream, mut server) = started().await;
    let serve = async {
        let mut done = [0; 5];
        server.read_exact(&mut done).await.unwrap();
        assert_eq!(&done, b"c\0\0\0\x04");
        // What was under way still comes.
        server
            .write_all(&copy_data(&xlog(1, b"late")))
            .await
            .unwrap();
        server
            .write_all(b"c\0\0\0\x04C\0\0\0\x05\0C\0\0\0\x05\0Z\0\0\0\x05I")
            .await
            .unwrap();
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"X\0\0\0\x04");
    };
    tokio::join!(stream.stop(), serve);
}
