//! Nobody is shown another session's value of a sequence.

use super::{super::state::State, *};

const DISCARD: &[u8] = b"Q\0\0\0\x16DISCARD SEQUENCES\0";
const SYNC: &[u8] = b"S\0\0\0\x04";

fn look() -> Vec<u8> {
    query(b"SELECT currval('s')")
}

fn done(tag: &[u8], status: &[u8]) -> Vec<u8> {
    [&frame(b'C', &[tag, b"\0"].concat())[..], status].concat()
}

/// A session whose server another one has had.
fn bench() -> Bench {
    let mut bench = Bench::new(PoolMode::Transaction);
    let Turn::Now(mut server) = bench.pool.ask() else {
        panic!("the seated one")
    };
    another_has(&mut server);
    release(server);
    assert!(bench.heard().is_empty());
    bench.task.state = State::new(Profile::new(&[], &[]), 1, None);
    bench
}

fn another_has(server: &mut Server) {
    let mut another = State::new(Profile::new(&[], &[]), 9, None);
    assert_eq!(another.sync(&mut server.settings, false), None);
}

#[tokio::test]
async fn the_first_look_waits_until_the_server_has_forgotten_others_values() {
    let extended = [
        &frame(b'P', b"\0SELECT lastval()\0\0\0")[..],
        &frame(b'B', b"\0\0\0\0\0\0\0\0"),
        &frame(b'E', b"\0\0\0\0\0"),
        SYNC,
    ]
    .concat();
    for message in [look(), extended] {
        let mut bench = bench();
        bench.client_sends(&message).await;
        bench.assert_server_got(DISCARD);
        bench
            .server_answers(&done(b"DISCARD SEQUENCES", READY))
            .await;
        bench.assert_heard(b"");
        bench.assert_server_got(&message);
    }
}

#[tokio::test]
async fn a_look_at_the_start_of_a_transaction_waits_too() {
    let mut bench = bench();
    bench.pass_up(&query(b"BEGIN")).await;
    bench.pass_down(&done(b"BEGIN", IN_TRANSACTION)).await;
    bench.client_sends(&look()).await;
    bench.assert_server_got(DISCARD);
    bench
        .server_answers(&done(b"DISCARD SEQUENCES", IN_TRANSACTION))
        .await;
    bench.assert_heard(b"");
    bench.assert_server_got(&look());
}

#[tokio::test]
async fn behind_a_statement_of_its_own_a_session_finds_its_value() {
    let mut bench = bench();
    bench.pass_up(&query(b"BEGIN")).await;
    bench.pass_down(&done(b"BEGIN", IN_TRANSACTION)).await;
    bench.pass_up(&query(b"INSERT INTO t DEFAULT VALUES")).await;
    bench.pass_down(&done(b"INSERT 0 1", IN_TRANSACTION)).await;
    bench.pass_up(&look()).await;
}

#[tokio::test]
async fn where_somebody_looked_servers_forget_when_they_change_hands() {
    let mut bench = bench();
    bench.pool.note_look();
    bench.client_sends(QUERY).await;
    bench.assert_server_got(DISCARD);
    bench
        .server_answers(&done(b"DISCARD SEQUENCES", READY))
        .await;
    bench.assert_server_got(QUERY);
    bench.server_answers(&done(b"SELECT 1", READY)).await;
    bench.assert_heard(&done(b"SELECT 1", READY));
    // It is still the session's own.
    bench.pass_up(QUERY).await;
    bench.pass_down(&done(b"SELECT 1", READY)).await;
    bench.pass_up(&look()).await;
}
