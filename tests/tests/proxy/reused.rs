//! Numbers of transactions that a crash lost are given once more: what they tell of the later ones is not told of the earlier.

use tandem_tests::{Cluster, ClusterBuilder, Node, client, eventually};
use tandem_wire::Connection;

use crate::{
    failover::{LIMIT, codes, heard, home, session, two},
    script::{play, script},
};

const SLOW: &str = "CREATE TABLE slow (id int PRIMARY KEY);
    CREATE FUNCTION sleeps() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(600); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER sleeps AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION sleeps();";

/// The number of the transaction that is being committed there.
async fn committing(node: &Node) -> u64 {
    let number = "SELECT coalesce(max(backend_xid::text::int8), 0) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    eventually("it is committing", LIMIT, async || {
        match node.value(number).await.parse::<u64>() {
            Ok(number) if number > 0 => Ok(number),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// A COMMIT that was cut off by a crash was on no disk: nobody may be told that it is committed.
fn is_not_committed(told: &str, number: u64, given: &[u64]) {
    eprintln!("number {number}, given after the crash: {given:?}, told {told:?}");
    let in_doubt = told == "E 08007\nZ I\n";
    // Somebody else's COMMIT may have taken the number to disk before the crash; then it is known to be aborted.
    let is_aborted = told == "E 40001\nZ I\n" && !given.contains(&number);
    assert!(in_doubt || is_aborted, "{told}");
}

fn cluster() -> ClusterBuilder {
    two("commit_outcome_wait = \"8s\"")
        .setting("wal_writer_delay", "10s")
        .schema(SLOW)
}

/// A session whose COMMIT takes long, and the number of its transaction.
async fn commits(cluster: &Cluster, node: &Node) -> (Connection, u64) {
    let mut session = session(cluster).await;
    heard(&mut session, "BEGIN").await;
    heard(&mut session, "INSERT INTO slow VALUES (1)").await;
    play(&mut session, &script().q("COMMIT").send()).await;
    (session, committing(node).await)
}

/// The later transaction is committed before the node crashes for the second time, as the earlier one would have been.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_between_two_crashes_is_not_taken_for_the_one_that_the_first_cut_off() {
    let cluster = cluster().start().await;
    let one = cluster.proxy().await;
    let (_, dying) = home(&cluster, &one).await;
    let (mut cut_off, number) = commits(&cluster, dying).await;
    dying.kill9().await;
    dying.start_again().await;
    // From here on nothing waits for the daemon: it asks the node again and again.
    let direct = dying.connect().await;
    let mut given = Vec::new();
    while given.last().is_none_or(|last| *last < number) {
        let sql = "SELECT pg_current_xact_id()::text";
        let next = client::value(&direct, sql).await;
        given.push(next.parse::<u64>().expect("a number"));
    }
    // What is written takes all before it to disk.
    client::execute(&direct, "UPDATE kept SET n = 1 WHERE id = 9").await;
    dying.kill9().await;
    dying.start_again().await;
    let told = codes(&play(&mut cut_off, &script().ready(1)).await);
    is_not_committed(&told, number, &given);
    assert_eq!(dying.value("SELECT count(*) FROM slow").await, "0");
    cluster.assert_converged().await;
}

/// What is applied has the time of its commit elsewhere, which may have been before the crash was over.
#[tokio::test(flavor = "multi_thread")]
async fn what_other_nodes_have_committed_is_not_taken_for_what_a_crash_has_cut_off() {
    let cluster = cluster().replication("group_apply = 0").start().await;
    let one = cluster.proxy().await;
    let (place, dying) = home(&cluster, &one).await;
    let other = cluster.nodes[1 - place].connect().await;
    let (mut cut_off, number) = commits(&cluster, dying).await;
    dying.kill9().await;
    for _ in 0..100 {
        client::execute(&other, "UPDATE kept SET n = n + 1 WHERE id = 9").await;
    }
    dying.start_again().await;
    let told = codes(&play(&mut cut_off, &script().ready(1)).await);
    is_not_committed(&told, number, &[]);
    assert_eq!(dying.value("SELECT count(*) FROM slow").await, "0");
    cluster.assert_converged().await;
}
