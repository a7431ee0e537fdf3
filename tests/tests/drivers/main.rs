//! Drivers as people use them, over pools smaller than the number of clients: each runs its own program of scenarios
//! (`tests/drivers/`), which prints one line for each.

mod native;
mod tools;

use std::{
    io::{self, Write as _},
    time::Duration,
};

use tandem_tests::Cluster;

use tools::{Missing, Tool};

const LIMIT: Duration = Duration::from_secs(150);
/// Fewer servers than clients, and fewer statements on each than a client prepares.
const SMALL_POOL: &str = "pool_mode = \"transaction\"\npool_size = 2\nmax_prepared_statements = 8";
/// Types have other numbers (OIDs) on each node.
const SCHEMA: &str = "DO $$ BEGIN FOR i IN 1 .. current_setting('port')::int % 64 LOOP \
            EXECUTE format('CREATE TYPE filler%s AS ENUM ()', i); \
        END LOOP; END $$; \
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s happy'); \
    CREATE TYPE pair AS (n int, mood mood); \
    CREATE DOMAIN level AS int CHECK (VALUE > 0); \
    CREATE TABLE person (client int, n int, mood mood, moods mood[], pair pair, level level, PRIMARY KEY (client, n)); \
    CREATE TABLE item (client int, scenario text, n int, body text, PRIMARY KEY (client, scenario, n));";
/// So that a client's connections go to one node.
const RULES: &str = "[default]\nwrite = \"home\"\n[placement.client]\nstrategy = \"hash\"\n";
const ONE: &[u32] = &[15];
const THREE: &[u32] = &[15, 15, 15];

async fn cluster_of(majors: &[u32]) -> Cluster {
    let mut cluster = Cluster::of(majors)
        .schema(SCHEMA)
        .proxy(SMALL_POOL)
        .without_daemon()
        .start()
        .await;
    std::fs::write(cluster.dir().join("rules.toml"), RULES).expect("the rules");
    cluster.daemon.start().await;
    // What is written before the nodes are taken is nobody's.
    cluster.converge(LIMIT).await;
    cluster
}

/// How many homes the clients' keys have. With one node all clients share a pool, with more they have one on each.
fn keys(majors: &[u32]) -> i32 {
    match i32::try_from(majors.len()) {
        Ok(nodes) if nodes > 1 => nodes,
        _ => 0,
    }
}

/// Runs a driver's program; what it wrote must be the same on every node in the end.
async fn runs(tool: Result<Tool, Missing>, majors: &[u32]) {
    let tool = match tool {
        Ok(tool) => tool,
        Err(missing) => return show(&format!("SKIP: {missing}\n")),
    };
    let cluster = cluster_of(majors).await;
    let dsn = format!("postgresql://app:app@127.0.0.1:{}/app", cluster.proxy_port);
    let ran = tool
        .program()
        .args([dsn, keys(majors).to_string()])
        .run(LIMIT)
        .await;
    show(&ran.all());
    assert!(
        ran.status.success() && ran.stdout.contains("ok "),
        "{} over {} nodes:\n{}",
        tool.name(),
        majors.len(),
        ran.all()
    );
    cluster.assert_converged().await;
}

/// Past the capture of the test's output: what was skipped is to be seen.
fn show(text: &str) {
    // Nobody may be reading.
    let _ = io::stderr().write_all(text.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn psycopg_over_one_node() {
    runs(tools::python("psycopg"), ONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn psycopg_over_three_nodes() {
    runs(tools::python("psycopg"), THREE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asyncpg_over_one_node() {
    runs(tools::python("asyncpg"), ONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asyncpg_over_three_nodes() {
    runs(tools::python("asyncpg"), THREE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_postgres_over_one_node() {
    runs(tools::node("pg"), ONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_postgres_over_three_nodes() {
    runs(tools::node("pg"), THREE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pgjdbc_over_one_node() {
    runs(tools::java(), ONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pgjdbc_over_three_nodes() {
    runs(tools::java(), THREE).await;
}

async fn native(majors: &[u32]) {
    let cluster = cluster_of(majors).await;
    native::run(&cluster, keys(majors)).await;
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokio_postgres_over_one_node() {
    native(ONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokio_postgres_over_three_nodes() {
    native(THREE).await;
}
