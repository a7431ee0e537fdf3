//! `check`, `status`, `wait-converged`, `explain`: answers and exit codes.

use std::time::Duration;

use tandem_tests::{Cluster, Program, daemon};

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn check_accepts_a_good_configuration_and_names_every_fault_of_a_bad_one() {
    let cluster = Cluster::of(&[15, 15]).without_daemon().start().await;
    let ran = cluster.daemon.command("check").run(LIMIT).await;
    assert_eq!(ran.status.code(), Some(0), "{}", ran.all());

    cluster.change_config(|text| {
        text.replace("id = 2", "id = 1")
            .replace("pool_mode = \"session\"", "pool_mod = \"session\"")
    });
    let ran = cluster.daemon.command("check").run(LIMIT).await;
    assert_eq!(ran.status.code(), Some(1), "{}", ran.all());
    let text = ran.all();
    // File, line and column, the offending text, and what would be right.
    assert!(text.contains("tandem.toml:5:"), "{text}");
    assert!(
        text.contains("pool_mod") && text.contains("pool_mode"),
        "{text}"
    );
    assert!(text.contains("another node has id 1 already"), "{text}");
    // The daemon refuses the same file, with the exit code that says so.
    let ran = cluster.daemon.command("run").run(LIMIT).await;
    assert_eq!(ran.status.code(), Some(64), "{}", ran.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn check_reads_the_rules_file_too() {
    let cluster = Cluster::of(&[15]).without_daemon().start().await;
    let rules = "[[session]]\nmatch = { user = \"x\" }\nnode = \"nowhere\"\n";
    std::fs::write(cluster.dir().join("rules.toml"), rules).expect("the rules");
    let ran = cluster
        .daemon
        .command("check")
        .args(["--offline"])
        .run(LIMIT)
        .await;
    assert_eq!(ran.status.code(), Some(1), "{}", ran.all());
    assert!(
        ran.all().contains("rules.toml:3:") && ran.all().contains("nowhere"),
        "{}",
        ran.all()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_the_node_that_cannot_be_reached_and_the_setting_that_is_wrong() {
    let cluster = Cluster::of(&[15, 15, 18]).without_daemon().start().await;
    cluster.nodes[1].stop_fast().await;
    cluster.nodes[2]
        .execute("ALTER SYSTEM SET track_commit_timestamp = off")
        .await;
    cluster.nodes[2].stop_fast().await;
    cluster.nodes[2].start_again().await;
    let ran = cluster.daemon.command("check").run(LIMIT).await;
    assert_eq!(ran.status.code(), Some(1), "{}", ran.all());
    let line = |node: &str| {
        let begin = ran
            .stdout
            .find(node)
            .unwrap_or_else(|| panic!("{node} is not in {}", ran.all()));
        ran.stdout[begin..].to_owned()
    };
    assert!(line("n2").contains("refused"), "{}", ran.all());
    assert!(
        line("n3").contains("track_commit_timestamp"),
        "{}",
        ran.all()
    );
    // Without a look at the nodes the files are fine.
    let ran = cluster
        .daemon
        .command("check")
        .args(["--offline"])
        .run(LIMIT)
        .await;
    assert_eq!(ran.status.code(), Some(0), "{}", ran.all());
}

/// A node that lacks what it needs is told by the running daemon too, and taken once it is mended.
#[tokio::test(flavor = "multi_thread")]
async fn status_says_what_a_node_lacks_and_the_node_is_taken_once_it_is_mended() {
    let mut cluster = Cluster::of(&[15, 15])
        .schema("CREATE TABLE t (id int PRIMARY KEY);")
        .without_daemon()
        .start()
        .await;
    cluster.nodes[1]
        .execute("ALTER SYSTEM SET track_commit_timestamp = off")
        .await;
    cluster.nodes[1].stop_fast().await;
    cluster.nodes[1].start_again().await;
    cluster.daemon.start().await;
    let told = |status: &serde_json::Value| {
        let problem = status["replication"]["nodes"][1]["problem"]
            .as_str()
            .unwrap_or_default();
        problem.contains("track_commit_timestamp") && problem.contains("ALTER SYSTEM")
    };
    cluster
        .daemon
        .status_when("the problem is told", LIMIT, told)
        .await;
    let text = cluster
        .daemon
        .command("status")
        .run(LIMIT)
        .await
        .expect_success();
    assert!(
        text.stdout.contains("track_commit_timestamp"),
        "{}",
        text.all()
    );
    cluster.nodes[1]
        .execute("ALTER SYSTEM RESET track_commit_timestamp")
        .await;
    cluster.nodes[1].stop_fast().await;
    cluster.nodes[1].start_again().await;
    cluster.converge(Duration::from_secs(30)).await;
    cluster.nodes[0].execute("INSERT INTO t VALUES (1)").await;
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_nodes_and_links_as_text_and_as_json() {
    let cluster = Cluster::of(&[15, 15]).start().await;
    let ran = cluster
        .daemon
        .command("status")
        .run(LIMIT)
        .await
        .expect_success();
    for word in ["n1", "n2", "up", "streaming"] {
        assert!(
            ran.stdout.contains(word),
            "{word} is missing in {}",
            ran.stdout
        );
    }
    let status = cluster.daemon.status().await.expect("JSON");
    assert_eq!(status["cluster"], "test");
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        status["replication"]["links"].as_array().map(Vec::len),
        Some(2)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_tell_yes_no_and_nobody_there() {
    let mut cluster = Cluster::of(&[15, 15]).start().await;
    let ran = cluster.daemon.wait_converged(Duration::from_secs(20)).await;
    assert_eq!(ran.status.code(), Some(0), "{}", ran.all());
    cluster.nodes[1].stop_fast().await;
    let ran = cluster.daemon.wait_converged(Duration::from_secs(1)).await;
    assert_eq!(ran.status.code(), Some(1), "{}", ran.all());
    assert!(ran.stdout.contains("n2"), "{}", ran.all());
    let ran = cluster.daemon.command("conflicts").run(LIMIT).await;
    assert_eq!(ran.status.code(), Some(1), "{}", ran.all());
    assert!(
        ran.stdout.contains("no conflicts") && ran.stderr.contains("n2: "),
        "{}",
        ran.all()
    );
    cluster.daemon.terminate().await;
    for command in ["status", "wait-converged", "conflicts"] {
        let ran = cluster.daemon.command(command).run(LIMIT).await;
        assert_eq!(ran.status.code(), Some(69), "{command}: {}", ran.all());
    }
    let wrong = Program::new(daemon::program())
        .args(["wait-converged", "--timeout", "soon"])
        .run(LIMIT)
        .await;
    assert_eq!(wrong.status.code(), Some(2), "{}", wrong.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_tells_where_a_session_would_go_and_why() {
    let cluster = Cluster::of(&[15, 15]).without_daemon().start().await;
    let rules =
        "[[session]]\nmatch = { user = \"batch\" }\nnode = \"n2\"\n[default]\nwrite = \"home\"\n";
    std::fs::write(cluster.dir().join("rules.toml"), rules).expect("the rules");
    let ran = cluster
        .daemon
        .command("explain")
        .args(["--user", "batch"])
        .run(LIMIT)
        .await
        .expect_success();
    assert!(ran.stdout.contains("n2"), "{}", ran.all());

    let explain = |sql: &str| cluster.daemon.command("explain").args([sql]).run(LIMIT);
    let ran = explain("UPDATE t SET n = n - 1 WHERE id = 7").await;
    let ran = ran.expect_success();
    for expected in ["class: write (UPDATE)", "table: t, written", "default home"] {
        assert!(ran.stdout.contains(expected), "{}", ran.all());
    }
    let refused = explain("UPDAT t").await;
    assert_eq!(refused.status.code(), Some(2), "{}", refused.all());
    assert!(
        refused.stderr.contains("syntax error at or near \"UPDAT\""),
        "{}",
        refused.all()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_whose_port_is_taken_says_which_and_leaves_nothing_running() {
    let cluster = Cluster::of(&[15]).without_daemon().start().await;
    let taken = std::net::TcpListener::bind(("127.0.0.1", cluster.proxy_port)).expect("the port");
    let ran = cluster.daemon.command("run").run(LIMIT).await;
    assert_eq!(ran.status.code(), Some(1), "{}", ran.all());
    assert!(
        ran.stderr.contains(&cluster.proxy_port.to_string()) && ran.stderr.contains("in use"),
        "{}",
        ran.all()
    );
    drop(taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_made_of_a_pgbouncer_ini_serves_clients_and_the_console() {
    let mut cluster = Cluster::of(&[15]).without_daemon().start().await;
    let (port, node) = (cluster.proxy_port, cluster.nodes[0].port());
    let dir = cluster.dir().to_owned();
    let write = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).expect("a file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(dir.join(name), mode).expect("a mode");
    };
    write("userlist.txt", "\"app\" \"app\"\n");
    write(
        "pgbouncer.ini",
        &format!(
            "[databases]\napp = host=127.0.0.1 port={node}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             auth_type = md5\nauth_file = userlist.txt\nadmin_users = app\npool_mode = session\nlogfile = x.log\n"
        ),
    );
    std::fs::remove_file(dir.join("tandem.toml")).expect("the harness's configuration");
    let import = || {
        let program = Program::new(daemon::program());
        program
            .args([
                "import-pgbouncer".as_ref(),
                dir.join("pgbouncer.ini").as_os_str(),
            ])
            .args(["--out".as_ref(), dir.join("tandem.toml").as_os_str()])
    };
    let ran = import().run(LIMIT).await.expect_success();
    assert!(
        ran.stderr
            .contains("pgbouncer.ini:10: `logfile` has no counterpart"),
        "{}",
        ran.all()
    );
    assert!(
        ran.stderr.contains("one line could not be carried over"),
        "{}",
        ran.all()
    );
    let ran = import().run(LIMIT).await.expect_failure();
    assert!(
        ran.stderr.contains("exists"),
        "nothing is overwritten: {}",
        ran.all()
    );

    let ran = cluster
        .daemon
        .command("check")
        .run(LIMIT)
        .await
        .expect_failure();
    assert!(
        ran.all().contains("node1.password"),
        "it says what is left to do: {}",
        ran.all()
    );
    write("node1.password", "tandem-secret\n");
    cluster.change_config(|text| {
        text.replace(
            "127.0.0.1:6433",
            &format!("127.0.0.1:{}", cluster.admin_port),
        )
    });
    let ran = cluster
        .daemon
        .command("check")
        .run(LIMIT)
        .await
        .expect_success();
    assert!(ran.stdout.contains("node node1: ok"), "{}", ran.all());
    cluster.daemon.start().await;
    let ran = cluster
        .psql()
        .args(["-c", "SELECT current_user"])
        .run(LIMIT)
        .await;
    assert_eq!(ran.expect_success().stdout.trim(), "app");
    let ran = cluster
        .psql()
        .args(["-d", "tandem", "-c", "SHOW STATE"])
        .run(LIMIT)
        .await;
    assert!(ran.expect_success().stdout.starts_with("active|yes"));
}
