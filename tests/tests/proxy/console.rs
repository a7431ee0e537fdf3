//! The admin console: who may do what there, in which protocol.

use std::time::Duration;

use tandem_tests::{Cluster, Node, Program, client, cluster::ClusterBuilder, eventually};
use tokio_postgres::{Client, Error};

const LIMIT: Duration = Duration::from_secs(20);

/// A cluster with the roles `ops`, who may do everything in the console, `monitor`, who may look, and `nobody`. All
/// have app's password.
pub(crate) async fn with_console(builder: ClusterBuilder) -> Cluster {
    let mut cluster = builder.without_daemon().start().await;
    let verifier = cluster.nodes[0]
        .value("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'")
        .await;
    for node in &cluster.nodes {
        for role in ["ops", "monitor", "nobody"] {
            // The proof is made of verifier and password only.
            node.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD '{verifier}'"))
                .await;
        }
    }
    cluster.change_config(|text| {
        text.replace(
            "[admin]\n",
            "[admin]\nusers = [\"ops\"]\nreaders = [\"monitor\"]\n",
        )
    });
    cluster.begin().await;
    cluster
}

async fn try_console(cluster: &Cluster, user: &str, password: &str) -> Result<Client, Error> {
    client::connect(cluster.proxy_port, user, Some(password), "tandem").await
}

pub(crate) async fn console(cluster: &Cluster, user: &str) -> Client {
    let found = try_console(cluster, user, "app").await;
    found.unwrap_or_else(|error| panic!("{user}: {}", client::describe(&error)))
}

pub(crate) fn psql(cluster: &Cluster, user: &str) -> Program {
    cluster.psql().env("PGUSER", user).args(["-d", "tandem"])
}

async fn refusal(client: &Client, sql: &str) -> String {
    match client::try_rows(client, sql).await {
        Ok(rows) => format!("{sql} was answered: {rows:?}"),
        Err(error) => client::describe(&error),
    }
}

/// One row as `column=value`.
pub(crate) async fn shown(client: &Client, sql: &str) -> Vec<String> {
    let rows = client.query(sql, &[]).await;
    let rows = rows.unwrap_or_else(|error| panic!("{sql}: {}", client::describe(&error)));
    let line = |row: &tokio_postgres::Row| {
        let cell = |(index, column): (usize, &tokio_postgres::Column)| {
            let value: Option<String> = row.get(index);
            format!(
                "{}={}",
                column.name(),
                value.unwrap_or_else(|| "-".to_owned())
            )
        };
        let cells: Vec<String> = row.columns().iter().enumerate().map(cell).collect();
        cells.join(" ")
    };
    rows.iter().map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_shows_nodes_lag_and_settings() {
    let cluster = with_console(Cluster::of(&[15, 17])).await;
    let ran = psql(&cluster, "ops")
        .input("\\conninfo\nSHOW VERSION;\nshow nodes;\nSHOW LAG; SHOW LISTS\n;\n-- nothing\n;\nHELP;\n\\q\n")
        .run(LIMIT)
        .await
        .expect_success();
    let out = &ran.stdout;
    assert!(out.contains("database \"tandem\""), "{}", ran.all());
    assert!(out.contains("Tandem 0."), "{}", ran.all());
    assert!(out.contains("\nn1|1||127.0.0.1|"), "{}", ran.all());
    assert!(out.contains("\nn1|n2|streaming|"), "{}", ran.all());
    assert!(out.contains("\nnodes|2\n"), "{}", ran.all());
    assert!(out.contains("RELOAD|users|"), "{}", ran.all());
    assert!(!ran.stderr.contains("WARNING"), "{}", ran.all());

    let monitor = console(&cluster, "monitor").await;
    for what in [
        "STATE",
        "CONFIG",
        "DATABASES",
        "USERS",
        "RULES",
        "HOST_RULES",
        "CONFLICT_SUMMARY",
        "QUARANTINE",
    ] {
        shown(&monitor, &format!("SHOW {what}")).await;
    }
    assert_eq!(
        shown(&monitor, "SHOW HOST_RULES").await,
        [
            "line=1 rule=local all all scram-sha-256",
            "line=2 rule=host all all all scram-sha-256"
        ]
    );
    assert_eq!(
        shown(&monitor, "SHOW USERS").await,
        [
            "name=monitor console=readers current_client_connections=- max_client_connections=-",
            "name=ops console=users current_client_connections=- max_client_connections=-"
        ]
    );
    let config = shown(&monitor, "SHOW CONFIG").await.join("\n");
    assert!(
        config.contains("key=admin.users value=ops changeable=yes"),
        "{config}"
    );
    assert!(!config.contains("secret"), "{config}");
    let route = shown(&monitor, "SHOW ROUTE 'SELECT 1' USER app").await;
    assert!(route[0].starts_with("node=n"), "{route:?}");
    let lists = shown(&monitor, "SHOW LISTS").await.join("\n");
    assert!(lists.contains("list=consoles items=1"), "{lists}");
    assert!(lists.contains("list=used_clients items=0"), "{lists}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_is_listed_and_has_proved_it_gets_in_and_only_to_what_it_may() {
    let cluster = with_console(Cluster::of(&[15])).await;
    for (user, password, wanted) in [
        (
            "nobody",
            "app",
            "42501 user \"nobody\" may not use the console",
        ),
        ("app", "app", "42501 user \"app\" may not use the console"),
        (
            "ops",
            "wrong",
            "28P01 password authentication failed for user \"ops\"",
        ),
        (
            "unknown",
            "app",
            "28P01 password authentication failed for user \"unknown\"",
        ),
    ] {
        let error = try_console(&cluster, user, password).await.expect_err(user);
        assert_eq!(client::describe(&error), wanted);
    }

    let monitor = console(&cluster, "monitor").await;
    assert_eq!(client::value(&monitor, "SHOW STATE").await, "active");
    for verb in [
        "KILL app",
        "KILL_CLIENT 1",
        "SHOW CONFLICTS",
        "QUARANTINE SHOW n1/1",
        "QUARANTINE RETRY",
        "QUARANTINE SKIP n1/1",
        "QUARANTINE EDIT n1/1 SET public.t.a=1",
        "REAPPLY n1/1",
        "PAUSE",
        "RESUME",
        "RECONNECT app",
        "RELOAD",
        "SHUTDOWN",
    ] {
        assert_eq!(
            refusal(&monitor, verb).await,
            "42501 permission denied: \"monitor\" is not in `users` of [admin]"
        );
    }
    // One that is refused ends its message, not the session, and what stands behind it is not done.
    assert!(
        refusal(&monitor, "SHOW VERSION; SHUTDOWN; SHOW LAG")
            .await
            .starts_with("42501")
    );

    let ops = console(&cluster, "ops").await;
    assert_eq!(
        refusal(&ops, "QUARANTINE SHOW n1/1").await,
        "42704 n1/1 is not in quarantine; `tandem quarantine list` shows what is"
    );
    assert_eq!(
        refusal(&ops, "QUARANTINE SKIP n9/1").await,
        "42704 no node is called n9; there are n1"
    );
    assert_eq!(
        refusal(&ops, "SUSPEND").await,
        "0A000 SUSPEND is not available in Tandem"
    );
    assert_eq!(
        refusal(&ops, "SELECT 1").await,
        "42601 unknown statement: \"SELECT\""
    );

    // Who may not log in to a node any more may not come in here either.
    cluster.nodes[0].execute("ALTER ROLE ops NOLOGIN").await;
    eventually("the role is locked", LIMIT, async || {
        match try_console(&cluster, "ops", "app").await {
            Ok(_) => Err("let in".to_owned()),
            Err(error) => match client::describe(&error).as_str() {
                "28000 role \"ops\" is not permitted to log in" => Ok(()),
                other => Err(other.to_owned()),
            },
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_by_trust_does_not_open_the_console() {
    let rules = "[auth]\nhba = [\"host all all samehost trust\"]";
    let cluster = with_console(Cluster::of(&[15]).sections(rules)).await;
    let error = try_console(&cluster, "ops", "app")
        .await
        .expect_err("trust");
    assert_eq!(
        client::describe(&error),
        "28000 the console is not open to logins by trust"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn drivers_that_prepare_their_statements_are_answered_too() {
    let cluster = with_console(Cluster::of(&[15])).await;
    let ops = console(&cluster, "ops").await;
    ops.batch_execute("SET application_name = 'x'; SET extra_float_digits = 3")
        .await
        .expect("settings of a driver");
    let statement = ops.prepare("SHOW NODES").await.expect("prepared");
    assert_eq!(statement.params().len(), 0);
    for _ in 0..3 {
        let rows = ops.query(&statement, &[]).await.expect("rows");
        let name: String = rows[0].get("name");
        assert_eq!((rows.len(), name.as_str()), (1, "n1"));
    }
    // After an error the session goes on at the next Sync.
    let error = ops.prepare("SHOW NOTHING").await.expect_err("unknown");
    assert_eq!(client::sqlstate(&error), "42601");
    let error = ops
        .query("SHOW LAG WHERE $1", &[])
        .await
        .expect_err("no parameters");
    assert_eq!(client::sqlstate(&error), "42601");
    assert_eq!(ops.query("", &[]).await.expect("empty").len(), 0);
    let (nodes, help) = tokio::join!(ops.query("SHOW NODES", &[]), ops.query("HELP", &[]));
    assert!(nodes.expect("nodes").len() == 1 && help.expect("help").len() > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_rights_away_from_who_is_in() {
    let cluster = with_console(Cluster::of(&[15])).await;
    let (ops, monitor) = (
        console(&cluster, "ops").await,
        console(&cluster, "monitor").await,
    );
    cluster.change_config(|text| text.replace("readers = [\"monitor\"]", "readers = \"monitor\""));
    let refused = ops.simple_query("RELOAD").await.expect_err("a bad file");
    let detail = refused.as_db_error().and_then(|error| error.detail());
    assert!(
        detail.is_some_and(|detail| detail.contains("`admin.readers` must be an array")),
        "{refused:?}"
    );
    assert_eq!(client::value(&monitor, "SHOW STATE").await, "active");

    cluster.change_config(|text| text.replace("readers = \"monitor\"", "readers = [\"app\"]"));
    client::execute(&ops, "RELOAD").await;
    assert!(refusal(&monitor, "SHOW STATE").await.starts_with("42501"));
    assert_eq!(
        client::value(&console(&cluster, "app").await, "SHOW STATE").await,
        "active"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_refuses_is_seen_to_in_the_console() {
    let schema = "CREATE TABLE item (id int PRIMARY KEY, amount int, note text);";
    let cluster = with_console(Cluster::of(&[15, 15]).schema(schema)).await;
    let check = "ALTER TABLE item ADD CONSTRAINT small CHECK (amount < 10)";
    cluster.nodes[1].execute(check).await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (1, 50, 'x')")
        .await;
    let what = "it is in quarantine";
    cluster
        .link_when(what, 0, 1, |link| link["quarantined"] == 1)
        .await;
    let ops = console(&cluster, "ops").await;
    let listed = ops
        .query("QUARANTINE LIST NODE n2", &[])
        .await
        .expect("a list");
    let id: String = listed[0].get("id");
    let reason: String = listed[0].get("reason");
    assert!(
        id.starts_with("n2/") && reason.contains("small"),
        "{id}: {reason}"
    );
    assert_eq!(
        shown(&ops, &format!("QUARANTINE SHOW {id}")).await,
        [
            "table=public.item operation=insert old=- new={\"amount\":\"50\",\"id\":\"1\",\"note\":\"x\"}"
        ]
    );
    let tried = shown(&ops, "QUARANTINE RETRY").await.join("\n");
    assert!(
        tried.starts_with(&format!("id={id} outcome=refused")),
        "{tried}"
    );
    let edit = format!("QUARANTINE EDIT {id} SET public.item.amount=9, public.item.note='it''s'");
    assert_eq!(
        shown(&ops, &edit).await,
        [format!("id={id} changes=1 outcome=applied reason=-")]
    );
    let row = "SELECT amount || note FROM item";
    assert_eq!(becomes(&cluster.nodes[1], row, "9it's").await, "9it's");
    assert!(shown(&ops, "SHOW QUARANTINE").await.is_empty());
    let losing = shown(&ops, "SHOW CONFLICTS TABLE public.item LIMIT 5").await;
    assert!(!losing.is_empty(), "an edit is in the conflict log");
}

async fn becomes(node: &Node, sql: &str, wanted: &str) -> String {
    eventually(sql, LIMIT, async || {
        let value = node.value(sql).await;
        if value == wanted {
            Ok(value)
        } else {
            Err(value)
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_is_answered_and_ends_the_daemon() {
    let mut cluster = with_console(Cluster::of(&[15])).await;
    let (ops, app) = (console(&cluster, "ops").await, cluster.proxy().await);
    client::execute(&app, "BEGIN").await;
    client::execute(&ops, "SHUTDOWN WAIT_FOR_SERVERS").await;
    eventually("no new session is taken", LIMIT, async || {
        match cluster.try_proxy().await {
            Ok(_) => Err("let in".to_owned()),
            Err(_) => Ok(()),
        }
    })
    .await;
    assert_eq!(client::value(&app, "SELECT 'goes on'").await, "goes on");
    client::execute(&app, "COMMIT").await;
    assert!(cluster.daemon.ended().await.success());

    cluster.daemon.start().await;
    let (ops, app) = (console(&cluster, "ops").await, cluster.proxy().await);
    client::execute(&app, "BEGIN").await;
    client::execute(&ops, "SHUTDOWN").await;
    assert!(cluster.daemon.ended().await.success());
}

/// The rows of a SHOW whose line has all of these texts in it.
pub(crate) async fn lines_with(client: &Client, sql: &str, texts: &[&str]) -> Vec<String> {
    let lines = shown(client, sql).await.into_iter();
    lines
        .filter(|line| texts.iter().all(|text| line.contains(text)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_pools_and_servers_are_shown_as_they_are_and_clients_can_be_ended() {
    let cluster = with_console(Cluster::of(&[15]).proxy("pool_mode = \"transaction\"")).await;
    let ops = console(&cluster, "ops").await;
    let (idle, busy) = (cluster.proxy().await, cluster.proxy().await);
    client::execute(&idle, "SELECT 1").await;
    client::execute(&busy, "BEGIN; SELECT 1").await;
    let clients = eventually("both are shown", LIMIT, async || {
        let clients = lines_with(&ops, "SHOW CLIENTS", &["user=app database=app"]).await;
        let of = |state: &str| clients.iter().filter(|line| line.contains(state)).count();
        match (of("state=idle addr"), of("state=idle_in_transaction")) {
            (1, 1) => Ok(clients),
            _ => Err(format!("{clients:#?}")),
        }
    })
    .await;
    let in_transaction = clients
        .iter()
        .find(|line| line.contains("in_transaction"))
        .expect("one");
    let of = |line: &str, key: &str| {
        let from = line.find(key).expect("the column") + key.len();
        line[from..]
            .split(' ')
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let (id, backend) = (
        of(in_transaction, " id="),
        of(in_transaction, "remote_pid="),
    );
    assert_eq!(
        client::value(&busy, "SELECT pg_backend_pid()").await,
        backend
    );
    assert!(
        !lines_with(&ops, "SHOW CLIENTS", &["remote_pid=- "])
            .await
            .is_empty()
    );

    let pools = lines_with(&ops, "SHOW POOLS", &["database=app user=app node=n1"]).await;
    assert!(
        pools.len() == 1 && pools[0].contains("cl_active=1 cl_waiting=0 sv_active=1"),
        "{pools:?}"
    );
    assert!(pools[0].ends_with("pool_mode=transaction"), "{pools:?}");
    let servers = lines_with(
        &ops,
        "SHOW SERVERS",
        &["state=active", &format!("remote_pid={backend}")],
    )
    .await;
    assert!(
        servers.len() == 1 && of(&servers[0], " link=") == id,
        "{servers:?}, not {id}"
    );
    let stats = lines_with(&ops, "SHOW STATS", &["database=app"]).await;
    assert!(
        stats.len() == 1 && !stats[0].contains("total_query_count=0"),
        "{stats:?}"
    );

    client::execute(&ops, &format!("KILL_CLIENT {id}")).await;
    let lost = busy
        .simple_query("SELECT 1")
        .await
        .expect_err("it is ended");
    assert!(
        lost.is_closed() || client::sqlstate(&lost) == "57P01",
        "{lost:?}"
    );
    assert_eq!(client::value(&idle, "SELECT 'still in'").await, "still in");
    assert!(
        refusal(&ops, &format!("KILL_CLIENT {id}"))
            .await
            .starts_with("42704")
    );
    client::execute(&ops, "KILL nothing").await;
    assert_eq!(client::value(&idle, "SELECT 'still in'").await, "still in");
    client::execute(&ops, "KILL app").await;
    assert!(idle.simple_query("SELECT 1").await.is_err());
    eventually("nobody is left", LIMIT, async || {
        match lines_with(&ops, "SHOW CLIENTS", &["database=app"])
            .await
            .as_slice()
        {
            [] => Ok(()),
            left => Err(format!("{left:?}")),
        }
    })
    .await;
    assert_eq!(
        client::value(&cluster.proxy().await, "SELECT 'new'").await,
        "new"
    );
}

/// A raw connection to the console, already logged in.
async fn raw(cluster: &Cluster) -> tandem_wire::Stream {
    let options = tandem_wire::ConnectOptions {
        host: "127.0.0.1".to_owned(),
        port: cluster.proxy_port,
        user: "ops".to_owned(),
        database: "tandem".to_owned(),
        credentials: tandem_wire::Credentials::Password(tandem_wire::Secret::new("app")),
        tls: tandem_wire::tls::ClientTls::disabled(),
        params: Vec::new(),
        connect_timeout: LIMIT,
    };
    let connection = tandem_wire::connect(&options).await.expect("a login");
    connection.into_parts().stream
}

/// A message of a client.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("short");
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

/// The types of the messages that are answered until the connection is closed; errors with their SQLSTATE.
async fn answered(cluster: &Cluster, messages: &[Vec<u8>]) -> String {
    let answer = crate::hostile::say_over(raw(cluster).await, &messages.concat()).await;
    let mut rest = answer.as_slice();
    let mut told = String::new();
    while let [tag, a, b, c, d, ..] = rest {
        let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).expect("a length");
        let body = rest.get(5..=length).unwrap_or_default();
        told.push(char::from(*tag));
        if *tag == b'E' {
            let code = body
                .windows(7)
                .find(|window| window[0] == b'C' && window[6] == 0);
            told.push_str(&String::from_utf8_lossy(&code.expect("an SQLSTATE")[1..6]));
        }
        rest = rest.get(1 + length..).unwrap_or_default();
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_keeps_to_the_protocol_whatever_a_client_sends() {
    let cluster = with_console(Cluster::of(&[15])).await;
    let parse = |name: &str, sql: &str| {
        message(
            b'P',
            &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"].concat(),
        )
    };
    let bind = |portal: &str, name: &str| {
        let names = [portal.as_bytes(), b"\0", name.as_bytes(), b"\0"].concat();
        message(b'B', &[&names[..], &[0; 6]].concat())
    };
    let execute = |portal: &str, most: u32| {
        message(
            b'E',
            &[portal.as_bytes(), b"\0", &most.to_be_bytes()].concat(),
        )
    };
    let describe =
        |kind: u8, name: &str| message(b'D', &[&[kind], name.as_bytes(), b"\0"].concat());
    let query = |sql: &str| message(b'Q', &[sql.as_bytes(), b"\0"].concat());
    let (sync, end) = (|| message(b'S', b""), || message(b'X', b""));
    let table: Vec<(Vec<Vec<u8>>, &str)> = vec![
        (vec![query("SHOW VERSION; SHOW STATE"), end()], "TDCTDDDDCZ"),
        (vec![query(" ; "), query(""), end()], "IZIZ"),
        (
            vec![query("SHOW VERSION; NONSENSE; SHOW LAG"), end()],
            "E42601Z",
        ),
        (
            vec![
                parse("s", "SHOW STATE"),
                describe(b'S', "s"),
                bind("", "s"),
                describe(b'P', ""),
                execute("", 0),
                sync(),
            ],
            "1tT2TDDDDCZ",
        ),
        // Three of four rows, then the last; what is over stays over.
        (
            vec![
                parse("", "SHOW STATE"),
                bind("p", ""),
                execute("p", 3),
                execute("p", 3),
                execute("p", 3),
                sync(),
            ],
            "12DDDsDCCZ",
        ),
        // After an error nothing is done until Sync.
        (
            vec![
                execute("none", 0),
                parse("", "SHOW STATE"),
                bind("", ""),
                sync(),
                parse("", "RELAOD"),
                sync(),
                query("SHOW VERSION"),
            ],
            "E34000ZE42601ZTDCZ",
        ),
        (vec![parse("", "SHOW LAG; SHOW STATE"), sync()], "E42601Z"),
        (
            vec![
                parse("a", "HELP"),
                parse("a", "HELP"),
                sync(),
                describe(b'S', "a"),
                sync(),
            ],
            "1E42P05ZtTZ",
        ),
        (
            vec![parse("", ""), bind("", ""), execute("", 0), sync()],
            "12IZ",
        ),
        (
            vec![
                parse("", "SET application_name = 'x'"),
                describe(b'S', ""),
                bind("", ""),
                execute("", 0),
                sync(),
            ],
            "1tn2CZ",
        ),
        // A portal ends with its transaction, which ends at Sync.
        (
            vec![
                parse("", "SHOW LAG"),
                bind("p", ""),
                sync(),
                execute("p", 0),
                sync(),
            ],
            "12ZE34000Z",
        ),
        (vec![bind("", "missing"), sync()], "E26000Z"),
        (vec![message(b'C', b"Snothing\0"), sync()], "3Z"),
        // What is malformed inside of a message is an error, a message that is none ends it.
        (vec![message(b'B', b"x"), sync()], "E08P01Z"),
        (
            vec![message(b'P', b"a\0SHOW LAG\0\0\x09"), sync()],
            "E08P01Z",
        ),
        (
            vec![message(b'F', &[0; 10]), query("SHOW VERSION")],
            "E0A000ZTDCZ",
        ),
        (
            vec![
                message(b'd', b"data"),
                message(b'c', b""),
                query("SHOW VERSION"),
            ],
            "TDCZ",
        ),
        (
            vec![message(b'Q', b"SHOW LAG"), query("SHOW VERSION")],
            "E08P01",
        ),
        (
            vec![message(b'Q', b"\xff\xfe\0"), query("SHOW VERSION")],
            "E22021ZTDCZ",
        ),
        (vec![b"Q\0\x20\0\0".to_vec(), vec![b' '; 4096]], "E08P01"),
        (vec![b"Q\xff\xff\xff\xff".to_vec()], "E08P01"),
        (vec![message(b'p', b"again\0")], "E08P01"),
        (vec![b"GET / HTTP/1.1\r\n\r\n".to_vec()], "E08P01"),
    ];
    for (index, (messages, wanted)) in table.iter().enumerate() {
        assert_eq!(answered(&cluster, messages).await, *wanted, "case {index}");
    }
    let names = (0..150).map(|n| parse(&format!("s{n}"), "HELP"));
    let told = answered(&cluster, &names.chain([sync()]).collect::<Vec<_>>()).await;
    assert_eq!(told, format!("{}E53000Z", "1".repeat(100)));

    let mut random = fastrand::Rng::with_seed(1711);
    for _ in 0..60 {
        let tags = b"QPBDECSHXFdcfp";
        let messages: Vec<Vec<u8>> = (0..random.usize(1..6))
            .map(|_| {
                let body: Vec<u8> = (0..random.usize(..40)).map(|_| random.u8(..)).collect();
                message(tags[random.usize(..tags.len())], &body)
            })
            .collect();
        answered(&cluster, &messages).await;
    }
    assert_eq!(
        cluster.daemon.status().await.expect("a status")["panics"],
        0
    );
    assert_eq!(
        client::value(&console(&cluster, "ops").await, "SHOW STATE").await,
        "active"
    );
}
