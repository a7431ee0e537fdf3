//! Owns the sockets that clients connect to, and the tasks that accept on them.
//!
//! With `so_reuseport` two daemons may listen on one address. Of the connections that come then the system gives each
//! daemon a share, and resets what waits in the queue of a socket that is closed. So a daemon that goes first lets no new
//! ones come to its socket, and takes all that have come.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};
use tandem_wire::{Stream, stream::tune_tcp};
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    sync::{Notify, watch},
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
/// How long a socket that gets no new connections is still accepted on: longer than a handshake under way takes.
const LAST_ACCEPTS: Duration = Duration::from_millis(300);

/// Throws away TCP segments that open a connection (SYN without ACK), and nothing else: their sender sends them again after
/// a second, to whoever listens then. The program sees a segment from its TCP header on (`tcp_filter` in Linux).
const NO_NEW_CONNECTIONS: [SockFilter; 5] = {
    /// Of RFC 9293's header: where the flags are, and two of them.
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    // BPF_LD|BPF_B|BPF_ABS, BPF_ALU|BPF_AND|BPF_K, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K of linux/bpf_common.h
    [
        SockFilter::new(0x30, 0, 0, FLAGS),
        SockFilter::new(0x54, 0, 0, SYN | ACK),
        SockFilter::new(0x15, 0, 1, SYN),
        SockFilter::new(0x06, 0, 0, 0),
        SockFilter::new(0x06, 0, 0, u32::MAX),
    ]
};

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

/// Removes a unix socket's file when dropped, unless another daemon has put its own there.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and number of the file.
    identity: Option<(u64, u64)>,
}

/// What tells a file from another one that has its name.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path) != self.identity {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(socket = %self.path.display(), %error, "the socket file was not removed");
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
    /// Binds an address. A shared one may be that of another daemon that shares it.
    pub(crate) async fn bind(listen: &Listen, shared: bool) -> Result<Listener, ListenError> {
        match listen {
            Listen::Tcp(address) => {
                bind_tcp(*address, shared)
                    .map(Listener::Tcp)
                    .map_err(|source| ListenError::Bind {
                        address: address.to_string(),
                        source,
                    })
            }
            Listen::Unix { dir, port } => {
                bind_unix(dir.join(format!(".s.PGSQL.{port}")), shared).await
            }
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().map(ListenAddress::Tcp),
            Listener::Unix(_, file) => Ok(ListenAddress::Unix(file.path.clone())),
        }
    }

    /// Lets no new connections come; those that have come are still there to be accepted.
    fn close_the_door(&self) {
        // A socket file leads to whoever has put it there last.
        if let Listener::Tcp(listener) = self
            && let Err(error) = SockRef::from(listener).attach_filter(&NO_NEW_CONNECTIONS)
        {
            tracing::warn!(%error, "connections that come while the socket closes may be reset");
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

pub(crate) fn bind_tcp(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
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

async fn bind_unix(path: PathBuf, shared: bool) -> Result<Listener, ListenError> {
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
    if !shared && is_listened_on(&path).await {
        return Err(failed(io::ErrorKind::AddrInUse.into()));
    }
    tracing::info!(socket = %path.display(), "replacing the socket file of another process");
    // In one step: there is no moment without a file.
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&beside).map_err(failed)?;
    let Listener::Unix(listener, mut file) = opened(listener, beside)? else {
        return Err(failed(io::ErrorKind::Other.into()));
    };
    fs::rename(&file.path, &path).map_err(failed)?;
    file.path = path;
    Ok(Listener::Unix(listener, file))
}

/// Whether anybody accepts there. In doubt yes.
async fn is_listened_on(path: &Path) -> bool {
    match timeout(Duration::from_secs(1), UnixStream::connect(path)).await {
        Ok(Err(error)) => error.kind() != io::ErrorKind::ConnectionRefused,
        Ok(Ok(_)) | Err(_) => true,
    }
}

fn opened(listener: UnixListener, path: PathBuf) -> Result<Listener, ListenError> {
    let file = SocketFile {
        identity: identity(&path),
        path,
    };
    // Everybody may connect, as with PostgreSQL's default unix_socket_permissions; the login decides.
    fs::set_permissions(&file.path, fs::Permissions::from_mode(0o777)).map_err(|source| {
        ListenError::Bind {
            address: file.path.display().to_string(),
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
    let sessions = Arc::new(Sessions::default());
    let mut complained: Option<Instant> = None;
    let mut stopping = pin!(stopping(&mut stop));
    loop {
        let most = shared.clients.max().saturating_add(EXTRA_CONNECTIONS);
        tokio::select! {
            biased;
            () = &mut stopping => break,
            accepted = listener.accept() => match accepted {
                Ok(stream) if sessions.count() < most => {
                    begin(&sessions, &shared, &workers, stream);
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
    if shared.shares_addresses {
        listener.close_the_door();
        let end = Instant::now() + LAST_ACCEPTS;
        while let Ok(accepted) = timeout_at(end, listener.accept()).await {
            if let Ok(stream) = accepted {
                begin(&sessions, &shared, &workers, stream);
            }
        }
    }
    // Nobody is left hanging in the backlog: the socket closes before the sessions end.
    drop(listener);
    wait_for_sessions(&sessions, deadline).await;
}

/// How many sessions of a listener there are. A list of their tasks would cost each of them more.
#[derive(Debug, Default)]
struct Sessions {
    living: AtomicUsize,
    all_ended: Notify,
}

impl Sessions {
    fn count(&self) -> usize {
        self.living.load(Ordering::Acquire)
    }

    fn enter(self: &Arc<Sessions>) -> Living {
        self.living.fetch_add(1, Ordering::AcqRel);
        Living(Arc::clone(self))
    }

    /// Returns when there is none.
    async fn all_ended(&self) {
        loop {
            let mut ended = pin!(self.all_ended.notified());
            ended.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            ended.await;
        }
    }
}

/// One of them, until it is dropped.
struct Living(Arc<Sessions>);

impl Drop for Living {
    fn drop(&mut self) {
        if thread::panicking() {
            crate::log::count_panic();
            tracing::error!("a session ended by a panic: this is a bug in Tandem");
        }
        if self.0.living.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.all_ended.notify_waiters();
        }
    }
}

/// Begins a session.
fn begin(sessions: &Arc<Sessions>, shared: &Arc<Shared>, workers: &Workers, stream: Stream) {
    let session = serve(Arc::clone(shared), stream, current_worker());
    if let Some(worker) = workers.next() {
        let living = sessions.enter();
        worker.spawn(async move {
            let _living = living;
            session.await;
        });
    }
}

/// Those that do not end in time end with the worker that they run on.
async fn wait_for_sessions(sessions: &Sessions, mut deadline: watch::Receiver<Option<Instant>>) {
    loop {
        let last = *deadline.borrow_and_update();
        let ended = async {
            match last {
                Some(last) => timeout_at(last, sessions.all_ended()).await.is_ok(),
                None => {
                    sessions.all_ended().await;
                    true
                }
            }
        };
        tokio::select! {
            in_time = ended => match in_time {
                true => return,
                false => break,
            },
            // The deadline moves when a smart shutdown becomes a fast one.
            Ok(()) = deadline.changed() => {}
        }
    }
    tracing::warn!(
        sessions = sessions.count(),
        "sessions did not end in time and are cut off"
    );
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let listen = |address| Listen::Tcp(address);
        let first = Listener::bind(&listen("127.0.0.1:0".parse().expect("valid")), false)
            .await
            .expect("bound");
        let Ok(ListenAddress::Tcp(address)) = first.address() else {
            panic!("a TCP address")
        };
        let error = Listener::bind(&listen(address), true)
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
        let listener = Listener::bind(&any, false).await.expect("bound");
        let Ok(ListenAddress::Tcp(address)) = listener.address() else {
            panic!("a TCP address")
        };
        let (client, accepted) =
            tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
        let (_client, accepted) = (client.expect("connected"), accepted.expect("accepted"));
        let tcp = accepted.tcp().expect("TCP");
        assert!(tcp.nodelay().expect("an option"));
        let socket = SockRef::from(tcp);
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
        let listener = Listener::bind(&listen, false).await.expect("replaced");
        let error = Listener::bind(&listen, false)
            .await
            .expect_err("somebody listens")
            .to_string();
        assert!(error.contains(".s.PGSQL.6432"), "{error}");
        let successor = Listener::bind(&listen, true).await.expect("shared");
        drop(listener);
        assert!(is_listened_on(&path).await, "the file is another one's");
        drop(successor);
        assert!(!path.exists(), "the file goes with the listener");
    }

    #[tokio::test]
    async fn a_shared_address_gives_its_new_connections_to_who_stays() {
        let any = Listen::Tcp("127.0.0.1:0".parse().expect("valid"));
        let first = Listener::bind(&any, true).await.expect("bound");
        let Ok(ListenAddress::Tcp(address)) = first.address() else {
            panic!("a TCP address")
        };
        let before = tokio::net::TcpStream::connect(address)
            .await
            .expect("taken");
        first.close_the_door();
        let second = Listener::bind(&Listen::Tcp(address), true)
            .await
            .expect("shared");
        let mut coming = tokio::task::JoinSet::new();
        for _ in 0..16 {
            coming.spawn(tokio::net::TcpStream::connect(address));
        }
        first.accept().await.expect("who had come is there");
        let none = timeout(LAST_ACCEPTS, first.accept()).await;
        assert!(none.is_err(), "nobody else has come");
        drop(first);
        for _ in 0..16 {
            second.accept().await.expect("they come here");
            coming
                .join_next()
                .await
                .expect("one")
                .expect("no panic")
                .expect("connected");
        }
        drop(before);
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_not_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(".s.PGSQL.1");
        fs::write(&path, "precious").expect("written");
        let listen = Listen::Unix {
            dir: dir.path().to_owned(),
            port: 1,
        };
        let error = Listener::bind(&listen, true).await;
        assert!(
            matches!(error, Err(ListenError::NotASocket(_))),
            "{error:?}"
        );
        assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
    }

    #[tokio::test]
    async fn a_panic_ends_one_session_and_is_counted() {
        let before = crate::log::panics();
        let sessions = Arc::new(Sessions::default());
        let (first, second) = (sessions.enter(), sessions.enter());
        tokio::spawn(async move {
            let _living = first;
            panic!("a bug")
        });
        tokio::spawn(async move { drop(second) });
        sessions.all_ended().await;
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
