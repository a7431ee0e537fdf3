//! `tandem diff` names what differs and nothing else; `tandem repair` mends it, versions included.

use std::time::{Duration, Instant};

use serde_json::Value;
use tandem_tests::{Cluster, Program, client, eventually};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::timeout,
};

const LIMIT: Duration = Duration::from_secs(120);

const SCHEMA: &str = "CREATE TABLE item (id int PRIMARY KEY, name text, amount numeric);";

/// How many rows the large table has.
fn rows() -> u64 {
    std::env::var("TANDEM_TEST_DIFF_ROWS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(100_000)
}

/// Writes on one node what no other ever hears of: Tandem forwards nothing that stands under one of its own origins.
/// `at`: the commit timestamp instead of the clock's.
async fn silently(cluster: &Cluster, node: usize, at: Option<&str>, sql: &str) {
    let node = &cluster.nodes[node];
    let origin = format!("tandem_{}_99", node.id);
    let client = node.connect().await;
    let create = format!(
        "SELECT pg_replication_origin_create('{origin}') WHERE NOT EXISTS \
         (SELECT FROM pg_replication_origin WHERE roname = '{origin}')"
    );
    client::execute(&client, &create).await;
    let setup = format!("SELECT pg_replication_origin_session_setup('{origin}')");
    client::execute(&client, &setup).await;
    let stamp = at.map_or_else(String::new, |at| {
        format!("SELECT pg_replication_origin_xact_setup('0/1', '{at}');")
    });
    client::execute(
        &client,
        &format!("SET session_replication_role = replica; BEGIN; {sql}; {stamp} COMMIT"),
    )
    .await;
    client::execute(&client, "SELECT pg_replication_origin_session_reset()").await;
}

/// What a comparison or repair said, as lines of JSON.
struct Found {
    code: Option<i32>,
    differences: Vec<Value>,
    summary: Value,
    all: String,
}

impl Found {
    /// How many differ, of each table and key.
    fn keys(&self) -> Vec<String> {
        let key = |difference: &Value| {
            format!(
                "{} {}",
                difference["table"].as_str().unwrap_or_default(),
                difference["key"]
            )
        };
        let mut keys: Vec<_> = self.differences.iter().map(key).collect();
        keys.sort();
        keys
    }

    fn expect_equal(&self) {
        assert_eq!(self.code, Some(0), "{}", self.all);
        assert_eq!(self.summary["differences"], 0, "{}", self.all);
    }

    fn expect_repaired(&self, differences: u64) {
        assert_eq!(self.code, Some(0), "{}", self.all);
        assert_eq!(self.summary["repaired"], differences, "{}", self.all);
        assert_eq!(self.summary["differences"], differences, "{}", self.all);
    }
}

async fn ask(cluster: &Cluster, command: &str, args: &[&str]) -> Found {
    let ran = cluster
        .daemon
        .command(command)
        .args(["--json"])
        .args(args)
        .run(LIMIT)
        .await;
    let mut found = Found {
        code: ran.status.code(),
        differences: Vec::new(),
        summary: Value::Null,
        all: ran.all(),
    };
    for line in ran.stdout.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{}", found.all));
        match line["event"].as_str() {
            Some("difference") => found.differences.push(line),
            Some("summary") => found.summary = line,
            _ => {}
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn one_changed_row_of_many_is_found_and_mended_on_all_nodes() {
    let mut cluster = Cluster::of(&[15, 17, 18]).schema(SCHEMA).start().await;
    let rows = rows();
    let load = format!(
        "INSERT INTO item SELECT i, 'name ' || i, i / 7.0 FROM generate_series(1, {rows}) i"
    );
    cluster.nodes[0].execute(&load).await;
    cluster.assert_converged().await;
    ask(&cluster, "diff", &[]).await.expect_equal();

    let change = "UPDATE item SET name = 'changed' WHERE id = 77777";
    silently(&cluster, 1, None, change).await;
    let begin = Instant::now();
    let found = ask(&cluster, "diff", &[]).await;
    eprintln!("one of {rows} rows found in {:?}", begin.elapsed());
    assert_eq!(found.code, Some(1), "{}", found.all);
    assert_eq!(found.keys(), ["public.item [77777]"]);
    assert_eq!(found.summary["rows"], rows);
    let nodes = &found.differences[0]["nodes"];
    assert_eq!(nodes[1]["row"]["name"], "changed");
    assert_eq!(nodes[1]["version"]["node"], "n2");
    assert_eq!(nodes[0]["row"]["name"], "name 77777");
    assert_eq!(nodes[0]["version"]["node"], "n1");

    let planned = ask(&cluster, "repair", &["--dry-run"]).await;
    assert_eq!(planned.code, Some(1), "{}", planned.all);
    let actions: Vec<_> = (0..3)
        .map(|node| planned.differences[0]["nodes"][node]["action"].clone())
        .collect();
    assert_eq!(actions, ["replace", "keep", "replace"]);
    assert_eq!(ask(&cluster, "diff", &[]).await.keys().len(), 1);

    ask(&cluster, "repair", &[]).await.expect_repaired(1);
    ask(&cluster, "diff", &[]).await.expect_equal();
    cluster.assert_converged().await;
    let name = "SELECT name FROM item WHERE id = 77777";
    assert_eq!(cluster.nodes[2].value(name).await, "changed");

    // What is mended is a row like any other, also for a daemon that starts anew.
    cluster.nodes[2]
        .execute("UPDATE item SET name = 'later' WHERE id = 77777")
        .await;
    cluster.assert_converged().await;
    cluster.daemon.restart().await;
    cluster.nodes[0]
        .execute("UPDATE item SET name = 'last' WHERE id = 77777")
        .await;
    cluster.assert_converged().await;
    assert_eq!(cluster.nodes[1].value(name).await, "last");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_extra_and_stale_rows_get_the_newest_version_everywhere() {
    let cluster = Cluster::of(&[15, 17, 18]).schema(SCHEMA).start().await;
    cluster.nodes[0]
        .execute("INSERT INTO item SELECT i, 'x', 0 FROM generate_series(1, 50) i")
        .await;
    cluster.assert_converged().await;
    let long_ago = Some("2021-03-04 05:06:07.89+00");
    silently(&cluster, 0, None, "DELETE FROM item WHERE id = 3").await;
    silently(&cluster, 2, None, "DELETE FROM item WHERE id = 4").await;
    silently(
        &cluster,
        1,
        long_ago,
        "INSERT INTO item VALUES (1000, 'extra', 1)",
    )
    .await;
    silently(
        &cluster,
        2,
        long_ago,
        "UPDATE item SET name = 'stale' WHERE id IN (5, 6)",
    )
    .await;
    // The same content in another version would lose and win elsewhere.
    silently(
        &cluster,
        1,
        None,
        "UPDATE item SET name = name WHERE id = 7",
    )
    .await;
    let found = ask(&cluster, "diff", &["--limit", "2"]).await;
    assert_eq!(found.code, Some(1), "{}", found.all);
    assert_eq!(found.differences.len(), 2, "{}", found.all);
    assert_eq!(found.summary["differences"], 6, "{}", found.all);
    ask(&cluster, "repair", &[]).await.expect_repaired(6);
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        let all = node
            .value("SELECT count(*) || ' ' || count(*) FILTER (WHERE name = 'x') FROM item")
            .await;
        assert_eq!(all, "51 50", "{}", node.name);
    }
    cluster.nodes[2]
        .execute("UPDATE item SET amount = amount + 1; DELETE FROM item WHERE id IN (4, 1000)")
        .await;
    cluster.assert_converged().await;
    ask(&cluster, "diff", &[]).await.expect_equal();
}

/// Deletes are forgotten every few seconds, perhaps before the repair: then the row comes back, and another is tried.
#[tokio::test(flavor = "multi_thread")]
async fn a_delete_that_one_node_remembers_is_carried_out_on_the_others() {
    let cluster = Cluster::of(&[15, 18]).schema(SCHEMA).start().await;
    cluster.nodes[0]
        .execute("INSERT INTO item SELECT i, 'x', 0 FROM generate_series(1, 9) i")
        .await;
    cluster.assert_converged().await;
    for id in 1..9 {
        let delete = format!(
            "DELETE FROM item WHERE id = {id}; \
             INSERT INTO tandem.tombstone VALUES ('\"public\".\"item\"', '[{id}]', clock_timestamp(), 1)"
        );
        silently(&cluster, 0, None, &delete).await;
        let repaired = ask(&cluster, "repair", &[]).await;
        repaired.expect_repaired(1);
        cluster.assert_converged().await;
        if repaired.differences[0]["nodes"][1]["action"] == "delete" {
            let left = format!("SELECT count(*) FROM item WHERE id = {id}");
            assert_eq!(cluster.nodes[1].value(&left).await, "0");
            return;
        }
    }
    panic!("every delete was forgotten before the repair");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_kind_are_compared_and_mended() {
    let schema = r#"
        CREATE TABLE word (word text PRIMARY KEY, n int);
        CREATE TABLE padded (code char(8), n int, day timestamptz, PRIMARY KEY (code, day));
        CREATE TABLE tenant (tenant int, "Name" text, n int, PRIMARY KEY (tenant, "Name"));
        CREATE TABLE sorted (key text COLLATE "C" PRIMARY KEY, n int);
        CREATE TABLE price (price numeric(12, 4), id uuid, n bigint GENERATED ALWAYS AS IDENTITY,
            double numeric GENERATED ALWAYS AS (price * 2) STORED, PRIMARY KEY (id, price) INCLUDE (n));
        CREATE TYPE mood AS ENUM ('sad', 'glad');
        CREATE TABLE feeling (mood mood, tags text[], doc jsonb, PRIMARY KEY (mood, tags));
        CREATE TABLE bare (key int PRIMARY KEY);
    "#;
    let cluster = Cluster::of(&[15, 17, 18]).schema(schema).start().await;
    for node in &cluster.nodes {
        node.execute("CREATE EXTENSION ltree; CREATE TABLE place (path ltree PRIMARY KEY, n int)")
            .await;
    }
    let fill = r#"
        INSERT INTO word SELECT chr(96 + i % 26) || 'É_' || i, i FROM generate_series(1, 3000) i;
        INSERT INTO padded SELECT 'c' || i % 10, i, timestamptz '2026-01-01' + i * interval '1 s' FROM generate_series(1, 500) i;
        INSERT INTO tenant SELECT i % 3, 'it''s "' || i, i FROM generate_series(1, 500) i;
        INSERT INTO sorted SELECT i::text, i FROM generate_series(1, 500) i;
        INSERT INTO price (price, id) SELECT i / 3.0, md5(i::text)::uuid FROM generate_series(1, 500) i;
        INSERT INTO feeling SELECT 'glad', ARRAY['a,b', i::text, NULL, '"'], jsonb_build_object('i', i) FROM generate_series(1, 100) i;
        INSERT INTO place SELECT ('top.n' || i)::ltree, i FROM generate_series(1, 100) i;
        INSERT INTO bare SELECT i FROM generate_series(1, 100) i;
    "#;
    cluster.nodes[0].execute(fill).await;
    cluster.assert_converged().await;
    ask(&cluster, "diff", &[]).await.expect_equal();
    let change = "UPDATE word SET n = -1 WHERE n = 2999; UPDATE padded SET n = -1 WHERE n = 77; \
        UPDATE tenant SET n = -1 WHERE n = 78; UPDATE sorted SET n = -1 WHERE n = 79; \
        DELETE FROM price WHERE n = 80; UPDATE feeling SET doc = 'null' WHERE doc @> '{\"i\": 81}'; \
        UPDATE place SET n = -1 WHERE n = 82; DELETE FROM bare WHERE key = 83";
    silently(&cluster, 1, None, change).await;
    let found = ask(&cluster, "diff", &[]).await;
    let tables: Vec<_> = found
        .differences
        .iter()
        .map(|difference| difference["table"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(
        tables,
        [
            "public.bare",
            "public.feeling",
            "public.padded",
            "public.place",
            "public.price",
            "public.sorted",
            "public.tenant",
            "public.word"
        ],
        "{}",
        found.all
    );
    // One table of all, by its name alone.
    let one = ask(&cluster, "repair", &["--table", "tenant"]).await;
    one.expect_repaired(1);
    assert_eq!(one.differences[0]["key"][1], "it's \"78");
    ask(&cluster, "repair", &[]).await.expect_repaired(7);
    cluster.assert_converged().await;
    ask(&cluster, "diff", &[]).await.expect_equal();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_table_without_a_key_lacks_are_written() {
    let cluster = Cluster::of(&[15, 17, 18])
        .schema("CREATE TABLE log (at_node int, note text);")
        .start()
        .await;
    for node in &cluster.nodes {
        let insert = format!(
            "INSERT INTO log SELECT {}, 'same' FROM generate_series(1, 20)",
            node.id
        );
        node.execute(&insert).await;
    }
    cluster.assert_converged().await;
    ask(&cluster, "diff", &[]).await.expect_equal();
    let more = "INSERT INTO log VALUES (1, 'same'), (1, 'same'), (9, NULL)";
    silently(&cluster, 1, None, more).await;
    silently(
        &cluster,
        2,
        Some("2024-01-01"),
        "INSERT INTO log VALUES (8, 'old')",
    )
    .await;
    let found = ask(&cluster, "diff", &[]).await;
    assert_eq!(found.summary["differences"], 3, "{}", found.all);
    ask(&cluster, "repair", &[]).await.expect_repaired(3);
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        let count = node.value("SELECT count(*) FROM log").await;
        assert_eq!(count, "64", "{}", node.name);
    }
}

/// Each node has its own version of rows that were loaded there before replication began.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_loaded_on_each_node_are_compared_by_content() {
    let load = "CREATE TABLE base (id int PRIMARY KEY, name text); \
                INSERT INTO base SELECT i, 'x' FROM generate_series(1, 2000) i;";
    let mut cluster = Cluster::of(&[15, 18])
        .schema(load)
        .pgbench(1)
        .without_daemon()
        .start()
        .await;
    cluster.nodes[1]
        .execute("UPDATE base SET name = 'other' WHERE id = 5; DELETE FROM base WHERE id = 6")
        .await;
    cluster.nodes[1]
        .execute("UPDATE pgbench_accounts SET filler = 'f' WHERE aid = 7")
        .await;
    cluster.daemon.start().await;
    let found = ask(&cluster, "diff", &[]).await;
    assert_eq!(
        found.keys(),
        [
            "public.base [5]",
            "public.base [6]",
            "public.pgbench_accounts [7]"
        ],
        "{}",
        found.all
    );
    ask(&cluster, "repair", &[]).await.expect_repaired(3);
    ask(&cluster, "diff", &[]).await.expect_equal();
    for node in &cluster.nodes {
        let names = "SELECT string_agg(name, ' ' ORDER BY id) FROM base WHERE id IN (5, 6)";
        assert_eq!(node.value(names).await, "other x", "{}", node.name);
    }
    cluster.nodes[0]
        .execute("UPDATE base SET name = 'new' WHERE id < 10")
        .await;
    cluster.nodes[1]
        .execute("UPDATE base SET name = name || '!' WHERE id = 2000")
        .await;
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_followed_whatever_the_versions_say() {
    let cluster = Cluster::of(&[15, 17, 18]).schema(SCHEMA).start().await;
    cluster.nodes[0]
        .execute("INSERT INTO item SELECT i, 'x', 0 FROM generate_series(1, 9) i")
        .await;
    cluster.assert_converged().await;
    let wrong = "UPDATE item SET name = 'wrong' WHERE id = 1; DELETE FROM item WHERE id = 2; \
                 INSERT INTO item VALUES (100, 'wrong', 0)";
    silently(&cluster, 2, None, wrong).await;
    let repaired = ask(&cluster, "repair", &["--source", "n1"]).await;
    repaired.expect_repaired(3);
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        let all = node
            .value("SELECT string_agg(id || name, ' ' ORDER BY id) FROM item")
            .await;
        assert_eq!(all, "1x 2x 3x 4x 5x 6x 7x 8x 9x", "{}", node.name);
    }
    let unknown = ask(&cluster, "repair", &["--source", "nowhere"]).await;
    assert_eq!(unknown.code, Some(1), "{}", unknown.all);
    assert!(
        unknown.all.contains("no node is named nowhere"),
        "{}",
        unknown.all
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_not_the_same_everywhere_are_named() {
    let cluster = Cluster::of(&[15, 18]).schema(SCHEMA).start().await;
    cluster.nodes[0]
        .execute("CREATE TABLE only_here (id int PRIMARY KEY)")
        .await;
    cluster.nodes[1]
        .execute("ALTER TABLE item ADD COLUMN note text")
        .await;
    let ran = cluster.daemon.command("diff").run(LIMIT).await;
    assert_eq!(ran.status.code(), Some(1), "{}", ran.all());
    for text in [
        "public.only_here: not compared: does not exist on n2",
        "public.item: not compared: n1 and n2 do not have the same columns: note",
        "2 tables not compared",
    ] {
        assert!(
            ran.stdout.contains(text),
            "{text} is missing in {}",
            ran.all()
        );
    }
    let ran = cluster
        .daemon
        .command("diff")
        .args(["--table", "nothing"])
        .run(LIMIT)
        .await;
    assert_eq!(ran.status.code(), Some(1), "{}", ran.all());
    assert!(
        ran.all().contains("no replicated table is named nothing"),
        "{}",
        ran.all()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_away_is_named_and_nothing_is_called_different() {
    let cluster = Cluster::of(&[15, 18]).schema(SCHEMA).start().await;
    cluster.nodes[1].stop_fast().await;
    let ran = cluster.daemon.command("diff").run(LIMIT).await;
    assert_eq!(ran.status.code(), Some(1), "{}", ran.all());
    assert!(ran.stderr.contains("n2"), "{}", ran.all());
    assert!(ran.stdout.is_empty(), "{}", ran.all());
}

/// Every row is written many times a second somewhere: lag must not be called a difference, and what does differ must
/// be mended without a loss.
#[tokio::test(flavor = "multi_thread")]
async fn under_load_nothing_but_what_differs_is_found_and_mended() {
    let cluster = Cluster::of(&[15, 17, 18])
        .schema(SCHEMA)
        .pgbench(2)
        .start()
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO item SELECT i, 'x', 0 FROM generate_series(1, 100) i")
        .await;
    // Not more than the nodes can apply: each look waits for all that was committed before it.
    let mut running: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| {
            let pgbench = Program::pgbench(cluster.nodes[0].install()).port(node.port());
            pgbench
                .args(["-n", "-c", "2", "-T", "120", "-R", "100"])
                .spawn()
        })
        .collect();
    let seen = "SELECT count(*) FROM pgbench_history";
    eventually("the load has begun", LIMIT, async || {
        let seen: u64 = cluster.nodes[0].value(seen).await.parse().unwrap_or(0);
        if seen > 100 {
            Ok(())
        } else {
            Err(format!("{seen} transactions"))
        }
    })
    .await;
    let begin = Instant::now();
    for _ in 0..2 {
        let found = ask(&cluster, "diff", &[]).await;
        eprintln!("under load after {:?}: {}", begin.elapsed(), found.summary);
        found.expect_equal();
    }
    silently(
        &cluster,
        1,
        None,
        "DELETE FROM pgbench_accounts WHERE aid = 4711; UPDATE item SET name = 'y' WHERE id = 1",
    )
    .await;
    let repaired = ask(&cluster, "repair", &[]).await;
    eprintln!("mended after {:?}: {}", begin.elapsed(), repaired.summary);
    for pgbench in &mut running {
        assert!(
            pgbench.try_wait().is_ok_and(|ended| ended.is_none()),
            "the load has ended"
        );
        pgbench.kill().await.expect("pgbench can be killed");
    }
    assert_eq!(repaired.code, Some(0), "{}", repaired.all);
    assert_eq!(
        repaired.keys(),
        ["public.item [1]", "public.pgbench_accounts [4711]"],
        "{}",
        repaired.all
    );
    cluster.assert_converged().await;
}

/// The rest is mended by the next repair; what was under way is there once or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_is_cut_off_leaves_nothing_half_done() {
    let mut cluster = Cluster::of(&[15, 18])
        .durable()
        .schema(SCHEMA)
        .start()
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO item SELECT i, 'x', 0 FROM generate_series(1, 20000) i")
        .await;
    cluster.assert_converged().await;
    silently(&cluster, 1, None, "DELETE FROM item").await;
    let count = "SELECT count(*) FROM item";
    let mended = async |more_than: u64| {
        eventually("some rows are mended", LIMIT, async || {
            let rows: u64 = cluster.nodes[1].value(count).await.parse().unwrap_or(0);
            if rows > more_than {
                Ok(rows)
            } else {
                Err(format!("{rows} rows"))
            }
        })
        .await
    };
    let (killed, ()) = tokio::join!(ask(&cluster, "repair", &["--limit", "1"]), async {
        mended(0).await;
        cluster.nodes[1].kill9().await;
    });
    assert_eq!(killed.code, Some(1), "{}", killed.all);
    cluster.nodes[1].start_again().await;
    cluster.converge(LIMIT).await;
    let before: u64 = cluster.nodes[1]
        .value(count)
        .await
        .parse()
        .expect("a count");
    let running = cluster.daemon.command("repair").args(["--json"]).spawn();
    mended(before).await;
    cluster.daemon.kill9().await;
    drop(running);
    cluster.daemon.start().await;
    cluster.converge(LIMIT).await;
    let left: u64 = cluster.nodes[1]
        .value(count)
        .await
        .parse()
        .expect("a count");
    let rest = ask(&cluster, "repair", &["--limit", "1"]).await;
    rest.expect_repaired(20000 - left);
    cluster.assert_converged().await;
    cluster.nodes[1]
        .execute("UPDATE item SET amount = 1 WHERE id % 2 = 0")
        .await;
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_comparison_runs_at_a_time_and_ends_with_whoever_asked_for_it() {
    let cluster = Cluster::of(&[15, 15]).relays().schema(SCHEMA).start().await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (1, 'x', 0)")
        .await;
    cluster.assert_converged().await;
    silently(&cluster, 0, None, "DELETE FROM item").await;
    // What differs is looked at again only when the nodes have caught up, which they cannot now.
    cluster
        .relays
        .iter()
        .for_each(|relay| relay.silence_only("apply"));
    let mut first = cluster.daemon.command("diff").args(["--progress"]).spawn();
    // Only what has been let in reports how far it is; who asks before that may be let in instead of it.
    let told = first.stderr.take().expect("standard error is piped");
    let mut told = BufReader::new(told).lines();
    let line = timeout(LIMIT, told.next_line())
        .await
        .expect("a report in time");
    assert!(
        line.expect("standard error")
            .is_some_and(|line| line.contains("rows"))
    );
    let busy = async |wanted: bool| {
        eventually("whether another one runs", LIMIT, async || {
            let other = cluster.daemon.command("diff").args(["--table", "nothing"]);
            let said = other.run(LIMIT).await.all();
            if said.contains("another comparison") == wanted {
                Ok(())
            } else {
                Err(said)
            }
        })
        .await;
    };
    busy(true).await;
    drop(first);
    busy(false).await;
    cluster.relays.iter().for_each(|relay| relay.heal());
    assert_eq!(ask(&cluster, "diff", &[]).await.keys(), ["public.item [1]"]);
}
