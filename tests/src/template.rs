//! Owns template data directories: made once per PostgreSQL version, place in the cluster and content, then copied.
//!
//! A copy keeps the template's system identifier, so each place in a cluster has a template of its own. The templates
//! lie in cargo's target directory and are shared by all test processes of a user.

use std::{
    fs::{self, File},
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::fs::FlockOperation;
use tandem::dev::{
    install::Install,
    server::{Server, ServerSpec, StopMode, Sync},
};
use tandem_wire::auth::ScramVerifier;

use crate::{
    client,
    ports::Ports,
    program::Program,
    scratch::{self, Scratch},
};

/// Goes into the templates' names: another recipe makes other templates.
const RECIPE: u32 = 1;

/// Password of role `tandem`.
pub const TANDEM_PASSWORD: &str = "tandem-secret";
/// Role and password of the application.
pub const APP: &str = "app";
/// The database that is kept converged.
pub const DATABASE: &str = "app";

/// Settings of every server of the harness: small, and nothing is forced to disk unless a test asks for it.
#[must_use]
pub fn settings(durable: bool) -> Vec<(String, String)> {
    let on_off = if durable { "on" } else { "off" };
    [
        ("fsync", on_off),
        ("full_page_writes", on_off),
        ("shared_buffers", "48MB"),
        ("jit", "off"),
        ("max_connections", "120"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// The installation of `major`: the system's for what it has, else the pinned build.
///
/// # Panics
/// There is none, and none can be obtained.
#[must_use]
pub fn install(major: u32) -> Install {
    static FOUND: Mutex<Vec<Install>> = Mutex::new(Vec::new());
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(install) = found.iter().find(|install| install.major == major) {
        return install.clone();
    }
    let system = Install::at(Path::new(&format!("/usr/lib/postgresql/{major}/bin")));
    let install = system
        .or_else(|_| Install::obtain(major))
        .unwrap_or_else(|error| panic!("PostgreSQL {major}: {error}"));
    found.push(install.clone());
    install
}

/// Puts a copy of the template for the `place`-th node at `data_dir`: roles `tandem` and `app`, database `app`, and
/// pgbench's tables where a `scale` is given. Its rows have no version: they are older than any write.
///
/// # Panics
/// The template cannot be made or copied.
pub fn copy_to(data_dir: &Path, install: &Install, place: usize, scale: Option<u32>) {
    let uid = rustix::process::geteuid().as_raw();
    let mut cache = crate::process::cache_dir().join(uid.to_string());
    if fs::create_dir_all(&cache).is_err() {
        // The tests were built by somebody else.
        cache = scratch::base_dir()
            .expect("a directory for tests")
            .join(".templates");
        fs::create_dir_all(&cache).expect("the templates' directory can be made");
    }
    let content = scale.map_or_else(String::new, |scale| format!("-pgbench{scale}"));
    let template = cache.join(format!("v{RECIPE}-{}-{place}{content}", install.version));
    if !template.exists() {
        make(&template, install, scale);
    }
    Server::copy_data(&template, data_dir).expect("a template can be copied");
}

/// Makes a template under a file lock; the complete one appears by a rename.
fn make(template: &Path, install: &Install, scale: Option<u32>) {
    let lock_path = template.with_extension("lock");
    let lock = File::create(&lock_path).expect("the template's lock can be made");
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).expect("the template can be locked");
    if template.exists() {
        return;
    }
    let scratch = Scratch::new().expect("a directory");
    let mut ports = Ports::take().expect("ports");
    let made = fill(&scratch, install, ports.port(), scale);
    let incomplete = template.with_extension("incomplete");
    if incomplete.exists() {
        fs::remove_dir_all(&incomplete).expect("a half made template can be removed");
    }
    Server::copy_data(&made, &incomplete).expect("the template can be copied");
    fs::rename(&incomplete, template).expect("the template can be renamed");
}

fn fill(scratch: &Scratch, install: &Install, port: u16, scale: Option<u32>) -> PathBuf {
    let data_dir = scratch.path().join("template");
    let mut spec = ServerSpec::new(install.clone(), &data_dir, port).expect("a server's user");
    spec.settings = settings(false);
    spec.settings
        .push(("track_commit_timestamp".to_owned(), "off".to_owned()));
    Server::init_data(&spec, Sync::No).expect("initdb");
    let mut server = Server::start(&spec).expect("the template's server starts");
    let statements = [
        format!(
            "CREATE ROLE tandem SUPERUSER REPLICATION LOGIN PASSWORD '{}'",
            verifier(TANDEM_PASSWORD)
        ),
        format!("CREATE ROLE {APP} LOGIN PASSWORD '{}'", verifier(APP)),
        format!("CREATE DATABASE {DATABASE} OWNER {APP}"),
    ];
    // In a thread of its own: the caller may be inside a runtime, which must not be blocked on another one.
    let filled = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let client = client::connect(port, "postgres", None, "postgres")
                .await
                .expect("the template's server answers");
            for statement in statements {
                client
                    .batch_execute(&statement)
                    .await
                    .expect("the template is filled");
            }
        });
    });
    filled.join().expect("the template is filled");
    if let Some(scale) = scale {
        let pgbench =
            Program::pgbench(install)
                .port(port)
                .args(["-i", "-q", "-s", &scale.to_string()]);
        pgbench
            .run_blocking(Duration::from_secs(120))
            .expect_success();
    }
    server
        .stop(StopMode::Fast, Duration::from_secs(60))
        .expect("the template's server stops");
    fs::remove_file(&spec.log).expect("the log can be removed");
    data_dir
}

/// The same text on all nodes, as the proxy's pass-through wants it: so the salt is fixed.
fn verifier(password: &str) -> String {
    let iterations = NonZeroU32::new(4096).expect("not zero");
    let verifier = ScramVerifier::derive(
        password.as_bytes(),
        b"tandem-test-salt".to_vec(),
        iterations,
    )
    .to_text();
    String::from_utf8_lossy(verifier.expose()).into_owned()
}
