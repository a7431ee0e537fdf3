//! Owns the processes that stand beside Tandem: PgBouncer and HAProxy, where they are installed.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tandem_tests::template::{APP, DATABASE};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// How long one may take to end when it is asked to.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A running peer; killed when dropped.
#[derive(Debug)]
pub(crate) struct Peer {
    child: Child,
}

impl Peer {
    /// Runs it.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        // With what it starts, which is ended with it.
        let child = command.process_group(0).spawn()?;
        Ok(Self { child })
    }

    fn group(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.pid()?).ok()?)
    }

    /// Asks it to end with all that it has started (SIGINT), and waits until it has.
    ///
    /// # Errors
    /// It does not end.
    pub(crate) async fn end(mut self) -> io::Result<()> {
        if let Some(pid) = self.group() {
            kill_process(pid, Signal::INT)?;
        }
        let ended = timeout(END_LIMIT, self.child.wait()).await;
        ended
            .map_err(|_| io::Error::other("a peer does not end"))?
            .map(drop)
    }

    /// Its process.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(group) = self.group() {
            // It may have ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// The PgBouncer programs to measure: Debian's, and the one that `PGBOUNCER_CURRENT` names.
pub(super) fn pgbouncers() -> Vec<(&'static str, PathBuf)> {
    let current = std::env::var_os("PGBOUNCER_CURRENT").map(PathBuf::from);
    let named = [
        ("pgbouncer 1.18", Some(PathBuf::from("/usr/sbin/pgbouncer"))),
        ("pgbouncer 1.25", current),
    ];
    named
        .into_iter()
        .filter_map(|(name, path)| match path.filter(|path| path.exists()) {
            Some(path) => Some((name, path)),
            None => {
                eprintln!("SKIP: {name} is not there");
                None
            }
        })
        .collect()
}

/// Starts PgBouncer in transaction mode on a pool of 20, as a user that it accepts to run as. `verifier`: the
/// server's for the application's role, so that it logs in with what its clients prove, as Tandem does.
/// `certificate` is `dir`/server.crt with server.key.
///
/// # Errors
/// It cannot be started.
pub(super) fn start_pgbouncer(
    program: &Path,
    dir: &Path,
    port: u16,
    node: u16,
    verifier: &str,
) -> io::Result<Peer> {
    let own = dir.join(format!("pgbouncer-{port}"));
    fs::create_dir(&own)?;
    let path = |name: &str| own.join(name).display().to_string();
    fs::write(own.join("users"), format!("\"{APP}\" \"{verifier}\"\n"))?;
    for name in ["server.crt", "server.key"] {
        fs::copy(dir.join(name), own.join(name))?;
        // The user that it runs as is not ours.
        fs::set_permissions(own.join(name), fs::Permissions::from_mode(0o644))?;
    }
    // Clients with prepared statements need the fourth line; 1.18 does not know it.
    let version = std::process::Command::new(program)
        .arg("--version")
        .output()?;
    let old = String::from_utf8_lossy(&version.stdout).contains("1.18");
    let prepared = if old {
        ""
    } else {
        "max_prepared_statements = 200\n"
    };
    let text = format!(
        "[databases]\n{DATABASE} = host=127.0.0.1 port={node}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         listen_backlog = 1024\npool_mode = transaction\ndefault_pool_size = 20\nmax_client_conn = 15000\n{prepared}\
         auth_type = scram-sha-256\nauth_file = {}\nunix_socket_dir =\nlog_connections = 0\nlog_disconnections = 0\n\
         client_tls_sslmode = allow\nclient_tls_cert_file = {}\nclient_tls_key_file = {}\nlogfile = \n",
        path("users"),
        path("server.crt"),
        path("server.key"),
    );
    let config = own.join("pgbouncer.ini");
    fs::write(&config, text)?;
    let mut command = Command::new(program);
    command.args(["-q", "-u", "nobody"]).arg(&config);
    Peer::start(&mut command)
}

/// Starts HAProxy, where it is installed, as a TCP proxy with one thread.
///
/// # Errors
/// It cannot be started.
pub(super) fn start_haproxy(dir: &Path, port: u16, node: u16) -> io::Result<Option<Peer>> {
    let program = Path::new("/usr/sbin/haproxy");
    if !program.exists() {
        eprintln!("SKIP: haproxy is not there");
        return Ok(None);
    }
    let config = dir.join("haproxy.cfg");
    fs::write(
        &config,
        format!(
            "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  \
             timeout server 1h\nlisten postgres\n  bind 127.0.0.1:{port}\n  server node 127.0.0.1:{node}\n"
        ),
    )?;
    let mut command = Command::new(program);
    Peer::start(command.args(["-q", "-db", "-f"]).arg(&config)).map(Some)
}
