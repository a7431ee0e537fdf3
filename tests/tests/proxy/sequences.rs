//! What `currval` and `lastval` answer is the session's own, or PostgreSQL's error; never another client's value.

use tandem_tests::{Cluster, client};
use tokio_postgres::Client;

const POOL_OF_TWO: &str = "workers = 1\npool_mode = \"transaction\"\npool_size = 2";
const THING: &str =
    "CREATE SEQUENCE s; CREATE SEQUENCE t; CREATE TABLE thing (id serial, name text);";
const LOOKS: [&str; 3] = [
    "SELECT currval('s')",
    "SELECT lastval()",
    "INSERT INTO thing (name) VALUES (currval('s'))",
];

async fn cluster() -> Cluster {
    Cluster::of(&[18])
        .schema(THING)
        .proxy(POOL_OF_TWO)
        .start()
        .await
}

/// Every server of the pool has values of sequences.
async fn fill(clients: &[&Client; 2]) {
    client::execute(clients[0], "BEGIN").await;
    client::value(clients[1], "SELECT nextval('s') + nextval('t')").await;
    client::value(clients[0], "SELECT nextval('s') + nextval('t')").await;
    client::execute(clients[0], "COMMIT").await;
}

async fn code(client: &Client, sql: &str, extended: bool) -> String {
    let result = if extended {
        client.query(sql, &[]).await.map(drop)
    } else {
        client.simple_query(sql).await.map(drop)
    };
    result.map_or_else(|error| client::sqlstate(&error), |()| "a value".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_look_of_a_session_never_finds_anothers_value() {
    for look in LOOKS {
        for extended in [false, true] {
            let cluster = cluster().await;
            let clients = [cluster.proxy().await, cluster.proxy().await];
            fill(&[&clients[0], &clients[1]]).await;
            let new = cluster.proxy().await;
            assert_eq!(code(&new, look, extended).await, "55000", "{look}");
            // It keeps its server, where all is as it has to be.
            let value = client::value(&new, "SELECT nextval('s')").await;
            client::execute(&clients[0], "SELECT nextval('s')").await;
            assert_eq!(client::value(&new, "SELECT currval('s')").await, value);
            assert_eq!(code(&new, "SELECT currval('t')", extended).await, "55000");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_transaction_of_its_nextval_a_session_finds_its_own_value() {
    let cluster = cluster().await;
    let clients = [cluster.proxy().await, cluster.proxy().await];
    fill(&[&clients[0], &clients[1]]).await;
    for look in ["SELECT currval('thing_id_seq')", "SELECT lastval()"] {
        let new = cluster.proxy().await;
        client::execute(&new, "BEGIN").await;
        let insert = "INSERT INTO thing (name) VALUES ('x') RETURNING id";
        let id = client::value(&new, insert).await;
        client::value(&clients[0], insert).await;
        assert_eq!(client::value(&new, look).await, id);
        client::execute(&new, "COMMIT").await;
        let look_again = client::value(&new, look).await;
        assert_eq!(look_again, id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_behind_begin_alone_never_finds_anothers_value() {
    let cluster = cluster().await;
    let clients = [cluster.proxy().await, cluster.proxy().await];
    fill(&[&clients[0], &clients[1]]).await;
    let new = cluster.proxy().await;
    client::execute(&new, "BEGIN").await;
    assert_eq!(code(&new, "SELECT lastval()", false).await, "55000");
    client::execute(&new, "ROLLBACK").await;
}

/// Once a client has looked, a session that has its server to itself may also look after the transaction.
#[tokio::test(flavor = "multi_thread")]
async fn clients_one_after_the_other_find_their_own_values_without_a_transaction() {
    let cluster = cluster().await;
    let first = cluster.proxy().await;
    // On nobody's server there is nothing to find, and from now on it is known that clients look.
    assert_eq!(code(&first, "SELECT lastval()", false).await, "55000");
    drop(first);
    let mut last = String::new();
    for round in 0..6 {
        let new = cluster.proxy().await;
        assert_eq!(client::value(&new, "SELECT 'something'").await, "something");
        let insert = "INSERT INTO thing (name) VALUES ('x') RETURNING id";
        let id = client::value(&new, insert).await;
        assert_ne!(id, last);
        let found = client::value(&new, "SELECT lastval()").await;
        assert_eq!(found, id, "round {round}");
        last = id;
    }
}

/// Others between the write and the look: the own value or none.
#[tokio::test(flavor = "multi_thread")]
async fn with_others_in_between_a_session_finds_its_own_value_or_none() {
    let cluster = cluster().await;
    let other = cluster.proxy().await;
    assert_eq!(
        code(&cluster.proxy().await, "SELECT lastval()", false).await,
        "55000"
    );
    let mut random = fastrand::Rng::with_seed(7);
    let insert = "INSERT INTO thing (name) VALUES ('x') RETURNING id";
    for _ in 0..40 {
        let new = cluster.proxy().await;
        if random.bool() {
            client::value(&other, insert).await;
        }
        let id = client::value(&new, insert).await;
        for _ in 0..random.u32(0..3) {
            client::value(&other, insert).await;
        }
        match client::try_rows(&new, "SELECT currval('thing_id_seq')").await {
            Ok(rows) => assert_eq!(rows, [[Some(id)]]),
            Err(error) => assert_eq!(client::sqlstate(&error), "55000"),
        }
    }
}
