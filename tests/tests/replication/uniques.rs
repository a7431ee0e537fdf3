//! Rows of different keys that collide on a unique or exclusion constraint: every node keeps the same ones, and the others
//! come back when there is room.

use std::time::Duration;

use tandem_tests::{Cluster, Node, eventually};

const SCHEMA: &str = "CREATE TABLE person (id int PRIMARY KEY, email text UNIQUE, nick text, seat int, \
    spell int4range, EXCLUDE USING gist (spell WITH &&)); \
    CREATE UNIQUE INDEX ON person (lower(nick)); CREATE UNIQUE INDEX ON person (seat) WHERE seat > 0;";

/// Holds everything back while `statements` run, one on each named node in turn, then lets it go.
async fn apart(schema: &str, statements: &[(usize, &str)]) -> Cluster {
    let builder = Cluster::of(&[15, 17, 18]).relays().schema(schema);
    let cluster = builder.start().await;
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
    cluster
}

async fn assert_rows(cluster: &Cluster, sql: &str, rows: &str) {
    for node in &cluster.nodes {
        let sql = format!("SELECT coalesce(string_agg(x::text, ' '), '') FROM ({sql}) AS x");
        assert_eq!(node.value(&sql).await, rows, "{}", node.name);
    }
}

async fn assert_shadow(cluster: &Cluster, keys: &str) {
    let sql = "SELECT key FROM tandem.shadow ORDER BY key";
    assert_rows(cluster, sql, keys).await;
}

const MAIL: &str = "SELECT id, email FROM person ORDER BY id";

#[tokio::test(flavor = "multi_thread")]
async fn of_two_rows_with_one_value_the_newer_stays_and_the_other_comes_back_when_it_goes() {
    let cluster = apart(
        SCHEMA,
        &[
            (0, "INSERT INTO person VALUES (5, 'e')"),
            (1, "INSERT INTO person VALUES (6, 'e')"),
        ],
    )
    .await;
    assert_rows(&cluster, MAIL, "(6,e)").await;
    assert_shadow(&cluster, "([5])").await;
    let logged = cluster.nodes[0]
        .value("SELECT count(*) FROM tandem.conflict WHERE type = 'multiple_unique_conflicts'")
        .await;
    assert_eq!(logged, "1", "the loser is logged where it was");

    // A client of another node gives the value up.
    cluster.nodes[2]
        .execute("UPDATE person SET email = 'f' WHERE id = 6")
        .await;
    cluster.assert_converged().await;
    becomes(&cluster.nodes[2], "SELECT count(*) FROM person", "2").await;
    cluster.assert_converged().await;
    assert_rows(&cluster, MAIL, "(5,e) (6,f)").await;
    assert_shadow(&cluster, "").await;

    // It can be changed as ever, on every node.
    for (number, node) in cluster.nodes.iter().enumerate() {
        node.execute(&format!("UPDATE person SET seat = {number} WHERE id = 5"))
            .await;
        cluster.assert_converged().await;
    }
    assert_rows(&cluster, "SELECT seat FROM person WHERE id = 5", "(2)").await;
}

async fn becomes(node: &Node, sql: &str, wanted: &str) {
    eventually(sql, Duration::from_secs(20), async || {
        let value = node.value(sql).await;
        if value == wanted {
            Ok(())
        } else {
            Err(format!("{}: {value}, not {wanted}", node.name))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partial_and_expression_indexes_and_exclusion_constraints_decide_the_same_way() {
    let cluster = apart(
        SCHEMA,
        &[
            (0, "INSERT INTO person VALUES (1, 'a', 'Kim', 1, '[1,5)')"),
            (1, "INSERT INTO person VALUES (2, 'b', 'KIM', 2, '[20,25)')"),
            (2, "INSERT INTO person VALUES (3, 'c', 'lee', 1, '[30,35)')"),
            (
                0,
                "INSERT INTO person VALUES (4, 'd', 'max', 0, '[4,9)') ON CONFLICT DO NOTHING",
            ),
            (1, "INSERT INTO person VALUES (5, 'e', 'nan', 0, '[3,4)')"),
        ],
    )
    .await;
    // 2 keeps its nick against 1; 3 its seat against 1; 5 does not overlap 4, which was never written beside 1.
    assert_rows(&cluster, "SELECT id FROM person ORDER BY id", "(2) (3) (5)").await;
    assert_shadow(&cluster, "([1])").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_winner_that_loses_to_a_third_lets_the_loser_back_in() {
    let cluster = apart(
        "CREATE TABLE person (id int PRIMARY KEY, email text UNIQUE, nick text UNIQUE);",
        &[
            (0, "INSERT INTO person VALUES (1, 'a', 'x')"),
            (1, "INSERT INTO person VALUES (2, 'a', 'y')"),
            (2, "INSERT INTO person VALUES (3, 'b', 'y')"),
        ],
    )
    .await;
    assert_rows(&cluster, "SELECT id FROM person ORDER BY id", "(1) (3)").await;
    assert_shadow(&cluster, "([2])").await;
    // Two rows change places in one transaction, against a row that is shadowed.
    cluster.nodes[0]
        .execute("BEGIN; UPDATE person SET email = 't' WHERE id = 1; UPDATE person SET email = 'a' WHERE id = 3; UPDATE person SET email = 'b' WHERE id = 1; COMMIT")
        .await;
    cluster.assert_converged().await;
    assert_rows(&cluster, MAIL, "(1,b) (3,a)").await;
    cluster.nodes[1]
        .execute("DELETE FROM person WHERE id = 3")
        .await;
    cluster.assert_converged().await;
    becomes(&cluster.nodes[1], "SELECT count(*) FROM person", "2").await;
    cluster.assert_converged().await;
    assert_rows(&cluster, MAIL, "(1,b) (2,a)").await;
}

/// What a client would find gone while it waits for the row.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_loses_under_its_own_key_moves_no_other_row() {
    let statements = [
        (0, "INSERT INTO person VALUES (5, 'e'), (7, 'g')"),
        (1, "INSERT INTO person VALUES (6, 'e')"),
    ];
    let cluster = apart(SCHEMA, &statements).await;
    assert_shadow(&cluster, "([5])").await;
    for relay in &cluster.relays {
        relay.silence_only("apply");
    }
    for (node, sql) in [
        (0, "UPDATE person SET email = 'h' WHERE id = 7"),
        (2, "UPDATE person SET email = 'i' WHERE id = 7"),
        (2, "INSERT INTO person VALUES (8, 'h')"),
    ] {
        cluster.nodes[node].execute(sql).await;
    }
    let place = "SELECT ctid || ' ' || xmin FROM person WHERE id = 8";
    let before = cluster.nodes[2].value(place).await;
    for relay in &cluster.relays {
        relay.heal();
    }
    cluster.assert_converged().await;
    assert_eq!(cluster.nodes[2].value(place).await, before);
    assert_rows(&cluster, MAIL, "(6,e) (7,i) (8,h)").await;
    assert_shadow(&cluster, "([5])").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_changes_its_key_does_not_collide_with_itself() {
    let statements = [
        (0, "INSERT INTO person VALUES (5, 'e')"),
        (1, "INSERT INTO person VALUES (6, 'e')"),
    ];
    let cluster = apart(SCHEMA, &statements).await;
    cluster.nodes[2]
        .execute("UPDATE person SET id = 9 WHERE id = 6")
        .await;
    cluster.assert_converged().await;
    assert_rows(&cluster, MAIL, "(9,e)").await;
    assert_shadow(&cluster, "([5])").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deferrable_constraint_takes_a_swap_and_nulls_may_be_told_not_distinct() {
    let schema = "CREATE TABLE person (id int PRIMARY KEY, email text UNIQUE DEFERRABLE INITIALLY DEFERRED, \
         code int UNIQUE NULLS NOT DISTINCT); INSERT INTO person VALUES (1, 'a', 1), (2, 'b', 2);";
    let cluster = apart(
        schema,
        &[
            (0, "BEGIN; UPDATE person SET email = 'b' WHERE id = 1; UPDATE person SET email = 'a' WHERE id = 2; COMMIT"),
            (1, "INSERT INTO person VALUES (3, 'c', NULL)"),
            (2, "INSERT INTO person VALUES (4, 'd', NULL)"),
        ],
    )
    .await;
    assert_rows(&cluster, MAIL, "(1,b) (2,a) (4,d)").await;
    assert_shadow(&cluster, "([3])").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_a_shadowed_key_anew_ends_the_shadowed_row() {
    let cluster = apart(
        SCHEMA,
        &[
            (0, "INSERT INTO person VALUES (5, 'e')"),
            (1, "INSERT INTO person VALUES (6, 'e')"),
        ],
    )
    .await;
    cluster.nodes[2]
        .execute("INSERT INTO person VALUES (5, 'other')")
        .await;
    cluster.assert_converged().await;
    becomes(&cluster.nodes[2], "SELECT count(*) FROM tandem.shadow", "0").await;
    cluster.nodes[0]
        .execute("DELETE FROM person WHERE id = 6")
        .await;
    cluster.assert_converged().await;
    assert_rows(&cluster, MAIL, "(5,other)").await;
    assert_shadow(&cluster, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_whose_new_key_is_taken_by_a_newer_one_is_gone_from_its_old_key_too() {
    // A shadowed row makes every change of the table look at them.
    let cluster = apart(
        SCHEMA,
        &[
            (0, "INSERT INTO person VALUES (1, 'a')"),
            (0, "INSERT INTO person VALUES (5, 'e')"),
            (1, "INSERT INTO person VALUES (6, 'e')"),
        ],
    )
    .await;
    for relay in &cluster.relays {
        relay.silence_only("apply");
    }
    cluster.nodes[0]
        .execute("UPDATE person SET id = 9 WHERE id = 1")
        .await;
    cluster.nodes[1]
        .execute("INSERT INTO person VALUES (9, 'newer')")
        .await;
    for relay in &cluster.relays {
        relay.heal();
    }
    cluster.assert_converged().await;
    assert_rows(&cluster, MAIL, "(6,e) (9,newer)").await;
    assert_shadow(&cluster, "([5])").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_not_in_the_stream_is_found_where_its_source_has_shadowed_the_row() {
    let cluster = Cluster::of(&[15, 18])
        .relays()
        .schema(
            "CREATE TABLE seat (id int PRIMARY KEY, place int UNIQUE, note text); ALTER TABLE seat ALTER note SET STORAGE EXTERNAL",
        )
        .start()
        .await;
    let [one, two] = &cluster.nodes[..] else {
        unreachable!("two nodes")
    };
    two.execute("INSERT INTO seat VALUES (3, 7, repeat(md5('3'), 200))")
        .await;
    cluster.assert_converged().await;
    for relay in &cluster.relays {
        relay.silence_only("apply");
    }
    // Its stream leaves the note out, and the row was last written by the other node.
    one.execute("UPDATE seat SET place = 11 WHERE id = 3").await;
    two.execute("INSERT INTO seat VALUES (11, 11, 'newer')")
        .await;
    cluster.relays[0].heal();
    becomes(one, "SELECT count(*) FROM tandem.shadow", "1").await;
    cluster.relays[1].heal();
    cluster.assert_converged().await;
    assert_shadow(&cluster, "([3])").await;
    assert_rows(&cluster, "SELECT id, place FROM seat", "(11,11)").await;
    one.execute("DELETE FROM seat WHERE id = 11").await;
    cluster.assert_converged().await;
    let whole = "SELECT id, place, note = repeat(md5('3'), 200) FROM seat";
    becomes(two, "SELECT count(*) FROM seat", "1").await;
    assert_rows(&cluster, whole, "(3,11,t)").await;
}
