//! A server that cannot be made ready for a client is nothing that the client has to know of.

use std::time::Duration;

use tandem_tests::{Cluster, client, eventually};
use tokio_postgres::Client;

use crate::console::{console, lines_with, with_console};

const LIMIT: Duration = Duration::from_secs(20);
const POOL_OF_ONE: &str = "workers = 1\npool_mode = \"transaction\"\npool_size = 1";
/// What only the role `chief` may set, who it is, and what anybody may set.
const LOOK: &str = "SELECT current_user || ' ' || current_setting('log_planner_stats') || ' ' || current_setting('work_mem')";

/// How a session becomes the role `chief`: what allows it, and what does it.
const AS_ROLE: [&str; 2] = ["GRANT chief TO app", "SET ROLE chief"];
const AS_SESSION: [&str; 2] = [
    "ALTER ROLE app SUPERUSER",
    "SET SESSION AUTHORIZATION chief",
];

async fn with_chief(cluster: &Cluster, [allow, take]: [&str; 2]) -> Client {
    cluster.nodes[0]
        .execute("CREATE ROLE chief SUPERUSER")
        .await;
    cluster.nodes[0].execute(allow).await;
    let one = cluster.proxy().await;
    client::execute(&one, "SET work_mem = '7MB'").await;
    client::execute(&one, take).await;
    client::execute(&one, "SET log_planner_stats = on").await;
    one
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_set_as_a_role_that_is_gone_does_not_disturb_the_next_client() {
    let cases = [
        (15, AS_ROLE, false),
        (18, AS_ROLE, true),
        (18, AS_SESSION, false),
    ];
    for (major, how, goes_back) in cases {
        let cluster = Cluster::of(&[major]).proxy(POOL_OF_ONE).start().await;
        let one = with_chief(&cluster, how).await;
        if goes_back {
            client::execute(&one, "RESET ROLE").await;
        }
        cluster.nodes[0].execute("DROP ROLE chief").await;
        let other = cluster.proxy().await;
        for _ in 0..3 {
            assert_eq!(client::value(&other, LOOK).await, "app off 4MB");
            // Who set it cannot have it again; the other one never notices.
            let error = client::try_rows(&one, "SELECT 1").await;
            let error = error.expect_err("its role is gone");
            assert_eq!(client::sqlstate(&error), "22023", "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_role_is_gone_is_told_so_and_goes_on_when_it_is_back() {
    let cluster = Cluster::of(&[15]).proxy(POOL_OF_ONE).start().await;
    let node = &cluster.nodes[0];
    let one = with_chief(&cluster, AS_ROLE).await;
    let other = cluster.proxy().await;
    node.execute("DROP ROLE chief").await;
    let pid = client::value(&other, "SELECT pg_backend_pid()").await;
    for _ in 0..3 {
        let error = client::try_rows(&one, LOOK).await.expect_err("no role");
        let error = error.as_db_error().expect("an answer");
        assert_eq!(error.code().code(), "22023");
        assert_eq!(error.message(), "role \"chief\" does not exist");
        let error = one.query(LOOK, &[]).await.expect_err("no role");
        assert_eq!(client::sqlstate(&error), "22023");
        assert_eq!(client::value(&other, LOOK).await, "app off 4MB");
    }
    node.execute("CREATE ROLE chief SUPERUSER").await;
    node.execute("GRANT chief TO app").await;
    assert_eq!(client::value(&one, LOOK).await, "chief on 7MB");
    assert_eq!(client::value(&other, LOOK).await, "app off 4MB");
    // Nobody's connection had to be closed for it.
    assert_eq!(client::value(&other, "SELECT pg_backend_pid()").await, pid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_while_it_is_made_ready_is_left_for_another_without_an_error() {
    let builder = Cluster::of(&[15, 15]).proxy(POOL_OF_ONE);
    let cluster = with_console(builder).await;
    let ops = console(&cluster, "ops").await;
    let one = cluster.proxy().await;
    let port = client::value(&one, "SHOW port").await;
    let dying = cluster
        .nodes
        .iter()
        .find(|node| node.port().to_string() == port);
    let dying = dying.expect("a node of the cluster");
    client::execute(&one, "SET work_mem = '7MB'").await;
    // Another one of the same node has its server now, with other settings.
    let mut others = Vec::new();
    loop {
        let other = cluster.proxy().await;
        let its = client::value(&other, "SHOW port").await;
        others.push(other);
        if its == port {
            break;
        }
    }
    dying.pause().await;
    let shown = tokio::spawn(async move { client::value(&one, "SHOW work_mem").await });
    eventually("the settings are on their way", LIMIT, async || {
        let active = lines_with(&ops, "SHOW CLIENTS", &["database=app", "state=active"]).await;
        match active.len() {
            1 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    dying.kill9().await;
    let shown = tokio::time::timeout(LIMIT, shown).await.expect("in time");
    assert_eq!(shown.expect("no error"), "7MB");
}
