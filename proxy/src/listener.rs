//! Owns the sockets that clients connect to, and the tasks that accept on them.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tandem_wire::{Stream, stream::tune_tcp};
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    config::Listen,
    pool::current_worker,
    session::{Shared, registry::Stop, serve, stopping},
    workers::Workers,
};

/// Connections the kernel completes before we accept them.
const BACKLOG: i32 = 1024;
/// Pause after the system refused to accept, most often for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that may exist beyond `max_client_connections`: those that are told "too many clients", cancel
/// requests, and those that have not sent a startup packet yet.
const EXTRA_CONNECTIONS: usize = 1024;

/// An address that clients cannot be served on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Binding failed.
    #[error("cannot listen on {address}: {source}{}", hint(.source))]
    Bind {
        /// The address as configured.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// Something that is not a socket is in the way.
    #[error("cannot listen on {}: the file exists and is not a socket; remove it or choose another directory", .0.display())]
    NotASocket(PathBuf),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another process listens there: stop it or choose another address in [proxy] listen"
        }
        io::ErrorKind::PermissionDenied => "; the user that runs Tandem has no right to it",
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        io::ErrorKind::NotFound => "; the directory does not exist",
        _ => "",
    }
}

/// Whether an error means that this process, or the system, has no file descriptor left. Never a node's fault.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    error
        .raw_os_error()
        .map(rustix::io::Errno::from_raw_os_error)
        .is_some_and(|errno| matches!(errno, rustix::io::Errno::MFILE | rustix::io::Errno::NFILE))
}

/// A bound socket.
#[derive(Debug)]
pub(crate) enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket, whose file goes with it.
    Unix(UnixListener, SocketFile),
}

/// Removes a unix socket's file when dropped.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(socket = %self.0.display(), %error, "the socket file was not removed");
        }
    }
}

/// Where a listener can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// TCP; the port is the real one where port 0 was asked for.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ListenAddress::Tcp(address) => address.fmt(f),
            ListenAddress::Unix(path) => path.display().fmt(f),
        }
    }
}

impl Listener {
    /// Binds an address.
    pub(crate) async fn bind(listen: &Listen) -> Result<Listener, ListenError> {
        match listen {
            Listen::Tcp(address) => {
                bind_tcp(*address)
                    .map(Listener::Tcp)
                    .map_err(|source| ListenError::Bind {
                        address: address.to_string(),
                        source,
                    })
            }
            Listen::Unix { dir, port } => bind_unix(dir.join(format!(".s.PGSQL.{port}"))).await,
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().map(ListenAddress::Tcp),
            Listener::Unix(_, file) => Ok(ListenAddress::Unix(file.0.clone())),
        }
    }

    /// Registers it with the reactor of the runtime that this is called on.
    pub(crate) fn rehome(self) -> io::Result<Listener> {
        Ok(match self {
            Listener::Tcp(listener) => Listener::Tcp(TcpListener::from_std(listener.into_std()?)?),
            Listener::Unix(listener, file) => {
                Listener::Unix(UnixListener::from_std(listener.into_std()?)?, file)
            }
        })
    }

    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Tcp(listener) => Ok(Stream::Tcp(listener.accept().await?.0)),
            Listener::Unix(listener, _) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // So that 0.0.0.0 and [::] can both be listened on.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    // Accepted connections take over what is set here (tcp(7) on Linux): no system calls for each.
    tune_tcp(&socket)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

async fn bind_unix(path: PathBuf) -> Result<Listener, ListenError> {
    let failed = |source| ListenError::Bind {
        address: path.display().to_string(),
        source,
    };
    match UnixListener::bind(&path) {
        Ok(listener) => return opened(listener, path),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        Err(error) => return Err(failed(error)),
    }
    if !fs::symlink_metadata(&path)
        .map_err(failed)?
        .file_type()
        .is_socket()
    {
        return Err(ListenError::NotASocket(path));
    }
    if is_listened_on(&path).await {
        return Err(failed(io::ErrorKind::AddrInUse.into()));
    }
    tracing::info!(socket = %path.display(), "replacing the socket file of a process that is gone");
    fs::remove_file(&path).map_err(failed)?;
    let listener = UnixListener::bind(&path).map_err(failed)?;
    opened(listener, path)
}

/// Whether anybody accepts there. In doubt yes.
async fn is_listened_on(path: &Path) -> bool {
    match timeout(Duration::from_secs(1), UnixStream::connect(path)).await {
        Ok(Err(error)) => error.kind() != io::ErrorKind::ConnectionRefused,
        Ok(Ok(_)) | Err(_) => true,
    }
}

fn opened(listener: UnixListener, path: PathBuf) -> Result<Listener, ListenError> {
    let file = SocketFile(path);
    // Everybody may connect, as with PostgreSQL's default unix_socket_permissions; the login decides.
    fs::set_permissions(&file.0, fs::Permissions::from_mode(0o777)).map_err(|source| {
        ListenError::Bind {
            address: file.0.display().to_string(),
            source,
        }
    })?;
    Ok(Listener::Unix(listener, file))
}

/// Accepts until the daemon stops, then waits for the sessions, until `deadline` once it is set. Runs on a worker, so that a
/// session on the same one begins and ends without another thread.
pub(crate) async fn accept_loop(
    listener: Listener,
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    mut stop: watch::Receiver<Stop>,
    deadline: watch::Receiver<Option<Instant>>,
) {
    let mut sessions = JoinSet::new();
    let most = shared.clients.max().saturating_add(EXTRA_CONNECTIONS);
    let mut complained: Option<Instant> = None;
    let mut stopping = pin!(stopping(&mut stop));
    loop {
        tokio::select! {
            biased;
            () = &mut stopping => break,
            Some(ended) = sessions.join_next() => report_panic(ended),
            accepted = listener.accept() => match accepted {
                Ok(stream) if sessions.len() < most => {
                    let shared = Arc::clone(&shared);
                    let home = current_worker();
                    let session = async move { serve(&shared, stream, home).await };
                    if let Some(worker) = workers.next() {
                        sessions.spawn_on(session, worker);
                    }
                }
                Ok(stream) => {
                    drop(stream);
                    if complain(&mut complained) {
                        tracing::warn!(most, "connections are closed at once: too many exist");
                    }
                }
                Err(error) => {
                    // Of one connection (aborted before it was accepted), or of us. Never a node's.
                    if is_out_of_descriptors(&error) && complain(&mut complained) {
                        tracing::error!(%error, "cannot accept clients: raise the limit of open files");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    // Nobody is left hanging in the backlog: the socket closes before the sessions end.
    drop(listener);
    wait_for_sessions(sessions, deadline).await;
}

async fn wait_for_sessions(
    mut sessions: JoinSet<()>,
    mut deadline: watch::Receiver<Option<Instant>>,
) {
    loop {
        let last = *deadline.borrow_and_update();
        let ended = async {
            match last {
                Some(last) => timeout_at(last, sessions.join_next()).await,
                None => Ok(sessions.join_next().await),
            }
        };
        tokio::select! {
            ended = ended => match ended {
                Ok(Some(ended)) => report_panic(ended),
                Ok(None) => return,
                Err(_) => break,
            },
            // The deadline moves when a smart shutdown becomes a fast one.
            Ok(()) = deadline.changed() => {}
        }
    }
    tracing::warn!(
        sessions = sessions.len(),
        "sessions did not end in time and are cut off"
    );
    sessions.abort_all();
    while sessions.join_next().await.is_some() {}
}

/// Whether to say it again: at most once in ten seconds.
fn complain(last: &mut Option<Instant>) -> bool {
    let now = Instant::now();
    let due = last.is_none_or(|last| now.duration_since(last) > Duration::from_secs(10));
    if due {
        *last = Some(now);
    }
    due
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        crate::log::count_panic();
        tracing::error!(%error, "a session ended by a panic: this is a bug in Tandem");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let listen = |address| Listen::Tcp(address);
        let first = Listener::bind(&listen("127.0.0.1:0".parse().expect("valid")))
            .await
            .expect("bound");
        let Ok(ListenAddress::Tcp(address)) = first.address() else {
            panic!("a TCP address")
        };
        let error = Listener::bind(&listen(address))
            .await
            .expect_err("in use")
            .to_string();
        assert!(
            error.contains(&address.to_string()) && error.contains("another process"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn accepted_connections_have_the_socket_options_of_the_listener() {
        let any = Listen::Tcp("127.0.0.1:0".parse().expect("valid"));
        let listener = Listener::bind(&any).await.expect("bound");
        let Ok(ListenAddress::Tcp(address)) = listener.address() else {
            panic!("a TCP address")
        };
        let (client, accepted) =
            tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
        let (_client, accepted) = (client.expect("connected"), accepted.expect("accepted"));
        let tcp = accepted.tcp().expect("TCP");
        assert!(tcp.nodelay().expect("an option"));
        let socket = socket2::SockRef::from(tcp);
        assert!(socket.keepalive().expect("an option"));
        let seconds = Duration::from_secs;
        assert_eq!(socket.tcp_keepalive_time().expect("an option"), seconds(30));
        #[cfg(target_os = "linux")]
        assert_eq!(
            socket.tcp_user_timeout().expect("an option"),
            Some(seconds(60))
        );
    }

    #[tokio::test]
    async fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let listen = Listen::Unix {
            dir: dir.path().to_owned(),
            port: 6432,
        };
        let path = dir.path().join(".s.PGSQL.6432");
        // A listener that died without removing its file.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        assert!(path.exists());
        let listener = Listener::bind(&listen).await.expect("replaced");
        let error = Listener::bind(&listen)
            .await
            .expect_err("somebody listens")
            .to_string();
        assert!(error.contains(".s.PGSQL.6432"), "{error}");
        drop(listener);
        assert!(!path.exists(), "the file goes with the listener");
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_not_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(".s.PGSQL.1");
        fs::write(&path, "precious").expect("written");
        let error = Listener::bind(&Listen::Unix {
            dir: dir.path().to_owned(),
            port: 1,
        })
        .await;
        assert!(
            matches!(error, Err(ListenError::NotASocket(_))),
            "{error:?}"
        );
        assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
    }

    #[tokio::test]
    async fn a_panic_ends_one_session_and_is_counted() {
        let before = crate::log::panics();
        let mut sessions = JoinSet::new();
        sessions.spawn(async { panic!("a bug") });
        sessions.spawn(async {});
        while let Some(ended) = sessions.join_next().await {
            report_panic(ended);
        }
        assert_eq!(crate::log::panics(), before + 1);
    }

    #[test]
    fn only_a_lack_of_descriptors_counts_as_one() {
        let errno = |errno: rustix::io::Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        assert!(is_out_of_descriptors(&errno(rustix::io::Errno::MFILE)));
        assert!(is_out_of_descriptors(&errno(rustix::io::Errno::NFILE)));
        assert!(!is_out_of_descriptors(&errno(
            rustix::io::Errno::CONNREFUSED
        )));
        assert!(!is_out_of_descriptors(&io::ErrorKind::NotFound.into()));
    }
}
