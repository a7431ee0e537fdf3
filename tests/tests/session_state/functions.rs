//! The list of harmless functions beside the catalogs of real servers.

use std::collections::BTreeSet;

use tandem_routing_rules::state::HARMLESS_FUNCTIONS;
use tandem_tests::{Cluster, client};

/// Volatile functions that do nothing to the session they run in: they look at the server, at other sessions or at
/// shared state, end with the transaction, or give away what only a pinned session has.
const VOLATILE: &str = "
    array_sample array_shuffle clock_timestamp current_query gen_random_uuid nextval pg_advisory_unlock
    pg_advisory_unlock_all pg_advisory_unlock_shared pg_advisory_xact_lock pg_advisory_xact_lock_shared
    pg_blocking_pids pg_cancel_backend pg_current_wal_flush_lsn pg_current_wal_insert_lsn pg_current_wal_lsn
    pg_database_size pg_indexes_size pg_is_in_recovery pg_last_wal_receive_lsn pg_last_wal_replay_lsn
    pg_last_xact_replay_timestamp pg_lock_status pg_logical_emit_message pg_notify pg_partition_ancestors
    pg_partition_tree pg_relation_size pg_reload_conf pg_sequence_last_value pg_sleep pg_sleep_for pg_sleep_until
    pg_switch_wal pg_table_size pg_tablespace_size pg_terminate_backend pg_total_relation_size pg_try_advisory_xact_lock
    pg_try_advisory_xact_lock_shared pg_xact_commit_timestamp pg_xact_status random random_normal setval timeofday
    txid_status uuidv4 uuidv7";

#[tokio::test]
async fn what_is_called_harmless_is_built_in_and_not_volatile() {
    let cluster = Cluster::of(&[15, 17, 18]).without_daemon().start().await;
    let mut found = BTreeSet::new();
    for node in &cluster.nodes {
        let node = node.connect().await;
        let names = "SELECT proname, bool_or(provolatile = 'v') FROM pg_proc \
             WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind <> 'p' GROUP BY 1";
        for row in client::rows(&node, names).await {
            let name = row[0].clone().expect("a name");
            let is_volatile = row[1].as_deref() == Some("t");
            let is_listed = HARMLESS_FUNCTIONS
                .split_ascii_whitespace()
                .any(|word| word == name);
            let is_allowed = VOLATILE.split_ascii_whitespace().any(|word| word == name);
            assert!(
                !is_listed || !is_volatile || is_allowed,
                "{name} is volatile"
            );
            found.insert(name);
        }
    }
    let unknown = HARMLESS_FUNCTIONS
        .split_ascii_whitespace()
        .filter(|word| !found.contains(*word));
    assert_eq!(
        unknown.collect::<Vec<_>>(),
        Vec::<&str>::new(),
        "no server has them"
    );
}
