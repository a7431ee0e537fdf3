//! Owns what a login made of a session's settings.

use std::collections::BTreeMap;

use super::settings::Value;

/// What a login made of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Startup {
    pub(super) value: Value,
    /// The client asked for it. What is only reported comes from the server.
    pub(super) is_sent: bool,
    /// The server tells each change of it.
    pub(super) is_reported: bool,
}

/// The settings that a login made something of, by name. Most questions, several for each transaction, are after names that
/// are not among them: these are answered without a comparison of names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Startups {
    known: BTreeMap<Vec<u8>, Startup>,
    /// A bit for each name that is there; several can have the same.
    bits: u64,
}

impl Startups {
    pub(super) fn get(&self, name: &[u8]) -> Option<&Startup> {
        match self.bits & bit(name) {
            0 => None,
            _ => self.known.get(name),
        }
    }

    pub(super) fn contains_key(&self, name: &[u8]) -> bool {
        self.get(name).is_some()
    }

    pub(super) fn insert(&mut self, name: Vec<u8>, startup: Startup) {
        self.bits |= bit(&name);
        self.known.insert(name, startup);
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.known.keys()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Vec<u8>, &Startup)> {
        self.known.iter()
    }
}

impl FromIterator<(Vec<u8>, Startup)> for Startups {
    fn from_iter<I: IntoIterator<Item = (Vec<u8>, Startup)>>(settings: I) -> Self {
        let mut startups = Startups::default();
        for (name, startup) in settings {
            startups.insert(name, startup);
        }
        startups
    }
}

/// What routing asks for has other bits than what PostgreSQL 15 to 18 report at a login.
fn bit(name: &[u8]) -> u64 {
    let last = name.last().copied().unwrap_or_default();
    1 << ((name.len() + 3 * usize::from(last)) % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_routing_asks_for_is_never_looked_for_among_what_is_reported() {
        // "GUC_REPORT" in guc_tables.c, as they are kept.
        let reported = [
            "application_name",
            "client_encoding",
            "datestyle",
            "intervalstyle",
            "timezone",
            "standard_conforming_strings",
            "scram_iterations",
            "session_authorization",
            "default_transaction_read_only",
            "server_encoding",
            "integer_datetimes",
            "extra_float_digits",
        ];
        let startup = || Startup {
            value: Value::Default,
            is_sent: false,
            is_reported: true,
        };
        let startups: Startups = reported
            .iter()
            .map(|name| (name.as_bytes().to_vec(), startup()))
            .collect();
        for name in reported {
            assert!(startups.contains_key(name.as_bytes()), "{name}");
        }
        for name in [
            "default_transaction_isolation",
            "tandem.key",
            "tandem.explain",
        ] {
            assert_eq!(startups.bits & bit(name.as_bytes()), 0, "{name}");
            assert!(!startups.contains_key(name.as_bytes()), "{name}");
        }
        let search_path = startups.bits & bit(b"search_path");
        assert_eq!(search_path, 0, "18 reports it, and then it is there");
    }
}
