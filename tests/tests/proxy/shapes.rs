//! What a client was told of a prepared statement stays true, whatever server runs it: rows have the shape that it knows, or
//! there is PostgreSQL's own error, before anything has run.

use std::{error::Error as StdError, time::Duration};

use bytes::BytesMut;
use tandem_tests::{Cluster, client, eventually};
use tokio_postgres::{
    Client, Error, Statement,
    types::{IsNull, ToSql, Type, to_sql_checked},
};

const LIMIT: Duration = Duration::from_secs(60);
/// A worker prefers servers of its own, so there is one.
const TWO_SERVERS: &str = "workers = 1\npool_mode = \"transaction\"\npool_size = 2";
const THING: &str = "CREATE TABLE thing (id int, name varchar(5));
    INSERT INTO thing VALUES (1, 'one');
    CREATE TABLE note (id int DEFAULT 7, text text);";

async fn pid(client: &Client) -> String {
    client::value(client, "SELECT pg_backend_pid()").await
}

/// Two clients of which each can be kept away from a server by the other.
struct Pair {
    client: Client,
    other: Client,
}

impl Pair {
    async fn of(cluster: &Cluster) -> Pair {
        Pair {
            client: cluster.proxy().await,
            other: cluster.proxy().await,
        }
    }

    /// The client's next transactions run on another server than its last one did, until [`Pair::let_go`].
    async fn elsewhere(&self) {
        let before = pid(&self.client).await;
        client::execute(&self.other, "BEGIN").await;
        assert_eq!(pid(&self.other).await, before);
        assert_ne!(pid(&self.client).await, before);
    }

    async fn let_go(&self) {
        client::execute(&self.other, "COMMIT").await;
    }
}

/// It is the error that PostgreSQL gives, by all that drivers go by.
fn assert_outdated(error: &Error) {
    let error = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
    let seen = (error.code().code(), error.message(), error.routine());
    assert_eq!(
        seen,
        (
            "0A000",
            "cached plan must not change result type",
            Some("RevalidateCachedQuery")
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_another_shape_are_postgresqls_error_on_every_server() {
    let cluster = Cluster::of(&[15])
        .schema(THING)
        .proxy(TWO_SERVERS)
        .start()
        .await;
    let node = &cluster.nodes[0];
    for (alter, query) in [
        (
            "ALTER TABLE thing ADD COLUMN more int",
            "SELECT * FROM thing",
        ),
        ("ALTER TABLE thing DROP COLUMN more", "SELECT * FROM thing"),
        (
            "ALTER TABLE thing ALTER id TYPE bigint",
            "SELECT id FROM thing",
        ),
        (
            "ALTER TABLE thing ALTER name TYPE varchar(9)",
            "SELECT name FROM thing",
        ),
        (
            "ALTER TABLE thing RENAME name TO called",
            "SELECT * FROM thing",
        ),
    ] {
        let pair = Pair::of(&cluster).await;
        let direct = node.connect().await;
        let by_node = direct.prepare(query).await.expect("a statement");
        direct.query(&by_node, &[]).await.expect("rows");
        let told = pair.client.prepare(query).await.expect("a statement");
        pair.client.query(&told, &[]).await.expect("rows");
        node.execute(alter).await;
        assert_outdated(&direct.query(&by_node, &[]).await.expect_err(alter));
        // First where it was never prepared, then where it was.
        pair.elsewhere().await;
        assert_outdated(&pair.client.query(&told, &[]).await.expect_err(alter));
        pair.let_go().await;
        for _ in 0..3 {
            pair.elsewhere().await;
            assert_outdated(&pair.client.query(&told, &[]).await.expect_err(alter));
            pair.let_go().await;
        }
        let anew = pair.client.prepare(query).await.expect("anew");
        for _ in 0..3 {
            pair.elsewhere().await;
            let rows = pair.client.query(&anew, &[]).await.expect("rows");
            assert_eq!(rows[0].len(), anew.columns().len());
            pair.let_go().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_prepared_before_and_who_prepared_behind_an_alter_do_not_disturb_each_other() {
    let cluster = Cluster::of(&[15])
        .schema(THING)
        .proxy(TWO_SERVERS)
        .start()
        .await;
    let pair = Pair::of(&cluster).await;
    let query = "SELECT * FROM thing";
    let old = pair.client.prepare(query).await.expect("a statement");
    pair.client.query(&old, &[]).await.expect("rows");
    cluster.nodes[0]
        .execute("ALTER TABLE thing ADD COLUMN more int")
        .await;
    let late = cluster.proxy().await;
    let new = late.prepare(query).await.expect("a statement");
    for _ in 0..4 {
        // The same server has it for both of them.
        let rows = late.query(&new, &[]).await.expect("rows");
        assert_eq!(rows[0].len(), 3);
        assert_outdated(&pair.client.query(&old, &[]).await.expect_err("altered"));
        pair.elsewhere().await;
        let rows = late.query(&new, &[]).await.expect("rows");
        assert_eq!(rows[0].len(), 3);
        assert_outdated(&pair.client.query(&old, &[]).await.expect_err("altered"));
        pair.let_go().await;
    }
    // Altered back, it is what the client knows.
    cluster.nodes[0]
        .execute("ALTER TABLE thing DROP COLUMN more")
        .await;
    pair.elsewhere().await;
    let rows = pair.client.query(&old, &[]).await.expect("rows");
    assert_eq!(rows[0].len(), 2);
    pair.let_go().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_has_another_shape_does_not_run_and_fails_its_transaction() {
    let cluster = Cluster::of(&[15])
        .schema(THING)
        .proxy(TWO_SERVERS)
        .start()
        .await;
    let node = &cluster.nodes[0];
    let pair = Pair::of(&cluster).await;
    let insert = "INSERT INTO note (text) VALUES ($1) RETURNING *";
    let told = pair.client.prepare(insert).await.expect("a statement");
    node.execute("ALTER TABLE note ADD COLUMN more int").await;
    pair.elsewhere().await;
    let written = pair.client.query(&told, &[&"never"]).await;
    assert_outdated(&written.expect_err("another shape"));
    assert_eq!(node.value("SELECT count(*) FROM note").await, "0");
    client::execute(&pair.client, "BEGIN; INSERT INTO note VALUES (1, 'mine')").await;
    let written = pair.client.query(&told, &[&"never"]).await;
    assert_outdated(&written.expect_err("another shape"));
    let error = pair.client.simple_query("SELECT 1").await;
    assert_eq!(client::sqlstate(&error.expect_err("failed")), "25P02");
    // In a failed transaction that is what PostgreSQL says first.
    let written = pair.client.query(&told, &[&"never"]).await;
    assert_eq!(client::sqlstate(&written.expect_err("failed")), "25P02");
    client::execute(&pair.client, "COMMIT").await;
    assert_eq!(node.value("SELECT count(*) FROM note").await, "0");
    pair.let_go().await;
    // Parameters of other types are no less another shape: the client's bytes would mean something else.
    let insert = "INSERT INTO note (id) VALUES ($1)";
    let told = pair.client.prepare(insert).await.expect("a statement");
    pair.client.execute(&told, &[&3_i32]).await.expect("a row");
    node.execute("ALTER TABLE note ALTER id TYPE text").await;
    pair.elsewhere().await;
    let written = pair.client.execute(&told, &[&4_i32]).await;
    assert_outdated(&written.expect_err("another type"));
    assert_eq!(
        node.value("SELECT string_agg(id, ' ') FROM note").await,
        "3"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_text_means_different_tables_to_different_clients() {
    let cluster = Cluster::of(&[15])
        .schema(
            "CREATE SCHEMA one; CREATE TABLE one.thing (id int); INSERT INTO one.thing VALUES (1);
             CREATE SCHEMA two; CREATE TABLE two.thing (id int, name text); INSERT INTO two.thing VALUES (2, 'two');",
        )
        .proxy(TWO_SERVERS)
        .start()
        .await;
    let holder = Pair::of(&cluster).await;
    let mut tenants = Vec::new();
    for (schema, columns) in [("one", 1), ("two", 2)] {
        let tenant = cluster.proxy().await;
        client::execute(&tenant, &format!("SET search_path = {schema}")).await;
        let statement = tenant.prepare("SELECT * FROM thing").await.expect("one");
        tenants.push((tenant, statement, columns));
    }
    for round in 0..6 {
        if round % 2 == 0 {
            holder.elsewhere().await;
        } else {
            holder.let_go().await;
        }
        for (tenant, statement, columns) in &tenants {
            let rows = tenant
                .query(statement, &[])
                .await
                .unwrap_or_else(|error| panic!("{}", client::describe(&error)));
            let id = i32::try_from(*columns).expect("small");
            assert_eq!((rows[0].len(), rows[0].get::<_, i32>(0)), (*columns, id));
        }
    }
}

/// A value of any type that is sent as its text, as an enum's is.
#[derive(Debug)]
struct AsText(&'static str);

impl ToSql for AsText {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_nobody_altered_goes_from_node_to_node_although_types_have_other_oids() {
    const TYPES: &str = "DO $$ BEGIN
            FOR i IN 1 .. current_setting('server_version_num')::int / 10000 LOOP
                EXECUTE format('CREATE TYPE filler%s AS ENUM ()', i);
            END LOOP;
        END $$;
        CREATE TYPE mood AS ENUM ('sad', 'happy');
        CREATE TYPE place AS (x int, y int);
        CREATE DOMAIN level AS int CHECK (VALUE > 0);
        CREATE TABLE person (id int PRIMARY KEY, mood mood, place place, level level, moods mood[]);
        INSERT INTO person VALUES (1, 'happy', (1, 2), 3, '{sad}');";
    let cluster = Cluster::of(&[15, 17, 18])
        .schema(TYPES)
        .proxy(TWO_SERVERS)
        .start()
        .await;
    let mut oids = Vec::new();
    for node in &cluster.nodes {
        oids.push(node.value("SELECT 'mood'::regtype::oid").await);
    }
    oids.dedup();
    assert_eq!(oids.len(), 3, "{oids:?}");
    let client = cluster.proxy().await;
    let mut statements: Vec<Statement> = Vec::new();
    for query in [
        "SELECT * FROM person WHERE mood = $1",
        "SELECT p, p.id FROM person p WHERE mood = $1",
        "SELECT id, relname, c.oid FROM person, pg_class c WHERE mood = $1 AND relname = 'person'",
        "UPDATE person SET mood = $1 RETURNING id, moods",
    ] {
        statements.push(client.prepare(query).await.expect("a statement"));
    }
    for left in (1..=3).rev() {
        for statement in statements.iter().cycle().take(8) {
            let rows = client.query(statement, &[&AsText("happy")]).await;
            let rows = rows.unwrap_or_else(|error| panic!("{}", client::describe(&error)));
            assert_eq!(rows.len(), 1);
        }
        if left == 1 {
            break;
        }
        let port = client::value(&client, "SELECT current_setting('port')").await;
        let mut nodes = cluster.nodes.iter();
        let node = nodes.find(|node| node.port().to_string() == port);
        node.expect("a node").kill9().await;
        eventually("the proxy knows", LIMIT, async || {
            let new = cluster
                .try_proxy()
                .await
                .map_err(|error| error.to_string())?;
            match client::try_rows(&new, "SELECT current_setting('port')").await {
                Ok(rows) if rows[0][0].as_deref() != Some(&port) => Ok(()),
                _ => Err("not yet".to_owned()),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_has_the_shape_of_its_cursor() {
    let cluster = Cluster::of(&[15]).proxy(TWO_SERVERS).start().await;
    let pair = Pair::of(&cluster).await;
    client::execute(&pair.client, "BEGIN; DECLARE c CURSOR FOR SELECT 1").await;
    let fetch = pair.client.prepare("FETCH c").await.expect("a statement");
    client::execute(&pair.client, "COMMIT").await;
    pair.elsewhere().await;
    client::execute(&pair.client, "BEGIN; DECLARE c CURSOR FOR SELECT 'x'").await;
    pair.client
        .query(&fetch, &[])
        .await
        .expect("as by PostgreSQL");
    client::execute(&pair.client, "COMMIT").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_statements_were_deallocated_out_of_sight_is_not_used_again() {
    let cluster = Cluster::of(&[15])
        .proxy("pool_mode = \"transaction\"\npool_size = 1")
        .start()
        .await;
    let client = cluster.proxy().await;
    let statement = client.prepare("SELECT 1").await.expect("a statement");
    client.query(&statement, &[]).await.expect("a row");
    for in_transaction in [false, true] {
        let before = pid(&client).await;
        if in_transaction {
            client::execute(&client, "BEGIN").await;
        }
        client::execute(&client, "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$").await;
        let error = client.query(&statement, &[]).await.expect_err("gone");
        assert_eq!(client::sqlstate(&error), "26000");
        if in_transaction {
            client::execute(&client, "ROLLBACK").await;
        }
        for _ in 0..3 {
            client.query(&statement, &[]).await.expect("a row");
        }
        assert_ne!(pid(&client).await, before);
    }
}
