//! Each transaction goes to a node of its own: what writes to the home of its database, what reads to the nearest one, where it
//! sees what its session has seen before.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use tandem_tests::{Cluster, Program, client, eventually};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::script::{open, play, script};

const LIMIT: Duration = Duration::from_secs(30);
const PORT: &str = "SELECT setting FROM pg_settings WHERE name = 'port'";
const CONFLICTS: &str = "SELECT count(*) FROM tandem.conflict";

/// The port of the node on which a read runs.
async fn read_port(client: &Client) -> String {
    client::value(client, PORT).await
}

/// The port of the node on which a transaction runs that begins with this.
async fn port_after(client: &Client, sql: &str) -> String {
    client::execute(client, "BEGIN").await;
    client::execute(client, sql).await;
    let port = read_port(client).await;
    client::execute(client, "ROLLBACK").await;
    port
}

/// Runs these in the extended protocol, in one batch; the first value of the first row.
async fn in_one_batch(cluster: &Cluster, texts: &[&str]) -> String {
    let mut batch = script();
    for text in texts {
        batch = batch.p("", text).b("", "", &[]).e("", 0);
    }
    let mut connection = open(cluster.proxy_port, &[]).await.expect("a login");
    let heard = play(&mut connection, &batch.s().ready(1)).await;
    connection.close().await;
    let row = heard.lines().find(|line| line.starts_with("D "));
    // Behind the value's length.
    let value = row.and_then(|row| row.rsplit_once("\\x05"));
    value.unwrap_or_else(|| panic!("{heard}")).1.to_owned()
}

async fn no_conflicts(cluster: &Cluster) {
    for node in &cluster.nodes {
        assert_eq!(node.value(CONFLICTS).await, "0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_to_one_home_and_reads_stay_in_the_zone() {
    let cluster = Cluster::of(&[15, 17, 18])
        .proxy("pool_mode = \"transaction\"\nzone = \"here\"")
        .zones(&["here", "there", "there"])
        .schema("CREATE TABLE t (id int PRIMARY KEY, n int)")
        .start()
        .await;
    let mut sessions = Vec::new();
    for _ in 0..6 {
        sessions.push(cluster.proxy().await);
    }
    let (mut homes, mut near) = (HashSet::new(), HashSet::new());
    for session in &sessions {
        near.insert(read_port(session).await);
        for write in [
            "UPDATE t SET n = 1",
            "SELECT * FROM t FOR UPDATE",
            "LOCK TABLE t",
            "CREATE TABLE made (a int)",
        ] {
            homes.insert(port_after(session, write).await);
        }
        // What it will do is not known yet.
        homes.insert(port_after(session, "SELECT 1").await);
        homes.insert(port_after(session, "SET LOCAL work_mem = '5MB'").await);
        // Whatever a text begins with.
        for begin in ["BEGIN -- why", "BEGIN; SELECT 1", "SELECT 1; BEGIN"] {
            client::execute(session, begin).await;
            homes.insert(read_port(session).await);
            client::execute(session, "ROLLBACK").await;
        }
        client::execute(session, "BEGIN READ ONLY").await;
        near.insert(read_port(session).await);
        client::execute(session, "COMMIT").await;
    }
    assert_eq!(homes.len(), 1, "{homes:?}");
    let here = cluster.nodes[0].port().to_string();
    // The home of this database is one of the others.
    assert!(!homes.contains(&here));
    assert_eq!(near, HashSet::from([here]));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_rules_no_job_is_handed_out_twice_and_no_decrement_is_lost() {
    let cluster = Cluster::of(&[15, 17, 18])
        .proxy("pool_mode = \"transaction\"")
        .schema(
            "CREATE TABLE jobs (id int PRIMARY KEY, done bool NOT NULL DEFAULT false);
             CREATE TABLE taken (worker int, job int, PRIMARY KEY (worker, job));
             CREATE TABLE stock (id int PRIMARY KEY, n int NOT NULL);
             INSERT INTO jobs SELECT generate_series(1, 150);
             INSERT INTO stock VALUES (1, 1000)",
        )
        .start()
        .await;
    let mut workers = JoinSet::new();
    for worker in 0..9 {
        let client = cluster.proxy().await;
        workers.spawn(async move {
            loop {
                client::execute(&client, "BEGIN").await;
                let job = client::rows(
                    &client,
                    "SELECT id FROM jobs WHERE NOT done ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED",
                )
                .await;
                let Some(job) = job.first().and_then(|row| row[0].clone()) else {
                    client::execute(&client, "COMMIT").await;
                    return;
                };
                for sql in [
                    format!("UPDATE jobs SET done = true WHERE id = {job}"),
                    format!("INSERT INTO taken VALUES ({worker}, {job})"),
                ] {
                    client::execute(&client, &sql).await;
                }
                client::execute(&client, "COMMIT").await;
                client
                    .execute("UPDATE stock SET n = n - 1 WHERE id = $1", &[&1_i32])
                    .await
                    .expect("an update");
            }
        });
    }
    while let Some(ended) = workers.join_next().await {
        ended.expect("a worker");
    }
    cluster.converge(LIMIT).await;
    for node in &cluster.nodes {
        let counts = "SELECT count(*) || ' ' || count(DISTINCT job) FROM taken";
        assert_eq!(node.value(counts).await, "150 150");
        assert_eq!(node.value("SELECT n FROM stock").await, "850");
    }
    no_conflicts(&cluster).await;
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_reads_its_own_writes_on_whatever_node_it_reads() {
    let cluster = Cluster::of(&[15, 17, 18])
        .proxy("pool_mode = \"transaction\"\nzone = \"here\"")
        .zones(&["here", "there", "there"])
        .schema("CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL)")
        .start()
        .await;
    let mut sessions = JoinSet::new();
    for id in 0..6_i32 {
        let client = cluster.proxy().await;
        sessions.spawn(async move {
            let near = read_port(&client).await;
            let home = port_after(&client, "UPDATE t SET n = n").await;
            client::execute(&client, &format!("INSERT INTO t VALUES ({id}, 0)")).await;
            for round in 1..=60_i32 {
                client
                    .execute("UPDATE t SET n = $1 WHERE id = $2", &[&round, &id])
                    .await
                    .expect("an update");
                // The driver says that it has closed the statement behind the answer: that is one more thing for the home.
                client::execute(&client, "SELECT 1").await;
                let seen = format!("SELECT n, (SELECT setting FROM pg_settings WHERE name = 'port') FROM t WHERE id = {id}");
                let seen = client::rows(&client, &seen).await;
                assert_eq!(seen[0][0].as_deref(), Some(round.to_string().as_str()));
                assert_eq!(seen[0][1].as_deref(), Some(near.as_str()));
            }
            // The home of this database is one of the others.
            assert_ne!(near, home);
        });
    }
    while let Some(ended) = sessions.join_next().await {
        ended.expect("a session");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_session_on_its_server_keeps_it_at_home() {
    let cluster = Cluster::of(&[15, 17, 18])
        .proxy("pool_mode = \"transaction\"\nzone = \"here\"")
        .zones(&["here", "there", "there"])
        .schema("CREATE TABLE t (id serial PRIMARY KEY, n int)")
        .start()
        .await;
    let client = cluster.proxy().await;
    let home = port_after(&client, "UPDATE t SET n = n").await;
    assert_ne!(home, read_port(&client).await);
    for keeps in [
        "PREPARE p AS SELECT 1",
        "CREATE TEMP TABLE mine (a int)",
        "SELECT pg_advisory_lock(1)",
    ] {
        let client = cluster.proxy().await;
        client::execute(&client, keeps).await;
        assert_eq!(read_port(&client).await, home, "{keeps}");
    }
    let client = cluster.proxy().await;
    for n in 1..=3 {
        client::execute(&client, "INSERT INTO t (n) VALUES (1)").await;
        assert_eq!(
            client::value(&client, "SELECT lastval()").await,
            n.to_string()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_is_not_held_up_by_a_node_that_cannot_show_everything() {
    let cluster = Cluster::of(&[15, 17, 18])
        .proxy("pool_mode = \"transaction\"\nzone = \"here\"")
        .zones(&["here", "there", "there"])
        .schema("CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL); INSERT INTO t VALUES (1, 0), (2, 0)")
        .start()
        .await;
    let client = cluster.proxy().await;
    let near = read_port(&client).await;
    assert_eq!(near, cluster.nodes[0].port().to_string());
    cluster.nodes[0]
        .execute("ALTER TABLE t ADD CHECK (n < 1000)")
        .await;
    client::execute(&client, "UPDATE t SET n = 5000 WHERE id = 1").await;
    eventually("the node refuses it", LIMIT, async || {
        let held = "SELECT count(*) FROM tandem.quarantine";
        match cluster.nodes[0].value(held).await.as_str() {
            "1" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    let begun = Instant::now();
    for n in 1..=20 {
        client::execute(&client, &format!("UPDATE t SET n = {n} WHERE id = 2")).await;
        let seen = client::value(&client, "SELECT n FROM t WHERE id = 2").await;
        assert_eq!(seen, n.to_string());
    }
    assert_eq!(
        client::value(&client, "SELECT n FROM t WHERE id = 1").await,
        "5000"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_dies_has_a_successor_and_sessions_stay() {
    let cluster = Cluster::of(&[15, 17, 18])
        .proxy("pool_mode = \"transaction\"")
        .probe_interval("100ms")
        .schema("CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL); INSERT INTO t VALUES (1, 0)")
        .start()
        .await;
    let session = cluster.proxy().await;
    let home = port_after(&session, "UPDATE t SET n = n").await;
    let dies = cluster
        .nodes
        .iter()
        .position(|node| node.port().to_string() == home)
        .expect("one of them");
    let others = cluster
        .nodes
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != dies);
    client::execute(&session, "UPDATE t SET n = 1").await;
    cluster.converge(LIMIT).await;
    cluster.nodes[dies].kill9().await;
    eventually("a write finds a successor", LIMIT, async || {
        client::try_rows(&session, "UPDATE t SET n = 2").await
    })
    .await;
    let successor = port_after(&session, "UPDATE t SET n = n").await;
    assert!(
        successor != home
            && others
                .into_iter()
                .any(|(_, node)| node.port().to_string() == successor)
    );
}

const BRANCHES: &str = r#"
[placement.branch]
strategy = "hash"
[[affinity]]
placement = "branch"
tables = { branches = "id", tellers = { column = "id", key = "(id - 1) / 10 + 1" } }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_key_has_one_home_however_it_is_said() {
    let cluster = Cluster::of(&[15, 17, 18])
        .proxy("pool_mode = \"transaction\"")
        .rules(BRANCHES)
        .schema(
            "CREATE TABLE branches (id int PRIMARY KEY, port text);
             CREATE TABLE tellers (id int PRIMARY KEY, port text);
             INSERT INTO branches SELECT generate_series(1, 40);
             INSERT INTO tellers SELECT generate_series(1, 400)",
        )
        .start()
        .await;
    let client = cluster.proxy().await;
    const SET: &str = "SET port = current_setting('port')";
    let mut homes = HashSet::new();
    for id in 1..=40_i32 {
        let teller = id * 10;
        let mut ports = HashSet::new();
        for sql in [
            format!("UPDATE branches {SET} WHERE id = {id} RETURNING port"),
            format!("update branches {SET} where id = '{id}' returning port"),
            format!(
                "INSERT INTO branches VALUES ({id}) ON CONFLICT (id) DO UPDATE {SET} RETURNING branches.port"
            ),
            format!("UPDATE tellers {SET} WHERE id = {teller} RETURNING port"),
            format!(
                "/* why */ UPDATE tellers {SET} WHERE id IN ({teller}, {}) RETURNING port",
                teller - 9
            ),
        ] {
            ports.insert(client::value(&client, &sql).await);
        }
        let sql = format!("UPDATE branches {SET} WHERE id = $1 RETURNING port");
        // In binary form, and as another type.
        let row = client.query_one(&sql, &[&id]).await.expect("a row");
        ports.insert(row.get(0));
        let sql = format!("UPDATE branches {SET} WHERE id = $1::bigint RETURNING port");
        let row = client
            .query_one(&sql, &[&i64::from(id)])
            .await
            .expect("a row");
        ports.insert(row.get(0));
        // With the BEGIN in one batch, as some drivers send it.
        let sql = format!("UPDATE branches {SET} WHERE id = {id} RETURNING port");
        ports.insert(in_one_batch(&cluster, &["BEGIN", &sql, "COMMIT"]).await);
        // The first statement of a block decides for all of it.
        client::execute(&client, "BEGIN").await;
        client::execute(&client, "SET LOCAL work_mem = '5MB'").await;
        client::execute(
            &client,
            &format!("UPDATE branches SET port = '' WHERE id = {id}"),
        )
        .await;
        ports.insert(
            client::value(
                &client,
                &format!("UPDATE tellers {SET} WHERE id = 1 RETURNING port"),
            )
            .await,
        );
        client::execute(&client, "ROLLBACK").await;
        assert_eq!(ports.len(), 1, "{id}: {ports:?}");
        homes.extend(ports);
    }
    assert_eq!(homes.len(), 3);
    no_conflicts(&cluster).await;
    cluster.assert_converged().await;
}

const ONE_BRANCH: &str = include_str!("../../../examples/pgbench/one-branch.sql");

#[tokio::test(flavor = "multi_thread")]
async fn transactions_within_their_branch_never_conflict_in_any_protocol() {
    let rules = include_str!("../../../examples/pgbench/rules.toml");
    let cluster = Cluster::of(&[15, 17, 18])
        .pgbench(3)
        .proxy("pool_mode = \"transaction\"")
        .rules(rules)
        .start()
        .await;
    let script = cluster.dir().join("one_branch.sql");
    std::fs::write(&script, ONE_BRANCH).expect("a script");
    for mode in ["simple", "extended", "prepared"] {
        let pgbench = Program::pgbench(cluster.nodes[0].install()).port(cluster.proxy_port);
        let ran = pgbench
            .args([
                "-n", "-M", mode, "-s", "3", "-c", "8", "-j", "8", "-t", "60", "-f",
            ])
            .args([&script])
            .run(LIMIT)
            .await
            .expect_success();
        let failed = "number of failed transactions: 0";
        assert!(ran.stdout.contains(failed), "{mode}: {}", ran.all());
    }
    cluster.converge(LIMIT).await;
    let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) || ' ' || (SELECT sum(tbalance) FROM pgbench_tellers) \
        || ' ' || (SELECT sum(bbalance) FROM pgbench_branches) || ' ' || (SELECT sum(delta) FROM pgbench_history) \
        || ' ' || (SELECT count(*) FROM pgbench_history)";
    let sums = cluster.nodes[0].value(sums).await;
    let parts: Vec<&str> = sums.split(' ').collect();
    assert_eq!(parts[..4], [parts[0]; 4], "{sums}");
    assert_eq!(parts[4], "1440");
    no_conflicts(&cluster).await;
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_leave_a_node_that_is_behind_until_it_has_caught_up() {
    let cluster = Cluster::of(&[15, 17])
        .relays()
        .proxy("pool_mode = \"transaction\"\nzone = \"here\"\nread_lag_max = \"300ms\"")
        .zones(&["here", "there"])
        .rules("[default]\nwrite = \"home\"\n[read]\nconsistency = \"eventual\"\n")
        .schema("CREATE TABLE t (id int PRIMARY KEY, n int)")
        .start()
        .await;
    let (near, other) = (&cluster.nodes[0], &cluster.nodes[1]);
    let reads_on = async |port: u16| {
        eventually("reads go there", LIMIT, async || {
            // One that was not there before.
            let found = read_port(&cluster.proxy().await).await;
            match found == port.to_string() {
                true => Ok(()),
                false => Err(found),
            }
        })
        .await;
    };
    let session = cluster.proxy().await;
    assert_eq!(read_port(&session).await, near.port().to_string());
    cluster.relays[0].silence_only("apply 2");
    other.execute("INSERT INTO t VALUES (1, 1)").await;
    reads_on(other.port()).await;
    assert_eq!(read_port(&session).await, other.port().to_string());
    let status = cluster.daemon.status().await.expect("a status");
    let behind = [0, 1].map(|node| status["nodes"][node]["behind"].as_bool());
    assert_eq!(behind, [Some(true), Some(false)]);
    assert_eq!(status["nodes"][0]["health"], "up", "its keys stay");
    cluster.relays[0].heal();
    reads_on(near.port()).await;
    cluster.assert_converged().await;
    no_conflicts(&cluster).await;
}
