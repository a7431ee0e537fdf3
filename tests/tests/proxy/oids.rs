//! Each node has given its own numbers (OIDs) to what users have made; clients are told those of the reference node, whichever
//! node they work on, and everything that they say and hear in them means the same everywhere.

use std::{collections::HashSet, error::Error, time::Duration};

use bytes::{BufMut, BytesMut};
use tandem_tests::{Cluster, client};
use tandem_wire::{Connection, backend::RowDescription, encode::frontend as put};
use tokio_postgres::{
    Client, Statement,
    types::{FromSql, IsNull, Kind, ToSql, Type, to_sql_checked},
};

use crate::script::{open, play, script};

const LIMIT: Duration = Duration::from_secs(20);
const ROWS: i32 = 24;

/// Each node makes another number of types first, so what has one number on one node is something else on the next.
const TYPES: &str = "DO $$ BEGIN
        FOR i IN 1 .. current_setting('server_version_num')::int / 10000 LOOP
            EXECUTE format('CREATE TYPE filler%s AS ENUM ()', i);
        END LOOP;
    END $$;
    CREATE TYPE mood AS ENUM ('sad', 'happy');
    CREATE TYPE pair AS (n int, mood mood, moods mood[]);
    CREATE DOMAIN level AS int CHECK (VALUE > 0);
    CREATE DOMAIN feelings AS mood[];
    CREATE FUNCTION seven() RETURNS text LANGUAGE sql AS $$ SELECT 'seven' $$;
    CREATE TABLE person (id int PRIMARY KEY, mood mood, moods mood[], pair pair, pairs pair[], level level, feelings feelings);";

/// Reads by key go to the home of the key, so they go to all nodes.
const RULES: &str = r#"
[placement.person]
strategy = "hash"
[[affinity]]
placement = "person"
tables = { person = "id" }
[read]
route = "home"
"#;

/// Clients are near to the second node; the reference node is the first.
async fn cluster() -> Cluster {
    Cluster::of(&[15, 17, 18])
        .proxy("pool_mode = \"transaction\"\nzone = \"here\"")
        .zones(&["there", "here", "there"])
        .rules(RULES)
        .schema(TYPES)
        .start()
        .await
}

/// The number that each node has given.
async fn numbers(cluster: &Cluster, of: &str) -> Vec<u32> {
    let mut numbers = Vec::new();
    for node in &cluster.nodes {
        let number = node.value(&format!("SELECT {of}::oid")).await;
        numbers.push(number.parse().expect("an OID"));
    }
    numbers
}

/// A value in binary format: PostgreSQL's for an enum is its label.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mood(&'static str);

impl ToSql for Mood {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(of: &Type) -> bool {
        matches!(of.kind(), Kind::Enum(_))
    }

    to_sql_checked!();
}

/// A row with the types of its columns, as `record_send` has it.
#[derive(Debug, Clone)]
struct Pair(i32, Mood);

impl ToSql for Pair {
    fn to_sql(
        &self,
        of: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let Kind::Composite(fields) = of.kind() else {
            return Err("no composite type".into());
        };
        out.put_i32(3);
        let values: [&dyn ToSql; 3] = [&self.0, &self.1, &vec![self.1.clone()]];
        for (field, value) in fields.iter().zip(values) {
            let mut bytes = BytesMut::new();
            value.to_sql_checked(field.type_(), &mut bytes)?;
            out.put_u32(field.type_().oid());
            out.put_u32(u32::try_from(bytes.len())?);
            out.put_slice(&bytes);
        }
        Ok(IsNull::No)
    }

    fn accepts(of: &Type) -> bool {
        matches!(of.kind(), Kind::Composite(_))
    }

    to_sql_checked!();
}

/// The bytes of a value of whatever type.
#[derive(Debug, PartialEq, Eq)]
struct Raw(Vec<u8>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Raw, Box<dyn Error + Sync + Send>> {
        Ok(Raw(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

impl ToSql for Raw {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// What a client sends of a value.
fn sent(value: &dyn ToSql, of: &Type) -> Raw {
    let mut bytes = BytesMut::new();
    value.to_sql_checked(of, &mut bytes).expect("a value");
    Raw(bytes.to_vec())
}

async fn prepare(client: &Client, sql: &str) -> Statement {
    let prepared = client.prepare(sql).await;
    prepared.unwrap_or_else(|error| panic!("{sql}: {}", client::describe(&error)))
}

fn mood_of(id: i32) -> Mood {
    Mood(if id % 3 == 0 { "sad" } else { "happy" })
}

const INSERT: &str = "INSERT INTO person VALUES ($1, $2, $3, $4, $5, $6, $7)
    RETURNING current_setting('port'), mood, moods, pair, pairs, ROW(mood, pair)";
const SELECT: &str = "SELECT current_setting('port'), mood, moods, pair, pairs, feelings, person
    FROM person WHERE id = $1";

#[tokio::test(flavor = "multi_thread")]
async fn values_of_users_types_mean_the_same_on_all_nodes() {
    let cluster = cluster().await;
    let (moods, pairs) = (
        numbers(&cluster, "'mood[]'::regtype").await,
        numbers(&cluster, "'pair'::regtype").await,
    );
    assert_eq!(moods.iter().collect::<HashSet<_>>().len(), 3, "{moods:?}");
    let client = cluster.proxy().await;
    let insert = prepare(&client, INSERT).await;
    let select = prepare(&client, SELECT).await;
    // The types that the client has learnt, and that it relies on from now on.
    let of = insert.params().to_vec();
    assert_eq!((of[2].oid(), of[3].oid()), (moods[0], pairs[0]));
    let typed = client
        .prepare_typed(
            "SELECT $2 || mood, $3 FROM person WHERE id = $1",
            &[Type::INT4, of[2].clone(), of[3].clone()],
        )
        .await
        .unwrap_or_else(|error| panic!("{}", client::describe(&error)));
    let (mut wrote, mut read) = (HashSet::new(), HashSet::new());
    for id in 1..=ROWS {
        let mood = mood_of(id);
        let (several, pair) = (vec![mood.clone(), Mood("sad")], Pair(id, mood.clone()));
        let couple = vec![pair.clone(), Pair(7, Mood("happy"))];
        // Types of parameters are domains, too.
        let feelings = sent(&several, &of[2]);
        let row = client
            .query_one(
                &insert,
                &[
                    &id,
                    &mood,
                    &several,
                    &pair,
                    &couple,
                    &Raw(1_i32.to_be_bytes().to_vec()),
                    &feelings,
                ],
            )
            .await
            .unwrap_or_else(|error| panic!("{}", client::describe(&error)));
        let came = |row: &tokio_postgres::Row| {
            assert_eq!(row.get::<_, Raw>(1), sent(&mood, &of[1]));
            assert_eq!(row.get::<_, Raw>(2), sent(&several, &of[2]));
            assert_eq!(row.get::<_, Raw>(3), sent(&pair, &of[3]));
            assert_eq!(row.get::<_, Raw>(4), sent(&couple, &of[4]));
        };
        came(&row);
        let Raw(record) = row.get(5);
        assert_eq!(record[4..8], of[1].oid().to_be_bytes());
        wrote.insert(row.get::<_, String>(0));
        let row = client.query_one(&select, &[&id]).await.expect("a row");
        came(&row);
        assert_eq!(row.get::<_, Raw>(5), feelings);
        read.insert(row.get::<_, String>(0));
        let row = client
            .query_one(&typed, &[&id, &several, &pair])
            .await
            .unwrap_or_else(|error| panic!("{}", client::describe(&error)));
        let three = vec![several[0].clone(), several[1].clone(), mood.clone()];
        assert_eq!(row.get::<_, Raw>(0), sent(&three, &of[2]));
        assert_eq!(row.get::<_, Raw>(1), sent(&pair, &of[3]));
    }
    assert_eq!((wrote.len(), read.len()), (3, 3));
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        let sql = "SELECT (pair).moods[1], pairs[2] FROM person WHERE id = 3";
        let row = &client::rows(&node.connect().await, sql).await[0];
        assert_eq!(row[0].as_deref(), Some("sad"));
        assert_eq!(row[1].as_deref(), Some("(7,happy,{happy})"));
    }
}

/// Tables and types of the columns that a query answers, and the values of the first row.
async fn told(connection: &mut Connection, sql: &str) -> (Vec<(u32, u32)>, Vec<String>) {
    put::query(connection.out(), sql).expect("a message");
    connection.flush().await.expect("sent");
    let (mut columns, mut values) = (Vec::new(), Vec::new());
    loop {
        let frame = tokio::time::timeout(LIMIT, connection.recv()).await;
        let frame = frame.expect("in time").expect("a message");
        match frame.tag {
            b'T' => {
                let rows = RowDescription::parse(&frame.body).expect("well formed");
                columns = rows
                    .columns()
                    .map(|column| (column.table_oid, column.type_oid))
                    .collect();
            }
            b'D' => {
                let row = tandem_wire::backend::DataRow::parse(&frame.body).expect("well formed");
                let text = |value: Option<&[u8]>| {
                    String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
                };
                values = row.columns().map(text).collect();
            }
            b'E' => panic!("{sql}: {}", String::from_utf8_lossy(&frame.body)),
            b'Z' => return (columns, values),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_numbers_are_told_on_every_node() {
    let cluster = cluster().await;
    let (mood, table) = (
        numbers(&cluster, "'mood'::regtype").await,
        numbers(&cluster, "'person'::regclass").await,
    );
    let function = numbers(&cluster, "'seven'::regproc").await;
    let mut connection = open(cluster.proxy_port, &[]).await.expect("a login");
    let mut ports = HashSet::new();
    for id in 1..=ROWS {
        let sql = format!(
            "INSERT INTO person (id, mood) VALUES ({id}, 'sad') RETURNING mood, id, current_setting('port')"
        );
        for sql in [
            sql,
            format!("SELECT mood, id, current_setting('port') FROM person WHERE id = {id}"),
        ] {
            let (columns, values) = told(&mut connection, &sql).await;
            assert_eq!(
                columns,
                [(table[0], mood[0]), (table[0], 23), (0, 25)],
                "{sql}"
            );
            ports.insert(values[2].clone());
        }
    }
    assert_eq!(ports.len(), 3);
    // What catalogs say fits.
    for sql in [
        "SELECT oid FROM pg_type WHERE typname = 'mood'",
        "SELECT 'mood'::regtype::oid",
        "SELECT t.oid FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace WHERE typname = 'mood'",
        "SELECT atttypid FROM pg_attribute WHERE attrelid = 'person'::regclass AND attname = 'mood'",
    ] {
        let (_, values) = told(&mut connection, sql).await;
        assert_eq!(values, [mood[0].to_string()], "{sql}");
    }
    // Also between a BEGIN and the first statement of the transaction, which goes where it belongs.
    for id in 1..=ROWS {
        told(&mut connection, "BEGIN").await;
        let (_, values) = told(
            &mut connection,
            "SELECT oid FROM pg_type WHERE typname = 'mood'",
        )
        .await;
        assert_eq!(values, [mood[0].to_string()]);
        let sql = format!(
            "UPDATE person SET mood = 'happy' WHERE id = {id} RETURNING mood, current_setting('port')"
        );
        let (columns, values) = told(&mut connection, &sql).await;
        assert_eq!(columns[0], (table[0], mood[0]));
        ports.remove(&values[1]);
        told(&mut connection, "COMMIT").await;
    }
    assert_eq!(ports.len(), 0);
    // A function is called by its number.
    let heard = play(&mut connection, &script().call(function[0]).ready(1)).await;
    assert!(heard.contains("seven"), "{heard}");
    // And the version is the reference node's.
    let version = connection
        .parameter("server_version")
        .unwrap_or_default()
        .to_owned();
    assert!(version.starts_with("15"), "{version}");
    for sql in ["SHOW server_version", "SELECT version()"] {
        let (_, values) = told(&mut connection, sql).await;
        assert!(values[0].contains(&version), "{values:?}");
    }
    // It stays the reference node while it is down; what catalogs say elsewhere is said in its numbers.
    cluster.nodes[0].kill9().await;
    let is_down = |status: &serde_json::Value| status["nodes"][0]["health"] == "down";
    cluster
        .daemon
        .status_when("the proxy knows", LIMIT, is_down)
        .await;
    let (_, values) = told(
        &mut connection,
        "SELECT oid FROM pg_type WHERE typname = 'mood'",
    )
    .await;
    assert_eq!(values, [mood[0].to_string()]);
    let (columns, _) = told(&mut connection, "SELECT mood FROM person WHERE id = 1").await;
    assert_eq!(columns, [(table[0], mood[0])]);
    connection.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_its_transaction_never_runs_beside_it() {
    let cluster = cluster().await;
    let client = cluster.proxy().await;
    for id in 1..=6 {
        client::execute(&client, "BEGIN").await;
        // They read no table, and a word in them is one of catalogs'.
        let set = format!("SELECT set_config('app.region', 'r{id}', true)");
        client::execute(&client, &set).await;
        let cursor = "DECLARE c CURSOR FOR SELECT oid FROM pg_class";
        client::execute(&client, cursor).await;
        client::execute(&client, "FETCH 3 FROM c").await;
        let insert = format!(
            "INSERT INTO person (id) VALUES ({id}) RETURNING current_setting('app.region')"
        );
        assert_eq!(client::value(&client, &insert).await, format!("r{id}"));
        client::execute(&client, "COMMIT").await;
    }
    // Nothing of it is left.
    let left = "SELECT coalesce(current_setting('app.region', true), '')";
    assert_eq!(client::value(&client, left).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn drivers_learn_types_in_the_middle_of_transactions() {
    let cluster = cluster().await;
    let (pairs, moods) = (
        numbers(&cluster, "'pair[]'::regtype").await,
        numbers(&cluster, "'mood[]'::regtype").await,
    );
    let mood = numbers(&cluster, "'mood'::regtype").await;
    let mut ports = HashSet::new();
    for id in 1..=ROWS {
        // One that has learnt nothing yet.
        let client = cluster.proxy().await;
        client::execute(&client, "BEGIN").await;
        let insert =
            format!("INSERT INTO person (id) VALUES ({id}) RETURNING current_setting('port')");
        ports.insert(client::value(&client, &insert).await);
        let statement = prepare(&client, "SELECT pairs FROM person WHERE id = $1").await;
        let of = statement.columns()[0].type_();
        let Kind::Array(pair) = of.kind() else {
            panic!("{of:?}");
        };
        let Kind::Composite(fields) = pair.kind() else {
            panic!("{pair:?}");
        };
        let oids: Vec<u32> = fields.iter().map(|field| field.type_().oid()).collect();
        assert_eq!((of.oid(), oids), (pairs[0], vec![23, mood[0], moods[0]]));
        let catalog = "SELECT oid, typarray, ARRAY[oid, 23] FROM pg_type WHERE typname = 'mood'";
        let row = &client::rows(&client, catalog).await[0];
        let expected = [
            mood[0].to_string(),
            moods[0].to_string(),
            format!("{{{},23}}", mood[0]),
        ];
        assert_eq!(row.iter().flatten().cloned().collect::<Vec<_>>(), expected);
        client::execute(&client, "COMMIT").await;
    }
    assert_eq!(ports.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_was_just_made_is_told_once_it_is_known() {
    let cluster = cluster().await;
    let mut connection = open(cluster.proxy_port, &[]).await.expect("a login");
    // The numbers of all nodes have been read by now.
    told(&mut connection, "SELECT 'sad'::mood").await;
    for made in [
        "CREATE TYPE fresh AS ENUM ('new')",
        "DROP TYPE fresh; CREATE TYPE fresh AS ENUM ('new')",
    ] {
        for node in &cluster.nodes {
            node.execute(made).await;
        }
        let fresh = numbers(&cluster, "'fresh'::regtype").await;
        assert_ne!(fresh[0], fresh[1]);
        let sql = "SELECT 'new'::fresh, current_setting('port')";
        let (columns, values) = told(&mut connection, sql).await;
        assert_eq!(columns[0].1, fresh[0]);
        assert_eq!(
            values,
            ["new".to_owned(), cluster.nodes[1].port().to_string()]
        );
    }
    // What the reference node does not have is not waited for for ever.
    cluster.nodes[1]
        .execute("CREATE TYPE own AS ENUM ('alone')")
        .await;
    let own = cluster.nodes[1].value("SELECT 'own'::regtype::oid").await;
    let (columns, values) = told(&mut connection, "SELECT 'alone'::own").await;
    assert_eq!(
        (columns[0].1.to_string(), values),
        (own, vec!["alone".to_owned()])
    );
    connection.close().await;
}

/// Only one of the installations has it.
#[tokio::test(flavor = "multi_thread")]
async fn vectors_are_the_same_type_on_all_nodes() {
    let mut cluster = Cluster::of(&[18, 18, 18])
        .proxy("pool_mode = \"transaction\"")
        .rules(&RULES.replace("person", "item"))
        .without_daemon()
        .start()
        .await;
    let available = "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'";
    if cluster.nodes[0].value(available).await == "0" {
        eprintln!("SKIP: pgvector is not installed");
        return;
    }
    for (place, node) in cluster.nodes.iter().enumerate() {
        for filler in 0..=place {
            node.execute(&format!("CREATE TYPE filler{filler} AS ENUM ()"))
                .await;
        }
        node.execute(
            "CREATE EXTENSION vector; CREATE TABLE item (id int PRIMARY KEY, embedding vector(3), others vector[]);
             GRANT ALL ON item TO app",
        )
        .await;
    }
    cluster.begin().await;
    let known = numbers(&cluster, "'vector'::regtype").await;
    assert_eq!(known.iter().collect::<HashSet<_>>().len(), 3, "{known:?}");
    let client = cluster.proxy().await;
    let insert = prepare(
        &client,
        "INSERT INTO item VALUES ($1, $2, $3) RETURNING current_setting('port'), embedding, others",
    )
    .await;
    assert_eq!(
        (insert.params()[1].name(), insert.params()[1].oid()),
        ("vector", known[0])
    );
    let mut ports = HashSet::new();
    for id in 1..=ROWS {
        // `vector_send`: dimensions, nothing, and the elements.
        let mut value = vec![0, 3, 0, 0];
        (0..3).for_each(|n| value.extend(((id + n) as f32).to_be_bytes()));
        let others = sent(&vec![Raw(value.clone())], &insert.params()[2]);
        let row = client
            .query_one(&insert, &[&id, &Raw(value.clone()), &others])
            .await
            .unwrap_or_else(|error| panic!("{}", client::describe(&error)));
        assert_eq!(
            (row.get::<_, Raw>(1), row.get::<_, Raw>(2)),
            (Raw(value), others)
        );
        ports.insert(row.get::<_, String>(0));
    }
    assert_eq!(ports.len(), 3);
    cluster.assert_converged().await;
}
