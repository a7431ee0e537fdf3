use std::sync::Arc;

use futures_util::future::poll_immediate;
use tandem_wire::Secret;
use tokio::{
    io::{DuplexStream, duplex},
    task::{JoinHandle, yield_now},
};

use super::*;
use crate::session::registry::{Registered, Registry, Target};

const READY: &[u8] = b"Z\0\0\0\x05I";
const IN_TRANSACTION: &[u8] = b"Z\0\0\0\x05T";
const QUERY: &[u8] = b"Q\0\0\0\x06a\0";
const SYNC: &[u8] = b"S\0\0\0\x04";
const TERMINATE: &[u8] = b"X\0\0\0\x04";
const LAST_WORDS: &[u8] = b"E\0\0\0\x05\0";

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend(i32::try_from(body.len() + 4).expect("small").to_be_bytes());
    bytes.extend(body);
    bytes
}

/// A relay in a task of its own, with the far ends of both connections in hand.
struct Bench {
    client: DuplexStream,
    server: DuplexStream,
    registry: Arc<Registry>,
    task: JoinHandle<(End, Boundary, bool)>,
}

impl Bench {
    fn new(capacity: usize) -> Bench {
        Bench::with_received(capacity, b"", b"")
    }

    fn with_received(capacity: usize, from_client: &[u8], from_server: &[u8]) -> Bench {
        let (client, near_client) = duplex(capacity);
        let (server, near_server) = duplex(capacity);
        let registry = Arc::new(Registry::default());
        let target = Target {
            node: 0,
            pid: 1,
            secret: Secret::new([0; 4]),
        };
        let registered: Registered = registry.enter(4, target).expect("entered");
        let mut relay = Relay::new(
            near_client,
            BytesMut::from(from_client),
            near_server,
            BytesMut::from(from_server),
        );
        let task = tokio::spawn(async move {
            let end = relay.run(registered.entry()).await;
            let summary = (relay.boundary(), relay.in_flight());
            relay.finish(LAST_WORDS).await;
            (end, summary.0, summary.1)
        });
        Bench {
            client,
            server,
            registry,
            task,
        }
    }

    async fn expect_at_server(&mut self, expected: &[u8]) {
        let mut got = vec![0; expected.len()];
        self.server
            .read_exact(&mut got)
            .await
            .expect("arrives at the server");
        assert!(got == expected, "{:?}", got.escape_ascii().to_string());
    }

    async fn expect_at_client(&mut self, expected: &[u8]) {
        let mut got = vec![0; expected.len()];
        self.client
            .read_exact(&mut got)
            .await
            .expect("arrives at the client");
        assert!(got == expected, "{:?}", got.escape_ascii().to_string());
    }

    async fn one_round(&mut self) {
        self.client.write_all(QUERY).await.expect("sent");
        self.expect_at_server(QUERY).await;
        self.server.write_all(READY).await.expect("sent");
        self.expect_at_client(READY).await;
    }

    async fn rest_at_client(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.client
            .read_to_end(&mut rest)
            .await
            .expect("the client's connection ends");
        rest
    }
}

#[tokio::test]
async fn messages_pass_both_ways_and_terminate_ends_the_session() {
    let mut bench = Bench::new(4096);
    bench.one_round().await;
    bench.client.write_all(TERMINATE).await.expect("sent");
    bench.expect_at_server(TERMINATE).await;
    drop(bench.server);
    let (end, ..) = bench.task.await.expect("no panic");
    assert!(matches!(end, End::Client), "{end:?}");
}

#[tokio::test]
async fn bytes_received_with_the_login_are_passed_on_first() {
    let mut bench = Bench::with_received(4096, QUERY, &frame(b'N', b"\0"));
    bench.expect_at_server(QUERY).await;
    bench.expect_at_client(&frame(b'N', b"\0")).await;
    bench.server.write_all(READY).await.expect("sent");
    bench.expect_at_client(READY).await;
}

#[tokio::test]
async fn a_server_that_dies_inside_a_small_message_leaves_the_client_at_a_boundary() {
    let mut bench = Bench::new(4096);
    let row = frame(b'D', &[1; 300]);
    bench.client.write_all(QUERY).await.expect("sent");
    bench.expect_at_server(QUERY).await;
    bench.server.write_all(&row).await.expect("sent");
    bench.server.write_all(&row[..200]).await.expect("sent");
    drop(bench.server);
    bench.server = duplex(1).0;
    let rest = bench.rest_at_client().await;
    assert_eq!(
        rest,
        [&row[..], LAST_WORDS].concat(),
        "a whole row, then the reason, no torn row"
    );
    let (end, boundary, in_flight) = bench.task.await.expect("no panic");
    assert!(matches!(end, End::ServerLost(None)), "{end:?}");
    assert_eq!((boundary, in_flight), (Boundary::Clean, true));
}

#[tokio::test]
async fn a_server_that_dies_inside_a_large_message_just_ends_the_client() {
    let mut bench = Bench::new(1 << 20);
    let row = frame(b'D', &vec![1; 200_000]);
    bench.server.write_all(&row[..150_000]).await.expect("sent");
    drop(bench.server);
    bench.server = duplex(1).0;
    let rest = bench.rest_at_client().await;
    assert!(
        rest.len() <= 150_000 && row.starts_with(&rest),
        "nothing behind the torn row"
    );
    let (end, boundary, _) = bench.task.await.expect("no panic");
    assert!(matches!(end, End::ServerLost(None)), "{end:?}");
    assert_eq!(boundary, Boundary::Cut);
}

#[tokio::test]
async fn the_servers_own_fatal_is_the_last_word() {
    let mut bench = Bench::new(4096);
    let fatal = frame(b'E', b"SFATAL\0VFATAL\0C57P01\0Mgone\0\0");
    bench.server.write_all(&fatal).await.expect("sent");
    drop(bench.server);
    bench.server = duplex(1).0;
    bench.expect_at_client(&fatal).await;
    let (end, ..) = bench.task.await.expect("no panic");
    assert!(matches!(end, End::ServerFatal), "{end:?}");
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_ends_after_its_good_messages() {
    let mut bench = Bench::new(4096);
    bench
        .client
        .write_all(&[QUERY, b"\xffgarbage"].concat())
        .await
        .expect("sent");
    bench.expect_at_server(QUERY).await;
    assert_eq!(bench.rest_at_client().await, LAST_WORDS);
    let (end, ..) = bench.task.await.expect("no panic");
    assert!(matches!(end, End::ClientViolation(_)), "{end:?}");
    let mut rest = Vec::new();
    bench
        .server
        .read_to_end(&mut rest)
        .await
        .expect("the server's connection ends");
    assert!(
        !rest.contains(&0xff),
        "nothing of the garbage reaches the server: {rest:?}"
    );
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_is_cut_off() {
    let mut bench = Bench::new(4096);
    bench.server.write_all(b"Z\0\0\0\x09I").await.expect("sent");
    assert_eq!(bench.rest_at_client().await, LAST_WORDS);
    let (end, ..) = bench.task.await.expect("no panic");
    assert!(matches!(end, End::ServerViolation(_)), "{end:?}");
}

#[tokio::test]
async fn a_half_closed_client_still_gets_its_answer() {
    let mut bench = Bench::new(4096);
    bench.client.write_all(QUERY).await.expect("sent");
    bench.client.shutdown().await.expect("half closed");
    let mut got = Vec::new();
    bench
        .server
        .read_to_end(&mut got)
        .await
        .expect("the server sees the end");
    assert_eq!(got, QUERY);
    let answer = [&frame(b'C', b"SELECT 1\0"), READY].concat();
    bench.server.write_all(&answer).await.expect("sent");
    bench.expect_at_client(&answer).await;
    drop(bench.server);
    let (end, ..) = bench.task.await.expect("no panic");
    assert!(matches!(end, End::Client), "{end:?}");
}

#[tokio::test]
async fn a_lost_server_is_reported_even_when_the_write_to_it_fails_first() {
    let mut bench = Bench::new(4096);
    bench.one_round().await;
    drop(bench.server);
    bench.server = duplex(1).0;
    // Either direction may notice first.
    let _ = bench.client.write_all(QUERY).await;
    assert_eq!(bench.rest_at_client().await, LAST_WORDS);
    let (end, ..) = bench.task.await.expect("no panic");
    assert!(matches!(end, End::ServerLost(_)), "{end:?}");
}

#[tokio::test]
async fn a_receiver_that_stops_holds_the_sender_back() {
    let mut bench = Bench::new(1024);
    let row = frame(b'D', &[7; 1000]);
    let mut sent: Vec<u8> = Vec::new();
    // The client does not read: the server can only push what the buffers on the way hold. Yielding lets the relay
    // run on this one thread; when that frees no room any more, the pipe is full.
    let mut refused = 0;
    while refused < 10 {
        let from = sent.len() % row.len();
        match poll_immediate(pin!(bench.server.write(&row[from..]))).await {
            Some(written) => {
                let written = written.expect("sent");
                sent.extend_from_slice(&row[from..from + written]);
                refused = 0;
            }
            None => refused += 1,
        }
        assert!(
            sent.len() < 3 * super::super::pump::WHOLE_FRAME_MAX,
            "no back pressure"
        );
        yield_now().await;
    }
    // The other direction still works.
    bench.client.write_all(SYNC).await.expect("sent");
    bench.expect_at_server(SYNC).await;
    let whole = sent.len() - sent.len() % row.len();
    bench.expect_at_client(&sent[..whole]).await;
}

#[tokio::test]
async fn messages_of_all_sizes_arrive_unchanged_through_narrow_pipes() {
    fastrand::seed(7);
    for capacity in [1, 7, 100, 70_000] {
        let bench = Bench::new(capacity);
        let sizes: Vec<usize> = if capacity < 50 {
            vec![0, 1, 4, 5, 700]
        } else {
            vec![
                0, 5, 65_530, 65_531, 65_532, 200_000, 1, 16_384, 1_000_000, 3,
            ]
        };
        let mut up = Vec::new();
        let mut down = Vec::new();
        for size in sizes {
            up.extend(frame(
                b'd',
                &std::iter::repeat_with(|| fastrand::u8(..))
                    .take(size)
                    .collect::<Vec<_>>(),
            ));
            down.extend(frame(
                b'D',
                &std::iter::repeat_with(|| fastrand::u8(..))
                    .take(size)
                    .collect::<Vec<_>>(),
            ));
        }
        let Bench {
            client,
            server,
            registry,
            task,
        } = bench;
        let (mut client_read, mut client_write) = tokio::io::split(client);
        let (mut server_read, mut server_write) = tokio::io::split(server);
        let (mut at_client, mut at_server) = (vec![0; down.len()], vec![0; up.len()]);
        let (a, b, c, d) = tokio::join!(
            client_write.write_all(&up),
            server_write.write_all(&down),
            client_read.read_exact(&mut at_client),
            server_read.read_exact(&mut at_server),
        );
        a.expect("sent");
        b.expect("sent");
        c.expect("received");
        d.expect("received");
        assert!(at_client == down && at_server == up, "capacity {capacity}");
        registry.stop_all(Stop::AtOnce);
        let (end, boundary, _) = task.await.expect("no panic");
        assert!(matches!(end, End::Stopped), "{end:?}");
        assert_eq!(boundary, Boundary::Clean);
    }
}

#[tokio::test]
async fn a_smart_stop_waits_for_the_transaction_and_a_fast_one_does_not() {
    let mut bench = Bench::new(4096);
    bench.client.write_all(QUERY).await.expect("sent");
    bench.expect_at_server(QUERY).await;
    bench.server.write_all(IN_TRANSACTION).await.expect("sent");
    bench.expect_at_client(IN_TRANSACTION).await;
    bench.registry.stop_all(Stop::WhenIdle);
    // Still there: the transaction may go on and end.
    bench.client.write_all(QUERY).await.expect("sent");
    bench.expect_at_server(QUERY).await;
    bench.server.write_all(READY).await.expect("sent");
    assert_eq!(bench.rest_at_client().await, [READY, LAST_WORDS].concat());
    bench.expect_at_server(TERMINATE).await;
    let (end, ..) = bench.task.await.expect("no panic");
    assert!(matches!(end, End::Stopped), "{end:?}");

    let mut bench = Bench::new(4096);
    bench.client.write_all(QUERY).await.expect("sent");
    bench.expect_at_server(QUERY).await;
    bench.registry.stop_all(Stop::AtOnce);
    assert_eq!(bench.rest_at_client().await, LAST_WORDS);
    let (end, _, in_flight) = bench.task.await.expect("no panic");
    assert!(matches!(end, End::Stopped) && in_flight, "{end:?}");
}

#[tokio::test]
async fn an_idle_session_holds_no_buffer() {
    let (mut client, mut near_client) = duplex(4096);
    let (mut server, mut near_server) = duplex(4096);
    let mut pump = Pump::new(Sender::Client, BytesMut::new());
    client.write_all(QUERY).await.expect("sent");
    poll_fn(|cx| {
        let polled = pump.poll(cx, &mut near_client, &mut near_server, &mut |_, _| {});
        assert!(polled.is_pending());
        Poll::Ready(())
    })
    .await;
    let mut got = [0; QUERY.len()];
    server.read_exact(&mut got).await.expect("passed on");
    assert_eq!((pump.held_capacity(), pump.is_clear()), (0, true));
}
