//! Who may come in from where.

use std::{fs, time::Duration};

use rustix::process::Signal;
use tandem_tests::{
    Cluster, client, eventually,
    template::{APP, DATABASE},
};

const LIMIT: Duration = Duration::from_secs(20);

/// What a login is told: `let in`, or code and message.
async fn told(port: u16, user: &str, password: &str, database: &str) -> String {
    match client::connect(port, user, Some(password), database).await {
        Ok(_) => "let in".to_owned(),
        Err(error) => client::describe(&error),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_host_rule_that_matches_decides_and_without_one_nobody_is_let_in() {
    let rules = "[auth]\nhba = [\n  \"local app app scram-sha-256\",\n  \"host all mallory 127.0.0.0/8 reject\",\n  \
                 \"host app app,mallory 127.0.0.1/32 scram-sha-256\",\n  \"host postgres all 10.0.0.0/8 trust\",\n]";
    let cluster = Cluster::of(&[15]).sections(rules).start().await;
    let port = cluster.proxy_port;
    assert_eq!(told(port, APP, APP, DATABASE).await, "let in");
    assert_eq!(
        told(port, APP, "wrong", DATABASE).await,
        "28P01 password authentication failed for user \"app\""
    );
    assert_eq!(
        told(port, "mallory", "x", DATABASE).await,
        "28000 a host rule rejects host \"127.0.0.1\", user \"mallory\", database \"app\", no encryption"
    );
    assert_eq!(
        told(port, APP, APP, "postgres").await,
        "28000 no host rule for host \"127.0.0.1\", user \"app\", database \"postgres\", no encryption"
    );
    assert_eq!(
        told(port, "tandem", "tandem-secret", DATABASE).await,
        "28000 no host rule for host \"127.0.0.1\", user \"tandem\", database \"app\", no encryption"
    );
    let dir = cluster.dir().to_string_lossy().into_owned();
    let by_socket = |database: &str| {
        let psql = cluster.psql().env("PGHOST", &dir);
        psql.args(["-d", database, "-c", "SELECT 'by socket'"])
    };
    let ran = by_socket("app").run(LIMIT).await.expect_success();
    assert_eq!(ran.stdout.trim(), "by socket");
    let ran = by_socket("postgres").run(LIMIT).await.expect_failure();
    assert!(
        ran.stderr
            .contains("no host rule for host \"[local]\", user \"app\", database \"postgres\""),
        "{}",
        ran.all()
    );
    let log = cluster.daemon.log();
    assert!(
        log.contains("host rule 2 (`host all mallory 127.0.0.0/8 reject`) rejects it"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_a_file_are_read_again_on_sighup_and_a_bad_file_changes_nothing() {
    let mut cluster = Cluster::of(&[15])
        .sections("[auth]\nhba_file = \"hba.conf\"")
        .without_daemon()
        .start()
        .await;
    let write = |text: &str| fs::write(cluster.dir().join("hba.conf"), text).expect("host rules");
    write("host app app samehost scram-sha-256\n");
    cluster.daemon.start().await;
    let cluster = cluster;
    let port = cluster.proxy_port;
    assert_eq!(told(port, APP, APP, DATABASE).await, "let in");
    let inside = cluster.proxy().await;

    let write = |text: &str| fs::write(cluster.dir().join("hba.conf"), text).expect("host rules");
    write("host app app samehost scram\n");
    cluster.daemon.signal(Signal::HUP);
    eventually("the daemon says what is wrong", LIMIT, async || {
        let log = cluster.daemon.log();
        match log.contains("hba.conf:1:23: unknown method `scram`") {
            true => Ok(()),
            false => Err("not yet".to_owned()),
        }
    })
    .await;
    assert_eq!(told(port, APP, APP, DATABASE).await, "let in");

    write("# nobody any more\nhost all all all reject\n");
    cluster.daemon.signal(Signal::HUP);
    eventually("the new rules count", LIMIT, async || {
        match told(port, APP, APP, DATABASE).await.as_str() {
            "28000 a host rule rejects host \"127.0.0.1\", user \"app\", database \"app\", no encryption" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    assert_eq!(
        client::value(&inside, "SELECT 'still in'").await,
        "still in"
    );
}

/// Clients that are alike share servers, whatever their rules: one that proved nothing takes nothing from the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_by_trust_does_not_spoil_what_others_have_proved() {
    let rules = "[auth]\nhba = [\"local app app trust\", \"host app app samehost scram-sha-256\"]";
    let cluster = Cluster::of(&[15])
        .proxy("pool_mode = \"transaction\"\npool_size = 3")
        .sections(rules)
        .start()
        .await;
    let proved = cluster.proxy().await;
    client::execute(&proved, "BEGIN; SELECT 1").await;
    let mut by_socket = tokio_postgres::Config::new();
    by_socket
        .host_path(cluster.dir())
        .port(cluster.proxy_port)
        .user(APP)
        .dbname(DATABASE);
    let trusted = client::connect_with(&by_socket).await.expect("trust");
    assert_eq!(client::value(&trusted, "SELECT current_user").await, APP);
    // The servers that are still to come are opened with what was proved.
    client::execute(&trusted, "BEGIN; SELECT 1").await;
    let other = cluster.proxy().await;
    client::execute(&other, "BEGIN; SELECT 1").await;
    client::execute(&trusted, "COMMIT").await;
    client::execute(&proved, "COMMIT").await;
}
