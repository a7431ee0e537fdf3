use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::*;
use crate::config::Config;

/// A directory with a sample and the files beside it.
struct Case(tempfile::TempDir);

impl Case {
    fn new(ini: &str, files: &[(&str, &str)]) -> Case {
        let case = Case(tempfile::tempdir().unwrap());
        case.write("pgbouncer.ini", ini);
        for (name, text) in files {
            case.write(name, text);
        }
        case
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn import(&self, database: Option<&str>) -> Result<Imported, ImportError> {
        import(&self.path("pgbouncer.ini"), database)
    }

    /// The text and the notes, the directory cut off.
    fn imported(&self, database: Option<&str>) -> (String, Vec<String>) {
        let imported = self.import(database).unwrap();
        let prefix = format!("{}/", self.0.path().display());
        let notes = imported.notes.iter();
        let notes = notes.map(|note| note.to_string().replace(&prefix, ""));
        (imported.text.replace(&prefix, ""), notes.collect())
    }

    /// What `tandem check` makes of it, with a password for each node.
    fn loaded(&self, database: Option<&str>) -> Result<Config, Vec<String>> {
        let imported = self.import(database).unwrap();
        self.write("tandem.toml", &imported.text);
        self.write("node1.password", "x");
        self.write("node2.password", "x");
        Config::load(&self.path("tandem.toml")).map_err(|error| error.lines())
    }
}

fn debian() -> Case {
    let users = "\"app\" \"geheim\"\n\"postgres\" \"md50123\"\n";
    Case::new(
        include_str!("samples/debian.ini"),
        &[("userlist.txt", users)],
    )
}

#[test]
fn a_debian_file_becomes_a_configuration_and_every_line_that_is_lost_is_told() {
    let (text, notes) = debian().imported(Some("app"));
    let wanted = r#"cluster = "pg"

[proxy]
listen = ["127.0.0.1:6432", "unix:/var/run/postgresql:6432"]
pool_mode = "session"
max_client_connections = 100
pool_size = 20
reserve_pool_size = 5
server_connect_timeout = "15500ms"

[auth]
method = "md5"
users_file = "userlist.txt"

[limits]
clients_per_user = 50

[limits.user]
"batch" = 10

[limits.database]
"reports" = 7

# The console is database "tandem", where PgBouncer's is "pgbouncer".
[admin]
listen = "127.0.0.1:6433"
users = ["postgres", "ops"]
readers = ["stats"]

[replication]
database = "app"

[[node]]
name = "node1"
id = 1                       # never change it
host = "127.0.0.1"
port = 5432
user = "tandem"
password_file = "node1.password"
sslmode = "prefer"

# Add a [[node]] for each further primary.
"#;
    assert!(text.ends_with(wanted), "{text}");
    let starts = [
        "pgbouncer.ini:11: database `bardb` is another name for `bazdb`; let clients connect to `bazdb`",
        "pgbouncer.ini:11: database `bardb` stands on another server than `app`; one Tandem serves",
        "pgbouncer.ini:12: `client_encoding` of database `forcedb`: a setting of each session",
        "pgbouncer.ini:12: `connect_query` of database `forcedb`: a query at each connect",
        "pgbouncer.ini:12: `datestyle` of database `forcedb`: a setting of each session",
        "pgbouncer.ini:12: `password` of database `forcedb`: one user for all clients",
        "pgbouncer.ini:12: `user` of database `forcedb`: one user for all clients",
        "pgbouncer.ini:12: database `forcedb` stands on another server than `app`",
        "pgbouncer.ini:14: `pool_size` of database `reports`: a pool of its own size",
        "pgbouncer.ini:14: database `reports` is served, but not kept converged",
        "pgbouncer.ini:19: `pool_mode` of user `batch` has no counterpart; [limits] limits clients",
        "pgbouncer.ini:22: `logfile` has no counterpart; Tandem logs to standard error",
        "pgbouncer.ini:23: `pidfile` has no counterpart",
        "pgbouncer.ini:46: `idle_transaction_timeout` has no counterpart; set it on the nodes",
        "pgbouncer.ini:48: setting `colour` is not known",
    ];
    for (note, start) in notes.iter().zip(starts) {
        assert!(note.starts_with(start), "{note}\nwanted {start}");
    }
    assert_eq!(notes.len(), starts.len(), "{notes:#?}");
    let all = format!("{text}{notes:?}");
    assert!(
        !all.contains("foo") && !all.contains("geheim"),
        "a password is told"
    );
}

#[test]
fn what_is_written_is_a_valid_configuration() {
    let config = debian().loaded(Some("app")).unwrap();
    assert_eq!(config.proxy.max_client_connections, 100);
    assert_eq!((config.proxy.pool.size, config.proxy.pool.reserve), (20, 5));
    assert_eq!(config.admin.users, ["postgres", "ops"]);
    assert_eq!(config.limits.of_user("batch"), Some(10));
    assert_eq!(config.limits.of_user("app"), Some(50));
    assert_eq!(config.limits.of_database("reports"), Some(7));
    assert_eq!(config.limits.of_database("app"), None);

    let files = [("ca.crt", ""), ("tls.key", ""), ("tls.crt", "")];
    let case = Case::new(include_str!("samples/kubernetes.ini"), &files);
    let config = case.loaded(Some("shop")).unwrap();
    assert_eq!(config.replication.database, "shop");
    let hosts: Vec<&str> = config.nodes.iter().map(|node| node.host.as_str()).collect();
    assert_eq!(hosts, ["pg-0.pg", "pg-1.pg"]);
    assert_eq!(
        config.auth.query.as_deref(),
        Some("SELECT * FROM pooler.user_lookup($1)")
    );
    assert_eq!(config.proxy.listen.len(), 2);
    assert!(config.proxy.so_reuseport);
    assert_eq!(config.nodes[0].sslmode, tandem_wire::tls::SslMode::VerifyCa);
}

#[test]
fn a_file_for_every_database_needs_to_be_told_which_one() {
    let case = Case::new(include_str!("samples/kubernetes.ini"), &[]);
    let error = case.import(None).unwrap_err().to_string();
    assert!(error.contains("--database"), "{error}");
    let (_, notes) = case.imported(Some("shop"));
    let starts = [
        "pgbouncer.ini:4: `auth_user` of database `*`: an authentication of its own",
        "pgbouncer.ini:11: `auth_dbname` has no counterpart",
        "pgbouncer.ini:12: Tandem has a users file or a query, not both",
        "pgbouncer.ini:15: the query is not run as this user",
        "pgbouncer.ini:16: `logfile` has no counterpart",
        "pgbouncer.ini:29: `log_connections` has no counterpart",
        "pgbouncer.ini:30: `client_idle_timeout` has no counterpart",
        "pgbouncer.ini:32: daemons do not know each other",
    ];
    for (note, start) in notes.iter().zip(starts) {
        assert!(note.starts_with(start), "{note}\nwanted {start}");
    }
    assert_eq!(notes.len(), starts.len(), "{notes:#?}");

    let error = debian().import(Some("missing")).unwrap_err().to_string();
    assert_eq!(error, "[databases] has no `missing`");
}

#[test]
fn host_rules_that_cannot_be_followed_are_told_and_keep_the_configuration_from_being_used() {
    let hba = "local all all peer\nhost all +staff 10.0.0.0/8 reject\nhostssl app app all scram-sha-256\n";
    let files = [
        ("databases.ini", "[databases]\napp = host=db\n"),
        ("pg_hba.conf", hba),
        ("userlist.txt", "\"app\" \"x\"\n"),
        ("ca.crt", ""),
        ("tls.key", ""),
        ("tls.crt", ""),
    ];
    let case = Case::new(include_str!("samples/hba.ini"), &files);
    let (text, notes) = case.imported(None);
    assert!(text.contains("hba_file = \"pg_hba.conf\""), "{text}");
    assert!(
        text.contains("listen = [\"10.0.0.5:6433\", \"[::1]:6433\"]"),
        "{text}"
    );
    assert!(text.contains("listen = \"127.0.0.1:6434\""), "{text}");
    let starts = [
        "pg_hba.conf:1: method `peer` is not there",
        "pg_hba.conf:2: `+staff` asks for members of a role",
        "pgbouncer.ini:5: statement pooling is not there",
    ];
    for (note, start) in notes.iter().zip(starts) {
        assert!(note.starts_with(start), "{note}\nwanted {start}");
    }
    assert_eq!(notes.len(), starts.len(), "{notes:#?}");
    let refused = case.loaded(None).unwrap_err();
    assert_eq!(refused.len(), 2, "{refused:?}");

    case.write("pg_hba.conf", "hostssl app app all scram-sha-256\n");
    assert_eq!(case.loaded(None).unwrap().auth.rules.iter().count(), 1);
}

#[test]
fn who_had_to_show_a_certificate_still_has_to() {
    let files = [("ca.crt", ""), ("tls.key", ""), ("tls.crt", "")];
    let tls = "client_tls_sslmode = verify-ca\nclient_tls_key_file = tls.key\nclient_tls_cert_file = tls.crt\n\
               client_tls_ca_file = ca.crt\n";
    let ini = format!("[databases]\napp =\n[pgbouncer]\nauth_type = scram-sha-256\n{tls}");
    let case = Case::new(&ini, &files);
    let config = case.loaded(None).unwrap();
    let rules: Vec<&str> = config
        .auth
        .rules
        .iter()
        .map(|rule| rule.text.as_str())
        .collect();
    assert_eq!(
        rules,
        [
            "local all all scram-sha-256",
            "hostssl all all all scram-sha-256 clientcert=verify-ca"
        ]
    );
    assert_eq!(
        config.nodes[0].host, "/tmp",
        "PgBouncer's default: a unix socket"
    );

    let ini = format!("[databases]\napp =\n[pgbouncer]\nauth_type = cert\n{tls}");
    let config = Case::new(&ini, &files).loaded(None).unwrap();
    assert_eq!(config.auth.rules.iter().count(), 2);
}

#[test]
fn what_cannot_be_used_is_told_and_never_makes_it_more_open() {
    let of = |lines: &str| {
        let ini = format!("[databases]\napp = host=db port=x\nbad\n[pgbouncer]\n{lines}");
        let case = Case::new(&ini, &[]);
        (case.imported(None), case)
    };
    let ((text, notes), case) = of(
        "auth_type = pam\nlisten_addr = db.example.org\nmax_client_conn = many\n\
                             client_login_timeout = 0\nauth_file = missing.txt\n",
    );
    assert!(text.contains("method = \"scram-sha-256\""), "{text}");
    for wanted in [
        "pgbouncer.ini:2: `port` is no port",
        "pgbouncer.ini:3: this line is no `key = value`",
        "pgbouncer.ini:5: method pam is not there",
        "pgbouncer.ini:6: `db.example.org` is no IP address",
        "pgbouncer.ini:7: `max_client_conn` is no number",
        "pgbouncer.ini:8: `client_login_timeout` is without limit, or no number",
        "pgbouncer.ini:9: cannot read the users file",
    ] {
        assert!(
            notes.iter().any(|note| note.starts_with(wanted)),
            "{wanted}: {notes:#?}"
        );
    }
    assert!(case.loaded(None).is_err(), "the users file is missing");
    // Without host rules nobody is let in.
    let ((text, notes), case) = of("auth_type = hba\n");
    assert!(text.contains("hba = []"), "{text}");
    assert!(
        notes
            .iter()
            .any(|note| note.contains("there is no auth_hba_file")),
        "{notes:?}"
    );
    assert_eq!(case.loaded(None).unwrap().auth.rules.iter().count(), 0);
}

#[test]
fn settings_of_pools_keep_their_meaning_and_zero_where_it_means_the_same() {
    let of = |lines: &str| {
        let case = Case::new(
            &format!("[databases]\napp = host=db\n[pgbouncer]\n{lines}"),
            &[],
        );
        (case.imported(None).1, case.loaded(None).unwrap().proxy.pool)
    };
    let (notes, pool) = of(
        "pool_mode = transaction\ndefault_pool_size = 7\nmin_pool_size = 2\nreserve_pool_size = 3\n\
                            reserve_pool_timeout = 1.5\nquery_wait_timeout = 30\nserver_idle_timeout = 0\n\
                            server_lifetime = 60\nserver_check_delay = 0\nmax_prepared_statements = 50\n",
    );
    assert!(notes.is_empty(), "{notes:?}");
    assert_eq!(
        (pool.size, pool.min, pool.reserve, pool.prepared_max),
        (7, 2, 3, 50)
    );
    let times = [
        pool.reserve_after,
        pool.wait_max,
        pool.idle_max,
        pool.lifetime_max,
        pool.check_after,
    ];
    assert_eq!(
        times.map(|time| time.as_millis()),
        [1_500, 30_000, 0, 60_000, 0]
    );

    // Without limit there is no counterpart; prepared statements cannot be switched off.
    let (notes, pool) =
        of("query_wait_timeout = 0\nserver_lifetime = 0\nmax_prepared_statements = 0\n");
    assert_eq!(notes.len(), 2, "{notes:?}");
    let default = crate::config::PoolConfig::default();
    assert_eq!(pool.wait_max, default.wait_max);
    assert_eq!(pool.prepared_max, default.prepared_max);
}
