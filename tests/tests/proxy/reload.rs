//! What is read again while the daemon runs: under load, by halves, and what has to wait for a restart.

use std::{fs, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tandem_tests::{Cluster, Program, client, daemon::program, eventually, program::Ran};

use crate::console::{console, psql, shown, with_console};

const LIMIT: Duration = Duration::from_secs(60);
const BACKENDS: &str = "SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity \
     WHERE usename = 'app' AND datname = 'app' AND backend_type = 'client backend'";

fn pgbench(cluster: &Cluster, clients: &str, more: &[&str]) -> Program {
    let pgbench = Program::pgbench(cluster.nodes[0].install()).port(cluster.proxy_port);
    pgbench.args(["-n", "-c", clients, "-T", "6"]).args(more)
}

fn assert_faultless(ran: &Ran) {
    assert!(
        ran.stdout.contains("number of failed transactions: 0"),
        "{}",
        ran.all()
    );
}

pub(crate) async fn backends(cluster: &Cluster) -> Vec<String> {
    let found = cluster.nodes[0].value(BACKENDS).await;
    found.split_whitespace().map(str::to_owned).collect()
}

async fn setting(cluster: &Cluster, key: &str) -> String {
    let shown = shown(&console(cluster, "ops").await, "SHOW CONFIG").await;
    let start = format!("key={key} value=");
    let line = shown.iter().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("no {key} in {shown:?}"))
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_under_load_is_no_error_and_a_smaller_pool_comes_down_to_its_size() {
    let builder = Cluster::of(&[17]).pgbench(1);
    let cluster = with_console(builder.proxy("pool_mode = \"transaction\"\npool_size = 6")).await;
    let sizes = ["pool_size = 6", "pool_size = 2"];
    let load = async {
        let (reads, writes) = tokio::join!(
            pgbench(&cluster, "4", &["-S"]).run(LIMIT),
            // With one thread, who prepares a statement would keep those waiting whose servers it waits for.
            pgbench(&cluster, "4", &["-M", "prepared", "-j", "4"]).run(LIMIT)
        );
        assert_faultless(&reads.expect_success());
        assert_faultless(&writes.expect_success());
    };
    let reloading = async {
        let ops = console(&cluster, "ops").await;
        let mut reloads = 0;
        loop {
            let [old, new] = [sizes[reloads % 2], sizes[(reloads + 1) % 2]];
            cluster.change_config(|text| text.replace(old, new));
            client::execute(&ops, "RELOAD").await;
            reloads += 1;
            let most = if new == sizes[1] { 2 } else { 6 };
            eventually(
                "no more connections than the size",
                LIMIT,
                async || match backends(&cluster).await.len() {
                    count if count <= most => Ok(()),
                    count => Err(format!("{count} of {most}")),
                },
            )
            .await;
            cluster.daemon.signal(Signal::HUP);
        }
    };
    tokio::select! {
        () = load => {}
        () = reloading => {}
    }
    let reloads = cluster.daemon.log().matches("reloaded: ").count();
    assert!(reloads > 10, "{reloads} reloads");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_a_pool_that_is_large_enough_survive_every_reload() {
    let builder = Cluster::of(&[15]).pgbench(1);
    let cluster = with_console(builder.proxy("pool_mode = \"transaction\"\npool_size = 4")).await;
    pgbench(&cluster, "4", &["-T", "1"])
        .run(LIMIT)
        .await
        .expect_success();
    let before = backends(&cluster).await;
    assert!(!before.is_empty());
    let inside = cluster.proxy().await;
    for (old, new) in [
        ("pool_size = 4", "pool_size = 5\nserver_lifetime = \"2h\""),
        ("[admin]", "[limits]\nclients_per_user = 1\n[admin]"),
        ("[admin]", "[log]\nlevel = \"warn\"\n[admin]"),
    ] {
        cluster.change_config(|text| text.replace(old, new));
        client::execute(&console(&cluster, "ops").await, "RELOAD").await;
        assert_eq!(client::value(&inside, "SELECT 'on'").await, "on");
        // One more may have been on its way when the load ended.
        let now = backends(&cluster).await;
        let survive = before.iter().all(|pid| now.contains(pid));
        assert!(survive, "{now:?} after {new}, {before:?} before");
    }
    let error = cluster.try_proxy().await.expect_err("one is there");
    assert_eq!(
        client::describe(&error),
        "53300 too many connections for role \"app\""
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_changes_nothing_and_says_what_is_wrong_where() {
    let builder = Cluster::of(&[15, 17]);
    let cluster = with_console(builder.proxy("pool_mode = \"transaction\"\npool_size = 4")).await;
    let ops = console(&cluster, "ops").await;
    let rules = cluster.dir().join("rules.toml");
    let good = fs::read_to_string(&rules).expect("rules");
    let refused = async |wanted: &str| {
        let error = ops.simple_query("RELOAD").await.expect_err("a bad file");
        let detail = error.as_db_error().and_then(|error| error.detail());
        assert!(
            detail.is_some_and(|detail| detail.contains(wanted)),
            "{error:?}"
        );
        assert_eq!(
            setting(&cluster, "proxy.pool_size").await,
            "4 changeable=yes"
        );
    };
    cluster
        .change_config(|text| text.replace("pool_size = 4", "pool_size = 3\nserver_life = \"1h\""));
    refused("did you mean `server_lifetime`?").await;
    cluster.change_config(|text| text.replace("server_life =", "server_lifetime ="));
    let to_n2 = "[[session]]\nmatch = { application_name = \"batch\" }\n";
    fs::write(&rules, format!("{good}{to_n2}node = \"n3\"\n")).expect("written");
    refused("rules.toml:5:8: ").await;

    fs::write(&rules, format!("{good}{to_n2}node = \"n2\"\n")).expect("written");
    client::execute(&ops, "RELOAD").await;
    assert_eq!(
        setting(&cluster, "proxy.pool_size").await,
        "3 changeable=yes"
    );
    let ran = cluster
        .psql()
        .env("PGAPPNAME", "batch")
        .args(["-c", "SHOW port"])
        .run(LIMIT)
        .await
        .expect_success();
    assert_eq!(ran.stdout.trim(), cluster.nodes[1].port().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_restart_is_named_and_the_rest_counts() {
    let cluster = with_console(Cluster::of(&[15])).await;
    cluster.change_config(|text| {
        text.replace(
            "[proxy]\n",
            "[proxy]\nworkers = 3\nquery_wait_timeout = \"7s\"\n",
        )
        .replace("id = 1\n", "id = 1\nzone = \"eu\"\n")
    });
    let ran = psql(&cluster, "ops")
        .args(["-c", "RELOAD"])
        .run(LIMIT)
        .await
        .expect_success();
    for wanted in [
        "changed: proxy.query_wait_timeout\n",
        "changed, but needs a restart: node.n1.zone, proxy.workers\n",
    ] {
        assert!(ran.stderr.contains(wanted), "{}", ran.all());
    }
    assert_eq!(
        setting(&cluster, "proxy.query_wait_timeout").await,
        "7s changeable=yes"
    );
    assert!(setting(&cluster, "proxy.workers").await != "3 changeable=no");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_as_talkative_as_the_configuration_says() {
    let cluster = Cluster::of(&[15]).without_daemon().start().await;
    let log = cluster.dir().join("own.log");
    let config = cluster.daemon.config().to_owned();
    let arguments = ["run".as_ref(), "--config".as_ref(), config.as_os_str()];
    let daemon = Program::new(program()).args(arguments).spawn_to(&log);
    let pid = daemon.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let says = async |what: &str| {
        eventually(what, LIMIT, async || {
            let log = fs::read_to_string(&log).unwrap_or_default();
            match log.contains(what) {
                true => Ok(log),
                false => Err(log),
            }
        })
        .await
    };
    assert!(!says("ready").await.contains("DEBUG"));
    cluster.change_config(|text| text.replace("[admin]", "[log]\nlevel = \"debug\"\n[admin]"));
    kill_process(pid.expect("it runs"), Signal::HUP).expect("a signal");
    says("changed: log.level").await;
    drop(cluster.proxy().await);
    says("DEBUG").await;
}
