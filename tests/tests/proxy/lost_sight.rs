//! What a session has seen, as a position that others take over, and what its client is told when it goes on at a node that may
//! not have all of that.

use std::time::{Duration, Instant};

use tandem_tests::{Cluster, client, daemon::http};
use tandem_wire::Connection;

use crate::script::{open, play, script};

const LIMIT: Duration = Duration::from_secs(20);

/// Writes of even keys go to node 2, those of odd ones to node 3; reads go to node 1.
async fn cluster(read: &str) -> Cluster {
    let rules = format!(
        "[placement.side]\nstrategy = \"map\"\nmap = {{ 0 = \"n2\", 1 = \"n3\" }}\n\
         [[affinity]]\nplacement = \"side\"\ntables = {{ own = {{ column = \"id\", key = \"id % 2\" }} }}\n\
         [read]\n{read}\n"
    );
    Cluster::of(&[15, 17, 18])
        .relays()
        .proxy("pool_mode = \"transaction\"\nzone = \"here\"")
        .zones(&["here", "there", "there"])
        .rules(&rules)
        .schema(
            "CREATE TABLE own (id int PRIMARY KEY, n int NOT NULL);
             INSERT INTO own SELECT i, 0 FROM generate_series(1, 10) i;",
        )
        .start()
        .await
}

async fn session(cluster: &Cluster) -> Connection {
    open(cluster.proxy_port, &[]).await.expect("a login")
}

/// All that comes for a Query.
async fn heard(connection: &mut Connection, sql: &str) -> String {
    play(connection, &script().q(sql).ready(1)).await
}

/// All that comes for a Query, which succeeds without a notice.
async fn quietly(connection: &mut Connection, sql: &str) -> String {
    let heard = heard(connection, sql).await;
    let is_told = |line: &str| line.starts_with("N ") || line.starts_with("E ");
    assert!(!heard.lines().any(is_told), "{sql}: {heard}");
    heard
}

/// Kills a node, and waits until the proxy knows.
async fn kill(cluster: &Cluster, node: usize) {
    cluster.nodes[node].kill9().await;
    let is_down = |status: &serde_json::Value| status["nodes"][node]["health"] == "down";
    cluster
        .daemon
        .status_when("its end is noticed", LIMIT, is_down)
        .await;
}

const READ: &str = "SELECT current_setting('port'), n FROM own WHERE id = 2";

#[tokio::test(flavor = "multi_thread")]
async fn who_saw_something_on_a_node_that_died_is_told_once() {
    let cluster = cluster("consistency = \"session\"").await;
    let (mut writes, mut reads) = (session(&cluster).await, session(&cluster).await);
    let mut early = session(&cluster).await;
    // What others have waited for is known to be on node 1.
    quietly(&mut early, "UPDATE own SET n = 1 WHERE id = 4").await;
    quietly(&mut reads, "UPDATE own SET n = 1 WHERE id = 6").await;
    let seen = quietly(&mut reads, READ).await;
    assert!(
        seen.contains(&cluster.nodes[0].port().to_string()),
        "{seen}"
    );
    quietly(&mut writes, "UPDATE own SET n = 1 WHERE id = 2").await;
    kill(&cluster, 1).await;
    let told = heard(&mut writes, READ).await;
    let notice = told.lines().next().unwrap_or_default();
    assert!(
        notice.starts_with("N SNOTICE") && notice.contains("C01000") && notice.contains("node n2"),
        "{told}"
    );
    assert!(told.ends_with("Z I\n"), "{told}");
    for connection in [&mut writes, &mut reads, &mut early] {
        quietly(connection, READ).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_lost_with_a_node_is_an_error_where_the_rules_say_so() {
    let cluster = cluster("lost = \"error\"").await;
    let (mut plain, mut block) = (session(&cluster).await, session(&cluster).await);
    let mut batch = session(&cluster).await;
    for connection in [&mut plain, &mut block, &mut batch] {
        quietly(connection, "UPDATE own SET n = 1 WHERE id = 2").await;
    }
    kill(&cluster, 1).await;
    let told = heard(&mut plain, READ).await;
    assert!(
        told.starts_with("E SERROR") && told.contains("C55000") && told.ends_with("Z I\n"),
        "{told}"
    );
    quietly(&mut plain, READ).await;

    quietly(&mut block, "BEGIN").await;
    let told = heard(&mut block, "UPDATE own SET n = 2 WHERE id = 2").await;
    assert!(told.contains("C55000") && told.ends_with("Z E\n"), "{told}");
    let told = heard(&mut block, READ).await;
    assert!(told.contains("C25P02"), "{told}");
    quietly(&mut block, "ROLLBACK").await;
    quietly(&mut block, "UPDATE own SET n = 2 WHERE id = 2").await;

    let read = script().p("", READ).b("", "", &[]).e("", 0).s().ready(1);
    let told = play(&mut batch, &read).await;
    assert!(
        told.starts_with("E SERROR") && told.contains("C55000") && told.ends_with("Z I\n"),
        "{told}"
    );
    let told = play(&mut batch, &read).await;
    assert!(told.starts_with("1 ") && told.ends_with("Z I\n"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_cannot_wait_any_longer_goes_on_with_a_notice() {
    let cluster = cluster("consistency = \"session\"").await;
    // What node 2 writes does not reach node 3 for now.
    cluster.relays[2].silence_only("apply 2");
    let mut connection = session(&cluster).await;
    quietly(&mut connection, "UPDATE own SET n = 1 WHERE id = 2").await;
    let told = heard(&mut connection, "UPDATE own SET n = 1 WHERE id = 1").await;
    let notice = told.lines().next().unwrap_or_default();
    assert!(
        notice.starts_with("N SNOTICE")
            && notice.contains("C01000")
            && notice.contains("node n3")
            && notice.contains("node n2"),
        "{told}"
    );
    assert!(told.ends_with("Z I\n"), "{told}");
    // It has been told, so nothing is waited for there.
    let begun = Instant::now();
    for _ in 0..3 {
        quietly(&mut connection, "UPDATE own SET n = 2 WHERE id = 1").await;
    }
    assert!(begun.elapsed() < Duration::from_secs(1));
    let token = cluster.token();
    let answer = http(cluster.admin_port, "GET", "/metrics", Some(&token)).await;
    let answer = answer.expect("metrics");
    for line in [
        "tandem_consistency_waits_total{node=\"n3\"} 1",
        "tandem_consistency_timeouts_total{node=\"n3\"} 1",
        "tandem_consistency_timeouts_total{node=\"n1\"} 0",
        "tandem_latency_seconds_count{node=\"n3\",span=\"consistency\"} 1",
    ] {
        assert!(answer.contains(line), "{line}: {answer}");
    }
    cluster.relays[2].heal();
    // On another node that has nothing to do with it, all is there.
    let seen = quietly(
        &mut connection,
        "SELECT n FROM own WHERE id IN (1, 2) ORDER BY n",
    )
    .await;
    assert_eq!(seen.matches("D ").count(), 2, "{seen}");
    client::execute(&cluster.proxy().await, "UPDATE own SET n = 3 WHERE id = 1").await;
    cluster.assert_converged().await;
}

/// What `SHOW tandem.position` answers with.
async fn position(connection: &mut Connection) -> String {
    let heard = quietly(connection, "SHOW tandem.position").await;
    let row = heard.lines().find(|line| line.starts_with("D "));
    let row = row.unwrap_or_else(|| panic!("{heard}"));
    row.find("n2:")
        .map_or_else(String::new, |start| row[start..].to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_over_a_position_sees_what_was_seen_there() {
    let cluster = cluster("consistency = \"session\"").await;
    cluster.relays[0].delay("apply 2", Duration::from_millis(100));
    let mut writes = session(&cluster).await;
    assert_eq!(position(&mut writes).await, "");
    quietly(&mut writes, "UPDATE own SET n = 1 WHERE id = 2").await;
    let position = position(&mut writes).await;
    assert!(position.starts_with("n2:0/"), "{position}");
    let mut other = session(&cluster).await;
    let here = cluster.nodes[0].port().to_string();
    let old = quietly(&mut other, READ).await;
    assert!(
        old.contains(&here) && old.contains("\\x00\\x010\n"),
        "{old}"
    );
    let mut takes_over = session(&cluster).await;
    let set = format!("SET tandem.position = '{position}'");
    let heard = quietly(&mut takes_over, &set).await;
    assert_eq!(heard, "C SET\\x00\nZ I\n");
    let seen = quietly(&mut takes_over, READ).await;
    assert!(
        seen.contains(&here) && seen.contains("\\x00\\x011\n"),
        "{seen}"
    );

    // In the extended protocol, at once and step by step.
    let driver = cluster.proxy().await;
    client::execute(&driver, "UPDATE own SET n = 2 WHERE id = 2").await;
    let row = driver.query_one("SHOW tandem.position", &[]).await;
    let later: String = row.expect("a row").get(0);
    assert!(later.starts_with("n2:0/") && later != position, "{later}");
    let mut batch = session(&cluster).await;
    let set = format!("SET tandem.position = '{later}'");
    let set = script()
        .p("", &set)
        .b("", "", &[])
        .dp("")
        .e("", 0)
        .s()
        .ready(1);
    let heard = play(&mut batch, &set).await;
    assert_eq!(heard, "1 \n2 \nn \nC SET\\x00\nZ I\n");
    let seen = quietly(&mut batch, READ).await;
    assert!(
        seen.contains(&here) && seen.contains("\\x00\\x012\n"),
        "{seen}"
    );
    let statement = driver.prepare("SHOW tandem.position").await;
    let statement = statement.expect("prepared");
    for _ in 0..2 {
        client::execute(&driver, "UPDATE own SET n = 3 WHERE id = 4").await;
        let row = driver.query_one(&statement, &[]).await.expect("a row");
        assert!(row.get::<_, String>(0).starts_with("n2:0/"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_is_none_is_refused_and_one_that_never_comes_is_waited_for_in_vain() {
    let cluster = cluster("consistency = \"session\"").await;
    let mut connection = session(&cluster).await;
    for text in ["here", "nowhere:0/1", "n2:7", "n2:0/1,", "n2"] {
        let told = heard(&mut connection, &format!("SET tandem.position = '{text}'")).await;
        assert!(
            told.starts_with("E SERROR") && told.contains("C22023") && told.ends_with("Z I\n"),
            "{text}: {told}"
        );
    }
    let several = "SET tandem.position = 'n2:0/1'; SELECT 1";
    let told = heard(&mut connection, several).await;
    assert!(told.contains("C22023"), "{told}");
    quietly(&mut connection, "SET tandem.position = ' n2:0/1, n3:0/1'").await;
    quietly(&mut connection, "SET tandem.position = ''").await;
    quietly(&mut connection, "BEGIN").await;
    let told = heard(&mut connection, "SET tandem.position = 'here'").await;
    assert!(told.contains("C22023") && told.ends_with("Z E\n"), "{told}");
    quietly(&mut connection, "ROLLBACK").await;

    quietly(&mut connection, "SET tandem.position = 'n2:FFFF/0'").await;
    // A read goes to where that is said to be, a write elsewhere cannot.
    let seen = quietly(&mut connection, READ).await;
    assert!(
        seen.contains(&cluster.nodes[1].port().to_string()),
        "{seen}"
    );
    let mut connection = session(&cluster).await;
    quietly(&mut connection, "SET tandem.position = 'n2:FFFF/0'").await;
    let told = heard(&mut connection, "UPDATE own SET n = 1 WHERE id = 1").await;
    assert!(
        told.starts_with("N SNOTICE") && told.contains("C01000"),
        "{told}"
    );
}
