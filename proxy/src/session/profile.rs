//! Owns what sessions begin with, and what is known of the settings of a server connection.

use tandem_routing_rules::state::{Settings, Status, Value, difference, effects};
use xxhash_rust::xxh3::Xxh3;

use super::sequences::Sequences;
use crate::pool::Params;

/// The settings of a server connection.
#[derive(Debug)]
pub(crate) struct ServerSettings {
    /// As after its login.
    login: Settings,
    pub(super) now: Settings,
    /// The version of the session whose settings it has; 0: of none.
    pub(super) version: u64,
    /// The session that may have changed more than is known; 0: none.
    pub(super) touched_by: u32,
    /// Whose values of sequences it may hold.
    pub(super) sequences: Sequences,
}

/// What sessions with the same settings at login begin with.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(super) settings: Settings,
    pub(super) version: u64,
    /// What the client is told at its login.
    pub(crate) greeting: Params,
}

impl Profile {
    /// Of clients with these settings in their startup message; `reported` is what a server reports that has them, but for
    /// `application_name`.
    pub(crate) fn new(settings: &[(String, String)], reported: &[(String, String)]) -> Profile {
        let mut greeting = reported.to_vec();
        let name = settings.iter().find(|(name, _)| name == APPLICATION_NAME);
        if let Some((_, name)) = name {
            for (_, value) in greeting
                .iter_mut()
                .filter(|(reported, _)| reported == APPLICATION_NAME)
            {
                *value = cleaned(name);
            }
        }
        Profile {
            settings: at_login(settings, &greeting),
            version: version_at_login(settings, &greeting),
            greeting: greeting.into(),
        }
    }
}

/// The parameter in which nearly all clients differ: nothing depends on it, and some put a process number there.
pub(crate) const APPLICATION_NAME: &str = "application_name";

/// `pg_clean_ascii`: what is not printable ASCII becomes a question mark; and `NAMEDATALEN - 1`.
fn cleaned(name: &str) -> String {
    name.bytes()
        .take(63)
        .map(|byte| match byte {
            b' '..=b'~' => char::from(byte),
            _ => '?',
        })
        .collect()
}

/// Settings after a login.
fn at_login(settings: &[(String, String)], reported: &[(String, String)]) -> Settings {
    let bytes = settings
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    let mut settings = Settings::new(bytes);
    for (name, value) in reported {
        settings.reported_at_login(name.as_bytes(), value.as_bytes());
    }
    settings
}

/// The version of sessions that begin with these settings.
fn version_at_login(params: &[(String, String)], reported: &[(String, String)]) -> u64 {
    let mut hash = Xxh3::new();
    for (name, value) in params.iter().chain(reported) {
        for text in [name, value] {
            hash.update(text.as_bytes());
            hash.update(&[0]);
        }
    }
    hash.digest().max(1)
}

impl ServerSettings {
    /// Of a connection that has just logged in.
    pub(crate) fn new(
        params: &[(String, String)],
        reported: &[(String, String)],
    ) -> ServerSettings {
        let login = at_login(params, reported);
        ServerSettings {
            now: login.clone(),
            login,
            version: 0,
            touched_by: 0,
            sequences: Sequences::Forgotten,
        }
    }

    /// All that sessions have left there is thrown away.
    pub(super) fn cleaned(&mut self) {
        self.now = self.login.clone();
        self.touched_by = 0;
        self.version = 0;
        self.sequences = Sequences::Forgotten;
    }

    /// A ParameterStatus while nobody uses the server.
    pub(crate) fn reported(&mut self, name: &[u8], value: &[u8]) {
        self.now.reported(name, value);
        // Outside of a transaction there is nothing to disagree on.
        let _ = self.now.ready(Status::Idle);
        self.version = 0;
    }

    /// A ParameterStatus that comes of our own setting.
    pub(super) fn confirmed(&mut self, name: &[u8], value: &[u8]) {
        self.now.reported(name, value);
        let _ = self.now.ready(Status::Idle);
    }

    /// What RESET gives there.
    pub(super) fn login(&self) -> &Settings {
        &self.login
    }

    /// The statements that give it these settings, for this session (0: for none). It is taken to have them when
    /// [`did`](Self::did) is told so.
    pub(super) fn lead_to(&mut self, wanted: &Settings, session: u32) -> Vec<Vec<u8>> {
        let mut statements = Vec::new();
        if self.touched_by != 0 && self.touched_by != session {
            statements.push(CLEANUP.to_vec());
            self.cleaned();
        }
        statements.extend(difference(&self.now, wanted));
        statements
    }

    /// These of the statements succeed.
    pub(super) fn did<'s>(&mut self, statements: impl Iterator<Item = &'s [u8]>) {
        for statement in statements.filter(|statement| *statement != CLEANUP) {
            self.now.apply(&effects(statement, true));
        }
        let _ = self.now.ready(Status::Idle);
    }

    /// What it reports now of what it `reported` at login.
    pub(super) fn reports(&self, reported: &[(String, String)]) -> Params {
        let now = |name: &str| match self.now.value(name.to_ascii_lowercase().as_bytes()) {
            Value::Text(value) => String::from_utf8(value.clone()).ok(),
            _ => None,
        };
        reported
            .iter()
            .map(|(name, value)| (name.clone(), now(name).unwrap_or_else(|| value.clone())))
            .collect()
    }
}

/// What is wanted of a server before one has said what it makes of these settings.
pub(super) fn wanted(settings: &[(String, String)], reported: &[(String, String)]) -> Settings {
    let is_set = |name: &str| {
        settings
            .iter()
            .any(|(set, _)| set.eq_ignore_ascii_case(name))
    };
    let others = reported.iter().filter(|(name, _)| !is_set(name)).cloned();
    at_login(settings, &others.collect::<Vec<_>>())
}

/// What throws away all that a session may have left behind, but for prepared statements.
pub(super) const CLEANUP: &[u8] =
    b"CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; \
    SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD SEQUENCES; DISCARD TEMP";
