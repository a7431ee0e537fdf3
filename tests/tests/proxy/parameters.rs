//! What clients set at login is their own, and costs no pool of its own.

use std::{collections::BTreeMap, sync::Arc};

use tandem_tests::{
    Cluster, client,
    template::{APP, DATABASE},
};
use tandem_wire::ConnectError;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::script::{Script, open, play, script};

const POOL_OF_TWO: &str = "pool_mode = \"transaction\"\npool_size = 2";
const BACKENDS: &str = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND backend_type = 'client backend'";

/// A client with these `options`.
pub(crate) async fn open_with(port: u16, options: &str) -> Result<Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(port)
        .user(APP)
        .password(APP)
        .dbname(DATABASE)
        .options(options);
    client::connect_with(&config).await
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_with_all_sorts_of_parameters_share_one_pool() {
    let cluster = Arc::new(Cluster::of(&[15]).proxy(POOL_OF_TWO).start().await);
    let kinds = [
        ("-c work_mem=5MB", "work_mem", "5MB"),
        (
            "-c timezone=Asia/Tokyo -c datestyle=SQL",
            "timezone",
            "Asia/Tokyo",
        ),
        ("--search-path=a,b", "search_path", "a,b"),
        ("-c intervalstyle=iso_8601", "intervalstyle", "iso_8601"),
        ("-c a.b=it\\ is", "a.b", "it is"),
    ];
    let mut clients = JoinSet::new();
    for (options, name, value) in kinds {
        let cluster = Arc::clone(&cluster);
        clients.spawn(async move {
            let client = open_with(cluster.proxy_port, options)
                .await
                .expect("a login");
            for _ in 0..20 {
                let sql = format!("SELECT current_setting('{name}') FROM pg_sleep(0.01)");
                assert_eq!(client::value(&client, &sql).await, value, "{options}");
                let backends = cluster.nodes[0].value(BACKENDS).await;
                assert!(
                    ["1", "2"].contains(&backends.as_str()),
                    "{backends} servers"
                );
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.expect("no client fails");
    }
}

/// What a driver may send, and more.
const PARAMETERS: &[(&str, &str)] = &[
    ("client_encoding", "latin1"),
    ("DateStyle", "SQL, DMY"),
    ("TimeZone", "asia/tokyo"),
    ("extra_float_digits", "2"),
    ("application_name", "all sorts"),
    (
        "options",
        "-c work_mem=5120kB --search-path=\"$user\",Other,public -cstatement_timeout=60min -c a.b=it\\ is -c tandem.key=k",
    ),
];
const SHOW: &str = "SELECT current_setting('work_mem'), current_setting('search_path'), current_setting('timezone'), \
    current_setting('datestyle'), current_setting('application_name'), current_setting('statement_timeout'), \
    current_setting('extra_float_digits'), nullif(current_setting('a.b', true), ''), current_setting('client_encoding'), chr(165)";

trait Shows {
    fn show(self) -> Self;
    /// In one message each.
    fn run(self, sql: &str) -> Self;
}

impl Shows for Script {
    fn show(self) -> Self {
        self.q(SHOW).ready(1)
    }

    fn run(self, sql: &str) -> Self {
        self.p("", sql).b("", "", &[]).e("", 0)
    }
}

fn resets() -> Vec<(&'static str, Script)> {
    vec![
        ("as it begins", script().show()),
        (
            "RESET of one",
            script()
                .q("SET work_mem = '9MB'; SET TimeZone = 'UTC'; SET search_path = nowhere")
                .ready(1)
                .q("RESET work_mem")
                .ready(1)
                .show()
                .q("/* it */ RESET TimeZone; SHOW TimeZone; SET search_path TO DEFAULT; SHOW search_path")
                .ready(1)
                .show(),
        ),
        (
            "RESET ALL among others",
            script()
                .q("SET datestyle = 'German'; SET a.b = 'mine'; SET client_encoding = 'UTF8'")
                .ready(1)
                .show()
                .q("SELECT 1; RESET ALL; SELECT current_setting('a.b'); RESET a.b -- and\n;;")
                .ready(1)
                .show(),
        ),
        (
            "in a transaction",
            script()
                .q("BEGIN")
                .ready(1)
                .q("SET LOCAL work_mem = '1MB'; SET timezone = 'UTC'")
                .ready(1)
                .q("SET LOCAL work_mem TO DEFAULT; RESET timezone")
                .ready(1)
                .show()
                .q("SAVEPOINT s; SET work_mem = '2MB'; SET timezone = 'UTC'")
                .ready(1)
                .q("RESET ALL")
                .ready(1)
                .show()
                .q("ROLLBACK TO s")
                .ready(1)
                .show()
                .q("SET extra_float_digits = 0")
                .ready(1)
                .q("COMMIT")
                .ready(1)
                .show()
                .q("BEGIN; SELECT 1/0")
                .ready(1)
                .q("RESET ALL")
                .ready(1)
                .q("ROLLBACK")
                .ready(1)
                .show(),
        ),
        (
            "in pipelines",
            script()
                .run("SET work_mem = '9MB'")
                .run("SET timezone = 'UTC'")
                .run("RESET ALL")
                .run("SHOW work_mem")
                .run("SHOW timezone")
                .s()
                .ready(1)
                .show()
                .p("reset", "RESET timezone")
                .ds("reset")
                .b("", "reset", &[])
                .e("", 0)
                .s()
                .ready(1)
                .q("SET timezone = 'UTC'")
                .ready(1)
                .b("", "reset", &[])
                .e("", 0)
                .run("SHOW timezone")
                .s()
                .ready(1)
                .show(),
        ),
        (
            "DISCARD ALL",
            script()
                .q("SET work_mem = '9MB'; SET timezone = 'UTC'; SET datestyle = 'ISO, MDY'")
                .ready(1)
                .q("DISCARD ALL")
                .q(SHOW)
                .ready(2)
                .q("SET timezone = 'UTC'; SET a.b = 'mine'")
                .ready(1)
                .run("DISCARD ALL")
                .s()
                .run(SHOW)
                .s()
                .ready(2)
                .q("SET work_mem = '9MB'; SET a.b = 'mine'")
                .ready(1)
                .run("DISCARD ALL")
                .run("BEGIN")
                .run("SHOW work_mem")
                .run("SHOW timezone")
                .run("COMMIT")
                .s()
                .ready(1)
                .show()
                .run("SELECT 1")
                .run("DISCARD ALL")
                .run("SHOW work_mem")
                .s()
                .ready(1)
                .show()
                .q("SET timezone = 'UTC'; PREPARE p AS SELECT 1")
                .ready(1)
                .q("DISCARD ALL")
                .ready(1)
                .show()
                .q("BEGIN; SET timezone = 'UTC'")
                .ready(1)
                .q("DISCARD ALL")
                .ready(1)
                .q("ROLLBACK")
                .ready(1)
                .show(),
        ),
    ]
}

/// Settings that are reported together are reported in any order.
fn in_any_order(heard: &str) -> String {
    let mut lines: Vec<&str> = heard.lines().collect();
    for reports in lines.chunk_by_mut(|one, other| one.starts_with("S ") && other.starts_with("S "))
    {
        reports.sort_unstable();
    }
    lines.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_what_its_login_asked_for_and_is_again_after_a_reset() {
    for major in [15, 18] {
        let cluster = Cluster::of(&[major]).proxy(POOL_OF_TWO).start().await;
        let node = &cluster.nodes[0];
        node.value("ALTER ROLE app SET work_mem = '7MB'").await;
        node.value("ALTER ROLE app SET timezone = 'Africa/Cairo'")
            .await;
        let mut plain = open(cluster.proxy_port, &[]).await.expect("a login");
        let mut plain_direct = open(node.port(), &[]).await.expect("a login");
        for (name, script) in resets() {
            let mut direct = open(node.port(), PARAMETERS).await.expect("a login");
            let mut through = open(cluster.proxy_port, PARAMETERS).await.expect("a login");
            let greeting = |connection: &tandem_wire::Connection| {
                connection
                    .parameters()
                    .iter()
                    .cloned()
                    .collect::<BTreeMap<_, _>>()
            };
            assert_eq!(greeting(&through), greeting(&direct), "PostgreSQL {major}");
            let expected = play(&mut direct, &script).await;
            let heard = play(&mut through, &script).await;
            assert_eq!(
                in_any_order(&heard),
                in_any_order(&expected),
                "{name}, PostgreSQL {major}"
            );
            let show = self::script().show();
            let expected = play(&mut plain_direct, &show).await;
            let heard = play(&mut plain, &show).await;
            assert_eq!(
                heard, expected,
                "another client after {name}, PostgreSQL {major}"
            );
            direct.close().await;
            through.close().await;
        }
        let backends = node.value(BACKENDS).await;
        // The direct one is among them.
        assert!(
            ["2", "3"].contains(&backends.as_str()),
            "{backends} servers"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_keeps_its_server_is_put_right_on_it() {
    let cluster = Cluster::of(&[15]).proxy(POOL_OF_TWO).start().await;
    // In this encoding texts cannot be looked into for certain, so the session keeps its server.
    let params = [("client_encoding", "SJIS"), ("TimeZone", "Asia/Tokyo")];
    let script = script()
        .q("SET timezone = 'UTC'; SET client_encoding = 'UTF8'")
        .ready(1)
        .q("RESET ALL")
        .ready(1)
        .show()
        .q("SET timezone = 'UTC'; SELECT chr(12450)")
        .ready(1)
        .q("DISCARD ALL")
        .ready(1)
        .show()
        .q("DISCARD ALL")
        .q("SELECT chr(12450)")
        .q(SHOW)
        .ready(3);
    let port = cluster.nodes[0].port();
    let mut direct = open(port, &params).await.expect("a login");
    let mut through = open(cluster.proxy_port, &params).await.expect("a login");
    let expected = play(&mut direct, &script).await;
    let heard = play(&mut through, &script).await;
    assert_eq!(in_any_order(&heard), in_any_order(&expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_like_a_reset_is_not_touched() {
    let cluster = Cluster::of(&[15]).proxy(POOL_OF_TWO).start().await;
    let params = [
        ("options", "-c standard_conforming_strings=off"),
        ("TimeZone", "Asia/Tokyo"),
    ];
    let script = script()
        .q(r"SELECT 'a\'; RESET ALL; --'")
        .ready(1)
        .q(r"SET standard_conforming_strings = on; SELECT 'a\'; RESET timezone; SHOW timezone --'")
        .ready(1)
        .q(r"SELECT 'é\'; RESET timezone; SHOW timezone --'")
        .ready(1);
    let port = cluster.nodes[0].port();
    let mut direct = open(port, &params).await.expect("a login");
    let mut through = open(cluster.proxy_port, &params).await.expect("a login");
    let expected = play(&mut direct, &script).await;
    assert_eq!(play(&mut through, &script).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_refuses_is_told_at_login_in_its_words() {
    let cluster = Cluster::of(&[15]).proxy(POOL_OF_TWO).start().await;
    let node = &cluster.nodes[0];
    let table = [
        ("work_mem", "abc"),
        ("work_mem", "1kB"),
        ("TimeZone", "Mars/Olympus"),
        ("client_encoding", "klingon"),
        ("DateStyle", "nonsense"),
        ("nosuch", "1"),
        ("NoSuch", "1"),
        ("User", "postgres"),
        ("Database", "postgres"),
        ("Replication", "database"),
        ("Options", "-c work_mem=5MB"),
        ("no such", "1"),
        ("a..b", "1"),
        ("log_statement", "all"),
        ("shared_buffers", "1GB"),
        ("log_connections", "on"),
        ("server_version", "1"),
        ("transaction_timeout", "1h"),
        ("transaction_isolation", "serializable"),
        ("role", "nobody"),
        ("session_authorization", "postgres"),
        ("options", "-c"),
        ("options", "-c work_mem"),
        ("options", "-c user=postgres"),
        ("options", "-c No-Such=1"),
        ("options", "-c work_mem=5MB -c geqo=perhaps"),
        ("options", "word"),
    ];
    for (name, value) in table {
        let refusal = async |port| {
            let params = [(name, value), ("client_encoding", "UTF8")];
            let params = if name == "client_encoding" {
                &params[..1]
            } else {
                &params
            };
            match open(port, params).await {
                Err(ConnectError::Server(error)) => (
                    error.severity,
                    error.code,
                    error.message,
                    error.detail,
                    error.hint,
                ),
                Err(error) => panic!("{name} = {value}: {error}"),
                Ok(_) => panic!("{name} = {value} is accepted"),
            }
        };
        let (direct, through) = (
            refusal(node.port()).await,
            refusal(cluster.proxy_port).await,
        );
        assert_eq!(through, direct, "{name} = {value}");
    }
    // Nobody else is concerned.
    let client = open_with(cluster.proxy_port, "-c work_mem=5MB")
        .await
        .expect("a login");
    assert_eq!(client::value(&client, "SHOW work_mem").await, "5MB");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_login_can_say_is_said_at_login() {
    let cluster = Cluster::of(&[15]).proxy(POOL_OF_TWO).start().await;
    cluster.nodes[0].value("CREATE ROLE other_role").await;
    cluster.nodes[0].value("GRANT other_role TO app").await;
    for (options, name, value) in [
        (
            "-c ignore_system_indexes=on -c work_mem=5MB",
            "ignore_system_indexes",
            "on",
        ),
        ("-c role=other_role -c work_mem=5MB", "role", "other_role"),
        ("-e -c work_mem=5MB", "datestyle", "ISO, DMY"),
    ] {
        let client = open_with(cluster.proxy_port, options)
            .await
            .expect("a login");
        for _ in 0..2 {
            let shown = client::value(&client, &format!("SHOW {name}")).await;
            assert_eq!(shown, value, "{options}");
            assert_eq!(client::value(&client, "SHOW work_mem").await, "5MB");
            client::execute(&client, "SET work_mem = '6MB'; RESET ALL").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_of_client_is_asked_about_once() {
    let cluster = Cluster::of(&[15]).proxy(POOL_OF_TWO).start().await;
    let known = "-c work_mem=5MB -c application_name=first";
    let first = open_with(cluster.proxy_port, known).await.expect("a login");
    assert_eq!(client::value(&first, "SHOW work_mem").await, "5MB");
    let holders = [cluster.proxy().await, cluster.proxy().await];
    for holder in &holders {
        client::execute(holder, "BEGIN").await;
    }
    // No server is free, and none is needed.
    let known = "-c work_mem=5MB -c application_name=second -c tandem.key=other";
    let second = open_with(cluster.proxy_port, known).await.expect("a login");
    // Here one is.
    let port = cluster.proxy_port;
    let unknown = tokio::spawn(async move { open_with(port, "-c work_mem=6MB").await });
    for holder in &holders {
        client::execute(holder, "COMMIT").await;
    }
    let third = unknown.await.expect("no panic").expect("a login");
    assert_eq!(client::value(&second, "SHOW work_mem").await, "5MB");
    assert_eq!(
        client::value(&second, "SHOW application_name").await,
        "second"
    );
    assert_eq!(client::value(&third, "SHOW work_mem").await, "6MB");
}
