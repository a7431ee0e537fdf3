//! What is called a read, beside servers that let nothing else through.

use std::collections::BTreeMap;

use tandem_routing_rules::{
    Rules,
    statement::{Class, Plan},
};
use tandem_tests::{Cluster, client};

use crate::wire::Connection;

/// Each statement, ` => `, what it does.
const CORPUS: &str = include_str!("../../../routing-rules/src/statement/tests/corpus.txt");
/// The functions that are taken to leave the database as it is.
const FUNCTIONS: &str = include_str!("../../../routing-rules/src/statement/functions.txt");
/// What its statements are about.
const TABLES: &str = "
    CREATE SCHEMA s;
    CREATE SEQUENCE s;
    CREATE TABLE t (id int PRIMARY KEY, x int, y int, z int, a int[], b int, c int, name text, flag boolean, ts timestamptz,
        d date, k uuid, h bytea, bits bit(3), arr int[]);
    CREATE TABLE u (id int PRIMARY KEY, t_id int, x int[], y int, z int, a int, b int);
    CREATE TABLE \"T\" (\"Id\" int);
    CREATE TABLE b (id int);
    CREATE TABLE s.t (LIKE t);
    CREATE TABLE s.u (LIKE u);
    CREATE TABLE s.w (id int);
    CREATE VIEW v AS SELECT * FROM t;
    INSERT INTO t (id, x, name) VALUES (7, 1, 'a'), (8, 2, 'b');
    INSERT INTO u (id, t_id) VALUES (7, 7)";
/// So many of the reads may be refused for another reason: names that do not exist, types that do not compare, what an older
/// major does not know.
const OTHER_ERRORS_MAX: usize = 32;
/// So many of the writes must be refused for being none, or the servers let everything through.
const WRITES_REFUSED_MIN: usize = 110;

#[tokio::test]
async fn what_is_called_a_read_runs_where_nothing_may_be_written() {
    let cluster = Cluster::of(&[15, 17, 18]).without_daemon().start().await;
    for node in &cluster.nodes {
        node.execute(TABLES).await;
        let mut connection = Connection::login(node.port());
        let set = connection
            .query(b"SET default_transaction_read_only = on; SET statement_timeout = '5s'");
        assert_eq!(set.error, None);
        let (mut others, mut refused) = (BTreeMap::new(), 0);
        for line in CORPUS.lines() {
            let Some((text, _)) = line.split_once(" => ") else {
                continue;
            };
            let class = Plan::of(text, &Rules::default(), None, &["public"]).class;
            if class != Class::Read && class != Class::Write {
                continue;
            }
            let sql = text.replace("$1", "101").replace("$2", "'{201,202}'");
            let sql = sql.replace("$3", "NULL");
            connection.query(b"BEGIN");
            let answer = connection.query(sql.as_bytes());
            connection.query(b"ROLLBACK");
            connection.query(b"DEALLOCATE ALL");
            let is_refused = answer
                .error
                .as_ref()
                .is_some_and(|(code, _)| code == "25006");
            if class == Class::Read {
                assert!(!is_refused, "{text}: {:?}", answer.error);
                others.extend(answer.error.map(|error| (text, error)));
            } else {
                refused += usize::from(is_refused);
            }
        }
        assert!(
            others.len() <= OTHER_ERRORS_MAX,
            "{}: {others:#?}",
            others.len()
        );
        assert!(refused >= WRITES_REFUSED_MIN, "{refused}");
    }
}

/// Volatile functions that change nothing that lasts, in the words of the manual: they look at the server or at the session,
/// wait, or draw random numbers.
const VOLATILE: &str = "
    array_sample array_shuffle clock_timestamp current_query currval gen_random_uuid lastval pg_blocking_pids
    pg_collation_actual_version pg_control_checkpoint pg_control_init pg_control_recovery pg_control_system
    pg_current_logfile pg_current_wal_flush_lsn pg_current_wal_insert_lsn pg_current_wal_lsn
    pg_database_collation_actual_version pg_database_size pg_get_backend_memory_contexts pg_get_sequence_data
    pg_get_wait_events pg_hba_file_rules pg_ident_file_mappings pg_indexes_size pg_is_in_recovery pg_jit_available
    pg_last_committed_xact pg_last_wal_receive_lsn pg_last_wal_replay_lsn pg_last_xact_replay_timestamp
    pg_lock_status pg_notification_queue_usage pg_partition_ancestors pg_partition_tree pg_prepared_xact
    pg_relation_size pg_safe_snapshot_blocking_pids pg_sequence_last_value pg_show_all_file_settings
    pg_show_replication_origin_status pg_sleep pg_sleep_for pg_sleep_until pg_stat_get_backend_io
    pg_stat_get_backend_wal pg_stat_get_io pg_stat_get_recovery_prefetch pg_stat_have_stats pg_table_size
    pg_tablespace_size pg_total_relation_size pg_xact_commit_timestamp pg_xact_commit_timestamp_origin
    pg_xact_status random random_normal timeofday txid_status uuidv4 uuidv7";

#[tokio::test]
async fn functions_that_count_as_reads_are_not_volatile_but_for_those_that_were_judged() {
    let cluster = Cluster::of(&[15, 17, 18]).without_daemon().start().await;
    let mut wrong = Vec::new();
    for node in &cluster.nodes {
        let node = node.connect().await;
        let names = "SELECT DISTINCT proname FROM pg_proc \
             WHERE pronamespace = 'pg_catalog'::regnamespace AND provolatile = 'v'";
        for row in client::rows(&node, names).await {
            let name = row[0].clone().expect("a name");
            let is_listed = FUNCTIONS.lines().any(|line| line == name);
            let is_judged = VOLATILE.split_ascii_whitespace().any(|word| word == name);
            if is_listed && !is_judged && !wrong.contains(&name) {
                wrong.push(name);
            }
        }
    }
    wrong.sort();
    assert_eq!(wrong, Vec::<String>::new());
}
