//! What other proxies got wrong before a client was authenticated, or while it was: one test per class of CVE.
//!
//! ARCHITECTURE.md lists which class is guarded by which test; those of single messages are in `tandem-wire`.

use std::time::Duration;

use tandem_tests::{
    Cluster, client,
    template::{APP, DATABASE},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

use crate::{
    hostile::{say, say_over, startup},
    tls::{tls, with_certificates},
};

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const SELECT: &[u8] = b"Q\0\0\0\x0dSELECT 1\0";

/// A startup packet's parameters.
fn parameters(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in pairs {
        bytes.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    bytes.push(0);
    startup(&bytes)
}

/// The types of the messages in an answer, and its texts.
fn messages(mut answer: &[u8]) -> (String, String) {
    let mut tags = String::new();
    let text = String::from_utf8_lossy(answer).into_owned();
    while let [tag, a, b, c, d, ..] = answer {
        tags.push(char::from(*tag));
        let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).expect("a length");
        answer = answer.get(1 + length..).unwrap_or_default();
    }
    (tags, text)
}

async fn told(cluster: &Cluster, user: &str, password: &str) -> String {
    match client::connect(cluster.proxy_port, user, Some(password), DATABASE).await {
        Ok(_) => "let in".to_owned(),
        Err(error) => client::sqlstate(&error),
    }
}

/// CVE-2021-3935, CVE-2021-43766: what a man in the middle puts before the handshake must never count as the client's.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_in_clear_before_tls_are_never_executed() {
    let (scratch, _) = with_certificates();
    let sections =
        "mode = \"allow\"\n[auth]\nhba = [\"host all all all trust\"]\nusers_file = \"users.txt\"";
    let users = scratch.path().join("users.txt");
    std::fs::write(users, "\"app\" \"app\"\n").expect("a users file");
    let cluster = tls(Cluster::of(&[15]), sections).start_in(scratch).await;
    let login = parameters(&[("user", APP), ("database", DATABASE)]);
    // Without the request the same bytes are a session.
    let (tags, _) = messages(&say(cluster.proxy_port, &[&login, SELECT].concat()).await);
    assert!(tags.ends_with("ZTDCZ"), "{tags}");
    let injected = [&SSL_REQUEST[..], &login, SELECT].concat();
    let answer = say(cluster.proxy_port, &injected).await;
    assert!(answer.is_empty() || answer == b"S", "{answer:?}");
    // One byte is enough, also when it comes a moment later in a segment of its own.
    let mut stream = TcpStream::connect(("127.0.0.1", cluster.proxy_port))
        .await
        .expect("a connection");
    stream.set_nodelay(true).expect("set");
    stream.write_all(&SSL_REQUEST).await.expect("sent");
    let mut answer = [0];
    stream.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"S");
    let _ = stream.write_all(&[&login, SELECT].concat()).await;
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "the connection ends");
    let (tags, _) = messages(&rest);
    assert!(!tags.contains('Z') && !tags.contains('D'), "{rest:?}");
}

/// CVE-2012-4575: names that are longer than anybody expects.
#[tokio::test(flavor = "multi_thread")]
async fn names_of_any_length_and_kind_are_refused_and_nothing_more() {
    let cluster = Cluster::of(&[15]).start().await;
    let long = "x".repeat(4_900);
    let names = [
        long.as_str(),
        "a\"b",
        "'; DROP TABLE pg_authid; --",
        "x' OR '1'='1",
        "$1",
        "%s%n",
        "\u{1}\u{7f}",
        "ünïcödé",
    ];
    for name in names {
        assert_eq!(told(&cluster, name, "x").await, "28P01", "{name}");
        let found = client::connect(cluster.proxy_port, APP, Some(APP), name).await;
        let code = found.map_or_else(|error| client::sqlstate(&error), |_| "let in".to_owned());
        assert_eq!(code, "3D000", "{name}");
    }
    // Longer than a startup packet may be.
    let huge = parameters(&[("user", APP), ("database", &"y".repeat(10_000))]);
    let (tags, text) = messages(&say(cluster.proxy_port, &huge).await);
    assert!(tags == "E" && text.contains("invalid length"), "{text}");
    assert_eq!(told(&cluster, APP, APP).await, "let in");
    assert_eq!(
        cluster.daemon.status().await.expect("a status")["panics"],
        0
    );
}

/// CVE-2015-6817 and CVE-2025-46801: nobody is let in as somebody else, or without having proved anything.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_as_another_user_whatever_the_query_answers() {
    // Answers app's secret whoever asks, and a row too many for `two`.
    let query = "[auth]\nquery = \"SELECT CASE WHEN $1 = 'two' THEN $1 ELSE 'app' END, rolpassword FROM pg_catalog.pg_authid, \
                 pg_catalog.generate_series(1, CASE WHEN $1 = 'two' THEN 2 ELSE 1 END) WHERE rolname = 'app'\"";
    let cluster = Cluster::of(&[15]).sections(query).start().await;
    assert_eq!(told(&cluster, APP, APP).await, "let in");
    for user in ["stranger", "tandem", "postgres", "two", "APP"] {
        assert_eq!(told(&cluster, user, APP).await, "57P03", "{user}");
    }
    let log = cluster.daemon.log();
    assert!(log.contains("auth_query returned another user"), "{log}");
    assert!(log.contains("more than one row"), "{log}");
    // Messages of a session that has not begun.
    let login = parameters(&[("user", APP), ("database", DATABASE)]);
    for early in [
        SELECT,
        b"S\0\0\0\x04",
        b"P\0\0\0\x10\0SELECT 1\0\0\0",
        b"F\0\0\0\x0e\0\0\0\x01\0\0\0\0\0\0",
        b"R\0\0\0\x08\0\0\0\0",
        b"p\0\0\0\x04",
        b"p\0\0\0\x05\0",
    ] {
        let (tags, text) =
            messages(&say(cluster.proxy_port, &[&login, early, SELECT].concat()).await);
        assert!(
            !tags.contains('Z') && !tags.contains('T') && !text.contains("server_version"),
            "{early:?}: {tags}"
        );
    }
}

/// CVE-2025-2291: a password past its VALID UNTIL is no password.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_tells_until_when_a_password_is_valid_is_believed() {
    let query = "[auth]\nquery = \"SELECT rolname, rolpassword, rolvaliduntil FROM pg_catalog.pg_authid WHERE rolname = $1\"";
    let cluster = Cluster::of(&[15]).sections(query).start().await;
    let text = cluster.nodes[0]
        .value("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'")
        .await;
    for (role, until) in [("late", "2001-01-01"), ("early", "infinity")] {
        let sql = format!("CREATE ROLE {role} LOGIN PASSWORD '{text}' VALID UNTIL '{until}'");
        cluster.nodes[0].execute(&sql).await;
    }
    assert_eq!(told(&cluster, "late", APP).await, "28P01");
    // The node would have refused it as well; the proxy did not ask it.
    let log = cluster.daemon.log();
    assert!(log.contains("the password has expired"), "{log}");
    assert_eq!(told(&cluster, "early", APP).await, "let in");
    assert_eq!(told(&cluster, APP, APP).await, "let in");
}

/// CVE-2025-12819: a client's search_path decided which table the query reads, as the user who asks.
#[tokio::test(flavor = "multi_thread")]
async fn no_setting_of_a_client_reaches_the_query_that_looks_for_its_password() {
    let schema = "CREATE SCHEMA evil; CREATE TABLE evil.asked (id serial PRIMARY KEY, who text); \
                  CREATE FUNCTION evil.trap() RETURNS text LANGUAGE sql AS \
                  'INSERT INTO evil.asked (who) VALUES (current_user) RETURNING who'; \
                  CREATE VIEW evil.pg_shadow AS \
                  SELECT 'tandem'::text AS usename, 'app'::text AS passwd WHERE evil.trap() IS NOT NULL;";
    let query = "[auth]\nquery = \"SELECT usename, passwd FROM pg_shadow WHERE usename = $1\"";
    let cluster = Cluster::of(&[15])
        .schema(schema)
        .sections(query)
        .start()
        .await;
    let asked = "SELECT count(*) FROM evil.asked";
    for (name, value) in [
        ("search_path", "evil, pg_catalog"),
        ("options", "-c search_path=evil,pg_catalog"),
    ] {
        let login = parameters(&[("user", "tandem"), ("database", DATABASE), (name, value)]);
        let (tags, _) = messages(&say(cluster.proxy_port, &login).await);
        assert_eq!(tags, "R", "it is asked for the password");
    }
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(cluster.proxy_port)
        .user("tandem")
        .password(APP)
        .dbname(DATABASE)
        .options("-c search_path=evil,pg_catalog");
    let error = client::connect_with(&config).await.expect_err("refused");
    assert_eq!(client::sqlstate(&error), "28P01");
    let node = &cluster.nodes[0];
    assert_eq!(
        node.value(asked).await,
        "0",
        "nothing of the client's ran as Tandem's role"
    );
    // The trap is one: with that setting the same statement would have let it in.
    let trapped =
        "SET search_path = evil, pg_catalog; SELECT passwd FROM pg_shadow WHERE usename = 'tandem'";
    assert_eq!(node.value(trapped).await, APP);
    assert_eq!(node.value(asked).await, "1");
    assert_eq!(told(&cluster, APP, APP).await, "let in");
}

/// CVE-2026-6664: lengths inside of SCRAM messages.
#[tokio::test(flavor = "multi_thread")]
async fn no_answer_to_the_request_for_a_proof_hurts_the_daemon() {
    let cluster = Cluster::of(&[15]).start().await;
    let login = parameters(&[("user", APP), ("database", DATABASE)]);
    let mut random = fastrand::Rng::with_seed(6664);
    let initial = |length: i32, data: &[u8]| {
        let body = [b"SCRAM-SHA-256\0", &length.to_be_bytes()[..], data].concat();
        let frame = i32::try_from(body.len()).expect("short") + 4;
        [b"p", &frame.to_be_bytes()[..], &body].concat()
    };
    let first = b"n,,n=,r=abcdefghijklmnopqrstuvwx";
    let mut answers: Vec<Vec<u8>> = [i32::MIN, -2, -1, 0, 1, 31, 33, i32::MAX]
        .iter()
        .map(|length| initial(*length, first))
        .collect();
    for _ in 0..150 {
        let data: Vec<u8> = (0..random.usize(..80)).map(|_| random.u8(..)).collect();
        let length = i32::try_from(data.len()).expect("short");
        answers.push(initial(length, &data));
    }
    // By the unix socket, where failures are not held up.
    let socket = cluster
        .dir()
        .join(format!(".s.PGSQL.{}", cluster.proxy_port));
    for answer in &answers {
        let stream = UnixStream::connect(&socket).await.expect("a connection");
        let (tags, text) = messages(&say_over(stream, &[&login[..], answer].concat()).await);
        assert!(
            tags.starts_with('R') && !tags.contains('Z'),
            "{answer:?}: {text}"
        );
    }
    assert_eq!(
        cluster.daemon.status().await.expect("a status")["panics"],
        0
    );
}

/// A guesser is slowed down; who is inside notices nothing.
#[tokio::test(flavor = "multi_thread")]
async fn many_wrong_passwords_from_one_address_are_held_up() {
    let cluster = Cluster::of(&[15]).start().await;
    let inside = cluster.proxy().await;
    let mut codes = std::collections::BTreeMap::new();
    // One of them is forgiven every tenth of a second.
    for _ in 0..1_000 {
        *codes.entry(told(&cluster, APP, "wrong").await).or_insert(0) += 1;
        if codes.contains_key("53400") {
            break;
        }
    }
    assert!(
        codes["28P01"] >= 100 && codes.contains_key("53400"),
        "{codes:?}"
    );
    assert_eq!(client::value(&inside, "SELECT 1").await, "1");
    let socket = cluster
        .psql()
        .env("PGHOST", &cluster.dir().to_string_lossy());
    socket
        .args(["-c", "SELECT 1"])
        .run(Duration::from_secs(20))
        .await
        .expect_success();
}
