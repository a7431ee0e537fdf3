//! Owns the model of a session's settings, through transactions and savepoints.
//!
//! Each level of a transaction (itself, and each savepoint) knows two things of a setting: what it is for the session if
//! all commits, and what SET LOCAL made of it up to the end. A level that commits hands both to the one below, one that is
//! rolled back is forgotten. That is what `AtEOXact_GUC` in `src/backend/utils/misc/guc.c` comes to.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Change, Discard, Effect, Effects, Scope, Transaction,
    startup::{Startup, Startups},
};

/// What a setting is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Value {
    /// What RESET gives: the value at login, or else what the server's configuration says.
    #[default]
    Default,
    /// The value's text, as `set_config` takes it.
    Text(Vec<u8>),
    /// The names of a list as SET was given them, for the settings whose lists the server quotes itself.
    List(Vec<Vec<u8>>),
}

/// What ReadyForQuery says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// `I`
    Idle,
    /// `T`
    InTransaction,
    /// `E`
    Failed,
}

impl Status {
    /// From ReadyForQuery's byte.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            b'I' => Self::Idle,
            b'T' => Self::InTransaction,
            b'E' => Self::Failed,
            _ => return None,
        })
    }
}

/// The server says another transaction status than the statements came to: the model's values are no longer certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server's transaction status is {server:?}, the statements came to {model:?}")]
pub struct Disagreement {
    /// What the statements came to.
    pub model: Status,
    /// What the server says.
    pub server: Status,
}

/// Who set a setting: who may set it again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Identity {
    pub(super) authorization: Value,
    pub(super) role: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) value: Value,
    pub(super) by: Identity,
}

type Layer = BTreeMap<Vec<u8>, Setting>;

/// A transaction, or a savepoint inside of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Frame {
    savepoint: Option<Vec<u8>>,
    session: Layer,
    local: Layer,
}

/// The settings of a session, or of a server connection, as far as they differ from the server's defaults.
///
/// Call [`apply`](Self::apply) for each statement that succeeds, [`failed`](Self::failed) for each error,
/// [`reported`](Self::reported) for each ParameterStatus, and [`ready`](Self::ready) at each ReadyForQuery, which also ends
/// the transaction that a string of several statements, or a pipeline up to Sync, is without BEGIN.
///
/// What is Default takes no memory, and a clone shares what is known of the login. A role's own `ALTER ROLE .. SET` is
/// among the server's defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What RESET gives, where it is known.
    startup: Arc<Startups>,
    /// The last reports, where they are not what the login was told.
    reported: BTreeMap<Vec<u8>, Value>,
    /// What was reported since the last ReadyForQuery.
    news: BTreeSet<Vec<u8>>,
    /// What statements changed, or changed back, since then.
    changed: BTreeSet<Vec<u8>>,
    /// What is committed.
    session: Layer,
    /// The transaction, and the savepoints inside of it.
    frames: Vec<Frame>,
    /// The state of a transaction that was begun explicitly; Idle without one.
    status: Status,
}

impl Default for Settings {
    fn default() -> Self {
        Self::new([])
    }
}

impl Settings {
    /// After a login with these settings in the startup message (`-c` in `options` too; not user and database).
    pub fn new<'a>(startup: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let startup = startup.into_iter().map(|(name, value)| {
            let value = Value::Text(value.into());
            let startup = Startup {
                value,
                is_sent: true,
                is_reported: false,
            };
            (normalized(name), startup)
        });
        Self {
            startup: Arc::new(startup.collect()),
            reported: BTreeMap::new(),
            news: BTreeSet::new(),
            changed: BTreeSet::new(),
            session: Layer::new(),
            frames: Vec::new(),
            status: Status::Idle,
        }
    }

    /// A ParameterStatus of the login: what RESET gives from now on.
    pub fn reported_at_login(&mut self, name: &[u8], value: &[u8]) {
        let name = normalized(name);
        if !is_read_only(&name) {
            let is_sent = self.startup.get(&name).is_some_and(|known| known.is_sent);
            let startup = Startup {
                value: Value::Text(value.into()),
                is_sent,
                is_reported: true,
            };
            Arc::make_mut(&mut self.startup).insert(name, startup);
        }
    }

    /// A later ParameterStatus: with the next ReadyForQuery this is the value, whatever the statements came to. Only what
    /// RESET gives is known from the login: that of a server connection may be another one than the session's.
    pub fn reported(&mut self, name: &[u8], value: &[u8]) {
        let name = normalized(name);
        if !is_read_only(&name) {
            self.reported
                .insert(name.clone(), Value::Text(value.into()));
            self.news.insert(name);
        }
    }

    /// What a ParameterStatus has to say, because the last one said otherwise, of settings that are what the login made them:
    /// names as the server writes them, and values. It counts as said.
    pub fn untold(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut untold = Vec::new();
        for (name, told) in std::mem::take(&mut self.reported) {
            let startup = self.startup.get(&name);
            let startup = startup.filter(|startup| startup.is_reported && startup.value != told);
            match startup.map(|startup| &startup.value) {
                Some(Value::Text(value)) if self.is_default(&name) => {
                    untold.push((spelled(name), value.clone()));
                }
                _ => {
                    self.reported.insert(name, told);
                }
            }
        }
        untold
    }

    /// Whether a setting is at this moment what RESET gives.
    #[must_use]
    pub fn is_default(&self, name: &[u8]) -> bool {
        let value = self.visible(name);
        value.is_none_or(|value| *value == Value::Default)
    }

    /// Takes over what the server said of the settings that it or a statement spoke of since the last time.
    fn take_reports(&mut self) {
        for name in std::mem::take(&mut self.news) {
            if !self.changed.contains(&name) {
                self.take_report(&name, false);
            }
        }
        for name in std::mem::take(&mut self.changed) {
            self.take_report(&name, true);
        }
    }

    fn take_report(&mut self, name: &[u8], is_changed: bool) {
        let at_login = self.startup.get(name);
        let at_login = at_login.filter(|startup| startup.is_reported);
        let at_login = at_login.map(|startup| &startup.value);
        let Some(value) = self.reported.get(name).or(at_login).cloned() else {
            return;
        };
        if Some(&value) == at_login {
            self.reported.remove(name);
        }
        let is_default = self.is_default(name);
        if *self.value(name) == value || is_changed && is_default && self.startup.contains_key(name)
        {
            return;
        }
        let by = self.identity();
        if let Some(setting) = self.setting_mut(name) {
            setting.value = value;
            return;
        }
        // Nobody that the model has seen set it.
        let layer = match self.frames.last_mut() {
            Some(frame) => &mut frame.session,
            None => &mut self.session,
        };
        layer.insert(name.into(), Setting { value, by });
    }

    /// What SHOW would say at this moment; Default if nothing is known but that it is the server's.
    #[must_use]
    pub fn value(&self, name: &[u8]) -> &Value {
        self.or_startup(name, self.visible(name))
    }

    /// What it is for the session, once all that is open is rolled back.
    pub(super) fn committed(&self, name: &[u8]) -> &Value {
        let setting = self.session.get(name).map(|setting| &setting.value);
        self.or_startup(name, setting)
    }

    fn or_startup<'s>(&'s self, name: &[u8], value: Option<&'s Value>) -> &'s Value {
        match value {
            None | Some(Value::Default) => {
                let startup = self.startup.get(name);
                startup.map_or(&Value::Default, |startup| &startup.value)
            }
            Some(value) => value,
        }
    }

    /// What was set for the session and is committed.
    pub(super) fn layer(&self) -> &Layer {
        &self.session
    }

    pub(super) fn startup(&self) -> &Startups {
        &self.startup
    }

    /// What the statements so far come to; Idle also while a transaction is open that nobody began explicitly.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// Whether a transaction is open, explicit or not.
    #[must_use]
    pub fn is_in_transaction(&self) -> bool {
        self.status != Status::Idle || !self.frames.is_empty()
    }

    /// A statement has succeeded.
    pub fn apply(&mut self, effects: &Effects) {
        for change in &effects.changes {
            match change {
                Change::Set { name, value, scope } => self.set(name, value.clone(), *scope),
                Change::FromCurrent { name, scope } => {
                    let value = self.visible(name).cloned().unwrap_or_default();
                    self.set(name, value, *scope);
                }
                Change::ResetAll => self.reset_all(),
            }
        }
        match &effects.effect {
            Effect::Transaction(transaction) => self.transaction(transaction),
            Effect::Discard(Discard::All) => {
                self.set(SESSION_AUTHORIZATION, Value::Default, Scope::Session);
                self.reset_all();
                // It is a transaction of its own, in a pipeline too.
                self.commit();
            }
            _ => {}
        }
    }

    /// A statement has failed.
    pub fn failed(&mut self) {
        match self.status {
            Status::Idle => self.forget_from(0),
            Status::InTransaction => {
                self.status = Status::Failed;
                // The server takes the innermost level back at once; its savepoint is still there to go back to.
                if let Some(place) = self.frames.len().checked_sub(1) {
                    let savepoint = self.frames.last().and_then(|frame| frame.savepoint.clone());
                    self.forget_from(place);
                    self.frames.push(Frame {
                        savepoint,
                        ..Frame::default()
                    });
                }
            }
            Status::Failed => {}
        }
    }

    /// ReadyForQuery.
    ///
    /// # Errors
    /// Its status is not what the statements came to. The model goes on with the server's status.
    pub fn ready(&mut self, server: Status) -> Result<(), Disagreement> {
        let model = self.status;
        self.status = server;
        match (server, model) {
            (Status::Idle, Status::Idle) => self.commit(),
            // Of Failed: a COMMIT that failed.
            (Status::Idle, _) => self.forget_from(0),
            _ => {}
        }
        self.take_reports();
        let agrees = server == model || (server, model) == (Status::Idle, Status::Failed);
        agrees.then_some(()).ok_or(Disagreement { model, server })
    }

    /// The server is gone, and says nothing more: what was not committed is rolled back. Answers what a ParameterStatus has to
    /// say now, because the last one spoke of what is rolled back: names as the server writes them, and values.
    pub fn lost(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.forget_from(0);
        self.status = Status::Idle;
        let mut spoken_of = std::mem::take(&mut self.changed);
        spoken_of.append(&mut self.news);
        let mut untold = Vec::new();
        for name in spoken_of {
            let value = self.value(&name).clone();
            let Value::Text(text) = &value else { continue };
            if self.reported.get(&name).is_none_or(|told| *told == value) {
                continue;
            }
            untold.push((spelled(name.clone()), text.clone()));
            self.reported.insert(name, value);
        }
        untold
    }

    fn transaction(&mut self, transaction: &Transaction) {
        match transaction {
            // What went before it in the same string belongs to it.
            Transaction::Begin(_) if self.status == Status::Idle => {
                self.status = Status::InTransaction;
            }
            Transaction::Commit { chain } => {
                self.end(self.status != Status::Failed, *chain);
            }
            Transaction::Prepare(_) => self.end(self.status != Status::Failed, false),
            Transaction::Rollback { chain } => self.end(false, *chain),
            Transaction::Savepoint(name) => {
                self.frame();
                self.frames.push(Frame {
                    savepoint: Some(name.clone()),
                    ..Frame::default()
                });
            }
            Transaction::Release(name) => {
                if let Some(place) = self.savepoint(name) {
                    while self.frames.len() > place {
                        self.release();
                    }
                }
            }
            Transaction::RollbackTo(name) => {
                if let Some(place) = self.savepoint(name) {
                    self.forget_from(place);
                    self.frames.push(Frame {
                        savepoint: Some(name.clone()),
                        ..Frame::default()
                    });
                    self.status = Status::InTransaction;
                }
            }
            Transaction::Begin(_)
            | Transaction::CommitPrepared(_)
            | Transaction::RollbackPrepared(_)
            | Transaction::Modes(_)
            | Transaction::Snapshot(_) => {}
        }
    }

    fn end(&mut self, commits: bool, chain: bool) {
        if commits {
            self.commit();
        }
        self.forget_from(0);
        self.status = if chain {
            Status::InTransaction
        } else {
            Status::Idle
        };
    }

    fn commit(&mut self) {
        while self.frames.len() > 1 {
            self.release();
        }
        let committed = self.frames.pop().unwrap_or_default();
        self.changed.extend(committed.local.into_keys());
        for (name, setting) in committed.session {
            self.changed.insert(name.clone());
            if setting.value == Value::Default {
                self.session.remove(&name);
            } else {
                self.session.insert(name, setting);
            }
        }
    }

    /// Rolls back the levels from this one on.
    fn forget_from(&mut self, place: usize) {
        for frame in self.frames.drain(place..) {
            self.changed.extend(frame.session.into_keys());
            self.changed.extend(frame.local.into_keys());
        }
    }

    /// Merges the innermost level into the one around it.
    fn release(&mut self) {
        let Some(released) = self.frames.pop() else {
            return;
        };
        let frame = self.frame();
        for (name, setting) in released.session {
            frame.local.remove(&name);
            frame.session.insert(name, setting);
        }
        frame.local.extend(released.local);
    }

    /// The place of the innermost savepoint of this name.
    fn savepoint(&self, name: &[u8]) -> Option<usize> {
        let is_it = |frame: &Frame| frame.savepoint.as_deref() == Some(name);
        self.frames.iter().rposition(is_it)
    }

    /// The innermost level.
    fn frame(&mut self) -> &mut Frame {
        if self.frames.is_empty() {
            self.frames.push(Frame::default());
        }
        let innermost = self.frames.len() - 1;
        &mut self.frames[innermost]
    }

    fn set(&mut self, name: &[u8], value: Value, scope: Scope) {
        if is_of_transaction(name) {
            return;
        }
        if name == SESSION_AUTHORIZATION {
            // The standard wants it, and the server does it with the same scope.
            let role = match value {
                Value::Default => Value::Default,
                _ => Value::Text(b"none".to_vec()),
            };
            self.set(ROLE, role, scope);
        }
        self.changed.insert(name.into());
        let by = self.identity();
        let setting = Setting { value, by };
        let frame = self.frame();
        match scope {
            Scope::Session => {
                frame.local.remove(name);
                frame.session.insert(name.into(), setting);
            }
            Scope::Local => {
                frame.local.insert(name.into(), setting);
            }
        }
    }

    fn reset_all(&mut self) {
        let frames = self.frames.iter();
        let layers = frames.flat_map(|frame| [&frame.session, &frame.local]);
        let names: BTreeSet<Vec<u8>> = layers
            .chain([&self.session])
            .flat_map(|layer| layer.keys().cloned())
            .filter(|name| name != ROLE && name != SESSION_AUTHORIZATION)
            // What SET LOCAL made the default is passed over, and comes back with the transaction's end.
            .filter(|name| self.visible(name) != Some(&Value::Default))
            .collect();
        for name in names {
            self.set(&name, Value::Default, Scope::Session);
        }
    }

    fn visible(&self, name: &[u8]) -> Option<&Value> {
        let frames = self.frames.iter().rev();
        let layers = frames.flat_map(|frame| [&frame.local, &frame.session]);
        let mut layers = layers.chain([&self.session]);
        layers.find_map(|layer| layer.get(name).map(|setting| &setting.value))
    }

    fn setting_mut(&mut self, name: &[u8]) -> Option<&mut Setting> {
        let frames = self.frames.iter_mut().rev();
        let layers = frames.flat_map(|frame| [&mut frame.local, &mut frame.session]);
        let mut layers = layers.chain([&mut self.session]);
        layers.find_map(|layer| layer.get_mut(name))
    }

    /// Who the session is at this moment.
    pub(super) fn identity(&self) -> Identity {
        let value = |name| self.visible(name).cloned().unwrap_or_default();
        Identity {
            authorization: value(SESSION_AUTHORIZATION),
            role: value(ROLE),
        }
    }
}

pub(super) const ROLE: &[u8] = b"role";
pub(super) const SESSION_AUTHORIZATION: &[u8] = b"session_authorization";

/// A setting's name as the model has it: PostgreSQL does not look at the case of ASCII letters, and knows two settings by
/// older names.
pub(super) fn normalized(name: &[u8]) -> Vec<u8> {
    let name = name.to_ascii_lowercase();
    match name.as_slice() {
        b"sort_mem" => b"work_mem".to_vec(),
        b"vacuum_mem" => b"maintenance_work_mem".to_vec(),
        _ => name,
    }
}

/// A reported setting's name as the server writes it (`guc_tables.c`).
fn spelled(name: Vec<u8>) -> Vec<u8> {
    match name.as_slice() {
        b"datestyle" => b"DateStyle".to_vec(),
        b"intervalstyle" => b"IntervalStyle".to_vec(),
        b"timezone" => b"TimeZone".to_vec(),
        _ => name,
    }
}

/// The settings that are lists of names which the server quotes (`GUC_LIST_QUOTE`). The list is complete: pg_dump has
/// it too, and extensions can not add to it.
pub(super) fn is_list_of_names(name: &[u8]) -> bool {
    [
        &b"local_preload_libraries"[..],
        b"search_path",
        b"session_preload_libraries",
        b"shared_preload_libraries",
        b"temp_tablespaces",
        b"unix_socket_directories",
    ]
    .contains(&name)
}

/// What each transaction has anew, whatever was set in the one before; and the seed, which can not be read.
fn is_of_transaction(name: &[u8]) -> bool {
    [
        &b"transaction_isolation"[..],
        b"transaction_read_only",
        b"transaction_deferrable",
        b"seed",
    ]
    .contains(&name)
}

/// What is reported and can not be set.
fn is_read_only(name: &[u8]) -> bool {
    [
        &b"in_hot_standby"[..],
        b"integer_datetimes",
        b"is_superuser",
        b"server_encoding",
        b"server_version",
    ]
    .contains(&name)
}
