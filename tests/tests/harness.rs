//! The harness itself: a comparison that finds nothing, or a fault that does nothing, would let every scenario pass.

use std::{
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tandem::dev::process::ProcessId;
use tandem_tests::{Cluster, client, compare, eventually, relay::Relay, scratch::Scratch};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn the_comparison_sees_content_versions_missing_rows_multiplicity_and_tables() {
    let schema =
        "CREATE TABLE item (id int PRIMARY KEY, name text); CREATE TABLE bare (name text);";
    let cluster = Cluster::of(&[15, 18])
        .schema(schema)
        .without_daemon()
        .start()
        .await;
    let since = "2000-01-01";
    let differences = async || compare::differences(&cluster.nodes, since).await;
    let both = async |sql: &str| {
        for node in &cluster.nodes {
            node.execute(sql).await;
        }
    };
    assert_eq!(differences().await, "");

    both("INSERT INTO item VALUES (1, 'same')").await;
    let text = differences().await;
    assert!(
        text.contains("public.item: 1 rows differ")
            && text.contains("node 1")
            && text.contains("node 2"),
        "{text}"
    );
    // The same rows are equal where they count as older than the comparison.
    let later = cluster.nodes[0]
        .value("SELECT clock_timestamp() + '1 hour'")
        .await;
    assert_eq!(compare::differences(&cluster.nodes, &later).await, "");

    let by_content = async || compare::differences(&cluster.nodes, &later).await;
    cluster.nodes[0]
        .execute("UPDATE item SET name = 'other'")
        .await;
    let text = by_content().await;
    assert!(text.contains("other") && text.contains("same"), "{text}");
    cluster.nodes[1]
        .execute("UPDATE item SET name = 'other'; INSERT INTO item VALUES (2, 'alone')")
        .await;
    let text = by_content().await;
    assert!(
        text.contains("(no row)") && text.contains("alone"),
        "{text}"
    );
    cluster.nodes[1]
        .execute("DELETE FROM item WHERE id = 2")
        .await;
    assert_eq!(by_content().await, "");

    both("INSERT INTO bare VALUES ('twice'), ('twice')").await;
    assert_eq!(by_content().await, "");
    cluster.nodes[0]
        .execute("INSERT INTO bare VALUES ('twice')")
        .await;
    let text = by_content().await;
    assert!(
        text.contains("3 times") && text.contains("2 times"),
        "{text}"
    );
    cluster.nodes[1]
        .execute("INSERT INTO bare VALUES ('twice'); CREATE TABLE more (id int PRIMARY KEY)")
        .await;
    let text = by_content().await;
    assert!(
        text.contains("public.more is not the same table on n1"),
        "{text}"
    );
}

/// An origin stands for its node, with the source's own timestamp.
#[tokio::test(flavor = "multi_thread")]
async fn the_comparison_takes_a_replicated_row_for_equal_only_with_the_sources_stamp() {
    let cluster = Cluster::of(&[15, 15])
        .schema("CREATE TABLE item (id int PRIMARY KEY);")
        .without_daemon()
        .start()
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (1)")
        .await;
    let stamp = cluster.nodes[0]
        .value("SELECT pg_xact_commit_timestamp(xmin) FROM item")
        .await;
    let target = cluster.nodes[1].connect().await;
    client::execute(&target, "SELECT pg_replication_origin_create('tandem_1_0')").await;
    client::execute(
        &target,
        "SELECT pg_replication_origin_session_setup('tandem_1_0')",
    )
    .await;
    let insert = async |at: &str| {
        let xact = format!(
            "BEGIN; DELETE FROM item; INSERT INTO item VALUES (1); SELECT pg_replication_origin_xact_setup('0/1', '{at}'); COMMIT"
        );
        client::execute(&target, &xact).await;
        compare::differences(&cluster.nodes, "2000-01-01").await
    };
    assert_eq!(insert(&stamp).await, "");
    let text = insert("2020-02-02 00:00:00+00").await;
    assert!(text.contains("2020-02-02"), "{text}");
    client::execute(&target, "SELECT pg_replication_origin_session_reset(); DELETE FROM item; INSERT INTO item VALUES (1)").await;
    assert!(
        compare::differences(&cluster.nodes, "2000-01-01")
            .await
            .contains("node 2")
    );
}

/// A server that says back what it hears, and a relay in front of it.
async fn echo() -> Relay {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
                write.shutdown().await.ok();
            });
        }
    });
    Relay::start(address).await.expect("a relay")
}

async fn connect(relay: &Relay, name: &str) -> TcpStream {
    let mut stream = TcpStream::connect(relay.address())
        .await
        .expect("a connection");
    let parameters = format!("user\0x\0application_name\0{name}\0\0");
    let length = u32::try_from(parameters.len() + 8).expect("short");
    let packet = [
        &length.to_be_bytes()[..],
        &196_608_u32.to_be_bytes(),
        parameters.as_bytes(),
    ]
    .concat();
    stream.write_all(&packet).await.expect("sent");
    let mut back = vec![0; packet.len()];
    stream.read_exact(&mut back).await.expect("said back");
    stream
}

async fn ping(stream: &mut TcpStream) -> std::io::Result<Duration> {
    let begin = Instant::now();
    stream.write_all(b"ping").await?;
    let mut back = [0; 4];
    stream.read_exact(&mut back).await?;
    Ok(begin.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_delays_holds_resets_and_heals_the_connections_that_it_is_told_to() {
    let relay = echo().await;
    let mut apply = connect(&relay, "x:apply 1").await;
    let mut other = connect(&relay, "x:capture").await;
    relay.delay("apply 1", Duration::from_millis(150));
    assert!(ping(&mut apply).await.expect("an answer") >= Duration::from_millis(300));
    assert!(ping(&mut other).await.expect("an answer") < Duration::from_millis(150));

    relay.silence_only("apply 1");
    let held = tokio::time::timeout(Duration::from_millis(300), ping(&mut apply)).await;
    assert!(held.is_err(), "it passed");
    ping(&mut other).await.expect("the other passes");
    relay.heal_only("apply 1");
    let mut back = [0; 4];
    tokio::time::timeout(LIMIT, apply.read_exact(&mut back))
        .await
        .expect("what was held passes")
        .expect("an answer");

    relay.cut_only("apply");
    assert!(
        tokio::time::timeout(LIMIT, apply.read(&mut back))
            .await
            .expect("it is told")
            .is_err(),
        "an orderly end is no reset"
    );
    ping(&mut other).await.expect("the other passes");
    relay.cut();
    assert!(
        tokio::time::timeout(LIMIT, other.read(&mut back))
            .await
            .expect("it is told")
            .is_err()
    );
    relay.heal();
    ping(&mut connect(&relay, "again").await)
        .await
        .expect("new connections pass");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_half_closes_and_passes_an_end_on() {
    let relay = echo().await;
    let mut stream = connect(&relay, "x").await;
    relay.half_close(tandem_tests::relay::Direction::ToNode);
    // The echo sees the end and ends too.
    let mut rest = Vec::new();
    tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest))
        .await
        .expect("in time")
        .expect("an orderly end");
    assert!(rest.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_has_a_clock_of_its_own_over_restarts() {
    let cluster = Cluster::of(&[15, 17, 18])
        .clocks()
        .without_daemon()
        .start()
        .await;
    let clock = async |place: usize| {
        let seconds = "SELECT extract(epoch FROM clock_timestamp())";
        let value = cluster.nodes[place].value(seconds).await;
        value.parse::<f64>().expect("a number")
    };
    let session = cluster.nodes[2].connect().await;
    for (offset_ms, offset) in [(0, 0.0), (3_600_000, 3600.0), (-3_600_000, -3600.0)] {
        for node in &cluster.nodes[1..] {
            node.set_clock_offset_ms(offset_ms);
        }
        for place in [1, 2] {
            let ahead = clock(place).await - clock(0).await;
            // Far more than a busy machine takes for two questions.
            assert!((ahead - offset).abs() < 600.0, "{offset_ms}: {ahead}");
        }
    }
    // A session that was there before the change sees it too.
    let year = client::value(
        &session,
        "SELECT clock_timestamp() < '2001-01-01'::timestamptz",
    );
    assert_eq!(year.await, "f");
    cluster.nodes[2].set_clock_offset_ms(-1_000_000_000_000);
    let year = client::value(
        &session,
        "SELECT clock_timestamp() < '2001-01-01'::timestamptz",
    );
    assert_eq!(year.await, "t");
    cluster.nodes[1].stop_immediately().await;
    cluster.nodes[1].start_again().await;
    let ahead = clock(1).await - clock(0).await;
    assert!((ahead + 3600.0).abs() < 600.0, "{ahead}");
}

/// The process of a test can be killed at any time, as by nextest's timeout.
#[tokio::test(flavor = "multi_thread")]
async fn servers_of_a_killed_test_process_are_swept() {
    const CHILD: &str = "TANDEM_TEST_TO_BE_KILLED";
    if let Ok(report) = std::env::var(CHILD) {
        let cluster = Cluster::of(&[15]).start().await;
        let pid = cluster.nodes[0]
            .value("SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)")
            .await;
        std::fs::write(report, format!("{pid}\n{}", cluster.dir().display())).expect("the report");
        std::future::pending::<()>().await;
    }
    let scratch = Scratch::new().expect("a directory");
    let report = scratch.path().join("report");
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args([
            "--exact",
            "servers_of_a_killed_test_process_are_swept",
            "--nocapture",
        ])
        .env(CHILD, &report)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("a child");
    let text = eventually(
        "the child's cluster runs",
        Duration::from_secs(60),
        async || {
            let text = std::fs::read_to_string(&report).map_err(|error| error.to_string())?;
            if text.lines().count() == 2 {
                Ok(text)
            } else {
                Err(text)
            }
        },
    )
    .await;
    let (pid, dir) = text.split_once('\n').expect("two lines");
    let server = ProcessId::of(pid.parse().expect("a pid")).expect("the server runs");
    child.kill().expect("killed");
    child.wait().expect("ended");
    eventually("server, daemon and directory are gone", LIMIT, async || {
        if server.is_alive() {
            return Err("the server lives");
        }
        if std::path::Path::new(dir).exists() {
            Err("the directory is there")
        } else {
            Ok(())
        }
    })
    .await;
}
