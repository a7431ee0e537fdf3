//! Owns prepared statements over many servers: what each client has prepared, and what each server connection holds.
//!
//! A client's statement is interned by its text and types and goes to servers under a name of its own (`tandem_s7`), so that
//! clients with the same names do not meet and those with the same statements share them. It is prepared where it is
//! missing, before the message that needs it.
//!
//! **Invariant:** whatever a server connection holds under a name of ours, it is closed before it is prepared there, so a
//! preparation never fails for its name.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::{BufMut, BytesMut};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    owed::Attempt,
    program::{Program, program},
    shape::{Parameters, Shape},
};

/// Bytes of statements that one client may have prepared.
pub(crate) const CLIENT_BYTES_MAX: usize = 64 << 20;
/// What the names of statements on servers begin with.
const NAME_PREFIX: &str = "tandem_s";

/// A statement that some client has prepared.
#[derive(Debug)]
pub(crate) struct Statement {
    /// Its number, from 1.
    id: u64,
    /// The body of its Parse behind the name: text, zero byte, types.
    rest: Box<[u8]>,
    /// What it does to the session.
    program: Option<Program>,
    /// Its result has another shape than when it was prepared: who prepares the same text now gets another statement.
    outdated: AtomicBool,
}

impl Statement {
    /// Its name on servers.
    pub(crate) fn write_name(&self, out: &mut BytesMut) {
        out.put_slice(NAME_PREFIX.as_bytes());
        let mut digits = [0; 20];
        let mut place = digits.len();
        let mut left = self.id;
        loop {
            place -= 1;
            if let Some(digit) = digits.get_mut(place) {
                // One decimal digit.
                *digit = b'0' + (left % 10) as u8;
            }
            left /= 10;
            if left == 0 || place == 0 {
                break;
            }
        }
        out.put_slice(digits.get(place..).unwrap_or_default());
        out.put_u8(0);
    }

    /// What it does to the session; none: nothing.
    pub(super) fn program(&self) -> Option<&Program> {
        self.program.as_ref()
    }

    /// Whether the client's own has another text.
    fn stands_for_another(&self) -> bool {
        let mut steps = self.program.iter().flat_map(|program| program.iter());
        steps.any(|step| step.instead.is_some())
    }

    /// The body of its Parse behind the name.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.rest
    }

    /// Its text.
    pub(super) fn text(&self) -> &[u8] {
        self.rest
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default()
    }

    /// Its result has another shape than when it was prepared.
    pub(super) fn outdate(&self) {
        self.outdated.store(true, Ordering::Relaxed);
    }

    /// Whether its result has another shape than when it was prepared.
    pub(crate) fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::Relaxed)
    }
}

/// All statements that clients hold, each once.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    /// By the hash of `rest`; dead ones are swept when the table has doubled.
    known: Mutex<Known>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    by_hash: HashMap<u64, Vec<Weak<Statement>>>,
    sweep_at: usize,
}

impl Interner {
    /// The statement with this text and these types.
    pub(crate) fn intern(&self, rest: &[u8]) -> Arc<Statement> {
        let text = || rest.split(|byte| *byte == 0).next().unwrap_or_default();
        let is_it = |known: &Statement| !known.stands_for_another();
        self.find_or_make(rest, is_it, || program(text()))
    }

    /// The statement with this text and these types, which stands for another one that does this.
    pub(super) fn intern_instead(&self, rest: &[u8], does: &Program) -> Arc<Statement> {
        let is_it = |known: &Statement| known.program.as_ref() == Some(does);
        self.find_or_make(rest, is_it, || Some(Arc::clone(does)))
    }

    fn find_or_make(
        &self,
        rest: &[u8],
        is_it: impl Fn(&Statement) -> bool,
        program: impl FnOnce() -> Option<Program>,
    ) -> Arc<Statement> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.by_hash.len() >= known.sweep_at.max(1024) {
            known.by_hash.retain(|_, same| {
                same.retain(|each| each.strong_count() > 0);
                !same.is_empty()
            });
            known.sweep_at = known.by_hash.len() * 2;
        }
        let same = known.by_hash.entry(xxh3_64(rest)).or_default();
        let found = same
            .iter()
            .filter_map(Weak::upgrade)
            .find(|each| *each.rest == *rest && !each.is_outdated() && is_it(each));
        found.unwrap_or_else(|| {
            let statement = Arc::new(Statement {
                id: self.next.fetch_add(1, Ordering::Relaxed) + 1,
                rest: rest.into(),
                program: program(),
                outdated: AtomicBool::new(false),
            });
            same.push(Arc::downgrade(&statement));
            statement
        })
    }
}

/// What a client has under a name.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The statement.
    pub(super) statement: Arc<Statement>,
    /// What the client was told of it.
    pub(super) told: Option<Shape>,
}

type ById = BuildHasherDefault<IdHasher>;

/// A hasher for numbers that we count ourselves.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0.rotate_left(8) ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // Fibonacci hashing: the table takes its bits from both ends.
        self.0 = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32);
    }
}

/// What one client has prepared. Small until it does.
#[derive(Debug, Default)]
pub(crate) struct ClientStatements(Option<Box<Tables>>);

#[derive(Debug, Default)]
struct Tables {
    /// Which attempt has prepared what the client calls by this name.
    named: HashMap<Box<[u8]>, Attempt>,
    prepared: HashMap<Attempt, Prepared, ById>,
    bytes: usize,
}

impl ClientStatements {
    /// The statement of this name, and the attempt that has prepared it.
    pub(crate) fn get(&self, name: &[u8]) -> Option<(Attempt, &Prepared)> {
        let tables = self.0.as_deref()?;
        let attempt = *tables.named.get(name)?;
        Some((attempt, tables.prepared.get(&attempt)?))
    }

    /// What this attempt has prepared.
    pub(crate) fn of(&self, attempt: Attempt) -> Option<&Prepared> {
        self.0.as_deref()?.prepared.get(&attempt)
    }

    /// Notes one, which its server may still refuse. False when it would be too much.
    pub(crate) fn insert(
        &mut self,
        name: &[u8],
        statement: Arc<Statement>,
        attempt: Attempt,
    ) -> bool {
        let tables = self.0.get_or_insert_default();
        tables.remove(name);
        tables.bytes += name.len() + statement.rest.len();
        tables.named.insert(name.into(), attempt);
        let told = None;
        tables
            .prepared
            .insert(attempt, Prepared { statement, told });
        tables.bytes <= CLIENT_BYTES_MAX
    }

    /// The client has closed one.
    pub(crate) fn remove(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        self.0.as_deref_mut()?.remove(name)
    }

    /// A server has refused it.
    pub(crate) fn undo(&mut self, attempt: Attempt) {
        if let Some(tables) = self.0.as_deref_mut() {
            tables.undo(attempt);
        }
    }

    /// DEALLOCATE ALL or DISCARD ALL: all are gone, but for those that came behind it: from this attempt on (0: none).
    pub(crate) fn clear(&mut self, spared_from: Attempt) {
        if let Some(tables) = self.0.as_deref_mut() {
            tables.clear(spared_from);
        }
        self.0.take_if(|tables| tables.named.is_empty());
    }

    /// The client is told this of what the attempt has prepared.
    pub(crate) fn tell(&mut self, attempt: Attempt, shape: Shape) {
        let prepared = self
            .0
            .as_deref_mut()
            .and_then(|tables| tables.prepared.get_mut(&attempt));
        if let Some(prepared) = prepared {
            prepared.told = Some(shape);
        }
    }

    /// A text of a server with the client's own names for its statements, where it names any.
    pub(crate) fn with_own_names(&self, text: &[u8]) -> Option<Vec<u8>> {
        self.0.as_deref()?.with_own_names(text)
    }
}

impl Tables {
    fn remove(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        let attempt = self.named.remove(name)?;
        let Prepared { statement, .. } = self.prepared.remove(&attempt)?;
        self.bytes = self.bytes.saturating_sub(name.len() + statement.rest.len());
        Some(statement)
    }

    fn undo(&mut self, attempt: Attempt) {
        if !self.prepared.contains_key(&attempt) {
            return;
        }
        let mut all = self.named.iter();
        let name = all.find(|(_, known)| **known == attempt);
        if let Some(name) = name.map(|(name, _)| name.clone()) {
            self.remove(&name);
        }
    }

    fn clear(&mut self, spared_from: Attempt) {
        let is_spared = |attempt: Attempt| spared_from != 0 && attempt >= spared_from;
        self.named.retain(|_, attempt| is_spared(*attempt));
        self.prepared.retain(|attempt, _| is_spared(*attempt));
        self.bytes = self
            .named
            .iter()
            .map(|(name, attempt)| {
                let prepared = self.prepared.get(attempt);
                name.len() + prepared.map_or(0, |prepared| prepared.statement.rest.len())
            })
            .sum();
    }

    fn with_own_names(&self, text: &[u8]) -> Option<Vec<u8>> {
        if self.named.is_empty() {
            return None;
        }
        let prefix = NAME_PREFIX.as_bytes();
        let mut translated = Vec::new();
        let mut rest = text;
        while let Some(place) = rest
            .windows(prefix.len())
            .position(|window| window == prefix)
        {
            let (before, behind) = rest.split_at_checked(place + prefix.len())?;
            let digits = behind.iter().take_while(|byte| byte.is_ascii_digit());
            let (digits, behind) = behind.split_at_checked(digits.count())?;
            match self.name_of(digits) {
                Some(name) => {
                    translated.extend_from_slice(before.strip_suffix(prefix)?);
                    translated.extend_from_slice(name);
                }
                None => {
                    translated.extend_from_slice(before);
                    translated.extend_from_slice(digits);
                }
            }
            rest = behind;
        }
        if translated.is_empty() {
            return None;
        }
        translated.extend_from_slice(rest);
        Some(translated)
    }

    fn name_of(&self, digits: &[u8]) -> Option<&[u8]> {
        let id: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
        let is_it = |attempt: &Attempt| {
            let prepared = self.prepared.get(attempt);
            prepared.is_some_and(|it| it.statement.id == id)
        };
        let mut all = self.named.iter();
        let found = all.find(|(_, attempt)| is_it(attempt));
        found.map(|(name, _)| &**name)
    }
}

#[derive(Debug)]
struct Held {
    attempt: Attempt,
    used: u64,
    /// What the server has told of it; it stays so, or the server refuses it.
    shape: Option<Shape>,
}

/// What one server connection holds.
#[derive(Debug)]
pub(crate) struct ServerStatements {
    held: HashMap<u64, Held, ById>,
    max: usize,
    uses: u64,
    /// Which attempt made its unnamed statement; 0: it has none.
    pub(crate) unnamed: Attempt,
    /// The first half of its answer to a Describe.
    pub(super) describing: Option<Parameters>,
}

impl ServerStatements {
    /// None yet; `max` at most.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            held: HashMap::default(),
            max,
            uses: 0,
            unnamed: 0,
            describing: None,
        }
    }

    /// Whether this one is there. Counts as a use.
    pub(crate) fn has(&mut self, statement: &Statement) -> bool {
        self.fits(statement, None)
    }

    /// Whether this one can be used as it is by a client that was told this of it. Counts as a use.
    pub(crate) fn fits(&mut self, statement: &Statement, told: Option<&Shape>) -> bool {
        self.uses += 1;
        let Some(held) = self.held.get_mut(&statement.id) else {
            return false;
        };
        held.used = self.uses;
        told.is_none_or(|told| held.shape.is_some_and(|shape| told.is_kept_by(&shape)))
    }

    /// The server has told this of it.
    pub(crate) fn note_shape(&mut self, statement: &Statement, shape: Shape) {
        if let Some(held) = self.held.get_mut(&statement.id) {
            // A portal tells less than was told before.
            if shape.is_whole() || held.shape.is_none() {
                held.shape = Some(shape);
            }
        }
    }

    /// It is being prepared. Answers the one that must make room, used least recently: to be closed.
    pub(crate) fn insert(&mut self, statement: &Statement, attempt: Attempt) -> Option<Statement> {
        self.uses += 1;
        let held = Held {
            attempt,
            used: self.uses,
            shape: None,
        };
        self.held.insert(statement.id, held);
        if self.held.len() <= self.max {
            return None;
        }
        let (&oldest, _) = self.held.iter().min_by_key(|(_, held)| held.used)?;
        self.held.remove(&oldest);
        Some(Statement {
            id: oldest,
            rest: Box::default(),
            program: None,
            outdated: AtomicBool::new(false),
        })
    }

    /// It was refused, or thrown away: what stands there now is unknown.
    pub(crate) fn undo(&mut self, attempt: Attempt) {
        self.held.retain(|_, held| held.attempt != attempt);
        if self.unnamed == attempt {
            self.unnamed = 0;
        }
    }

    /// This one is being deallocated.
    pub(crate) fn remove(&mut self, statement: &Statement) {
        self.held.remove(&statement.id);
    }

    /// All named ones are gone.
    pub(crate) fn clear(&mut self) {
        self.held.clear();
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use tandem_routing_rules::state::Settings;

    use super::*;
    use crate::session::program::restoring;

    fn name(statement: &Statement) -> Vec<u8> {
        let mut out = BytesMut::new();
        statement.write_name(&mut out);
        out.to_vec()
    }

    #[test]
    fn statements_of_one_text_and_types_are_one() {
        let interner = Interner::default();
        let one = interner.intern(b"SELECT 1\0\0\0");
        let same = interner.intern(b"SELECT 1\0\0\0");
        let typed = interner.intern(b"SELECT 1\0\0\x01\0\0\0\x17");
        assert!(Arc::ptr_eq(&one, &same) && !Arc::ptr_eq(&one, &typed));
        assert_eq!(name(&one), b"tandem_s1\0");
        assert_eq!(name(&typed), b"tandem_s2\0");
        drop((one, same));
        // A number is never given twice: a server may still hold the old one.
        assert_eq!(name(&interner.intern(b"SELECT 1\0\0\0")), b"tandem_s3\0");
    }

    #[test]
    fn who_says_what_another_is_sent_instead_of_a_reset_prepares_a_statement_of_its_own() {
        let interner = Interner::default();
        let session = Settings::new([(&b"work_mem"[..], &b"5MB"[..])]);
        let reset = b"RESET work_mem";
        let does = program(reset).expect("it does something");
        let (text, does) = restoring(reset, &does, &session, None, false).expect("it is lost");
        let rest = [&text[..], b"\0\0\0"].concat();
        let instead = interner.intern_instead(&rest, &does);
        let own = interner.intern(&rest);
        assert!(!Arc::ptr_eq(&instead, &own));
        assert!(Arc::ptr_eq(
            &instead,
            &interner.intern_instead(&rest, &does)
        ));
        assert_eq!(own.program(), program(&text).as_ref());
    }

    #[test]
    fn statements_that_nobody_holds_are_swept() {
        let interner = Interner::default();
        for number in 0..10_000 {
            interner.intern(format!("SELECT {number}\0\0\0").as_bytes());
        }
        let known = interner.known.lock().expect("no panic");
        assert!(known.by_hash.len() <= 2048, "{}", known.by_hash.len());
    }

    #[test]
    fn what_a_server_refuses_is_taken_back_on_both_sides() {
        let interner = Interner::default();
        let statement = interner.intern(b"SELECT 1\0\0\0");
        let (mut client, mut server) = (ClientStatements::default(), ServerStatements::new(10));
        assert!(client.insert(b"a", Arc::clone(&statement), 1));
        server.insert(&statement, 1);
        assert!(server.has(&statement) && client.get(b"a").is_some());
        client.undo(1);
        server.undo(1);
        assert!(!server.has(&statement) && client.get(b"a").is_none());
        assert_eq!(client.0.map_or(0, |tables| tables.bytes), 0);
    }

    #[test]
    fn who_prepares_an_outdated_text_anew_gets_another_statement() {
        let interner = Interner::default();
        let text = b"SELECT * FROM t\0\0\0";
        let old = interner.intern(text);
        assert!(Arc::ptr_eq(&old, &interner.intern(text)));
        old.outdate();
        let new = interner.intern(text);
        assert!(old.is_outdated() && !new.is_outdated() && name(&old) != name(&new));
        assert!(Arc::ptr_eq(&new, &interner.intern(text)));
    }

    #[test]
    fn a_statement_fits_whoever_was_told_nothing_or_what_the_server_told() {
        let shape = |parameters: &[u8]| {
            Shape::read(0, Parameters::read(parameters), None).expect("well formed")
        };
        let (one, another) = (shape(b"\0\0"), shape(b"\0\x01\0\0\0\x17"));
        let statement = Interner::default().intern(b"INSERT INTO t DEFAULT VALUES\0\0\0");
        let mut server = ServerStatements::new(10);
        assert!(!server.fits(&statement, None));
        server.insert(&statement, 1);
        assert!(server.fits(&statement, None) && !server.fits(&statement, Some(&one)));
        server.note_shape(&statement, one);
        assert!(server.fits(&statement, None) && server.fits(&statement, Some(&one)));
        assert!(!server.fits(&statement, Some(&another)));
        // What is prepared anew may be another one.
        server.insert(&statement, 2);
        assert!(!server.fits(&statement, Some(&one)));
    }

    #[test]
    fn the_statement_used_least_recently_makes_room() {
        let interner = Interner::default();
        let statements: Vec<_> = (0..3)
            .map(|n| interner.intern(format!("SELECT {n}\0\0\0").as_bytes()))
            .collect();
        let mut server = ServerStatements::new(2);
        assert!(server.insert(&statements[0], 1).is_none());
        assert!(server.insert(&statements[1], 2).is_none());
        assert!(server.has(&statements[0]));
        let evicted = server.insert(&statements[2], 3).expect("one makes room");
        assert_eq!(name(&evicted), name(&statements[1]));
        assert_eq!(server.len(), 2);
    }

    #[test]
    fn deallocate_all_spares_what_was_prepared_behind_it() {
        let interner = Interner::default();
        let mut client = ClientStatements::default();
        client.insert(b"before", interner.intern(b"a\0\0\0"), 4);
        client.insert(b"behind", interner.intern(b"b\0\0\0"), 6);
        client.clear(6);
        assert!(client.get(b"before").is_none() && client.get(b"behind").is_some());
        let text = b"prepared statement \"tandem_s2\" is not \"tandem_s77\"";
        assert_eq!(
            client.with_own_names(text).expect("it names one"),
            b"prepared statement \"behind\" is not \"tandem_s77\""
        );
        assert_eq!(client.with_own_names(b"division by zero"), None);
    }
}
