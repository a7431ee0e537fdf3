//! `tandem dev`: a cluster with one command, kept in a directory.

use std::{fs, net::TcpListener, time::Duration};

use rustix::process::Signal;
use tandem::dev::process::ProcessId;
use tandem_tests::{
    Program, client,
    dev::{Dev, Running},
    eventually, template,
};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn dev_is_ready_in_time_works_stops_all_it_started_and_resumes() {
    let mut dev = Dev::new(3);
    let running = dev.ready(&[]).await;
    let text = fs::read_to_string(&running.log).expect("its output");
    assert!(
        text.contains(&format!(
            "postgres://app:app@127.0.0.1:{}/app",
            dev.ports[0]
        )),
        "{text}"
    );
    let psql = Program::psql(&template::install(15)).port(dev.ports[0]);
    psql.args(["-c", "SELECT current_user"])
        .run(LIMIT)
        .await
        .expect_success();
    let console = Program::psql(&template::install(15)).port(dev.ports[0]);
    let ran = console
        .args(["-d", "tandem", "-c", "SHOW NODES"])
        .run(LIMIT);
    let nodes = ran.await.expect_success().stdout;
    assert_eq!(nodes.lines().count(), 3, "{nodes}");
    let created = "CREATE TABLE kept (id int PRIMARY KEY); GRANT ALL ON kept TO app";
    for (at, port) in dev.node_ports().into_iter().enumerate() {
        let node = client::connect(port, "postgres", None, "app")
            .await
            .expect("trust for postgres on loopback");
        // Where it is made, it is made for all.
        if at == 0 {
            client::execute(&node, created).await;
            dev.converge().await;
        }
        client::execute(&node, &format!("INSERT INTO kept VALUES ({port})")).await;
    }
    dev.converge().await;
    assert_eq!(dev.values("SELECT count(*) FROM kept").await, ["3"; 3]);
    running.end(Signal::INT).await;
    dev.assert_stopped();

    let running = dev.ready(&[]).await;
    assert_eq!(dev.values("SELECT count(*) FROM kept").await, ["3"; 3]);
    dev.execute("INSERT INTO kept VALUES (1)").await;
    dev.converge().await;
    assert_eq!(dev.values("SELECT count(*) FROM kept").await, ["4"; 3]);
    running.end(Signal::TERM).await;
    dev.assert_stopped();
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_a_killed_dev_left_running_are_adopted_and_nothing_is_lost() {
    let mut dev = Dev::new(2);
    let schema = dev.scratch.path().join("schema.sql");
    fs::write(
        &schema,
        "CREATE TABLE kept (id int PRIMARY KEY); INSERT INTO kept VALUES (0);",
    )
    .expect("a file");
    let init = schema.to_string_lossy().into_owned();
    let running = dev.ready(&["--init", &init]).await;
    assert_eq!(dev.values("SELECT count(*) FROM kept").await, ["1"; 2]);
    let before = dev.postmasters();
    assert_eq!(before.len(), 2);
    running.end(Signal::KILL).await;
    // The servers live on; one of them is written to, the other one dies too.
    dev.value(
        dev.node_ports()[0],
        "INSERT INTO kept VALUES (7) RETURNING id",
    )
    .await;
    let second = ProcessId::of(before[1]).expect("it runs");
    second.signal(Signal::QUIT).expect("a signal");
    eventually("the second server ends", LIMIT, async || {
        if second.is_alive() {
            Err("it lives")
        } else {
            Ok(())
        }
    })
    .await;

    let running = dev.ready(&["--init", &init]).await;
    let after = dev.postmasters();
    assert_eq!(
        after.iter().filter(|pid| before.contains(pid)).count(),
        1,
        "{before:?} then {after:?}"
    );
    dev.converge().await;
    assert_eq!(dev.values("SELECT count(*) FROM kept").await, ["2"; 2]);
    running.end(Signal::INT).await;
    dev.assert_stopped();
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_runs_mixed_majors_with_pgbench_tables() {
    let mut dev = Dev::new(3);
    let bins: Vec<String> = [15, 17, 18]
        .iter()
        .enumerate()
        .flat_map(|(index, &major)| {
            [
                "--pg-bin".to_owned(),
                format!(
                    "{}={}",
                    index + 1,
                    template::install(major).bin_dir.display()
                ),
            ]
        })
        .collect();
    let mut more: Vec<&str> = bins.iter().map(String::as_str).collect();
    more.extend(["--pgbench", "1"]);
    let running = dev.ready(&more).await;
    let versions = dev
        .values("SELECT split_part(current_setting('server_version'), '.', 1)")
        .await;
    assert_eq!(versions, ["15", "17", "18"]);
    let pgbench = Program::pgbench(&template::install(15)).port(dev.ports[0]);
    pgbench
        .args(["-n", "-c", "4", "-t", "50"])
        .run(LIMIT)
        .await
        .expect_success();
    dev.converge().await;
    assert_eq!(
        dev.values("SELECT count(*) FROM pgbench_history").await,
        ["200"; 3]
    );
    running.end(Signal::INT).await;
    dev.assert_stopped();
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_refuses_what_it_cannot_use_with_one_clear_message() {
    let dev = Dev::new(1);
    fs::create_dir(dev.dir()).expect("a directory");
    fs::write(dev.dir().join("letter.txt"), "not ours").expect("a file");
    let ran = dev.refused(&[]).await;
    assert!(
        ran.stderr
            .contains("is not empty and was not made by `tandem dev`"),
        "{}",
        ran.all()
    );
    assert_eq!(
        fs::read_to_string(dev.dir().join("letter.txt")).expect("the file"),
        "not ours"
    );
    fs::remove_dir_all(dev.dir()).expect("the directory");

    let ran = dev.refused(&["--pg-bin", "/nonexistent"]).await;
    assert!(ran.stderr.contains("/nonexistent"), "{}", ran.all());
    for (port, word) in [
        (dev.ports[0], "--port"),
        (dev.ports[1], "--admin-port"),
        (dev.ports[2], "--base-port"),
    ] {
        let taken = TcpListener::bind(("127.0.0.1", port)).expect("the port");
        let ran = dev.refused(&[]).await;
        let named = ran.stderr.contains("in use")
            && ran.stderr.contains(&port.to_string())
            && ran.stderr.contains(word);
        assert!(named, "{word}: {}", ran.all());
        drop(taken);
    }
    dev.assert_stopped();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_dev_on_one_directory_is_refused_and_other_answers_to_resuming_are_clear() {
    let mut dev = Dev::new(1);
    let running = dev.ready(&[]).await;
    let ran = dev.refused(&[]).await;
    assert!(
        ran.stderr.contains("in use by another `tandem dev`"),
        "{}",
        ran.all()
    );
    running.end(Signal::INT).await;
    dev.nodes = 2;
    let ran = dev.refused(&[]).await;
    assert!(
        ran.stderr.contains("holds a cluster of 1 nodes") && ran.stderr.contains("--nodes"),
        "{}",
        ran.all()
    );
    dev.nodes = 1;
    let ran = dev.refused(&["--database", "other"]).await;
    assert!(ran.stderr.contains("--database app"), "{}", ran.all());
}

/// Ctrl-C during the start leaves nothing behind, and the next start works.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_start_leaves_no_server_and_can_be_repeated() {
    let mut dev = Dev::new(2);
    let log = dev.scratch.path().join("interrupted.log");
    let child = dev.program().spawn_to(&log);
    let running = Running {
        child,
        log: log.clone(),
    };
    eventually("a server is being made", LIMIT, async || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        if text.contains("making a PostgreSQL") {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
    running.signal(Signal::INT);
    let mut running = running;
    tokio::time::timeout(LIMIT, running.child.wait())
        .await
        .expect("it ends")
        .expect("it ends");
    dev.assert_stopped();
    let running = dev.ready(&[]).await;
    running.end(Signal::INT).await;
    dev.assert_stopped();
}
