//! What a session can do once it is in.

use std::{sync::Arc, time::Duration};

use tandem_tests::{
    Cluster, Program, client, eventually,
    template::{APP, DATABASE},
};
use tokio_postgres::{AsyncMessage, NoTls};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_reaches_a_listener_in_another_session() {
    let cluster = Cluster::of(&[15]).start().await;
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(cluster.proxy_port)
        .user(APP)
        .password(APP)
        .dbname(DATABASE);
    let (listener, mut connection) = config.connect(NoTls).await.expect("a login");
    let (sender, mut received) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) =
            std::future::poll_fn(|context| connection.poll_message(context)).await
        {
            if let AsyncMessage::Notification(notification) = message {
                sender
                    .send(format!(
                        "{}: {}",
                        notification.channel(),
                        notification.payload()
                    ))
                    .ok();
            }
        }
    });
    client::execute(&listener, "LISTEN news").await;
    client::execute(&cluster.proxy().await, "NOTIFY news, 'all is well'").await;
    // It comes while the listener's session is idle.
    let message = tokio::time::timeout(LIMIT, received.recv())
        .await
        .expect("in time")
        .expect("a notification");
    assert_eq!(message, "news: all is well");
    let ran = cluster
        .psql()
        .input("LISTEN own;\nNOTIFY own, 'x';\n")
        .run(LIMIT)
        .await
        .expect_success();
    assert!(
        ran.stdout
            .contains("Asynchronous notification \"own\" with payload \"x\""),
        "{}",
        ran.all()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_runs_in_every_protocol_mode_and_with_a_login_per_transaction() {
    let cluster = Cluster::of(&[15, 15]).pgbench(1).start().await;
    for more in [
        &["-M", "simple"][..],
        &["-M", "extended"],
        &["-M", "prepared"],
        &["-C"],
        &["-M", "prepared", "-S"],
    ] {
        let pgbench = Program::pgbench(cluster.nodes[0].install()).port(cluster.proxy_port);
        let ran = pgbench
            .args(["-n", "-c", "4", "-j", "2", "-t", "40"])
            .args(more)
            .run(LIMIT)
            .await
            .expect_success();
        assert!(
            ran.stdout
                .contains("number of transactions actually processed: 160/160"),
            "{more:?}: {}",
            ran.all()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn startup_parameters_and_session_state_are_the_clients_own() {
    let cluster = Cluster::of(&[15, 18]).start().await;
    let psql = |options: &str| {
        cluster
            .psql()
            .env("PGOPTIONS", options)
            .env("PGAPPNAME", "my application")
    };
    let show = "SELECT current_setting('work_mem'), current_setting('application_name'), current_setting('timezone')";
    let ran = psql("-c work_mem=5MB -c timezone=Asia/Tokyo")
        .args(["-c", show])
        .run(LIMIT)
        .await
        .expect_success();
    assert_eq!(ran.stdout.trim(), "5MB|my application|Asia/Tokyo");
    let ran = psql("")
        .args(["-c", show])
        .run(LIMIT)
        .await
        .expect_success();
    assert!(
        ran.stdout.starts_with("4MB|my application|"),
        "{}",
        ran.all()
    );

    let (one, other) = (cluster.proxy().await, cluster.proxy().await);
    client::execute(&one, "SET search_path = pg_temp; CREATE TEMP TABLE mine (id int); PREPARE p AS SELECT 'prepared'").await;
    assert_eq!(client::value(&one, "EXECUTE p").await, "prepared");
    let error = client::try_rows(&other, "EXECUTE p")
        .await
        .expect_err("not this session's");
    assert_eq!(client::sqlstate(&error), "26000");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_pipelines_and_transactions_behave_as_on_the_node() {
    let cluster = Cluster::of(&[15])
        .schema("CREATE TABLE item (id int PRIMARY KEY);")
        .start()
        .await;
    let client = Arc::new(cluster.proxy().await);
    let error = client
        .query("SELECT 1 / $1::int", &[&0])
        .await
        .expect_err("a division by zero");
    assert_eq!(client::sqlstate(&error), "22012");
    client::execute(&client, "BEGIN; INSERT INTO item VALUES (1)").await;
    let error = client
        .batch_execute("INSERT INTO item VALUES (1)")
        .await
        .expect_err("a duplicate");
    assert_eq!(client::sqlstate(&error), "23505");
    let error = client
        .batch_execute("SELECT 1")
        .await
        .expect_err("an aborted transaction");
    assert_eq!(client::sqlstate(&error), "25P02");
    client::execute(&client, "ROLLBACK").await;
    // Many statements on their way at once.
    let statement = client
        .prepare("INSERT INTO item VALUES ($1)")
        .await
        .expect("a statement");
    let mut running = tokio::task::JoinSet::new();
    for id in 0..500_i32 {
        let (client, statement) = (Arc::clone(&client), statement.clone());
        running.spawn(async move {
            client
                .execute(&statement, &[&(id % 490)])
                .await
                .map_err(|error| client::sqlstate(&error))
        });
    }
    let results = running.join_all().await;
    assert_eq!(
        results
            .iter()
            .filter(|result| matches!(result, Ok(1)))
            .count(),
        490
    );
    assert_eq!(
        results
            .iter()
            .filter(|result| matches!(result, Err(code) if code == "23505"))
            .count(),
        10
    );
    assert_eq!(
        client::value(&client, "SELECT count(*) FROM item").await,
        "490"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_go_to_the_node_of_the_proxys_zone_and_elsewhere_when_it_is_down() {
    let mut cluster = Cluster::of(&[15, 15, 15])
        .proxy("zone = \"eu\"")
        .without_daemon()
        .start()
        .await;
    cluster.change_config(|text| {
        let zoned = text
            .replace("name = \"n1\"", "zone = \"asia\"\nname = \"n1\"")
            .replace("name = \"n2\"", "zone = \"eu\"\nname = \"n2\"");
        zoned.replace("name = \"n3\"", "zone = \"asia\"\nname = \"n3\"")
    });
    cluster.begin().await;
    let port =
        async || client::value(&cluster.proxy().await, "SELECT current_setting('port')").await;
    for _ in 0..5 {
        assert_eq!(port().await, cluster.nodes[1].port().to_string());
    }
    cluster.nodes[1].kill9().await;
    let other = port().await;
    assert_ne!(other, cluster.nodes[1].port().to_string());
    cluster.nodes[1].start_again().await;
    eventually("sessions come back to the zone", LIMIT, async || {
        let port = port().await;
        if port == cluster.nodes[1].port().to_string() {
            Ok(())
        } else {
            Err(port)
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_rule_sends_a_user_to_its_node() {
    let mut cluster = Cluster::of(&[15, 15, 15]).without_daemon().start().await;
    let rules = "[[session]]\nmatch = { application_name = \"nightly-*\" }\nnode = \"n3\"\n[default]\nwrite = \"home\"\n";
    std::fs::write(cluster.dir().join("rules.toml"), rules).expect("the rules");
    cluster.begin().await;
    for _ in 0..4 {
        let psql = cluster
            .psql()
            .env("PGAPPNAME", "nightly-load")
            .args(["-c", "SELECT current_setting('port')"]);
        let ran = psql.run(LIMIT).await.expect_success();
        assert_eq!(ran.stdout.trim(), cluster.nodes[2].port().to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_transactions_end_and_refuses_new_sessions() {
    let mut cluster = Cluster::of(&[15, 15])
        .schema("CREATE TABLE item (id int PRIMARY KEY);")
        .start()
        .await;
    let (idle, busy) = (cluster.proxy().await, cluster.proxy().await);
    client::execute(&busy, "BEGIN; INSERT INTO item VALUES (1)").await;
    cluster.daemon.signal(rustix::process::Signal::TERM);
    eventually("the idle session ends", LIMIT, async || {
        if idle.is_closed() {
            Ok(())
        } else {
            Err("not yet")
        }
    })
    .await;
    let error = cluster.try_proxy().await.expect_err("no new session");
    assert!(
        ["57P03"].contains(&client::sqlstate(&error).as_str()) || error.as_db_error().is_none(),
        "{error:?}"
    );
    client::execute(&busy, "INSERT INTO item VALUES (2)").await;
    // It may end right behind the COMMIT, but not before it.
    client::execute(&busy, "COMMIT").await;
    let status = cluster.daemon.ended().await;
    assert!(status.success(), "{status}");
    let found = cluster.nodes[0].value("SELECT count(*) FROM item").await
        + &cluster.nodes[1].value("SELECT count(*) FROM item").await;
    assert!(found.contains('2'), "{found}");
    // What the drain let through reaches the others at the next start.
    cluster.daemon.start().await;
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigint_ends_every_session_at_once() {
    let mut cluster = Cluster::of(&[15]).start().await;
    let busy = cluster.proxy().await;
    let running =
        tokio::spawn(async move { busy.simple_query("SELECT pg_sleep(60)").await.map(drop) });
    let active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'";
    eventually("the query runs", LIMIT, async || {
        match cluster.nodes[0].value(active).await.as_str() {
            "1" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    let asked = std::time::Instant::now();
    cluster.daemon.signal(rustix::process::Signal::INT);
    let status = cluster.daemon.ended().await;
    assert!(
        status.success() && asked.elapsed() < Duration::from_secs(10),
        "{status} after {:?}",
        asked.elapsed()
    );
    let error = running
        .await
        .expect("not cancelled")
        .expect_err("its session is gone");
    assert!(
        client::sqlstate(&error) == "57P01" || error.is_closed(),
        "{error:?}"
    );
    // No query goes on for a client that is gone.
    eventually("the node's backend ends", LIMIT, async || {
        match cluster.nodes[0].value(active).await.as_str() {
            "0" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
}
