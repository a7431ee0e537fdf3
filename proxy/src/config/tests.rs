use std::fs;
use std::os::unix::fs::PermissionsExt;

use tandem_replicator::{DdlClass, DdlRule};

use super::*;

mod files_tests;

/// A directory with the files given, `tandem.toml` among them.
struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn load(&self) -> Result<Config, ConfigError> {
        let environment =
            |name: &str| (name == "PARIS_PASSWORD").then(|| "aus-der-umgebung".to_owned());
        read::load(&self.path("tandem.toml"), &environment)
    }

    /// Each problem as `file:line:column: message; hint`, the directory cut off.
    fn problems(&self) -> Vec<String> {
        let prefix = format!("{}/", self.0.path().display());
        let error = self.load().expect_err("the configuration is refused");
        error
            .lines()
            .iter()
            .map(|line| line.replace(&prefix, ""))
            .collect()
    }
}

const SMALL: &str = r#"
cluster = "bikes"
[proxy]
listen = ["127.0.0.1:6432"]
[admin]
listen = "127.0.0.1:6433"
[replication]
database = "app"
[[node]]
name = "paris"
id = 1
host = "127.0.0.1"
user = "tandem"
"#;

/// The example of the design page, as it stands there.
const DESIGN: &str = r#"
cluster = "bikes"

[proxy]
listen = ["127.0.0.1:6432"]
pool_mode = "transaction"        # or "session"
pool_size = 20                   # per node, database and user
max_client_connections = 10000
rules = "rules.toml"             # relative to this file

[proxy.tls]                      # optional: cert, key, client_ca, mode = "disable" | "allow" | "require"
cert = "server.crt"
key = "server.key"
[auth]                           # method = "scram-sha-256" | "md5" | "trust" | "cert", users_file, query
[admin]
listen = "127.0.0.1:6433"        # HTTP: dashboard, /metrics, /healthz, /api; console: database "tandem" on the proxy port

[replication]
database = "app"                 # the database kept converged; include / exclude take schema.table patterns
[replication.table."public.pgbench_accounts"]
counters = ["abalance"]          # delta columns; resolver = "last_update_wins" (default) | "first_update_wins" | "node_priority"

[[node]]
name = "paris"
id = 1                           # 1..1023, never reused
host = "127.0.0.1"
port = 6501
user = "tandem"                  # Tandem's own role; password, password_file or password_env
zone = "eu"
"#;

#[test]
fn a_small_file_is_filled_with_the_documented_defaults() {
    let files = Files::new(&[("tandem.toml", SMALL)]);
    let config = files.load().unwrap();
    assert_eq!(config.cluster, "bikes");
    assert_eq!(config.state_dir, files.path("state"));
    assert_eq!(
        config.proxy.listen,
        [Listen::Tcp("127.0.0.1:6432".parse().unwrap())]
    );
    assert_eq!(
        (&config.proxy.pool, config.proxy.max_client_connections),
        (&PoolConfig::default(), 10_000)
    );
    let proxy = &config.proxy;
    let seconds = [
        proxy.client_login_timeout,
        proxy.server_connect_timeout,
        proxy.commit_outcome_wait,
        proxy.shutdown_timeout,
        proxy.probe_interval,
        proxy.probe_timeout,
        proxy.restart_wait,
        proxy.read_lag_max,
    ]
    .map(|timeout| timeout.as_secs());
    assert_eq!(seconds, [60, 5, 30, 30, 1, 2, 5, 10]);
    assert_eq!(
        config.auth,
        AuthConfig {
            rules: HostRules::of_method(AuthMethod::ScramSha256),
            users_file: None,
            query: None
        }
    );
    assert_eq!(config.admin.token_file, files.path("state/admin.token"));
    let node = &config.nodes[0];
    assert_eq!(
        (node.name.as_str(), node.id, node.port, node.sslmode),
        ("paris", 1, 5_432, SslMode::Prefer)
    );
    assert!(node.password.is_none() && node.zone.is_none());
    assert_eq!(config.rules, Rules::default());
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn the_design_page_s_example_is_valid() {
    let rules = "[[session]]\nmatch = { user = \"batch\" }\nnode = \"paris\"\n";
    let all = [
        ("tandem.toml", DESIGN),
        ("rules.toml", rules),
        ("server.crt", ""),
        ("server.key", ""),
    ];
    let config = Files::new(&all).load().unwrap();
    let pool = &config.proxy.pool;
    assert_eq!((pool.mode, pool.size), (PoolMode::Transaction, 20));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);

    let text = DESIGN.replace("\"transaction\"", "\"session\"");
    let files = Files::new(&[("tandem.toml", &text), all[1], all[2], all[3]]);
    let config = files.load().unwrap();
    assert_eq!(config.rules.sessions.len(), 1);
    assert_eq!(config.proxy.tls.unwrap().cert, files.path("server.crt"));
    assert_eq!(config.nodes[0].zone.as_deref(), Some("eu"));
    let [warning] = config.warnings.as_slice() else {
        panic!("{:?}", config.warnings)
    };
    assert!(
        warning.contains(":7:13: `pool_size` has no effect"),
        "{warning}"
    );
}

#[test]
fn every_setting_is_read() {
    let text = r#"
cluster = "c_1"
state_dir = "/var/lib/tandem"
[proxy]
listen = ["[::1]:7000", "unix:run", "unix:/srv/t:9"]
zone = "eu"
max_client_connections = 5
client_login_timeout = "10s"
server_connect_timeout = "500ms"
commit_outcome_wait = "9s"
shutdown_timeout = "0s"
probe_interval = "2min"
probe_timeout = "1s"
restart_wait = "0s"
workers = 3
pool_size = 7
reserve_pool_size = 2
reserve_pool_timeout = "1s"
min_pool_size = 1
query_wait_timeout = "2s"
query_wait_notify = "0s"
server_idle_timeout = "3s"
server_lifetime = "4s"
server_check_delay = "5s"
server_login_retry = "6s"
max_prepared_statements = 8
[proxy.tls]
cert = "server.crt"
key = "server.key"
client_ca = "ca.crt"
mode = "require"
[auth]
method = "cert"
users_file = "users.txt"
[admin]
listen = "[::1]:7001"
token_file = "token"
[replication]
database = "app"
include = ["public.*"]
exclude = ["public.log"]
journal_dir = "j"
journal_max = "2GB"
journal_carry_bytes = "1MB"
journal_carry_after = "1s"
group_apply = 7
clock_offset_max = "80ms"
[replication.ddl]
index = "local"
table = "replicate"
rewrite = "replicate"
[replication.table."public.t"]
resolver = "first_update_wins"
[replication.table."public.u"]
resolver = "node_priority"
priority = ["oslo-2"]
[[node]]
name = "paris"
id = 1023
host = "/run/postgresql"
port = 6501
user = "tandem"
password_env = "PARIS_PASSWORD"
zone = "eu"
[[node]]
name = "oslo-2"
id = 2
host = "db.example.org"
user = "tandem"
password_file = "oslo.secret"
sslmode = "verify-full"
sslrootcert = "ca.crt"
"#;
    let files = Files::new(&[
        ("tandem.toml", text),
        ("server.crt", ""),
        ("server.key", ""),
        ("ca.crt", ""),
        ("users.txt", ""),
        ("oslo.secret", "geheim\n"),
    ]);
    let config = files.load().unwrap();
    let seconds = Duration::from_secs;
    let pool = PoolConfig {
        mode: PoolMode::Transaction,
        size: 7,
        reserve: 2,
        reserve_after: seconds(1),
        min: 1,
        wait_max: seconds(2),
        notice_after: seconds(0),
        idle_max: seconds(3),
        lifetime_max: seconds(4),
        check_after: seconds(5),
        retry_after: seconds(6),
        prepared_max: 8,
    };
    assert_eq!((&config.proxy.pool, config.proxy.workers), (&pool, 3));
    let listen = [
        Listen::Tcp("[::1]:7000".parse().unwrap()),
        Listen::Unix {
            dir: files.path("run"),
            port: 7_000,
        },
        Listen::Unix {
            dir: PathBuf::from("/srv/t"),
            port: 9,
        },
    ];
    assert_eq!(config.proxy.listen, listen);
    assert_eq!(config.proxy.zone.as_deref(), Some("eu"));
    assert_eq!(
        config.proxy.server_connect_timeout,
        Duration::from_millis(500)
    );
    assert_eq!(config.proxy.probe_interval, Duration::from_secs(120));
    assert_eq!(config.proxy.restart_wait, Duration::ZERO);
    assert_eq!(
        config.proxy.tls.as_ref().unwrap().mode,
        ClientTlsMode::Require
    );
    assert_eq!(config.auth.rules, HostRules::of_method(AuthMethod::Cert));
    assert_eq!(config.auth.users_file, Some(files.path("users.txt")));
    assert_eq!(config.admin.token_file, files.path("token"));
    assert_eq!(config.replication.journal_dir, files.path("j"));
    assert_eq!(
        (
            config.replication.journal_max,
            config.replication.journal_carry_bytes,
            config.replication.journal_carry_after,
            config.replication.clock_offset_max
        ),
        (
            2 << 30,
            1 << 20,
            Duration::from_secs(1),
            Duration::from_millis(80)
        )
    );
    assert_eq!(config.replication.group_apply, 7);
    let rules = [
        (DdlClass::Index, DdlRule::Local),
        (DdlClass::Rewrite, DdlRule::Replicate),
    ];
    assert_eq!(config.replication.ddl.rules, rules.into());
    assert_eq!(
        (config.replication.include, config.replication.exclude),
        (vec!["public.*".to_owned()], vec!["public.log".to_owned()])
    );
    assert_eq!(
        config.nodes[0].password.as_ref().unwrap().expose(),
        b"aus-der-umgebung"
    );
    assert_eq!(
        config.nodes[1].password.as_ref().unwrap().expose(),
        b"geheim"
    );
    assert_eq!(config.nodes[1].sslmode, SslMode::VerifyFull);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn broken_files_are_told_with_place_and_mend() {
    let table = [
        (
            "cluster = \"bikes\"",
            "cluster = \"Bikes!\"",
            "tandem.toml:2:11: not a name for a cluster; use up to 32 of a-z, 0-9 and _; the name becomes part of replication slot names",
        ),
        (
            "[proxy]",
            "[proxy]\nlisten_on = 1",
            "tandem.toml:4:1: unknown key in `proxy`: `listen_on`; did you mean `listen`?",
        ),
        (
            "[\"127.0.0.1:6432\"]",
            "[\"localhost:6432\"]",
            "tandem.toml:4:11: `localhost:6432` is not an address to listen on; write `127.0.0.1:6432` or `[::1]:6432`",
        ),
        (
            "[\"127.0.0.1:6432\"]",
            "[]",
            "tandem.toml:4:10: `proxy.listen` is empty; list at least one address",
        ),
        (
            "[\"127.0.0.1:6432\"]",
            "[\"127.0.0.1:6433\"]",
            "tandem.toml:6:10: the proxy listens on this address already; give the two different ports",
        ),
        (
            "[admin]",
            "probe_timeout = \"2 secs\"\n[admin]",
            "tandem.toml:5:17: `2 secs` is not a duration; unknown unit `secs`; write us, ms, s, min, h or d, such as `2s`",
        ),
        (
            "database = \"app\"",
            "database = \"app\"\njournal_max = \"16 gigs\"",
            "tandem.toml:9:15: `16 gigs` is not a size; unknown unit `gigs`; write B, kB, MB, GB or TB, such as `16MB`",
        ),
        (
            "database = \"app\"",
            "database = \"app\"\njournal_max = \"1kB\"",
            "tandem.toml:9:15: `replication.journal_max` is too small; allowed: 1048576B and more",
        ),
        (
            "[admin]",
            "probe_interval = \"0s\"\n[admin]",
            "tandem.toml:5:18: `proxy.probe_interval` is out of range; allowed: 10ms to 24h",
        ),
        (
            "[admin]",
            "rules = \"rules.tml\"\n[admin]",
            "tandem.toml:5:9: cannot read the rules file `rules.tml`: No such file or directory (os error 2); a relative path counts from this file's directory",
        ),
        (
            "[admin]",
            "[proxy.tls]\ncert = \"tandem.toml\"\n[admin]",
            "tandem.toml:5:1: `proxy.tls` has no `key`; add `key = ...`",
        ),
        (
            "[admin]",
            "[auth]\nmethod = \"scram\"\n[admin]",
            "tandem.toml:6:10: unknown value of `auth.method`: `scram`; known: `scram-sha-256`, `md5`, `trust`, `cert`",
        ),
        (
            "[admin]",
            "[auth]\nmethod = \"cert\"\n[admin]",
            "tandem.toml:6:10: method \"cert\" needs client certificates; set `client_ca` and mode = \"require\" in `[proxy.tls]`",
        ),
        (
            "[admin]",
            "[auth]\nquery = \"SELECT 1\"\n[admin]",
            "tandem.toml:6:9: the query does not use `$1`, the user's name; for example `SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename = $1`",
        ),
        (
            "[admin]",
            "[auth]\nmethod = \"md5\"\nhba = [\"local all all md5\"]\n[admin]",
            "tandem.toml:6:1: `auth.method` stands beside host rules; keep one of `method`, `hba` and `hba_file`: each rule names its method",
        ),
        (
            "[admin]",
            "[auth]\nhba = [\"local all all md5\", \"host all all all peer\"]\n[admin]",
            "tandem.toml:6:29: method `peer` is not there: Tandem does not ask the client's system who it is; use scram-sha-256, or cert over TLS",
        ),
        (
            "[admin]",
            "[auth]\nhba = [\"hostssl all all all md5\"]\n[admin]",
            "tandem.toml:6:8: hostssl never matches: clients cannot use TLS; add `[proxy.tls]`, or use host",
        ),
        (
            "[admin]",
            "[auth]\nhba_file = \"missing\"\n[admin]",
            "tandem.toml:6:12: cannot read the host rules `missing`: No such file or directory (os error 2); a relative path counts from this file's directory",
        ),
        (
            "listen = \"127.0.0.1:6433\"",
            "listen = \"127.0.0.1:6433\"\nusers = \"ops\"",
            "tandem.toml:7:9: `admin.users` must be an array, not of type string; write a list, [\"...\", \"...\"]",
        ),
        (
            "[admin]",
            "[limits]\nclients_per_user = -1\n[admin]",
            "tandem.toml:6:20: `limits.clients_per_user` is out of range; allowed: 0 to 1000000",
        ),
        (
            "[admin]",
            "[limits.user]\nbatch = \"10\"\n[admin]",
            "tandem.toml:6:9: `limits.user.batch` must be an integer, not of type string; write digits, without quotes",
        ),
        (
            "[admin]",
            "[limits]\nclients = 3\n[admin]",
            "tandem.toml:6:1: unknown key in `limits`: `clients`; known: `clients_per_user`, `clients_per_database`, `user`, `database`",
        ),
        (
            "database = \"app\"",
            "database = \"tandem\"",
            "tandem.toml:8:12: `tandem` is the name of Tandem's console; clients could not reach a database of this name; call it otherwise",
        ),
        (
            "database = \"app\"",
            "",
            "tandem.toml:7:1: `replication` has no `database`; add `database = ...`",
        ),
        (
            "database = \"app\"",
            "database = \"app\"\ninclude = [\"users\"]",
            "tandem.toml:9:12: `users` is not `schema.table`; write schema and table, such as \"public.users\"",
        ),
        (
            "database = \"app\"",
            "database = \"app\"\n[replication.ddl]\nrewrite = \"local\"",
            "tandem.toml:10:11: unknown value of `replication.ddl.rewrite`: `local`; known: `replicate`, `refuse`",
        ),
        (
            "database = \"app\"",
            "database = \"app\"\n[replication.table.\"public.t\"]\nresolver = \"node_priority\"",
            "tandem.toml:10:12: nothing says which node goes first; add priority = [\"NODE\", …], the node whose writes win first",
        ),
        (
            "database = \"app\"",
            "database = \"app\"\n[replication.table.\"public.t\"]\nresolver = \"node_priority\"\npriority = [\"pari\"]",
            "tandem.toml:11:13: unknown node `pari`; did you mean `paris`?",
        ),
        (
            "database = \"app\"",
            "database = \"app\"\n[replication.table.\"public.t\"]\npriority = [\"paris\"]",
            "tandem.toml:10:1: `priority` is for resolver = \"node_priority\"; add resolver = \"node_priority\", or take it out",
        ),
        (
            "id = 1",
            "id = 1024",
            "tandem.toml:11:6: `node[0].id` is out of range; allowed: 1 to 1023",
        ),
        (
            "id = 1",
            "id = 1\nport = 65536",
            "tandem.toml:12:8: `node[0].port` is out of range; allowed: 1 to 65535",
        ),
        (
            "name = \"paris\"",
            "name = \"pa ris\"",
            "tandem.toml:10:8: not a name for a node; use up to 32 letters (a-z), digits, _ and -, with a letter first",
        ),
        (
            "host = \"127.0.0.1\"",
            "host = \"127.0.0.1:5432\"",
            "tandem.toml:12:8: not a host; write a name, an IP address, or the absolute directory of a unix socket; the port has its own key",
        ),
        (
            "user = \"tandem\"",
            "",
            "tandem.toml:9:1: `node[0]` has no `user`; add `user = ...`",
        ),
        (
            "id = 1",
            "id = 1\npassword_env = \"NO_SUCH\"",
            "tandem.toml:12:16: the environment has no variable `NO_SUCH`; set it where the daemon is started",
        ),
        (
            "id = 1",
            "id = 1\npassword = \"a\"\npassword_file = \"b\"",
            "tandem.toml:13:1: a node has one of `password`, `password_file` and `password_env`; keep one of them",
        ),
        (
            "id = 1",
            "id = 1\npassword_file = \"missing\"",
            "tandem.toml:12:17: cannot use `missing`: No such file or directory (os error 2); a relative path counts from this file's directory",
        ),
        (
            "id = 1",
            "id = 1\nsslmode = \"verify-ca\"",
            "tandem.toml:12:11: there is nothing to verify the certificate with; add `sslrootcert`, the file with the certificate authority's certificate",
        ),
        (
            "[[node]]",
            "[[nodes]]",
            "tandem.toml:9:3: unknown key `nodes`; did you mean `node`?",
        ),
    ];
    for (from, to, wanted) in table {
        let text = SMALL.replacen(from, to, 1);
        assert_ne!(text, SMALL, "{from}");
        let problems = Files::new(&[("tandem.toml", &text)]).problems();
        assert!(
            problems.iter().any(|problem| problem == wanted),
            "wanted {wanted}\ngot {problems:#?}"
        );
        let also = if from == "[[node]]" { 2 } else { 1 };
        assert_eq!(problems.len(), also, "{problems:#?}");
    }
}

#[test]
fn names_and_ids_of_nodes_are_unique() {
    let again = "[[node]]\nname = \"paris\"\nid = 1\nhost = \"h\"\nuser = \"u\"\n";
    let problems = Files::new(&[("tandem.toml", &format!("{SMALL}{again}"))]).problems();
    let wanted = [
        "tandem.toml:15:8: another node is called `paris` already; give each node its own name",
        "tandem.toml:16:6: another node has id 1 already; give each node its own id and never use one again",
    ];
    assert_eq!(problems, wanted);
}

#[test]
fn problems_of_both_files_are_told_at_once_each_in_its_own_file() {
    let text = SMALL
        .replace("[admin]", "rules = \"rules.toml\"\npool = 1\n[admin]")
        .replace("id = 1", "id = 0");
    let files = Files::new(&[
        ("tandem.toml", &text),
        ("rules.toml", "[default]\nwrite = \"homme\"\n"),
    ]);
    let wanted = [
        "tandem.toml:6:1: unknown key in `proxy`: `pool`; known: `listen`, `so_reuseport`, `zone`, `pool_mode`, `pool_size`, \
         `reserve_pool_size`, `reserve_pool_timeout`, `min_pool_size`, `query_wait_timeout`, `query_wait_notify`, \
         `server_idle_timeout`, `server_lifetime`, `server_check_delay`, `server_login_retry`, \
         `max_prepared_statements`, `workers`, `max_client_connections`, `rules`, `client_login_timeout`, `server_connect_timeout`, `commit_outcome_wait`, `shutdown_timeout`, \
         `probe_interval`, `probe_timeout`, `restart_wait`, `read_lag_max`, `handoff_soft`, `handoff_hard`, `handoff_at_bound`, `tls`",
        "tandem.toml:13:6: `node[0].id` is out of range; allowed: 1 to 1023",
        "rules.toml:2:9: unknown value of `default.write`: `homme`; did you mean `home`?",
    ];
    assert_eq!(files.problems(), wanted);
}

#[test]
fn an_error_is_shown_with_the_lines_it_is_about_and_without_passwords() {
    let text = SMALL.replace(
        "id = 1",
        "password = \"geheim\"\nid = 0\npassword_file = \"x\"",
    );
    let files = Files::new(&[("tandem.toml", &text)]);
    let error = files.load().unwrap_err();
    let debug = format!("{error:?}");
    assert!(!debug.contains("geheim"), "{debug}");
    let theme = miette::GraphicalTheme::unicode_nocolor();
    let mut shown = String::new();
    miette::GraphicalReportHandler::new_themed(theme)
        .render_report(&mut shown, &error)
        .unwrap();
    assert!(
        !shown.contains("geheim") && shown.contains("password = ********"),
        "{shown}"
    );
    assert!(
        shown.contains("tandem.toml:12:6]") && shown.contains("allowed: 1 to 1023"),
        "{shown}"
    );
}

#[test]
fn debug_output_of_a_configuration_shows_no_password() {
    let text = SMALL.replace("id = 1", "id = 1\npassword = \"geheim\"");
    let config = Files::new(&[("tandem.toml", &text)]).load().unwrap();
    assert_eq!(
        config.nodes[0].password.as_ref().unwrap().expose(),
        b"geheim"
    );
    assert!(!format!("{config:?}").contains("geheim"));
}

#[test]
fn the_admin_port_is_found_in_a_file_that_is_otherwise_wrong() {
    let text = SMALL.replace("id = 1", "id = 0\npassword_env = \"NO_SUCH\"");
    let files = Files::new(&[("tandem.toml", &text)]);
    let admin = AdminConfig::load(&files.path("tandem.toml")).unwrap();
    assert_eq!(admin.listen, "127.0.0.1:6433".parse().unwrap());
    assert_eq!(admin.token_file, files.path("state/admin.token"));
    let without = Files::new(&[("tandem.toml", "cluster = \"c\"\n")]);
    let error = AdminConfig::load(&without.path("tandem.toml")).unwrap_err();
    assert!(
        error.lines()[0].contains("the file has no `admin`"),
        "{error:?}"
    );
}

#[test]
fn a_missing_file_and_broken_toml_are_told() {
    let files = Files::new(&[]);
    assert!(files.problems()[0].starts_with("cannot read the configuration `"));
    let files = Files::new(&[("tandem.toml", "cluster = \n[proxy\n")]);
    let problems = files.problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems[0].starts_with("tandem.toml:1:11: not valid TOML"),
        "{problems:?}"
    );
    assert!(
        problems[1].starts_with("tandem.toml:2:7: not valid TOML"),
        "{problems:?}"
    );
}
