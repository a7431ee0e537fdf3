//! `[auth]` and `[admin]`: who may come in, and who may do what in the console.

use std::path::Path;

use tandem_routing_rules::document::{Problems, Section, Value};
use tandem_wire::tls::ClientTlsMode;

use super::listen::{clashes, parse_listen};
use super::reader::Reader;
use super::{AdminConfig, AuthConfig, AuthMethod, Listen, ProxyConfig};
use crate::auth::{HostRules, TlsOffer, parse_host_rule, parse_host_rules};

impl Reader<'_> {
    pub(super) fn auth(
        &mut self,
        section: Option<Section<'_>>,
        proxy: Option<&ProxyConfig>,
    ) -> Option<AuthConfig> {
        let Some(mut section) = section else {
            return Some(AuthConfig {
                rules: HostRules::of_method(AuthMethod::ScramSha256),
                users_file: None,
                query: None,
            });
        };
        let rules = self.host_rules(&mut section, proxy);
        let users_file = section.take("users_file");
        let query = section.take("query");
        if let (Some(_), Some(query)) = (&users_file, &query) {
            let hint = "keep one of the two";
            self.problems.add_with_hint(
                query.key_span(),
                "`auth` has both `users_file` and `query`",
                hint,
            );
        }
        let users_file = users_file.and_then(|value| self.secret_file(&value));
        let query = query.and_then(|value| {
            let text = value.string(&mut self.problems)?;
            if !text.contains("$1") {
                let hint = "for example `SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename = $1`";
                self.problems.add_with_hint(value.span(), "the query does not use `$1`, the user's name", hint);
            }
            Some(text.to_owned())
        });
        section.finish(&mut self.problems);
        Some(AuthConfig {
            rules: rules?,
            users_file,
            query,
        })
    }

    /// `method`, `hba` or `hba_file`: one of them.
    fn host_rules(
        &mut self,
        section: &mut Section<'_>,
        proxy: Option<&ProxyConfig>,
    ) -> Option<HostRules> {
        let method = section.take("method");
        let given = [section.take("hba"), section.take("hba_file")];
        let mut given = given.into_iter().flatten().chain(method);
        let rules = given.next();
        for another in given {
            let message = format!("`{}` stands beside host rules", another.path());
            let hint = "keep one of `method`, `hba` and `hba_file`: each rule names its method";
            self.problems
                .add_with_hint(another.key_span(), message, hint);
        }
        let Some(value) = rules else {
            return Some(HostRules::of_method(AuthMethod::ScramSha256));
        };
        let tls = proxy.and_then(|proxy| proxy.tls.as_ref());
        let offer = TlsOffer {
            enabled: tls.is_some_and(|tls| tls.mode != ClientTlsMode::Disable),
            client_ca: tls.is_some_and(|tls| tls.client_ca.is_some()),
        };
        let rules = match value.path() {
            "auth.method" => return self.method(&value, proxy).map(HostRules::of_method),
            "auth.hba" => self.listed_rules(&value, offer)?,
            _ => self.rules_of_file(&value, offer)?,
        };
        if let Some(open) = rules.iter().find(|rule| rule.is_open()) {
            let text = format!(
                "rule {} (`{}`) lets anybody who reaches the port in as any user that it names",
                open.line, open.text
            );
            self.warn(&value, &text);
        }
        Some(rules)
    }

    fn listed_rules(&mut self, value: &Value<'_>, tls: TlsOffer) -> Option<HostRules> {
        let mut rules = Vec::new();
        for (place, (text, element)) in (1..).zip(value.strings(&mut self.problems)?) {
            let mut found = Problems::default();
            rules.extend(parse_host_rule(text, place, tls, &mut found));
            for problem in found.into_sorted() {
                let hint = problem.hint.unwrap_or_default();
                self.problems
                    .add_with_hint(element.span(), problem.message, hint);
            }
        }
        Some(rules.into())
    }

    fn rules_of_file(&mut self, value: &Value<'_>, tls: TlsOffer) -> Option<HostRules> {
        let path = self.path(value)?;
        let text = self.text_of("host rules", &path, value.span())?;
        let mut found = Problems::default();
        let rules = parse_host_rules(&text, tls, &mut found);
        self.add_elsewhere(&path, &text, found.into_sorted());
        Some(rules)
    }

    fn method(&mut self, value: &Value<'_>, proxy: Option<&ProxyConfig>) -> Option<AuthMethod> {
        let methods = [
            ("scram-sha-256", AuthMethod::ScramSha256),
            ("md5", AuthMethod::Md5),
            ("trust", AuthMethod::Trust),
            ("cert", AuthMethod::Cert),
        ];
        let method = value.choice(&methods, &mut self.problems)?;
        let Some(proxy) = proxy else {
            return Some(method);
        };
        match method {
            AuthMethod::Cert => {
                let tls = proxy.tls.as_ref();
                let verified = tls.is_some_and(|tls| {
                    tls.client_ca.is_some() && tls.mode == ClientTlsMode::Require
                });
                if !verified {
                    let hint = "set `client_ca` and mode = \"require\" in `[proxy.tls]`";
                    self.problems.add_with_hint(
                        value.span(),
                        "method \"cert\" needs client certificates",
                        hint,
                    );
                }
            }
            AuthMethod::Trust => {
                let open = |listen: &Listen| matches!(listen, Listen::Tcp(address) if !address.ip().is_loopback());
                if proxy.listen.iter().any(open) {
                    self.warn(
                        value,
                        "method \"trust\" lets anybody who reaches the port in as any user",
                    );
                }
            }
            AuthMethod::ScramSha256 | AuthMethod::Md5 => {}
        }
        Some(method)
    }

    pub(super) fn admin(
        &mut self,
        mut section: Section<'_>,
        state_dir: &Path,
        proxy: Option<&ProxyConfig>,
    ) -> Option<AdminConfig> {
        let listen = section
            .require("listen", &mut self.problems)
            .and_then(|value| {
                let text = value.string(&mut self.problems)?;
                match parse_listen(text, &self.base, 0) {
                    Ok(Listen::Tcp(address)) => Some((value, address)),
                    Ok(Listen::Unix { .. }) => {
                        let hint = "write an IP address and a port, such as `127.0.0.1:6433`";
                        self.problems.add_with_hint(
                            value.span(),
                            "the admin port is TCP only",
                            hint,
                        );
                        None
                    }
                    Err((message, hint)) => {
                        self.problems.add_with_hint(value.span(), message, hint);
                        None
                    }
                }
            });
        let token_file = section
            .take("token_file")
            .and_then(|value| self.path(&value));
        let users = self.names(&mut section, "users");
        let readers = self.names(&mut section, "readers");
        section.finish(&mut self.problems);
        let (value, listen) = listen?;
        let taken = Listen::Tcp(listen);
        if proxy.is_some_and(|proxy| proxy.listen.iter().any(|other| clashes(other, &taken))) {
            let hint = "give the two different ports";
            self.problems.add_with_hint(
                value.span(),
                "the proxy listens on this address already",
                hint,
            );
        }
        if !listen.ip().is_loopback() {
            self.warn(
                &value,
                "the admin port is reachable over the network, without TLS",
            );
        }
        Some(AdminConfig {
            listen,
            token_file: token_file.unwrap_or_else(|| state_dir.join("admin.token")),
            users,
            readers,
        })
    }

    fn names(&mut self, section: &mut Section<'_>, key: &'static str) -> Vec<String> {
        let listed = section
            .take(key)
            .and_then(|value| value.strings(&mut self.problems));
        let names = listed.into_iter().flatten();
        names.map(|(name, _)| name.to_owned()).collect()
    }
}
