//! Owns what a client's startup parameters are: settings of its session, which follow it from server to server, and the rest,
//! which only the login of a server can say.

use std::{collections::BTreeMap, net::IpAddr};

use super::{profile::APPLICATION_NAME, route::Hints};
use crate::{config::PoolMode, pool::Params};

/// The setting that says where a session goes. It is read here, and goes no further: a server that is shared hears of it only
/// in `options` that go there as they are.
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
    /// What the client calls its settings: PostgreSQL's errors do so, too, and to a startup message `User` is not `user`.
    spelled: BTreeMap<String, String>,
}

impl Parameters {
    /// Takes apart what a client sent, and from where. Who shares no server gets one with the same startup message.
    pub(super) fn new(
        params: &[(String, String)],
        client: Option<IpAddr>,
        mode: PoolMode,
    ) -> Parameters {
        let (options, others): (Vec<_>, Vec<_>) = params
            .iter()
            .cloned()
            .partition(|(name, _)| name == "options");
        let options = options.last().map(|(_, options)| options.as_str());
        let (in_options, is_all) = pairs(options.unwrap_or_default());
        // PostgreSQL takes the options first (`process_startup_options` in postinit.c).
        let last = |wanted: &str| {
            let mut given = others.iter().rev().chain(in_options.iter().rev());
            let found = given.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| value.as_str().into())
        };
        let hints = Hints {
            application_name: last(APPLICATION_NAME),
            key: last(ROUTING_KEY),
            client,
            options: in_options
                .iter()
                .chain(&others)
                .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
                .collect(),
        };
        if mode == PoolMode::Session {
            return Parameters {
                settings: Params::default(),
                login: params.into(),
                hints,
                spelled: BTreeMap::new(),
            };
        }
        let (mut settings, mut login) = (BTreeMap::new(), BTreeMap::new());
        let mut spelled = BTreeMap::new();
        if !is_all {
            let options = options.unwrap_or_default();
            login.insert("options".to_owned(), options.to_owned());
        }
        let in_options = in_options.into_iter().filter(|_| is_all);
        for (name, value) in in_options.chain(others) {
            let lower = name.to_ascii_lowercase();
            if lower == ROUTING_KEY {
                continue;
            }
            if can_be_set(&lower) {
                spelled.insert(lower.clone(), name);
                settings.insert(lower, value);
            } else {
                login.insert(name, value);
            }
        }
        Parameters {
            settings: settings.into_iter().collect(),
            login: login.into_iter().collect(),
            hints,
            spelled,
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
        let apart = apart.into_iter().map(|(name, value)| {
            let spelled = self.spelled.get(&name);
            (spelled.cloned().unwrap_or(name), value)
        });
        let all = self.login.iter().cloned().chain(apart);
        self.login = all.collect::<BTreeMap<_, _>>().into_iter().collect();
    }
}

/// Whether SET does with it what a login does, if it can do it at all. Who the session is decides about what RESET of it
/// gives, what belongs to a transaction ends with that, and `temp_buffers` stays as it is once there was a temporary table.
fn can_be_set(name: &str) -> bool {
    let is_name = |part: &str| (1..=NAME_MAX).contains(&part.len()) && part.is_ascii();
    name.split('.').all(is_name)
        && !is_reserved(name)
        && !matches!(
            name,
            "role"
                | "session_authorization"
                | "seed"
                | "temp_buffers"
                | "transaction_isolation"
                | "transaction_read_only"
                | "transaction_deferrable"
        )
}

/// Whether a startup message means something else by this name, in lower case, than a setting
/// (`ProcessStartupPacket` in backend_startup.c).
fn is_reserved(name: &str) -> bool {
    matches!(name, "user" | "database" | "options" | "replication") || name.starts_with("_pq_.")
}

/// The settings in a startup packet's `options`, and whether these are all that it says: there are other things than
/// `-c name=value` and `--name=value` (`process_postgres_switches` in postgres.c).
fn pairs(options: &str) -> (Vec<(String, String)>, bool) {
    let (mut found, mut is_all) = (Vec::new(), true);
    let mut words = words(options).into_iter();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("-c") {
            Some("") => words.next(),
            Some(setting) => Some(setting.to_owned()),
            None => word.strip_prefix("--").map(str::to_owned),
        };
        let pair = setting.as_deref().and_then(|pair| pair.split_once('='));
        // `ParseLongOption` in guc.c.
        let pair = pair.map(|(name, value)| (name.replace('-', "_"), value));
        match pair {
            Some((name, value)) if !name.is_empty() && !is_reserved(&name.to_ascii_lowercase()) => {
                found.push((name, value.to_owned()));
            }
            _ => is_all = false,
        }
    }
    (found, is_all)
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
        Parameters::new(&owned(pairs), None, PoolMode::Transaction)
    }

    #[test]
    fn the_routing_key_is_found_wherever_it_stands_and_goes_no_further() {
        let table = [
            ("-c tandem.key=station:42", Some("station:42")),
            ("-ctandem.key=a", Some("a")),
            ("--tandem.key=a", Some("a")),
            ("-c geqo=off  -c tandem.key=a\\ b -c x=y", Some("a b")),
            ("-c tandem.key=a -c tandem.key=b", Some("b")),
            ("-e -c tandem.key=a", Some("a")),
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
    fn what_is_set_apart_goes_into_the_login_as_it_is_spelled() {
        let mut found = parameters(&[("options", "-c No-Such=1 -c a=2 -c role=r")]);
        found.set_apart(&["no_such".to_owned()]);
        assert_eq!(*found.settings, owned(&[("a", "2")]));
        assert_eq!(*found.login, owned(&[("No_Such", "1"), ("role", "r")]));
    }

    #[test]
    fn what_looks_like_another_user_stays_a_setting() {
        for name in ["User", "DATABASE", "Options", "Replication", "_PQ_.x"] {
            let found = parameters(&[(name, "x")]);
            assert_eq!(*found.login, owned(&[(name, "x")]));
            assert!(found.settings.is_empty(), "{name}");
        }
    }

    #[test]
    fn a_session_with_a_server_of_its_own_logs_in_there_as_its_client_did() {
        let params = owned(&[
            ("options", "-c work_mem=5MB -c tandem.key=k"),
            ("application_name", "x"),
        ]);
        let found = Parameters::new(&params, None, PoolMode::Session);
        assert_eq!(*found.login, params);
        assert!(found.settings.is_empty());
        assert_eq!(found.hints.key.as_deref(), Some("k"));
    }
}
