//! Owns what is known of a session's state: its settings, what its statements under way will do to them, and what keeps it on
//! its server.
//!
//! What statements do is read from their text (`tandem_routing_rules::state`) and takes effect in the model when they have
//! succeeded. A transaction that touches no setting, which is nearly every one, is never played to the model.

use std::{collections::VecDeque, fmt, sync::Arc};

use tandem_routing_rules::{
    lex::Lexer,
    state::{
        Discard, Doubt, Effect, Effects, Pin, Pins, Settings, Status as Ready, Value,
        is_temporary_first,
    },
};

use super::{
    listening::{Hearing, listens},
    owed::{Note, Status},
    profile::{Profile, ServerSettings},
    program::{Program, Step, program, restoring},
    sequences::{DISCARD, Sequences},
};

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
    /// What [`shares_channels`](State::shares_channels) was after the last transaction that changed a setting.
    shared_channels: bool,
    trail: Vec<Mark>,
    pending: VecDeque<Pending>,
    notes: Note,
    pins: Pins,
    hold: Option<Hold>,
    /// What it hears of, if others listen for it.
    pub(super) hearing: Option<Box<Hearing>>,
}

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
            shared_channels: false,
            trail: Vec::new(),
            pending: VecDeque::new(),
            notes: 0,
            pins: Pins::default(),
            hold,
            hearing: None,
        };
        state.check_settings();
        state
    }

    /// Why the session keeps its server.
    pub(super) fn hold(&self) -> Option<Hold> {
        self.hold
    }

    /// What a setting is, if that is known and is a text.
    pub(super) fn text_of(&self, name: &[u8]) -> Option<&str> {
        match self.settings.value(name) {
            Value::Text(text) => std::str::from_utf8(text)
                .ok()
                .filter(|text| !text.is_empty()),
            _ => None,
        }
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

    /// A text in the old way of writing strings, or in such an encoding, could be read wrongly; and not every CREATE says that
    /// it makes something temporary.
    fn check_settings(&mut self) {
        if is_temporary_first(self.settings.value(b"search_path")) {
            self.pins.insert(Pin::TemporaryObject);
            self.keep(Hold::Pin(Pin::TemporaryObject));
        }
        if !self.is_lexed_surely() {
            self.keep(Hold::Lexing);
        }
        self.shared_channels = self.shares_channels();
    }

    /// Whether `standard_conforming_strings` and the encoding leave no doubt about where a text's strings end.
    fn is_lexed_surely(&self) -> bool {
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
        !is(b"standard_conforming_strings", &["off"]) && !is(b"client_encoding", &unsafe_encodings)
    }

    /// Whether a text means what was read in it, so that it can be sent with other words: where that depends on settings,
    /// they must be the safe ones, and nothing that changes them may be on its way.
    fn is_surely_read(&self, text: &[u8]) -> bool {
        let is_plain = text.is_ascii() && !text.contains(&b'\\');
        is_plain || self.pending.is_empty() && self.is_lexed_surely()
    }

    /// What puts a server right for this session, if it needs anything: texts, one behind the other, each a transaction. The
    /// server is taken to have run them. `sequences`: it must not hold others' values of sequences.
    pub(super) fn sync(&mut self, server: &mut ServerSettings, sequences: bool) -> Vec<Vec<u8>> {
        self.ran = false;
        let touched = server.touched_by != 0 && server.touched_by != self.session;
        let foreign = sequences && server.sequences.are_foreign_to(self.session);
        server.sequences = server.sequences.and(self.session);
        if !touched && !foreign && server.version == self.version {
            return Vec::new();
        }
        let mut statements = server.lead_to(&self.settings, self.session);
        server.did(statements.iter().map(Vec::as_slice));
        server.version = self.version;
        if foreign && !touched {
            statements.insert(0, DISCARD.to_vec());
        }
        if foreign || touched {
            self.forgotten(server);
        }
        // A text is read as a whole in the encoding that is set before it.
        let encoding = statements.iter().take_while(|text| text.is_ascii()).count();
        let (before, behind) = statements.split_at(encoding);
        let texts = [before, behind].into_iter();
        let texts = texts.filter(|statements| !statements.is_empty());
        texts
            .map(|statements| statements.join(&b"; "[..]))
            .collect()
    }

    /// The text to send instead of this one, and what it does, if it resets what the session's login asked for.
    pub(super) fn restoring(
        &self,
        text: &[u8],
        program: Option<&Program>,
        server: &ServerSettings,
    ) -> Option<(Vec<u8>, Program)> {
        self.restored(text, program?, Some(server.login()))
    }

    /// The same for a statement to be prepared, perhaps on other servers too: `rest` is what stands behind the name in a Parse.
    pub(super) fn restoring_prepared(&self, rest: &[u8]) -> Option<(Vec<u8>, Program)> {
        // Of most, the first word is enough.
        let first = Lexer::new(rest, true).significant().next()?;
        if !first.is_word("reset") && !first.is_word("set") && !first.is_word("listen") {
            return None;
        }
        let end = rest.iter().position(|byte| *byte == 0)?;
        let (text, types) = rest.split_at(end);
        let (mut text, does) = self.restored(text, &program(text)?, None)?;
        text.extend_from_slice(types);
        Some((text, does))
    }

    fn restored(
        &self,
        text: &[u8],
        program: &Program,
        server: Option<&Settings>,
    ) -> Option<(Vec<u8>, Program)> {
        let shares_channels = self.shares_channels() && program.iter().any(listens);
        let is_other = shares_channels || program.iter().any(Step::resets);
        if !is_other || !self.is_surely_read(text) {
            return None;
        }
        restoring(text, program, &self.settings, server, shares_channels)
    }

    /// Whether notifications are in the encoding that the client reads, so that others can listen for it.
    pub(super) fn shares_channels(&self) -> bool {
        let encoding = self.text_of(b"client_encoding");
        encoding.is_some_and(|encoding| encoding.eq_ignore_ascii_case("UTF8"))
    }

    /// The same outside of a transaction, without a look at the settings.
    pub(super) fn shared_channels(&self) -> bool {
        self.shared_channels
    }

    /// Whether the session's server is told something else than this LISTEN.
    pub(super) fn shares_channels_of(&self, text: &[u8]) -> bool {
        self.shares_channels() && self.is_surely_read(text)
    }

    /// Whether this throws away what the session's login asked for, because the server's did not.
    pub(super) fn discards(&self, program: Option<&Program>, server: &ServerSettings) -> bool {
        let discards = |step: &Step| step.effects.effect == Effect::Discard(Discard::All);
        program.is_some_and(|program| program.iter().any(discards))
            && self.settings.is_lost_by_reset(Some(server.login()))
    }

    /// Whether a setting is again what the session's login made of it.
    pub(super) fn is_default(&self, name: &[u8]) -> bool {
        self.settings.is_default(&name.to_ascii_lowercase())
    }

    /// What the client has to be told after a DISCARD ALL, as a server would that had its login.
    pub(super) fn discarded(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.settings.untold()
    }

    /// A text, or a portal, goes to the server. What of it counts whether it succeeds or not counts now. Answers the note
    /// that its answers must carry.
    pub(super) fn sent(&mut self, program: Option<&Program>, server: &mut ServerSettings) -> Note {
        let Some(program) = program else {
            self.ran = true;
            return 0;
        };
        for step in program.iter() {
            let one = &step.effects;
            if let Some(hearing) = &mut self.hearing {
                hearing.raised |= one.notifies();
            }
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

    /// A statement of this note has succeeded. Answers the command tag for the client, where that is another one.
    pub(super) fn succeeded(
        &mut self,
        note: Note,
        server: &mut ServerSettings,
    ) -> Option<&'static str> {
        if note == 0 {
            return None;
        }
        while self
            .pending
            .front()
            .is_some_and(|pending| pending.note < note)
        {
            self.pending.pop_front();
        }
        let pending = self.pending.front_mut()?;
        let (program, place) = (Arc::clone(&pending.program), pending.done);
        pending.done += 1;
        let step = program.get(place)?;
        let one = &step.effects;
        self.pins = self.pins.without(one.releases);
        // What was sent behind it has its pins again.
        let rest = program.iter().skip(place + 1);
        let behind = self.pending.iter().skip(1);
        for later in rest.chain(behind.flat_map(|pending| pending.program.iter())) {
            self.pins = self.pins.with(later.effects.pins);
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
        let changes = !one.changes.is_empty()
            || matches!(one.effect, Effect::Discard(_))
            || self
                .hearing
                .as_ref()
                .is_some_and(|hearing| hearing.listening.concerns(step));
        if changes {
            self.go_live(server);
        }
        let reset = step.resets() || matches!(one.effect, Effect::Discard(_));
        if reset && step.instead.is_none() {
            // What RESET gives on the server may be something else.
            server.version = 0;
        }
        if changes || matches!(one.effect, Effect::Transaction(_)) {
            self.mark(Mark::Applied(Arc::clone(&program), place), server);
        }
        step.instead.as_ref().map(|instead| instead.tag)
    }

    /// The server has run these statements, which the client had said before it had a server.
    pub(super) fn began(&mut self, text: &[u8], status: Status, server: &mut ServerSettings) {
        let program = program(text);
        let note = self.sent(program.as_ref(), server);
        for _ in program.iter().flat_map(|program| program.iter()) {
            self.succeeded(note, server);
        }
        self.ready(status, false, server);
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
            self.check_settings();
        }
    }

    /// The server is lost, and with it all that was not committed. Answers the settings that the client was told otherwise of:
    /// names and values.
    pub(super) fn lost(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.pending.clear();
        self.trail.clear();
        self.pins = Pins::default();
        if let Some(hearing) = &mut self.hearing {
            hearing.raised = false;
            hearing.listening.failed();
            hearing.listening.ready(Ready::Idle);
        }
        if !std::mem::take(&mut self.live) {
            return Vec::new();
        }
        let told = self.settings.lost();
        self.check_settings();
        told
    }

    /// Whether the session may have called a function on this server of which nobody knows what it does.
    pub(super) fn has_called(&self, server: &ServerSettings) -> bool {
        server.touched_by == self.session
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
        let had_all = server.version == self.version;
        // Never the number of anybody else: sessions have their own, logins a hash of 64 bits.
        self.changes += 1;
        self.version = u64::from(self.session) << 32 | self.changes;
        server.version = if had_all { self.version } else { 0 };
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
        if let Mark::Applied(program, place) = mark {
            if let Some(step) = program.get(place) {
                self.settings.apply(&step.effects);
                server.now.apply(step.on_server());
                if let Some(hearing) = &mut self.hearing {
                    hearing.listening.apply(step);
                }
            }
            return;
        }
        if let Some(hearing) = &mut self.hearing {
            match &mark {
                Mark::Applied(..) => {}
                Mark::Failed => hearing.listening.failed(),
                Mark::Ready(status) => hearing.listening.ready(*status),
            }
        }
        for settings in [&mut self.settings, &mut server.now] {
            match &mark {
                Mark::Applied(..) => {}
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
