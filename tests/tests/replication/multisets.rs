//! Tables without a primary key: how often each row stands in them is the same on every node.

use std::time::Duration;

use tandem_tests::{Cluster, client, eventually};

const SCHEMA: &str =
    "CREATE TABLE log (note text, code char(4), done bool, at timestamptz, doc json);";

async fn cluster() -> Cluster {
    let builder = Cluster::of(&[15, 17, 18]).relays().schema(SCHEMA);
    builder.start().await
}

/// Holds everything back while `statements` run, one on each named node in turn, then lets it go.
async fn apart(cluster: &Cluster, statements: &[(usize, &str)]) {
    for relay in &cluster.relays {
        relay.silence_only("apply");
    }
    for &(node, sql) in statements {
        cluster.nodes[node].execute(sql).await;
    }
    for relay in &cluster.relays {
        relay.heal();
    }
    cluster.converge(Duration::from_secs(60)).await;
}

const ROWS: &str = "SELECT coalesce(string_agg(l::text, ' ' ORDER BY l::text), '') FROM log l";

/// Waits until every node has the same rows, which are these if any are given.
async fn assert_rows(cluster: &Cluster, rows: Option<&str>) {
    eventually("the same rows", Duration::from_secs(20), async || {
        let first = cluster.nodes[0].value(ROWS).await;
        let wanted = rows.unwrap_or(&first);
        for node in &cluster.nodes {
            let found = node.value(ROWS).await;
            if found != wanted {
                return Err(format!("{}: {found}, not {wanted}", node.name));
            }
        }
        Ok(())
    })
    .await;
}

async fn debts(cluster: &Cluster) -> Vec<String> {
    let mut debts = Vec::new();
    for node in &cluster.nodes {
        debts.push(
            node.value("SELECT coalesce(sum(count), 0) FROM tandem.debt")
                .await,
        );
    }
    debts
}

const ONE: &str = "INSERT INTO log VALUES ('a', 'x', true, '2026-01-01', '{\"k\":  1}')";

#[tokio::test(flavor = "multi_thread")]
async fn of_equal_rows_one_is_updated_and_one_deleted() {
    let cluster = cluster().await;
    for _ in 0..3 {
        cluster.nodes[0].execute(ONE).await;
    }
    cluster.assert_converged().await;
    cluster.nodes[1]
        .execute("UPDATE log SET done = NULL WHERE ctid = (SELECT max(ctid) FROM log)")
        .await;
    cluster.converge(Duration::from_secs(60)).await;
    cluster.nodes[2]
        .execute("DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log WHERE done)")
        .await;
    cluster.converge(Duration::from_secs(60)).await;
    let row = |done| format!(r#"(a,"x   ",{done},"2026-01-01 00:00:00+00","{{""k"":  1}}")"#);
    for node in &cluster.nodes {
        node.execute("ALTER DATABASE app SET timezone = 'UTC'")
            .await;
    }
    assert_rows(&cluster, Some(&format!("{} {}", row(""), row("t")))).await;
    assert_eq!(debts(&cluster).await, ["0", "0", "0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_two_nodes_delete_at_once_is_owed_until_it_is_paid() {
    let cluster = cluster().await;
    cluster.nodes[0].execute(ONE).await;
    cluster.assert_converged().await;
    let delete = "DELETE FROM log";
    apart(&cluster, &[(0, delete), (1, delete)]).await;
    assert_rows(&cluster, Some("")).await;
    let missing = "SELECT count(*) FROM tandem.conflict WHERE type = 'delete_missing'";
    for node in &cluster.nodes {
        assert_eq!(node.value(missing).await, "1", "{}", node.name);
    }
    eventually("nothing is owed", Duration::from_secs(60), async || {
        let debts = debts(&cluster).await;
        match debts.iter().all(|debt| debt == "0") {
            true => Ok(()),
            false => Err(format!("{debts:?}")),
        }
    })
    .await;
    cluster.nodes[2].execute(ONE).await;
    cluster.converge(Duration::from_secs(60)).await;
    assert_eq!(debts(&cluster).await, ["0", "0", "0"]);
    for node in &cluster.nodes {
        assert_eq!(
            node.value("SELECT count(*) FROM log").await,
            "1",
            "{}",
            node.name
        );
    }
    // Beside an insert the count is what matters: one and one, less two.
    apart(&cluster, &[(0, delete), (1, delete), (2, ONE)]).await;
    assert_rows(&cluster, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_one_row_that_two_nodes_update_both_new_ones_stay_and_it_is_listed() {
    let cluster = cluster().await;
    cluster.nodes[0]
        .execute("INSERT INTO log (note) VALUES ('old')")
        .await;
    cluster.assert_converged().await;
    let update = |note| format!("UPDATE log SET note = '{note}'");
    let (one, two) = (update("one"), update("two"));
    apart(&cluster, &[(0, &one), (1, &two)]).await;
    assert_rows(&cluster, Some("(one,,,,) (two,,,,)")).await;
    let lines = "SELECT count(*) FROM tandem.conflict WHERE type = 'update_missing'";
    assert_eq!(cluster.nodes[2].value(lines).await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_takes_what_its_node_saw_and_nothing_else() {
    let cluster = cluster().await;
    let insert = |note| format!("INSERT INTO log (note) VALUES ('{note}')");
    cluster.nodes[0].execute(&insert("seen")).await;
    cluster.assert_converged().await;
    let (before, after) = (insert("before"), insert("after"));
    apart(&cluster, &[(1, &before), (0, "TRUNCATE log"), (2, &after)]).await;
    assert_rows(&cluster, Some("(after,,,,) (before,,,,)")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_three_nodes_do_at_once_the_rows_are_the_same() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let cluster = cluster().await;
    let mut clients = Vec::new();
    for node in &cluster.nodes {
        clients.push(node.connect().await);
    }
    for _ in 0..120 {
        let (one, other) = (random.u8(0..3), random.u8(0..3));
        let pick = format!("ctid = (SELECT ctid FROM log WHERE note = 'n{one}' LIMIT 1)");
        let sql = match random.u8(0..3) {
            0 => format!("INSERT INTO log (note) VALUES ('n{one}')"),
            1 => format!("DELETE FROM log WHERE {pick}"),
            _ => format!("UPDATE log SET note = 'n{other}' WHERE {pick}"),
        };
        let node = random.usize(0..3);
        client::execute(&clients[node], &sql).await;
    }
    cluster.converge(Duration::from_secs(120)).await;
    assert_rows(&cluster, None).await;
}
