//! Owns a cluster that `tandem dev` starts and ends, as a user has it.

use std::{
    fs,
    net::TcpStream,
    path::PathBuf,
    process::ExitStatus,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tandem::dev::process::ProcessId;
use tokio::process::Child;

use crate::{
    Program, client, daemon, eventually,
    ports::Ports,
    program::Ran,
    scratch::Scratch,
    template::{APP, DATABASE},
};

/// From the start to the `ready` line.
const READY: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(60);

/// A directory, ports, and what runs there.
#[derive(Debug)]
pub struct Dev {
    /// Where all of it is.
    pub scratch: Scratch,
    /// The proxy's, the admin port, the first node's.
    pub ports: [u16; 3],
    /// How many nodes the next start asks for.
    pub nodes: u16,
    starts: u32,
    _ports: Ports,
}

/// One running `tandem dev`.
#[derive(Debug)]
pub struct Running {
    /// Its process; killed when dropped.
    pub child: Child,
    /// What it says.
    pub log: PathBuf,
}

impl Dev {
    /// Nothing runs yet.
    ///
    /// # Panics
    /// There are no ports, or no directory can be made.
    #[must_use]
    pub fn new(nodes: u16) -> Self {
        let mut ports = Ports::take().expect("ports");
        // With relays the servers have ports of their own.
        let taken = [ports.port(), ports.port(), ports.consecutive(2 * nodes)];
        Self {
            scratch: Scratch::new().expect("a directory"),
            ports: taken,
            nodes,
            starts: 0,
            _ports: ports,
        }
    }

    /// The directory that is given to `tandem dev`.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.scratch.path().join("cluster")
    }

    /// `tandem dev` on this directory and these ports.
    #[must_use]
    pub fn program(&self) -> Program {
        let [port, admin, base] = self.ports.map(|port| port.to_string());
        let nodes = self.nodes.to_string();
        // Small, so that several such tests fit on one machine.
        Program::new(daemon::program())
            .args(["dev", "--dir"])
            .args([self.dir()])
            .args([
                "--port",
                &port,
                "--admin-port",
                &admin,
                "--base-port",
                &base,
                "--nodes",
                &nodes,
            ])
    }

    /// Starts it and waits for the line that begins with `ready`.
    ///
    /// # Panics
    /// It ends, or does not come.
    pub async fn ready(&mut self, more: &[&str]) -> Running {
        self.starts += 1;
        let log = self.scratch.path().join(format!("dev{}.log", self.starts));
        let begin = Instant::now();
        let mut child = self.program().args(more).spawn_to(&log);
        eventually("the cluster is ready", READY, async || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            if let Ok(Some(status)) = child.try_wait() {
                panic!("it ended with {status}:\n{text}");
            }
            if text.lines().any(|line| line.starts_with("ready")) {
                Ok(())
            } else {
                Err(text)
            }
        })
        .await;
        eprintln!("ready after {:?}", begin.elapsed());
        Running { child, log }
    }

    /// Runs it to its end, which is a failure.
    ///
    /// # Panics
    /// It succeeds, or does not end.
    pub async fn refused(&self, more: &[&str]) -> Ran {
        self.program().args(more).run(LIMIT).await.expect_failure()
    }

    /// Where the nodes are reached.
    #[must_use]
    pub fn node_ports(&self) -> Vec<u16> {
        (self.ports[2]..self.ports[2] + self.nodes).collect()
    }

    /// The first value of a query at this port, as role `app`.
    ///
    /// # Panics
    /// Nobody answers there, or refuses.
    pub async fn value(&self, port: u16, sql: &str) -> String {
        let client = client::connect(port, APP, Some(APP), DATABASE)
            .await
            .unwrap_or_else(|error| panic!("{}", client::describe(&error)));
        client::value(&client, sql).await
    }

    /// The first value of a query on each node, as role `app`.
    ///
    /// # Panics
    /// A node does not answer, or refuses.
    pub async fn values(&self, sql: &str) -> Vec<String> {
        let mut values = Vec::new();
        for port in self.node_ports() {
            values.push(self.value(port, sql).await);
        }
        values
    }

    /// Runs statements through the proxy, as role `app`.
    ///
    /// # Panics
    /// They are refused.
    pub async fn execute(&self, sql: &str) {
        let client = client::connect(self.ports[0], APP, Some(APP), DATABASE)
            .await
            .expect("a login");
        client::execute(&client, sql).await;
    }

    /// Waits until everything is everywhere.
    ///
    /// # Panics
    /// It is not in time.
    pub async fn converge(&self) {
        let config = self.dir().join("tandem.toml");
        let wait = Program::new(daemon::program())
            .args(["wait-converged", "--timeout", "60s", "--config"])
            .args([config]);
        wait.run(LIMIT + Duration::from_secs(20))
            .await
            .expect_success();
    }

    /// No server answers any more.
    ///
    /// # Panics
    /// One does.
    pub fn assert_stopped(&self) {
        for port in self.node_ports().into_iter().chain(self.ports) {
            assert!(
                TcpStream::connect(("127.0.0.1", port)).is_err(),
                "something still listens on {port}"
            );
        }
    }

    /// The postmasters' numbers as their lock files have them.
    ///
    /// # Panics
    /// There is no data directory.
    #[must_use]
    pub fn postmasters(&self) -> Vec<i32> {
        let entries = fs::read_dir(self.dir().join("nodes"))
            .expect("data directories")
            .flatten();
        let text = entries
            .filter_map(|entry| fs::read_to_string(entry.path().join("postmaster.pid")).ok());
        let mut pids: Vec<i32> = text
            .filter_map(|text| text.lines().next()?.parse().ok())
            .collect();
        pids.sort_unstable();
        pids
    }
}

impl Running {
    /// Sends it a signal.
    ///
    /// # Panics
    /// It does not run.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().expect("it runs")).expect("a pid");
        ProcessId::of(pid)
            .expect("it runs")
            .signal(signal)
            .expect("a signal");
    }

    /// Sends a signal and waits for the end.
    ///
    /// # Panics
    /// It does not end, or badly.
    pub async fn end(mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        let status = tokio::time::timeout(LIMIT, self.child.wait())
            .await
            .expect("it ends")
            .expect("it ends");
        if signal != Signal::KILL {
            assert!(
                status.success(),
                "{status}:\n{}",
                fs::read_to_string(&self.log).unwrap_or_default()
            );
        }
        status
    }
}
