//! What an operator does: transactions in quarantine are shown, tried, edited and given up; losing writes are listed
//! and written again.

use std::time::Duration;

use serde_json::Value;
use tandem_tests::{Cluster, Program, client, daemon, eventually, program::Ran};

const SCHEMA: &str = "CREATE TABLE item (id int PRIMARY KEY, amount int, note text);";
const SMALL: &str = "ALTER TABLE item ADD CONSTRAINT small CHECK (amount < 10)";
const LIMIT: Duration = Duration::from_secs(60);

async fn tandem(cluster: &Cluster, arguments: &[&str]) -> Ran {
    Program::new(daemon::program())
        .args(arguments)
        .args(["--config".as_ref(), cluster.daemon.config().as_os_str()])
        .run(LIMIT)
        .await
}

/// Runs a command that must do what it is asked for.
async fn done(cluster: &Cluster, arguments: &[&str]) -> String {
    tandem(cluster, arguments).await.expect_success().stdout
}

/// Runs a command that must fail with exit code 1; answers why.
async fn refused(cluster: &Cluster, arguments: &[&str]) -> String {
    let ran = tandem(cluster, arguments).await;
    assert_eq!(ran.status.code(), Some(1), "{arguments:?}: {}", ran.all());
    ran.all()
}

async fn json(cluster: &Cluster, arguments: &[&str]) -> Value {
    let text = done(cluster, &[arguments, &["--json"]].concat()).await;
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The lines of the conflict log of a type.
async fn lines(cluster: &Cluster, kind: &str) -> Vec<Value> {
    let found = json(cluster, &["conflicts", "--type", kind]).await;
    found["conflicts"].as_array().expect("lines").clone()
}

fn id(line: &Value) -> &str {
    line["id"].as_str().expect("an id")
}

async fn quarantined(cluster: &Cluster, source: usize, target: usize, count: u64) {
    let what = format!("{count} transactions are in quarantine");
    cluster
        .link_when(&what, source, target, |link| link["quarantined"] == count)
        .await;
}

/// Holds everything back while `statements` run, one on each node in turn, then lets it go.
async fn apart(cluster: &Cluster, statements: &[(usize, &str)]) {
    for relay in &cluster.relays {
        relay.silence_only("apply");
    }
    for &(node, sql) in statements {
        cluster.nodes[node].execute(sql).await;
    }
    for relay in &cluster.relays {
        relay.heal();
    }
    cluster.assert_converged().await;
}

/// The same on every node.
async fn everywhere(cluster: &Cluster, sql: &str, wanted: &str) {
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        assert_eq!(node.value(sql).await, wanted, "{}: {sql}", node.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_transaction_is_listed_shown_tried_and_applied_once_it_is_edited() {
    let cluster = Cluster::of(&[15, 17, 18]).schema(SCHEMA).start().await;
    assert!(
        done(&cluster, &["quarantine", "list"])
            .await
            .contains("nothing is in quarantine")
    );
    cluster.nodes[1].execute(SMALL).await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (1, 50, 'a'), (2, 5, NULL)")
        .await;
    quarantined(&cluster, 0, 1, 1).await;
    cluster.nodes[0]
        .execute("UPDATE item SET note = 'b' WHERE id = 2")
        .await;
    quarantined(&cluster, 0, 1, 2).await;

    let list = json(&cluster, &["quarantine", "list", "--node", "n2"]).await;
    let [first, second] = &list["transactions"].as_array().expect("a list")[..] else {
        panic!("{list}")
    };
    assert_eq!(
        (&first["source"], &first["changes"]),
        (&"n1".into(), &2.into())
    );
    assert_eq!(first["tables"], serde_json::json!(["public.item"]));
    assert!(
        first["reason"]
            .as_str()
            .expect("a reason")
            .contains("small"),
        "{first}"
    );
    assert_eq!(
        (&first["behind"], &second["behind"]),
        (&Value::Null, &first["id"])
    );
    let (first, second) = (id(first), id(second));
    let text = done(&cluster, &["quarantine", "list"]).await;
    assert!(
        text.contains(first) && text.contains("public.item"),
        "{text}"
    );

    let shown = json(&cluster, &["quarantine", "show", first]).await;
    assert_eq!(
        shown["changes"][1],
        serde_json::json!({ "table": "public.item", "operation": "insert", "old": null,
                            "new": { "id": "2", "amount": "5", "note": null } })
    );
    let text = done(&cluster, &["quarantine", "show", first]).await;
    assert!(
        text.contains("small") && text.contains("\"amount\":\"50\""),
        "{text}"
    );

    let text = refused(&cluster, &["quarantine", "retry", first]).await;
    assert!(text.contains("refused") && text.contains("small"), "{text}");
    let text = refused(&cluster, &["quarantine", "retry", second]).await;
    assert!(text.contains(&format!("waits for {first}")), "{text}");

    for (set, why) in [
        ("public.item.id=3", "primary key"),
        (
            "public.item.amount=x",
            "invalid input syntax for type integer",
        ),
        ("public.item.nothing=1", "no column nothing"),
        ("public.other.amount=1", "no table public.other"),
    ] {
        let text = refused(&cluster, &["quarantine", "edit", first, "--set", set]).await;
        assert!(text.contains(why), "{set}: {text}");
    }
    let edit = [
        "quarantine",
        "edit",
        first,
        "--set",
        "public.item.amount=20",
    ];
    let text = refused(&cluster, &edit).await;
    assert!(text.contains("small"), "{text}");
    let edit = [
        "quarantine",
        "edit",
        first,
        "--set",
        "public.item.amount=9",
        "--null",
        "public.item.note",
    ];
    let text = done(&cluster, &edit).await;
    assert!(text.contains("applied"), "{text}");
    quarantined(&cluster, 0, 1, 0).await;
    let rows = "SELECT string_agg(concat_ws(' ', id, amount, note), ', ' ORDER BY id) FROM item";
    // What was behind it was not edited.
    assert_eq!(cluster.nodes[1].value(rows).await, "1 9, 2 5 b");

    let edited = lines(&cluster, "quarantine_edited").await;
    assert_eq!(edited.len(), 4, "{edited:?}");
    let line = edited
        .iter()
        .find(|line| line["remote_image"]["amount"] == "50")
        .expect("the first edit");
    assert_eq!(
        (&line["local_image"]["amount"], &line["resolver"]),
        (&"20".into(), &"operator".into())
    );

    // What other nodes have is written again, as a change of its own.
    let later = "UPDATE item SET amount = id + 6 WHERE amount IS NOT NULL";
    cluster.nodes[0].execute(later).await;
    everywhere(&cluster, rows, "1 7 a, 2 8 b").await;
}

/// The link has read the transaction as it was before the edit, and is applying it.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_began_before_an_edit_does_not_apply_what_was_edited_away() {
    let cluster = Cluster::of(&[15, 18]).schema(SCHEMA).start().await;
    cluster.nodes[1].execute(SMALL).await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (1, 50, NULL)")
        .await;
    quarantined(&cluster, 0, 1, 1).await;
    let client = cluster.nodes[1].connect().await;
    client::execute(&client, "BEGIN; ALTER TABLE item DROP CONSTRAINT small").await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%apply 1' AND wait_event_type = 'Lock'";
    let node = &cluster.nodes[1];
    eventually("the link waits for the table", LIMIT, async || {
        match node.value(waits).await.as_str() {
            "1" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    let edits = "SELECT edits FROM tandem.quarantine";
    let edit = async {
        let list = json(&cluster, &["quarantine", "list"]).await;
        let first = id(&list["transactions"][0]).to_owned();
        done(
            &cluster,
            &[
                "quarantine",
                "edit",
                &first,
                "--set",
                "public.item.amount=9",
            ],
        )
        .await
    };
    let release = async {
        eventually("it is edited", LIMIT, async || {
            match node.value(edits).await.as_str() {
                "1" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
        client::execute(&client, "COMMIT").await;
    };
    let (text, ()) = tokio::join!(edit, release);
    assert!(text.contains("applied"), "{text}");
    assert_eq!(node.value("SELECT amount FROM item").await, "9");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skipped_transaction_stands_in_the_log_what_was_behind_it_goes_on_and_its_rows_can_be_reapplied()
 {
    let cluster = Cluster::of(&[15, 17, 18]).schema(SCHEMA).start().await;
    cluster.nodes[0]
        .execute("INSERT INTO item SELECT i, i, 'old' FROM generate_series(1, 4) i")
        .await;
    cluster.assert_converged().await;
    cluster.nodes[1].execute(SMALL).await;
    cluster.nodes[0]
        .execute(
            "BEGIN; UPDATE item SET amount = 50 WHERE id = 1; DELETE FROM item WHERE id = 2; \
             UPDATE item SET id = 13 WHERE id = 3; INSERT INTO item VALUES (5, 5, 'new'); COMMIT",
        )
        .await;
    quarantined(&cluster, 0, 1, 1).await;
    cluster.nodes[2]
        .execute("UPDATE item SET amount = 6 WHERE id = 1")
        .await;
    quarantined(&cluster, 2, 1, 1).await;
    let list = json(&cluster, &["quarantine", "list"]).await;
    let first = id(&list["transactions"][0]).to_owned();
    let text = done(&cluster, &["quarantine", "skip", &first]).await;
    assert!(text.contains("skipped"), "{text}");
    quarantined(&cluster, 0, 1, 0).await;
    quarantined(&cluster, 2, 1, 0).await;
    let rows = "SELECT string_agg(concat_ws(' ', id, amount, note), ', ' ORDER BY id) FROM item";
    assert_eq!(
        cluster.nodes[1].value(rows).await,
        "1 6 old, 2 2 old, 3 3 old, 4 4 old"
    );
    let again = refused(&cluster, &["quarantine", "skip", &first]).await;
    assert!(again.contains("not in quarantine"), "{again}");

    let mut skipped = lines(&cluster, "quarantine_skipped").await;
    skipped.reverse();
    let told: Vec<_> = skipped
        .iter()
        .map(|line| {
            format!("{} {}", line["operation"], line["remote_image"]["id"]).replace('"', "")
        })
        .collect();
    assert_eq!(
        told,
        ["update 1", "delete 2", "delete 3", "insert 13", "insert 5"]
    );
    let update = &skipped[0];
    assert_eq!(
        (&update["outcome"], &update["remote_node"]),
        (&"local".into(), &"n1".into())
    );
    // As it stood when it was skipped, with its version.
    assert_eq!(
        (&update["local_image"]["amount"], &update["local_node"]),
        (&"1".into(), &"n1".into())
    );
    assert!(
        update["local_timestamp"].as_str() < update["remote_timestamp"].as_str(),
        "{update}"
    );
    assert_eq!(skipped[4]["local_image"], Value::Null);

    // A constraint refuses it here as before, and nothing happens.
    let text = refused(&cluster, &["reapply", id(update)]).await;
    assert!(text.contains("small"), "{text}");
    for line in &skipped[1..] {
        done(&cluster, &["reapply", id(line)]).await;
    }
    everywhere(&cluster, rows, "1 6 old, 4 4 old, 5 5 new, 13 3 old").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_cannot_even_read_can_be_skipped() {
    let schema = "CREATE TABLE word (id text PRIMARY KEY, n int);";
    let cluster = Cluster::of(&[15, 18]).schema(schema).start().await;
    cluster.nodes[1]
        .execute("ALTER TABLE word ALTER id TYPE int USING id::int")
        .await;
    let only_here = "CREATE TABLE only_here (id int PRIMARY KEY)";
    cluster.nodes[0].execute(only_here).await;
    cluster.nodes[0]
        .execute(
            "BEGIN; INSERT INTO word VALUES ('abc', 1); INSERT INTO only_here VALUES (1); COMMIT",
        )
        .await;
    quarantined(&cluster, 0, 1, 1).await;
    let list = json(&cluster, &["quarantine", "list"]).await;
    done(
        &cluster,
        &["quarantine", "skip", id(&list["transactions"][0])],
    )
    .await;
    let skipped = lines(&cluster, "quarantine_skipped").await;
    let told = skipped.iter().map(|line| {
        (
            &line["relation"],
            &line["remote_image"],
            &line["local_image"],
        )
    });
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            (
                &"public.only_here".into(),
                &serde_json::json!({ "id": "1" }),
                &Value::Null
            ),
            (
                &"public.word".into(),
                &serde_json::json!({ "id": "abc", "n": "1" }),
                &Value::Null
            ),
        ]
    );
    let text = refused(&cluster, &["reapply", id(&skipped[0])]).await;
    assert!(text.contains("no table public.only_here"), "{text}");
    cluster.converge(LIMIT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_in_quarantine_is_tried_at_once_with_what_is_behind_it() {
    let cluster = Cluster::of(&[15, 17, 18]).schema(SCHEMA).start().await;
    for node in [1, 2] {
        cluster.nodes[node].execute(SMALL).await;
    }
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (1, 50)")
        .await;
    for amount in 60..65 {
        let sql = format!("UPDATE item SET amount = {amount}");
        cluster.nodes[0].execute(&sql).await;
    }
    for node in [1, 2] {
        quarantined(&cluster, 0, node, 6).await;
    }
    let text = refused(&cluster, &["quarantine", "retry"]).await;
    assert_eq!(
        (
            text.matches("refused").count(),
            text.matches("behind").count()
        ),
        (2, 10),
        "{text}"
    );
    for node in [1, 2] {
        cluster.nodes[node]
            .execute("ALTER TABLE item DROP CONSTRAINT small")
            .await;
    }
    // The links may have been faster.
    done(&cluster, &["quarantine", "retry"]).await;
    for node in &cluster.nodes {
        assert_eq!(
            node.value("SELECT amount FROM item").await,
            "64",
            "{}",
            node.name
        );
    }
    cluster.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_losing_write_that_is_reapplied_wins_everywhere() {
    let cluster = Cluster::of(&[15, 17, 18])
        .relays()
        .schema(SCHEMA)
        .start()
        .await;
    assert!(
        done(&cluster, &["conflicts"])
            .await
            .contains("no conflicts")
    );
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (1, 0, NULL), (2, 0, NULL)")
        .await;
    cluster.assert_converged().await;
    apart(
        &cluster,
        &[
            (0, "UPDATE item SET amount = 1, note = 'loser' WHERE id = 1"),
            (
                1,
                "UPDATE item SET amount = 2, note = 'winner' WHERE id = 1",
            ),
            (0, "DELETE FROM item WHERE id = 2"),
            (2, "UPDATE item SET amount = 7 WHERE id = 2"),
        ],
    )
    .await;
    let updates = lines(&cluster, "update_origin_differs").await;
    let line = updates
        .iter()
        .find(|line| line["id"].as_str().is_some_and(|id| id.starts_with("n2/")));
    let line = line.expect("a line where the winner stood");
    assert_eq!(
        (
            &line["local_image"]["note"],
            &line["remote_image"]["note"],
            &line["remote_node"]
        ),
        (&"winner".into(), &"loser".into(), &"n1".into())
    );
    let text = done(&cluster, &["reapply", id(line)]).await;
    assert!(text.contains("public.item is written"), "{text}");
    everywhere(
        &cluster,
        "SELECT amount || note FROM item WHERE id = 1",
        "1loser",
    )
    .await;

    // Once is enough, unless it is forced.
    let text = refused(&cluster, &["reapply", id(line)]).await;
    assert!(text.contains("--force"), "{text}");
    cluster.nodes[0]
        .execute("UPDATE item SET amount = 3 WHERE id = 1")
        .await;
    cluster.assert_converged().await;
    done(&cluster, &["reapply", id(line), "--force"]).await;
    everywhere(
        &cluster,
        "SELECT amount || note FROM item WHERE id = 1",
        "1loser",
    )
    .await;

    // The delete lost: where it came to a newer row, or where the row came back over it.
    let deletes = lines(&cluster, "delete_origin_differs").await;
    done(&cluster, &["reapply", id(&deletes[0])]).await;
    everywhere(&cluster, "SELECT count(*) FROM item WHERE id = 2", "0").await;
    let text = refused(&cluster, &["reapply", id(&deletes[0]), "--force"]).await;
    assert!(text.contains("no such row"), "{text}");
    for (arguments, why) in [
        (
            ["reapply", "n9/1"],
            "no node is called n9; there are n1, n2, n3",
        ),
        (["reapply", "n1/999999"], "no line of the conflict log"),
    ] {
        let text = refused(&cluster, &arguments).await;
        assert!(text.contains(why), "{text}");
    }

    let of = async |arguments: &[&str]| {
        let found = json(&cluster, &[&["conflicts"], arguments].concat()).await;
        found["conflicts"].as_array().expect("lines").len()
    };
    let all = of(&[]).await;
    assert!(all >= 2 && of(&["--limit", "1"]).await == 1);
    assert_eq!(of(&["--table", "item"]).await, all);
    assert_eq!(of(&["--table", "public.item", "--since", "1h"]).await, all);
    assert_eq!(of(&["--table", "other"]).await, 0);
    assert_eq!(of(&["--since", "2999-01-01"]).await, 0);
    let summary = json(&cluster, &["conflicts", "--summary"]).await;
    let counted = summary["counts"].as_array().expect("counts").iter();
    let sum: u64 = counted
        .map(|count| count["lines"].as_u64().expect("a count"))
        .sum();
    assert_eq!(sum, all as u64, "{summary}");
    let text = done(&cluster, &["conflicts", "--summary"]).await;
    assert!(text.contains("update_origin_differs"), "{text}");
    let text = refused(&cluster, &["conflicts", "--since", "sometime"]).await;
    assert!(
        text.contains("n2: invalid input syntax for type timestamp"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_move_that_loses_is_logged_with_the_row_that_was_to_go() {
    let cluster = Cluster::of(&[15, 18]).relays().schema(SCHEMA).start().await;
    cluster.nodes[0]
        .execute("INSERT INTO item VALUES (1, 0, 'first')")
        .await;
    cluster.assert_converged().await;
    apart(
        &cluster,
        &[
            (0, "UPDATE item SET id = 9 WHERE id = 1"),
            (1, "UPDATE item SET amount = 7 WHERE id = 1"),
        ],
    )
    .await;
    let deletes = lines(&cluster, "delete_origin_differs").await;
    assert_eq!(deletes[0]["remote_image"], serde_json::json!({ "id": "1" }));
    done(&cluster, &["reapply", id(&deletes[0])]).await;
    everywhere(
        &cluster,
        "SELECT string_agg(id || note, ' ') FROM item",
        "9first",
    )
    .await;
}

/// Types whose texts and JSON differ, columns that cannot be written, and values that are not in the stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_reapplied_row_has_every_type_s_value_and_leaves_alone_what_the_line_lacks() {
    let schema = "CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE DOMAIN doc AS jsonb;\
         CREATE TABLE kinds (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, j json, d doc, a text[], n numeric(40, 10), \
           f float8, b bytea, t timestamptz, m mood, c char(3), twice bigint GENERATED ALWAYS AS (id * 2) STORED, body text);\
         ALTER TABLE kinds ALTER body SET STORAGE EXTERNAL;";
    let cluster = Cluster::of(&[15, 18]).relays().schema(schema).start().await;
    let values = "'{\"a\":  12345678901234567890.5}', '\"x\"', '{\"p,q\",NULL}', 123456789012345678901234567890.0123456789, \
         'Infinity', '\\x00ff', '2026-02-03 04:05:06.789012+05', 'happy', 'ab'";
    let columns = "(j, d, a, n, f, b, t, m, c)";
    let row = "SELECT md5(ROW(j::text, d, a, n, f, b, t, m, c)::text) FROM kinds WHERE id = 1";
    let insert = format!(
        "INSERT INTO kinds (id, j, d, a, n, f, b, t, m, c) OVERRIDING SYSTEM VALUE VALUES (1, {values})"
    );
    let other = "INSERT INTO kinds (id) OVERRIDING SYSTEM VALUE VALUES (1)";
    apart(&cluster, &[(0, &insert), (1, other)]).await;
    let inserts = lines(&cluster, "insert_exists").await;
    let line = inserts
        .iter()
        .find(|line| line["remote_node"] == "n1" && line["outcome"] == "local");
    done(
        &cluster,
        &["reapply", id(line.expect("the stream's image"))],
    )
    .await;
    cluster.assert_converged().await;
    let found = cluster.nodes[0].value(row).await;
    let set = format!("UPDATE kinds SET {columns} = ({values}) WHERE id = 1");
    cluster.nodes[0].execute(&set).await;
    everywhere(&cluster, row, &found).await;

    // The same as the node's own row lost it.
    let line = inserts
        .iter()
        .find(|line| line["local_node"] == "n1" && line["outcome"] == "remote");
    done(&cluster, &["reapply", id(line.expect("the row's image"))]).await;
    everywhere(&cluster, row, &found).await;

    let large = "UPDATE kinds SET body = (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 500) i)";
    cluster.nodes[0].execute(large).await;
    cluster.assert_converged().await;
    let old = "UPDATE kinds SET c = 'old' WHERE id = 1";
    apart(
        &cluster,
        &[(0, old), (1, "UPDATE kinds SET c = 'new' WHERE id = 1")],
    )
    .await;
    let updates = lines(&cluster, "update_origin_differs").await;
    let line = updates
        .iter()
        .find(|line| line["remote_image"]["c"] == "old");
    let line = line.expect("a line");
    assert_eq!(line["remote_image"].get("body"), None, "{line}");
    done(&cluster, &["reapply", id(line)]).await;
    everywhere(&cluster, "SELECT c || length(body) FROM kinds", "old16000").await;
    cluster.nodes[0].execute("DELETE FROM kinds").await;
    cluster.assert_converged().await;
    let text = refused(&cluster, &["reapply", id(line), "--force"]).await;
    assert!(text.contains("lacks body of public.kinds"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reapplied_row_leaves_counters_as_they_are() {
    let cluster = Cluster::of(&[15, 18])
        .relays()
        .schema("CREATE TABLE item (id int PRIMARY KEY, name text, hits int NOT NULL);")
        .sections("[replication.table.\"public.item\"]\ncounters = [\"hits\"]")
        .start()
        .await;
    let sum = "SELECT coalesce((SELECT name || hits FROM item WHERE id = 1), 'none')";
    apart(
        &cluster,
        &[
            (0, "INSERT INTO item VALUES (1, 'a', 3)"),
            (1, "INSERT INTO item VALUES (1, 'b', 4)"),
        ],
    )
    .await;
    everywhere(&cluster, sum, "b7").await;
    let inserts = lines(&cluster, "insert_exists").await;
    let line = inserts
        .iter()
        .find(|line| line["remote_node"] == "n1" && line["outcome"] == "local");
    let line = line.expect("a line");
    let text = done(&cluster, &["reapply", id(line)]).await;
    assert!(
        text.contains("counters are left as they are: hits"),
        "{text}"
    );
    everywhere(&cluster, sum, "a7").await;

    // A row that is gone comes back with nothing but what was added to it since.
    apart(
        &cluster,
        &[
            (0, "UPDATE item SET hits = hits + 5 WHERE id = 1"),
            (1, "DELETE FROM item WHERE id = 1"),
        ],
    )
    .await;
    everywhere(&cluster, sum, "none").await;
    done(&cluster, &["reapply", id(line), "--force"]).await;
    everywhere(&cluster, sum, "a5").await;
    cluster.nodes[1]
        .execute("ALTER TABLE item ADD CONSTRAINT small CHECK (hits < 10)")
        .await;
    cluster.nodes[0]
        .execute("UPDATE item SET hits = 20 WHERE id = 1")
        .await;
    quarantined(&cluster, 0, 1, 1).await;
    let list = json(&cluster, &["quarantine", "list"]).await;
    let first = id(&list["transactions"][0]);
    let text = refused(
        &cluster,
        &["quarantine", "edit", first, "--set", "public.item.hits=9"],
    )
    .await;
    assert!(text.contains("hits of public.item is a counter"), "{text}");
    let text = done(&cluster, &["quarantine", "skip", first]).await;
    assert!(text.contains("the counters of public.item on n2"), "{text}");
}

/// The row waits in the shadow of the one that has its value, and comes back by itself; until then nothing can write it.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_lost_a_unique_value_is_reapplied_only_once_the_value_is_free() {
    let schema = "CREATE TABLE person (id int PRIMARY KEY, email text UNIQUE, doc json);";
    let cluster = Cluster::of(&[15, 18]).relays().schema(schema).start().await;
    apart(
        &cluster,
        &[
            (0, "INSERT INTO person VALUES (1, 'e', '{\"n\": 1}')"),
            (1, "INSERT INTO person VALUES (2, 'e', '{\"n\": 2}')"),
        ],
    )
    .await;
    let lost = lines(&cluster, "multiple_unique_conflicts").await;
    assert!(!lost.is_empty());
    for line in &lost {
        let text = refused(&cluster, &["reapply", id(line)]).await;
        assert!(text.contains("duplicate key value violates"), "{text}");
    }
    cluster.nodes[1]
        .execute("DELETE FROM person WHERE id = 2")
        .await;
    everywhere(&cluster, "SELECT doc->>'n' FROM person", "1").await;
    let change = "UPDATE person SET doc = NULL WHERE id = 1";
    cluster.nodes[1].execute(change).await;
    cluster.assert_converged().await;
    for line in &lost {
        done(&cluster, &["reapply", id(line)]).await;
        everywhere(&cluster, "SELECT id || (doc->>'n') FROM person", "11").await;
    }
}
