//! `tandem drill`: what it reports is what happened, and what is lost it finds.

use std::{fs, path::Path, time::Duration};

use rustix::process::Signal;
use serde_json::Value;
use tandem::dev::process::ProcessId;
use tandem_tests::{Cluster, Program, daemon, dev::Dev, eventually, program::Ran, template};

const LIMIT: Duration = Duration::from_secs(150);

fn drill(config: &Path, scenario: &str) -> Program {
    Program::new(daemon::program())
        .args(["drill", scenario, "--config"])
        .args([config])
}

fn report(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}:\n{}", ran.all()))
}

fn list<'a>(report: &'a Value, pointer: &str) -> &'a [Value] {
    let list = report.pointer(pointer).and_then(Value::as_array);
    list.unwrap_or_else(|| panic!("{pointer} is missing in {report:#}"))
}

/// Where the example rules are, which give pgbench's branches homes.
fn rules() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let rules = root
        .expect("a workspace")
        .join("examples/pgbench/rules.toml");
    rules.to_string_lossy().into_owned()
}

/// The ledger's writes by the node at `place` in steps that lie within `from_ms` and `to_ms`.
fn written(report: &Value, place: usize, from_ms: u64, to_ms: u64) -> u64 {
    list(report, "/timeline")
        .iter()
        .filter(|step| {
            let begin = step["ms"].as_u64().expect("a time");
            begin >= from_ms && begin + 100 <= to_ms
        })
        .map(|step| step["written"][place].as_u64().expect("a count"))
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_writes_nothing_until_it_is_back_and_no_acknowledged_write_is_lost() {
    let mut dev = Dev::new(2);
    let running = dev.ready(&["--pgbench", "1", "--rules", &rules()]).await;
    let config = dev.dir().join("tandem.toml");
    let page = dev.scratch.path().join("drill.html");
    let ran = drill(&config, "kill")
        .args([
            "--node", "delhi", "--at", "1s", "--for", "2s", "--after", "3s",
        ])
        .args(["--control", "1s", "--rate", "40", "--json", "--html"])
        .args([&page])
        .run(LIMIT)
        .await;
    let report = report(&ran);
    assert_eq!(report["nodes"], serde_json::json!(["paris", "delhi"]));

    // What was done is in the timeline: nothing was written on the node while it was away, and the other went on.
    let moments = list(&report, "/moments");
    let [kill, mended] = moments else {
        panic!("{moments:#?}")
    };
    assert_eq!(
        (&kill["what"], &mended["what"]),
        (&"kill".into(), &"mended".into())
    );
    let (kill, mended) = (
        kill["ms"].as_u64().expect("ms"),
        mended["ms"].as_u64().expect("ms"),
    );
    assert!(kill >= 1000 && mended >= kill + 2000, "{kill} {mended}");
    assert!(written(&report, 1, 0, kill) > 0, "{report:#}");
    assert_eq!(
        written(&report, 1, kill + 100, kill + 2000),
        0,
        "{report:#}"
    );
    assert!(
        written(&report, 0, kill + 100, kill + 2000) > 0,
        "{report:#}"
    );

    // Both nodes were home of some keys, and the longer gap is that of the moved ones.
    let home = |name: &str| {
        list(&report, "/keys")
            .iter()
            .filter(|key| key["home"] == name)
            .count()
    };
    assert_eq!((home("paris"), home("delhi")), (2, 2), "{report:#}");
    let worst = list(&report, "/keys")
        .iter()
        .filter(|key| key["home"] == "delhi")
        .filter_map(|key| key["gap_ms"].as_f64())
        .fold(0.0, f64::max);
    assert_eq!(report["drill"]["gap_moved_ms"].as_f64(), Some(worst));
    assert!(
        report["control"]["transactions"].as_u64() > Some(10),
        "{report:#}"
    );
    assert!(
        report["drill"]["transactions"].as_u64() > Some(10),
        "{report:#}"
    );

    // Safety holds today; how many clients a killed node costs is another matter.
    for entries in ["/ledger/lost", "/ledger/refused_yet_there"] {
        assert!(list(&report, entries).is_empty(), "{report:#}");
    }
    assert_eq!(report["converged"], true, "{report:#}");
    let code = if report["passed"] == true { 0 } else { 1 };
    assert_eq!(ran.status.code(), Some(code), "{}", ran.all());

    let page = fs::read_to_string(page).expect("the page");
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("class=\"away\""));
    // Without relays there is nothing to cut.
    let ran = drill(&config, "partition").run(LIMIT).await;
    assert_eq!(ran.status.code(), Some(2), "{}", ran.all());
    assert!(ran.stderr.contains("tandem dev --relays"), "{}", ran.all());

    // A node that is killed again and again: each start is one of a server that the drill itself has killed.
    let ran = drill(&config, "flap")
        .args([
            "--node", "delhi", "--at", "500ms", "--for", "3s", "--after", "3s",
        ])
        .args(["--control", "0s", "--rate", "40", "--json"])
        .run(LIMIT)
        .await;
    let report = self::report(&ran);
    let done: Vec<&Value> = list(&report, "/moments")
        .iter()
        .map(|moment| &moment["what"])
        .collect();
    let is_paired = done.chunks(2).all(|pair| pair == ["flap", "mended"]);
    assert!(done.len() >= 4 && is_paired, "{report:#}");
    assert!(list(&report, "/ledger/lost").is_empty(), "{report:#}");
    assert_eq!(report["converged"], true, "{report:#}");
    let table = dev
        .values("SELECT to_regclass('tandem_drill') IS NULL")
        .await;
    assert_eq!(
        table, ["t"; 2],
        "the ledger's table is gone, and both nodes are up"
    );
    running.end(Signal::INT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_writes_nothing_until_it_is_resumed_and_nobody_sees_an_error() {
    let mut dev = Dev::new(2);
    let running = dev.ready(&["--pgbench", "1", "--rules", &rules()]).await;
    let ran = drill(&dev.dir().join("tandem.toml"), "drain")
        .args([
            "--node", "paris", "--at", "1s", "--for", "2s", "--after", "2s",
        ])
        .args([
            "--control",
            "0s",
            "--rate",
            "40",
            "--json",
            "--max-failed",
            "0",
        ])
        .args([
            "--max-unknown",
            "0",
            "--max-disconnected",
            "0",
            "--max-conflicts",
            "0",
        ])
        .run(LIMIT)
        .await;
    assert_eq!(ran.status.code(), Some(0), "{}", ran.all());
    let report = report(&ran);
    let [_, resumed] = list(&report, "/moments") else {
        panic!("{report:#}")
    };
    // The moment before is the drain's beginning. It is over 2 s before the node is back at the latest.
    let resumed = resumed["ms"].as_u64().expect("ms");
    let drained = list(&report, "/timeline")
        .iter()
        .filter(|step| step["written"][0] == 0 && step["ms"].as_u64() < Some(resumed));
    assert!(drained.count() >= 15, "{report:#}");
    assert!(written(&report, 0, 0, 1000) > 0 && written(&report, 1, 1000, resumed) > 0);
    assert_eq!(
        report["drill"]["refused"],
        serde_json::json!({}),
        "{report:#}"
    );
    running.end(Signal::INT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_writes_nothing_until_it_is_reached_again_and_is_not_harmed() {
    let mut dev = Dev::new(2);
    let running = dev.ready(&["--relays", "--rules", &rules()]).await;
    let servers = dev.postmasters();
    let script = dev.scratch.path().join("one.sql");
    fs::write(&script, "SELECT 1;\n").expect("a script");
    let ran = drill(&dev.dir().join("tandem.toml"), "partition")
        .args([
            "--node", "paris", "--at", "1s", "--for", "2s", "--after", "3s",
        ])
        .args([
            "--control",
            "0s",
            "--rate",
            "20",
            "--json",
            "--",
            "-c",
            "2",
            "-f",
        ])
        .args([&script])
        .run(LIMIT)
        .await;
    let report = report(&ran);
    let [cut, mended] = list(&report, "/moments") else {
        panic!("{report:#}")
    };
    let (cut, mended) = (
        cut["ms"].as_u64().expect("ms"),
        mended["ms"].as_u64().expect("ms"),
    );
    // What a relay had in its hands when the file changed still passes.
    assert_eq!(written(&report, 0, cut + 200, mended), 0, "{report:#}");
    assert!(
        written(&report, 0, 0, cut) > 0 && written(&report, 1, cut, mended) > 0,
        "{report:#}"
    );
    assert!(list(&report, "/ledger/lost").is_empty(), "{report:#}");
    assert_eq!(
        (&report["converged"], &report["control"]),
        (&true.into(), &Value::Null)
    );
    assert!(
        report["drill"]["gap_moved_ms"].as_f64() > Some(100.0),
        "{report:#}"
    );
    assert_eq!(dev.postmasters(), servers, "no server was touched");
    assert_interrupted_drills_mend(&dev, &script).await;
    running.end(Signal::INT).await;
}

/// Ctrl-C while the node is away: it is started again before the drill ends.
async fn assert_interrupted_drills_mend(dev: &Dev, script: &Path) {
    let log = dev.scratch.path().join("interrupted.log");
    let mut child = drill(&dev.dir().join("tandem.toml"), "kill")
        .args(["--node", "delhi", "--at", "0s", "--for", "10min"])
        .args(["--control", "0s", "--rate", "20", "--", "-c", "2", "-f"])
        .args([script])
        .spawn_to(&log);
    let said = || fs::read_to_string(&log).unwrap_or_default();
    let running = || {
        let servers = dev.postmasters().into_iter().filter_map(ProcessId::of);
        servers.count()
    };
    eventually("the node is killed", LIMIT, async || match running() {
        1 => Ok(()),
        count => Err(format!("{count} servers run; {}", said())),
    })
    .await;
    let pid = i32::try_from(child.id().expect("it runs")).expect("a pid");
    let drill = ProcessId::of(pid).expect("it runs");
    drill.signal(Signal::INT).expect("a signal");
    let ended = tokio::time::timeout(LIMIT, child.wait()).await;
    let status = ended.expect("it ends").expect("it ends");
    assert_eq!(status.code(), Some(3), "{}", said());
    assert!(said().contains("interrupted"), "{}", said());
    assert_eq!(running(), 2, "{}", said());
}

/// A hook deletes one row on one node, under an origin of Tandem's, so that nobody ever hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_write_that_is_gone_behind_tandems_back_is_named_and_fails_the_drill() {
    let cluster = Cluster::of(&[15, 15]).start().await;
    let script = cluster.dir().join("one.sql");
    fs::write(&script, "SELECT 1;\n").expect("a script");
    let psql = template::install(15).client_program("psql").expect("psql");
    let sql = "SELECT pg_replication_origin_create('tandem_2_99'); \
               SELECT pg_replication_origin_session_setup('tandem_2_99'); \
               DELETE FROM tandem_drill WHERE client = 1 AND seq = 2";
    let breaking = format!(
        "test $TANDEM_NODE = n2 && {} -X -h $TANDEM_NODE_HOST -p {} -U postgres -d app -v ON_ERROR_STOP=1 -c \"{sql}\" \
         | grep -q 'DELETE 1'",
        psql.display(),
        cluster.nodes[1].port()
    );
    let url = format!("postgres://app:app@127.0.0.1:{}/app", cluster.proxy_port);
    let script = script.to_string_lossy();
    let run = |breaking: &str, more: &[&str]| {
        drill(cluster.daemon.config(), "partition")
            .args([
                "--url", &url, "--node", "n2", "--break", breaking, "--mend", "true",
            ])
            .args([
                "--at",
                "1s",
                "--for",
                "100ms",
                "--after",
                "500ms",
                "--control",
                "0s",
            ])
            .args(["--rate", "20", "--json"])
            .args(more)
            .args(["--", "-c", "2", "-f", &script])
            .run(LIMIT)
    };
    // Nothing happens to the node: nothing is lost, whatever else is asked is asked, too.
    let ran = run("true", &["--max-unknown", "0", "--max-disconnected", "0"]).await;
    let whole = report(&ran);
    assert_eq!(ran.status.code(), Some(0), "{}", ran.all());
    assert!(
        whole["drill"]["acknowledged"].as_u64() > Some(10),
        "{whole:#}"
    );

    let ran = run(&breaking, &[]).await;
    assert_eq!(ran.status.code(), Some(1), "{}", ran.all());
    let torn = report(&ran);
    let [lost] = list(&torn, "/ledger/lost") else {
        panic!("{torn:#}")
    };
    let found = (&lost["client"], &lost["seq"], &lost["nodes"]);
    let wanted = serde_json::json!([1, 2, ["n2"]]);
    assert_eq!(found, (&wanted[0], &wanted[1], &wanted[2]), "{torn:#}");
    let failed: Vec<&Value> = list(&torn, "/checks")
        .iter()
        .filter(|check| check["passed"] == false)
        .map(|check| &check["name"])
        .collect();
    assert_eq!(failed, ["lost writes"]);
    // What the nodes have stays there to be looked at.
    let rows = "SELECT count(*) FROM tandem_drill WHERE client = 1 AND seq = 2";
    assert_eq!(cluster.nodes[0].value(rows).await, "1");
    assert_eq!(cluster.nodes[1].value(rows).await, "0");

    // A node that could not be broken is no verdict.
    let ran = run("echo no such switch; false", &[]).await;
    assert_eq!(ran.status.code(), Some(3), "{}", ran.all());
    assert!(ran.stderr.contains("no such switch"), "{}", ran.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_drilled_is_refused_before_anything_is_touched() {
    let mut cluster = Cluster::of(&[15]).start().await;
    let url = format!("postgres://app:app@127.0.0.1:{}/app", cluster.proxy_port);
    let table = [
        (vec!["--node", "n7"], "there is no node `n7`: there are n1"),
        (vec![], "say --url"),
        (vec!["--url", &url], "--break and --mend"),
        (vec!["--url", &url, "--", "-T", "60"], "`-T` is the drill's"),
        (vec!["--max-tries", "1"], "2 tries or more"),
    ];
    for (more, wanted) in table {
        let ran = drill(cluster.daemon.config(), "kill")
            .args(&more)
            .run(LIMIT)
            .await;
        assert_eq!(ran.status.code(), Some(2), "{more:?}: {}", ran.all());
        assert!(ran.stderr.contains(wanted), "{more:?}: {}", ran.all());
    }
    let there = "SELECT to_regclass('tandem_drill') IS NULL";
    assert_eq!(cluster.nodes[0].value(there).await, "t");
    cluster.daemon.terminate().await;
    let ran = drill(cluster.daemon.config(), "kill")
        .args(["--url", &url, "--break", "true", "--mend", "true"])
        .run(LIMIT)
        .await;
    assert_eq!(ran.status.code(), Some(3), "{}", ran.all());
    assert!(ran.stderr.contains("no daemon answers"), "{}", ran.all());
}
