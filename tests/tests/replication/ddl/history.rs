//! A history of migrations, given on alternating nodes while clients write on all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tandem_tests::{Cluster, client, eventually};
use tokio::task::JoinSet;

use super::{assert_same, run};

/// One step each; all but the data of `load` is theirs.
const STEPS: &[&str] = &[
    "CREATE SCHEMA shop",
    "CREATE TYPE shop.state AS ENUM ('new', 'paid')",
    "CREATE DOMAIN shop.price AS numeric(10,2) CHECK (VALUE >= 0)",
    "CREATE TABLE shop.customer (id int PRIMARY KEY, name text NOT NULL, mail text)",
    "CREATE TABLE shop.orders (id int PRIMARY KEY, customer int REFERENCES shop.customer, state shop.state DEFAULT 'new', total shop.price)",
    "INSERT INTO shop.customer SELECT n, 'c' || n FROM generate_series(1, 50) n",
    "INSERT INTO shop.orders SELECT n, n % 50 + 1 FROM generate_series(1, 200) n",
    "ALTER TABLE shop.customer ADD COLUMN since date DEFAULT '2026-01-01'",
    "ALTER TABLE shop.customer ADD COLUMN score int",
    "UPDATE shop.customer SET score = id * 2",
    "ALTER TABLE shop.customer ALTER COLUMN score SET DEFAULT 3",
    "ALTER TABLE shop.customer ALTER COLUMN score SET NOT NULL",
    "ALTER TABLE shop.customer ALTER COLUMN score DROP NOT NULL",
    "ALTER TABLE shop.customer ADD CONSTRAINT score_small CHECK (score < 100000) NOT VALID",
    "ALTER TABLE shop.customer VALIDATE CONSTRAINT score_small",
    "ALTER TABLE shop.customer RENAME CONSTRAINT score_small TO score_fits",
    "ALTER TABLE shop.customer ADD CONSTRAINT mail_once UNIQUE (mail)",
    "ALTER TABLE shop.customer DROP CONSTRAINT mail_once",
    "CREATE INDEX orders_customer ON shop.orders (customer)",
    "CREATE INDEX CONCURRENTLY orders_state ON shop.orders (state) WHERE state = 'paid'",
    "CREATE INDEX ON shop.orders (lower(id::text))",
    "ALTER INDEX shop.orders_customer RENAME TO orders_by_customer",
    "DROP INDEX CONCURRENTLY shop.orders_state",
    "ALTER TYPE shop.state ADD VALUE 'sent'",
    "ALTER TYPE shop.state RENAME VALUE 'sent' TO 'shipped'",
    "CREATE VIEW shop.open AS SELECT id, customer FROM shop.orders WHERE state = 'new'",
    "CREATE OR REPLACE VIEW shop.open AS SELECT id, customer, total FROM shop.orders WHERE state = 'new'",
    "ALTER VIEW shop.open RENAME TO pending",
    // Of two relations: of one alone, majors write the columns down in their own ways.
    "CREATE MATERIALIZED VIEW shop.counts AS SELECT customer, count(*) AS n FROM shop.orders CROSS JOIN generate_series(1, 1) one GROUP BY 1 WITH NO DATA",
    "CREATE FUNCTION shop.double(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n * 2'",
    "CREATE OR REPLACE FUNCTION shop.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.name := NEW.name || ';'; RETURN NEW; END $$",
    "CREATE TRIGGER noted BEFORE UPDATE OF mail ON shop.customer FOR EACH ROW EXECUTE FUNCTION shop.note()",
    "UPDATE shop.customer SET mail = 'a@b' WHERE id = 1",
    "ALTER TABLE shop.customer DISABLE TRIGGER noted",
    "DROP TRIGGER noted ON shop.customer",
    "CREATE PROCEDURE shop.nothing() LANGUAGE sql AS 'SELECT 1'",
    "DROP FUNCTION shop.double(int)",
    "CREATE SEQUENCE shop.numbers START 100",
    "ALTER SEQUENCE shop.numbers INCREMENT 10",
    "CREATE TABLE shop.log (at int NOT NULL, text text, PRIMARY KEY (at)) PARTITION BY RANGE (at)",
    "CREATE TABLE shop.log_1 PARTITION OF shop.log FOR VALUES FROM (0) TO (100)",
    "CREATE TABLE shop.log_2 (at int PRIMARY KEY, text text)",
    "INSERT INTO shop.log SELECT n, 'x' FROM generate_series(1, 50) n; INSERT INTO shop.log_2 VALUES (150, 'y')",
    "ALTER TABLE shop.log ATTACH PARTITION shop.log_2 FOR VALUES FROM (100) TO (200)",
    "INSERT INTO shop.log VALUES (160, 'z'); ALTER TABLE shop.log DETACH PARTITION shop.log_1",
    "INSERT INTO shop.log_1 VALUES (99, 'alone')",
    "CREATE TABLE shop.wide (LIKE shop.customer INCLUDING ALL)",
    "ALTER TABLE shop.wide ADD COLUMN doubled int GENERATED ALWAYS AS (id * 2) STORED",
    "INSERT INTO shop.wide (id, name) VALUES (1, 'w')",
    "ALTER TABLE shop.wide RENAME TO broad",
    "INSERT INTO shop.broad (id, name) VALUES (2, 'b')",
    "ALTER TABLE shop.broad RENAME COLUMN name TO title",
    "ALTER TABLE shop.broad DROP COLUMN mail, DROP COLUMN since",
    "CREATE SCHEMA archive AUTHORIZATION app; ALTER TABLE shop.broad SET SCHEMA archive",
    "INSERT INTO archive.broad (id, title) VALUES (3, 'c'); SET search_path = archive, public; CREATE TABLE here (id int PRIMARY KEY); INSERT INTO here VALUES (1); RESET search_path",
    "ALTER TABLE shop.customer ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY everybody ON shop.customer USING (true) WITH CHECK (true)",
    "ALTER POLICY everybody ON shop.customer RENAME TO all_of_them",
    "GRANT USAGE ON SCHEMA shop TO PUBLIC; GRANT SELECT, INSERT ON shop.customer TO PUBLIC",
    "REVOKE INSERT ON shop.customer FROM PUBLIC",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT ON TABLES TO PUBLIC",
    "COMMENT ON TABLE shop.customer IS 'who buys; \"DROP TABLE\"'; COMMENT ON COLUMN shop.customer.name IS NULL",
    "CREATE STATISTICS shop.related ON customer, state FROM shop.orders",
    "CREATE COLLATION shop.plain FROM \"C\"",
    "CREATE TYPE shop.pair AS (a int, b text); ALTER TYPE shop.pair ADD ATTRIBUTE c int",
    "CREATE TABLE shop.pairs (id int PRIMARY KEY, pair shop.pair, tags text[]); INSERT INTO shop.pairs VALUES (1, ROW(1, 'x', 2), '{a,b}')",
    "ALTER TABLE shop.pairs SET (fillfactor = 80)",
    "ALTER TABLE shop.pairs REPLICA IDENTITY FULL",
    "CREATE RULE quiet AS ON DELETE TO shop.pairs DO INSTEAD NOTHING; DROP RULE quiet ON shop.pairs",
    "CREATE TABLE shop.child (extra int) INHERITS (shop.pairs); ALTER TABLE shop.child ADD PRIMARY KEY (id); INSERT INTO shop.child VALUES (2, NULL, NULL, 5)",
    "CREATE AGGREGATE shop.total (int) (SFUNC = int4pl, STYPE = int)",
    "CREATE TABLE shop.bare (x int); INSERT INTO shop.bare VALUES (1), (1), (2); DELETE FROM shop.bare WHERE x = 2; UPDATE shop.bare SET x = 3 WHERE ctid = '(0,1)'",
    "CREATE TABLE shop.scratch (id int PRIMARY KEY, u int UNIQUE); INSERT INTO shop.scratch VALUES (1, 1); TRUNCATE shop.scratch; INSERT INTO shop.scratch VALUES (2, 1)",
    "DROP TABLE shop.scratch; DROP PROCEDURE shop.nothing",
    "DROP VIEW shop.pending; ALTER TABLE shop.orders DROP COLUMN total",
    "DROP DOMAIN shop.price; DROP SEQUENCE shop.numbers CASCADE",
];

/// How many clients write on each node.
const WRITERS: usize = 2;

/// Each writes at this pace: the nodes are to keep up with all of them.
const PACE: Duration = Duration::from_millis(20);

/// Writes to `load` on every node until it is told to stop; a node that is away is tried again.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    writers: JoinSet<Vec<String>>,
}

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            done: Arc::default(),
            writers: JoinSet::new(),
        };
        for (place, node) in cluster.nodes.iter().enumerate() {
            for writer in 0..WRITERS {
                let (stop, done) = (Arc::clone(&load.stop), Arc::clone(&load.done));
                let port = node.port();
                load.writers
                    .spawn(write(port, place * WRITERS + writer, stop, done));
            }
        }
        load
    }

    /// Waits until so many more are written.
    async fn goes_on(&self, more: u64) {
        let wanted = self.done.load(Ordering::Relaxed) + more;
        eventually("clients write", Duration::from_secs(60), async || {
            let done = self.done.load(Ordering::Relaxed);
            if done >= wanted {
                Ok(())
            } else {
                Err(format!("{done} of {wanted}"))
            }
        })
        .await;
    }

    async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let refused = self.writers.join_all().await.concat();
        assert!(refused.is_empty(), "writes were refused: {refused:?}");
    }
}

/// Answers what the node has refused, but for what a node that goes away says.
async fn write(
    port: u16,
    writer: usize,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) -> Vec<String> {
    let mut refused = Vec::new();
    let mut number = 0;
    let mut pace = tokio::time::interval(PACE);
    while !stop.load(Ordering::Relaxed) {
        let Ok(client) = client::connect(port, "app", Some("app"), "app").await else {
            pace.tick().await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            pace.tick().await;
            number += 1;
            let id = (writer + 1) * 1_000_000 + number;
            let sql = format!(
                "BEGIN; INSERT INTO load VALUES ({id}, {writer}); UPDATE load SET n = n + 1 WHERE id = {}; COMMIT",
                number % 20
            );
            match client.batch_execute(&sql).await {
                Ok(()) => _ = done.fetch_add(1, Ordering::Relaxed),
                Err(error)
                    if error
                        .as_db_error()
                        .is_some_and(|db| !db.code().code().starts_with("57P")) =>
                {
                    refused.push(client::describe(&error));
                    return refused;
                }
                Err(_) => break,
            }
        }
    }
    refused
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_of_migrations_on_alternating_nodes_ends_the_same_everywhere() {
    let cluster = Cluster::of(&[15, 17, 18])
        .schema("CREATE TABLE load (id int PRIMARY KEY, n int); INSERT INTO load SELECT n, 0 FROM generate_series(0, 19) n;")
        .proxy("pool_mode = \"transaction\"")
        .durable()
        .start()
        .await;
    assert!(STEPS.len() >= 60);
    let load = Load::start(&cluster);
    let away = 2;
    for (number, step) in STEPS.iter().enumerate() {
        if number == STEPS.len() / 2 {
            cluster.nodes[away].kill9().await;
        }
        if number == STEPS.len() * 2 / 3 {
            cluster.nodes[away].start_again().await;
            cluster.converge(Duration::from_secs(60)).await;
        }
        let is_away = number >= STEPS.len() / 2 && number < STEPS.len() * 2 / 3;
        // Nobody can tell then that the others have what one of them was given.
        let places = if is_away { 1 } else { cluster.nodes.len() + 1 };
        match cluster.nodes.get(number % places) {
            Some(node) => run(&node.app().await, step).await,
            None => run(&cluster.proxy().await, step).await,
        }
        load.goes_on(5).await;
        if is_away {
            continue;
        }
        cluster.converge(Duration::from_secs(60)).await;
    }
    load.goes_on(50).await;
    load.finish().await;
    assert_same(&cluster).await;
}
