//! Clients that are killed, and clients that cancel, under load: nobody else notices.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tandem_tests::{
    Cluster, client, eventually,
    template::{APP, DATABASE},
};
use tandem_wire::{
    ConnectOptions, Credentials, Secret, connect,
    encode::frontend as put,
    tls::{ClientTls, SslMode},
};
use tokio::{io::AsyncWriteExt, task::JoinSet};

const SCHEMA: &str = "CREATE TABLE load (id int PRIMARY KEY, owner int, text text, sum text);
    CREATE TABLE sink (id bigint, text text);
    INSERT INTO load SELECT i, i % 10, repeat(md5(i::text), 1 + i % 40), md5(repeat(md5(i::text), 1 + i % 40))
        FROM generate_series(1, 500) i;";

/// Asks for rows until told to stop; every row must be the one that was asked for, and whole.
async fn checker(cluster_port: u16, number: i32, stop: Arc<AtomicBool>, rows: Arc<AtomicU64>) {
    let client = client::connect(cluster_port, APP, Some(APP), DATABASE)
        .await
        .expect("a login");
    let statement = client
        .prepare("SELECT id, owner, text, sum, $2::int FROM load WHERE id = $1")
        .await
        .expect("a statement");
    let mut id = number;
    while !stop.load(Ordering::Relaxed) {
        id = id % 500 + 1;
        let row = client
            .query_one(&statement, &[&id, &number])
            .await
            .unwrap_or_else(|error| panic!("{}", client::describe(&error)));
        let (text, sum): (String, String) = (row.get(2), row.get(3));
        assert_eq!((row.get::<_, i32>(0), row.get::<_, i32>(1)), (id, id % 10));
        assert_eq!(row.get::<_, i32>(4), number);
        let check = format!("SELECT md5('{text}'), {id}");
        let checked = client::rows(&client, &check).await;
        assert_eq!(checked[0][0].as_deref(), Some(sum.as_str()));
        assert_eq!(checked[0][1], Some(id.to_string()));
        rows.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a client was about to do when it was killed.
fn conversation(random: &mut fastrand::Rng) -> bytes::BytesMut {
    let mut out = bytes::BytesMut::new();
    for _ in 0..random.usize(1..4) {
        match random.usize(0..8) {
            0 => put::query(&mut out, "SELECT * FROM load"),
            1 => put::query(&mut out, "BEGIN; UPDATE load SET owner = 0 WHERE id = 0"),
            2 => put::query(&mut out, "SELECT pg_sleep(0.05)"),
            3 => put::query(&mut out, "COPY sink FROM STDIN")
                .and_then(|()| put::copy_data(&mut out, b"1\tx\n2\ty\n")),
            4 => put::query(&mut out, "COPY load TO STDOUT"),
            5 => put::query(&mut out, "SET work_mem = '2MB'; SET search_path = nowhere"),
            6 => put::parse(&mut out, "s", "SELECT * FROM load WHERE id = $1", [])
                .and_then(|()| put::bind_text(&mut out, "", "s", [Some(&b"7"[..])]))
                .and_then(|()| put::execute(&mut out, "", 0)),
            _ => put::parse(&mut out, "", "SELECT 1/0", [])
                .and_then(|()| put::bind_text(&mut out, "", "", []))
                .and_then(|()| put::execute(&mut out, "", 0))
                .map(|()| put::sync(&mut out)),
        }
        .expect("a message");
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_killed_at_any_point_never_harm_another() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let kills: u32 = std::env::var("KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok())
        .unwrap_or(400);
    eprintln!("SEED={seed}");
    let cluster = Cluster::of(&[15])
        .schema(SCHEMA)
        .proxy("pool_mode = \"transaction\"\npool_size = 4\nworkers = 2")
        .start()
        .await;
    let (stop, rows) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut checkers = JoinSet::new();
    for number in 0..6 {
        checkers.spawn(checker(
            cluster.proxy_port,
            number,
            Arc::clone(&stop),
            Arc::clone(&rows),
        ));
    }
    let mut killers = JoinSet::new();
    for number in 0..4 {
        let port = cluster.proxy_port;
        let mut random = fastrand::Rng::with_seed(seed + number);
        killers.spawn(async move {
            let options = ConnectOptions {
                host: "127.0.0.1".to_owned(),
                port,
                user: APP.to_owned(),
                database: DATABASE.to_owned(),
                credentials: Credentials::Password(Secret::new(APP)),
                tls: ClientTls::new(SslMode::Disable, None).expect("no TLS"),
                params: Vec::new(),
                connect_timeout: Duration::from_secs(20),
            };
            for _ in 0..kills / 4 {
                let mut stream = connect(&options)
                    .await
                    .expect("a login")
                    .into_parts()
                    .stream;
                let said = conversation(&mut random);
                let upto = random.usize(0..=said.len());
                stream.write_all(&said[..upto]).await.expect("sent");
                stream.flush().await.expect("sent");
                if random.bool() {
                    tokio::time::sleep(Duration::from_micros(random.u64(0..3000))).await;
                }
                if random.bool() {
                    // A reset instead of an end.
                    if let Some(tcp) = stream.tcp() {
                        tcp.set_zero_linger().expect("a socket option");
                    }
                }
                drop(stream);
            }
        });
    }
    while let Some(ended) = killers.join_next().await {
        ended.expect("a killer does its work");
    }
    // They wait their turn behind what the killed have left to be done.
    eventually(
        "the others are served",
        Duration::from_secs(60),
        async || match rows.load(Ordering::Relaxed) {
            few @ 0..=50 => Err(few.to_string()),
            _ => Ok(()),
        },
    )
    .await;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = checkers.join_next().await {
        ended.expect("no checker ever sees a wrong row");
    }
    assert_eq!(
        cluster.nodes[0].value("SELECT count(*) FROM sink").await,
        "0"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_cancels_hits_only_those_it_is_for() {
    let cluster = Cluster::of(&[15])
        .proxy("pool_mode = \"transaction\"\npool_size = 3")
        .start()
        .await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut innocents = JoinSet::new();
    for number in 0..6 {
        let (client, stop) = (cluster.proxy().await, Arc::clone(&stop));
        innocents.spawn(async move {
            let mut answers = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                let sql = format!("SELECT {number}, pg_sleep(0.002)");
                assert_eq!(client::value(&client, &sql).await, number.to_string());
                answers += 1;
            }
            answers
        });
    }
    let mut victims = JoinSet::new();
    for _ in 0..4 {
        let client = cluster.proxy().await;
        victims.spawn(async move {
            let token = client.cancel_token();
            let mut cancelled = 0_u32;
            for round in 0..60_u64 {
                let storm = async {
                    tokio::time::sleep(Duration::from_micros(round * 150)).await;
                    for _ in 0..3 {
                        token
                            .cancel_query(tokio_postgres::NoTls)
                            .await
                            .expect("a request");
                    }
                };
                let (outcome, ()) =
                    tokio::join!(client.simple_query("SELECT pg_sleep(0.005)"), storm);
                if let Err(error) = outcome {
                    assert_eq!(client::sqlstate(&error), "57014");
                    cancelled += 1;
                }
            }
            cancelled
        });
    }
    let mut cancelled = 0;
    while let Some(count) = victims.join_next().await {
        cancelled += count.expect("a victim");
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(answers) = innocents.join_next().await {
        assert!(answers.expect("nobody else is cancelled") > 0);
    }
    assert!(cancelled > 0, "no cancel ever met its query");
}
