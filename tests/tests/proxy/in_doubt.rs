//! What becomes of a COMMIT that was under way when its node was lost.

use tandem_tests::eventually;

use crate::{
    failover::{LIMIT, LOST, codes, heard, home, runs_again, session, two},
    script::{play, script},
};

const SLOW: &str = "CREATE TABLE slow (id int PRIMARY KEY);
    CREATE FUNCTION sleeps() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(600); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER sleeps AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION sleeps();";

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_cut_off_is_asked_for_when_the_node_is_back() {
    let cluster = two("").schema(SLOW).start().await;
    let one = cluster.proxy().await;
    let (_, dying) = home(&cluster, &one).await;
    let (mut commits, mut prepares) = (session(&cluster).await, session(&cluster).await);
    let mut aborts = session(&cluster).await;
    for (connection, write) in [
        (&mut commits, "UPDATE kept SET n = 7 WHERE id = 1"),
        (&mut prepares, "UPDATE kept SET n = 7 WHERE id = 2"),
        (&mut aborts, "INSERT INTO slow VALUES (1)"),
    ] {
        heard(connection, "BEGIN").await;
        heard(connection, write).await;
    }
    play(&mut prepares, &script().p("end", "COMMIT").s().ready(1)).await;
    // A COMMIT is written, and then waits for somebody who never comes.
    dying
        .execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        .await;
    dying.execute("SELECT pg_reload_conf()").await;
    eventually("it counts", LIMIT, async || {
        match dying.value("SHOW synchronous_standby_names").await.as_str() {
            "nobody" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    dying
        .execute("ALTER SYSTEM RESET synchronous_standby_names")
        .await;
    play(&mut commits, &script().q("COMMIT").send()).await;
    let run = script().b("", "end", &[]).dp("").e("", 0).s();
    play(&mut prepares, &run.send()).await;
    play(&mut aborts, &script().q("COMMIT").send()).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND wait_event IN ('SyncRep', 'PgSleep')";
    eventually("all are committing", LIMIT, async || {
        match dying.value(waiting).await.as_str() {
            "3" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    dying.kill9().await;
    dying.start_again().await;
    let told = codes(&play(&mut commits, &script().ready(1)).await);
    assert_eq!(told, "C COMMIT\\x00\nZ I\n");
    let told = codes(&play(&mut prepares, &script().ready(1)).await);
    assert_eq!(told, "2 \nn \nC COMMIT\\x00\nZ I\n");
    let told = codes(&play(&mut aborts, &script().ready(1)).await);
    assert_eq!(told, format!("{LOST}Z I\n"));
    cluster.assert_converged().await;
    let kept = "SELECT string_agg(n::text, ' ' ORDER BY id) FROM kept";
    assert_eq!(dying.value(kept).await, "7 7 0 0 0 0 0 0 0");
    assert_eq!(dying.value("SELECT count(*) FROM slow").await, "0");
}

/// A crash loses what was not written to disk, with the transactions' numbers, which are given once more.
#[tokio::test(flavor = "multi_thread")]
async fn another_transaction_of_the_same_number_is_not_taken_for_the_one_that_was_cut_off() {
    let cluster = two("commit_outcome_wait = \"3s\"")
        .setting("wal_writer_delay", "10s")
        .schema(SLOW)
        .start()
        .await;
    let one = cluster.proxy().await;
    let (_, dying) = home(&cluster, &one).await;
    let mut cut_off = session(&cluster).await;
    heard(&mut cut_off, "BEGIN").await;
    heard(&mut cut_off, "INSERT INTO slow VALUES (1)").await;
    play(&mut cut_off, &script().q("COMMIT").send()).await;
    let number = "SELECT coalesce(max(backend_xid::text::int8), 0) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    let number = eventually("it is committing", LIMIT, async || {
        match dying.value(number).await.parse::<u64>() {
            Ok(number) if number > 0 => Ok(number),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    dying.kill9().await;
    dying.start_again().await;
    let mut again = Vec::new();
    while again.last().is_none_or(|last| *last < number) {
        let given = dying.value("SELECT pg_current_xact_id()::text").await;
        again.push(given.parse::<u64>().expect("a number"));
    }
    let told = codes(&play(&mut cut_off, &script().ready(1)).await);
    // Which of both it is depends on whether somebody else's COMMIT took the number to disk.
    let wanted = match again.contains(&number) {
        true => "E 08007\nZ I\n".to_owned(),
        false => format!("{LOST}Z I\n"),
    };
    eprintln!("number {number}, given after the crash: {again:?}, told {told:?}");
    assert_eq!(told, wanted);
    assert_eq!(dying.value("SELECT count(*) FROM slow").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_a_node_that_does_not_come_back_in_time_is_in_doubt() {
    let cluster = two("commit_outcome_wait = \"300ms\"")
        .schema(SLOW)
        .start()
        .await;
    let one = cluster.proxy().await;
    let (_, dying) = home(&cluster, &one).await;
    let mut aborts = session(&cluster).await;
    heard(&mut aborts, "BEGIN").await;
    heard(&mut aborts, "INSERT INTO slow VALUES (1)").await;
    play(&mut aborts, &script().q("COMMIT").send()).await;
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND wait_event = 'PgSleep'";
    eventually("it is committing", LIMIT, async || {
        match dying.value(waiting).await.as_str() {
            "1" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    dying.kill9().await;
    let told = codes(&play(&mut aborts, &script().ready(1)).await);
    assert_eq!(told, "E 08007\nZ I\n");
    runs_again(&mut aborts).await;
}
