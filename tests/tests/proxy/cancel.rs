//! Ctrl-C, and the protocol version that carries long cancel keys.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tandem::dev::process::ProcessId;
use tandem_tests::{
    Cluster, Program, eventually,
    template::{self, APP, DATABASE},
};
use tandem_wire::{
    ConnectOptions, Credentials, Secret, cancel, connect,
    connection::Parts,
    encode::frontend,
    tls::{ClientTls, SslMode},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LIMIT: Duration = Duration::from_secs(20);

/// psql runs `pg_sleep(60)` and gets SIGINT, as Ctrl-C sends it.
async fn interrupted(cluster: &Cluster, psql: Program) {
    let child = psql.args(["-c", "SELECT pg_sleep(60)"]).spawn();
    let active = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(60)'";
    eventually("the query runs", LIMIT, async || {
        for node in &cluster.nodes {
            if node.value(active).await == "1" {
                return Ok(());
            }
        }
        Err("on no node")
    })
    .await;
    let process = ProcessId::of(i32::try_from(child.id().expect("it runs")).expect("a pid"))
        .expect("it runs");
    let pressed = Instant::now();
    process.signal(Signal::INT).expect("a signal");
    let output = tokio::time::timeout(LIMIT, child.wait_with_output())
        .await
        .expect("it ends")
        .expect("its output");
    let took = pressed.elapsed();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("canceling statement due to user request"),
        "{text}"
    );
    assert!(took < Duration::from_secs(1), "it took {took:?}");
    for node in &cluster.nodes {
        assert_eq!(node.value(active).await, "0", "{}", node.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_query_within_a_second() {
    let cluster = Cluster::of(&[15, 15]).start().await;
    interrupted(&cluster, cluster.psql()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_18_speaks_protocol_3_2_and_its_ctrl_c_works_too() {
    let cluster = Cluster::of(&[15, 18]).start().await;
    let psql18 = || {
        let psql = Program::psql(&template::install(18)).port(cluster.proxy_port);
        psql.args([
            "-d",
            "min_protocol_version=3.2 max_protocol_version=3.2 dbname=app",
        ])
    };
    let ran = psql18()
        .args(["-c", "\\conninfo", "-c", "SELECT 6 * 7"])
        .run(LIMIT)
        .await
        .expect_success();
    assert!(
        ran.stdout.contains("3.2") && ran.stdout.contains("42"),
        "{}",
        ran.all()
    );
    interrupted(&cluster, psql18()).await;
}

/// A cancel request for one session must not reach another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_only_the_session_that_it_is_for() {
    let cluster = Cluster::of(&[15]).start().await;
    let (first, second) = (cluster.proxy().await, cluster.proxy().await);
    let token = first.cancel_token();
    let slow = second.simple_query("SELECT pg_sleep(1)");
    let cancel = async {
        for _ in 0..5 {
            token
                .cancel_query(tokio_postgres::NoTls)
                .await
                .expect("a cancel request");
        }
    };
    let (slow, ()) = tokio::join!(slow, cancel);
    slow.expect("the other session's query ends by itself");
}

/// A client of which every byte is known when it is sent.
struct Raw {
    options: ConnectOptions,
    parts: Parts,
}

impl Raw {
    async fn connect(cluster: &Cluster) -> Raw {
        let options = ConnectOptions {
            host: "127.0.0.1".to_owned(),
            port: cluster.proxy_port,
            user: APP.to_owned(),
            database: DATABASE.to_owned(),
            credentials: Credentials::Password(Secret::new(APP)),
            tls: ClientTls::new(SslMode::Disable, None).expect("no TLS"),
            params: Vec::new(),
            connect_timeout: LIMIT,
        };
        let parts = connect(&options).await.expect("a login").into_parts();
        Raw { options, parts }
    }

    async fn send(&mut self, sql: &str) {
        let mut message = bytes::BytesMut::new();
        frontend::query(&mut message, sql).expect("a message");
        let stream = &mut self.parts.stream;
        stream.write_all(&message).await.expect("sent");
    }

    async fn cancel(&self) {
        let (pid, secret) = (self.parts.backend_pid, &self.parts.cancel_secret);
        let asked = cancel::cancel(&self.options, pid, secret).await;
        asked.expect("a cancel request");
    }

    /// The text of what comes up to the end of the statement.
    async fn answer(&mut self) -> String {
        let mut answer = Vec::new();
        let all = async {
            while !answer.ends_with(b"Z\0\0\0\x05I") {
                let read = self.parts.stream.read_buf(&mut answer).await;
                assert!(read.expect("an answer") > 0, "{}", answer.escape_ascii());
            }
        };
        let in_time = tokio::time::timeout(LIMIT, all).await.is_ok();
        let text = String::from_utf8_lossy(&answer).replace('\0', " ");
        assert!(in_time, "no end: {text}");
        text
    }
}

/// A program with a short patience cancels right behind its statement.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_right_behind_a_statement_meets_it() {
    let cluster = Cluster::of(&[15])
        .proxy("pool_mode = \"transaction\"\nworkers = 2")
        .start()
        .await;
    let mut client = Raw::connect(&cluster).await;
    for _ in 0..200 {
        client.send("SELECT pg_sleep(60)").await;
        client.cancel().await;
        let answer = client.answer().await;
        assert!(answer.contains("57014"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_while_the_server_gets_the_sessions_settings_meets_the_statement() {
    let cluster = Cluster::of(&[15])
        .proxy("pool_mode = \"transaction\"\npool_size = 1")
        .start()
        .await;
    let (mut client, mut other) = (Raw::connect(&cluster).await, Raw::connect(&cluster).await);
    other.send("SET work_mem = '5MB'").await;
    other.answer().await;
    let backend = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'SET work_mem%'";
    let backend = cluster.nodes[0].value(backend).await;
    let backend = ProcessId::of(backend.parse().expect("a number")).expect("it runs");
    backend.signal(Signal::STOP).expect("a signal");
    client.send("SELECT pg_sleep(60)").await;
    client.cancel().await;
    backend.signal(Signal::CONT).expect("a signal");
    let answer = client.answer().await;
    assert!(answer.contains("57014"), "{answer}");
    other.send("SHOW work_mem").await;
    let still = other.answer().await;
    assert!(still.contains("5MB"), "{still}");
    client.send("SHOW work_mem").await;
    let own = client.answer().await;
    assert!(own.contains("4MB"), "{own}");
}
