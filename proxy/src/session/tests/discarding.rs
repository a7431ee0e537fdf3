//! A DISCARD ALL throws away what the session's login asked for too, where the server's login did not: it is set again.

use super::{
    super::{
        ready::{FLUSH, SYNC},
        state::State,
    },
    *,
};

const SETTINGS: &[u8] = b"SET \"work_mem\" TO '7MB'";
const DISCARD: &[u8] = b"DISCARD ALL";
const BIND: &[u8] = b"B\0\0\0\x0c\0\0\0\0\0\0\0\0";
const EXECUTE: &[u8] = b"E\0\0\0\x09\0\0\0\0\0";
/// The answers to a Parse and a Bind.
const BOUND: &[u8] = b"1\0\0\0\x042\0\0\0\x04";
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

/// A statement in one message each.
fn run(text: &[u8]) -> Vec<u8> {
    let parse = frame(b'P', &[b"\0", text, b"\0\0\0"].concat());
    [&parse[..], BIND, EXECUTE].concat()
}

#[tokio::test]
async fn what_is_behind_a_discard_all_in_one_batch_waits_too() {
    let mut bench = bench().await;
    let behind = [&run(b"BEGIN")[..], SYNC].concat();
    bench
        .client_sends(&[&run(DISCARD)[..], &behind].concat())
        .await;
    bench.assert_server_got(&[&run(DISCARD)[..], FLUSH].concat());
    let executed = [BOUND, &frame(b'C', b"DISCARD ALL\0")].concat();
    bench.pass_down(&executed).await;
    bench.assert_server_got(SYNC);
    bench.server_answers(READY).await;
    bench.assert_heard(b"");
    bench.assert_server_got(&query(SETTINGS));
    bench.server_answers(&done(b"SET")).await;
    bench.assert_heard(b"");
    bench.assert_server_got(&behind);
    let begun = [BOUND, &frame(b'C', b"BEGIN\0"), IN_TRANSACTION];
    bench.pass_down(&begun.concat()).await;
}

#[tokio::test]
async fn what_is_behind_a_discard_all_that_fails_is_thrown_away_up_to_the_sync() {
    let mut bench = bench().await;
    bench
        .client_sends(&[&run(DISCARD)[..], &run(b"BEGIN"), SYNC].concat())
        .await;
    bench.assert_server_got(&[&run(DISCARD)[..], FLUSH].concat());
    let refused = [BOUND, &frame(b'E', REFUSAL)].concat();
    bench.pass_down(&refused).await;
    bench.assert_server_got(SYNC);
    bench.pass_down(READY).await;
    assert_eq!(bench.idle(), 1);
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
