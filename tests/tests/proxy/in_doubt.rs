//! What becomes of a COMMIT that was under way when its node was lost.

use tandem_tests::{Node, eventually};

use crate::{
    failover::{LIMIT, LOST, UPDATED, codes, heard, home, runs_again, session, two},
    script::{play, script},
};

const SLOW: &str = "CREATE TABLE slow (id int PRIMARY KEY);
    CREATE FUNCTION sleeps() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(600); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER sleeps AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION sleeps();";

/// From now on a COMMIT is written there, and then waits for somebody who never comes; until the next start.
async fn hold_commits(dying: &Node) {
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
}

/// Waits until so many of the application's transactions are being committed.
async fn committing(dying: &Node, count: usize) {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND wait_event IN ('SyncRep', 'PgSleep')";
    eventually("all are committing", LIMIT, async || {
        match dying.value(waiting).await {
            found if found == count.to_string() => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_cut_off_is_asked_for_when_the_node_is_back() {
    let cluster = two("")
        .setting("max_prepared_transactions", "5")
        .schema(SLOW)
        .start()
        .await;
    let one = cluster.proxy().await;
    let (_, dying) = home(&cluster, &one).await;
    let mut sessions = Vec::new();
    for write in [
        "UPDATE kept SET n = 7 WHERE id = 1",
        "UPDATE kept SET n = 7 WHERE id = 2",
        "UPDATE kept SET n = 7 WHERE id = 3",
        "UPDATE kept SET n = 7 WHERE id = 4",
        "INSERT INTO slow VALUES (1)",
        "INSERT INTO slow VALUES (2)",
    ] {
        let mut connection = session(&cluster).await;
        heard(&mut connection, "BEGIN ISOLATION LEVEL REPEATABLE READ").await;
        heard(&mut connection, write).await;
        sessions.push(connection);
    }
    let [commits, prepares, chains, two_phase, aborts, no_phase] = &mut sessions[..] else {
        panic!("six sessions");
    };
    play(prepares, &script().p("end", "COMMIT").s().ready(1)).await;
    hold_commits(dying).await;
    play(commits, &script().q("COMMIT").send()).await;
    let run = script().b("", "end", &[]).dp("").e("", 0).s();
    play(prepares, &run.send()).await;
    for (connection, end) in [
        (&mut *chains, "COMMIT AND CHAIN"),
        (&mut *two_phase, "PREPARE TRANSACTION 'first'"),
        (&mut *aborts, "COMMIT"),
        (&mut *no_phase, "PREPARE TRANSACTION 'second'"),
    ] {
        play(connection, &script().q(end).send()).await;
    }
    committing(dying, 6).await;
    dying.kill9().await;
    dying.start_again().await;
    for (connection, wanted) in [
        (commits, "C COMMIT\\x00\nZ I\n"),
        (prepares, "2 \nn \nC COMMIT\\x00\nZ I\n"),
        (&mut *chains, "C COMMIT\\x00\nZ T\n"),
        (&mut *two_phase, "C PREPARE TRANSACTION\\x00\nZ I\n"),
        (aborts, "E 40001\nZ I\n"),
        (no_phase, "E 40001\nZ I\n"),
    ] {
        let told = codes(&play(connection, &script().ready(1)).await);
        assert_eq!(told, wanted);
    }
    // The next block has begun as the last one had.
    let isolation = heard(chains, "SHOW transaction_isolation").await;
    assert!(isolation.contains("repeatable read"), "{isolation}");
    let written = heard(chains, "UPDATE kept SET n = 7 WHERE id = 5").await;
    assert_eq!(written, format!("{UPDATED}Z T\n"));
    heard(chains, "COMMIT").await;
    let committed = heard(two_phase, "COMMIT PREPARED 'first'").await;
    assert_eq!(committed, "C COMMIT PREPARED\\x00\nZ I\n");
    cluster.assert_converged().await;
    let kept = "SELECT string_agg(n::text, ' ' ORDER BY id) FROM kept";
    assert_eq!(dying.value(kept).await, "7 7 7 7 7 0 0 0 0");
    assert_eq!(dying.value("SELECT count(*) FROM slow").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_the_stream_has_shown_is_known_while_its_node_is_away() {
    let cluster = two("").start().await;
    let one = cluster.proxy().await;
    let (place, dying) = home(&cluster, &one).await;
    let mut commits = session(&cluster).await;
    heard(&mut commits, "BEGIN").await;
    heard(&mut commits, "UPDATE kept SET n = 7 WHERE id = 1").await;
    hold_commits(dying).await;
    play(&mut commits, &script().q("COMMIT").send()).await;
    committing(dying, 1).await;
    let other = &cluster.nodes[1 - place];
    eventually("it is elsewhere", LIMIT, async || {
        match other
            .value("SELECT n FROM kept WHERE id = 1")
            .await
            .as_str()
        {
            "7" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    dying.kill9().await;
    let told = codes(&play(&mut commits, &script().ready(1)).await);
    assert_eq!(told, "C COMMIT\\x00\nZ I\n");
    // It goes on at once, and the node is not there yet.
    runs_again(&mut commits).await;
    dying.start_again().await;
    cluster.assert_converged().await;
    assert_eq!(dying.value("SELECT n FROM kept WHERE id = 1").await, "8");
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
