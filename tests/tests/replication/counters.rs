//! Counters: every contribution of every node counts once, whatever the order of arrival and whatever is killed.

use std::time::Duration;

use tandem_tests::{Cluster, ClusterBuilder, Program, client, eventually, poll};
use tokio::task::JoinSet;

const LIMIT: Duration = Duration::from_secs(60);

const PGBENCH: &str = "[replication.table.\"public.pgbench_accounts\"]\ncounters = [\"abalance\"]\n\
    [replication.table.\"public.pgbench_tellers\"]\ncounters = [\"tbalance\"]\n\
    [replication.table.\"public.pgbench_branches\"]\ncounters = [\"bbalance\"]\n";

fn seconds() -> u64 {
    std::env::var("TANDEM_TEST_PGBENCH_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(6)
}

async fn assert_sums(cluster: &Cluster) {
    let sql = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) || ' ' || (SELECT sum(tbalance) FROM pgbench_tellers) || ' ' || \
         (SELECT sum(bbalance) FROM pgbench_branches) || ' ' || (SELECT sum(delta) FROM pgbench_history)";
    for node in &cluster.nodes {
        let sums = node.value(sql).await;
        let mut parts = sums.split(' ');
        let first = parts.next().expect("a sum");
        assert!(parts.all(|sum| sum == first), "{}: {sums}", node.name);
    }
}

/// How many transactions pgbench's clients know to be committed, also those of a run that was aborted.
fn acknowledged(stdout: &str) -> u64 {
    let line = stdout
        .lines()
        .find_map(|line| line.strip_prefix("number of transactions actually processed: "));
    let count = line.and_then(|line| line.split('/').next()?.trim().parse().ok());
    count.unwrap_or_else(|| panic!("pgbench says nothing of its transactions: {stdout}"))
}

/// Runs pgbench on every node at once while the daemon is killed twice, at random moments, and `killed`, a node, after
/// each: once all its processes at once, once as an immediate shutdown does.
async fn sums_are_exact(builder: ClusterBuilder, killed: Option<usize>) {
    let mut cluster = builder.pgbench(2).sections(PGBENCH).start().await;
    let mut running = JoinSet::new();
    for (index, node) in cluster.nodes.iter().enumerate() {
        let time = seconds().to_string();
        let pgbench = Program::pgbench(node.install()).port(node.port());
        let pgbench = pgbench.args(["-n", "-c", "4", "-j", "2", "-T", &time, "-M", "prepared"]);
        let run = pgbench.run(Duration::from_secs(60 + seconds()));
        running.spawn(async move { (index, run.await) });
    }
    for time in 0..2 {
        let moment = Duration::from_secs(seconds()).mul_f64(0.1 + 0.3 * fastrand::f64());
        tokio::time::sleep(moment).await;
        cluster.daemon.kill9().await;
        cluster.daemon.start().await;
        if let Some(node) = killed.and_then(|index| cluster.nodes.get(index)) {
            if time == 0 {
                node.kill9().await;
            } else {
                node.stop_immediately().await;
            }
            node.start_again().await;
        }
    }
    let mut committed = 0;
    for (index, ran) in running.join_all().await {
        committed += acknowledged(&ran.stdout);
        // The clients of a node that dies go with it.
        if killed != Some(index) {
            ran.expect_success();
        }
    }
    cluster.converge(Duration::from_secs(240)).await;
    assert_sums(&cluster).await;
    cluster.assert_equal().await;
    let lines: u64 = cluster.nodes[0]
        .value("SELECT count(*) FROM pgbench_history")
        .await
        .parse()
        .expect("a count");
    // What was being committed when a client died may be there or not.
    assert!(
        (committed..=committed + 12).contains(&lines),
        "{committed} transactions acknowledged, {lines} in the history"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbenchs_balances_add_up_on_every_node_although_the_daemon_is_killed() {
    sums_are_exact(Cluster::of(&[15, 15, 15]), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbenchs_balances_add_up_over_three_majors_although_daemon_and_node_are_killed() {
    sums_are_exact(Cluster::of(&[15, 17, 18]), Some(2)).await;
}

const SCHEMA: &str = "CREATE TABLE item (id int PRIMARY KEY, name text, hits int NOT NULL, worth numeric NOT NULL);\
     INSERT INTO item VALUES (1, 'one', 10, 0.5);";
const COUNTED: &str = "[replication.table.\"public.item\"]\ncounters = [\"hits\", \"worth\"]";

/// Holds everything back while `statements` run, one on each node in turn, then lets it go.
async fn apart(statements: &[(usize, &str)]) -> Cluster {
    let cluster = Cluster::of(&[15, 17, 18])
        .relays()
        .schema(SCHEMA)
        .sections(COUNTED)
        .start()
        .await;
    for relay in &cluster.relays {
        relay.silence_only("apply");
    }
    for &(node, sql) in statements {
        cluster.nodes[node].execute(sql).await;
    }
    for relay in &cluster.relays {
        relay.heal();
    }
    cluster.assert_converged().await;
    cluster
}

async fn assert_row(cluster: &Cluster, id: i32, row: &str) {
    for node in &cluster.nodes {
        let sql = format!(
            "SELECT coalesce((SELECT name || ' ' || hits || ' ' || worth FROM item WHERE id = {id}), 'none')"
        );
        assert_eq!(node.value(&sql).await, row, "{}", node.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_additions_all_count_and_other_columns_follow_the_newest() {
    let cluster = apart(&[
        (
            0,
            "UPDATE item SET hits = hits + 5, worth = worth + 0.25 WHERE id = 1",
        ),
        (
            1,
            "UPDATE item SET hits = hits + 7, name = 'two' WHERE id = 1",
        ),
        (
            2,
            "UPDATE item SET hits = hits - 2, name = 'three' WHERE id = 1",
        ),
        (0, "UPDATE item SET hits = hits + 100 WHERE id = 1"),
    ])
    .await;
    assert_row(&cluster, 1, "one 120 0.75").await;
    let sql = "SELECT count(*) FROM tandem.conflict WHERE type = 'update_origin_differs'";
    let mut lines = 0;
    for node in &cluster.nodes {
        lines += node.value(sql).await.parse::<u32>().expect("a count");
    }
    assert!(lines > 0, "names that lost are logged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_comes_back_has_what_was_added_while_it_was_gone() {
    let cluster = apart(&[
        (0, "DELETE FROM item WHERE id = 1"),
        (1, "UPDATE item SET hits = hits + 7 WHERE id = 1"),
        (
            2,
            "UPDATE item SET hits = hits + 1, name = 'back' WHERE id = 1",
        ),
    ])
    .await;
    // 10 was taken by the delete.
    assert_row(&cluster, 1, "back 8 0.0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_inserted_anew_gets_what_others_added_to_the_deleted_one() {
    let cluster = apart(&[
        (1, "UPDATE item SET hits = hits + 7 WHERE id = 1"),
        (0, "DELETE FROM item WHERE id = 1"),
        (0, "INSERT INTO item VALUES (1, 'new', 1, 1)"),
    ])
    .await;
    assert_row(&cluster, 1, "new 8 1.0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn additions_to_a_row_that_stays_deleted_are_not_lost_for_its_successor() {
    let cluster = apart(&[
        (1, "UPDATE item SET hits = hits + 7 WHERE id = 1"),
        (0, "DELETE FROM item WHERE id = 1"),
    ])
    .await;
    assert_row(&cluster, 1, "none").await;
    cluster.nodes[2]
        .execute("INSERT INTO item VALUES (1, 'later', 3, 0)")
        .await;
    cluster.assert_converged().await;
    assert_row(&cluster, 1, "later 10 0.0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_inserts_of_one_key_add_up() {
    let cluster = apart(&[
        (0, "INSERT INTO item VALUES (2, 'a', 3, 1)"),
        (1, "INSERT INTO item VALUES (2, 'b', 4, 1.5)"),
    ])
    .await;
    assert_row(&cluster, 2, "b 7 2.5").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_takes_its_counters_along() {
    let cluster = apart(&[
        (1, "UPDATE item SET hits = hits + 7 WHERE id = 1"),
        (0, "UPDATE item SET id = 9 WHERE id = 1"),
    ])
    .await;
    // Ten moved; the seven were added to what was left behind, which is gone.
    assert_row(&cluster, 9, "one 10 0.5").await;
    assert_row(&cluster, 1, "none").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_takes_what_its_node_saw() {
    let cluster = apart(&[
        (1, "UPDATE item SET hits = hits + 7 WHERE id = 1"),
        (0, "TRUNCATE item"),
        (
            2,
            "UPDATE item SET hits = hits + 1, name = 'newer' WHERE id = 1",
        ),
    ])
    .await;
    assert_row(&cluster, 1, "newer 8 0.0").await;
}

/// Waits until a link's session on a node waits for a lock.
async fn waits_for_a_lock(cluster: &Cluster, node: usize, link: &str) -> Result<(), String> {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%:{link}' AND wait_event_type = 'Lock'"
    );
    match cluster.nodes[node].value(&sql).await.as_str() {
        "1" => Ok(()),
        _ => Err(format!("{link} waits for no lock")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_session_still_adds_is_not_lost_and_its_link_holds_nobody_up() {
    let cluster = Cluster::of(&[15, 17, 18])
        .relays()
        .schema(SCHEMA)
        .sections(COUNTED)
        .start()
        .await;
    let [_, to_second, to_third] = &cluster.relays[..] else {
        panic!("three relays");
    };
    // Not silenced: what is under way keeps others from the gate.
    to_second.cut_only("apply 1");
    to_third.cut_only("apply 1");
    cluster.nodes[0]
        .execute(
            "BEGIN; UPDATE item SET hits = hits + 7 WHERE id = 1; INSERT INTO item VALUES (2, 'two', 0, 0); COMMIT",
        )
        .await;
    cluster.nodes[2]
        .execute("DELETE FROM item WHERE id = 1")
        .await;
    let limit = Duration::from_secs(20);
    eventually("the delete is applied", limit, async || {
        let sql = "SELECT count(*) FROM item";
        let left = cluster.nodes[1].value(sql).await;
        if left == "0" { Ok(()) } else { Err(left) }
    })
    .await;
    to_third.cut_only("apply 2");
    cluster.nodes[1]
        .execute("INSERT INTO item VALUES (1, 'new', 1, 0)")
        .await;

    // The first node's seven are added to the delete, and the row behind them has to wait for a client.
    let client = cluster.nodes[2].connect().await;
    client::execute(&client, "BEGIN; INSERT INTO item VALUES (2, 'mine', 0, 0)").await;
    to_third.heal_only("apply 1");
    eventually("apply 1 waits", limit, async || {
        waits_for_a_lock(&cluster, 2, "apply 1").await
    })
    .await;
    let refused = to_third.refused();
    to_third.cut_only("apply 1");
    eventually("the link tries again", limit, async || {
        match to_third.refused() - refused {
            0..3 => Err("not refused often enough"),
            _ => Ok(()),
        }
    })
    .await;

    // The row that the second node inserts takes what was added: not while the lost session may still add, nor only
    // once its link is whole.
    to_third.heal_only("apply 2");
    let arrived = poll(Duration::from_secs(5), async || {
        let sql = "SELECT count(*) FROM item";
        let rows = cluster.nodes[2].value(sql).await;
        if rows == "1" { Ok(()) } else { Err(rows) }
    });
    let arrived = arrived.await;
    client::execute(&client, "ROLLBACK").await;
    cluster.relays.iter().for_each(|relay| relay.heal());
    cluster.assert_converged().await;
    assert_row(&cluster, 1, "new 8 0.0").await;
    assert_eq!(arrived, Ok(()), "a link that is cut holds up another");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_cannot_be_a_counter_is_named() {
    let cluster = Cluster::of(&[15, 15])
        .schema("CREATE TABLE item (id int PRIMARY KEY, hits float8 NOT NULL);")
        .sections("[replication.table.\"public.item\"]\ncounters = [\"hits\"]")
        .without_daemon()
        .start()
        .await;
    let mut cluster = cluster;
    cluster.daemon.spawn();
    cluster
        .daemon
        .status_when("the node is refused", Duration::from_secs(20), |status| {
            status["replication"]["nodes"][0]["problem"]
                .as_str()
                .is_some_and(|problem| problem.contains("hits of public.item cannot be a counter"))
        })
        .await;
    let sql = "SELECT relreplident FROM pg_class WHERE relname = 'item'";
    let identity = client::value(&cluster.nodes[0].connect().await, sql).await;
    assert_eq!(identity, "d", "nothing is changed");
}

/// The link waits for what the target had deleted before; what is deleted during its second attempt is not known either.
#[tokio::test(flavor = "multi_thread")]
async fn an_addition_counts_once_although_another_of_its_rows_is_deleted_at_the_second_attempt() {
    let cluster = Cluster::of(&[15, 18])
        .relays()
        .schema(SCHEMA)
        .sections(COUNTED)
        .start()
        .await;
    let [source, target] = [&cluster.nodes[0], &cluster.nodes[1]];
    source
        .execute("INSERT INTO item VALUES (2, 'two', 20, 0)")
        .await;
    cluster.assert_converged().await;
    cluster.relays[1].silence_only("capture");
    target.execute("DELETE FROM item WHERE id = 1").await;
    source.execute("UPDATE item SET hits = hits + 1").await;
    cluster
        .link_when("the link waits for the target's own stream", 0, 1, |link| {
            link["state"] == "waiting_for_cause"
        })
        .await;
    let client = target.connect().await;
    client::execute(&client, "BEGIN; DELETE FROM item WHERE id = 2").await;
    cluster.relays[1].heal();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%apply 1' AND wait_event_type = 'Lock'";
    eventually(
        "the second attempt waits for the row",
        LIMIT,
        async || match target.value(waits).await.as_str() {
            "1" => Ok(()),
            other => Err(other.to_owned()),
        },
    )
    .await;
    client::execute(&client, "COMMIT").await;
    cluster.assert_converged().await;
    target
        .execute("INSERT INTO item VALUES (2, 'two', 200, 0)")
        .await;
    cluster.assert_converged().await;
    assert_row(&cluster, 2, "two 201 0").await;
}
