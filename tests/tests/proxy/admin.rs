//! The admin port: nothing without the token.

use std::os::unix::fs::PermissionsExt;

use tandem_tests::{Cluster, daemon::http};

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_tells_nothing_without_the_token() {
    let cluster = Cluster::of(&[15]).start().await;
    let port = cluster.admin_port;
    let ask = async |method: &str, path: &str, token: Option<&str>| {
        let answer = http(port, method, path, token).await.expect("an answer");
        let code = answer.split(' ').nth(1).unwrap_or_default().to_owned();
        (code, answer)
    };
    assert_eq!(ask("GET", "/healthz", None).await.0, "200");
    let paths = [
        "/api/status",
        "/metrics",
        "/api/nothing",
        "/",
        "/api/wait-converged",
        "/api/diff",
        "/api/repair",
        "/api/conflicts",
        "/api/quarantine/skip?id=n1/1",
    ];
    for path in paths {
        for token in [
            None,
            Some(""),
            Some("wrong"),
            Some("0000000000000000000000000000000000000000000"),
        ] {
            let (code, answer) = ask("GET", path, token).await;
            assert_eq!(code, "401", "{path} with {token:?}: {answer}");
            assert!(!answer.contains("test"), "{answer}");
        }
    }
    let token = cluster.token();
    let (code, answer) = ask("GET", "/api/status", Some(&token)).await;
    assert_eq!(code, "200", "{answer}");
    assert!(
        answer.contains("\"cluster\":\"test\"") && !answer.contains("secret"),
        "{answer}"
    );
    assert_eq!(
        ask("POST", "/api/wait-converged?timeout_ms=5000", Some(&token))
            .await
            .0,
        "200"
    );
    assert_eq!(ask("GET", "/api/nothing", Some(&token)).await.0, "404");
    let mode = std::fs::metadata(cluster.dir().join("state/admin.token"))
        .expect("the token's file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_the_log() {
    let cluster = Cluster::of(&[15]).start().await;
    let wrong =
        tandem_tests::client::connect(cluster.proxy_port, "app", Some("a-wrong-secret"), "app")
            .await;
    assert!(wrong.is_err());
    cluster.proxy().await;
    let log = cluster.daemon.log();
    assert!(log.contains("listening"), "{log}");
    for secret in [
        "tandem-secret",
        "a-wrong-secret",
        "SCRAM-SHA-256$",
        &cluster.token(),
    ] {
        assert!(!log.contains(secret), "the log holds {secret}");
    }
}
