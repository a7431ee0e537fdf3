//! Every message flow of the protocol, sent to a node directly and through the proxy: the answers must be the same, byte by byte.

use std::time::Duration;

use bytes::BytesMut;
use tandem_tests::{
    Cluster,
    template::{APP, DATABASE},
};
use tandem_wire::{
    ConnectOptions, Connection, Credentials, Secret, connect,
    encode::frontend as put,
    tls::{ClientTls, SslMode},
};

const LIMIT: Duration = Duration::from_secs(10);
const SCHEMA: &str = "CREATE TABLE item (id int PRIMARY KEY, name text);
    CREATE TABLE child (id int PRIMARY KEY, item int REFERENCES item DEFERRABLE INITIALLY DEFERRED);
    CREATE VIEW items AS SELECT * FROM item;";

/// One thing a client does.
enum Do {
    /// Sends these bytes at once.
    Send(BytesMut),
    /// Reads until the server has been ready so many times.
    Ready(usize),
    /// Reads until a message of this type has come.
    Until(u8),
}

/// Messages, one behind the other.
#[derive(Default)]
struct Script {
    steps: Vec<Do>,
    open: BytesMut,
}

impl Script {
    fn q(mut self, sql: &str) -> Self {
        put::query(&mut self.open, sql).expect("a message");
        self
    }
    fn p(mut self, name: &str, sql: &str) -> Self {
        put::parse(&mut self.open, name, sql, []).expect("a message");
        self
    }
    fn b(mut self, portal: &str, name: &str, values: &[&str]) -> Self {
        let values = values.iter().map(|value| Some(value.as_bytes()));
        put::bind_text(&mut self.open, portal, name, values).expect("a message");
        self
    }
    fn e(mut self, portal: &str, rows: i32) -> Self {
        put::execute(&mut self.open, portal, rows).expect("a message");
        self
    }
    fn ds(mut self, name: &str) -> Self {
        put::describe_statement(&mut self.open, name).expect("a message");
        self
    }
    fn dp(mut self, name: &str) -> Self {
        put::describe_portal(&mut self.open, name).expect("a message");
        self
    }
    fn cs(mut self, name: &str) -> Self {
        put::close_statement(&mut self.open, name).expect("a message");
        self
    }
    fn cp(mut self, name: &str) -> Self {
        put::close_portal(&mut self.open, name).expect("a message");
        self
    }
    fn s(mut self) -> Self {
        put::sync(&mut self.open);
        self
    }
    fn h(mut self) -> Self {
        put::flush(&mut self.open);
        self
    }
    fn d(mut self, data: &str) -> Self {
        put::copy_data(&mut self.open, data.as_bytes()).expect("a message");
        self
    }
    fn c(mut self) -> Self {
        put::copy_done(&mut self.open);
        self
    }
    fn f(mut self, why: &str) -> Self {
        put::copy_fail(&mut self.open, why).expect("a message");
        self
    }
    /// A function call without arguments.
    fn call(mut self, oid: u32) -> Self {
        self.open.extend_from_slice(b"F\0\0\0\x0e");
        self.open.extend_from_slice(&oid.to_be_bytes());
        self.open.extend_from_slice(&[0, 0, 0, 0, 0, 0]);
        self
    }
    fn send(mut self) -> Self {
        let bytes = std::mem::take(&mut self.open);
        self.steps.push(Do::Send(bytes));
        self
    }
    fn ready(mut self, times: usize) -> Self {
        self = self.send();
        self.steps.push(Do::Ready(times));
        self
    }
    fn until(mut self, tag: u8) -> Self {
        self = self.send();
        self.steps.push(Do::Until(tag));
        self
    }
}

fn script() -> Script {
    Script::default()
}

/// OID of `pg_catalog.pi()`, in all versions.
const PI: u32 = 1610;

fn scripts() -> Vec<(&'static str, Script)> {
    vec![
        (
            "simple",
            script()
                .q("SELECT 1; SELECT 'two', NULL")
                .ready(1)
                .q("")
                .ready(1)
                .q("SELECT 1/0")
                .ready(1),
        ),
        (
            "a multi-statement query that fails is one transaction",
            script()
                .q("INSERT INTO item VALUES (1, 'a'); SELECT 1/0; SELECT 2")
                .ready(1)
                .q("SELECT count(*) FROM item")
                .ready(1),
        ),
        (
            "a transaction that fails",
            script()
                .q("BEGIN")
                .ready(1)
                .q("SELECT nothing")
                .ready(1)
                .q("SELECT 1")
                .ready(1)
                .q("ROLLBACK")
                .ready(1)
                .q("SELECT 2")
                .ready(1),
        ),
        (
            "extended",
            script()
                .p("", "SELECT $1::int + 1")
                .ds("")
                .b("", "", &["41"])
                .dp("")
                .e("", 0)
                .s()
                .ready(1),
        ),
        (
            "the unnamed statement lasts beyond its batch",
            script()
                .p("", "SELECT $1::int")
                .s()
                .ready(1)
                .b("", "", &["7"])
                .e("", 0)
                .s()
                .ready(1)
                .q("SELECT 1")
                .ready(1)
                .b("", "", &["8"])
                .e("", 0)
                .s()
                .ready(1),
        ),
        (
            "named statements",
            script()
                .p("one", "SELECT $1::text")
                .ds("one")
                .s()
                .ready(1)
                .b("", "one", &["x"])
                .e("", 0)
                .b("", "one", &["y"])
                .e("", 0)
                .s()
                .ready(1)
                .cs("one")
                .s()
                .ready(1)
                .b("", "one", &["z"])
                .e("", 0)
                .s()
                .ready(1),
        ),
        (
            "a statement that is no SQL",
            script()
                .p("bad", "SELEC 1")
                .b("", "bad", &[])
                .e("", 0)
                .s()
                .ready(1)
                .b("", "bad", &[])
                .s()
                .ready(1),
        ),
        (
            "nothing to describe",
            script()
                .p("none", "SET LOCAL work_mem = '1MB'")
                .ds("none")
                .b("", "none", &[])
                .dp("")
                .e("", 0)
                .s()
                .ready(1),
        ),
        (
            "closing what is not there",
            script().cs("nobody").cp("nobody").s().ready(1),
        ),
        (
            "portals with row limits",
            script()
                .q("BEGIN")
                .ready(1)
                .p("rows", "SELECT generate_series(1, 5)")
                .b("cursor", "rows", &[])
                .e("cursor", 2)
                .s()
                .ready(1)
                .e("cursor", 2)
                .s()
                .ready(1)
                .e("cursor", 2)
                .cp("cursor")
                .s()
                .ready(1)
                .e("cursor", 1)
                .s()
                .ready(1)
                .q("END")
                .ready(1),
        ),
        (
            "an empty query",
            script().p("", "").b("", "", &[]).e("", 0).s().ready(1),
        ),
        (
            "Flush gives what is there",
            script()
                .p("f", "SELECT 5")
                .h()
                .until(b'1')
                .ds("f")
                .h()
                .until(b'T')
                .b("", "f", &[])
                .e("", 0)
                .h()
                .until(b'C')
                .s()
                .ready(1),
        ),
        (
            "Sync and Flush alone",
            script().s().ready(1).h().send().s().s().ready(2),
        ),
        (
            "a pipeline",
            script()
                .p("a", "INSERT INTO item VALUES ($1, 'p')")
                .b("", "a", &["10"])
                .e("", 0)
                .s()
                .b("", "a", &["11"])
                .e("", 0)
                .s()
                .b("", "a", &["10"])
                .e("", 0)
                .b("", "a", &["12"])
                .e("", 0)
                .s()
                .b("", "a", &["13"])
                .e("", 0)
                .s()
                .ready(4)
                .q("SELECT id FROM item WHERE id >= 10 ORDER BY id")
                .ready(1),
        ),
        (
            "a pipeline of queries",
            script()
                .q("SELECT 1")
                .q("SELECT 1/0")
                .q("SELECT 3")
                .ready(3),
        ),
        (
            "an error throws away all up to the Sync, a Query too",
            script()
                .p("", "SELECT 1/0")
                .b("", "", &[])
                .e("", 0)
                .q("SELECT 'never'")
                .p("lost", "SELECT 1")
                .s()
                .ready(1)
                .b("", "lost", &[])
                .s()
                .ready(1),
        ),
        (
            "a Query in an open batch",
            script()
                .p("", "SELECT 'ext'")
                .b("", "", &[])
                .e("", 0)
                .q("SELECT 'simple'")
                .ready(1)
                .s()
                .ready(1),
        ),
        (
            "an error at the commit",
            script()
                .p("", "INSERT INTO child VALUES (1, 999)")
                .b("", "", &[])
                .e("", 0)
                .s()
                .ready(1)
                .q("INSERT INTO child VALUES (2, 999)")
                .ready(1),
        ),
        (
            "BEGIN and COMMIT in a pipeline",
            script()
                .p("", "BEGIN")
                .b("", "", &[])
                .e("", 0)
                .s()
                .p("", "INSERT INTO item VALUES (20, 't')")
                .b("", "", &[])
                .e("", 0)
                .s()
                .p("", "COMMIT")
                .b("", "", &[])
                .e("", 0)
                .s()
                .ready(3),
        ),
        (
            "function calls",
            script().call(PI).ready(1).call(4_000_000_000).ready(1),
        ),
        (
            "COPY out",
            script()
                .q("COPY (SELECT generate_series(1, 3)) TO STDOUT")
                .ready(1)
                .p("", "COPY (SELECT 1) TO STDOUT")
                .b("", "", &[])
                .e("", 0)
                .s()
                .ready(1),
        ),
        (
            "COPY in",
            script()
                .q("COPY item FROM STDIN")
                .until(b'G')
                .d("30\tx\n")
                .d("31\ty\n")
                .c()
                .ready(1)
                .q("COPY item FROM STDIN")
                .until(b'G')
                .d("32\tx\n")
                .f("no more")
                .ready(1)
                .q("COPY item FROM STDIN")
                .until(b'G')
                .d("nonsense\n")
                .until(b'E')
                .ready(1)
                .d("33\tx\n")
                .c()
                .q("SELECT 1")
                .ready(1),
        ),
        (
            "COPY in with its data at once",
            script()
                .q("COPY item FROM STDIN")
                .d("40\tx\n")
                .c()
                .q("SELECT count(*) FROM item WHERE id = 40")
                .ready(2),
        ),
        (
            "COPY in that does not begin",
            script()
                .q("COPY nothing FROM STDIN")
                .d("40\tx\n")
                .c()
                .q("SELECT 'after'")
                .ready(2),
        ),
        (
            "COPY in by the extended protocol",
            script()
                .p("", "COPY item FROM STDIN")
                .b("", "", &[])
                .e("", 0)
                .h()
                .until(b'G')
                .d("50\tx\n")
                .c()
                .s()
                .ready(1),
        ),
        (
            "COPY in with an early Sync",
            script()
                .p("", "COPY item FROM STDIN")
                .b("", "", &[])
                .e("", 0)
                .s()
                .until(b'G')
                .d("51\tx\n")
                .c()
                .s()
                .ready(1),
        ),
        (
            "COPY in by the extended protocol that fails",
            script()
                .p("", "COPY item FROM STDIN")
                .b("", "", &[])
                .e("", 0)
                .h()
                .until(b'G')
                .d("nonsense\n")
                .c()
                .s()
                .ready(1)
                .q("SELECT 2")
                .ready(1),
        ),
        (
            "COPY in that a query interrupts",
            script()
                .q("COPY item FROM STDIN")
                .until(b'G')
                .q("SELECT 1")
                .ready(1)
                .q("SELECT 2")
                .ready(1),
        ),
        (
            "several COPYs in one query",
            script()
                .q("COPY (SELECT 1) TO STDOUT; COPY item FROM STDIN; SELECT 'end'")
                .until(b'G')
                .d("60\tx\n")
                .c()
                .ready(1),
        ),
        (
            "notices",
            script()
                .q("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
                .ready(1),
        ),
        (
            "SQL-level PREPARE",
            script()
                .q("PREPARE sqlp AS SELECT 9")
                .ready(1)
                .q("EXECUTE sqlp")
                .ready(1)
                .b("", "sqlp", &[])
                .e("", 0)
                .s()
                .ready(1)
                .q("DEALLOCATE sqlp")
                .ready(1),
        ),
        (
            "settings",
            script()
                .q("SET work_mem = '9MB'")
                .ready(1)
                .q("SHOW work_mem")
                .ready(1)
                .q("RESET work_mem")
                .ready(1)
                .q("SHOW work_mem")
                .ready(1),
        ),
        (
            "a setting that is reported",
            script()
                .q("SET TimeZone = 'Asia/Tokyo'")
                .ready(1)
                .q("BEGIN; SET LOCAL TimeZone = 'UTC'")
                .ready(1)
                .q("ROLLBACK")
                .ready(1)
                .q("SHOW TimeZone")
                .ready(1)
                .q("RESET TimeZone")
                .ready(1),
        ),
        (
            "DEALLOCATE ALL takes named statements away",
            script()
                .p("gone", "SELECT 1")
                .s()
                .ready(1)
                .q("DEALLOCATE ALL")
                .ready(1)
                .b("", "gone", &[])
                .s()
                .ready(1),
        ),
        (
            "temporary tables",
            script()
                .q("CREATE TEMP TABLE mine (id int)")
                .ready(1)
                .q("INSERT INTO mine VALUES (3)")
                .ready(1)
                .q("SELECT id + 0 FROM mine")
                .ready(1),
        ),
    ]
}

async fn open(port: u16) -> Connection {
    let options = ConnectOptions {
        host: "127.0.0.1".to_owned(),
        port,
        user: APP.to_owned(),
        database: DATABASE.to_owned(),
        credentials: Credentials::Password(Secret::new(APP)),
        tls: ClientTls::new(SslMode::Disable, None).expect("no TLS"),
        params: vec![("application_name".to_owned(), "flows".to_owned())],
        connect_timeout: LIMIT,
    };
    connect(&options).await.expect("a login")
}

/// Plays a script; answers everything that came, one message a line.
async fn play(connection: &mut Connection, script: &Script) -> String {
    let mut heard = String::new();
    for step in &script.steps {
        let (tag, mut times) = match step {
            Do::Send(bytes) => {
                connection.out().extend_from_slice(bytes);
                connection.flush().await.expect("sent");
                continue;
            }
            Do::Ready(times) => (b'Z', *times),
            Do::Until(tag) => (*tag, 1),
        };
        while times > 0 {
            let frame = match tokio::time::timeout(LIMIT, connection.recv()).await {
                Ok(Ok(frame)) => frame,
                Ok(Err(error)) => return format!("{heard}{error}"),
                Err(_) => return format!("{heard}nothing more came"),
            };
            if frame.tag == tag {
                times -= 1;
            }
            let body = frame.body.escape_ascii().to_string();
            heard.push_str(&format!("{} {body}\n", char::from(frame.tag)));
        }
    }
    heard
}

async fn assert_same_answers(major: u32, proxy: &str) {
    let cluster = Cluster::of(&[major])
        .schema(SCHEMA)
        .proxy(proxy)
        .start()
        .await;
    let node = &cluster.nodes[0];
    for (name, script) in scripts() {
        let clean = "TRUNCATE item, child";
        node.value(clean).await;
        let mut direct = open(node.port()).await;
        let expected = play(&mut direct, &script).await;
        direct.close().await;
        node.value(clean).await;
        let mut through = open(cluster.proxy_port).await;
        let heard = play(&mut through, &script).await;
        assert_eq!(heard, expected, "{name}, PostgreSQL {major}");
        // And whoever comes next gets the right answers too.
        let after = script_after();
        let mut next = open(cluster.proxy_port).await;
        let heard = play(&mut next, &after).await;
        assert!(
            heard.contains("\\x00\\x00\\x00\\x07correct"),
            "after {name}: {heard}"
        );
        through.close().await;
        next.close().await;
    }
}

fn script_after() -> Script {
    script()
        .p("", "SELECT 'correct'")
        .b("", "", &[])
        .e("", 0)
        .s()
        .ready(1)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_flow_is_answered_as_by_the_node_in_transaction_mode() {
    let proxy = "pool_mode = \"transaction\"\npool_size = 2";
    assert_same_answers(15, proxy).await;
    assert_same_answers(18, proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_flow_is_answered_as_by_the_node_in_session_mode() {
    assert_same_answers(15, "pool_mode = \"session\"").await;
}
