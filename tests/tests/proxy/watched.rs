//! What becomes of a change of the configuration's files that nobody announces.

use std::{fs, path::Path, time::Duration};

use tandem_tests::{Cluster, Program, client, eventually};

use crate::console::{console, psql, with_console};

const LIMIT: Duration = Duration::from_secs(60);

/// Rules that send the application `name` to a node.
fn to_node(name: &str, node: &str) -> String {
    format!("[[session]]\nmatch = {{ application_name = \"{name}\" }}\nnode = \"{node}\"\n")
}

/// As an editor does it.
fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).expect("written");
    fs::rename(beside, path).expect("replaced");
}

/// The port of the node that a session of the application `batch` comes to.
async fn port_of_batch(cluster: &Cluster) -> String {
    let psql = cluster.psql().env("PGAPPNAME", "batch");
    let ran = psql.args(["-c", "SHOW port"]).run(LIMIT).await;
    ran.expect_success().stdout.trim().to_owned()
}

async fn comes_to(cluster: &Cluster, node: usize) {
    let wanted = cluster.nodes[node].port().to_string();
    eventually(
        "batch comes to its node",
        LIMIT,
        async || match port_of_batch(cluster).await {
            port if port == wanted => Ok(()),
            port => Err(format!("{port}, not {wanted}")),
        },
    )
    .await;
}

async fn log_says(cluster: &Cluster, wanted: &str) {
    eventually("the log says it", LIMIT, async || {
        let log = cluster.daemon.log();
        match log.contains(wanted) {
            true => Ok(()),
            false => Err(format!("no {wanted} in {log}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_change_under_load_count_without_an_error() {
    let builder = Cluster::of(&[15, 17]).pgbench(1);
    let cluster = with_console(builder.proxy("pool_mode = \"transaction\"\npool_size = 4")).await;
    let rules = cluster.dir().join("rules.toml");
    let pgbench = Program::pgbench(cluster.nodes[0].install()).port(cluster.proxy_port);
    let load = pgbench
        .args(["-n", "-c", "4", "-T", "12", "-M", "prepared"])
        .run(LIMIT);
    let changing = async {
        for (round, node) in (1..).zip([0, 1, 0]) {
            replace(&rules, &to_node("batch", &cluster.nodes[node].name));
            comes_to(&cluster, node).await;
            let sizes = [
                format!("pool_size = {}", 3 + round),
                format!("pool_size = {}", 4 + round),
            ];
            cluster.change_config(|text| text.replace(&sizes[0], &sizes[1]));
            let value = sizes[1].replace("pool_size = ", "key=proxy.pool_size value=");
            eventually("the size counts", LIMIT, async || {
                let shown =
                    crate::console::shown(&console(&cluster, "ops").await, "SHOW CONFIG").await;
                match shown.iter().any(|line| line.starts_with(&value)) {
                    true => Ok(()),
                    false => Err(format!("no {value}")),
                }
            })
            .await;
        }
    };
    let (ran, ()) = tokio::join!(load, changing);
    let ran = ran.expect_success();
    assert!(
        ran.stdout.contains("number of failed transactions: 0"),
        "{}",
        ran.all()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_is_refused_once_and_said_everywhere_until_it_is_mended() {
    let cluster = with_console(Cluster::of(&[15, 17])).await;
    let rules = cluster.dir().join("rules.toml");
    fs::write(&rules, to_node("batch", "n2")).expect("written");
    // It may come there without them, too.
    log_says(&cluster, "reloaded: ").await;
    comes_to(&cluster, 1).await;

    // Half of the file, written over the whole one.
    let whole = to_node("batch", "n1");
    fs::write(&rules, &whole[..whole.len() - 5]).expect("written");
    let refusal = "not valid TOML";
    log_says(&cluster, "/rules.toml:3:").await;
    log_says(&cluster, refusal).await;
    let told =
        |status: &serde_json::Value| status["files_refused"][0].to_string().contains(refusal);
    cluster.daemon.status_when("it is told", LIMIT, told).await;
    let status = cluster.daemon.command("status").run(LIMIT).await;
    let text = status.expect_success().stdout;
    assert!(
        text.contains(&format!("the old ones count: {}", cluster.dir().display())),
        "{text}"
    );
    for statement in ["SHOW RULES", "SHOW CONFIG"] {
        let ran = psql(&cluster, "ops")
            .args(["-c", statement])
            .run(LIMIT)
            .await;
        let ran = ran.expect_success();
        assert!(ran.stderr.contains(refusal), "{}", ran.all());
    }
    assert_eq!(
        port_of_batch(&cluster).await,
        cluster.nodes[1].port().to_string()
    );

    // Another bad one is another refusal.
    fs::write(&rules, to_node("batch", "n3")).expect("written");
    log_says(&cluster, "unknown node `n3`").await;

    // The rest of it.
    fs::write(&rules, &whole).expect("written");
    comes_to(&cluster, 0).await;
    let status = cluster.daemon.status().await.expect("a status");
    assert_eq!(status["files_refused"].as_array().map(Vec::len), Some(0));
    let log = cluster.daemon.log();
    assert_eq!(log.matches(refusal).count(), 1, "{log}");
    assert_eq!(log.matches("unknown node `n3`").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_rule_knows_clients_by_their_address_and_their_startup_options() {
    let rules = "[[session]]\nmatch = { client = \"127.0.0.0/8\", options = { \"tandem.role\" = \"report*\" } }\nnode = \"n2\"\n\
         [[session]]\nmatch = { client = \"10.0.0.0/8\" }\nnode = \"n2\"\n\
         [[session]]\nmatch = { client = \"127.0.0.1\" }\nnode = \"n1\"\n";
    for mode in ["session", "transaction"] {
        let builder = Cluster::of(&[15, 17]).rules(rules);
        let cluster = builder
            .proxy(&format!("pool_mode = \"{mode}\""))
            .start()
            .await;
        for (options, node) in [
            ("-c tandem.role=reports", 1),
            ("", 0),
            ("-c tandem.role=shop", 0),
        ] {
            let psql = cluster.psql().env("PGOPTIONS", options);
            let ran = psql
                .args(["-c", "SHOW port"])
                .run(LIMIT)
                .await
                .expect_success();
            let wanted = cluster.nodes[node].port().to_string();
            assert_eq!(ran.stdout.trim(), wanted, "{mode}, {options}");
        }
        let inside = cluster.proxy().await;
        assert_eq!(client::value(&inside, "SELECT 'on'").await, "on");
    }
}
