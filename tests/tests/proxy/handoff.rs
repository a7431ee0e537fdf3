//! A node is taken out of service and back while clients work: their keys move, and they notice nothing.

use std::time::{Duration, Instant};

use tandem_tests::{Cluster, Node, client, eventually};
use tokio_postgres::Client;

use crate::console::{console, with_console};

const LIMIT: Duration = Duration::from_secs(60);
const TRANSACTIONS: &str = "pool_mode = \"transaction\"";
const CONFLICTS: &str = "SELECT count(*) FROM tandem.conflict";
/// Connections of clients.
const CLIENTS: &str = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, n int)";

/// `tandem drain` or `tandem resume`: whether it has done so, and what it says.
async fn tandem(cluster: &Cluster, verb: &str, args: &[&str]) -> (bool, String) {
    let ran = cluster.daemon.command(verb).args(args).run(LIMIT).await;
    (ran.status.success(), ran.all())
}

async fn done(cluster: &Cluster, verb: &str, args: &[&str]) -> String {
    let (is_done, said) = tandem(cluster, verb, args).await;
    assert!(is_done, "{verb} {args:?}: {said}");
    said
}

async fn health(cluster: &Cluster, node: &str) -> String {
    let status = cluster.daemon.status().await.expect("a status");
    let nodes = status["nodes"].as_array().expect("nodes");
    let of_name = nodes.iter().find(|one| one["name"] == node);
    let health = of_name.and_then(|one| one["health"].as_str());
    health.expect("a node of this name").to_owned()
}

/// The port of the node on which this session's next write runs.
async fn home(session: &Client) -> String {
    client::execute(session, "BEGIN").await;
    client::execute(session, "UPDATE t SET n = n").await;
    let port = client::value(session, "SELECT current_setting('port')").await;
    client::execute(session, "ROLLBACK").await;
    port
}

/// The node that writes without a key go to, and another one.
async fn home_and_another(cluster: &Cluster) -> (&Node, &Node) {
    let port = home(&cluster.proxy().await).await;
    let (home, others): (Vec<&Node>, Vec<&Node>) = cluster
        .nodes
        .iter()
        .partition(|node| node.port().to_string() == port);
    (home[0], others[0])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_takes_long_is_dealt_with_as_configured() {
    let proxy = format!("{TRANSACTIONS}\nhandoff_soft = \"50ms\"\nhandoff_hard = \"600ms\"");
    let cluster = with_console(Cluster::of(&[15, 17]).proxy(&proxy).schema(TABLE)).await;
    let ops = console(&cluster, "ops").await;
    let (node, other) = home_and_another(&cluster).await;
    let (long, others) = (cluster.proxy().await, cluster.proxy().await);
    let name = node.name.as_str();

    client::execute(&long, "BEGIN; INSERT INTO t VALUES (1, 1)").await;
    let args = [name];
    let drain = tandem(&cluster, "drain", &args);
    let work = async {
        // Nobody waits for it.
        for id in 10..20 {
            let begun = Instant::now();
            client::execute(&others, &format!("INSERT INTO t VALUES ({id}, 1)")).await;
            assert!(begun.elapsed() < Duration::from_millis(500));
        }
    };
    let ((is_done, said), ()) = tokio::join!(drain, work);
    assert!(!is_done, "{said}");
    assert!(said.contains("stays in service"), "{said}");
    assert!(
        said.contains("is in a transaction that takes long"),
        "{said}"
    );
    assert_eq!(health(&cluster, name).await, "up");
    client::execute(&long, "COMMIT").await;
    assert_eq!(home(&others).await, node.port().to_string());

    // A read-only one, and one that has a server for good, are no writes; but the latter stays.
    client::execute(&long, "BEGIN READ ONLY").await;
    client::execute(&long, "SELECT * FROM t").await;
    client::execute(&others, "CREATE TEMP TABLE mine (a int)").await;
    let (is_done, said) = tandem(&cluster, "drain", &[name]).await;
    assert!(!is_done && said.contains("keeps its server: "), "{said}");
    assert!(!said.contains("takes long"), "{said}");
    client::execute(&others, "DISCARD ALL").await;
    client::execute(&long, "COMMIT").await;

    let policy = async |policy: &str| {
        let line = format!("handoff_at_bound = \"{policy}\"");
        cluster.change_config(|text| {
            let text = text.replace("handoff_at_bound = \"go_on\"\n", "");
            text.replace(TRANSACTIONS, &format!("{TRANSACTIONS}\n{line}"))
        });
        client::execute(&ops, "RELOAD").await;
    };
    policy("go_on").await;
    client::execute(&long, "BEGIN; INSERT INTO t VALUES (2, 1)").await;
    let said = done(&cluster, "drain", &[name]).await;
    assert!(said.contains("1 that had begun before went on"), "{said}");
    assert_eq!(home(&others).await, other.port().to_string());
    client::execute(&long, "COMMIT").await;
    eventually("nobody is left there", LIMIT, async || {
        match node.value(CLIENTS).await.as_str() {
            "0" => Ok(()),
            left => Err(left.to_owned()),
        }
    })
    .await;
    done(&cluster, "resume", &[name]).await;
    assert_eq!(home(&others).await, node.port().to_string());

    policy("abort").await;
    client::execute(&long, "BEGIN; INSERT INTO t VALUES (3, 1)").await;
    let said = done(&cluster, "drain", &[name, "--wait"]).await;
    assert!(said.contains("1 that were in the way were ended"), "{said}");
    assert!(said.contains("no connection of a client is left"), "{said}");
    client::try_rows(&long, "COMMIT")
        .await
        .expect_err("it was ended");
    assert_eq!(home(&others).await, other.port().to_string());
    let rows = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM t WHERE id < 10";
    assert_eq!(client::value(&others, rows).await, "1 2");
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_stays_so_when_it_or_the_daemon_is_restarted() {
    let builder = Cluster::of(&[15, 17]).proxy(TRANSACTIONS).schema(TABLE);
    let mut cluster = with_console(builder).await;
    let (node, other) = home_and_another(&cluster).await;
    let (name, port) = (node.name.clone(), node.port().to_string());
    let (other_name, other_port) = (other.name.clone(), other.port().to_string());
    let place = cluster.nodes.iter().position(|one| one.name == name);
    let place = place.expect("one of them");
    let refused = async |cluster: &Cluster, verb: &str, node: &str, why: &str| {
        let (is_done, said) = tandem(cluster, verb, &[node]).await;
        assert!(!is_done && said.contains(why), "{verb} {node}: {said}");
    };
    refused(&cluster, "resume", &name, "is not drained: it is up").await;
    refused(&cluster, "drain", "nobody", "there is no node nobody").await;
    let session = cluster.proxy().await;
    // In the console.
    let ops = console(&cluster, "ops").await;
    client::execute(&ops, &format!("DRAIN {name}")).await;
    refused(&cluster, "drain", &name, "is drained already").await;
    refused(
        &cluster,
        "drain",
        &other_name,
        "the last one that serves clients",
    )
    .await;
    assert_eq!(home(&session).await, other_port);
    let epoch = async |cluster: &Cluster| {
        let status = cluster.daemon.status().await.expect("a status");
        status["epoch"].as_u64().expect("a number")
    };
    let before = epoch(&cluster).await;
    drop((session, ops));

    cluster.daemon.restart().await;
    cluster.converge(LIMIT).await;
    assert_eq!(health(&cluster, &name).await, "drained");
    let session = cluster.proxy().await;
    assert_eq!(home(&session).await, other_port);
    assert!(epoch(&cluster).await > before);

    cluster.nodes[place].kill9().await;
    client::execute(&session, "INSERT INTO t VALUES (1, 1)").await;
    eventually("it is noticed", LIMIT, async || {
        let (is_done, said) = tandem(&cluster, "resume", &[&name]).await;
        assert!(!is_done, "{said}");
        match said.contains("does not answer, and stays drained") {
            true => Ok(()),
            false => Err(said),
        }
    })
    .await;
    cluster.nodes[place].start_again().await;
    cluster.converge(LIMIT).await;
    assert_eq!(health(&cluster, &name).await, "drained");
    assert_eq!(home(&session).await, other_port);
    let rows = "SELECT count(*) FROM t";
    assert_eq!(
        cluster.nodes[place].value(rows).await,
        "1",
        "it is kept up to date"
    );
    let ops = console(&cluster, "ops").await;
    client::execute(&ops, &format!("RESUME {name}")).await;
    assert_eq!(health(&cluster, &name).await, "up");
    assert_eq!(home(&session).await, port);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_takes_writes_only_when_it_has_what_it_missed() {
    let cluster = Cluster::of(&[15, 17])
        .proxy(TRANSACTIONS)
        .schema(TABLE)
        .start()
        .await;
    let (node, other) = home_and_another(&cluster).await;
    node.kill9().await;
    eventually("it is down", LIMIT, async || {
        match health(&cluster, &node.name).await.as_str() {
            "down" => Ok(()),
            health => Err(health.to_owned()),
        }
    })
    .await;
    let session = cluster.proxy().await;
    let insert = "INSERT INTO t SELECT i, 0 FROM generate_series(1, 20000) i";
    client::execute(&session, insert).await;
    assert_eq!(home(&session).await, other.port().to_string());
    node.start_again().await;
    // Each write tells where it is, and what is there.
    let write = "UPDATE t SET n = n + 1 WHERE id = 1 \
         RETURNING current_setting('port') || ' ' || n || ' ' || (SELECT count(*) FROM t)";
    let mut writes = 0;
    let port = node.port().to_string();
    eventually("its keys come home", LIMIT, async || {
        let told = client::value(&session, write).await;
        writes += 1;
        let told: Vec<&str> = told.split(' ').collect();
        assert_eq!(
            told[1..],
            [writes.to_string().as_str(), "20000"],
            "{told:?}"
        );
        match told[0] == port {
            true => Ok(()),
            false => Err(told[0].to_owned()),
        }
    })
    .await;
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        assert_eq!(node.value(CONFLICTS).await, "0");
    }
}
