//! The scenarios with tokio-postgres, which pipelines whatever is awaited together.

use std::{fmt::Write as _, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _, future::join_all};
use tandem_tests::{
    Cluster, client,
    template::{APP, DATABASE},
};
use tokio::task::JoinSet;
use tokio_postgres::{Client, Config, NoTls, types::ToSql};

/// More than the pools of all nodes have servers.
const CLIENTS: i32 = 9;
const LARGE: usize = 20 << 20;
const LIMIT: Duration = Duration::from_secs(120);
const SERIES: &str = "SELECT $1::int, n, repeat(md5($1::int || ':' || n), n % 7 + 1) FROM generate_series(1, $2::int) n";

/// A client with its number and the home of its key.
pub(crate) async fn connect(cluster: &Cluster, id: i32, keys: i32) -> Client {
    let mut config = Config::new();
    config
        .host("127.0.0.1")
        .port(cluster.proxy_port)
        .user(APP)
        .password(APP)
        .dbname(DATABASE)
        .application_name(format!("client {id}"));
    if keys > 0 {
        config.options(format!("-c tandem.key=client:{}", id % keys));
    }
    client::connect_with(&config)
        .await
        .unwrap_or_else(|error| panic!("{}", client::describe(&error)))
}

/// Runs all scenarios with all clients at once.
pub(crate) async fn run(cluster: &Cluster, keys: i32) {
    let mut clients = JoinSet::new();
    for id in 0..CLIENTS {
        let (client, other) = (
            connect(cluster, id, keys).await,
            connect(cluster, id, keys).await,
        );
        clients.spawn(async move {
            let all = async {
                statements(&client, id).await;
                errors(&client, id).await;
                copies(&client, id).await;
                portals(&client, id).await;
                abandoned_copy(&client, id).await;
                cancels(&other, id).await;
                large(&other, id).await;
                killed(other, id).await;
            };
            tokio::time::timeout(LIMIT, all).await.expect("in time");
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.expect("no client fails");
    }
    // The transactions of those that went away are gone, and so are their locks.
    for id in 0..CLIENTS {
        let client = connect(cluster, id, keys).await;
        let insert = "INSERT INTO item VALUES ($1, 'killed', 1, 'alive')";
        client.execute(insert, &[&id]).await.expect("an insert");
        assert_eq!(client::value(&client, "SHOW work_mem").await, "4MB");
    }
}

async fn own_rows(client: &Client, id: i32, count: i32) {
    let rows = client
        .query(SERIES, &[&id, &count])
        .await
        .unwrap_or_else(|error| panic!("{}", client::describe(&error)));
    let numbers: Vec<i32> = rows.iter().map(|row| row.get(1)).collect();
    assert_eq!(numbers, (1..=count).collect::<Vec<_>>());
    assert!(rows.iter().all(|row| row.get::<_, i32>(0) == id));
}

/// More statements than a server keeps, prepared once, run many times, pipelined.
async fn statements(client: &Client, id: i32) {
    let mut prepared = Vec::new();
    for n in 0..30 {
        let sql = format!("SELECT $1::int * 1000 + {n}, current_setting('application_name')");
        prepared.push(client.prepare(&sql).await.expect("a statement"));
    }
    let parameters: [&(dyn ToSql + Sync); 1] = [&id];
    for _ in 0..3 {
        let mut all = Vec::new();
        for statement in &prepared {
            all.push(client.query_one(statement, &parameters));
        }
        for (n, row) in (0..).zip(join_all(all).await) {
            let row = row.unwrap_or_else(|error| panic!("{}", client::describe(&error)));
            assert_eq!(row.get::<_, i32>(0), id * 1000 + n);
            assert_eq!(row.get::<_, String>(1), format!("client {id}"));
        }
        own_rows(client, id, 50).await;
    }
}

/// Errors in a pipeline and in a transaction; savepoints.
async fn errors(client: &Client, id: i32) {
    let divide = client
        .prepare("SELECT 100 / $1::int")
        .await
        .expect("a statement");
    for _ in 0..5 {
        let (one, zero, two) = tokio::join!(
            client.query_one(&divide, &[&1]),
            client.query_one(&divide, &[&0]),
            client.query_one(&divide, &[&2]),
        );
        assert_eq!(one.expect("a row").get::<_, i32>(0), 100);
        assert_eq!(client::sqlstate(&zero.expect_err("no row")), "22012");
        assert_eq!(two.expect("a row").get::<_, i32>(0), 50);
    }
    client::execute(client, "BEGIN").await;
    let insert = "INSERT INTO item VALUES ($1, 'savepoint', $2, '')";
    for n in 0..6 {
        client::execute(client, "SAVEPOINT mine").await;
        client.execute(insert, &[&id, &n]).await.expect("an insert");
        if n % 2 == 1 {
            let error = client.query(&divide, &[&0]).await.expect_err("no row");
            assert_eq!(client::sqlstate(&error), "22012");
            let error = client.query(&divide, &[&1]).await.expect_err("aborted");
            assert_eq!(client::sqlstate(&error), "25P02");
            client::execute(client, "ROLLBACK TO mine").await;
        }
    }
    client::execute(client, "COMMIT").await;
    let left = format!(
        "SELECT string_agg(n::text, ' ' ORDER BY n) FROM item WHERE client = {id} AND scenario = 'savepoint'"
    );
    assert_eq!(client::value(client, &left).await, "0 2 4");
}

/// COPY both ways.
async fn copies(client: &Client, id: i32) {
    let mut text = String::new();
    for n in 0..2000 {
        let _ = writeln!(text, "{id}\tcopy\t{n}\t{id}:{n}");
    }
    let sink = client
        .copy_in("COPY item FROM STDIN")
        .await
        .expect("a copy");
    let mut sink = std::pin::pin!(sink);
    sink.send(Bytes::from(text.clone())).await.expect("data");
    assert_eq!(sink.finish().await.expect("its end"), 2000);
    let query = format!(
        "COPY (SELECT * FROM item WHERE client = {id} AND scenario = 'copy' ORDER BY n) TO STDOUT"
    );
    let stream = client.copy_out(&query).await.expect("a copy");
    let pieces: Vec<_> = stream.collect().await;
    let got: Vec<u8> = pieces
        .into_iter()
        .flat_map(|piece| piece.expect("data"))
        .collect();
    assert!(got == text.as_bytes(), "the copy is its own");
    own_rows(client, id, 20).await;
}

/// Prepared statements and cursors in one transaction.
async fn portals(client: &Client, id: i32) {
    client::execute(client, "BEGIN").await;
    let series = client.prepare(SERIES).await.expect("a statement");
    let statement = client.query(&series, &[&id, &30]).await.expect("rows");
    assert_eq!(statement.len(), 30);
    client::execute(
        client,
        &format!("DECLARE mine CURSOR FOR SELECT {id} + n FROM generate_series(1, 50) n"),
    )
    .await;
    let some = client::rows(client, "FETCH 20 FROM mine").await;
    assert_eq!(some.first(), Some(&vec![Some((id + 1).to_string())]));
    assert_eq!(client::rows(client, "FETCH ALL FROM mine").await.len(), 30);
    client::execute(client, "COMMIT").await;
}

/// A cancel request ends this client's statement and nothing else.
async fn cancels(client: &Client, id: i32) {
    let token = client.cancel_token();
    let running = client.query_one("SELECT pg_sleep(60)", &[]);
    let mut running = std::pin::pin!(running);
    // Nothing tells when the statement has begun, so cancel until it has; not again while the last request may be on its way
    // still, which would hit what comes next.
    let mut limit = Duration::from_millis(50);
    let ended = loop {
        match tokio::time::timeout(limit, running.as_mut()).await {
            Ok(ended) => break ended,
            Err(_) => token.cancel_query(NoTls).await.expect("a cancel request"),
        }
        limit = Duration::from_secs(5);
    };
    assert_eq!(client::sqlstate(&ended.expect_err("cancelled")), "57014");
    own_rows(client, id, 30).await;
}

async fn large(client: &Client, id: i32) {
    let value = vec![u8::try_from(id).expect("small") + 1; LARGE];
    let row = client.query_one("SELECT $1::bytea", &[&value]).await;
    let row = row.unwrap_or_else(|error| panic!("{}", client::describe(&error)));
    assert!(
        row.get::<_, Vec<u8>>(0) == value,
        "a large value is its own"
    );
}

/// Goes away in the middle of a transaction, with rows on the way.
async fn killed(client: Client, id: i32) {
    client::execute(&client, "BEGIN; SET work_mem = '77MB'").await;
    let insert = "INSERT INTO item VALUES ($1, 'killed', 1, '')";
    client.execute(insert, &[&id]).await.expect("an insert");
    let many = client
        .query_raw(SERIES, [id, 1_000_000])
        .await
        .expect("rows");
    drop(many);
    drop(client);
}

/// A COPY that is given up. The driver sends a Sync into it, of which nobody knows whether the server took it: the session keeps
/// its server until the next statement tells.
async fn abandoned_copy(client: &Client, id: i32) {
    let sink = client
        .copy_in::<_, Bytes>("COPY item FROM STDIN")
        .await
        .expect("a copy");
    drop(sink);
    own_rows(client, id, 20).await;
}
