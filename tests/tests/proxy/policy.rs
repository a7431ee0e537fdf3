//! What the rules ask of writes: those over homes, and those without a key, are told of or refused, in each protocol, and
//! the session goes on as behind any other error.

use std::time::Duration;

use tandem_tests::{Cluster, client, cluster::ClusterBuilder, daemon::http, eventually};
use tandem_wire::Connection;

use crate::{
    console::{console, with_console},
    script::{Script, open, play, script},
};

const LIMIT: Duration = Duration::from_secs(30);

/// Keys with known homes: 1 on n1, 2 on n2, 3 on n3.
const STATIONS: &str = r#"
[placement.station]
strategy = "map"
map = { 1 = "n1", 2 = "n2", 3 = "n3" }
[[affinity]]
placement = "station"
tables = { bikes = "station", rentals = "station" }
"#;
const SCHEMA: &str =
    "CREATE TABLE bikes (id int, station int, port text, PRIMARY KEY (id, station));
     CREATE TABLE rentals (id int PRIMARY KEY, station int);
     CREATE TABLE log (id int PRIMARY KEY);
     INSERT INTO bikes SELECT n, n FROM generate_series(1, 3) n";

fn stations(policy: &str) -> ClusterBuilder {
    Cluster::of(&[15, 17, 18])
        .proxy("pool_mode = \"transaction\"")
        .rules(&format!("{STATIONS}{policy}"))
        .schema(SCHEMA)
}

async fn session(cluster: &Cluster) -> Connection {
    open(cluster.proxy_port, &[]).await.expect("a login")
}

/// What comes: of each message its type; of errors and notices their SQLSTATE too, of the end of a batch the status.
async fn heard(connection: &mut Connection, script: Script) -> String {
    let lines = play(connection, &script).await;
    let short = |line: &str| {
        let (tag, body) = line.split_once(' ').unwrap_or((line, ""));
        let code = || {
            body.split("\\x00")
                .find_map(|field| field.strip_prefix('C'))
        };
        match tag {
            "E" | "N" => format!("{tag}:{}", code().unwrap_or("?")),
            "Z" => format!("Z:{body}"),
            tag => tag.to_owned(),
        }
    };
    lines.lines().map(short).collect::<Vec<_>>().join(" ")
}

fn update(station: u32) -> String {
    format!("UPDATE bikes SET port = current_setting('port') WHERE station = {station}")
}

/// Parse, Bind, Execute of each, with the station as a parameter.
fn updates(stations: &[&str]) -> Script {
    let text = "UPDATE bikes SET port = 'x' WHERE station = $1";
    let each = |batch: Script, station: &&str| batch.p("", text).b("", "", &[station]).e("", 0);
    stations.iter().fold(script(), each)
}

async fn metrics(cluster: &Cluster) -> String {
    let token = cluster.token();
    let answer = http(cluster.admin_port, "GET", "/metrics", Some(&token)).await;
    answer.expect("metrics")
}

async fn counts(cluster: &Cluster, line: &str) {
    let metrics = metrics(cluster).await;
    assert!(
        metrics.lines().any(|found| found == line),
        "{line}\n{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_over_homes_is_refused_in_each_protocol_and_the_session_goes_on() {
    let cluster = stations("cross_home = \"reject\"").start().await;
    let mut client = session(&cluster).await;
    let both = "UPDATE bikes SET port = 'both' WHERE station IN (1, 2)";

    // By itself, and with what was sent before and behind it.
    assert_eq!(
        heard(&mut client, script().q(both).ready(1)).await,
        "E:0A000 Z:I"
    );
    let between = script().q(&update(1)).q(both).q(&update(2)).ready(3);
    assert_eq!(heard(&mut client, between).await, "C Z:I E:0A000 Z:I C Z:I");
    let text = script()
        .q("SELECT 1; INSERT INTO bikes VALUES (9, 1), (9, 3)")
        .ready(1);
    assert_eq!(heard(&mut client, text).await, "E:0A000 Z:I");

    // In a block, which fails with it, and takes its end only.
    let block = script()
        .q("BEGIN")
        .q(&update(1))
        .q(&update(2))
        .q(&update(1))
        .q("COMMIT")
        .ready(5);
    assert_eq!(
        heard(&mut client, block).await,
        "C Z:T C Z:T E:0A000 Z:E E:25P02 Z:E C Z:I"
    );
    for text in ["BEGIN", &update(1), "SAVEPOINT a"] {
        heard(&mut client, script().q(text).ready(1)).await;
    }
    assert_eq!(
        heard(&mut client, script().q(&update(3)).ready(1)).await,
        "E:0A000 Z:E"
    );
    let back = script()
        .q("ROLLBACK TO a")
        .ready(1)
        .q(&update(1))
        .ready(1)
        .q("COMMIT")
        .ready(1);
    assert_eq!(heard(&mut client, back).await, "C Z:T C Z:T C Z:I");

    // Extended: one transaction up to the Sync; answers before the error keep their places.
    assert_eq!(
        heard(&mut client, updates(&["1"]).s().ready(1)).await,
        "1 2 C Z:I"
    );
    let batch = updates(&["1", "2", "1"]).s().ready(1);
    assert_eq!(heard(&mut client, batch).await, "1 2 C 1 E:0A000 Z:I");
    let batches = updates(&["1", "2"]).s();
    let batches = batches
        .p("", "SELECT 1")
        .b("", "", &[])
        .e("", 0)
        .s()
        .ready(2);
    assert_eq!(
        heard(&mut client, batches).await,
        "1 2 C 1 E:0A000 Z:I 1 2 D C Z:I"
    );
    // In a block, message by message.
    let begin = script().p("", "BEGIN").b("", "", &[]).e("", 0).s().ready(1);
    assert_eq!(heard(&mut client, begin).await, "1 2 C Z:T");
    assert_eq!(
        heard(&mut client, updates(&["2"]).s().ready(1)).await,
        "1 2 C Z:T"
    );
    assert_eq!(
        heard(&mut client, updates(&["1"]).s().ready(1)).await,
        "1 E:0A000 Z:E"
    );
    assert_eq!(
        heard(&mut client, updates(&["2"]).s().ready(1)).await,
        "E:25P02 Z:E"
    );
    assert_eq!(
        heard(&mut client, script().q("ROLLBACK").ready(1)).await,
        "C Z:I"
    );
    // A statement that was prepared before.
    let prepared = script()
        .p("u", "UPDATE bikes SET port = 'y' WHERE station = $1")
        .s()
        .ready(1);
    assert_eq!(heard(&mut client, prepared).await, "1 Z:I");
    let all = script()
        .b("", "u", &["1"])
        .e("", 0)
        .b("", "u", &["3"])
        .e("", 0)
        .s()
        .ready(1);
    assert_eq!(heard(&mut client, all).await, "2 C E:0A000 Z:I");
    let one = script().b("", "u", &["3"]).e("", 0).s().ready(1);
    assert_eq!(heard(&mut client, one).await, "2 C Z:I");
    client.close().await;

    cluster.converge(LIMIT).await;
    let left = "SELECT string_agg(station || ' ' || (port IN ('both', 'x', 'y'))::text, ', ' ORDER BY station) FROM bikes";
    // What was refused, and what shared its transaction, is nowhere: of the batches with station 1, those that it was alone in.
    assert_eq!(
        cluster.nodes[0].value(left).await,
        "1 true, 2 false, 3 true"
    );
    counts(
        &cluster,
        "tandem_cross_home_writes_total{outcome=\"refused\"} 9",
    )
    .await;
    counts(
        &cluster,
        "tandem_cross_home_writes_total{outcome=\"allowed\"} 0",
    )
    .await;
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_refusal_names_keys_homes_and_the_mend() {
    let cluster = stations("cross_home = \"reject\"").start().await;
    let client = cluster.proxy().await;
    client::execute(&client, "BEGIN").await;
    client::execute(&client, &update(1)).await;
    let refused = client
        .simple_query(&update(2))
        .await
        .expect_err("over homes");
    let error = refused.as_db_error().expect("an error of the database");
    assert_eq!(error.severity(), "ERROR");
    assert_eq!(
        error.message(),
        "a write on node n1 has a key that is at home on another node"
    );
    assert_eq!(
        error.detail(),
        Some(
            "The key station:2 is at home on node n2 (listed in the map). The transaction is on node n1: \
             home of key station:1 (listed in the map), named by the statement."
        )
    );
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("transactions of their own"))
    );
    client::execute(&client, "ROLLBACK").await;
    // By itself it is at home.
    client::execute(&client, &update(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_keeps_its_server_is_looked_at_too() {
    let cluster = stations("cross_home = \"reject\"").start().await;
    let mut client = session(&cluster).await;
    assert_eq!(
        heard(
            &mut client,
            script().q("CREATE TEMP TABLE own (a int)").ready(1)
        )
        .await,
        "C Z:I"
    );
    let mut refused = 0;
    for station in 1..=3 {
        match heard(&mut client, script().q(&update(station)).ready(1))
            .await
            .as_str()
        {
            "C Z:I" => {}
            "E:0A000 Z:I" => refused += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!(refused, 2);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_over_homes_is_told_of_and_done() {
    let cluster = stations("cross_home = \"notice\"").start().await;
    let mut client = session(&cluster).await;
    let both = script()
        .q("UPDATE bikes SET port = 'both' WHERE station IN (1, 2)")
        .ready(1);
    assert_eq!(heard(&mut client, both).await, "N:01000 C Z:I");
    let block = script()
        .q("BEGIN")
        .ready(1)
        .q(&update(1))
        .ready(1)
        .q(&update(2))
        .ready(1);
    assert_eq!(heard(&mut client, block).await, "C Z:T C Z:T N:01000 C Z:T");
    // Nothing is to be said of what has no key, or only reads.
    let more = script()
        .q("INSERT INTO log VALUES (1)")
        .ready(1)
        .q("SELECT FROM bikes WHERE station = 2")
        .ready(1);
    assert_eq!(heard(&mut client, more).await, "C Z:T T D C Z:T");
    assert_eq!(
        heard(&mut client, script().q("COMMIT").ready(1)).await,
        "C Z:I"
    );
    let batch = updates(&["1", "2"]).s().ready(1);
    assert_eq!(
        heard(&mut client, batch).await.matches("N:01000").count(),
        1
    );
    client.close().await;
    counts(
        &cluster,
        "tandem_cross_home_writes_total{outcome=\"noticed\"} 3",
    )
    .await;
    cluster.converge(LIMIT).await;
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_a_key_is_refused_where_one_is_required() {
    let cluster = stations("require_key = true").start().await;
    let mut client = session(&cluster).await;
    for (sql, wanted) in [
        ("UPDATE bikes SET port = 'all'", "E:0A000 Z:I"),
        ("UPDATE bikes SET port = 'all' WHERE id = 1", "E:0A000 Z:I"),
        (
            "/* tandem.key='station:2' */ UPDATE bikes SET port = 'all' WHERE id = 2",
            "C Z:I",
        ),
        ("INSERT INTO log VALUES (1)", "C Z:I"),
        (
            "PREPARE p AS UPDATE bikes SET port = 'p' WHERE station = $1",
            "C Z:I",
        ),
        ("DISCARD ALL", "C Z:I"),
        ("SET tandem.key = 'station:3'", "C Z:I"),
        ("UPDATE bikes SET port = 'all' WHERE id = 3", "C Z:I"),
    ] {
        assert_eq!(
            heard(&mut client, script().q(sql).ready(1)).await,
            wanted,
            "{sql}"
        );
    }
    client.close().await;
    counts(&cluster, "tandem_keyless_writes_refused_total 2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_unit_is_explained_to_who_asks_and_counted() {
    let cluster = with_console(stations("")).await;
    let mut client = session(&cluster).await;
    let set = script()
        .q("SET tandem.explain = on")
        .ready(1)
        .q("SHOW tandem.explain")
        .ready(1);
    let told = play(&mut client, &set).await;
    assert!(
        told.lines()
            .any(|line| line.starts_with("D ") && line.ends_with("on")),
        "{told}"
    );
    let told = play(&mut client, &script().q(&update(2)).q(&update(3)).ready(2)).await;
    let lines: Vec<&str> = told.lines().collect();
    for (line, node) in [(0, 2), (3, 3)] {
        let wanted = format!(
            "node n{node}: home of key station:{node} (listed in the map), named by the statement"
        );
        assert!(
            lines[line].starts_with("N ") && lines[line].contains(&wanted),
            "{told}"
        );
    }
    assert!(lines[1].starts_with("C ") && lines.len() == 6, "{told}");
    // A block is decided once.
    let block = script()
        .q("BEGIN")
        .ready(1)
        .q(&update(1))
        .ready(1)
        .q(&update(1))
        .ready(1)
        .q("COMMIT")
        .ready(1);
    assert_eq!(
        heard(&mut client, block).await,
        "C Z:T N:00000 C Z:T C Z:T C Z:I"
    );
    let batch = updates(&["1"]).s().ready(1);
    assert_eq!(heard(&mut client, batch).await, "N:00000 1 2 C Z:I");
    let off = script()
        .q("SET tandem.explain = off")
        .ready(1)
        .q(&update(1))
        .ready(1);
    assert!(heard(&mut client, off).await.ends_with("C Z:I C Z:I"));
    client.close().await;

    counts(&cluster, "tandem_routed_total{reason=\"key\"} 5").await;
    counts(
        &cluster,
        "tandem_rule_routed_total{kind=\"placement\",rule=\"station\"} 5",
    )
    .await;
    let ops = console(&cluster, "ops").await;
    let rules = client::rows(&ops, "SHOW RULES").await;
    let placement = rules
        .iter()
        .find(|row| row[0].as_deref() == Some("placement"));
    assert_eq!(placement.expect("a row")[3].as_deref(), Some("5"));
    let route = client::rows(
        &ops,
        "SHOW ROUTE 'UPDATE bikes SET port = 1 WHERE station = 2'",
    )
    .await;
    assert_eq!(route[0][0].as_deref(), Some("n2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn advice_is_told_counted_and_not_followed() {
    let rules = "mode = \"advise\"\n";
    let cluster = with_console(
        Cluster::of(&[15, 17, 18])
            .proxy("pool_mode = \"transaction\"\nzone = \"here\"")
            .zones(&["here", "there", "there"])
            .rules(&format!("{rules}{STATIONS}cross_home = \"reject\""))
            .schema(SCHEMA),
    )
    .await;
    let client = cluster.proxy().await;
    let sql = format!("{} RETURNING port", update(2));
    assert_eq!(
        client::value(&client, &sql).await,
        cluster.nodes[0].port().to_string()
    );
    let ops = console(&cluster, "ops").await;
    let route = client::rows(
        &ops,
        "SHOW ROUTE 'UPDATE bikes SET port = 1 WHERE station = 2'",
    )
    .await;
    let wanted = "node n1: advise: would go to node n2: home of key station:2 (listed in the map), named by the statement";
    assert_eq!(route[0][0].as_deref(), Some("n1"));
    assert_eq!(route[0][1].as_deref(), Some(wanted));
    counts(&cluster, "tandem_advised_writes_total 1").await;
    eventually("the log tells of it", LIMIT, async || {
        match cluster.daemon.log() {
            log if log.contains("would go to node n2: home of key station:2") => Ok(()),
            log => Err(log),
        }
    })
    .await;
}
