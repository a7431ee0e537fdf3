//! What has a meaning on one server only, or for one server's sessions, keeps its meaning over several: notifications, names of
//! prepared transactions, snapshots, advisory locks, large objects.

use std::time::Duration;

use rustix::process::Signal;
use tandem_routing_rules::state::LARGE_OBJECT_OIDS;
use tandem_tests::{Cluster, Program, client, eventually};
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::timeout,
};
use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::script::{open, play, script};

const LIMIT: Duration = Duration::from_secs(30);

/// A session through the proxy, and what comes to it besides answers.
struct Listener {
    client: Client,
    heard: UnboundedReceiver<Heard>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Heard {
    Notification(String, String),
    Warning(String),
    /// The session has ended, with this SQLSTATE.
    End(String),
}

impl Listener {
    async fn open(cluster: &Cluster) -> Listener {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(cluster.proxy_port);
        config.user("app").password("app").dbname("app");
        let (client, mut connection) = config.connect(NoTls).await.expect("a login");
        let (tell, heard) = unbounded_channel();
        tokio::spawn(async move {
            while let Some(message) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                let told = match message {
                    Ok(AsyncMessage::Notification(raised)) => tell.send(Heard::Notification(
                        raised.channel().to_owned(),
                        raised.payload().to_owned(),
                    )),
                    Ok(AsyncMessage::Notice(notice)) => {
                        tell.send(Heard::Warning(notice.message().to_owned()))
                    }
                    Ok(_) => Ok(()),
                    Err(error) => {
                        tell.send(Heard::End(client::sqlstate(&error))).ok();
                        return;
                    }
                };
                if told.is_err() {
                    return;
                }
            }
        });
        Listener { client, heard }
    }

    /// What comes next.
    async fn next(&mut self) -> Heard {
        let next = timeout(LIMIT, self.heard.recv()).await;
        next.expect("something comes").expect("a connection")
    }

    /// The payloads of what comes, up to the one that is the last.
    async fn up_to(&mut self, last: &str) -> Vec<String> {
        let mut payloads = Vec::new();
        loop {
            match self.next().await {
                Heard::Notification(_, payload) if payload == last => return payloads,
                Heard::Notification(_, payload) => payloads.push(payload),
                Heard::Warning(_) => {}
                Heard::End(code) => panic!("{code}"),
            }
        }
    }

    async fn execute(&self, sql: &str) {
        client::execute(&self.client, sql).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_of_any_node_is_heard_once_and_in_its_order() {
    // Nobody keeps a server: there is one for all.
    let cluster = Cluster::of(&[15, 17, 18])
        .proxy("pool_mode = \"transaction\"\npool_size = 1")
        .schema("CREATE TABLE t (id int PRIMARY KEY)")
        .start()
        .await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let session = Listener::open(&cluster).await;
        session.execute("LISTEN news").await;
        session.execute("LISTEN \"Other News\"").await;
        sessions.push(session);
    }
    // In the extended protocol too.
    let prepared = sessions[0].client.prepare("LISTEN third").await;
    let prepared = prepared.expect("a statement");
    sessions[0]
        .client
        .execute(&prepared, &[])
        .await
        .expect("a LISTEN");
    for (index, node) in cluster.nodes.iter().enumerate() {
        for n in 0..20 {
            node.execute(&format!("NOTIFY news, '{index} {n}'")).await;
        }
        node.execute("NOTIFY \"Other News\", 'exact'").await;
        node.execute("NOTIFY \"other news\", 'of nobody'").await;
    }
    // Through the proxy, by one who listens.
    let itself = "BEGIN; INSERT INTO t VALUES (1); SELECT pg_notify('news', 'own'); COMMIT";
    sessions[0].execute(itself).await;
    let expected = |index: usize| (0..20).map(move |n| format!("{index} {n}"));
    for session in &mut sessions {
        let mut payloads = Vec::new();
        while payloads.len() < 3 * 20 + 3 + 1 {
            match session.next().await {
                Heard::Notification(_, payload) => payloads.push(payload),
                other => panic!("{other:?}"),
            }
        }
        for index in 0..3 {
            let of_node = payloads
                .iter()
                .filter(|p| p.starts_with(&format!("{index} ")));
            assert!(of_node.cloned().eq(expected(index)), "{payloads:?}");
        }
        assert_eq!(payloads.iter().filter(|p| *p == "exact").count(), 3);
        assert_eq!(payloads.iter().filter(|p| *p == "own").count(), 1);
    }
    cluster.nodes[1].execute("NOTIFY third, 'prepared'").await;
    let heard = sessions[0].next().await;
    assert_eq!(
        heard,
        Heard::Notification("third".into(), "prepared".into())
    );
    // On each node one connection listens for all.
    let listening =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tandem notifications'";
    for node in &cluster.nodes {
        assert_eq!(node.value(listening).await, "1");
    }
    drop(sessions);
    for node in &cluster.nodes {
        eventually("nobody listens any more", LIMIT, async || {
            match node.value(listening).await.as_str() {
                "0" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listen_counts_with_its_transaction_and_unlisten_ends_it() {
    let cluster = Cluster::of(&[15, 18])
        .proxy("pool_mode = \"transaction\"")
        .setting("max_prepared_transactions", "10")
        .start()
        .await;
    let mut session = Listener::open(&cluster).await;
    session.execute("LISTEN kept; LISTEN dropped").await;
    session.execute("BEGIN").await;
    session.execute("LISTEN undone").await;
    session.execute("ROLLBACK").await;
    session.execute("BEGIN").await;
    session.execute("SAVEPOINT s").await;
    session.execute("LISTEN undone").await;
    session.execute("ROLLBACK TO s").await;
    session.execute("LISTEN inside").await;
    // Nothing is told inside of a transaction.
    for channel in ["kept", "inside", "undone"] {
        let notify = format!("NOTIFY {channel}, 'early'");
        cluster.nodes[0].execute(&notify).await;
    }
    session.execute("SELECT 1").await;
    session.execute("COMMIT").await;
    session.execute("UNLISTEN dropped").await;
    let error = session
        .client
        .batch_execute("LISTEN failed; SELECT 1/0")
        .await;
    assert_eq!(client::sqlstate(&error.expect_err("a division")), "22012");
    let read_only = session
        .client
        .batch_execute("BEGIN READ ONLY; LISTEN read; COMMIT");
    read_only.await.expect("that is no write");
    for node in &cluster.nodes {
        for channel in ["undone", "dropped", "failed", "inside", "read", "kept"] {
            node.execute(&format!("NOTIFY {channel}, '{channel}'"))
                .await;
        }
        node.execute("NOTIFY kept, 'last'").await;
        let heard: Vec<_> = session.up_to("last").await;
        let heard: Vec<_> = heard.iter().filter(|payload| *payload != "early").collect();
        assert_eq!(heard, ["inside", "read", "kept"]);
    }
    session.execute("LISTEN last").await;
    session.execute("DISCARD ALL").await;
    session.execute("LISTEN last").await;
    cluster.nodes[0]
        .execute("NOTIFY kept, 'gone'; NOTIFY last, 'last'")
        .await;
    assert_eq!(session.up_to("last").await, Vec::<String>::new());
    // One's own comes before the answer.
    for n in 0..50 {
        let notify = match n % 2 {
            0 => format!("NOTIFY last, 'own {n}'"),
            _ => format!("BEGIN; SELECT pg_notify('last', 'own {n}'); COMMIT"),
        };
        session.execute(&notify).await;
        let heard = session.heard.try_recv();
        let own = Heard::Notification("last".into(), format!("own {n}"));
        assert_eq!(heard.ok(), Some(own));
    }
    // In another encoding the server listens itself.
    let other = Listener::open(&cluster).await;
    other.execute("SET client_encoding = 'LATIN1'").await;
    other.execute("LISTEN itself").await;
    let listens = client::value(&other.client, "SELECT pg_listening_channels()").await;
    assert_eq!(listens, "itself");
    // What PostgreSQL says of it is still said.
    session.execute("BEGIN; LISTEN x").await;
    let refused = session
        .client
        .batch_execute("PREPARE TRANSACTION 'x'")
        .await;
    assert_eq!(client::sqlstate(&refused.expect_err("it listens")), "0A000");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_listens_is_told_of_a_gap_and_hears_again() {
    let cluster = Cluster::of(&[15, 18])
        .proxy("pool_mode = \"transaction\"")
        .probe_interval("100ms")
        .start()
        .await;
    let mut session = Listener::open(&cluster).await;
    session.execute("LISTEN a").await;
    cluster.nodes[1].kill9().await;
    // The others are heard meanwhile.
    cluster.nodes[0]
        .execute("NOTIFY a, 'while it is down'")
        .await;
    let heard = session.next().await;
    assert_eq!(
        heard,
        Heard::Notification("a".into(), "while it is down".into())
    );
    cluster.nodes[1].start_again().await;
    let told = session.next().await;
    let is_gap = |text: &str| text.contains("may have been missed");
    assert!(
        matches!(&told, Heard::Warning(text) if is_gap(text)),
        "{told:?}"
    );
    cluster.nodes[1].execute("NOTIFY a, 'again'").await;
    assert_eq!(
        session.next().await,
        Heard::Notification("a".into(), "again".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_too_much_untaken_is_ended_and_told_why() {
    let cluster = Cluster::of(&[15])
        .proxy("pool_mode = \"transaction\"")
        .start()
        .await;
    let (mut late, mut reads) = (
        Listener::open(&cluster).await,
        Listener::open(&cluster).await,
    );
    late.execute("LISTEN a").await;
    reads.execute("LISTEN a").await;
    late.execute("BEGIN; SELECT 1").await;
    // 5.4 MiB.
    let notify = "SELECT pg_notify('a', rpad(n::text, 7990, '.')) FROM generate_series(1, 700) n";
    cluster.nodes[0].execute(notify).await;
    assert_eq!(late.next().await, Heard::End("53400".into()));
    for n in 1..=700 {
        match reads.next().await {
            Heard::Notification(_, payload) => {
                assert_eq!(payload.trim_end_matches('.'), n.to_string());
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The port of the node on which the transaction under way runs.
async fn port(client: &Client) -> String {
    client::value(client, "SELECT current_setting('port')").await
}

/// The SQLSTATE with which this fails.
async fn refused(client: &Client, sql: &str) -> String {
    let refused = client.batch_execute(sql).await;
    client::sqlstate(&refused.expect_err(sql))
}

/// A cluster of which each transaction can be sent to a node of its own, by a key; the port of the default home.
async fn by_key() -> (Cluster, String) {
    let cluster = Cluster::of(&[15, 17, 18])
        .proxy("pool_mode = \"transaction\"")
        .setting("max_prepared_transactions", "10")
        .rules(
            "[placement.place]\nstrategy = \"hash\"\n[[affinity]]\nplacement = \"place\"\ntables = { t = \"id\" }\n",
        )
        .schema("CREATE TABLE t (id int PRIMARY KEY, n int)")
        .start()
        .await;
    let client = cluster.proxy().await;
    client::execute(&client, "BEGIN; SELECT pg_advisory_xact_lock(1)").await;
    let home = port(&client).await;
    client::execute(&client, "ROLLBACK").await;
    (cluster, home)
}

/// A key from this one on whose home is another node than this, with a block that was begun there and writes it.
async fn begin_elsewhere(client: &Client, home: &str, from: i32) -> i32 {
    for id in from..from + 100 {
        client::execute(client, "BEGIN").await;
        let write =
            format!("INSERT INTO t VALUES ({id}, 0) ON CONFLICT (id) DO UPDATE SET n = t.n + 1");
        client::execute(client, &write).await;
        if port(client).await != home {
            return id;
        }
        client::execute(client, "ROLLBACK").await;
    }
    panic!("all keys are at home on one node");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_is_ended_where_it_is_by_whatever_session() {
    let (mut cluster, home) = by_key().await;
    let first = cluster.proxy().await;
    let mut ids = Vec::new();
    for (gid, from) in [("one", 1000), ("two", 2000), ("three", 3000)] {
        ids.push(begin_elsewhere(&first, &home, from).await);
        client::execute(&first, &format!("PREPARE TRANSACTION '{gid}'")).await;
        // Where this one is known to write last does not matter.
        client::execute(&first, "SELECT pg_advisory_lock(9), pg_advisory_unlock(9)").await;
        client::execute(&first, "DISCARD ALL").await;
    }
    let second = cluster.proxy().await;
    client::execute(&second, "COMMIT PREPARED 'one'").await;
    assert_eq!(refused(&second, "COMMIT PREPARED 'one'").await, "42704");
    let prepared = second
        .prepare("ROLLBACK PREPARED 'two'")
        .await
        .expect("a statement");
    second.execute(&prepared, &[]).await.expect("it is there");
    // Another daemon knows nothing of it.
    drop(second);
    cluster.daemon.kill9().await;
    cluster.begin().await;
    let third = cluster.proxy().await;
    client::execute(&third, "COMMIT PREPARED 'three'").await;
    cluster.converge(LIMIT).await;
    for node in &cluster.nodes {
        let there = format!(
            "SELECT string_agg(id::text, ' ' ORDER BY id) FROM t WHERE id IN ({}, {}, {})",
            ids[0], ids[1], ids[2]
        );
        assert_eq!(node.value(&there).await, format!("{} {}", ids[0], ids[2]));
    }
    // One that may be on a node which is down is not said not to exist.
    cluster.nodes[0].kill9().await;
    eventually(
        "the node is known to be down",
        LIMIT,
        async || match refused(&third, "COMMIT PREPARED 'nowhere'").await.as_str() {
            "57P03" => Ok(()),
            other => Err(other.to_owned()),
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn advisory_locks_exclude_each_other_wherever_transactions_run() {
    let (cluster, home) = by_key().await;
    let (one, two) = (cluster.proxy().await, cluster.proxy().await);
    client::execute(&one, "SELECT pg_advisory_lock(1)").await;
    let id = begin_elsewhere(&two, &home, 1).await;
    // There it would exclude nobody.
    assert_eq!(
        refused(&two, "SELECT pg_try_advisory_lock(1)").await,
        "0A000"
    );
    assert_eq!(refused(&two, "SELECT 1").await, "25P02");
    client::execute(&two, "ROLLBACK").await;
    begin_elsewhere(&two, &home, 1).await;
    let bound = two
        .query_one("SELECT pg_try_advisory_xact_lock($1)", &[&1_i64])
        .await;
    assert_eq!(
        client::sqlstate(&bound.expect_err("it would exclude nobody")),
        "0A000"
    );
    client::execute(&two, "ROLLBACK").await;
    // At the beginning it brings the transaction to the right node.
    client::execute(&two, "BEGIN").await;
    let got = two
        .query_one("SELECT pg_try_advisory_xact_lock($1)", &[&1_i64])
        .await;
    assert!(!got.expect("a row").get::<_, bool>(0));
    assert_eq!(port(&two).await, home);
    client::execute(&two, "ROLLBACK").await;
    // Also where a key is named.
    client::execute(&two, &format!("INSERT INTO t VALUES ({id}, 0)")).await;
    let keyed =
        format!("UPDATE t SET n = 1 WHERE id = {id} AND pg_try_advisory_xact_lock(1) RETURNING n");
    assert!(client::rows(&two, &keyed).await.is_empty());
    client::execute(&one, "SELECT pg_advisory_unlock(1)").await;
    assert_eq!(client::rows(&two, &keyed).await.len(), 1);
    client::execute(&two, "BEGIN READ ONLY; SELECT pg_advisory_xact_lock(1)").await;
    assert_eq!(
        client::value(&one, "SELECT pg_try_advisory_lock(1)").await,
        "f"
    );
    client::execute(&two, "COMMIT").await;
    assert_eq!(
        client::value(&one, "SELECT pg_try_advisory_lock(1)").await,
        "t"
    );
    // Who holds one learns of its loss by the end of the session.
    let lost = cluster
        .nodes
        .iter()
        .find(|node| node.port().to_string() == home);
    lost.expect("a node").kill9().await;
    let error = one
        .simple_query("SELECT 1")
        .await
        .expect_err("the lock is gone");
    assert!(
        error.is_closed() || client::sqlstate(&error) == "57P01",
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_snapshot_is_the_same_for_who_takes_it() {
    let (cluster, home) = by_key().await;
    let (one, two) = (cluster.proxy().await, cluster.proxy().await);
    client::execute(&one, "INSERT INTO t VALUES (1, 1)").await;
    cluster.converge(LIMIT).await;
    client::execute(&one, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await;
    let id = client::value(&one, "SELECT pg_export_snapshot()").await;
    client::execute(&two, "UPDATE t SET n = 2 WHERE id = 1").await;
    cluster.converge(LIMIT).await;
    client::execute(&two, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await;
    client::execute(&two, &format!("SET TRANSACTION SNAPSHOT '{id}'")).await;
    for session in [&one, &two] {
        assert_eq!(
            client::value(session, "SELECT n FROM t WHERE id = 1").await,
            "1"
        );
        assert_eq!(port(session).await, home);
        client::execute(session, "COMMIT").await;
    }
    begin_elsewhere(&two, &home, 1).await;
    assert_eq!(refused(&two, "SELECT pg_export_snapshot()").await, "0A000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parallel_dump_through_the_proxy_is_of_one_moment() {
    let cluster = Cluster::of(&[15, 15, 15])
        .proxy("pool_mode = \"transaction\"")
        .schema(
            "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY);
             INSERT INTO a SELECT generate_series(1, 100); INSERT INTO b SELECT generate_series(1, 200)",
        )
        .start()
        .await;
    let dump = cluster.dir().join("dump");
    let install = cluster.nodes[0].install();
    let ran = Program::new(install.client_program("pg_dump").expect("pg_dump"))
        .env("PGPASSWORD", "app")
        .args([
            "-h",
            "127.0.0.1",
            "-U",
            "app",
            "-d",
            "app",
            "-n",
            "public",
            "-j",
            "2",
            "-Fd",
            "-p",
        ])
        .args([cluster.proxy_port.to_string()])
        .args(["-f"])
        .args([&dump])
        .run(LIMIT)
        .await;
    ran.expect_success();
    let list = Program::new(install.client_program("pg_restore").expect("pg_restore"))
        .args(["-f", "-", "-a"])
        .args([&dump])
        .run(LIMIT)
        .await
        .expect_success();
    let rows = list
        .stdout
        .lines()
        .filter(|line| line.parse::<i32>().is_ok());
    assert_eq!(rows.count(), 300);
}

const LARGE: &str = "SELECT lo_from_bytea(4711, 'abc')";

#[tokio::test(flavor = "multi_thread")]
async fn large_objects_are_refused_or_stay_at_home() {
    let cluster = Cluster::of(&[15, 17, 18])
        .proxy("pool_mode = \"transaction\"")
        .schema("CREATE TABLE t (id int PRIMARY KEY)")
        .start()
        .await;
    let client = cluster.proxy().await;
    assert_eq!(refused(&client, LARGE).await, "0A000");
    let bound = client.query("SELECT lo_get($1)", &[&4711_u32]).await;
    assert_eq!(client::sqlstate(&bound.expect_err("refused")), "0A000");
    client::execute(&client, "BEGIN; INSERT INTO t VALUES (1)").await;
    assert_eq!(refused(&client, LARGE).await, "0A000");
    assert_eq!(refused(&client, "SELECT 1").await, "25P02");
    client::execute(&client, "ROLLBACK").await;
    assert_eq!(client::value(&client, "SELECT count(*) FROM t").await, "0");
    // In the function call protocol: lo_creat.
    let mut connection = open(cluster.proxy_port, &[]).await.expect("a login");
    let heard = play(&mut connection, &script().call(957).ready(1)).await;
    assert!(heard.contains("0A000"), "{heard}");
    connection.close().await;
    cluster.change_config(|config| {
        config.replace("[replication]", "[replication]\nlarge_objects = \"home\"")
    });
    cluster.daemon.signal(Signal::HUP);
    eventually("the policy is another one", LIMIT, async || {
        client::try_rows(&client, LARGE)
            .await
            .map(drop)
            .map_err(|error| client::describe(&error))
    })
    .await;
    let others = cluster.proxy().await;
    assert_eq!(
        client::value(&others, "SELECT encode(lo_get(4711), 'escape')").await,
        "abc"
    );
    // The numbers that the function call protocol is looked at for.
    let named = "SELECT string_agg(oid::text, ' ' ORDER BY oid) FROM pg_proc \
        WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^(lo_|loread|lowrite)'";
    let numbers = LARGE_OBJECT_OIDS.map(|number| number.to_string()).join(" ");
    let mut with = 0;
    for node in &cluster.nodes {
        assert_eq!(node.value(named).await, numbers);
        with += node
            .value("SELECT count(*) FROM pg_largeobject_metadata")
            .await
            .parse::<i32>()
            .expect("a count");
    }
    assert_eq!(with, 1, "on the default home only");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_has_large_objects_as_ever() {
    let cluster = Cluster::of(&[15])
        .proxy("pool_mode = \"transaction\"")
        .start()
        .await;
    let client = cluster.proxy().await;
    assert_eq!(client::value(&client, LARGE).await, "4711");
}
