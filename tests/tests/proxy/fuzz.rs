//! Clients that log in and then say anything: whoever comes next gets right rows.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use tandem_tests::{
    Cluster, client, eventually,
    template::{APP, DATABASE},
};
use tandem_wire::{
    ConnectOptions, Credentials, Secret, connect,
    encode::frontend as put,
    tls::{ClientTls, SslMode},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::timeout,
};

const SCHEMA: &str = "CREATE TABLE truth (id int PRIMARY KEY, text text);
    INSERT INTO truth SELECT i, md5(i::text) FROM generate_series(1, 100) i;
    REVOKE ALL ON truth FROM app; GRANT SELECT ON truth TO app;
    CREATE TABLE sink (id bigint, text text);";

fn options(port: u16) -> ConnectOptions {
    ConnectOptions {
        host: "127.0.0.1".to_owned(),
        port,
        user: APP.to_owned(),
        database: DATABASE.to_owned(),
        credentials: Credentials::Password(Secret::new(APP)),
        tls: ClientTls::new(SslMode::Disable, None).expect("no TLS"),
        // In the same pool as the judge.
        params: vec![("client_encoding".to_owned(), "UTF8".to_owned())],
        connect_timeout: Duration::from_secs(20),
    }
}

/// A message as a client in its right mind might send it, at some point.
fn message(random: &mut fastrand::Rng, out: &mut BytesMut) -> io::Result<()> {
    let name = [
        "",
        "s",
        "t",
        "a_name_that_is_longer_than_the_names_of_ours_are",
    ][random.usize(0..4)];
    let queries = [
        "SELECT * FROM truth",
        "SELECT 1; SELECT 2",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT a",
        "SET work_mem = '9MB'",
        "SET SESSION AUTHORIZATION DEFAULT",
        "SET search_path = nowhere",
        "SET LOCAL statement_timeout = 1",
        "BEGIN; SET TimeZone = 'Asia/Tokyo'; SAVEPOINT b; RESET ALL; ROLLBACK TO b",
        "COPY sink FROM STDIN",
        "COPY truth TO STDOUT",
        "DEALLOCATE ALL",
        "DISCARD ALL",
        "PREPARE s AS SELECT 'not yours'",
        "EXECUTE s",
        "DECLARE c CURSOR WITH HOLD FOR SELECT * FROM truth",
        "LISTEN x; NOTIFY x, 'y'",
        "CREATE TEMP TABLE truth (id int, text text)",
        "DO $$ BEGIN PERFORM set_config('work_mem', '8MB', false); END $$",
        "SELECT pg_sleep(0.002)",
        "SELECT 1/0",
        "",
    ];
    match random.usize(0..12) {
        0..=2 => put::query(out, queries[random.usize(0..queries.len())]),
        3 => put::parse(out, name, queries[random.usize(0..queries.len())], []),
        4 => put::parse(
            out,
            name,
            "SELECT text, 'not yours' FROM truth WHERE id = $1",
            [23],
        ),
        5 => put::bind_text(out, name, name, [Some(&b"7"[..])]),
        6 => put::bind_text(out, "", name, []),
        7 => put::describe_statement(out, name),
        8 => put::execute(out, name, random.i32(0..3)),
        9 => put::close_statement(out, name),
        10 => put::copy_data(out, b"1\tx\n"),
        _ => {
            [put::sync, put::flush, put::copy_done][random.usize(0..3)](out);
            Ok(())
        }
    }
}

/// Some messages, in which a few bytes are not what they were.
fn nonsense(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut out = BytesMut::new();
    for _ in 0..random.usize(1..12) {
        message(random, &mut out).expect("a message");
    }
    let mut out = out.to_vec();
    if random.bool() {
        for _ in 0..random.usize(1..4) {
            let at = random.usize(0..out.len());
            match random.usize(0..4) {
                0 => out[at] = random.u8(..),
                1 => out[at] ^= 1 << random.usize(0..8),
                2 => out.insert(at, random.u8(..)),
                _ => {
                    out.remove(at);
                }
            }
            if out.is_empty() {
                break;
            }
        }
    }
    out
}

/// One who logs in, says it in pieces, perhaps listens, and goes in some way.
async fn hostile(options: &ConnectOptions, random: &mut fastrand::Rng) {
    let said = nonsense(random);
    let login = connect(options).await.expect("a login");
    let mut stream = login.into_parts().stream;
    let mut rest = &said[..];
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(random.usize(1..=rest.len()));
        // The proxy may have ended it for what came before.
        if stream.write_all(piece).await.is_err() {
            return;
        }
        rest = more;
        if random.bool() {
            tokio::task::yield_now().await;
        }
    }
    if random.bool() {
        let mut heard = Vec::new();
        let _ = timeout(Duration::from_millis(20), stream.read_to_end(&mut heard)).await;
    }
    if random.bool()
        && let Some(tcp) = stream.tcp()
    {
        tcp.set_zero_linger().expect("a socket option");
    }
}

const SETTINGS: &str =
    "SELECT current_setting('work_mem'), current_setting('search_path'), current_user,
    current_setting('TimeZone'), current_setting('statement_timeout')";

/// Gets what is true, from a server that strangers have had before, in every way of asking.
async fn judge(
    client: &tokio_postgres::Client,
    statement: &tokio_postgres::Statement,
    settings: &[Vec<Option<String>>],
    id: i32,
) {
    let row = client.query_one(statement, &[&id]).await;
    let row = row.unwrap_or_else(|error| panic!("{}", client::describe(&error)));
    assert_eq!(client::rows(client, SETTINGS).await, settings);
    let sql = format!("SELECT text, md5('{id}') FROM truth WHERE id = {id}");
    let truth = client::rows(client, &sql).await;
    assert_eq!(truth[0][0], truth[0][1]);
    assert_eq!(row.get::<_, Option<String>>(0), truth[0][0]);
    assert_eq!(row.get::<_, i32>(1), id);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_any_nonsense_of_one_client_the_next_gets_right_rows() {
    let from_env = |name| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse().ok())
    };
    let seed: u64 = from_env("SEED").unwrap_or_else(|| fastrand::u64(..));
    let rounds: u64 = from_env("ROUNDS").unwrap_or(300);
    eprintln!("SEED={seed}");
    let cluster = Cluster::of(&[15, 15])
        .schema(SCHEMA)
        .proxy("pool_mode = \"transaction\"\npool_size = 3\nworkers = 2")
        .start()
        .await;
    let options = options(cluster.proxy_port);
    let client = cluster.proxy().await;
    let settings = client::rows(&client, SETTINGS).await;
    let judged = Arc::new(AtomicI32::new(0));
    let mut hostiles = JoinSet::new();
    for number in 0..2 {
        let (options, mut random) = (options.clone(), fastrand::Rng::with_seed(seed + number));
        let judged = Arc::clone(&judged);
        hostiles.spawn(async move {
            for round in 0.. {
                if round >= rounds && judged.load(Ordering::Relaxed) > 10 {
                    return;
                }
                hostile(&options, &mut random).await;
            }
        });
    }
    let statement = client
        .prepare("SELECT text, $1::int FROM truth WHERE id = $1")
        .await
        .expect("a statement");
    while !hostiles.is_empty() {
        let id = judged.load(Ordering::Relaxed) % 100 + 1;
        judge(&client, &statement, &settings, id).await;
        judged.fetch_add(1, Ordering::Relaxed);
        while let Some(ended) = hostiles.try_join_next() {
            ended.expect("a login always works");
        }
    }
    let newcomer = cluster.proxy().await;
    let statement = newcomer
        .prepare("SELECT text, $1::int FROM truth WHERE id = $1")
        .await
        .expect("a statement");
    for id in 1..=20 {
        judge(&newcomer, &statement, &settings, id).await;
    }
    let status = cluster.daemon.status().await.expect("a status");
    assert_eq!(status["panics"], 0, "{status:#}");
    let left = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state <> 'idle'";
    eventually(
        "nothing runs any more",
        Duration::from_secs(20),
        async || match cluster.nodes[0].value(left).await.as_str() {
            "0" => Ok(()),
            other => Err(format!("{other} backends")),
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_in_the_middle_of_something_keeps_no_server() {
    let cluster = Cluster::of(&[15])
        .schema(SCHEMA)
        .proxy("pool_mode = \"transaction\"\npool_size = 1\nquery_wait_timeout = \"10s\"")
        .start()
        .await;
    let unfinished = |out: &mut BytesMut| {
        put::parse(out, "", "SELECT * FROM truth", [])?;
        put::bind_text(out, "", "", [])?;
        put::execute(out, "", 0)
    };
    let mut cases: Vec<(&str, BytesMut)> = Vec::new();
    let mut case = |name, put: &dyn Fn(&mut BytesMut) -> io::Result<()>| {
        let mut out = BytesMut::new();
        put(&mut out).expect("messages");
        cases.push((name, out));
    };
    case("half of a large query", &|out| {
        out.extend_from_slice(b"Q\0\x10\0\0SELECT ");
        out.extend_from_slice(&[b' '; 100_000]);
        Ok(())
    });
    case("half of a large query behind a whole one", &|out| {
        put::query(out, "SELECT 1")?;
        out.extend_from_slice(b"P\0\x10\0\0s\0SELECT ");
        out.extend_from_slice(&[b' '; 100_000]);
        Ok(())
    });
    case("half of a small query", &|out| {
        out.extend_from_slice(b"Q\0\0\0\x20SELECT ");
        Ok(())
    });
    case("no Sync", &unfinished);
    case("a query behind what has no Sync", &|out| {
        unfinished(out)?;
        put::query(out, "SELECT 2")
    });
    case("no Sync behind a query behind what has none", &|out| {
        unfinished(out)?;
        put::query(out, "SELECT 2")?;
        unfinished(out)
    });
    case("a copy without an end", &|out| {
        put::query(out, "COPY sink FROM STDIN")?;
        put::copy_data(out, b"1\tx\n")
    });
    case(
        "the end of a copy that there was not, and no Sync",
        &|out| {
            unfinished(out)?;
            put::copy_done(out);
            Ok(())
        },
    );
    case("a transaction", &|out| put::query(out, "BEGIN; SELECT 1"));
    for (name, said) in cases {
        let login = connect(&options(cluster.proxy_port))
            .await
            .expect("a login");
        let mut stream = login.into_parts().stream;
        stream.write_all(&said).await.expect("sent");
        let mut heard = Vec::new();
        let _ = timeout(Duration::from_millis(50), stream.read_to_end(&mut heard)).await;
        drop(stream);
        let next = cluster.proxy().await;
        let answer = client::try_rows(&next, "SELECT count(*) FROM sink").await;
        let answer = answer.unwrap_or_else(|error| panic!("{name}: {}", client::describe(&error)));
        assert_eq!(answer[0][0].as_deref(), Some("0"), "{name}");
    }
}
