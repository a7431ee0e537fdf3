//! Owns what a client's startup parameters are: settings of its session, which follow it from server to server, and the rest,
//! which only the login of a server can say.

use std::collections::BTreeMap;

use super::{profile::APPLICATION_NAME, route::Hints};
use crate::{config::PoolMode, pool::Params};

/// The setting that says where a session goes. Nodes never see it.
const ROUTING_KEY: &str = "tandem.key";
/// PostgreSQL cuts off the names of SQL behind this (`NAMEDATALEN - 1`).
const NAME_MAX: usize = 63;

/// A client's startup parameters, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parameters {
    /// What SET may be able to do; each name once, in order.
    pub(super) settings: Params,
    /// What goes into the startup message of servers.
    pub(super) login: Params,
    pub(super) hints: Hints,
}

impl Parameters {
    /// Takes apart what a client sent. Who shares no server gets one with the same startup message.
    pub(super) fn new(params: &[(String, String)], mode: PoolMode) -> Parameters {
        let (mut settings, mut login) = (BTreeMap::new(), BTreeMap::new());
        let last = |wanted: &str| {
            let mut params = params.iter().rev();
            params.find(|(name, _)| name == wanted)
        };
        // PostgreSQL takes the options first (`process_startup_options` in postinit.c).
        let options = last("options");
        match options.map(|(_, options)| (options, pairs(options))) {
            Some((_, Some(pairs))) => settings.extend(pairs),
            Some((options, None)) => {
                login.insert("options".to_owned(), options.clone());
            }
            None => {}
        }
        let others = params.iter().filter(|(name, _)| name != "options");
        settings.extend(others.map(|(name, value)| (name.to_ascii_lowercase(), value.clone())));
        let hints = Hints {
            application_name: settings
                .get(APPLICATION_NAME)
                .map(|name| name.as_str().into()),
            key: settings.remove(ROUTING_KEY).map(Into::into),
        };
        if mode == PoolMode::Session {
            return Parameters {
                settings: Params::default(),
                login: params.into(),
                hints,
            };
        }
        let (settings, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
            settings.into_iter().partition(|(name, _)| can_be_set(name));
        login.extend(rest);
        Parameters {
            settings: settings.into_iter().collect(),
            login: login.into_iter().collect(),
            hints,
        }
    }

    /// These turned out to be nothing that SET can do.
    pub(super) fn set_apart(&mut self, names: &[String]) {
        let (apart, settings): (Vec<_>, Vec<_>) = self
            .settings
            .iter()
            .cloned()
            .partition(|(name, _)| names.contains(name));
        self.settings = settings.into();
        let all = self.login.iter().cloned().chain(apart);
        self.login = all.collect::<BTreeMap<_, _>>().into_iter().collect();
    }
}

/// Whether SET does with it what a login does, if it can do it at all. Who the session is decides about what RESET of it
/// gives, and what belongs to a transaction ends with that.
fn can_be_set(name: &str) -> bool {
    let is_name = |part: &str| (1..=NAME_MAX).contains(&part.len()) && part.is_ascii();
    name.split('.').all(is_name)
        && !matches!(
            name,
            "role"
                | "session_authorization"
                | "seed"
                | "transaction_isolation"
                | "transaction_read_only"
                | "transaction_deferrable"
        )
}

/// The settings in a startup packet's `options`, with names in lower case; nothing where it says anything else than
/// `-c name=value` and `--name=value` (`process_postgres_switches` in postgres.c), or what a startup message has another
/// meaning for.
fn pairs(options: &str) -> Option<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut words = words(options).into_iter();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("-c") {
            Some("") => words.next()?,
            Some(setting) => setting.to_owned(),
            None => word.strip_prefix("--")?.to_owned(),
        };
        let (name, value) = setting.split_once('=')?;
        // `ParseLongOption` in guc.c.
        let name = name.replace('-', "_").to_ascii_lowercase();
        let is_taken = matches!(
            name.as_str(),
            "" | "user" | "database" | "options" | "replication"
        );
        if is_taken || name.starts_with("_pq_.") {
            return None;
        }
        found.push((name, value.to_owned()));
    }
    Some(found)
}

/// The words of `options`: separated by white space; a backslash takes the next character as it is (`pg_split_opts` in
/// postinit.c).
fn words(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        if matches!(c, ' ' | '\t'..='\r') {
            words.extend(word.take());
        } else {
            let c = if c == '\\' { chars.next() } else { Some(c) };
            word.get_or_insert_default().extend(c);
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn parameters(pairs: &[(&str, &str)]) -> Parameters {
        Parameters::new(&owned(pairs), PoolMode::Transaction)
    }

    #[test]
    fn the_routing_key_is_found_wherever_it_stands_and_goes_no_further() {
        let table = [
            ("-c tandem.key=station:42", Some("station:42")),
            ("-ctandem.key=a", Some("a")),
            ("--tandem.key=a", Some("a")),
            ("-c geqo=off  -c tandem.key=a\\ b -c x=y", Some("a b")),
            ("-c tandem.key=a -c tandem.key=b", Some("b")),
            ("-c other.key=a", None),
            ("-c", None),
            ("", None),
            ("-c tandem.key", None),
            ("\\", None),
        ];
        for (options, expected) in table {
            let found = parameters(&[("options", options)]);
            assert_eq!(found.hints.key.as_deref(), expected, "{options}");
            let has_key = |(name, _): &(String, String)| name == ROUTING_KEY;
            assert!(!found.settings.iter().any(has_key), "{options}");
        }
        let found = parameters(&[("tandem.key", "own"), ("options", "-c tandem.key=a")]);
        assert_eq!(found.hints.key.as_deref(), Some("own"));
    }

    #[test]
    fn what_can_be_set_is_told_from_what_only_a_login_can_say() {
        let found = parameters(&[
            ("DateStyle", "ISO"),
            (
                "options",
                "-c work-mem=5MB --search_path=a\\ b -c datestyle=SQL -c role=other",
            ),
            ("application_name", "x"),
        ]);
        let settings = [
            ("application_name", "x"),
            ("datestyle", "ISO"),
            ("search_path", "a b"),
            ("work_mem", "5MB"),
        ];
        assert_eq!(*found.settings, owned(&settings));
        assert_eq!(*found.login, owned(&[("role", "other")]));
        assert_eq!(found.hints.application_name.as_deref(), Some("x"));
    }

    #[test]
    fn options_of_another_form_are_left_to_the_server_as_they_are() {
        for options in [
            "-e",
            "-c",
            "-c x",
            "--",
            "-c x=y -B 7",
            "-c user=postgres",
            "word",
            "-c =y",
        ] {
            let found = parameters(&[("options", options)]);
            assert_eq!(*found.login, owned(&[("options", options)]), "{options}");
            assert!(found.settings.is_empty(), "{options}");
        }
    }

    #[test]
    fn what_is_set_apart_goes_into_the_login() {
        let mut found = parameters(&[("options", "-c b=1 -c a=2 -c role=r")]);
        found.set_apart(&["b".to_owned()]);
        assert_eq!(*found.settings, owned(&[("a", "2")]));
        assert_eq!(*found.login, owned(&[("b", "1"), ("role", "r")]));
    }

    #[test]
    fn a_session_with_a_server_of_its_own_logs_in_there_as_its_client_did() {
        let params = owned(&[
            ("options", "-c work_mem=5MB -c tandem.key=k"),
            ("application_name", "x"),
        ]);
        let found = Parameters::new(&params, PoolMode::Session);
        assert_eq!(*found.login, params);
        assert!(found.settings.is_empty());
        assert_eq!(found.hints.key.as_deref(), Some("k"));
    }
}
