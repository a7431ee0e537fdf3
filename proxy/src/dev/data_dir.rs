//! Owns the making of one server's data directory: initdb, who may log in, settings, copies of a template.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{PermissionsExt, chown, fchown},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    install::Install,
    process::{RunAs, run_bounded, scrub_environment},
    server::{ServerError, ServerSpec},
};

/// initdb takes about a second; a machine under load or a slow disk needs longer.
const INITDB_LIMIT: Duration = Duration::from_secs(180);

/// The settings file of ours that `postgresql.conf` includes; written anew at each start.
const SETTINGS_FILE: &str = "tandem.conf";

/// Superuser `postgres` without a password from this machine only, everybody else with one. The first line that
/// matches decides (PostgreSQL manual, 21.1).
const HBA: &str = "\
# TYPE  DATABASE     USER      ADDRESS       METHOD
host    all          postgres  127.0.0.1/32  trust
host    replication  postgres  127.0.0.1/32  trust
host    all          all       127.0.0.1/32  scram-sha-256
host    replication  all       127.0.0.1/32  scram-sha-256
";

/// Whether initdb forces the new files to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// It does: a crash of the machine loses nothing.
    Yes,
    /// It does not: faster, for tests.
    No,
}

/// Makes a new data directory (which must not exist, or be empty): UTF-8, locale `C.UTF-8` or `C` where that does not
/// exist, superuser `postgres`, the access rules above.
pub(super) fn init(spec: &ServerSpec, sync: Sync) -> Result<(), ServerError> {
    make_dir(&spec.data_dir, spec.run_as.as_ref())?;
    let mut problem = String::new();
    for locale in ["C.UTF-8", "C"] {
        let mut command = Command::new(spec.install.program("initdb"));
        scrub_environment(&mut command);
        command
            .current_dir(&spec.data_dir)
            .arg("-D")
            .arg(&spec.data_dir)
            .args([
                "--username=postgres",
                "--encoding=UTF8",
                &format!("--locale={locale}"),
                "--auth=trust",
                "--no-instructions",
            ]);
        if sync == Sync::No {
            command.arg("--no-sync");
        }
        if let Some(user) = &spec.run_as {
            user.apply(&mut command);
        }
        match run_bounded(&mut command, INITDB_LIMIT) {
            Ok(ran) if ran.status.success() => {
                replace_file(spec, "pg_hba.conf", HBA)?;
                return include_settings(spec);
            }
            Ok(ran) => problem = ran.tail,
            Err(error) => problem = error.to_string(),
        }
        // initdb removes what it made when it fails, so a second try finds an empty directory.
        if !problem.contains("locale") {
            break;
        }
    }
    Err(ServerError::Initdb {
        data_dir: spec.data_dir.clone(),
        problem,
    })
}

/// Makes `dir`, mode 0700 and owned by the servers' user, and checks that this user can get there.
fn make_dir(dir: &Path, run_as: Option<&RunAs>) -> Result<(), ServerError> {
    fs::create_dir_all(dir).map_err(ServerError::io("cannot create", dir))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
        .map_err(ServerError::io("cannot set the mode of", dir))?;
    if let Some(user) = run_as {
        chown(dir, Some(user.uid), Some(user.gid))
            .map_err(ServerError::io("cannot change the owner of", dir))?;
        if !user.can_enter(dir) {
            return Err(ServerError::NotEnterable {
                dir: dir.to_owned(),
                user: user.name.clone(),
            });
        }
    }
    Ok(())
}

/// Ends `postgresql.conf` with an include of our file. `ALTER SYSTEM` still wins over both.
fn include_settings(spec: &ServerSpec) -> Result<(), ServerError> {
    let path = spec.data_dir.join("postgresql.conf");
    let mut text = fs::read_to_string(&path).map_err(ServerError::io("cannot read", &path))?;
    text.push_str("\n# Written by tandem at each start:\ninclude 'tandem.conf'\n");
    replace_file(spec, "postgresql.conf", &text)
}

/// Writes the settings that the server starts with.
pub(super) fn write_settings(spec: &ServerSpec) -> Result<(), ServerError> {
    let mut text =
        "# Written by tandem at each start. Use ALTER SYSTEM for settings of your own.\n"
            .to_owned();
    for (name, value) in base_settings(&spec.install, spec.port)
        .iter()
        .chain(&spec.settings)
    {
        text.push_str(name);
        text.push_str(" = '");
        text.push_str(&value.replace('\'', "''"));
        text.push_str("'\n");
    }
    replace_file(spec, SETTINGS_FILE, &text)
}

/// What a node of Tandem needs, sized for a developer's machine. A later line of the same name wins.
fn base_settings(install: &Install, port: u16) -> Vec<(String, String)> {
    let mut settings = vec![
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("port", port.to_string()),
        // A socket's path has about 100 bytes, a checkout's may be longer.
        ("unix_socket_directories", String::new()),
        ("max_connections", "200".to_owned()),
        ("shared_buffers", "128MB".to_owned()),
        // The default takes /dev/shm, which is 64 MB in many containers.
        ("dynamic_shared_memory_type", "mmap".to_owned()),
        ("wal_level", "logical".to_owned()),
        ("track_commit_timestamp", "on".to_owned()),
        ("max_replication_slots", "32".to_owned()),
        ("max_wal_senders", "32".to_owned()),
        ("max_worker_processes", "16".to_owned()),
        ("max_wal_size", "1GB".to_owned()),
        ("password_encryption", "scram-sha-256".to_owned()),
        ("timezone", time_zone(install).to_owned()),
        ("log_timezone", time_zone(install).to_owned()),
        ("log_line_prefix", "%m [%p] %q%u@%d ".to_owned()),
    ];
    if install.major >= 18 {
        // Until 17 the number of origins is bounded by max_replication_slots.
        settings.push(("max_active_replication_origins", "64".to_owned()));
    }
    settings
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// `UTC` needs a time zone file: the build's own, or the system's. `GMT` is built into the server.
fn time_zone(install: &Install) -> &'static str {
    let own = install
        .bin_dir
        .parent()
        .map(|prefix| prefix.join("share/timezone/UTC"));
    let exists = own
        .into_iter()
        .chain([PathBuf::from("/usr/share/zoneinfo/UTC")])
        .any(|path| path.exists());
    if exists { "UTC" } else { "GMT" }
}

/// Replaces a file of the data directory by rename: the directory belongs to the servers' user, so a link that lies in
/// our way must not be followed as root.
fn replace_file(spec: &ServerSpec, name: &str, text: &str) -> Result<(), ServerError> {
    let path = spec.data_dir.join(name);
    let write = || -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".tandem-")
            .tempfile_in(&spec.data_dir)?;
        file.write_all(text.as_bytes())?;
        if let Some(user) = &spec.run_as {
            fchown(file.as_file(), Some(user.uid), Some(user.gid))?;
        }
        file.as_file().sync_all()?;
        file.persist(&path).map(drop).map_err(|error| error.error)
    };
    write().map_err(ServerError::io("cannot write", &path))
}

/// Copies a stopped server's data directory (owner, modes and times kept; blocks shared where the file system can).
/// The copy has the original's system identifier: a cluster's nodes must come from different templates.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), ServerError> {
    let mut command = Command::new("cp");
    command
        .args(["-a", "--reflink=auto", "--"])
        .arg(from)
        .arg(to);
    match run_bounded(&mut command, INITDB_LIMIT) {
        Ok(ran) if ran.status.success() => Ok(()),
        Ok(ran) => Err(ServerError::io("cannot copy a data directory to", to)(
            io::Error::other(ran.tail),
        )),
        Err(error) => Err(ServerError::io("cannot copy a data directory to", to)(
            error,
        )),
    }
}
