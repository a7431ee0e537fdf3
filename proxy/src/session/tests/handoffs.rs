//! What sessions do while keys are on their way to another home.

use super::*;
use crate::health::Event;

const UPDATE: &[u8] = b"UPDATE a SET n = 1";
const READ: &[u8] = b"SELECT 1";

/// A session whose node is well, and which finds no server connection but the one that is there.
fn bench() -> Bench {
    let mut bench = Bench::routed();
    // Its one probe would say something else.
    bench._probes.abort_all();
    let node = bench.shared.nodes.first().expect("one");
    bench.shared.health.found_well(0, node);
    let mut limits = bench.shared.settings.load().config.proxy.pool.clone();
    limits.size = 0;
    bench.shared.pools.set_limits(&limits);
    bench
}

fn park(bench: &Bench, parks: bool) {
    bench.shared.health.tell(0, Event::Park(parks));
}

fn done(tag: &[u8]) -> Vec<u8> {
    [&frame(b'C', &[tag, b"\0"].concat()), READY].concat()
}

#[tokio::test]
async fn what_writes_waits_for_the_keys_and_what_reads_does_not() {
    let mut bench = bench();
    park(&bench, true);
    bench.pass_up(&query(READ)).await;
    bench.pass_down(&done(b"SELECT 1")).await;
    bench.client_sends(&query(UPDATE)).await;
    bench.assert_server_got(b"");
    assert_eq!(
        (bench.idle(), bench.shared.registry.running()),
        (1, Vec::new())
    );
    park(&bench, false);
    assert!(bench.run().await.is_none());
    bench.assert_server_got(&query(UPDATE));
    let running = bench.shared.registry.running();
    assert!(running.len() == 1 && running[0].writes, "{running:?}");
    bench.pass_down(&done(b"UPDATE 1")).await;
    bench.assert_heard(b"");
}

#[tokio::test]
async fn a_write_that_gets_its_server_under_another_placement_gives_it_back() {
    let mut bench = bench();
    let Turn::Now(server) = bench.pool.ask() else {
        panic!("no server is idle");
    };
    bench.client_sends(&query(UPDATE)).await;
    park(&bench, true);
    release(server);
    assert!(bench.run().await.is_none());
    bench.assert_server_got(b"");
    assert_eq!(
        (bench.idle(), bench.shared.registry.running()),
        (1, Vec::new())
    );
    park(&bench, false);
    assert!(bench.run().await.is_none());
    bench.assert_server_got(&query(UPDATE));
    bench.pass_down(&done(b"UPDATE 1")).await;
}

#[tokio::test]
async fn a_write_behind_another_statement_waits_when_the_placement_has_changed() {
    let mut bench = bench();
    bench.pass_up(&query(READ)).await;
    park(&bench, true);
    bench.client_sends(&query(UPDATE)).await;
    bench.assert_server_got(b"");
    bench.pass_down(&done(b"SELECT 1")).await;
    bench.assert_server_got(b"");
    assert_eq!(bench.idle(), 1);
    park(&bench, false);
    assert!(bench.run().await.is_none());
    bench.assert_server_got(&query(UPDATE));
    bench.pass_down(&done(b"UPDATE 1")).await;
}

#[tokio::test]
async fn a_transaction_that_has_begun_goes_on_whatever_becomes_of_the_placement() {
    let mut bench = bench();
    bench.client_sends(&query(b"BEGIN")).await;
    bench.assert_heard(&[&frame(b'C', b"BEGIN\0"), IN_TRANSACTION].concat());
    bench.client_sends(&query(UPDATE)).await;
    bench.assert_server_got(&query(b"BEGIN"));
    bench
        .server_answers(&[&frame(b'C', b"BEGIN\0"), IN_TRANSACTION].concat())
        .await;
    bench.assert_server_got(&query(UPDATE));
    park(&bench, true);
    bench
        .pass_down(&[&frame(b'C', b"UPDATE 1\0"), IN_TRANSACTION].concat())
        .await;
    bench.pass_up(&query(b"COMMIT")).await;
    bench.pass_down(&done(b"COMMIT")).await;
    assert_eq!(bench.shared.registry.running(), Vec::new());
}

#[tokio::test]
async fn who_waits_for_a_server_of_a_node_that_leaves_looks_again_where_to_go() {
    let mut bench = bench();
    let Turn::Now(server) = bench.pool.ask() else {
        panic!("no server is idle");
    };
    bench.client_sends(&query(READ)).await;
    bench.shared.pools.retire(0, true);
    assert!(bench.run().await.is_none());
    // There is no other node: it waits for this one once more, and nothing is kept there.
    bench.shared.pools.retire(0, false);
    release(server);
    assert!(bench.run().await.is_none());
    bench.assert_server_got(&query(READ));
}
