//! Many clients over few server connections.

use std::{sync::Arc, time::Duration};

use tandem_tests::{Cluster, Program, client, eventually};
use tokio::task::JoinSet;

const LIMIT: Duration = Duration::from_secs(60);
const SMALL_POOL: &str = "pool_mode = \"transaction\"\npool_size = 3";
const BACKENDS: &str = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND backend_type = 'client backend'";

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_runs_in_every_protocol_mode_over_a_small_pool() {
    let cluster = Cluster::of(&[15])
        .pgbench(1)
        .proxy(SMALL_POOL)
        .start()
        .await;
    // pgbench prepares in the middle of a transaction and blocks all clients of its thread meanwhile, those included that
    // have a server: with prepared statements there are no more of them than servers.
    for (clients, more) in [
        ("10", &["-M", "simple"][..]),
        ("10", &["-M", "extended"]),
        ("3", &["-M", "prepared"]),
        ("10", &["-C"]),
        ("10", &["-M", "prepared", "-S"]),
        ("10", &["-M", "extended", "-S"]),
    ] {
        let pgbench = Program::pgbench(cluster.nodes[0].install()).port(cluster.proxy_port);
        let ran = pgbench
            .args(["-n", "-c", clients, "-j", "2", "-t", "40"])
            .args(more)
            .run(LIMIT)
            .await
            .expect_success();
        assert!(
            ran.stdout.contains("number of failed transactions: 0"),
            "{more:?}: {}",
            ran.all()
        );
        let backends: u32 = cluster.nodes[0]
            .value(BACKENDS)
            .await
            .parse()
            .expect("a number");
        assert!((1..=3).contains(&backends), "{backends} for {more:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_ever_gets_rows_of_somebody_else() {
    let cluster = Cluster::of(&[15]).proxy(SMALL_POOL).start().await;
    let mut clients = JoinSet::new();
    for id in 0..30_i32 {
        let client = cluster.proxy().await;
        clients.spawn(async move {
            let statement = client
                .prepare(&format!(
                    "SELECT $1::int * 1000 + {id}, repeat('x', $1::int % 3000)"
                ))
                .await
                .expect("a statement");
            for round in 0..100_i32 {
                let rows = client
                    .query(&statement, &[&round])
                    .await
                    .unwrap_or_else(|error| panic!("{}", client::describe(&error)));
                assert_eq!(rows.len(), 1);
                assert_eq!(rows[0].get::<_, i32>(0), round * 1000 + id);
                let text: String = rows[0].get(1);
                assert_eq!(text.len(), usize::try_from(round % 3000).expect("positive"));
                let value = client::value(&client, &format!("SELECT {round} + {id}")).await;
                assert_eq!(value, (round + id).to_string());
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.expect("no client fails");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_waits_for_a_server_in_turn_and_not_for_ever() {
    let cluster = Cluster::of(&[15])
        .proxy("pool_mode = \"transaction\"\npool_size = 1\nquery_wait_timeout = \"700ms\"\nquery_wait_notify = \"200ms\"")
        .start()
        .await;
    let (holder, waiter) = (cluster.proxy().await, cluster.proxy().await);
    client::execute(&holder, "BEGIN").await;
    let error = waiter
        .simple_query("SELECT 1")
        .await
        .expect_err("no server is free");
    assert_eq!(client::sqlstate(&error), "53300");
    let waiter = cluster.proxy().await;
    let (waited, ()) = tokio::join!(client::value(&waiter, "SELECT 'served'"), async {
        client::execute(&holder, "COMMIT").await;
    });
    assert_eq!(waited, "served");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_waits_can_be_cancelled_and_its_session_goes_on() {
    let cluster = Cluster::of(&[15])
        .proxy("pool_mode = \"transaction\"\npool_size = 1")
        .start()
        .await;
    let (holder, waiter) = (cluster.proxy().await, Arc::new(cluster.proxy().await));
    client::execute(&holder, "BEGIN").await;
    for extended in [false, true] {
        let (waiting, token) = (Arc::clone(&waiter), waiter.cancel_token());
        let query = tokio::spawn(async move {
            if extended {
                waiting.query("SELECT 1", &[]).await.map(drop)
            } else {
                waiting.simple_query("SELECT 1").await.map(drop)
            }
        });
        let waits = || async {
            // Nothing tells from outside that the message has arrived, so cancel until it has.
            token
                .cancel_query(tokio_postgres::NoTls)
                .await
                .expect("a cancel request");
            if query.is_finished() {
                Ok(())
            } else {
                Err("it waits")
            }
        };
        eventually("the query is cancelled", LIMIT, waits).await;
        let error = query.await.expect("no panic").expect_err("cancelled");
        assert_eq!(client::sqlstate(&error), "57014");
    }
    assert_eq!(
        client::value(&holder, "SELECT 'still mine'").await,
        "still mine"
    );
    client::execute(&holder, "COMMIT").await;
    assert_eq!(client::value(&waiter, "SELECT 'on'").await, "on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_client_does_not_notice_that_its_node_was_restarted() {
    let cluster = Cluster::of(&[15]).proxy(SMALL_POOL).start().await;
    let client = cluster.proxy().await;
    assert_eq!(client::value(&client, "SELECT 1").await, "1");
    cluster.nodes[0].stop_fast().await;
    cluster.nodes[0].start_again().await;
    eventually("the node is up for new logins", LIMIT, async || {
        cluster
            .try_proxy()
            .await
            .map(drop)
            .map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(client::value(&client, "SELECT 2").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_client_goes_to_another_node_when_its_own_dies() {
    // To an older one, which does not know all that the newer one reports.
    let cluster = Cluster::of(&[18, 15]).proxy(SMALL_POOL).start().await;
    let (node, older) = (&cluster.nodes[0], &cluster.nodes[1]);
    older.stop_fast().await;
    let client = eventually("a client on the newer node", LIMIT, async || {
        cluster.try_proxy().await.map_err(|error| error.to_string())
    })
    .await;
    let port = client::value(&client, "SELECT current_setting('port')").await;
    assert_eq!(port, node.port().to_string());
    older.start_again().await;
    node.kill9().await;
    eventually("the proxy knows", LIMIT, async || {
        let other = cluster
            .try_proxy()
            .await
            .map_err(|error| error.to_string())?;
        match client::try_rows(&other, "SELECT current_setting('port')").await {
            Ok(now) if now[0][0].as_deref() != Some(&port) => Ok(()),
            _ => Err("not yet".to_owned()),
        }
    })
    .await;
    assert_ne!(
        client::value(&client, "SELECT current_setting('port')").await,
        port
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_work_on_whatever_server_comes() {
    let cluster = Cluster::of(&[15])
        .schema("CREATE TABLE thing (id int, name text); INSERT INTO thing VALUES (1, 'one');")
        .proxy("pool_mode = \"transaction\"\npool_size = 2\nmax_prepared_statements = 5")
        .start()
        .await;
    let (one, two) = (cluster.proxy().await, cluster.proxy().await);
    let mut statements = Vec::new();
    for n in 0..20_i32 {
        statements.push(
            one.prepare(&format!("SELECT $1::int + {n}"))
                .await
                .expect("a statement"),
        );
    }
    for round in 0..40_i32 {
        // The other client takes one server, so that this one meets both in turn.
        client::execute(&two, "BEGIN").await;
        let n = usize::try_from(round).expect("small") % statements.len();
        let row = one
            .query_one(&statements[n], &[&round])
            .await
            .expect("a row");
        assert_eq!(
            row.get::<_, i32>(0),
            round + i32::try_from(n).expect("small")
        );
        client::execute(&two, "COMMIT").await;
    }
    // A column that gets another type: who was told the old one gets an error, each of them, and never its bytes.
    let told: Vec<_> = [
        one.prepare("SELECT id FROM thing").await,
        two.prepare("SELECT id FROM thing").await,
    ]
    .into_iter()
    .map(|statement| statement.expect("a statement"))
    .collect();
    for (client, statement) in [(&one, &told[0]), (&two, &told[1])] {
        client.query(statement, &[]).await.expect("rows");
    }
    client::execute(&one, "ALTER TABLE thing ALTER id TYPE text").await;
    for _ in 0..3 {
        for (client, statement) in [(&one, &told[0]), (&two, &told[1])] {
            let error = client
                .query(statement, &[])
                .await
                .expect_err("another type");
            let code = error.code().expect("an answer of the server").code();
            assert_eq!(code, "0A000", "{error}");
        }
    }
    let anew = two.prepare("SELECT id FROM thing").await.expect("anew");
    let row = two.query(&anew, &[]).await.expect("rows");
    assert!(row.iter().all(|row| !row.get::<_, String>(0).is_empty()));
    // A table that is altered: whoever prepares anew is never told.
    let before = one
        .prepare("SELECT * FROM thing")
        .await
        .expect("a statement");
    one.query(&before, &[]).await.expect("rows");
    client::execute(&two, "ALTER TABLE thing ADD COLUMN more int").await;
    let three = cluster.proxy().await;
    let after = three
        .prepare("SELECT * FROM thing")
        .await
        .expect("a statement");
    for _ in 0..4 {
        let rows = three.query(&after, &[]).await.expect("rows");
        assert_eq!(rows[0].len(), 3);
    }
}
