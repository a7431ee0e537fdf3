//! What a session has set goes with it from server to server, and to nobody else.

use std::time::Duration;

use tandem_tests::{
    Cluster, client,
    template::{APP, DATABASE},
};
use tokio_postgres::Client;

use crate::parameters::open_with;

const LIMIT: Duration = Duration::from_secs(20);
const POOL_OF_TWO: &str = "pool_mode = \"transaction\"\npool_size = 2";
/// A setting of one's own is empty, not missing, on a server where anybody ever had it.
const SHOW: &str = "SELECT current_setting('work_mem'), current_setting('search_path'), current_setting('timezone'), \
    current_setting('datestyle'), current_setting('application_name'), nullif(current_setting('a.b', true), ''), current_user, \
    current_setting('statement_timeout'), current_setting('extra_float_digits')";

async fn shown(client: &Client) -> Vec<Option<String>> {
    client::rows(client, SHOW)
        .await
        .into_iter()
        .next()
        .expect("a row")
}

/// Runs on one server after the other: the other client holds one meanwhile.
async fn on_both(one: &Client, other: &Client, sql: &str) -> [String; 2] {
    client::execute(other, "BEGIN").await;
    let first = client::value(one, sql).await;
    client::execute(one, "BEGIN").await;
    client::execute(other, "COMMIT").await;
    client::execute(other, "BEGIN").await;
    client::execute(one, "COMMIT").await;
    let second = client::value(one, sql).await;
    client::execute(other, "COMMIT").await;
    [first, second]
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_follow_their_session_and_nobody_else_sees_them() {
    let cluster = Cluster::of(&[15, 18]).proxy(POOL_OF_TWO).start().await;
    let (one, other) = (cluster.proxy().await, cluster.proxy().await);
    let before = shown(&other).await;
    client::execute(&one, "SET work_mem = '7MB'").await;
    client::execute(&one, "SET search_path = \"$user\", 'odd, schema', public").await;
    client::execute(&one, "SELECT set_config('a.b', 'it''s \\ mine', false)").await;
    for name in ["work_mem", "search_path", "a.b"] {
        let sql = format!("SELECT current_setting('{name}', true)");
        let direct = client::value(&one, &sql).await;
        assert_eq!(on_both(&one, &other, &sql).await, [direct.clone(), direct]);
    }
    for _ in 0..4 {
        assert_eq!(shown(&other).await[..3], before[..3]);
        client::execute(&one, "BEGIN").await;
        assert_eq!(shown(&other).await[..3], before[..3]);
        client::execute(&one, "COMMIT").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_keeps_the_application_name_and_the_parameters_of_the_login() {
    let cluster = Cluster::of(&[15]).proxy(POOL_OF_TWO).start().await;
    let open = async |name: &str, options: &str| {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(cluster.proxy_port)
            .user(APP)
            .password(APP)
            .dbname(DATABASE)
            .application_name(name)
            .options(options);
        client::connect_with(&config).await.expect("a login")
    };
    let clients = [
        open("first", "").await,
        open("second", "").await,
        open("third", "-c work_mem=5MB -c timezone=Asia/Tokyo").await,
    ];
    for _ in 0..6 {
        for (client, name) in clients.iter().zip(["first", "second", "third"]) {
            assert_eq!(client::value(client, "SHOW application_name").await, name);
        }
        let shown = client::value(
            &clients[2],
            "SELECT current_setting('work_mem') || current_setting('timezone')",
        )
        .await;
        assert_eq!(shown, "5MBAsia/Tokyo");
        assert_eq!(client::value(&clients[0], "SHOW work_mem").await, "4MB");
    }
    client::execute(
        &clients[2],
        "SET work_mem = '9MB'; SET application_name = 'changed'",
    )
    .await;
    client::execute(&clients[2], "DISCARD ALL").await;
    assert_eq!(client::value(&clients[2], "SHOW work_mem").await, "5MB");
    assert_eq!(
        client::value(&clients[2], "SHOW application_name").await,
        "third"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_carried_keeps_its_server_and_is_gone_with_its_session() {
    let cluster = Cluster::of(&[15]).proxy(POOL_OF_TWO).start().await;
    let (pinned, other) = (cluster.proxy().await, cluster.proxy().await);
    for (make, look, expected) in [
        (
            "CREATE TEMP TABLE mine (id int); INSERT INTO mine VALUES (5)",
            "SELECT id FROM mine",
            "5",
        ),
        (
            "SELECT pg_advisory_lock(77)",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
            "1",
        ),
        (
            "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
            "SELECT count(*) FROM pg_cursors",
            "1",
        ),
        (
            "PREPARE mine_too AS SELECT 'sql'",
            "EXECUTE mine_too",
            "sql",
        ),
        ("SELECT setseed(0.5)", "SELECT 'seeded'", "seeded"),
    ] {
        client::execute(&pinned, make).await;
        // The other one goes on, and takes whatever server is free.
        for _ in 0..3 {
            assert_eq!(client::value(&other, "SELECT 1").await, "1");
            client::execute(&other, "BEGIN").await;
            assert_eq!(client::value(&pinned, look).await, expected, "{make}");
            client::execute(&other, "COMMIT").await;
        }
    }
    drop(pinned);
    let left = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77";
    tandem_tests::eventually(
        "the lock is released",
        Duration::from_secs(20),
        async || match cluster.nodes[0].value(left).await.as_str() {
            "0" => Ok(()),
            other => Err(other.to_owned()),
        },
    )
    .await;
    for _ in 0..4 {
        let error = client::try_rows(&other, "SELECT id FROM mine")
            .await
            .expect_err("nobody's");
        assert_eq!(client::sqlstate(&error), "42P01");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_function_does_out_of_sight_is_never_seen_by_another() {
    let cluster = Cluster::of(&[15])
        .schema(
            "CREATE FUNCTION secretly() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
                PERFORM set_config('a.b', 'secret', false); PERFORM set_config('work_mem', '3MB', false);
                PERFORM pg_advisory_lock(88); CREATE TEMP TABLE hidden (id int); END $$;",
        )
        .proxy(POOL_OF_TWO)
        .start()
        .await;
    let others = [cluster.proxy().await, cluster.proxy().await];
    for call in [
        "SELECT secretly()",
        "DO $$ BEGIN PERFORM secretly(); END $$",
    ] {
        let one = cluster.proxy().await;
        client::execute(&one, call).await;
        for other in &others {
            client::execute(other, "BEGIN").await;
            assert_eq!(
                client::value(other, "SELECT current_setting('a.b', true)").await,
                ""
            );
            assert_eq!(client::value(other, "SHOW work_mem").await, "4MB");
            assert_eq!(
                client::value(other, "SELECT to_regclass('hidden')").await,
                ""
            );
        }
        for other in &others {
            client::execute(other, "COMMIT").await;
        }
        let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 88";
        assert_eq!(cluster.nodes[0].value(locks).await, "0", "{call}");
    }
}

/// What logins ask for.
const LOGINS: [&str; 3] = [
    "",
    "-c work_mem=5MB -c search_path=own,public -c timezone=Asia/Tokyo -c application_name=second",
    "-c statement_timeout=2h -c extra_float_digits=2 -c datestyle=SQL -c a.b=login",
];

/// A step of a random history.
fn step(random: &mut fastrand::Rng) -> String {
    let n = random.u32(1..9);
    let pick = random.usize(0..35);
    match pick {
        0..=2 => format!("SET work_mem = '{n}MB'"),
        3 => format!("SET LOCAL work_mem = '{n}{n}MB'"),
        4 => "RESET work_mem".to_owned(),
        5 => format!("SET search_path = s{n}, public"),
        6 => format!("SET LOCAL search_path TO 's {n}'"),
        7 => format!("SET TIME ZONE {n}"),
        8 => "SET TimeZone = 'Europe/Paris'".to_owned(),
        9 => format!("SELECT set_config('a.b', 'v{n}', {})", random.bool()),
        10 => "SET datestyle = 'SQL, DMY'".to_owned(),
        11 => "SET SESSION AUTHORIZATION DEFAULT".to_owned(),
        12 => "SET ROLE other_role".to_owned(),
        13 => "RESET ROLE".to_owned(),
        14 | 15 => "BEGIN".to_owned(),
        16 | 17 => "COMMIT".to_owned(),
        18 | 19 => "ROLLBACK".to_owned(),
        20 => "SAVEPOINT s".to_owned(),
        21 => "ROLLBACK TO s".to_owned(),
        22 => "RELEASE s".to_owned(),
        23 => "SELECT 1/0".to_owned(),
        24 => "RESET ALL".to_owned(),
        25 => format!("SET work_mem = '{n}MB'; SET statement_timeout = '{n}h'; SELECT 1/0"),
        26 => format!("SET extra_float_digits = {}; SELECT 1", n % 4),
        27 => format!("SET application_name = 'name {n}'"),
        28 => "DISCARD ALL".to_owned(),
        29 => "RESET TimeZone".to_owned(),
        30 => "SET LOCAL timezone TO DEFAULT".to_owned(),
        31 => "SET search_path TO DEFAULT".to_owned(),
        32 => "RESET ALL; SET extra_float_digits TO DEFAULT; SELECT 1".to_owned(),
        33 => format!("SET a.b = 'w{n}'; RESET a.b; SELECT 1/0"),
        _ => "SELECT 'nothing'".to_owned(),
    }
}

/// Several sessions over two servers, each beside one that has a node for itself: whatever they set, undo and roll back, all
/// look the same after every step.
#[tokio::test(flavor = "multi_thread")]
async fn random_histories_of_settings_end_as_on_a_connection_of_ones_own() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("SEED={seed}");
    let cluster = Cluster::of(&[15, 15])
        .proxy("pool_mode = \"transaction\"\npool_size = 3\nworkers = 2")
        .start()
        .await;
    let node = &cluster.nodes[0];
    for node in &cluster.nodes {
        node.value("CREATE ROLE other_role").await;
        node.value("GRANT other_role TO app").await;
    }
    let mut sessions = Vec::new();
    for options in LOGINS {
        let direct = open_with(node.port(), options).await.expect("a login");
        let through = open_with(cluster.proxy_port, options).await;
        sessions.push((direct, through.expect("a login")));
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let mut history = vec![Vec::new(); sessions.len()];
    for _ in 0..600 {
        let which = random.usize(0..sessions.len());
        let (direct, through) = &sessions[which];
        let sql = step(&mut random);
        let extended = random.bool() && !sql.contains(';');
        history[which].push(format!(
            "{sql}{}",
            if extended { " (extended)" } else { "" }
        ));
        let run = async |client: &Client| {
            let answer = async {
                if extended {
                    client.query(&sql, &[]).await.map(drop)
                } else {
                    client.simple_query(&sql).await.map(drop)
                }
            };
            match tokio::time::timeout(LIMIT, answer).await {
                Ok(answer) => answer.map_err(|error| client::sqlstate(&error)),
                Err(_) => Err("no answer".to_owned()),
            }
        };
        let tell = || format!("SEED={seed}, session {which}: {:#?}", history[which]);
        assert_eq!(run(through).await, run(direct).await, "{}", tell());
        let look = async |client: &Client| {
            client::try_rows(client, SHOW)
                .await
                .map_err(|error| client::sqlstate(&error))
        };
        assert_eq!(look(through).await, look(direct).await, "{}", tell());
    }
}
