//! What happens when a server cannot be made ready for a client.

use super::{
    super::{
        owed::Status,
        profile::{CLEANUP, ServerSettings},
        program::program,
        state::State,
    },
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

/// The same, with one that is no ASCII: they go in two texts.
fn bench_of_two() -> Bench {
    let mut bench = bench();
    let mut elsewhere = ServerSettings::new(&[], &[]);
    let set = program("SET z.b = 'é'".as_bytes());
    let state = &mut bench.task.state;
    let note = state.sent(set.as_ref(), &mut elsewhere);
    state.succeeded(note, &mut elsewhere);
    state.ready(Status::Idle, false, &mut elsewhere);
    bench
}

fn two_settings() -> Vec<u8> {
    let second = query("SET \"z\".\"b\" TO 'é'".as_bytes());
    [query(SETTINGS), second].concat()
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
            bench.assert_heard(&frame(b'E', REFUSAL));
            bench.assert_server_got(&query(CLEANUP));
            bench.server_answers(&done(8)).await;
            bench.assert_heard(READY);
            bench.assert_server_got(b"");
            assert_eq!(bench.idle(), 1);
        }
    }
}

#[tokio::test]
async fn a_server_that_takes_some_of_the_settings_is_cleaned_before_anybody_gets_it() {
    let (first, second, both) = (
        [refused(), done(1)],
        [done(1), refused()],
        [refused(), refused()],
    );
    for answers in [first, second, both] {
        let mut bench = bench_of_two();
        bench.client_sends(QUERY).await;
        bench.assert_server_got(&two_settings());
        for answer in &answers {
            bench.assert_server_got(b"");
            bench.server_answers(answer).await;
        }
        bench.assert_server_got(&query(CLEANUP));
        bench.assert_heard(b"");
        bench.server_answers(&done(8)).await;
        bench.assert_server_got(&two_settings());
        bench.server_answers(&answers.concat()).await;
        bench.assert_heard(&frame(b'E', REFUSAL));
        assert_eq!(bench.idle(), 0);
        bench.assert_server_got(&query(CLEANUP));
        bench.server_answers(&done(8)).await;
        bench.assert_heard(READY);
        assert_eq!(bench.idle(), 1);
    }
}

#[tokio::test]
async fn a_server_that_breaks_when_the_client_has_its_error_is_not_replaced() {
    let mut bench = bench();
    bench.client_sends(QUERY).await;
    bench.assert_server_got(&query(SETTINGS));
    bench.server_answers(&refused()).await;
    bench.assert_server_got(&query(CLEANUP));
    bench.server_answers(&done(8)).await;
    bench.assert_server_got(&query(SETTINGS));
    bench.server_answers(&refused()).await;
    bench.assert_heard(&frame(b'E', REFUSAL));
    bench.another_server();
    assert!(bench.run().await.is_none());
    bench.assert_heard(READY);
    bench.assert_server_got(b"");
    assert_eq!(bench.idle(), 1);
}

#[tokio::test]
async fn a_server_that_breaks_before_it_is_ready_is_replaced_and_the_client_never_hears_of_it() {
    for fatal in [false, true] {
        let mut bench = bench();
        bench.has_served();
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
    bench.has_served();
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

/// The node of the bench, which is said to be well.
fn found_well(bench: &mut Bench) {
    // Its one probe would say something else.
    bench._probes.abort_all();
    let node = bench.shared.nodes.first().expect("one");
    bench.shared.health.found_well(0, node);
}

fn found_down(bench: &Bench) {
    let node = bench.shared.nodes.first().expect("one");
    let refused = crate::health::Event::Refused;
    bench
        .shared
        .health
        .decided(0, node, refused, "nobody listens");
}

#[tokio::test]
async fn a_new_server_that_breaks_has_the_session_wait_for_the_verdict_on_its_node() {
    let mut bench = bench();
    found_well(&mut bench);
    bench.client_sends(QUERY).await;
    bench.assert_server_got(&query(SETTINGS));
    bench.another_server();
    assert!(bench.run().await.is_none());
    // Nobody is asked before it is known what has become of the node.
    assert_eq!(bench.idle(), 1);
    found_down(&bench);
    assert!(bench.run().await.is_none());
    assert_eq!(bench.idle(), 1);
    found_well(&mut bench);
    assert!(bench.run().await.is_none());
    bench.assert_server_got(&query(SETTINGS));
    bench.server_answers(&done(1)).await;
    bench.assert_server_got(QUERY);
    bench.assert_heard(b"");
}

#[tokio::test]
async fn a_parked_session_can_be_cancelled() {
    let mut bench = bench();
    found_well(&mut bench);
    bench.client_sends(QUERY).await;
    bench.another_server();
    assert!(bench.run().await.is_none());
    let entry = Arc::clone(bench.task.registered.entry());
    assert!(matches!(entry.cancel(), Cancel::Answered));
    assert!(bench.run().await.is_none());
    let cancelled = report::bytes(&report::cancelled());
    bench.assert_heard(&[&cancelled[..], READY].concat());
    assert_eq!(bench.idle(), 1);
}

#[tokio::test]
async fn new_servers_of_a_node_that_is_well_that_break_one_after_the_other_end_the_session() {
    let mut bench = bench();
    found_well(&mut bench);
    bench.client_sends(QUERY).await;
    bench.another_server();
    assert!(bench.run().await.is_none());
    found_down(&bench);
    found_well(&mut bench);
    assert!(bench.run().await.is_none());
    bench.assert_server_got(&query(SETTINGS));
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
    assert!(bench.run().await.is_none());
    let told = report::bytes(&report::in_doubt("n1"));
    bench.assert_heard(&[&told[..], READY].concat());
    assert_eq!(bench.idle(), 1);
}
