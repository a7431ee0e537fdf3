//! Outages at random: whatever befalls the nodes and in whatever order, no acknowledged write is lost, none that was refused is
//! there, what nobody was told of is everywhere or nowhere, and counters add up.
//!
//! Clients book through the proxy and write down what they were told, as in a drill: rows with numbers of their own, a row that each
//! keeps, and in the same transaction two accounts, one of their own and one that they share. The seed is printed; the same seed
//! gives the same faults and bookings, what the scheduler makes of them may differ. `make soak` takes `SOAK_RUNS` of them.

mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::{Duration, Instant},
};

use plan::{Blow, Fault, Plan};
use serde_json::Value;
use tandem::cli::drill::{
    audit::{Audit, Entry, Found, audit, losers},
    ledger::{Client, History, Ledger, Outcome, TABLE},
    timeline::{Span, now_us},
};
use tandem_tests::{
    Cluster, Node, audit as wal, client, eventually, ledger,
    seeds::{Enough, Seeds, number_of},
};
use tandem_wire::Connection;

const LIMIT: Duration = Duration::from_secs(60);
/// How long it may take until all nodes serve again.
const BACK_LIMIT: Duration = Duration::from_secs(120);
const RULES: &str = "[placement.branch]\nstrategy = \"hash\"\n[default]\nwrite = \"home\"\n[read]\nroute = \"nearest\"\n";
const CLIENTS: u32 = 9;
/// How often each of them writes.
const EVERY: Duration = Duration::from_millis(40);
/// Accounts that all of them share, behind the two that each has for itself.
const SHARED: u32 = 3;
const ACCOUNTS: u32 = 2 * CLIENTS + SHARED;
/// What a client may be told of a write that has not been done: run it again, or no node serves.
const TOLD: [&str; 2] = ["40001", "57P03"];
/// How often each fault comes in `make test`, and in a soak.
const ROUNDS: [usize; 2] = [1, 2];
const AT_ONCE: usize = 2;

/// The two accounts that a write books on, and what. Now and then the second one is shared, so that nodes add to it at once.
fn bookings(client: u32, seq: u64) -> [(u32, i64); 2] {
    let mut random = fastrand::Rng::with_seed((u64::from(client) << 32) | seq);
    let (own, second) = (2 * client - 1, 2 * client);
    let second = match random.u32(..5) {
        0 => 2 * CLIENTS + 1 + random.u32(..SHARED),
        _ => second,
    };
    [(own, random.i64(1..100)), (second, random.i64(1..100))]
}

/// The same as statements, always in the same order of accounts.
fn books(client: u32, seq: u64) -> String {
    let [own, shared] = bookings(client, seq).map(|(account, amount)| {
        format!("UPDATE account SET balance = balance + {amount} WHERE id = {account}")
    });
    format!("{own}; {shared}")
}

async fn start(plan: &Plan) -> Cluster {
    let milliseconds = |time: Duration| format!("\"{}ms\"", time.as_millis());
    Cluster::of(&plan.majors)
        .durable()
        .relays()
        .schema(&format!(
            "CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL); \
             INSERT INTO account SELECT id, 0 FROM generate_series(1, {ACCOUNTS}) id; {}",
            ledger::schema()
        ))
        .rules(RULES)
        .proxy(&format!(
            "pool_mode = \"transaction\"\nprobe_timeout = {}\ncommit_outcome_wait = {}\nhandoff_hard = \"2s\"\nhandoff_at_bound = \"{}\"",
            milliseconds(plan.probe_timeout),
            milliseconds(plan.outcome_wait),
            plan.at_bound
        ))
        .sections("[replication.table.\"public.account\"]\ncounters = [\"balance\"]")
        .start()
        .await
}

/// The ledger's clients, each with a key of its own.
async fn enrol(cluster: &Cluster) -> Vec<(Client, Connection)> {
    let names = ledger::names(&cluster.nodes).await;
    let mut clients = Vec::new();
    let mut homes = BTreeSet::new();
    for number in 1..=CLIENTS {
        let key = format!("branch:{number}");
        let mut client = ledger::client(cluster.proxy_port, number, Some(key), &names);
        client.also = Some(books);
        let (connection, home) = client.enrol().await.expect("a login and a row");
        homes.insert(home.expect("one of the nodes"));
        clients.push((client, connection));
    }
    assert_eq!(homes.len(), cluster.nodes.len(), "every node has keys");
    clients
}

/// Breaks a node, and mends it.
async fn befall(cluster: &Cluster, blow: Blow) {
    let (node, relay) = (&cluster.nodes[blow.node], &cluster.relays[blow.node]);
    let hold = tokio::time::sleep(blow.hold);
    match blow.fault {
        Fault::Kill => {
            node.kill9().await;
            hold.await;
            node.start_again().await;
        }
        Fault::Stop => {
            node.pause().await;
            hold.await;
            node.resume().await;
        }
        Fault::Silence => {
            relay.silence();
            hold.await;
            relay.heal();
        }
        Fault::Cut => {
            relay.cut();
            hold.await;
            relay.heal();
        }
        Fault::Drain => {
            let ran = cluster
                .daemon
                .command("drain")
                .args([&node.name])
                .run(LIMIT);
            // One that is refused, because no other node serves for example, is none.
            if ran.await.status.success() {
                hold.await;
                let ran = cluster
                    .daemon
                    .command("resume")
                    .args([&node.name])
                    .run(LIMIT);
                // What a node that does not answer stays is seen to in the end.
                eprintln!("{}", ran.await.all().trim());
            }
        }
    }
}

/// Waits until all nodes serve; one that stayed drained is resumed.
async fn all_back(cluster: &Cluster) {
    eventually("all nodes serve again", BACK_LIMIT, async || {
        let status = cluster.daemon.status().await?;
        let nodes = status["nodes"].as_array().expect("nodes");
        for node in nodes.iter().filter(|node| node["health"] == "drained") {
            let name = node["name"].as_str().expect("a name");
            cluster
                .daemon
                .command("resume")
                .args([name])
                .run(LIMIT)
                .await;
        }
        match nodes.iter().all(|node| node["health"] == "up") {
            true => Ok(()),
            false => Err(format!("{:#}", status["nodes"])),
        }
    })
    .await;
}

/// Waits until every client has written once more.
async fn all_write(cluster: &Cluster) {
    let before = ledger::found(&cluster.nodes[0]).await.kept;
    eventually("every client writes", LIMIT, async || {
        let now = ledger::found(&cluster.nodes[0]).await.kept;
        let stuck = before
            .iter()
            .filter(|(client, last)| now.get(client) <= Some(last));
        match stuck.map(|(client, _)| *client).collect::<Vec<_>>() {
            stuck if stuck.is_empty() => Ok(()),
            stuck => Err(format!("clients {stuck:?} do not")),
        }
    })
    .await;
}

/// The accounts of which a node has not what the bookings that it has come to.
async fn wrong_balances(node: &Node, found: &Found) -> String {
    let mut wanted: BTreeMap<u32, i64> = (1..=ACCOUNTS).map(|account| (account, 0)).collect();
    for &(client, seq) in &found.writes {
        for (account, amount) in bookings(client, seq) {
            *wanted.entry(account).or_default() += amount;
        }
    }
    let rows = node
        .connect()
        .await
        .query("SELECT id, balance FROM account", &[])
        .await;
    let rows = rows.unwrap_or_else(|error| panic!("{}: {}", node.name, client::describe(&error)));
    let has: BTreeMap<u32, i64> = rows
        .iter()
        .map(|row| (row.get::<_, i32>(0).unsigned_abs(), row.get(1)))
        .collect();
    let mut text = String::new();
    for (account, wanted) in wanted {
        if has.get(&account) != Some(&wanted) {
            let _ = writeln!(
                text,
                "{}: account {account} has {:?}, its bookings come to {wanted}",
                node.name,
                has.get(&account)
            );
        }
    }
    text
}

async fn conflicts(cluster: &Cluster) -> Value {
    let args = ["--json", "--table", TABLE, "--limit", "10000"];
    let ran = cluster
        .daemon
        .command("conflicts")
        .args(args)
        .run(LIMIT)
        .await;
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.all()))
}

fn list(text: &mut String, title: &str, entries: &[Entry]) {
    for entry in entries {
        let _ = writeln!(text, "{title}: {entry:?}");
    }
}

/// What is wrong in the end.
async fn findings(cluster: &Cluster, histories: &[History]) -> (String, Audit) {
    let mut all = Vec::new();
    let mut text = String::new();
    for node in &cluster.nodes {
        let found = ledger::found(node).await;
        text.push_str(&wrong_balances(node, &found).await);
        all.push(found);
    }
    let audit = audit(
        histories,
        &all,
        &losers(&conflicts(cluster).await, ledger::RUN),
    );
    list(&mut text, "acknowledged, and missing", &audit.lost);
    list(&mut text, "refused, and there", &audit.refused_yet_there);
    if audit.nodes_differ {
        list(&mut text, "told nobody", &audit.unknown);
    }
    for (code, count) in refused(histories) {
        if !TOLD.contains(&code.as_str()) {
            let _ = writeln!(text, "{count} writes were refused with {code}");
        }
    }
    for history in histories
        .iter()
        .filter(|history| !history.lost_us.is_empty())
    {
        let (client, lost) = (history.client, &history.lost_us);
        let _ = writeln!(text, "client {client} lost its connection: {lost:?}");
    }
    (text, audit)
}

fn refused(histories: &[History]) -> BTreeMap<String, u64> {
    let mut codes = BTreeMap::new();
    for write in histories.iter().flat_map(|history| &history.writes) {
        if let Outcome::Refused { code } = &write.outcome {
            *codes.entry(code.clone()).or_default() += 1;
        }
    }
    codes
}

async fn nothing_is_lost(plan: &Plan) {
    let begun = Instant::now();
    let cluster = start(plan).await;
    wal::begin(&cluster.nodes).await;
    let from_us = now_us();
    let writing = Ledger::start(enrol(&cluster).await, EVERY);
    all_write(&cluster).await;
    for step in &plan.steps {
        let beside = async {
            if let Some(blow) = step.beside {
                tokio::time::sleep(blow.pause).await;
                befall(&cluster, blow).await;
            }
        };
        tokio::join!(befall(&cluster, step.blow), beside);
        tokio::time::sleep(step.blow.pause).await;
    }
    all_back(&cluster).await;
    all_write(&cluster).await;
    let histories = writing.finish().await.expect("the clients end");
    let to_us = now_us();
    cluster.converge(BACK_LIMIT).await;

    let (text, audit) = findings(&cluster, &histories).await;
    let span = Span { from_us, to_us };
    let gap_us = histories.iter().map(|history| history.gap_us(span)).max();
    let writes = histories.iter().flat_map(|history| &history.writes);
    let acknowledged = writes.filter(|write| matches!(write.outcome, Outcome::Acknowledged { .. }));
    eprintln!(
        "{} writes acknowledged, refused {:?}, {} told nobody, {} lost in conflicts; the longest gap of a client took {} ms; {} s in all",
        acknowledged.count(),
        refused(&histories),
        audit.unknown.len(),
        audit.lost_in_conflicts.len(),
        gap_us.unwrap_or(0) / 1000,
        begun.elapsed().as_secs()
    );
    if !text.is_empty() {
        wal::keep(&cluster).await;
    }
    assert!(text.is_empty(), "{text}");
    cluster.assert_equal().await;
}

#[test]
fn whatever_befalls_the_nodes_no_acknowledged_write_is_lost_and_none_is_done_twice() {
    let seeds = Seeds {
        test: (
            "proxy",
            "outages::whatever_befalls_the_nodes_no_acknowledged_write_is_lost_and_none_is_done_twice",
        ),
        at_once: AT_ONCE,
    };
    let runs = number_of("SOAK_RUNS");
    let rounds = ROUNDS[usize::from(runs.is_some())];
    seeds.take(Enough::Count(runs.unwrap_or(1)), async |seed| {
        let plan = Plan::of(seed, rounds);
        eprintln!("seed {seed}: {plan:?}");
        nothing_is_lost(&plan).await;
    });
}
