//! Real servers of whatever PostgreSQL the machine has.

use std::net::{TcpListener, TcpStream};

use super::*;

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A new data directory under a directory that the servers' user can enter; removed at the end.
struct Scratch {
    spec: ServerSpec,
    dir: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let install = Install::find_or_obtain().unwrap();
        let mut spec = ServerSpec::new(install, &dir.path().join("data"), free_port()).unwrap();
        spec.settings = vec![
            ("fsync".to_owned(), "off".to_owned()),
            ("shared_buffers".to_owned(), "16MB".to_owned()),
        ];
        Server::init_data(&spec, Sync::No).unwrap();
        Self { spec, dir }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(mut server) = Server::adopt(&self.spec.data_dir, &self.spec.log) {
            let _ = server.kill9();
        }
    }
}

/// A killed postmaster keeps its number, which its lock file names, until its parent has asked for it.
#[test]
fn a_start_waits_until_a_killed_postmaster_is_reaped_by_its_parent() {
    let scratch = Scratch::new();
    let mut parents = Server::start(&scratch.spec).unwrap();
    let mut adopted = Server::adopt(&scratch.spec.data_dir, &scratch.spec.log).unwrap();
    adopted.kill9().unwrap();
    let spec = scratch.spec.clone();
    let starting = thread::spawn(move || Server::start(&spec));
    let deadline = Instant::now() + Duration::from_secs(30);
    let refused = || {
        let log = fs::read_to_string(&scratch.spec.log).unwrap();
        log.contains("\"postmaster.pid\" already exists")
    };
    while !refused() {
        assert!(Instant::now() < deadline, "nothing kept it from starting");
        thread::sleep(POLL);
    }
    assert!(!parents.is_running());
    let mut again = starting.join().unwrap().unwrap();
    assert!(answers(scratch.spec.port));
    again.kill9().unwrap();
}

fn answers(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn the_lock_file_tells_pid_port_and_readiness() {
    let text = "4711\n/data\n1700000000\n6501\n\n127.0.0.1\n  123 456\nready   \n";
    assert_eq!(
        PostmasterPid::parse(text),
        Some(PostmasterPid {
            pid: 4711,
            port: Some(6501),
            ready: true
        })
    );
    let starting = "4711\n/data\n1700000000\n6501\n\n\n";
    assert_eq!(
        PostmasterPid::parse(starting),
        Some(PostmasterPid {
            pid: 4711,
            port: Some(6501),
            ready: false
        })
    );
    assert_eq!(PostmasterPid::parse("-5\n/data\n"), None);
    assert_eq!(PostmasterPid::parse(""), None);
}

#[test]
fn a_server_starts_is_adopted_stands_still_and_stops() {
    let scratch = Scratch::new();
    let mut server = Server::start(&scratch.spec).unwrap();
    assert!(answers(server.port()));
    assert_eq!(server.port(), scratch.spec.port);

    let mut adopted = Server::adopt(&scratch.spec.data_dir, &scratch.spec.log).unwrap();
    adopted.wait_ready(Duration::from_secs(10)).unwrap();
    assert_eq!(
        (adopted.pid(), adopted.port()),
        (server.pid(), server.port())
    );

    server.pause().unwrap();
    assert!(server.postmaster.is_stopped());
    assert!(
        server
            .postmaster
            .children()
            .iter()
            .all(|child| child.is_stopped())
    );
    server.resume().unwrap();
    assert!(!server.postmaster.is_stopped());

    // A paused server is stopped as well as a running one.
    server.pause().unwrap();
    assert_eq!(
        server
            .stop(StopMode::Fast, Duration::from_secs(30))
            .unwrap(),
        StopMode::Fast
    );
    assert!(!server.is_running() && !adopted.is_running());
    assert!(!answers(server.port()));
    assert!(Server::adopt(&scratch.spec.data_dir, &scratch.spec.log).is_none());
}

#[test]
fn a_killed_server_starts_again_and_leaves_no_process() {
    let scratch = Scratch::new();
    let mut server = Server::start(&scratch.spec).unwrap();
    let children = server.postmaster.children();
    assert!(!children.is_empty());
    server.kill9().unwrap();
    assert!(children.iter().all(|child| !child.is_alive()));
    // The lock file of the dead server is still there and must count for nobody.
    assert!(scratch.spec.data_dir.join("postmaster.pid").exists());
    assert!(Server::adopt(&scratch.spec.data_dir, &scratch.spec.log).is_none());
    let mut server = Server::start(&scratch.spec).unwrap();
    assert!(answers(server.port()));
    server
        .stop(StopMode::Immediate, Duration::from_secs(10))
        .unwrap();
}

#[test]
fn a_start_on_a_taken_port_ends_with_the_servers_own_words() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut scratch = Scratch::new();
    scratch.spec.port = taken.local_addr().unwrap().port();
    let error = Server::start(&scratch.spec).unwrap_err();
    assert!(matches!(error, ServerError::NotStarted { .. }), "{error}");
    assert!(
        error.to_string().contains("Address already in use"),
        "{error}"
    );
}

#[test]
fn a_lock_file_that_names_a_foreign_process_is_not_adopted() {
    let scratch = Scratch::new();
    let lock = format!(
        "{}\n{}\n1\n6501\n\n\n\nready\n",
        std::process::id(),
        scratch.spec.data_dir.display()
    );
    fs::write(scratch.spec.data_dir.join("postmaster.pid"), lock).unwrap();
    assert!(Server::adopt(&scratch.spec.data_dir, &scratch.spec.log).is_none());
}

#[test]
fn a_copy_of_a_stopped_server_runs_beside_the_original() {
    let scratch = Scratch::new();
    let mut copy = scratch.spec.clone();
    copy.data_dir = scratch.dir.path().join("copy");
    copy.port = free_port();
    Server::copy_data(&scratch.spec.data_dir, &copy.data_dir).unwrap();
    let mut original = Server::start(&scratch.spec).unwrap();
    let mut server = Server::start(&copy).unwrap();
    assert_ne!(server.pid(), original.pid());
    assert!(answers(server.port()) && answers(original.port()));
    server.kill9().unwrap();
    assert!(answers(original.port()), "the other server must not notice");
    original.kill9().unwrap();
}
