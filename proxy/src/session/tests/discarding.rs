//! A DISCARD ALL throws away what the session's login asked for too, where the server's login did not: it is set again.

use super::{super::state::State, *};

const SETTINGS: &[u8] = b"SET \"work_mem\" TO '7MB'";
const DISCARD: &[u8] = b"DISCARD ALL";
const REFUSAL: &[u8] = b"SERROR\0VERROR\0C25001\0Mno\0\0";

fn done(tag: &[u8]) -> Vec<u8> {
    [&frame(b'C', &[tag, b"\0"].concat())[..], READY].concat()
}

/// A session that has asked for a setting, on a server that has it.
async fn bench() -> Bench {
    let mut bench = Bench::new(PoolMode::Transaction);
    let params = [("work_mem".to_owned(), "7MB".to_owned())];
    bench.task.state = State::new(Profile::new(&params, &[]), 1, None);
    bench.client_sends(QUERY).await;
    bench.assert_server_got(&query(SETTINGS));
    bench.server_answers(&done(b"SET")).await;
    bench.assert_server_got(QUERY);
    bench.pass_down(&done(b"SELECT 1")).await;
    bench
}

#[tokio::test]
async fn what_is_behind_a_discard_all_waits_until_the_server_has_the_settings_again() {
    let mut bench = bench().await;
    bench
        .client_sends(&[&query(DISCARD)[..], QUERY].concat())
        .await;
    bench.assert_server_got(&query(DISCARD));
    bench.server_answers(&done(DISCARD)).await;
    bench.assert_heard(&done(DISCARD));
    bench.assert_server_got(&query(SETTINGS));
    bench.server_answers(&done(b"SET")).await;
    bench.assert_heard(b"");
    bench.assert_server_got(QUERY);
    bench.pass_down(&done(b"SELECT 1")).await;
}

#[tokio::test]
async fn a_discard_all_alone_leaves_the_settings_to_the_next_statement() {
    let mut bench = bench().await;
    bench.pass_up(&query(DISCARD)).await;
    bench.pass_down(&done(DISCARD)).await;
    bench.assert_server_got(b"");
    assert_eq!(bench.idle(), 1);
    bench.client_sends(QUERY).await;
    bench.assert_server_got(&query(SETTINGS));
}

#[tokio::test]
async fn an_error_of_a_discard_all_is_the_clients() {
    let mut bench = bench().await;
    bench.pass_up(&query(b"BEGIN")).await;
    let begun = [&frame(b'C', b"BEGIN\0")[..], IN_TRANSACTION].concat();
    bench.pass_down(&begun).await;
    bench
        .client_sends(&[query(DISCARD), query(b"ROLLBACK")].concat())
        .await;
    bench.assert_server_got(&query(DISCARD));
    let failed = [&frame(b'E', REFUSAL)[..], b"Z\0\0\0\x05E"].concat();
    bench.pass_down(&failed).await;
    bench.assert_server_got(&query(b"ROLLBACK"));
}

#[tokio::test]
async fn what_the_server_refuses_then_is_the_error_of_the_statement_that_waits() {
    let mut bench = bench().await;
    bench
        .client_sends(&[&query(DISCARD)[..], QUERY].concat())
        .await;
    bench.assert_server_got(&query(DISCARD));
    bench.server_answers(&done(DISCARD)).await;
    bench.assert_heard(&done(DISCARD));
    let refused = [&frame(b'E', REFUSAL)[..], READY].concat();
    for _ in 0..2 {
        bench.assert_server_got(&query(SETTINGS));
        bench.server_answers(&refused).await;
        bench.assert_server_got(&query(profile::CLEANUP));
        bench.server_answers(&done(b"SET")).await;
    }
    bench.assert_heard(&refused);
    assert_eq!(bench.idle(), 1);
}
