//! Group apply: a backlog is merged, not replayed, and nobody can tell but by the clock.

use std::time::Duration;

use tandem_tests::{Cluster, ClusterBuilder, Node, client};

/// Two transactions make a run.
const ALWAYS: &str = "group_apply = 2";

/// Nodes whose links can be cut, with a table.
fn nodes(majors: &[u32]) -> ClusterBuilder {
    Cluster::of(majors)
        .relays()
        .replication(ALWAYS)
        .schema("CREATE TABLE t (id int PRIMARY KEY, v text, n int NOT NULL DEFAULT 0); CREATE TABLE log (note text)")
}

fn part(source: usize) -> String {
    format!("apply {}", source + 1)
}

/// Lets nothing of `source` reach `target`.
fn hold(cluster: &Cluster, source: usize, target: usize) {
    cluster.relays[target].silence_only(&part(source));
}

fn release(cluster: &Cluster, source: usize, target: usize) {
    cluster.relays[target].heal_only(&part(source));
}

/// Runs each statement as a transaction of its own.
async fn each(node: &Node, statements: impl IntoIterator<Item = String>) {
    let client = node.connect().await;
    for sql in statements {
        client::execute(&client, &sql).await;
    }
}

/// How many runs a node has applied.
async fn runs(node: &Node) -> i64 {
    let sql = "SELECT coalesce(max(id), 0) FROM tandem.run";
    node.value(sql).await.parse().expect("a number")
}

async fn all(node: &Node) -> String {
    node.value(
        "SELECT coalesce(string_agg(format('%s=%s/%s', id, v, n), ' ' ORDER BY id), '') FROM t",
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_all_kinds_of_changes_ends_equal_and_its_deletes_are_remembered() {
    let cluster = nodes(&[15, 17, 18]).start().await;
    let [one, two, three] = &cluster.nodes[..] else {
        unreachable!("three nodes")
    };
    one.execute("INSERT INTO t SELECT g, 'old' FROM generate_series(1, 100) g")
        .await;
    cluster.assert_converged().await;
    hold(&cluster, 0, 1);
    hold(&cluster, 0, 2);
    let changes = (1..=100).flat_map(|id| {
        let mut changes = vec![format!("UPDATE t SET v = 'new {id}' WHERE id = {id}")];
        match id % 5 {
            0 => changes.push(format!("DELETE FROM t WHERE id = {id}")),
            1 => changes.push(format!("UPDATE t SET n = n + {id} WHERE id IN ({id}, 2)")),
            2 => changes.push(format!("INSERT INTO t VALUES ({id} + 1000, 'born')")),
            3 => changes.push(format!(
                "INSERT INTO t VALUES ({id} + 1000, 'short'); DELETE FROM t WHERE id = {id} + 1000"
            )),
            _ => changes.push(format!("INSERT INTO log VALUES ('note {id}')")),
        }
        changes
    });
    each(one, changes).await;
    // Rows that come back, and keys that move, are looked at more closely.
    each(
        one,
        [
            "INSERT INTO t VALUES (5, 'again')".to_owned(),
            "UPDATE t SET id = 2000 WHERE id = 7".to_owned(),
            "UPDATE t SET v = 'last' WHERE id = 2000".to_owned(),
        ],
    )
    .await;
    release(&cluster, 0, 1);
    release(&cluster, 0, 2);
    cluster.assert_converged().await;
    for node in [two, three] {
        assert!(runs(node).await > 0, "{} made no run", node.name);
        let remembered = "SELECT count(*) FROM tandem.tombstone";
        assert_eq!(node.value(remembered).await, "41");
        assert_eq!(all(node).await, all(one).await);
    }
    let conflicts = "SELECT count(*) FROM tandem.conflict";
    assert_eq!(two.value(conflicts).await, "0");
}

/// Node 1 runs `before`, node 2 `between`, node 1 `after`, without knowing of each other. What node 1 did reaches node 3 as
/// a run, and only then comes what node 2 did: older than the run, newer than some of its rows.
async fn interleaved(rows: &str, before: [&str; 2], between: &str, after: [&str; 2]) -> Cluster {
    let cluster = nodes(&[15, 17, 18]).start().await;
    let [one, two, three] = &cluster.nodes[..] else {
        unreachable!("three nodes")
    };
    one.execute(rows).await;
    cluster.assert_converged().await;
    let link = cluster.link(0, 2).await;
    let applied = link["transactions"].as_u64().expect("a count");
    // Behind a transaction that is under way the others gather.
    hold(&cluster, 0, 1);
    hold(&cluster, 0, 2);
    cluster.relays[1].silence_only("capture");
    one.execute("INSERT INTO log VALUES ('first')").await;
    cluster
        .link_when("the first is read", 0, 2, |link| {
            link["lag_transactions"].as_u64() >= Some(1)
        })
        .await;
    each(one, before.map(str::to_owned)).await;
    two.execute(between).await;
    each(one, after.map(str::to_owned)).await;
    cluster
        .link_when("all are read", 0, 2, |link| {
            link["lag_transactions"].as_u64() >= Some(5)
        })
        .await;
    release(&cluster, 0, 2);
    cluster
        .link_when("node 1 reaches node 3", 0, 2, |link| {
            link["transactions"].as_u64() >= Some(applied + 5)
        })
        .await;
    let writers = "SELECT count(DISTINCT xmin::text) FROM t WHERE v = 'one'";
    assert_eq!(three.value(writers).await, "1", "not one run");
    cluster.relays[1].heal_only("capture");
    release(&cluster, 0, 1);
    cluster.assert_converged().await;
    cluster
}

/// The same with updates of the rows 1 to 4.
async fn a_change_between(between: &str) -> Cluster {
    let update =
        [1, 2, 3, 4].map(|id| format!("UPDATE t SET v = 'one', n = n + 1 WHERE id = {id}"));
    let [one, two, three, four] = update.each_ref().map(String::as_str);
    let rows = "INSERT INTO t SELECT g, 'old' FROM generate_series(1, 9) g";
    interleaved(rows, [one, two], between, [three, four]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_is_newer_than_the_row_wins_though_the_run_is_newer_still() {
    let cluster = a_change_between("UPDATE t SET v = 'two' WHERE id IN (1, 4)").await;
    for node in &cluster.nodes {
        let found = all(node).await;
        assert!(
            found.starts_with("1=two/0 2=one/1 3=one/1 4=one/1"),
            "{}: {found}",
            node.name
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_that_is_newer_than_the_row_wins_though_the_run_is_newer_still() {
    let cluster = a_change_between("DELETE FROM t WHERE id IN (1, 4)").await;
    for node in &cluster.nodes {
        let found = all(node).await;
        assert!(
            found.starts_with("2=one/1 3=one/1 4=one/1"),
            "{}: {found}",
            node.name
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_takes_the_rows_that_are_older_and_leaves_the_others() {
    let cluster = a_change_between("TRUNCATE t").await;
    for node in &cluster.nodes {
        assert_eq!(all(node).await, "3=one/1 4=one/1", "{}", node.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_that_is_newer_than_the_row_wins_though_the_run_is_newer_still() {
    let insert = [1, 2, 3, 4].map(|id| format!("INSERT INTO t VALUES ({id}, 'one')"));
    let [one, two, three, four] = insert.each_ref().map(String::as_str);
    let between = "INSERT INTO t VALUES (1, 'two'), (4, 'two')";
    let cluster = interleaved("SELECT", [one, two], between, [three, four]).await;
    for node in &cluster.nodes {
        let expected = "1=two/0 2=one/0 3=one/0 4=one/0";
        assert_eq!(all(node).await, expected, "{}", node.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_the_target_s_own_client_wrote_later_wins_and_is_logged_once() {
    let cluster = nodes(&[15, 18]).start().await;
    let [one, two] = &cluster.nodes[..] else {
        unreachable!("two nodes")
    };
    one.execute("INSERT INTO t SELECT g, 'old' FROM generate_series(1, 40) g")
        .await;
    cluster.assert_converged().await;
    hold(&cluster, 0, 1);
    each(
        one,
        (1..=20).map(|id| format!("UPDATE t SET v = 'one' WHERE id = {id}")),
    )
    .await;
    two.execute("UPDATE t SET v = 'two' WHERE id = 10; DELETE FROM t WHERE id = 11")
        .await;
    each(
        one,
        (21..=40).map(|id| format!("UPDATE t SET v = 'one' WHERE id = {id}")),
    )
    .await;
    release(&cluster, 0, 1);
    cluster.assert_converged().await;
    assert!(runs(two).await > 0, "no run was made");
    let found =
        "SELECT count(*) || ' ' || count(*) FILTER (WHERE v = 'one') || ' ' || max(v) FROM t";
    assert_eq!(two.value(found).await, "39 38 two");
    let lines = "SELECT string_agg(type, ' ' ORDER BY id) FROM tandem.conflict";
    assert_eq!(
        two.value(lines).await,
        "update_origin_differs update_deleted"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_the_target_refuses_goes_to_the_quarantine_alone() {
    let cluster = nodes(&[15, 18]).start().await;
    let [one, two] = &cluster.nodes[..] else {
        unreachable!("two nodes")
    };
    two.execute("ALTER TABLE t ADD CHECK (v <> 'bad')").await;
    hold(&cluster, 0, 1);
    each(
        one,
        (1..=60).map(|id| {
            let v = if id == 30 { "bad" } else { "good" };
            format!("INSERT INTO t VALUES ({id}, '{v}')")
        }),
    )
    .await;
    release(&cluster, 0, 1);
    tandem_tests::eventually(
        "all but one arrive",
        Duration::from_secs(30),
        async || match two.value("SELECT count(*) FROM t").await.as_str() {
            "59" => Ok(()),
            count => Err(count.to_owned()),
        },
    )
    .await;
    assert_eq!(
        two.value("SELECT count(*) FROM tandem.quarantine").await,
        "1"
    );
    two.execute("ALTER TABLE t DROP CONSTRAINT t_v_check").await;
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_applied_exactly_once_whoever_is_killed() {
    let mut cluster = nodes(&[15, 17])
        .sections("[replication.table.\"public.t\"]\ncounters = [\"n\"]\n")
        .start()
        .await;
    cluster.nodes[0]
        .execute("INSERT INTO t SELECT g, 'old' FROM generate_series(1, 50) g")
        .await;
    cluster.assert_converged().await;
    for round in 0..6 {
        hold(&cluster, 0, 1);
        let changes = (0..400).map(|number| {
            format!(
                "UPDATE t SET v = 'round {round}', n = n + 1 WHERE id = {}; INSERT INTO log VALUES ('{round} {number}')",
                number % 50 + 1
            )
        });
        each(&cluster.nodes[0], changes).await;
        release(&cluster, 0, 1);
        match round % 3 {
            0 => {
                cluster.daemon.kill9().await;
                cluster.daemon.start().await;
            }
            1 => {
                cluster.nodes[1].kill9().await;
                cluster.nodes[1].start_again().await;
            }
            _ => {
                cluster.relays[1].cut_only(&part(0));
                release(&cluster, 0, 1);
            }
        }
    }
    cluster.converge(Duration::from_secs(60)).await;
    cluster.assert_equal().await;
    assert!(runs(&cluster.nodes[1]).await > 0, "no run was made");
    let sums = "SELECT (SELECT sum(n) FROM t) || ' ' || (SELECT count(*) FROM log)";
    assert_eq!(cluster.nodes[1].value(sums).await, "2400 2400");
}
