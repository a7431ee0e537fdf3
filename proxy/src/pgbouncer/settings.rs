//! Owns what becomes of each setting of `[pgbouncer]`, and of the sections that Tandem has no counterpart for.

use super::{Entry, Import, connect};

/// What becomes of a setting.
#[derive(Debug, Clone, Copy)]
pub(super) enum Carry {
    /// It decides about other parts of the configuration.
    Used,
    /// It becomes this key of `[proxy]`, a number.
    Number(&'static str),
    /// It becomes this key of `[proxy]`, yes or no; PgBouncer says 1 or 0.
    Flag(&'static str),
    /// It becomes this key of `[limits]`, a number; 0 is no limit.
    Limit(&'static str),
    /// It becomes this key of `[proxy]`, a time; PgBouncer gives seconds.
    Seconds(&'static str),
    /// The same, where 0 means the same in both.
    SecondsOrZero(&'static str),
    /// Nothing depends on it: Tandem does what is right without it.
    Needless,
    /// It has no counterpart. At this value, which is the default, nothing is lost.
    Lost {
        default: &'static str,
        instead: &'static str,
    },
}

use Carry::{Flag, Limit, Lost, Needless, Number, Seconds, SecondsOrZero, Used};

const fn lost(default: &'static str, instead: &'static str) -> Carry {
    Lost { default, instead }
}

const STDERR: &str = "Tandem logs to standard error: let the service manager keep that";
const SERVICE: &str = "let the service manager start Tandem as that user";
const LIMIT: &str = "[limits] limits clients; for server connections use ALTER ROLE or DATABASE ... CONNECTION LIMIT on the nodes";
const ROLE_TIMEOUT: &str = "set it on the nodes: ALTER ROLE ... SET statement_timeout, idle_in_transaction_session_timeout";
const TLS: &str = "rustls decides: TLS 1.2 and 1.3, sound ciphers only";
const DNS: &str = "the system's resolver is asked at each connect";

/// The settings of PgBouncer 1.25.
pub(super) const SETTINGS: &[(&str, Carry)] = &[
    ("listen_addr", Used),
    ("listen_port", Used),
    ("unix_socket_dir", Used),
    (
        "unix_socket_mode",
        lost(
            "0777",
            "everybody may connect to the socket; host rules of type local decide",
        ),
    ),
    (
        "unix_socket_group",
        lost(
            "",
            "everybody may connect to the socket; host rules of type local decide",
        ),
    ),
    ("logfile", lost("", STDERR)),
    ("syslog", lost("0", STDERR)),
    ("syslog_ident", Needless),
    ("syslog_facility", Needless),
    ("pidfile", lost("", "the service manager knows the process")),
    ("user", lost("", SERVICE)),
    ("pool_mode", Used),
    ("max_client_conn", Number("max_client_connections")),
    ("default_pool_size", Number("pool_size")),
    ("min_pool_size", Number("min_pool_size")),
    ("reserve_pool_size", Number("reserve_pool_size")),
    (
        "reserve_pool_timeout",
        SecondsOrZero("reserve_pool_timeout"),
    ),
    ("max_db_connections", lost("0", LIMIT)),
    ("max_db_client_connections", Limit("clients_per_database")),
    ("max_user_connections", lost("0", LIMIT)),
    ("max_user_client_connections", Limit("clients_per_user")),
    (
        "server_round_robin",
        lost("0", "a pool uses the server that was used last"),
    ),
    ("track_extra_parameters", Needless),
    ("ignore_startup_parameters", Needless),
    (
        "peer_id",
        lost(
            "0",
            "several daemons of one cluster do not know each other: cancel requests must reach the daemon of the session",
        ),
    ),
    (
        "disable_pqexec",
        lost("0", "simple queries are always answered"),
    ),
    (
        "application_name_add_host",
        lost("0", "the log has the client's address"),
    ),
    ("service_name", Needless),
    ("job_name", Needless),
    ("stats_period", Needless),
    ("max_prepared_statements", Used),
    ("auth_type", Used),
    ("auth_file", Used),
    ("auth_hba_file", Used),
    ("auth_query", Used),
    ("auth_user", Used),
    (
        "auth_ident_file",
        lost("", "the certificate's common name must be the user"),
    ),
    (
        "auth_dbname",
        lost("", "the query runs in the database that is kept converged"),
    ),
    (
        "auth_ldap_options",
        lost("", "LDAP is not there: use scram-sha-256"),
    ),
    ("scram_iterations", Needless),
    (
        "log_connections",
        lost("1", "TANDEM_LOG=debug logs each session"),
    ),
    (
        "log_disconnections",
        lost("1", "TANDEM_LOG=debug logs each session"),
    ),
    ("log_pooler_errors", Needless),
    (
        "log_stats",
        lost("1", "`/metrics` and SHOW LISTS have figures"),
    ),
    ("verbose", lost("0", "set TANDEM_LOG=debug")),
    ("admin_users", Used),
    ("stats_users", Used),
    (
        "server_reset_query",
        lost(
            "DISCARD ALL",
            "a server connection is never given to another session",
        ),
    ),
    (
        "server_reset_query_always",
        lost("0", "a server connection is never given to another session"),
    ),
    ("server_check_delay", SecondsOrZero("server_check_delay")),
    ("server_check_query", Needless),
    ("server_fast_close", Needless),
    ("server_lifetime", Seconds("server_lifetime")),
    ("server_idle_timeout", SecondsOrZero("server_idle_timeout")),
    ("server_connect_timeout", Seconds("server_connect_timeout")),
    ("server_login_retry", Seconds("server_login_retry")),
    ("client_login_timeout", Seconds("client_login_timeout")),
    ("autodb_idle_timeout", Needless),
    ("dns_max_ttl", lost("15", DNS)),
    ("dns_nxdomain_ttl", lost("15", DNS)),
    ("dns_zone_check_period", lost("0", DNS)),
    ("resolv_conf", lost("", DNS)),
    ("client_tls_sslmode", Used),
    ("client_tls_key_file", Used),
    ("client_tls_cert_file", Used),
    ("client_tls_ca_file", Used),
    ("client_tls_protocols", lost("secure", TLS)),
    ("client_tls_ciphers", lost("default", TLS)),
    ("client_tls13_ciphers", lost("", TLS)),
    ("client_tls_ecdhcurve", lost("auto", TLS)),
    ("client_tls_dheparams", lost("auto", TLS)),
    ("server_tls_sslmode", Used),
    ("server_tls_ca_file", Used),
    (
        "server_tls_key_file",
        lost(
            "",
            "Tandem shows nodes no certificate: let it log in by password",
        ),
    ),
    (
        "server_tls_cert_file",
        lost(
            "",
            "Tandem shows nodes no certificate: let it log in by password",
        ),
    ),
    ("server_tls_protocols", lost("secure", TLS)),
    ("server_tls_ciphers", lost("default", TLS)),
    ("server_tls13_ciphers", lost("", TLS)),
    ("query_timeout", lost("0", ROLE_TIMEOUT)),
    ("query_wait_timeout", Seconds("query_wait_timeout")),
    ("query_wait_notify", SecondsOrZero("query_wait_notify")),
    ("cancel_wait_timeout", Needless),
    (
        "client_idle_timeout",
        lost(
            "0",
            "set idle_session_timeout on the nodes: ALTER ROLE ... SET",
        ),
    ),
    ("idle_transaction_timeout", lost("0", ROLE_TIMEOUT)),
    ("transaction_timeout", lost("0", ROLE_TIMEOUT)),
    ("suspend_timeout", Needless),
    ("pkt_buf", Needless),
    (
        "max_packet_size",
        lost("2147483647", "PostgreSQL's own limits hold"),
    ),
    ("listen_backlog", Needless),
    ("sbuf_loopcnt", Needless),
    ("so_reuseport", Flag("so_reuseport")),
    ("tcp_defer_accept", Needless),
    ("tcp_socket_buffer", Needless),
    ("tcp_keepalive", Needless),
    ("tcp_keepcnt", Needless),
    ("tcp_keepidle", Needless),
    ("tcp_keepintvl", Needless),
    ("tcp_user_timeout", Needless),
    ("conffile", Needless),
];

/// What becomes of a setting; `None`: PgBouncer has none of that name.
pub(super) fn carry(key: &str) -> Option<Carry> {
    let found = SETTINGS.iter().find(|(known, _)| *known == key);
    found.map(|(_, carry)| *carry)
}

impl Import {
    /// Notes every setting that is lost, and what stands in other sections.
    pub(super) fn note_settings(&mut self, entries: &[Entry]) {
        for entry in entries {
            match entry.section.as_str() {
                "pgbouncer" => self.note_one(entry),
                "databases" => {}
                "users" => self.user(entry),
                "peers" => self.note(
                    entry,
                    "daemons do not know each other",
                    "let cancel requests reach the daemon of the session",
                ),
                section => {
                    let what = format!("section [{section}] is not known");
                    self.note(entry, what, "PgBouncer ignores it too; take it out");
                }
            }
        }
    }

    /// What is set for one user.
    fn user(&mut self, entry: &Entry) {
        let name = &entry.key;
        let Some(pairs) = connect::pairs(&entry.value) else {
            let what = format!("what stands behind user `{name}` is no list of settings");
            return self.note(entry, what, "PgBouncer refuses it too; mend it");
        };
        for (key, value) in pairs {
            match (key, value.parse::<u32>()) {
                ("max_user_client_connections", Ok(0)) => {}
                ("max_user_client_connections", Ok(limit)) => {
                    self.limits.push(("user", name.clone(), limit));
                }
                _ => {
                    let what = format!("`{key}` of user `{name}` has no counterpart");
                    self.note(entry, what, LIMIT);
                }
            }
        }
    }

    fn note_one(&mut self, entry: &Entry) {
        let Entry { key, value, .. } = entry;
        match carry(key) {
            None => self.note(
                entry,
                format!("setting `{key}` is not known"),
                "see whether Tandem has something like it in its README",
            ),
            Some(Lost { default, instead }) if value != default && !value.is_empty() => {
                self.note(entry, format!("`{key}` has no counterpart"), instead);
            }
            Some(Number(_) | Limit(_) | Flag(_)) if value.parse::<u32>().is_err() => {
                self.note(entry, format!("`{key}` is no number"), "write it by hand");
            }
            Some(Seconds(_) | SecondsOrZero(_)) if carry_time(key, value).is_none() => {
                self.note(
                    entry,
                    format!("`{key}` is without limit, or no number"),
                    "every wait has a bound in Tandem; write one, or leave the default",
                );
            }
            Some(_) => {}
        }
    }
}

/// What a setting's time is in Tandem's words; `None` where it has no counterpart.
pub(super) fn carry_time(key: &str, value: &str) -> Option<String> {
    match (carry(key)?, seconds(value)) {
        (Seconds(_) | SecondsOrZero(_), Some(time)) => Some(time),
        (SecondsOrZero(_), None) if value.parse() == Ok(0.0) => Some("0s".to_owned()),
        _ => None,
    }
}

/// A time of PgBouncer's, in seconds with a fraction perhaps, in Tandem's words. `None` for 0, which means without
/// limit, and for what is no time.
pub(super) fn seconds(text: &str) -> Option<String> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: u64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
    let milliseconds: u64 = digits.parse().ok()?;
    match (whole, milliseconds) {
        (0, 0) => None,
        (seconds, 0) => Some(format!("{seconds}s")),
        (seconds, milliseconds) => {
            let total = seconds.checked_mul(1000)?.checked_add(milliseconds)?;
            Some(format!("{total}ms"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_given_a_unit() {
        let table = [
            ("60", Some("60s")),
            ("0.5", Some("500ms")),
            ("15.0", Some("15s")),
            ("1.2345", Some("1234ms")),
            ("0", None),
            ("0.0", None),
            ("-1", None),
            ("abc", None),
            ("99999999999999999999", None),
        ];
        for (text, wanted) in table {
            assert_eq!(seconds(text).as_deref(), wanted, "{text}");
        }
    }

    #[test]
    fn no_setting_is_listed_twice() {
        let mut names: Vec<&str> = SETTINGS.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SETTINGS.len());
    }
}
