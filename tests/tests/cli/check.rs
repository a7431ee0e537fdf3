//! `check`: broken rules files, what a database makes of rules, and where conflicts may come from.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use tandem_tests::{Cluster, program::Ran};

const LIMIT: Duration = Duration::from_secs(60);

/// The tables that the files of `broken` are for.
const TABLES: &str = "
    CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    CREATE TABLE orders (id uuid PRIMARY KEY, shop_id int, city text COLLATE any_case, paid boolean);
    CREATE TABLE stock (shop_id int PRIMARY KEY, code text, weight float8);
    CREATE VIEW open_orders AS SELECT * FROM orders WHERE NOT paid";

/// Each rules file of `broken` with what is to be told of it.
fn broken() -> BTreeMap<String, (String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../routing-rules/tests/broken");
    let entries = fs::read_dir(dir).expect("the files");
    let paths = entries.map(|entry| entry.expect("a file").path());
    let read = |path: &Path| fs::read_to_string(path).expect("a text");
    paths
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .map(|path| {
            let name = path.file_name().unwrap_or_default().display().to_string();
            (name, (read(&path), read(&path.with_extension("expected"))))
        })
        .collect()
}

/// Whether what is expected of a file was told: `line:column: message (at ..); hint` for each problem.
fn assert_told(name: &str, expected: &str, ran: &Ran) {
    assert_eq!(ran.status.code(), Some(1), "{name}: {}", ran.all());
    let told = &ran.stderr;
    for line in expected.lines() {
        let (place, said) = line.split_once(": ").expect("a place");
        let (message, rest) = said.split_once(" (at `").expect("a message");
        let (_, hint) = rest.split_once("`); ").expect("a hint");
        let place = format!("rules.toml:{place}]");
        for wanted in [&*place, message, hint] {
            assert!(told.contains(wanted), "{name}: no {wanted} in {told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_broken_rules_file_is_told_with_file_line_column_and_mend() {
    let builder = Cluster::of(&[15, 15, 15]).without_daemon().schema(TABLES);
    let cluster = builder.start().await;
    cluster.change_config(|text| {
        let text = text.replace("\"n1\"", "\"paris\"");
        let text = text.replace("\"n2\"", "\"oslo\"");
        text.replace("\"n3\"", "\"rome\"")
    });
    let check = async |arguments: &[&str]| {
        let check = cluster.daemon.command("check").args(arguments);
        check.run(LIMIT).await
    };
    let (mut files, mut beside_tables) = (0, 0);
    for (name, (source, expected)) in broken() {
        fs::write(cluster.dir().join("rules.toml"), source).expect("the rules");
        let ran = check(&["--offline"]).await;
        if ran.status.success() {
            // Only a database can tell, and this was not asked.
            assert!(ran.stdout.contains("not checked against a database"));
            assert_told(&name, &expected, &check(&[]).await);
            beside_tables += 1;
        } else {
            assert_told(&name, &expected, &ran);
        }
        files += 1;
    }
    assert!(files >= 10 && beside_tables >= 5, "{files} {beside_tables}");
}

/// A shop's tables, with everything that two nodes can write at once.
const SHOP: &str = "
    CREATE TABLE shops (id int PRIMARY KEY);
    CREATE TABLE orders (id serial PRIMARY KEY, shop_id int NOT NULL, number text UNIQUE, token uuid UNIQUE);
    CREATE TABLE lines (id bigint GENERATED ALWAYS AS IDENTITY (INCREMENT BY 3) PRIMARY KEY,
        shop_id int REFERENCES shops, order_id int REFERENCES orders);
    CREATE TABLE stock (shop_id int REFERENCES shops, item int, n int, m int, k int, PRIMARY KEY (shop_id, item));
    CREATE TABLE alone (id serial PRIMARY KEY, name text UNIQUE);
    CREATE FUNCTION take(i int) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        IF i > 0 THEN UPDATE stock SET n = n - 1 WHERE item = i; END IF;
        UPDATE stock SET m = m + 1 WHERE shop_id = 1 AND item = i;
        UPDATE stock SET k = stock.k + i; UPDATE alone SET id = id + 1; END $$";

const SHOP_RULES: &str = "[placement.shop]\nstrategy = \"hash\"\n[[affinity]]\nplacement = \"shop\"\n\
    tables = { shops = \"id\", orders = \"shop_id\", lines = \"shop_id\", stock = \"shop_id\" }\n";

#[tokio::test(flavor = "multi_thread")]
async fn risks_of_conflicts_are_told_from_the_catalog_and_are_no_error() {
    let counters = "[replication.table.\"public.stock\"]\ncounters = [\"k\"]\n";
    let cluster = Cluster::of(&[15, 17])
        .proxy("pool_mode = \"transaction\"")
        .sections(counters)
        .rules(SHOP_RULES)
        .schema(SHOP)
        .without_daemon()
        .start()
        .await;
    cluster.nodes[0].stop_fast().await;
    let ran = cluster.daemon.command("check").run(LIMIT).await;
    assert_eq!(ran.status.code(), Some(1), "n1 is down: {}", ran.all());
    assert!(ran.stdout.contains("tables of node n2"), "{}", ran.all());
    cluster.nodes[0].start_again().await;
    let ran = cluster.daemon.command("check").run(LIMIT).await;
    let told = ran.expect_success().stdout;
    let wanted = [
        "conflicts: 4 risk(s) found in 5 tables of node n1, 1 functions, 0 rules and no statements",
        "table public.lines: (order_id) refers to public.orders",
        "table public.orders: rows of several homes can take the same (number), unique by orders_number_key",
        "table public.orders: id comes from sequence public.orders_id_seq",
        "table public.stock: n is counted",
        "on node i of 2 ALTER SEQUENCE public.orders_id_seq INCREMENT BY 2",
        "counters = [\"n\"] under [replication.table.\"public.stock\"]",
    ];
    for wanted in wanted {
        assert!(told.contains(wanted), "no {wanted} in {told}");
    }

    // Without rules all that is written has one home.
    fs::write(cluster.dir().join("rules.toml"), "").expect("the rules");
    let ran = cluster.daemon.command("check").run(LIMIT).await;
    let told = ran.expect_success().stdout;
    assert!(told.contains("conflicts: 0 risk(s)"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_follows_where_a_client_comes_from_and_its_startup_options() {
    let cluster = Cluster::of(&[15, 15]).without_daemon().start().await;
    let rules = "[[session]]\nmatch = { client = \"10.0.0.0/8\", options = { \"tandem.role\" = \"report*\" } }\nnode = \"n2\"\n";
    fs::write(cluster.dir().join("rules.toml"), rules).expect("the rules");
    let explain = async |arguments: &str| {
        let explain = cluster.daemon.command("explain");
        let ran = explain.args(arguments.split(' ')).run(LIMIT).await;
        ran.expect_success().stdout
    };
    let told = explain("--user u --client 10.1.2.3 --session tandem.role=reports").await;
    let wanted = "node n2: session rule 1 (client = 10.0.0.0/8, tandem.role = report*)";
    assert_eq!(told.trim(), wanted);
    let told = explain("--user u --client 11.1.2.3 --session tandem.role=reports").await;
    assert!(told.contains("nearest healthy node"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_that_were_run_are_looked_at_where_the_server_keeps_them() {
    let cluster = Cluster::of(&[15, 17])
        .setting("shared_preload_libraries", "pg_stat_statements")
        .proxy("pool_mode = \"transaction\"")
        .rules(SHOP_RULES)
        .schema(SHOP)
        .without_daemon()
        .start()
        .await;
    let node = &cluster.nodes[0];
    node.execute("CREATE EXTENSION pg_stat_statements").await;
    node.execute("UPDATE stock SET item = item + 10 WHERE n = 7")
        .await;
    let ran = cluster.daemon.command("check").run(LIMIT).await;
    let told = ran.expect_success().stdout;
    let counted = "table public.stock: item is counted (item = item + ..)";
    assert!(told.contains(counted), "{told}");
    assert!(told.contains("statements of pg_stat_statements"), "{told}");
}
