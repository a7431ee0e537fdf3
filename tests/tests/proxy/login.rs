//! Who gets in, who does not, and what the latter are told.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use tandem_tests::{
    Cluster, client, eventually,
    scratch::Scratch,
    template::{APP, DATABASE},
};

const LIMIT: Duration = Duration::from_secs(20);

/// The SQLSTATE with which a login is refused.
async fn refused(port: u16, user: &str, password: &str, database: &str) -> String {
    match client::connect(port, user, Some(password), database).await {
        Ok(_) => "let in".to_owned(),
        Err(error) => client::sqlstate(&error),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_logs_in_with_the_right_password_and_others_get_postgresqls_own_codes() {
    let cluster = Cluster::of(&[15, 15]).start().await;
    let ran = cluster
        .psql()
        .args(["-c", "SELECT current_user || ' ' || current_database()"])
        .run(LIMIT)
        .await
        .expect_success();
    assert_eq!(ran.stdout.trim(), "app app");
    let ran = cluster
        .psql()
        .env("PGPASSWORD", "wrong")
        .args(["-c", "SELECT 1"])
        .run(LIMIT)
        .await
        .expect_failure();
    assert!(
        ran.stderr
            .contains("password authentication failed for user \"app\""),
        "{}",
        ran.all()
    );

    let port = cluster.proxy_port;
    assert_eq!(refused(port, APP, "wrong", DATABASE).await, "28P01");
    assert_eq!(refused(port, APP, "", DATABASE).await, "28P01");
    assert_eq!(refused(port, "nobody", APP, DATABASE).await, "28P01");
    assert_eq!(refused(port, APP, APP, "nowhere").await, "3D000");
    assert_eq!(refused(port, APP, APP, DATABASE).await, "let in");
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_without_login_or_password_and_expired_ones_are_refused() {
    let cluster = Cluster::of(&[15, 15]).start().await;
    let text = cluster.nodes[0]
        .value("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'")
        .await;
    for node in &cluster.nodes {
        let roles = format!(
            "CREATE ROLE grouped PASSWORD '{text}'; CREATE ROLE bare LOGIN; \
             CREATE ROLE late LOGIN PASSWORD '{text}' VALID UNTIL '2001-01-01'"
        );
        node.execute(&roles).await;
    }
    assert_eq!(
        refused(cluster.proxy_port, "grouped", APP, DATABASE).await,
        "28000"
    );
    assert_eq!(
        refused(cluster.proxy_port, "bare", APP, DATABASE).await,
        "28P01"
    );
    assert_eq!(
        refused(cluster.proxy_port, "late", APP, DATABASE).await,
        "28P01"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_whose_password_differs_between_nodes_is_refused_with_their_names() {
    let cluster = Cluster::of(&[15, 15]).start().await;
    for node in &cluster.nodes {
        node.execute(&format!(
            "CREATE ROLE split LOGIN PASSWORD 'secret of {}'",
            node.name
        ))
        .await;
    }
    let error = client::connect(cluster.proxy_port, "split", Some("secret of n1"), DATABASE)
        .await
        .expect_err("a refusal");
    let text = format!("{error:?}");
    assert!(text.contains("n1") && text.contains("n2"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_counts_at_once() {
    let cluster = Cluster::of(&[15, 15]).start().await;
    let port = cluster.proxy_port;
    assert_eq!(refused(port, APP, APP, DATABASE).await, "let in");
    cluster.nodes[0]
        .execute("ALTER ROLE app PASSWORD 'new one'")
        .await;
    let text = cluster.nodes[0]
        .value("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'")
        .await;
    cluster.nodes[1]
        .execute(&format!("ALTER ROLE app PASSWORD '{text}'"))
        .await;
    eventually("the new password is taken", LIMIT, async || match refused(
        port, APP, "new one", DATABASE,
    )
    .await
    .as_str()
    {
        "let in" => Ok(()),
        code => Err(code.to_owned()),
    })
    .await;
    assert_eq!(refused(port, APP, APP, DATABASE).await, "28P01");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_clients_are_told_so_and_a_place_that_is_left_is_given_again() {
    let cluster = Cluster::of(&[15, 15])
        .proxy("max_client_connections = 3")
        .start()
        .await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(cluster.proxy().await);
    }
    let error = cluster.try_proxy().await.expect_err("a refusal");
    assert_eq!(client::sqlstate(&error), "53300");
    clients.pop();
    let again = eventually("the place is given again", LIMIT, async || {
        cluster
            .try_proxy()
            .await
            .map_err(|error| client::sqlstate(&error))
    })
    .await;
    assert_eq!(client::value(&again, "SELECT 1").await, "1");
    for client in &clients {
        assert_eq!(
            client::value(client, "SELECT 1").await,
            "1",
            "those inside are not touched"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_a_users_file_get_in_with_verifiers_and_with_passwords() {
    let scratch = Scratch::new().expect("a directory");
    let users = scratch.path().join("users.txt");
    fs::write(
        &users,
        "\"app\" \"app\"\n\"stranger\" \"known here only\"\n",
    )
    .expect("a users file");
    fs::set_permissions(&users, fs::Permissions::from_mode(0o600)).expect("a mode");
    let cluster = Cluster::of(&[15, 15])
        .sections("[auth]\nusers_file = \"users.txt\"")
        .start_in(scratch)
        .await;
    let port = cluster.proxy_port;
    assert_eq!(refused(port, APP, APP, DATABASE).await, "let in");
    assert_eq!(refused(port, APP, "wrong", DATABASE).await, "28P01");
    assert_eq!(
        refused(port, "tandem", "tandem-secret", DATABASE).await,
        "28P01",
        "not in the file"
    );
    let verifier = cluster.nodes[0]
        .value("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'")
        .await;
    fs::write(
        cluster.dir().join("users.txt"),
        format!("\"app\" \"{verifier}\"\n"),
    )
    .expect("a users file");
    // The keys that the client proves with are enough to log in to the node.
    eventually("the changed file counts", LIMIT, async || {
        match refused(port, "stranger", "known here only", DATABASE)
            .await
            .as_str()
        {
            "28P01" => Ok(()),
            code => Err(code.to_owned()),
        }
    })
    .await;
    assert_eq!(refused(port, APP, APP, DATABASE).await, "let in");
}

#[tokio::test(flavor = "multi_thread")]
async fn auth_query_decides_who_gets_in() {
    let query = "[auth]\nquery = \"SELECT rolname, rolpassword FROM pg_catalog.pg_authid WHERE rolname = $1 AND rolname <> 'tandem'\"";
    let cluster = Cluster::of(&[15, 15]).sections(query).start().await;
    assert_eq!(
        refused(cluster.proxy_port, APP, APP, DATABASE).await,
        "let in"
    );
    assert_eq!(
        refused(cluster.proxy_port, APP, "wrong", DATABASE).await,
        "28P01"
    );
    assert_eq!(
        refused(cluster.proxy_port, "tandem", "tandem-secret", DATABASE).await,
        "28P01"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_get_in_by_the_unix_socket_and_it_goes_with_the_daemon() {
    let mut cluster = Cluster::of(&[15]).start().await;
    let dir = cluster.dir().to_string_lossy().into_owned();
    let ran = cluster
        .psql()
        .env("PGHOST", &dir)
        .args(["-c", "SELECT 'by socket'"])
        .run(LIMIT)
        .await
        .expect_success();
    assert_eq!(ran.stdout.trim(), "by socket");
    let ran = cluster
        .psql()
        .env("PGHOST", &dir)
        .env("PGPASSWORD", "wrong")
        .args(["-c", "SELECT 1"])
        .run(LIMIT)
        .await
        .expect_failure();
    assert!(
        ran.stderr.contains("password authentication failed"),
        "{}",
        ran.all()
    );
    let socket = cluster
        .dir()
        .join(format!(".s.PGSQL.{}", cluster.proxy_port));
    assert!(socket.exists());
    // What a killed daemon leaves behind does not stand in the way of the next one.
    cluster.daemon.kill9().await;
    assert!(socket.exists());
    cluster.daemon.start().await;
    cluster
        .psql()
        .env("PGHOST", &dir)
        .args(["-c", "SELECT 1"])
        .run(LIMIT)
        .await
        .expect_success();
    cluster.daemon.terminate().await;
    assert!(!socket.exists());
}

/// libpq 19 asks for protocol 3.9999 and an option that nobody knows, to see whether servers negotiate as they should.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_the_future_is_offered_protocol_3_2() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let cluster = Cluster::of(&[15]).start().await;
    let parameters = b"user\0app\0database\0app\0_pq_.test_protocol_negotiation\0\0\0";
    let length = u32::try_from(parameters.len() + 8).expect("short");
    let packet = [
        &length.to_be_bytes()[..],
        &((3 << 16) + 9999_u32).to_be_bytes(),
        parameters,
    ]
    .concat();
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", cluster.proxy_port))
        .await
        .expect("a connection");
    stream.write_all(&packet).await.expect("sent");
    let mut head = [0; 5];
    stream.read_exact(&mut head).await.expect("an answer");
    assert_eq!(head[0], b'v');
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let mut body = vec![0; usize::try_from(length).expect("short") - 4];
    stream.read_exact(&mut body).await.expect("the rest");
    assert_eq!(
        body[..8],
        [0, 3, 0, 2, 0, 0, 0, 1],
        "newest version, and one option that is not known"
    );
    assert_eq!(&body[8..], b"_pq_.test_protocol_negotiation\0");
    stream.read_exact(&mut head).await.expect("it goes on");
    assert_eq!(head[0], b'R', "with the authentication");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_databases_have_limits_of_their_own() {
    let limits = "[limits]\nclients_per_user = 3\n[limits.database]\npostgres = 1";
    let cluster = Cluster::of(&[15]).sections(limits).start().await;
    let port = cluster.proxy_port;
    let told = async |user: &str, password: &str, database: &str| match client::connect(
        port,
        user,
        Some(password),
        database,
    )
    .await
    {
        Ok(client) => Ok(client),
        Err(error) => Err(client::describe(&error)),
    };
    let one = told(APP, APP, "postgres").await.expect("the first");
    assert_eq!(
        told(APP, APP, "postgres").await.err().as_deref(),
        Some("53300 too many connections for database \"postgres\"")
    );
    let two = told(APP, APP, DATABASE).await.expect("the second");
    let three = told(APP, APP, DATABASE).await.expect("the third");
    assert_eq!(
        told(APP, APP, DATABASE).await.err().as_deref(),
        Some("53300 too many connections for role \"app\"")
    );
    // Who has not proved anything learns nothing of it.
    assert_eq!(refused(port, APP, "wrong", DATABASE).await, "28P01");
    let other = told("tandem", "tandem-secret", DATABASE).await;
    assert!(other.is_ok(), "another user has places of its own");
    drop((one, three));
    let again = eventually("places come back", LIMIT, async || {
        told(APP, APP, "postgres").await
    })
    .await;
    assert_eq!(client::value(&again, "SELECT 1").await, "1");
    assert_eq!(client::value(&two, "SELECT 2").await, "2");
}
