//! Clients that do not speak the protocol hurt nobody but themselves.

use std::time::Duration;

use tandem_tests::{Cluster, client};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

/// Sends bytes over TCP and reads until the proxy closes, at most for a while.
pub(crate) async fn say(port: u16, bytes: &[u8]) -> Vec<u8> {
    let stream = TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("a connection");
    say_over(stream, bytes).await
}

/// The same over any connection.
pub(crate) async fn say_over(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    bytes: &[u8],
) -> Vec<u8> {
    let mut answer = Vec::new();
    // The proxy may close before it has read all.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
    answer
}

/// A startup packet with these bytes as parameters.
pub(crate) fn startup(parameters: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(
        u32::try_from(parameters.len() + 8)
            .expect("short")
            .to_be_bytes(),
    );
    packet.extend(196_608_u32.to_be_bytes());
    packet.extend(parameters);
    packet
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_of_others_does_not_touch_a_session() {
    let cluster = Cluster::of(&[15]).start().await;
    let good = cluster.proxy().await;
    let port = cluster.proxy_port;
    let mut samples: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0; 100],
        vec![0xff; 70_000],
        vec![0, 0, 0, 8],
        // The largest length that four bytes can say, and the smallest.
        [&0x7fff_ffff_u32.to_be_bytes()[..], &[0; 64]].concat(),
        [&0_u32.to_be_bytes()[..], &[0; 64]].concat(),
        // A TLS ClientHello where no TLS is configured.
        vec![0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0],
        // SSLRequest with bytes behind it that must not be taken for the client's.
        [
            &[0, 0, 0, 8, 4, 210, 22, 47][..],
            &startup(b"user\0app\0\0"),
        ]
        .concat(),
        startup(b"user\0app"),
        startup(b"\0"),
        startup(b"user\0\xff\xfe\0\0"),
        startup(&vec![b'x'; 9_000]),
        // A cancel request for a session that does not exist.
        [
            &16_u32.to_be_bytes()[..],
            &80_877_102_u32.to_be_bytes(),
            &[9; 8],
        ]
        .concat(),
        // A startup packet, then nonsense instead of the SASL answer.
        [
            &startup(b"user\0app\0database\0app\0\0")[..],
            b"p\xff\xff\xff\xff",
            &[7; 300],
        ]
        .concat(),
        [
            &startup(b"user\0app\0database\0app\0\0")[..],
            b"Q\0\0\0\x0dSELECT 1\0",
        ]
        .concat(),
    ];
    let mut random = fastrand::Rng::with_seed(4711);
    for _ in 0..200 {
        samples.push((0..random.usize(1..600)).map(|_| random.u8(..)).collect());
    }
    for sample in &samples {
        let answer = say(port, sample).await;
        assert!(
            answer.len() < 2_000,
            "{} bytes in answer to {sample:?}",
            answer.len()
        );
    }
    assert_eq!(
        client::value(&good, "SELECT 'untouched'").await,
        "untouched"
    );
    assert_eq!(
        client::value(&cluster.proxy().await, "SELECT 'new'").await,
        "new"
    );
    let status = cluster.daemon.status().await.expect("a status");
    assert_eq!(status["panics"], 0, "{status:#}");
}

/// A client that is in and then breaks the protocol is told so; its node's session ends.
#[tokio::test(flavor = "multi_thread")]
async fn garbage_inside_a_session_ends_only_that_session() {
    let cluster = Cluster::of(&[15])
        .sections("[auth]\nmethod = \"trust\"\nusers_file = \"DIR/users.txt\"")
        .without_daemon()
        .start()
        .await;
    std::fs::write(cluster.dir().join("users.txt"), "\"app\" \"app\"\n").expect("a users file");
    let mut cluster = cluster;
    cluster.daemon.start().await;
    let good = cluster.proxy().await;
    for broken in [
        &b"\0\0\0\0\0"[..],
        b"Q\0\0\0\x03",
        b"Q\xff\xff\xff\xff",
        b"Z\0\0\0\x05I",
        b"q\0\0\0\x04",
        b"B\0\0\0\x05\0",
    ] {
        let answer = say(
            cluster.proxy_port,
            &[&startup(b"user\0app\0database\0app\0\0")[..], broken].concat(),
        )
        .await;
        let text = String::from_utf8_lossy(&answer);
        assert!(
            text.contains("08P01") || text.contains("ERROR"),
            "{broken:?}: {text}"
        );
    }
    assert_eq!(
        client::value(&good, "SELECT 'untouched'").await,
        "untouched"
    );
    let left = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
    tandem_tests::eventually(
        "their backends end",
        Duration::from_secs(20),
        async || match cluster.nodes[0].value(left).await.as_str() {
            "1" => Ok(()),
            other => Err(format!("{other} sessions")),
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_nothing_is_put_out_and_takes_no_place() {
    let cluster = Cluster::of(&[15])
        .proxy("client_login_timeout = \"300ms\"\nmax_client_connections = 2")
        .start()
        .await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(
            TcpStream::connect(("127.0.0.1", cluster.proxy_port))
                .await
                .expect("a connection"),
        );
    }
    assert_eq!(client::value(&cluster.proxy().await, "SELECT 1").await, "1");
    for stream in &mut silent {
        let mut answer = Vec::new();
        let read =
            tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "the connection is still open");
    }
}
