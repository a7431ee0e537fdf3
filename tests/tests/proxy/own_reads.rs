//! Who writes and reads at once on another node: every write has its home on node 2 or 3, every read is nearest on node 1.

use std::time::{Duration, Instant};

use tandem_tests::{Cluster, client};
use tokio::task::JoinSet;
use tokio_postgres::{Client, SimpleQueryMessage};

/// By how much what is replicated to a node comes late, where the links are slow.
const LATE: Duration = Duration::from_millis(15);
/// Sessions that write and read at the same time.
const SESSIONS: usize = 24;

const HOMES: &str = r#"
[placement.side]
strategy = "map"
map = { 0 = "n2", 1 = "n3" }
[[affinity]]
placement = "side"
tables = { own = { column = "id", key = "id % 2" }, parents = { column = "id", key = "id % 2" }, children = { column = "id", key = "(id + 1) % 2" } }
"#;

const SCHEMA: &str = "CREATE TABLE own (id int PRIMARY KEY, n int NOT NULL);
    INSERT INTO own SELECT i, 0 FROM generate_series(1, 1000) i;
    CREATE TABLE parents (id int PRIMARY KEY);
    CREATE TABLE children (id int PRIMARY KEY, parent int NOT NULL REFERENCES parents);";

/// A cluster that reads like this.
async fn cluster(read: &str, slow: bool) -> Cluster {
    let cluster = Cluster::of(&[15, 17, 18])
        .proxy("pool_mode = \"transaction\"\nzone = \"here\"\npool_size = 64")
        .zones(&["here", "there", "there"])
        .rules(&format!("{HOMES}\n[read]\n{read}\n"))
        .schema(SCHEMA);
    if !slow {
        return cluster.start().await;
    }
    let cluster = cluster.relays().start().await;
    for (target, relay) in cluster.relays.iter().enumerate() {
        for source in (1..=3).filter(|source| *source != target + 1) {
            relay.delay(&format!("apply {source}"), LATE);
        }
    }
    cluster
}

/// What came of reads.
#[derive(Debug, Default)]
struct Figures {
    reads: usize,
    /// Answered by another node than had the write.
    elsewhere: usize,
    /// Did not show it.
    stale: usize,
}

impl Figures {
    fn add(&mut self, other: &Figures) {
        self.reads += other.reads;
        self.elsewhere += other.elsewhere;
        self.stale += other.stale;
    }

    /// On a busy machine a wait can take too long: then a session reads for a while where it wrote.
    fn mostly_elsewhere(&self) -> bool {
        self.elsewhere * 10 >= self.reads * 9
    }
}

/// How a session talks.
#[derive(Debug, Clone, Copy)]
enum Protocol {
    Simple,
    Extended,
}

/// What a statement that answers with two texts says.
async fn two(client: &Client, sql: &str) -> (String, String) {
    let messages = client.simple_query(sql).await;
    let messages = messages.unwrap_or_else(|error| panic!("{sql}: {}", client::describe(&error)));
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let row = row.unwrap_or_else(|| panic!("{sql}: no row"));
    let text = |place| row.get(place).unwrap_or_default().to_owned();
    (text(0), text(1))
}

/// Writes a row and reads it at once, again and again; writes through one session and reads through the other.
async fn write_and_read(
    writer: &Client,
    reader: &Client,
    id: usize,
    times: usize,
    protocol: Protocol,
) -> Figures {
    const PORT: &str = "current_setting('port')";
    let mut figures = Figures::default();
    let key = i32::try_from(id).expect("a small number");
    let (write, read) = match protocol {
        Protocol::Simple => (None, None),
        Protocol::Extended => {
            let write = format!("UPDATE own SET n = $2 WHERE id = $1 RETURNING {PORT}");
            let read = format!("SELECT n, {PORT} FROM own WHERE id = $1");
            (
                Some(writer.prepare(&write).await.expect("prepared")),
                Some(reader.prepare(&read).await.expect("prepared")),
            )
        }
    };
    for n in 1..=i32::try_from(times).expect("a small number") {
        let (written_on, seen, read_on) = match (&write, &read) {
            (Some(write), Some(read)) => {
                let row = writer.query_one(write, &[&key, &n]).await.expect("a write");
                let written_on: String = row.get(0);
                let row = reader.query_one(read, &[&key]).await.expect("a read");
                (written_on, row.get::<_, i32>(0).to_string(), row.get(1))
            }
            _ => {
                let sql = format!("UPDATE own SET n = {n} WHERE id = {id} RETURNING n, {PORT}");
                let (_, written_on) = two(writer, &sql).await;
                let sql = format!("SELECT n, {PORT} FROM own WHERE id = {id}");
                let (seen, read_on) = two(reader, &sql).await;
                (written_on, seen, read_on)
            }
        };
        figures.reads += 1;
        figures.elsewhere += usize::from(written_on != read_on);
        figures.stale += usize::from(seen != n.to_string());
    }
    figures
}

/// `reads` reads, each of a row that was written just before, by many sessions in both protocols. `hands_over`: the writes of a
/// session are read by another one.
async fn check(cluster: &Cluster, reads: usize, hands_over: bool) -> Figures {
    let begun = Instant::now();
    let mut sessions = JoinSet::new();
    for id in 1..=SESSIONS {
        let protocol = match id % 4 < 2 {
            true => Protocol::Simple,
            false => Protocol::Extended,
        };
        let writer = cluster.proxy().await;
        let reader = match hands_over {
            true => Some(cluster.proxy().await),
            false => None,
        };
        let times = reads.div_ceil(SESSIONS);
        sessions.spawn(async move {
            let reader = reader.as_ref().unwrap_or(&writer);
            write_and_read(&writer, reader, id, times, protocol).await
        });
    }
    let mut figures = Figures::default();
    for one in sessions.join_all().await {
        figures.add(&one);
    }
    eprintln!("{figures:?} in {:?}", begun.elapsed());
    figures
}

/// How many reads are checked.
fn reads() -> usize {
    std::env::var("TANDEM_TEST_OWN_READS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(4_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_never_misses_its_own_write_on_another_node() {
    let cluster = cluster("consistency = \"session\"", false).await;
    let figures = check(&cluster, reads(), false).await;
    assert_eq!(figures.stale, 0, "{figures:?}");
    assert!(figures.mostly_elsewhere(), "{figures:?}");
}

/// Each line: what `[read]` says, whether another session reads, whether reads go elsewhere, and whether they may be stale.
const OVER_SLOW_LINKS: [(&str, bool, bool, bool); 5] = [
    ("consistency = \"session\"", false, true, false),
    // So the checker can fail.
    ("consistency = \"eventual\"", false, true, true),
    ("scope = \"session\"", true, true, true),
    ("scope = \"database\"", true, true, false),
    ("consistency = \"home\"", true, false, false),
];

#[tokio::test(flavor = "multi_thread")]
async fn over_slow_links_reads_are_as_old_as_the_rules_let_them_be() {
    const READS: usize = 240;
    for (read, hands_over, go_elsewhere, may_be_stale) in OVER_SLOW_LINKS {
        let cluster = cluster(read, true).await;
        let figures = check(&cluster, READS, hands_over).await;
        let went = figures.mostly_elsewhere();
        assert_eq!(went, go_elsewhere, "{read}: {figures:?}");
        assert_eq!(figures.stale > 0, may_be_stale, "{read}: {figures:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_databases_scope_no_session_misses_what_another_was_told() {
    let cluster = cluster("scope = \"database\"", false).await;
    let figures = check(&cluster, reads(), true).await;
    assert_eq!(figures.stale, 0, "{figures:?}");
    assert!(figures.mostly_elsewhere(), "{figures:?}");
}

/// Inserts rows, and at once rows that refer to them, each at a home of its own. Answers how many found no parent.
async fn refer(client: &Client, first: usize, times: usize) -> usize {
    let mut missed = 0;
    for id in first..first + times {
        client::execute(client, &format!("INSERT INTO parents VALUES ({id})")).await;
        let child = format!("INSERT INTO children VALUES ({id}, {id})");
        match client.batch_execute(&child).await {
            Ok(()) => {}
            Err(error) if client::sqlstate(&error) == "23503" => missed += 1,
            Err(error) => panic!("{child}: {}", client::describe(&error)),
        }
    }
    missed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_finds_its_parent_whose_home_is_elsewhere() {
    const TIMES: usize = 20;
    for (read, may_miss) in [
        ("consistency = \"session\"", false),
        ("consistency = \"eventual\"", true),
    ] {
        let cluster = cluster(read, true).await;
        let mut sessions = JoinSet::new();
        for session in 1..=SESSIONS {
            let client = cluster.proxy().await;
            sessions.spawn(async move { refer(&client, session * 1000, TIMES).await });
        }
        let missed: usize = sessions.join_all().await.into_iter().sum();
        assert_eq!(missed > 0, may_miss, "{read}: {missed}");
        for relay in &cluster.relays {
            relay.heal();
        }
        cluster.assert_converged().await;
    }
}
