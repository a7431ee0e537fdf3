mod blocks;
mod discarding;
mod forgetting;
mod handoffs;
mod losing;
mod numbers;
mod policing;
mod replaced;
mod shapes;

use std::{fs, pin::pin, time::Duration};

use futures_util::future::poll_immediate;
use tandem_wire::connection::Parts;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinSet,
};

use super::{
    profile::Profile,
    registry::Cancel,
    route::Hints,
    task::{Begin, Task},
    unit::Routed,
    *,
};
use tandem_replicator::Replicator;

use crate::{
    config::{Config, PoolMode},
    console::Console,
    daemon::replicator_config,
    handoff::Handoffs,
    health::{Before, ProbeSettings},
    limits::Limits,
    node,
    notifications::Notifications,
    placement::Placement,
    pool::{Key, Pool, Server, Turn, release},
    recovery::Recoveries,
};

const READY: &[u8] = b"Z\0\0\0\x05I";
const IN_TRANSACTION: &[u8] = b"Z\0\0\0\x05T";
const QUERY: &[u8] = b"Q\0\0\0\x06a\0";
const TERMINATE: &[u8] = b"X\0\0\0\x04";
const CONFIG: &str = r#"
cluster = "test"
[proxy]
listen = ["127.0.0.1:0"]
[admin]
listen = "127.0.0.1:1"
[replication]
database = "app"
[[node]]
name = "n1"
id = 1
host = "127.0.0.1"
port = 1
user = "tandem"
"#;

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend(i32::try_from(body.len() + 4).expect("small").to_be_bytes());
    bytes.extend(body);
    bytes
}

fn query(text: &[u8]) -> Vec<u8> {
    frame(b'Q', &[text, b"\0"].concat())
}

/// A daemon's shared things, without a daemon and without a node.
fn shared() -> (Shared, JoinSet<()>) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("tandem.toml");
    fs::write(&path, CONFIG).expect("written");
    let config = Config::load(&path).expect("valid");
    let nodes = node::nodes(&config.nodes).expect("no certificates");
    let mut probes = JoinSet::new();
    let settings = ProbeSettings {
        interval: Duration::from_secs(3600),
        timeout: Bound::new(Duration::from_secs(1)),
        restart_wait: Duration::ZERO,
        database: "app".into(),
        slot: None,
    };
    let bound = Bound::new(Duration::from_secs(1));
    let health = HealthBoard::start(&nodes, &settings, &Before::default(), &mut probes);
    let placement = Placement::read(dir.path()).expect("there is none");
    let (same_nodes, same_health) = (Arc::clone(&nodes), Arc::clone(&health));
    let gate =
        Gate::new(&config.auth, same_nodes, same_health, "app", bound.clone()).expect("no file");
    let registry = Arc::new(Registry::default());
    let workers = vec![tokio::runtime::Handle::current()];
    let (_stop, stop_seen) = watch::channel(Stop::No);
    let mut nowhere = replicator_config(&config, &nodes);
    nowhere.nodes.clear();
    let replicator = Arc::new(Replicator::start(nowhere, Vec::new()));
    let (ask_shutdown, _) = watch::channel(None);
    let shared = Shared {
        canceller: Canceller::new(Arc::clone(&registry), Arc::clone(&nodes), bound.clone()),
        clients: Clients::new(10),
        limits: Limits::new(config.limits.clone()),
        control: Arc::new(Control::new(
            Arc::clone(&nodes),
            "app".to_owned(),
            bound.clone(),
        )),
        notifications: Notifications::new(Arc::clone(&nodes), Arc::clone(&health), bound.clone()),
        console: Console::new(Arc::clone(&replicator), &config.admin, ask_shutdown),
        router: Router::new(config.replication.database.clone()),
        acknowledged: Arc::new(Acknowledged::new(nodes.len())),
        replicator,
        stop: stop_seen,
        pools: Arc::new(Pools::new(
            &config.proxy.pool,
            bound.clone(),
            Arc::clone(&nodes),
            Arc::clone(&health),
            workers,
        )),
        nodes,
        health,
        handoffs: Handoffs::new(placement, 1).0,
        recoveries: Recoveries::read(dir.path(), [1]),
        gate,
        registry,
        losses: Losses::default(),
        connect_timeout: bound,
        slow_statement: Bound::new(Duration::ZERO),
        files: Files::default(),
        shares_addresses: false,
        settings: ArcSwap::from_pointee(Settings::of(config, None)),
    };
    (shared, probes)
}

/// A server of this pool, and its far end.
fn seat(pool: &Arc<Pool>) -> (UnixStream, Box<Server>) {
    let (server, near) = UnixStream::pair().expect("a pair");
    let parts = Parts {
        stream: Stream::Unix(near),
        rx: BytesMut::new(),
        parameters: Vec::new(),
        backend_pid: 1,
        cancel_secret: vec![0; 4],
    };
    let seated = pool.seat(parts, Duration::ZERO);
    (server, seated)
}

/// One session with the far ends of both its connections in hand.
struct Bench {
    client: UnixStream,
    server: UnixStream,
    task: Task,
    pool: Arc<Pool>,
    shared: Shared,
    _probes: JoinSet<()>,
}

impl Bench {
    fn new(mode: PoolMode) -> Bench {
        let (shared, probes) = shared();
        let key = Key {
            node: 0,
            database: "app".into(),
            user: "app".into(),
            params: Arc::new([]),
        };
        let pool = shared.pools.get(key, &tandem_wire::Credentials::None);
        let (client, near_client) = UnixStream::pair().expect("a pair");
        let (server, seated) = seat(&pool);
        let kept = if mode == PoolMode::Session {
            Some(seated)
        } else {
            release(seated);
            None
        };
        let node = shared.nodes.first().expect("one");
        let task = Task::new(Begin {
            client: Stream::Unix(near_client),
            from_client: BytesMut::new(),
            server: kept,
            profile: Profile::new(&[], &[]),
            about: Arc::new(About {
                peer: "a test".into(),
                who: Arc::new(Who {
                    user: "app".into(),
                    database: "app".into(),
                    hints: Hints::default(),
                }),
                tls: false,
                since: Instant::now(),
            }),
            pool: Arc::clone(&pool),
            counted: node.count_session(),
            registered: shared.registry.enter(4).expect("entered"),
            session: 1,
            mode,
            routed: None,
            slow_statement: shared.slow_statement.clone(),
        });
        Bench {
            client,
            server,
            task,
            pool,
            shared,
            _probes: probes,
        }
    }

    /// One of which each unit of work goes to a node of its own.
    fn routed() -> Bench {
        let mut bench = Bench::new(PoolMode::Transaction);
        bench.task.routed = Some(Box::new(Routed::new(0, None)));
        bench
    }

    /// The pool's server goes, and another one is there.
    fn another_server(&mut self) {
        let (server, seated) = seat(&self.pool);
        self.server = server;
        release(seated);
    }

    /// The pool's server has had a client before.
    fn has_served(&mut self) {
        let Turn::Now(server) = self.pool.ask() else {
            panic!("no server is idle");
        };
        server
            .face
            .counters
            .transactions
            .store(1, Ordering::Relaxed);
        release(server);
    }

    /// Lets the session do what it can; its end, if that has come.
    async fn run(&mut self) -> Option<End> {
        // The sockets tell of new bytes by way of the reactor.
        for _ in 0..20 {
            let end = poll_immediate(pin!(self.task.run(&self.shared))).await;
            if end.is_some() {
                return end;
            }
            tokio::task::yield_now().await;
        }
        None
    }

    async fn pass_up(&mut self, bytes: &[u8]) {
        self.client.write_all(bytes).await.expect("sent");
        assert!(self.run().await.is_none());
        let mut got = vec![0; bytes.len()];
        self.server.read_exact(&mut got).await.expect("it arrives");
        assert!(got == bytes, "{}", got.escape_ascii());
    }

    async fn pass_down(&mut self, bytes: &[u8]) {
        self.server.write_all(bytes).await.expect("sent");
        assert!(self.run().await.is_none());
        let mut got = vec![0; bytes.len()];
        self.client.read_exact(&mut got).await.expect("it arrives");
        assert!(got == bytes, "{}", got.escape_ascii());
    }

    async fn client_sends(&mut self, bytes: &[u8]) {
        self.client.write_all(bytes).await.expect("sent");
        assert!(self.run().await.is_none());
    }

    async fn server_answers(&mut self, bytes: &[u8]) {
        self.server.write_all(bytes).await.expect("sent");
        assert!(self.run().await.is_none());
    }

    fn assert_server_got(&self, expected: &[u8]) {
        let mut got = vec![0; 1 << 16];
        let count = self.server.try_read(&mut got).unwrap_or(0);
        got.truncate(count);
        assert!(got == expected, "{}", got.escape_ascii());
    }

    fn assert_heard(&self, expected: &[u8]) {
        let heard = self.heard();
        assert!(heard == expected, "{}", heard.escape_ascii());
    }

    fn idle(&self) -> usize {
        self.shared.pools.figures().pools[0].servers_idle
    }

    /// What the client has got and not read yet.
    fn heard(&self) -> Vec<u8> {
        let mut heard = vec![0; 1 << 20];
        let count = self.client.try_read(&mut heard).unwrap_or(0);
        heard.truncate(count);
        heard
    }
}

#[test]
fn places_are_limited_and_come_back() {
    let clients = Clients::new(2);
    let (first, second) = (clients.take(), clients.take());
    assert!(first.is_some() && second.is_some() && clients.take().is_none());
    assert_eq!((clients.current(), clients.max()), (2, 2));
    drop(first);
    assert!(clients.take().is_some());
}

#[test]
fn the_state_of_an_idle_session_stays_small() {
    let task = size_of::<Task>();
    assert!(task <= 648, "{task} bytes");
}

#[tokio::test]
async fn a_server_goes_back_to_its_pool_only_when_the_transaction_is_over() {
    let mut bench = Bench::new(PoolMode::Transaction);
    bench.pass_up(QUERY).await;
    bench
        .pass_down(&[&frame(b'C', b"BEGIN\0"), IN_TRANSACTION].concat())
        .await;
    let active = |bench: &Bench| bench.shared.pools.figures().pools[0].servers_active;
    assert_eq!(active(&bench), 1);
    bench.pass_up(QUERY).await;
    bench
        .pass_down(&[&frame(b'C', b"COMMIT\0"), READY].concat())
        .await;
    assert_eq!(active(&bench), 0);
    assert_eq!(bench.shared.pools.figures().pools[0].servers_idle, 1);
    assert!(Arc::ptr_eq(&bench.pool, &bench.task.pool));
    bench.client.write_all(TERMINATE).await.expect("sent");
    assert!(matches!(bench.run().await, Some(End::Client)));
}

#[tokio::test]
async fn a_server_that_dies_inside_a_small_message_leaves_the_client_at_a_boundary() {
    let mut bench = Bench::new(PoolMode::Session);
    bench.pass_up(QUERY).await;
    let row = frame(b'D', &[1; 300]);
    bench.server.write_all(&row[..200]).await.expect("sent");
    assert!(bench.run().await.is_none());
    bench.server.shutdown().await.expect("closed");
    assert!(matches!(bench.run().await, Some(End::ServerLost(None))));
    assert_eq!(bench.task.boundary(), Boundary::Clean);
    assert!(bench.heard().is_empty());
}

#[tokio::test]
async fn a_large_message_is_streamed_and_when_it_is_cut_nothing_may_follow_it() {
    let mut bench = Bench::new(PoolMode::Session);
    bench.pass_up(QUERY).await;
    let row = frame(b'D', &[1; 200_000]);
    bench.server.write_all(&row[..100_000]).await.expect("sent");
    assert!(bench.run().await.is_none());
    assert_eq!(bench.heard().len(), 100_000);
    bench.server.shutdown().await.expect("closed");
    assert!(matches!(bench.run().await, Some(End::ServerLost(None))));
    assert_eq!(bench.task.boundary(), Boundary::Cut);
}

#[tokio::test]
async fn a_message_that_nobody_is_owed_ends_the_session_and_does_not_reach_the_client() {
    for stray in [&frame(b'D', &[0; 9])[..], READY, &frame(b'1', b"")] {
        let mut bench = Bench::new(PoolMode::Session);
        bench.pass_up(QUERY).await;
        bench
            .pass_down(&[&frame(b'C', b"SELECT 1\0"), READY].concat())
            .await;
        bench.server.write_all(stray).await.expect("sent");
        assert!(matches!(bench.run().await, Some(End::ServerMismatch(_))));
        assert!(bench.heard().is_empty());
    }
}

#[tokio::test]
async fn an_idle_session_keeps_no_memory_for_messages() {
    let mut bench = Bench::new(PoolMode::Transaction);
    let query = frame(b'Q', &[&[b'x'; 50_000][..], b"\0"].concat());
    bench.pass_up(&query).await;
    bench
        .pass_down(
            &[
                &frame(b'D', &[2; 60_000])[..],
                &frame(b'C', b"SELECT 1\0"),
                READY,
            ]
            .concat(),
        )
        .await;
    assert_eq!(bench.task.held_capacity(), 0);
}

#[tokio::test]
async fn what_is_left_of_a_failed_copy_needs_no_server() {
    let mut bench = Bench::new(PoolMode::Transaction);
    let left = [
        &frame(b'd', b"1\n")[..],
        &frame(b'c', b""),
        &frame(b'S', b""),
    ]
    .concat();
    bench.client.write_all(&left).await.expect("sent");
    assert!(bench.run().await.is_none());
    assert_eq!(bench.heard(), READY);
    assert_eq!(bench.shared.pools.figures().pools[0].servers_idle, 1);
}

#[tokio::test]
async fn a_cancel_meets_a_statement_that_nobody_has_read_yet() {
    let mut bench = Bench::new(PoolMode::Transaction);
    assert!(bench.run().await.is_none());
    let entry = Arc::clone(bench.task.registered.entry());
    bench.client.write_all(QUERY).await.expect("sent");
    let cancels = async {
        entry.catch_up(Duration::from_secs(60)).await;
        entry.cancel()
    };
    let runs = async {
        // The session gets its turn before the system has told it of the bytes.
        let early = poll_immediate(pin!(bench.task.run(&bench.shared))).await;
        assert!(early.is_none());
        tokio::task::yield_now().await;
        assert!(bench.run().await.is_none());
    };
    let (cancel, ()) = tokio::join!(cancels, runs);
    assert!(matches!(cancel, Cancel::Forward(_)), "{cancel:?}");
}
