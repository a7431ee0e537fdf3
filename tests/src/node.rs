//! Owns one PostgreSQL server of a test cluster: its life, its faults, connections to it.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tandem::dev::{
    install::Install,
    server::{Server, ServerError, ServerSpec, StopMode},
};
use tokio::task::spawn_blocking;
use tokio_postgres::Client;

use crate::{
    client,
    clock::{Clock, ClockLibrary},
    template::{self, APP, DATABASE},
};

/// One server. Node i of a cluster (counted from 0) is named `n{i+1}` and has id i+1.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u16,
    spec: ServerSpec,
    clock: Option<Clock>,
    server: Arc<Mutex<Option<Server>>>,
}

impl Node {
    /// Makes the data directory of the `place`-th node below `dir` and starts its server with these settings and, where
    /// one is given, a clock of its own. Blocks.
    ///
    /// # Panics
    /// The server does not start.
    #[must_use]
    pub fn start(
        dir: &Path,
        place: usize,
        install: Install,
        port: u16,
        settings: Vec<(String, String)>,
        scale: Option<u32>,
        clock: Option<ClockLibrary>,
    ) -> Self {
        let id = u16::try_from(place + 1).expect("a small cluster");
        let name = format!("n{id}");
        let data_dir = dir.join(&name);
        template::copy_to(&data_dir, &install, place, scale);
        let mut spec = ServerSpec::new(install, &data_dir, port).expect("a server's user");
        spec.settings = settings;
        let clock = clock.map(|library| Clock::new(library, dir.join(format!("{name}.clock"))));
        spec.environment = clock.as_ref().map(Clock::environment).unwrap_or_default();
        let server = Server::start(&spec).unwrap_or_else(|error| panic!("{name}: {error}"));
        Self {
            name,
            id,
            spec,
            clock,
            server: Arc::new(Mutex::new(Some(server))),
        }
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.spec.port
    }

    /// From now on its clock is so many milliseconds ahead of the real one, or behind it; over restarts too.
    ///
    /// # Panics
    /// The cluster was built without [`clocks`](crate::ClusterBuilder::clocks).
    pub fn set_clock_offset_ms(&self, offset_ms: i64) {
        let clock = self.clock.as_ref().expect("a clock of its own");
        clock.set_offset_ms(offset_ms);
    }

    /// Its programs.
    #[must_use]
    pub fn install(&self) -> &Install {
        &self.spec.install
    }

    /// A session of superuser `postgres`. Its DDL stays on this node.
    ///
    /// # Panics
    /// The server does not answer.
    pub async fn connect(&self) -> Client {
        let mut config = client::config(self.port(), "postgres", None, DATABASE);
        config.options("-c tandem.ddl=off");
        let connected = client::connect_with(&config).await;
        connected.unwrap_or_else(|error| panic!("{}: {}", self.name, client::describe(&error)))
    }

    /// A session of role `app`. Its DDL goes to the other nodes.
    ///
    /// # Panics
    /// The server does not answer.
    pub async fn app(&self) -> Client {
        let connected = client::connect(self.port(), APP, Some(APP), DATABASE).await;
        connected.unwrap_or_else(|error| panic!("{}: {}", self.name, client::describe(&error)))
    }

    /// Runs statements as superuser, in a session of their own.
    ///
    /// # Panics
    /// The server refuses one.
    pub async fn execute(&self, sql: &str) {
        client::execute(&self.connect().await, sql).await;
    }

    /// The first value of a query, in a session of its own.
    ///
    /// # Panics
    /// The server refuses it.
    pub async fn value(&self, sql: &str) -> String {
        client::value(&self.connect().await, sql).await
    }

    /// Kills the postmaster and all its children, as a power cut would.
    pub async fn kill9(&self) {
        self.with_server(|server| server.kill9()).await;
        self.lock().take();
    }

    /// Ends it at once; the next start recovers from the WAL.
    pub async fn stop_immediately(&self) {
        self.stop(StopMode::Immediate).await;
    }

    /// Ends sessions and writes a checkpoint, as an administrator's restart does.
    pub async fn stop_fast(&self) {
        self.stop(StopMode::Fast).await;
    }

    async fn stop(&self, mode: StopMode) {
        self.with_server(move |server| server.stop(mode, Duration::from_secs(30)).map(drop))
            .await;
        self.lock().take();
    }

    /// Makes every process of it stand still (SIGSTOP).
    pub async fn pause(&self) {
        self.with_server(|server| server.pause()).await;
    }

    /// Lets a paused one go on.
    pub async fn resume(&self) {
        self.with_server(|server| server.resume()).await;
    }

    /// Starts it again after a stop or kill, on the same port.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start_again(&self) {
        let spec = self.spec.clone();
        let started = spawn_blocking(move || Server::start(&spec))
            .await
            .expect("not cancelled");
        *self.lock() = Some(started.unwrap_or_else(|error| panic!("{}: {error}", self.name)));
    }

    async fn with_server(
        &self,
        work: impl FnOnce(&mut Server) -> Result<(), ServerError> + Send + 'static,
    ) {
        let server = Arc::clone(&self.server);
        let done = spawn_blocking(move || {
            let mut guard = server.lock().unwrap_or_else(PoisonError::into_inner);
            work(guard.as_mut().expect("the server was started"))
        });
        done.await
            .expect("not cancelled")
            .unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    fn lock(&self) -> MutexGuard<'_, Option<Server>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read(&self.spec.log).unwrap_or_default();
        tail(&String::from_utf8_lossy(&text), lines)
    }
}

/// The last lines of a text.
#[must_use]
pub fn tail(text: &str, lines: usize) -> String {
    let skipped = text.lines().count().saturating_sub(lines);
    text.lines()
        .skip(skipped)
        .map(|line| format!("    {line}\n"))
        .collect()
}
