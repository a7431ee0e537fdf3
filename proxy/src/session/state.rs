//! Owns what is known of a session's state: its settings, what its statements under way will do to them, and what keeps it on
//! its server.
//!
//! What statements do is read from their text (`tandem_routing_rules::state`) and takes effect in the model when they have
//! succeeded. A transaction that touches no setting, which is nearly every one, is never played to the model.

use std::{collections::VecDeque, fmt, sync::Arc};

use tandem_routing_rules::state::{
    Change, Discard, Doubt, Effect, Effects, Pin, Pins, Settings, Status as Ready, Value,
    difference, effects,
};
use xxhash_rust::xxh3::Xxh3;

use super::{
    owed::{Note, Status},
    program::Program,
    sequences::{DISCARD, Sequences},
};
use crate::pool::Params;

/// Marks of a transaction that are kept before they are played to the model after all.
const TRAIL_MAX: usize = 64;

/// Why a session keeps its server beyond its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// `pool_mode = "session"`.
    Mode,
    /// A statement too large to be looked into, or to be prepared again elsewhere.
    LargeStatement,
    /// Texts cannot be looked into: `standard_conforming_strings = off`, or an encoding in which a character can hold a
    /// backslash.
    Lexing,
    /// PREPARE as a statement of SQL.
    Prepared,
    /// `set_config` with values that are not in the text.
    SetConfig,
    /// A statement about the session that was not understood.
    Unclear,
    /// Something that only this server has.
    Pin(Pin),
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hold::Mode => f.write_str("pool_mode"),
            Hold::LargeStatement => f.write_str("large statement"),
            Hold::Lexing => f.write_str("encoding or standard_conforming_strings"),
            Hold::Prepared => f.write_str("PREPARE"),
            Hold::SetConfig => f.write_str("set_config"),
            Hold::Unclear => f.write_str("unclear statement"),
            Hold::Pin(pin) => pin.fmt(f),
        }
    }
}

/// Whether a statement may run a query or a function, and so advance a sequence.
fn runs(one: &Effects) -> bool {
    let is_query = matches!(
        one.effect,
        Effect::None | Effect::Execute(_) | Effect::Declare { .. }
    );
    is_query && one.changes.is_empty()
}

/// What has happened in a transaction, as far as the model must know if it has to know anything.
#[derive(Debug)]
enum Mark {
    Applied(Program, usize),
    Failed,
    Ready(Ready),
}

/// Statements on their way.
#[derive(Debug)]
struct Pending {
    note: Note,
    program: Program,
    /// How many of them have ended.
    done: usize,
}

/// The state of one session.
#[derive(Debug)]
pub(super) struct State {
    settings: Settings,
    /// Names what the settings are: the same number, the same settings.
    version: u64,
    /// The session's number, from 1.
    session: u32,
    /// How often its settings have changed.
    changes: u64,
    /// It has run something on its server, which may have given it values of sequences.
    ran: bool,
    /// Marks go to the model at once.
    live: bool,
    trail: Vec<Mark>,
    pending: VecDeque<Pending>,
    notes: Note,
    pins: Pins,
    hold: Option<Hold>,
}

/// The settings of a server connection.
#[derive(Debug)]
pub(crate) struct ServerSettings {
    /// As after its login.
    login: Settings,
    now: Settings,
    /// The version of the session whose settings it has; 0: of none.
    version: u64,
    /// The session that may have changed more than is known; 0: none.
    touched_by: u32,
    /// Whose values of sequences it may hold.
    sequences: Sequences,
}

/// What sessions with the same startup parameters begin with.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    settings: Settings,
    version: u64,
    /// What the client is told at its login.
    pub(crate) greeting: Params,
}

impl Profile {
    /// Of clients with these startup parameters; `reported` is what a server of their pool reports at login.
    pub(crate) fn new(params: &[(String, String)], reported: &[(String, String)]) -> Profile {
        let mut greeting = reported.to_vec();
        let name = params.iter().find(|(name, _)| name == APPLICATION_NAME);
        if let Some((_, name)) = name {
            for (_, value) in greeting
                .iter_mut()
                .filter(|(reported, _)| reported == APPLICATION_NAME)
            {
                *value = cleaned(name);
            }
        }
        Profile {
            settings: at_login(params, &greeting),
            version: version_at_login(params, &greeting),
            greeting: greeting.into(),
        }
    }
}

/// The parameter in which clients may differ that share servers: nothing depends on it, and some put a process number there.
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
fn at_login(params: &[(String, String)], reported: &[(String, String)]) -> Settings {
    let params = params
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "options" | "replication"));
    let mut settings =
        Settings::new(params.map(|(name, value)| (name.as_bytes(), value.as_bytes())));
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

    /// A ParameterStatus while nobody uses the server.
    pub(crate) fn reported(&mut self, name: &[u8], value: &[u8]) {
        self.now.reported(name, value);
        // Outside of a transaction there is nothing to disagree on.
        let _ = self.now.ready(Ready::Idle);
        self.version = 0;
    }
}

impl ServerSettings {
    /// All that sessions have left there is thrown away.
    pub(super) fn cleaned(&mut self) {
        self.now = self.login.clone();
        self.touched_by = 0;
        self.version = 0;
        self.sequences = Sequences::Forgotten;
    }

    /// A ParameterStatus that comes of our own setting.
    pub(super) fn confirmed(&mut self, name: &[u8], value: &[u8]) {
        self.now.reported(name, value);
        let _ = self.now.ready(Ready::Idle);
    }
}

/// What throws away all that a session may have left behind, but for prepared statements.
pub(super) const CLEANUP: &[u8] =
    b"CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; \
    SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD SEQUENCES; DISCARD TEMP";

impl State {
    /// After the login.
    pub(super) fn new(profile: Profile, session: u32, hold: Option<Hold>) -> State {
        let mut state = State {
            settings: profile.settings,
            version: profile.version,
            session,
            changes: 0,
            ran: false,
            live: false,
            trail: Vec::new(),
            pending: VecDeque::new(),
            notes: 0,
            pins: Pins::default(),
            hold,
        };
        state.check_lexing();
        state
    }

    /// Why the session keeps its server.
    pub(super) fn hold(&self) -> Option<Hold> {
        self.hold
    }

    /// From now on it keeps its server.
    pub(super) fn keep(&mut self, hold: Hold) {
        self.hold.get_or_insert(hold);
    }

    /// The session's server has forgotten all values of sequences.
    pub(super) fn forgotten(&self, server: &mut ServerSettings) {
        server.sequences = Sequences::Of(self.session);
    }

    /// Whether the server may hold others' values of sequences, and surely none of the session's own.
    pub(super) fn must_forget(&self, server: &ServerSettings) -> bool {
        !self.ran && server.sequences.are_foreign_to(self.session)
    }

    /// A text in the old way of writing strings, or in such an encoding, could be read wrongly.
    fn check_lexing(&mut self) {
        let is = |name: &[u8], values: &[&str]| match self.settings.value(name) {
            Value::Text(text) => values
                .iter()
                .any(|value| text.eq_ignore_ascii_case(value.as_bytes())),
            _ => false,
        };
        // The encodings of clients only (`pg_enc` in pg_wchar.h): a second byte can be 0x5C.
        let unsafe_encodings = [
            "SJIS",
            "BIG5",
            "GBK",
            "UHC",
            "GB18030",
            "JOHAB",
            "SHIFT_JIS_2004",
        ];
        if is(b"standard_conforming_strings", &["off"]) || is(b"client_encoding", &unsafe_encodings)
        {
            self.keep(Hold::Lexing);
        }
    }

    /// The statements that put a server right for this session, if it needs any. The server is taken to have run them.
    /// `sequences`: it must not hold others' values of sequences.
    pub(super) fn sync(&mut self, server: &mut ServerSettings, sequences: bool) -> Option<Vec<u8>> {
        self.ran = false;
        let touched = server.touched_by != 0 && server.touched_by != self.session;
        let foreign = sequences && server.sequences.are_foreign_to(self.session);
        server.sequences = server.sequences.and(self.session);
        if !touched && !foreign && server.version == self.version {
            return None;
        }
        let mut statements = Vec::new();
        if touched {
            statements.push(CLEANUP.to_vec());
            server.cleaned();
            self.forgotten(server);
        } else if foreign {
            statements.push(DISCARD.to_vec());
            self.forgotten(server);
        }
        for statement in difference(&server.now, &self.settings) {
            server.now.apply(&effects(&statement, true));
            statements.push(statement);
        }
        let _ = server.now.ready(Ready::Idle);
        server.version = self.version;
        (!statements.is_empty()).then(|| statements.join(&b"; "[..]))
    }

    /// A text, or a portal, goes to the server. What of it counts whether it succeeds or not counts now. Answers the note
    /// that its answers must carry.
    pub(super) fn sent(&mut self, program: Option<&Program>, server: &mut ServerSettings) -> Note {
        let Some(program) = program else {
            self.ran = true;
            return 0;
        };
        for one in program.iter() {
            self.ran |= runs(one);
            self.pins = self.pins.with(one.pins);
            let lasting = one.pins.iter().find(|pin| !pin.ends_with_transaction());
            if let Some(pin) = lasting {
                self.keep(Hold::Pin(pin));
            }
            match one.doubt {
                None | Some(Doubt::LocalSetting) => {}
                Some(Doubt::Function | Doubt::Call | Doubt::Do) => server.touched_by = self.session,
                Some(Doubt::SetConfig) => self.keep(Hold::SetConfig),
                Some(Doubt::Syntax) => self.keep(Hold::Unclear),
            }
            if let Effect::Prepare { .. } = one.effect {
                self.keep(Hold::Prepared);
            }
        }
        self.notes += 1;
        self.pending.push_back(Pending {
            note: self.notes,
            program: Arc::clone(program),
            done: 0,
        });
        self.notes
    }

    /// Something goes to the server that may do anything.
    pub(super) fn touch(&mut self, server: &mut ServerSettings) {
        server.touched_by = self.session;
        self.ran = true;
        // No DISCARD ALL that was sent before speaks for it.
        self.notes += 1;
    }

    /// A statement of this note has succeeded.
    pub(super) fn succeeded(&mut self, note: Note, server: &mut ServerSettings) {
        if note == 0 {
            return;
        }
        while self
            .pending
            .front()
            .is_some_and(|pending| pending.note < note)
        {
            self.pending.pop_front();
        }
        let Some(pending) = self.pending.front_mut() else {
            return;
        };
        let (program, place) = (Arc::clone(&pending.program), pending.done);
        pending.done += 1;
        let Some(one) = program.get(place) else {
            return;
        };
        self.pins = self.pins.without(one.releases);
        // What was sent behind it has its pins again.
        let rest = program.iter().skip(place + 1);
        let behind = self.pending.iter().skip(1);
        for later in rest.chain(behind.flat_map(|pending| pending.program.iter())) {
            self.pins = self.pins.with(later.pins);
        }
        let last = note == self.notes;
        match (&one.effect, self.hold) {
            (Effect::Discard(Discard::All), Some(hold))
                if last && !matches!(hold, Hold::Mode | Hold::LargeStatement | Hold::Lexing) =>
            {
                self.pins = Pins::default();
                self.hold = None;
                server.touched_by = 0;
            }
            (_, Some(Hold::Pin(_))) => {
                let mut lasting = self.pins.iter();
                let lasting = lasting.find(|pin| !pin.ends_with_transaction());
                self.hold = lasting.map(Hold::Pin);
            }
            _ => {}
        }
        if let Effect::Discard(Discard::All | Discard::Sequences) = one.effect {
            self.forgotten(server);
        }
        let changes = !one.changes.is_empty() || matches!(one.effect, Effect::Discard(_));
        if changes {
            self.go_live(server);
        }
        let resets = |change: &Change| match change {
            Change::ResetAll => true,
            Change::Set { value, .. } => *value == Value::Default,
            Change::FromCurrent { .. } => false,
        };
        if one.changes.iter().any(resets) || matches!(one.effect, Effect::Discard(_)) {
            // What RESET gives on the server may be another `application_name`.
            server.version = 0;
        }
        if changes || matches!(one.effect, Effect::Transaction(_)) {
            self.mark(Mark::Applied(program, place), server);
        }
    }

    /// A statement has failed.
    pub(super) fn failed(&mut self, server: &mut ServerSettings) {
        if self.live || !self.trail.is_empty() {
            self.mark(Mark::Failed, server);
        }
    }

    /// The server is ready; all up to here is answered.
    pub(super) fn ready(&mut self, status: Status, owes: bool, server: &mut ServerSettings) {
        if !owes {
            self.pending.clear();
        }
        let status = match status {
            Status::Idle => Ready::Idle,
            Status::Transaction => Ready::InTransaction,
            Status::Failed => Ready::Failed,
        };
        if !self.live {
            if status == Ready::Idle {
                self.trail.clear();
            } else {
                self.mark(Mark::Ready(status), server);
            }
            return;
        }
        self.mark(Mark::Ready(status), server);
        if status == Ready::Idle {
            self.live = false;
            self.check_lexing();
        }
    }

    /// A ParameterStatus for the client.
    pub(super) fn reported(&mut self, name: &[u8], value: &[u8], server: &mut ServerSettings) {
        self.go_live(server);
        self.settings.reported(name, value);
        server.now.reported(name, value);
    }

    /// What was put off is played to the model, and from now on everything at once. The settings are others afterwards.
    fn go_live(&mut self, server: &mut ServerSettings) {
        if self.live {
            return;
        }
        self.live = true;
        // Never the number of anybody else: sessions have their own, logins a hash of 64 bits.
        self.changes += 1;
        self.version = u64::from(self.session) << 32 | self.changes;
        server.version = self.version;
        for mark in std::mem::take(&mut self.trail) {
            self.mark(mark, server);
        }
    }

    fn mark(&mut self, mark: Mark, server: &mut ServerSettings) {
        if !self.live {
            self.trail.push(mark);
            if self.trail.len() > TRAIL_MAX {
                self.go_live(server);
            }
            return;
        }
        for settings in [&mut self.settings, &mut server.now] {
            match &mark {
                Mark::Applied(program, place) => {
                    if let Some(one) = program.get(*place) {
                        settings.apply(one);
                    }
                }
                Mark::Failed => settings.failed(),
                Mark::Ready(status) => {
                    if let Err(disagreement) = settings.ready(*status) {
                        tracing::debug!(%disagreement, "a transaction was begun or ended out of sight");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
