//! Kinds of tables, columns and values.

use tandem_tests::{Cluster, client};

/// What text representations, encodings and settings could spoil, one value each and the extremes.
pub(crate) const TYPES: &str = r#"
CREATE TYPE mood AS ENUM ('sad', 'so "so"', 'happy');
CREATE TYPE pair AS (left_one int, right_one text);
CREATE DOMAIN positive AS int CHECK (value > 0);
CREATE TABLE typed (
    id bigint PRIMARY KEY, a_numeric numeric, a_money numeric(20, 4), a_real real, a_double double precision,
    a_small smallint, a_big bigint, a_bool boolean, a_text text, a_char char(8), a_varchar varchar(20), a_bytea bytea,
    a_timestamptz timestamptz, a_timestamp timestamp, a_date date, a_time time, a_timetz timetz, an_interval interval,
    a_json json, a_jsonb jsonb, a_uuid uuid, an_inet inet, a_cidr cidr, a_macaddr macaddr, a_bit varbit,
    an_array int[], a_matrix text[][], a_mood mood, moods mood[], a_positive positive, a_pair pair, pairs pair[],
    a_range int4range, a_tsrange tstzrange, a_multirange nummultirange, a_tsvector tsvector, a_point point, a_box box,
    a_name name, an_oid oid, an_lsn pg_lsn, "strange ""Name" text
);
"#;

pub(crate) const VALUES: &str = r#"
INSERT INTO typed VALUES
(1, 12345678901234567890.123456789012345678900, 1.5, 1e-45, 4.9e-324, -32768, -9223372036854775808, true,
 E'quote '' double " back\\slash tab\t newline\n unicode é漢🚲', 'a  ', 'trailing  ', '\x00ff5c27',
 '2026-11-22 01:02:03.456789+05:30', '0044-03-15 12:00:00 BC', '4713-01-01 BC', '24:00:00', '23:59:59.999999-12',
 '1 year -2 mons +3 days -04:05:06.789', '{"b":1,  "a" : [1,2 ,null]}', '{"b":1,  "a" : [1.50,2 ,null]}',
 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '192.168.0.1/24', '2001:db8::/32', '08:00:2b:01:02:03', B'1011001',
 '{1,NULL,-3}', '{{"a,b","c\"d"},{"",NULL}}', 'so "so"', '{sad,happy}', 7, ROW(1, 'x,y"z'), ARRAY[ROW(1, NULL)::pair, NULL],
 '[1,10)', '[2026-01-01 00:00+00,)', '{[1.5,2.5),[7,8]}', '''fat'' ''cat'':3A,4', '(0.1,-1e300)', '(2,2),(1,1)',
 'name', 4294967295, '16/B374D848', 'odd'),
(2, 'NaN', NULL, 'NaN', '-Infinity', 32767, 9223372036854775807, false, '', '', '', '', 'infinity', '-infinity', 'infinity',
 '00:00:00', '00:00:00+00', '178000000 years', 'null', 'null', NULL, '::1', '0.0.0.0/0', NULL, B'', '{}', '{}', 'sad', '{}', NULL,
 NULL, '{}', 'empty', '(,)', '{}', '', NULL, NULL, '', 0, '0/0', ''),
(3, 'Infinity', -0.0001, '-0', '-0', 0, 0, NULL, NULL, NULL, NULL, NULL, '2000-01-01 00:00:00+00', '294276-12-31 23:59:59.999999',
 '5874897-12-31', '12:34:56.000001', '12:34:56+14:59', '-0.000001 s', '[]', '"\u00e9"', NULL, NULL, NULL, NULL, NULL, NULL, NULL,
 NULL, NULL, 2147483647, ROW(NULL, NULL), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn values_of_every_type_are_equal_to_the_byte_on_all_majors() {
    let cluster = Cluster::of(&[15, 17, 18]).schema(TYPES).start().await;
    // The role's settings must leak neither into the stream nor into the apply sessions.
    for node in &cluster.nodes {
        let settings = "ALTER ROLE tandem SET datestyle = 'SQL, DMY'; ALTER ROLE tandem SET extra_float_digits = -10; \
                        ALTER ROLE tandem SET intervalstyle = 'iso_8601'; ALTER ROLE tandem SET bytea_output = 'escape'; \
                        ALTER ROLE tandem SET timezone = 'Asia/Kolkata'; ALTER DATABASE app SET search_path = 'nowhere'";
        node.execute(settings).await;
    }
    for node in &cluster.nodes {
        let client = node.connect().await;
        client::execute(&client, "SET search_path = public; SET timezone = 'UTC'").await;
        client::execute(
            &client,
            &format!(
                "{VALUES}; UPDATE typed SET id = id + 100 * {} WHERE id < 10",
                node.id
            ),
        )
        .await;
    }
    cluster.assert_converged().await;
    // Sessions that open now have the role's new settings.
    let mut cluster = cluster;
    cluster.daemon.restart().await;
    for node in &cluster.nodes {
        let client = node.connect().await;
        client::execute(&client, "SET search_path = public; SET timezone = 'UTC'").await;
        client::execute(
            &client,
            &format!(
                "{VALUES}; UPDATE typed SET id = id + 1000 * {} WHERE id < 10",
                node.id
            ),
        )
        .await;
        client::execute(
            &client,
            &format!(
                "UPDATE typed SET a_text = a_text || '!' WHERE id / 100 = {}",
                node.id
            ),
        )
        .await;
    }
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        assert_eq!(
            node.value("SELECT count(*) FROM public.typed").await,
            "18",
            "{}",
            node.name
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_and_identity_columns_hold_the_sources_values() {
    let schema = "CREATE TABLE account (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, owner text NOT NULL, cents bigint NOT NULL, \
                  euros numeric GENERATED ALWAYS AS (cents / 100.0) STORED, shout text GENERATED ALWAYS AS (upper(owner)) STORED); \
                  CREATE TABLE event (id int GENERATED BY DEFAULT AS IDENTITY (START WITH 1000) PRIMARY KEY, note text);";
    let cluster = Cluster::of(&[15, 17, 18]).schema(schema).start().await;
    cluster.nodes[0].execute("INSERT INTO account (owner, cents) SELECT 'o' || i, i * 150 FROM generate_series(1, 50) i").await;
    cluster.nodes[1]
        .execute("INSERT INTO event (note) VALUES ('a'), ('b')")
        .await;
    cluster.assert_converged().await;
    cluster.nodes[2].execute("UPDATE account SET cents = cents + 1 WHERE id <= 10; DELETE FROM account WHERE id = 50").await;
    cluster.nodes[2]
        .execute("UPDATE event SET id = id + 5")
        .await;
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        let found = node
            .value("SELECT count(*) || ' ' || sum(euros) || ' ' || min(shout) FROM account")
            .await;
        assert!(
            found.starts_with("49 1837.6") && found.ends_with(" O1"),
            "{}: {found}",
            node.name
        );
    }
}

/// pgoutput leaves out TOAST values that an update did not touch.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_value_that_an_update_leaves_alone_stays() {
    let schema = "CREATE TABLE doc (id int PRIMARY KEY, body text, other text, n int); ALTER TABLE doc ALTER body SET STORAGE EXTERNAL;";
    let cluster = Cluster::of(&[15, 17, 18]).schema(schema).start().await;
    let body = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 4000) i)";
    cluster.nodes[0]
        .execute(&format!(
            "INSERT INTO doc SELECT d, {body} || d, {body}, 0 FROM generate_series(1, 5) d"
        ))
        .await;
    cluster.assert_converged().await;
    cluster.nodes[1].execute("UPDATE doc SET n = n + 1").await;
    cluster.assert_converged().await;
    cluster.nodes[2].execute("UPDATE doc SET other = 'short' WHERE id <= 2; UPDATE doc SET body = body || 'more' WHERE id = 3").await;
    // The key moves while the large value stays.
    cluster.nodes[2]
        .execute("UPDATE doc SET id = id + 10 WHERE id > 3")
        .await;
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        let found = node.value("SELECT string_agg(id || ':' || length(body) || ':' || n, ' ' ORDER BY id) FROM doc").await;
        assert_eq!(
            found, "1:128001:1 2:128001:1 3:128005:1 14:128001:1 15:128001:1",
            "{}",
            node.name
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_without_a_key_take_inserts_from_every_node() {
    let cluster = Cluster::of(&[15, 15, 18])
        .schema("CREATE TABLE log (at_node int, note text);")
        .start()
        .await;
    for node in &cluster.nodes {
        let sql = format!(
            "INSERT INTO log SELECT {}, 'same' FROM generate_series(1, 200)",
            node.id
        );
        node.execute(&sql).await;
    }
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        assert_eq!(
            node.value("SELECT count(*) FROM log").await,
            "600",
            "{}",
            node.name
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_several_columns_and_odd_names_are_found() {
    let schema = r#"CREATE SCHEMA "Odd ""Schema";
        CREATE TABLE "Odd ""Schema"."Sel""ect" (z int, "Group By" text, y date, value text, PRIMARY KEY (y, "Group By", z));"#;
    let cluster = Cluster::of(&[15, 17, 18]).start().await;
    for node in &cluster.nodes {
        node.execute(schema).await;
    }
    let table = r#""Odd ""Schema"."Sel""ect""#;
    cluster.nodes[0].execute(&format!("INSERT INTO {table} SELECT i, 'it''s ' || i % 3, date '2026-01-01' + i % 5, 'v' FROM generate_series(1, 90) i")).await;
    cluster.assert_converged().await;
    cluster.nodes[1].execute(&format!("UPDATE {table} SET value = value || z WHERE z % 2 = 0; DELETE FROM {table} WHERE z % 7 = 0")).await;
    cluster.assert_converged().await;
    cluster.nodes[2]
        .execute(&format!(
            r#"UPDATE {table} SET "Group By" = "Group By" || '!' WHERE z % 5 = 1"#
        ))
        .await;
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        assert_eq!(
            node.value(&format!("SELECT count(*) FROM {table}")).await,
            "78",
            "{}",
            node.name
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_and_foreign_keys_do_not_fire_a_second_time() {
    let schema = "CREATE TABLE parent (id int PRIMARY KEY); \
                  CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE); \
                  CREATE TABLE audit (id text PRIMARY KEY, what text); \
                  CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                    INSERT INTO audit VALUES (TG_OP || NEW.id || '/' || current_setting('port'), 'x'); NEW.parent := NEW.parent; RETURN NEW; END $$; \
                  CREATE TRIGGER note BEFORE INSERT OR UPDATE ON child FOR EACH ROW EXECUTE FUNCTION note();";
    let cluster = Cluster::of(&[15, 15, 15]).schema(schema).start().await;
    cluster.nodes[0]
        .execute(
            "INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (1, 1), (2, 2), (3, 2)",
        )
        .await;
    cluster.assert_converged().await;
    cluster.nodes[1]
        .execute("DELETE FROM parent WHERE id = 2")
        .await;
    cluster.assert_converged().await;
    for node in &cluster.nodes {
        assert_eq!(
            node.value(
                "SELECT count(*) || ' ' || count(DISTINCT split_part(id, '/', 2)) FROM audit"
            )
            .await,
            "3 1"
        );
        assert_eq!(node.value("SELECT count(*) FROM child").await, "1");
        assert_eq!(
            node.value("SELECT count(*) FROM tandem.conflict").await,
            "0"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_outside_the_configured_patterns_stay_local() {
    let schema =
        "CREATE TABLE kept (id int PRIMARY KEY); CREATE TABLE scratch_pad (id int PRIMARY KEY);";
    let cluster = Cluster::of(&[15, 15])
        .schema(schema)
        .replication("exclude = [\"public.scratch_*\"]")
        .start()
        .await;
    let both = "BEGIN; INSERT INTO kept VALUES (1); INSERT INTO scratch_pad VALUES (1); COMMIT";
    cluster.nodes[0].execute(both).await;
    cluster
        .converge(tandem_tests::cluster::CONVERGE_LIMIT)
        .await;
    assert_eq!(
        cluster.nodes[1].value("SELECT count(*) FROM kept").await,
        "1"
    );
    assert_eq!(
        cluster.nodes[1]
            .value("SELECT count(*) FROM scratch_pad")
            .await,
        "0"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_with_an_identity_column_beside_its_key_can_be_updated() {
    let schema = "CREATE TABLE doc (id text PRIMARY KEY, seq bigint GENERATED ALWAYS AS IDENTITY, note text);";
    let cluster = Cluster::of(&[15, 18]).schema(schema).start().await;
    cluster.nodes[0]
        .execute("INSERT INTO doc (id, note) VALUES ('a', 'first')")
        .await;
    cluster.assert_converged().await;
    cluster.nodes[1]
        .execute("UPDATE doc SET note = 'second'")
        .await;
    cluster.assert_converged().await;
}

/// The type's operators are in no schema of the apply sessions' search path.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_an_extensions_type_is_found() {
    let cluster = Cluster::of(&[15, 15]).start().await;
    for node in &cluster.nodes {
        node.execute(
            "CREATE EXTENSION ltree; CREATE TABLE place (path ltree PRIMARY KEY, note text)",
        )
        .await;
    }
    cluster.nodes[0]
        .execute("INSERT INTO place VALUES ('europe.paris', 'first'), ('asia.delhi', 'first')")
        .await;
    cluster.assert_converged().await;
    cluster.nodes[1].execute("UPDATE place SET note = 'second' WHERE path = 'europe.paris'; DELETE FROM place WHERE path = 'asia.delhi'").await;
    cluster.assert_converged().await;
}
