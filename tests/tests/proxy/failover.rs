//! What becomes of sessions whose node is lost, by what they were doing.

use std::time::{Duration, Instant};

use tandem_tests::{Cluster, ClusterBuilder, Node, Program, client, eventually};
use tandem_wire::Connection;
use tokio_postgres::Client;

use crate::script::{open, play, script};

pub(crate) const LIMIT: Duration = Duration::from_secs(20);
const TRANSACTION_MODE: &str = "workers = 1\npool_mode = \"transaction\"";
/// How long a probe of a node takes in a test where sessions know more than the health board.
const SLOW_PROBE: Duration = Duration::from_millis(700);

/// How long each way takes that a probe's bytes go there before.
const USUAL_DELAY: Duration = Duration::from_millis(40);

/// Where every write goes as long as that node serves.
pub(crate) async fn home<'a>(cluster: &'a Cluster, client: &Client) -> (usize, &'a Node) {
    client::execute(client, "BEGIN").await;
    let port = client::value(client, "SHOW port").await;
    client::execute(client, "COMMIT").await;
    let mut nodes = cluster.nodes.iter().enumerate();
    nodes
        .find(|(_, node)| node.port().to_string() == port)
        .expect("a node of the cluster")
}

pub(crate) async fn session(cluster: &Cluster) -> Connection {
    open(cluster.proxy_port, &[]).await.expect("a login")
}

pub(crate) fn two(proxy: &str) -> ClusterBuilder {
    Cluster::of(&[15, 17])
        .durable()
        .schema("CREATE TABLE kept (id int PRIMARY KEY, n int NOT NULL); INSERT INTO kept SELECT id, 0 FROM generate_series(1, 9) id;")
        .proxy(TRANSACTION_MODE)
        .proxy(proxy)
}

/// The health board hears of it much later than the session.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_new_connection_is_reset_waits_for_the_verdict_and_goes_elsewhere() {
    let cluster = two("probe_timeout = \"5s\"\npool_size = 1")
        .relays()
        .start()
        .await;
    let one = cluster.proxy().await;
    let (lost, _) = home(&cluster, &one).await;
    // Has the only connection there is.
    let other = cluster.proxy().await;
    client::execute(&other, "BEGIN").await;
    client::execute(&other, "SHOW port").await;
    // A node whose probes have taken long before is not given up for that.
    cluster.relays[lost].delay("tandem probe", USUAL_DELAY);
    cluster
        .daemon
        .status_when("it is far away", LIMIT, |status| {
            status["nodes"][lost]["rtt_ms"]
                .as_f64()
                .is_some_and(|ms| ms > 20.0)
        })
        .await;
    // All connections are reset, new ones too; but a probe takes its time, and then finds the same.
    cluster.relays[lost].cut_but_delay("tandem probe", SLOW_PROBE);
    let logged = async |what: &str| match cluster.daemon.log().contains(what) {
        true => Ok(()),
        false => Err("not yet"),
    };
    eventually("it is lost", LIMIT, async || logged("lost=Between").await).await;
    let mut write = Box::pin(client::try_rows(&one, "UPDATE kept SET n = 1 WHERE id = 1"));
    eventually("it is tried", LIMIT, async || {
        let waits = tokio::time::timeout(Duration::from_millis(10), &mut write).await;
        assert!(
            waits.is_err(),
            "nobody knows yet what has become of the node"
        );
        logged("no server connection").await
    })
    .await;
    cluster.relays[lost].heal_only("tandem probe");
    let written = tokio::time::timeout(LIMIT, write).await.expect("in time");
    written.expect("another node takes it");
    cluster.relays[lost].heal();
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_node_down_a_statement_waits_and_runs_when_one_is_back() {
    let cluster = two("query_wait_notify = \"200ms\"")
        .rules("[default]\nwrite = \"home\"\n[read]\nconsistency = \"eventual\"\n")
        .start()
        .await;
    let mut one = session(&cluster).await;
    let set = script().q("SET work_mem = '7MB'").ready(1);
    play(&mut one, &set).await;
    for node in &cluster.nodes {
        node.stop_immediately().await;
    }
    let write = script().q("UPDATE kept SET n = 1 WHERE id = 1");
    let told = play(&mut one, &write.until(b'N')).await;
    assert!(told.contains("it waits for one"), "{told}");
    cluster.nodes[1].start_again().await;
    let written = play(&mut one, &script().ready(1)).await;
    assert_eq!(written, "C UPDATE 1\\x00\nZ I\n");
    // Nothing of the session is forgotten.
    let shown = play(&mut one, &script().q("SHOW work_mem").ready(1)).await;
    assert!(shown.contains("7MB"), "{shown}");
    cluster.nodes[0].start_again().await;
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_node_down_for_too_long_a_statement_fails_and_the_session_lives() {
    let cluster = two("query_wait_timeout = \"600ms\"").start().await;
    let one = cluster.proxy().await;
    for node in &cluster.nodes {
        node.stop_immediately().await;
    }
    for text in ["SELECT 1", "UPDATE kept SET n = 1 WHERE id = 1"] {
        let error = client::try_rows(&one, text).await.expect_err("no node");
        assert_eq!(client::sqlstate(&error), "57P03", "{error:?}");
    }
    client::execute(&one, "BEGIN").await;
    let error = one.query("SELECT 1", &[]).await.expect_err("no node");
    assert_eq!(client::sqlstate(&error), "57P03", "{error:?}");
    let error = client::try_rows(&one, "SELECT 1").await;
    assert_eq!(
        client::sqlstate(&error.expect_err("a failed block")),
        "25P02"
    );
    client::execute(&one, "ROLLBACK").await;
    for node in &cluster.nodes {
        node.start_again().await;
    }
    eventually("the session goes on", LIMIT, async || {
        let written = client::try_rows(&one, "UPDATE kept SET n = 1 WHERE id = 1").await;
        written.map_err(|error| client::sqlstate(&error))
    })
    .await;
    cluster.assert_converged().await;
}

/// The node on which a session reads.
async fn near<'a>(cluster: &'a Cluster, connection: &mut Connection) -> &'a Node {
    let shown = play(connection, &script().q("SHOW port").ready(1)).await;
    let mut nodes = cluster.nodes.iter();
    let node = nodes.find(|node| shown.contains(&node.port().to_string()));
    node.expect("a node of the cluster")
}

/// Keeps everybody else off the table on this node.
async fn lock(node: &Node) -> Client {
    let client = node.connect().await;
    client::execute(&client, "BEGIN; LOCK TABLE kept IN ACCESS EXCLUSIVE MODE").await;
    client
}

/// Waits until so many of the application's statements wait for a lock there.
async fn blocked(node: &Node, count: usize) {
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND wait_event_type = 'Lock'";
    eventually("it waits for a lock", LIMIT, async || {
        match node.value(waiting).await {
            found if found == count.to_string() => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

/// What a client hears, with SQLSTATEs in the place of errors.
pub(crate) fn codes(heard: &str) -> String {
    let line = |line: &str| match line.strip_prefix("E ") {
        Some(error) => {
            let code = error
                .split("\\x00")
                .find_map(|field| field.strip_prefix('C'));
            format!("E {}\n", code.unwrap_or_default())
        }
        None if line.starts_with("N ") => String::new(),
        None => format!("{line}\n"),
    };
    heard.lines().map(line).collect()
}

pub(crate) async fn heard(connection: &mut Connection, sql: &str) -> String {
    codes(&play(connection, &script().q(sql).ready(1)).await)
}

pub(crate) const UPDATED: &str = "C UPDATE 1\\x00\n";
pub(crate) const LOST: &str = "E 40001\n";
const ABORTED: &str = "E 25P02\n";

/// A transaction that is run again after it was told 40001.
pub(crate) async fn runs_again(connection: &mut Connection) {
    for (sql, wanted) in [
        ("BEGIN", "C BEGIN\\x00\nZ T\n".to_owned()),
        (
            "UPDATE kept SET n = n + 1 WHERE id = 1",
            format!("{UPDATED}Z T\n"),
        ),
        ("COMMIT", "C COMMIT\\x00\nZ I\n".to_owned()),
    ] {
        assert_eq!(heard(connection, sql).await, wanted, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_in_a_block_when_the_node_dies_hears_40001_rolls_back_and_runs_it_again() {
    let cluster = two("").start().await;
    let one = cluster.proxy().await;
    client::execute(&one, "SET work_mem = '7MB'").await;
    let (_, dying) = home(&cluster, &one).await;
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ";
    let write = "UPDATE kept SET n = n + 1 WHERE id = 1";
    let mut sessions = Vec::new();
    for _ in 0..5 {
        let mut connection = session(&cluster).await;
        heard(&mut connection, begin).await;
        sessions.push(connection);
    }
    let [between, commits, rolls_back, chains, extended] = &mut sessions[..] else {
        panic!("five sessions");
    };
    for (id, connection) in [&mut *between, commits, rolls_back, chains, extended]
        .into_iter()
        .enumerate()
    {
        let write = format!("UPDATE kept SET n = n + 1 WHERE id = {}", id + 2);
        assert_eq!(heard(connection, &write).await, format!("{UPDATED}Z T\n"));
    }
    dying.kill9().await;

    // Nobody is told before it says something.
    assert_eq!(heard(between, "SELECT 1").await, format!("{LOST}Z E\n"));
    for text in ["SELECT 1", "ROLLBACK TO a", write] {
        assert_eq!(
            heard(between, text).await,
            format!("{ABORTED}Z E\n"),
            "{text}"
        );
    }
    assert_eq!(heard(between, "COMMIT").await, "C ROLLBACK\\x00\nZ I\n");
    runs_again(between).await;

    // A COMMIT that was never sent fails, and ends the block.
    assert_eq!(heard(commits, "COMMIT").await, format!("{LOST}Z I\n"));
    runs_again(commits).await;

    assert_eq!(
        heard(rolls_back, "ROLLBACK").await,
        "C ROLLBACK\\x00\nZ I\n"
    );
    runs_again(rolls_back).await;

    let chained = heard(chains, "ROLLBACK AND CHAIN").await;
    assert_eq!(chained, "C ROLLBACK\\x00\nZ T\n");
    let isolation = heard(chains, "SHOW transaction_isolation").await;
    assert!(isolation.contains("repeatable read"), "{isolation}");
    heard(chains, "COMMIT").await;

    let batch = |sql: &str| script().p("", sql).b("", "", &[]).dp("").e("", 0).s();
    let both = batch(write)
        .p("", write)
        .b("", "", &[])
        .e("", 0)
        .s()
        .ready(2);
    let told = codes(&play(extended, &both).await);
    assert_eq!(told, format!("{LOST}Z E\n{ABORTED}Z E\n"));
    let told = codes(&play(extended, &batch("ROLLBACK").ready(1)).await);
    assert_eq!(told, "1 \n2 \nn \nC ROLLBACK\\x00\nZ I\n");
    runs_again(extended).await;

    // Who was idle has not noticed.
    assert_eq!(client::value(&one, "SHOW work_mem").await, "7MB");
    dying.start_again().await;
    cluster.assert_converged().await;
    let kept = "SELECT string_agg(n::text, ' ' ORDER BY id) FROM kept";
    assert_eq!(dying.value(kept).await, "4 0 0 0 0 0 0 0 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_that_are_under_way_in_a_block_are_answered_in_their_order() {
    let cluster = two("").start().await;
    let one = cluster.proxy().await;
    let (_, dying) = home(&cluster, &one).await;
    let write = "UPDATE kept SET n = n + 1 WHERE id = 1";
    let mut sessions = Vec::new();
    for _ in 0..4 {
        let mut connection = session(&cluster).await;
        heard(&mut connection, "BEGIN").await;
        heard(&mut connection, "SELECT 1").await;
        sessions.push(connection);
    }
    let locker = lock(dying).await;
    let [simple, extended, commits, open] = &mut sessions[..] else {
        panic!("four sessions");
    };
    let batch = || script().p("", write).b("", "", &[]).e("", 0);
    play(simple, &script().q(write).send()).await;
    play(
        extended,
        &batch().s().p("", write).b("", "", &[]).e("", 0).s().send(),
    )
    .await;
    play(commits, &script().q(write).q("COMMIT").send()).await;
    play(open, &batch().h().send()).await;
    blocked(dying, 4).await;
    dying.kill9().await;
    drop(locker);
    assert_eq!(
        codes(&play(simple, &script().ready(1)).await),
        format!("{LOST}Z E\n")
    );
    let told = codes(&play(extended, &script().ready(2)).await);
    assert_eq!(told, format!("{LOST}Z E\n{ABORTED}Z E\n"));
    // Its COMMIT was sent.
    let told = codes(&play(commits, &script().ready(2)).await);
    assert_eq!(told, "E 08007\nZ E\nE 08007\nZ I\n");
    let told = codes(&play(open, &script().p("", write).s().ready(1)).await);
    assert!(told.ends_with(&format!("{LOST}Z E\n")), "{told}");
    for connection in [&mut *simple, extended, open] {
        assert_eq!(
            heard(connection, "ROLLBACK").await,
            "C ROLLBACK\\x00\nZ I\n"
        );
    }
    for connection in [simple, extended, commits, open] {
        runs_again(connection).await;
    }
    dying.start_again().await;
    cluster.assert_converged().await;
    assert_eq!(dying.value("SELECT n FROM kept WHERE id = 1").await, "4");
}

#[tokio::test(flavor = "multi_thread")]
async fn outside_of_a_block_a_read_is_sent_once_more_and_a_write_is_in_doubt() {
    let cluster = two("").start().await;
    let mut reader = session(&cluster).await;
    let dying = near(&cluster, &mut reader).await;
    let read = "SELECT n FROM kept WHERE id = 1";
    let prepare = script().p("a", read).s().ready(1);
    play(&mut reader, &prepare).await;
    let locker = lock(dying).await;
    let run = script().b("", "a", &[]).e("", 0).s();
    play(&mut reader, &run.send()).await;
    blocked(dying, 1).await;
    dying.kill9().await;
    drop(locker);
    let told = codes(&play(&mut reader, &script().ready(1)).await);
    assert_eq!(
        told,
        "2 \nD \\x00\\x01\\x00\\x00\\x00\\x010\nC SELECT 1\\x00\nZ I\n"
    );
    dying.start_again().await;
    cluster.assert_converged().await;

    let one = cluster.proxy().await;
    let (_, dying) = home(&cluster, &one).await;
    let mut writer = session(&cluster).await;
    heard(&mut writer, "SHOW port").await;
    let locker = lock(dying).await;
    let write = "UPDATE kept SET n = n + 1 WHERE id = 1";
    play(&mut writer, &script().q(write).send()).await;
    blocked(dying, 1).await;
    dying.kill9().await;
    drop(locker);
    assert_eq!(
        codes(&play(&mut writer, &script().ready(1)).await),
        "E 08007\nZ I\n"
    );
    assert_eq!(heard(&mut writer, write).await, format!("{UPDATED}Z I\n"));
    dying.start_again().await;
    cluster.assert_converged().await;
}

/// What waits at the end of its transaction, before it commits.
#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_something_on_the_node_that_cannot_follow_ends_and_is_told_why() {
    let cluster = two("").start().await;
    let one = cluster.proxy().await;
    let (_, dying) = home(&cluster, &one).await;
    let mut has_table = session(&cluster).await;
    heard(&mut has_table, "BEGIN").await;
    heard(&mut has_table, "CREATE TEMP TABLE own (id int)").await;
    assert!(heard(&mut has_table, "COMMIT").await.ends_with("Z I\n"));
    let mut has_cursor = session(&cluster).await;
    heard(&mut has_cursor, "BEGIN").await;
    heard(&mut has_cursor, "DECLARE c CURSOR FOR SELECT 1").await;
    dying.kill9().await;
    let told = play(&mut has_table, &script().ready(1)).await;
    assert!(told.starts_with("E SFATAL\\x00VFATAL\\x00C57P01"), "{told}");
    assert!(told.contains("(temporary table)"), "{told}");
    // A cursor that ends with its transaction is no reason.
    assert_eq!(
        heard(&mut has_cursor, "FETCH c").await,
        format!("{LOST}Z E\n")
    );
    heard(&mut has_cursor, "ROLLBACK").await;
    runs_again(&mut has_cursor).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_that_restarts_costs_transactions_and_no_session() {
    let cluster = Cluster::of(&[17])
        .durable()
        .schema("CREATE TABLE kept (id int PRIMARY KEY, n int NOT NULL); INSERT INTO kept VALUES (1, 0);")
        .proxy(TRANSACTION_MODE)
        .start()
        .await;
    let (mut idle, mut busy) = (session(&cluster).await, session(&cluster).await);
    heard(&mut idle, "SET work_mem = '7MB'").await;
    for _ in 0..2 {
        heard(&mut busy, "BEGIN").await;
        heard(&mut busy, "UPDATE kept SET n = 7 WHERE id = 1").await;
        cluster.nodes[0].stop_fast().await;
        assert_eq!(heard(&mut busy, "SELECT 1").await, format!("{LOST}Z E\n"));
        heard(&mut busy, "ROLLBACK").await;
        cluster.nodes[0].start_again().await;
        // It waits until the node is up.
        runs_again(&mut busy).await;
        assert!(heard(&mut idle, "SHOW work_mem").await.contains("7MB"));
    }
    assert_eq!(cluster.nodes[0].value("SELECT n FROM kept").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_an_operator_ends_costs_a_transaction_and_no_session() {
    let cluster = two("").start().await;
    let one = cluster.proxy().await;
    let (_, home) = home(&cluster, &one).await;
    let mut session = session(&cluster).await;
    heard(&mut session, "BEGIN").await;
    heard(&mut session, "UPDATE kept SET n = 1 WHERE id = 2").await;
    let ends = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app' AND state LIKE 'idle in%'";
    assert_eq!(home.value(ends).await, "1");
    assert_eq!(
        heard(&mut session, "SELECT 1").await,
        format!("{LOST}Z E\n")
    );
    heard(&mut session, "ROLLBACK").await;
    runs_again(&mut session).await;
    assert_eq!(home.value("SELECT n FROM kept WHERE id = 1").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stands_still_is_given_up_and_its_sessions_go_on_elsewhere() {
    let cluster = two("probe_timeout = \"300ms\"").start().await;
    let one = cluster.proxy().await;
    let (_, home) = home(&cluster, &one).await;
    let mut waits = session(&cluster).await;
    heard(&mut waits, "BEGIN").await;
    heard(&mut waits, "UPDATE kept SET n = 1 WHERE id = 2").await;
    home.pause().await;
    let told = heard(&mut waits, "UPDATE kept SET n = 1 WHERE id = 3").await;
    assert_eq!(told, format!("{LOST}Z E\n"));
    heard(&mut waits, "ROLLBACK").await;
    runs_again(&mut waits).await;
    client::execute(&one, "UPDATE kept SET n = n + 1 WHERE id = 1").await;
    home.resume().await;
    cluster.assert_converged().await;
    let kept = "SELECT string_agg(n::text, ' ' ORDER BY id) FROM kept";
    assert_eq!(home.value(kept).await, "2 0 0 0 0 0 0 0 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_sqlstate_that_a_client_raises_changes_what_is_known_of_a_node() {
    let cluster = two("").start().await;
    let one = cluster.proxy().await;
    let before = cluster.daemon.log().len();
    for _ in 0..20 {
        for code in [
            "57P01", "57P02", "57P03", "25006", "53100", "53300", "08006", "40001", "XX000",
        ] {
            let raise =
                format!("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$");
            let error = client::try_rows(&one, &raise)
                .await
                .expect_err("it is raised");
            assert_eq!(client::sqlstate(&error), code);
        }
        let ends = client::try_rows(&one, "SELECT pg_terminate_backend(pg_backend_pid())").await;
        let error = ends.expect_err("nobody knows what it has done");
        assert_eq!(client::sqlstate(&error), "08007");
    }
    let log = cluster.daemon.log().split_off(before);
    for word in ["node is down", "under suspicion", "kept off"] {
        assert!(!log.contains(word), "{word}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_that_retries_survives_a_node_that_dies_and_comes_back() {
    let cluster = two("").pgbench(1).start().await;
    let one = cluster.proxy().await;
    let (_, dying) = home(&cluster, &one).await;
    let pgbench = Program::pgbench(cluster.nodes[0].install()).port(cluster.proxy_port);
    let pgbench = pgbench.args(["-n", "-c", "8", "-j", "2", "-T", "6", "--max-tries=10"]);
    let running = tokio::spawn(pgbench.run(Duration::from_secs(60)));
    let written = "SELECT count(*) > 200 FROM pgbench_history";
    for _ in 0..2 {
        eventually("it writes", LIMIT, async || {
            match dying.value(written).await.as_str() {
                "t" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
        dying.kill9().await;
        dying.start_again().await;
    }
    let ran = running.await.expect("no panic");
    // A COMMIT that was written with the question ahead of it unanswered is in doubt, and ends pgbench's client.
    let in_doubt = cluster.daemon.log().matches("lost=Unknown").count();
    let aborted = ran.stderr.matches(" aborted in command").count();
    assert!(aborted <= in_doubt, "{}", ran.all());
    assert!(ran.status.success() || in_doubt > 0, "{}", ran.all());
    assert!(
        ran.stdout.contains("number of failed transactions: 0 "),
        "{}",
        ran.all()
    );
    cluster.assert_converged().await;
    // None was run twice, and none is missing.
    let processed = ran.stdout.lines().find_map(|line| {
        line.strip_prefix("number of transactions actually processed: ")
            .and_then(|rest| rest.split('/').next())
            .and_then(|count| count.trim().parse::<usize>().ok())
    });
    let processed = processed.expect("a count");
    let history = dying.value("SELECT count(*) FROM pgbench_history").await;
    let history: usize = history.parse().expect("a count");
    eprintln!("processed: {processed}, history: {history}, in doubt: {in_doubt}");
    assert!(
        (processed..=processed + in_doubt).contains(&history),
        "{processed} processed, {history} in the history, {in_doubt} in doubt"
    );
}

/// How long nobody can write the keys of a node that is killed.
#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_a_killed_node_are_written_elsewhere_soon() {
    let cluster = Cluster::of(&[15, 15, 15])
        .durable()
        .schema("CREATE TABLE kept (id int PRIMARY KEY, n int NOT NULL); INSERT INTO kept VALUES (1, 0);")
        .proxy(TRANSACTION_MODE)
        .start()
        .await;
    let one = cluster.proxy().await;
    let write = "UPDATE kept SET n = n + 1 WHERE id = 1";
    let mut gaps = Vec::new();
    for _ in 0..5 {
        let (_, dying) = home(&cluster, &one).await;
        client::execute(&one, write).await;
        let mut last = Instant::now();
        let mut gap = Duration::ZERO;
        let kill = dying.kill9();
        tokio::pin!(kill);
        let mut killed = false;
        while !killed {
            tokio::select! {
                () = &mut kill => killed = true,
                written = client::try_rows(&one, write) => {
                    if written.is_ok() {
                        gap = gap.max(last.elapsed());
                        last = Instant::now();
                    }
                }
            }
        }
        while client::try_rows(&one, write).await.is_err() {}
        gaps.push(gap.max(last.elapsed()));
        dying.start_again().await;
        cluster
            .daemon
            .status_when("all nodes are up", LIMIT, |status| {
                let nodes = status["nodes"].as_array();
                nodes.is_some_and(|nodes| nodes.iter().all(|node| node["health"] == "up"))
            })
            .await;
    }
    eprintln!("gaps: {gaps:?}");
    gaps.sort();
    assert!(gaps[2] < Duration::from_secs(1), "{gaps:?}");
}
