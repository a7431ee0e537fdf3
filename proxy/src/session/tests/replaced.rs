//! What happens when a server cannot be made ready for a client.

use super::{
    super::state::{CLEANUP, State},
    *,
};

const SETTINGS: &[u8] = b"SET \"work_mem\" TO '7MB'";
const REFUSAL: &[u8] = b"SERROR\0VERROR\0C22023\0Mrole \"x\" does not exist\0\0";
const ENDED: &[u8] = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0";

/// As PostgreSQL answers so many SET in one string.
fn done(count: usize) -> Vec<u8> {
    [frame(b'C', b"SET\0").repeat(count), READY.to_vec()].concat()
}

fn refused() -> Vec<u8> {
    [&frame(b'E', REFUSAL)[..], READY].concat()
}

/// A session with settings that no server has.
fn bench() -> Bench {
    let mut bench = Bench::new(PoolMode::Transaction);
    let params = [("work_mem".to_owned(), "7MB".to_owned())];
    bench.task.state = State::new(Profile::new(&params, &[]), 1, None);
    bench
}

#[tokio::test]
async fn what_an_earlier_session_left_is_cleaned_away_when_it_cannot_be_undone() {
    let mut bench = bench();
    bench.client_sends(QUERY).await;
    bench.assert_server_got(&query(SETTINGS));
    bench.server_answers(&refused()).await;
    bench.assert_server_got(&query(CLEANUP));
    bench.server_answers(&done(8)).await;
    bench.assert_server_got(&query(SETTINGS));
    bench.assert_heard(b"");
    bench.server_answers(&done(1)).await;
    bench.assert_server_got(QUERY);
    let answer = [&frame(b'C', b"SELECT 1\0")[..], READY].concat();
    bench.server_answers(&answer).await;
    bench.assert_heard(&answer);
}

#[tokio::test]
async fn what_a_clean_server_refuses_is_the_sessions_own_error_and_the_server_is_kept() {
    for (sent, rest) in [
        (QUERY, &b""[..]),
        (&frame(b'P', b"\0a\0\0\0"), b"S\0\0\0\x04"),
    ] {
        let mut bench = bench();
        for _ in 0..2 {
            bench.client_sends(&[sent, rest].concat()).await;
            bench.assert_server_got(&query(SETTINGS));
            bench.server_answers(&refused()).await;
            bench.assert_server_got(&query(CLEANUP));
            bench.server_answers(&done(8)).await;
            bench.assert_server_got(&query(SETTINGS));
            bench.server_answers(&refused()).await;
            bench.assert_heard(&refused());
            bench.assert_server_got(b"");
            assert_eq!(bench.idle(), 1);
        }
    }
}

#[tokio::test]
async fn a_server_that_breaks_before_it_is_ready_is_replaced_and_the_client_never_hears_of_it() {
    for fatal in [false, true] {
        let mut bench = bench();
        bench.client_sends(QUERY).await;
        bench.assert_server_got(&query(SETTINGS));
        let (second, seated) = seat(&bench.pool);
        release(seated);
        let mut first = std::mem::replace(&mut bench.server, second);
        if fatal {
            first.write_all(&frame(b'E', ENDED)).await.expect("sent");
        } else {
            first.shutdown().await.expect("closed");
        }
        assert!(bench.run().await.is_none());
        bench.assert_server_got(&query(SETTINGS));
        bench.server_answers(&done(1)).await;
        bench.assert_server_got(QUERY);
        bench.assert_heard(b"");
    }
}

#[tokio::test]
async fn a_cancel_request_is_kept_when_the_server_breaks_that_was_made_ready() {
    let mut bench = bench();
    bench.client_sends(QUERY).await;
    bench.assert_server_got(&query(SETTINGS));
    let entry = Arc::clone(bench.task.registered.entry());
    assert!(matches!(entry.cancel(), Cancel::Answered));
    let (second, seated) = seat(&bench.pool);
    release(seated);
    std::mem::replace(&mut bench.server, second)
        .shutdown()
        .await
        .expect("closed");
    assert!(bench.run().await.is_none());
    bench.assert_server_got(b"");
    let cancelled = report::bytes(&report::cancelled());
    bench.assert_heard(&[&cancelled[..], READY].concat());
    assert_eq!(bench.idle(), 1);
}

#[tokio::test]
async fn new_servers_that_break_one_after_the_other_end_the_session() {
    let mut bench = bench();
    bench.client_sends(QUERY).await;
    let (second, seated) = seat(&bench.pool);
    release(seated);
    bench.server.shutdown().await.expect("closed");
    assert!(bench.run().await.is_none());
    bench.server = second;
    bench.server.shutdown().await.expect("closed");
    assert!(matches!(bench.run().await, Some(End::NotReady(_))));
}

#[tokio::test]
async fn a_server_that_breaks_with_the_clients_own_work_on_it_is_not_replaced() {
    let mut bench = bench();
    bench.client_sends(QUERY).await;
    bench.assert_server_got(&query(SETTINGS));
    bench.server_answers(&done(1)).await;
    bench.assert_server_got(QUERY);
    bench.another_server();
    assert!(matches!(bench.run().await, Some(End::ServerLost(None))));
}
