//! Owns how clients log in: `auth_type` and its files, TLS, the console's users.

use std::fs;
use std::path::{Path, PathBuf};

use tandem_routing_rules::document::{Problem, Problems, line_and_column};

use super::{Import, Note};
use crate::auth::{TlsOffer, parse_host_rules, read_users_file};

/// How clients log in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Login {
    pub(super) rules: Rules,
    pub(super) users_file: Option<PathBuf>,
    pub(super) query: Option<String>,
    pub(super) tls: Option<Tls>,
    pub(super) admins: Vec<String>,
    pub(super) readers: Vec<String>,
}

/// Which of the keys `method`, `hba` and `hba_file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rules {
    Method(&'static str),
    Lines(Vec<String>),
    File(PathBuf),
}

impl Default for Rules {
    fn default() -> Self {
        Self::Method("scram-sha-256")
    }
}

/// `[proxy.tls]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tls {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) client_ca: Option<PathBuf>,
    pub(super) mode: &'static str,
    /// Every client has to show a certificate.
    verified: bool,
}

impl Import {
    pub(super) fn login(&mut self) -> Login {
        let tls = self.tls();
        let rules = self.rules(tls.as_ref());
        let (users_file, query) = self.secrets();
        Login {
            rules,
            users_file,
            query,
            tls,
            admins: self.names("admin_users"),
            readers: self.names("stats_users"),
        }
    }

    fn names(&self, key: &str) -> Vec<String> {
        let names = self.value(key).unwrap_or_default().split(',');
        let names = names.map(str::trim).filter(|name| !name.is_empty());
        names.map(str::to_owned).collect()
    }

    fn tls(&mut self) -> Option<Tls> {
        let sslmode = self.value("client_tls_sslmode")?.to_owned();
        let (mode, verified) = match sslmode.as_str() {
            "disable" => return None,
            "allow" | "prefer" => ("allow", false),
            "require" => ("require", false),
            // In PgBouncer both ask every client for a certificate.
            "verify-ca" | "verify-full" => ("require", true),
            _ => {
                let what = format!("`client_tls_sslmode` is `{sslmode}`, which is not known");
                self.note_setting("client_tls_sslmode", what, "mode = \"require\" is written");
                ("require", false)
            }
        };
        let (cert, key) = (
            self.file("client_tls_cert_file"),
            self.file("client_tls_key_file"),
        );
        let (Some(cert), Some(key)) = (cert, key) else {
            let what = "there is no certificate and key for clients";
            let instead = "add [proxy.tls] with cert and key: without it clients come in clear";
            self.note_setting("client_tls_sslmode", what, instead);
            return None;
        };
        let client_ca = self.file("client_tls_ca_file");
        Some(Tls {
            cert,
            key,
            verified: verified && client_ca.is_some(),
            client_ca,
            mode,
        })
    }

    fn rules(&mut self, tls: Option<&Tls>) -> Rules {
        let method = match self.value("auth_type").unwrap_or("md5") {
            "hba" => return self.hba_file(tls),
            "scram-sha-256" => "scram-sha-256",
            "md5" => "md5",
            "trust" => "trust",
            "cert" => "cert",
            "plain" => {
                let instead = "scram-sha-256 is written: it takes the same passwords, which then do not travel";
                self.note_setting("auth_type", "method plain is not there", instead);
                "scram-sha-256"
            }
            other => {
                let what = format!("method {other} is not there");
                let instead = "scram-sha-256 is written; roles need a password";
                self.note_setting("auth_type", what, instead);
                "scram-sha-256"
            }
        };
        let verified = tls.is_some_and(|tls| tls.verified);
        if method == "cert" && !verified {
            let instead = "set client_tls_sslmode = verify-full and client_tls_ca_file first";
            self.note_setting("auth_type", "nothing verifies certificates", instead);
        }
        if method != "cert" && verified {
            return Rules::Lines(vec![
                format!("local all all {method}"),
                format!("hostssl all all all {method} clientcert=verify-ca"),
            ]);
        }
        Rules::Method(method)
    }

    fn hba_file(&mut self, tls: Option<&Tls>) -> Rules {
        let Some(path) = self.file("auth_hba_file") else {
            let instead = "nobody is let in until there are host rules";
            self.note_setting("auth_type", "there is no auth_hba_file", instead);
            return Rules::Lines(Vec::new());
        };
        let offer = TlsOffer {
            enabled: tls.is_some(),
            client_ca: tls.is_some_and(|tls| tls.client_ca.is_some()),
        };
        match fs::read_to_string(&path) {
            Err(error) => {
                let what = format!("cannot read {}: {error}", path.display());
                self.note_setting("auth_hba_file", what, "copy it to where Tandem runs");
            }
            Ok(text) => {
                let mut problems = Problems::default();
                parse_host_rules(&text, offer, &mut problems);
                let problems = problems.into_sorted();
                self.notes.extend(
                    problems
                        .iter()
                        .map(|problem| of_line(&path, &text, problem)),
                );
            }
        }
        Rules::File(path)
    }

    /// The users file, or the query.
    fn secrets(&mut self) -> (Option<PathBuf>, Option<String>) {
        let file = self.file("auth_file");
        let query = self.value("auth_query").map(str::to_owned);
        if self.setting("auth_user").is_some() {
            let instead = "Tandem's own role asks, the `user` of each [[node]]; it must be able to read what the query reads";
            self.note_setting("auth_user", "the query is not run as this user", instead);
        }
        if let Some(query) = query {
            if file.is_some() {
                let instead = "users that only stand in the file need a role on the nodes";
                self.note_setting(
                    "auth_file",
                    "Tandem has a users file or a query, not both",
                    instead,
                );
            }
            return (None, Some(query));
        }
        if self.setting("auth_user").is_some() {
            // Who has no query but an auth_user looks into pg_authid, as Tandem does by itself.
            return (None, None);
        }
        if let Some(path) = &file
            && let Err(error) = read_users_file(path)
        {
            self.note_setting(
                "auth_file",
                error.to_string(),
                "mend it before Tandem starts",
            );
        }
        (file, None)
    }
}

fn of_line(path: &Path, text: &str, problem: &Problem) -> Note {
    let (line, _) = line_and_column(text, problem.span.start);
    Note {
        file: path.to_owned(),
        line,
        what: problem.message.clone(),
        instead: problem.hint.clone().unwrap_or_default(),
    }
}
