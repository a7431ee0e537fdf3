//! Owns what a session's messages say in numbers (OIDs) that differ from node to node: its client is told those of the
//! reference node, its servers their own (`identity/`).
//!
//! Values in binary format can have numbers inside. Which ones do is known of a statement once the client was told its types,
//! and of a portal once it is bound; nobody looks at any other value. What catalogs say in numbers is said in the reference
//! node's where a statement that reads nothing else cannot go there, because its transaction has begun elsewhere.

use std::{collections::HashMap, ops::Range, task::Context};

use bytes::BufMut;
use tandem_wire::{Header, Reader, Sender, backend::RowDescription, frame::HEADER_LEN};

use super::{
    Shared,
    inbound::Step,
    owed::{Attempt, By, Owed, Sent},
    ready::patch_len,
    splice::Splice,
    task::{Place as Seat, Task, whole_max},
};
use crate::{
    identity::{Form, Meeting, Numbered, Toward, frames},
    pool::Server,
    routing::may_read_catalogs,
};

/// Messages whose values have numbers inside are collected up to this size; larger ones pass as they are. What has come is
/// copied with each read.
const WHOLE_NUMBERED_MAX: usize = 4 << 20;
/// Statements of which more is known than a session has: those that it has no more are forgotten then.
const STATEMENTS_MAX: usize = 256;
/// Portals of which the columns are known: those that are of no use any more are forgotten then.
const PORTALS_MAX: usize = 32;
/// Names of portals that are remembered.
const NAMES_MAX: usize = 256;

/// A parameter or a column whose values have numbers inside.
#[derive(Debug, Clone, Copy)]
struct Place {
    index: usize,
    form: Form,
    /// In text format, too.
    in_text: bool,
}

impl Place {
    /// Of a user's type, or one that is made of users' types.
    fn of_users(numbered: &Numbered, index: usize, oid: u32) -> Option<Place> {
        Some(Place {
            index,
            form: numbered.form(oid)?,
            in_text: false,
        })
    }

    /// Of a type whose values are numbers, as catalogs have them: OIDs, `regtype` and its kind, and arrays of them (pg_type.dat).
    fn of_catalogs(index: usize, oid: u32) -> Option<Place> {
        let (form, in_text) = match oid {
            26 => (Form::Number, true),
            24 | 2202 | 2205 | 2206 | 4089 => (Form::Number, false),
            30 | 1028 => (Form::Numbers, true),
            1008 | 2207 | 2210 | 2211 | 4090 => (Form::Numbers, false),
            _ => return None,
        };
        Some(Place {
            index,
            form,
            in_text,
        })
    }

    /// The same of a parameter: some drivers take integers for OIDs.
    fn of_parameter(index: usize, oid: u32) -> Option<Place> {
        match oid {
            20 | 23 => Some(Place {
                index,
                form: Form::Number,
                in_text: true,
            }),
            _ => Place::of_catalogs(index, oid),
        }
    }

    /// Whether a value in this format has numbers inside, in a statement that reads catalogs or not.
    fn counts(&self, is_binary: bool, reads_catalogs: bool) -> bool {
        let is_of_catalogs = matches!(self.form, Form::Number | Form::Numbers);
        (is_binary || self.in_text) && (reads_catalogs || !is_of_catalogs)
    }
}

type Places = Box<[Place]>;

/// What a session knows of numbers inside of values.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// What is waited for before anything moves.
    meeting: Option<Meeting>,
    /// What has come from the server is to be looked at once more.
    again: bool,
    /// None until there is something to know.
    inside: Option<Box<Inside>>,
}

/// Where the numbers are.
#[derive(Debug, Default)]
struct Inside {
    statements: HashMap<Attempt, Told>,
    /// The portals that are bound, as far as their values have numbers inside.
    portals: Vec<Columns>,
    /// Names of portals, and their numbers.
    bound: Vec<(Box<[u8]>, Portal)>,
    last: Portal,
}

/// Numbers the portals of a session, as far as it matters which is which. 0: none.
pub(super) type Portal = u32;

/// What a client was told of a statement.
#[derive(Debug, Default)]
struct Told {
    parameters: Places,
    columns: Places,
}

/// The columns of a portal, or of a Query.
#[derive(Debug)]
struct Columns {
    portal: Portal,
    /// It reads catalogs and nothing else.
    reads_catalogs: bool,
    /// Each with whether it is in binary format.
    places: Vec<(Place, bool)>,
}

impl Numbers {
    /// Nothing that was bound is there any more.
    pub(super) fn forget_portals(&mut self) {
        if let Some(inside) = &mut self.inside {
            inside.portals.clear();
            inside.bound.clear();
        }
    }

    /// The number of the portal of this name; 0: it has none.
    pub(super) fn portal(&self, name: &[u8]) -> Portal {
        let bound = self.inside.as_ref().map(|inside| inside.bound.iter());
        let mut bound = bound.into_iter().flatten();
        bound
            .find(|(known, _)| **known == *name)
            .map_or(0, |(_, portal)| *portal)
    }
}

impl Inside {
    fn columns_of(&self, portal: Portal) -> Option<&Columns> {
        if portal == 0 {
            return None;
        }
        self.portals.iter().find(|known| known.portal == portal)
    }

    /// Forgets columns that nobody will ask for, once there are many.
    fn forget_unused(&mut self, owed: &Owed) {
        if self.portals.len() < PORTALS_MAX {
            return;
        }
        let bound = &self.bound;
        let is_bound = |portal| bound.iter().any(|(_, known)| *known == portal);
        let is_of_use = |portal| owed.awaits_portal(portal) || is_bound(portal);
        self.portals.retain(|known| is_of_use(known.portal));
    }

    fn next_portal(&mut self) -> Portal {
        self.last = self.last.wrapping_add(1).max(1);
        self.last
    }
}

impl Task {
    /// Its server has the numbers of its node, which are not what the client is told.
    pub(super) fn learn_numbers(&mut self, shared: &Shared) {
        let Seat::Server(server) = &mut self.place else {
            return;
        };
        server.numbers = match self.routed {
            Some(_) => shared
                .router
                .numbered(server.face.node, &self.pool.key().database),
            None => None,
        };
    }

    /// Whether it waits for a number that is not known yet.
    pub(super) fn waits_for_numbers(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(numbers) = self.routed.as_mut().map(|routed| &mut routed.numbers) else {
            return false;
        };
        let Some(meeting) = &mut numbers.meeting else {
            return false;
        };
        if meeting.wait().poll(cx).is_pending() {
            return true;
        }
        numbers.meeting = None;
        if let Seat::Server(server) = &mut self.place {
            numbers.again = !server.received.is_empty();
            server.numbers = server.numbers.as_ref().and_then(Numbered::renewed);
        }
        false
    }

    pub(super) fn wait_for_number(&mut self, meeting: Meeting) {
        if let Some(routed) = &mut self.routed {
            routed.numbers.meeting = Some(meeting);
        }
    }

    /// Whether what has come from the server is to be looked at before more of it is read.
    pub(super) fn looks_again(&mut self) -> bool {
        let routed = self.routed.as_mut();
        routed.is_some_and(|routed| std::mem::take(&mut routed.numbers.again))
    }

    /// Whether the rows that come now have numbers inside that the client does not know.
    pub(super) fn renumbers_rows(&self) -> bool {
        self.renumbered_columns()
            .is_some_and(|columns| !columns.places.is_empty())
    }

    fn renumbered_columns(&self) -> Option<&Columns> {
        let inside = self.routed.as_ref()?.numbers.inside.as_deref()?;
        let Seat::Server(server) = &self.place else {
            return None;
        };
        match inside.portals.is_empty() {
            true => None,
            false => inside.columns_of(server.owed.head()?.portal),
        }
    }

    /// A message of the server's with the numbers that the client is told, where it has any: its body. None: it must wait.
    pub(super) fn told(&mut self, header: Header, body: &[u8]) -> Option<Renumbered> {
        let Seat::Server(server) = &mut self.place else {
            return Some(Renumbered::Same);
        };
        let Some(numbered) = &mut server.numbers else {
            return Some(Renumbered::Same);
        };
        let told = match header.tag {
            b'T' => numbered.rows(body),
            b't' => numbered.parameters(body),
            b'D' => {
                return Some(
                    self.told_row(body)
                        .map_or(Renumbered::Same, Renumbered::Other),
                );
            }
            _ => return Some(Renumbered::Same),
        };
        match told {
            Ok(told) => {
                self.note_told(header.tag, &told);
                Some(match told == body {
                    true => Renumbered::Same,
                    false => Renumbered::Other(told),
                })
            }
            Err(meeting) => {
                self.wait_for_number(meeting);
                None
            }
        }
    }

    fn told_row(&self, body: &[u8]) -> Option<Vec<u8>> {
        let columns = self.renumbered_columns()?;
        let Seat::Server(server) = &self.place else {
            return None;
        };
        let numbered = server.numbers.as_ref()?;
        frames::row(body, |index, value| {
            let mut places = columns.places.iter();
            let (place, is_binary) = places.find(|(place, _)| place.index == index)?;
            Some(numbered.renumbered(value, *is_binary, place.form, Toward::Reference))
        })
    }

    /// The client is about to be told these types.
    fn note_told(&mut self, tag: u8, body: &[u8]) {
        let Seat::Server(server) = &self.place else {
            return;
        };
        let (Some(numbered), Some(head), Some(routed)) =
            (&server.numbers, server.owed.head(), &mut self.routed)
        else {
            return;
        };
        if head.by == By::Proxy || head.note == 0 && head.portal == 0 {
            return;
        }
        let inside = &mut routed.numbers.inside;
        let prepared = self.statements.of(head.note);
        let text = match prepared {
            Some(prepared) => prepared.statement.text(),
            None => self.unnamed.text(),
        };
        let is_possible = head.portal != 0 || may_read_catalogs(text);
        match (tag, head.sent) {
            (b't', Sent::DescribeStatement) => {
                let types = u32s(Reader::new(body.get(2..).unwrap_or_default())).enumerate();
                let places = types.filter_map(|(index, oid)| {
                    let of_catalogs = || Place::of_parameter(index, oid).filter(|_| is_possible);
                    Place::of_users(numbered, index, oid).or_else(of_catalogs)
                });
                let parameters: Places = places.collect();
                if let Some(inside) = inside {
                    if inside.statements.len() >= STATEMENTS_MAX {
                        let (known, unnamed) = (&self.statements, self.unnamed.attempt);
                        let is_known = |attempt| known.of(attempt).is_some() || attempt == unnamed;
                        inside.statements.retain(|attempt, _| is_known(*attempt));
                    }
                    inside.statements.remove(&head.note);
                }
                if !parameters.is_empty() {
                    let statements = &mut inside.get_or_insert_default().statements;
                    statements.entry(head.note).or_default().parameters = parameters;
                }
            }
            (b'T', Sent::DescribePortal | Sent::Query) => {
                let Ok(rows) = RowDescription::parse(body) else {
                    return;
                };
                let places = rows.columns().enumerate().filter_map(|(index, column)| {
                    let oid = column.type_oid;
                    let of_catalogs = || Place::of_catalogs(index, oid).filter(|_| is_possible);
                    let place = Place::of_users(numbered, index, oid).or_else(of_catalogs)?;
                    Some((place, column.format == 1))
                });
                let mut places: Vec<(Place, bool)> = places.collect();
                // Of a portal whose statement was told before there is no note.
                if head.sent == Sent::DescribePortal && head.note != 0 && !places.is_empty() {
                    let columns = places.iter().map(|(place, _)| *place);
                    let statements = &mut inside.get_or_insert_default().statements;
                    let told = statements.entry(head.note).or_default();
                    told.columns = columns.collect();
                }
                let mut portals = inside.iter_mut().flat_map(|inside| &mut inside.portals);
                if let Some(columns) = portals.find(|known| known.portal == head.portal) {
                    let reads_catalogs = columns.reads_catalogs;
                    places.retain(|(place, is_binary)| place.counts(*is_binary, reads_catalogs));
                    columns.places = places;
                }
            }
            _ => {}
        }
    }

    /// Up to which size a message of the client's is collected, as far as that depends on its values.
    pub(super) fn whole_from_client(&self, header: Header, ahead: &[u8]) -> usize {
        let max = whole_max(header.tag, Sender::Client);
        let is_numbered = header.tag == b'B'
            && header.frame_len() <= WHOLE_NUMBERED_MAX
            && Bind::read(ahead.get(HEADER_LEN..).unwrap_or_default())
                .is_some_and(|bind| !self.numbered_parameters(&bind, false).is_empty());
        if is_numbered { WHOLE_NUMBERED_MAX } else { max }
    }

    /// The same of one of the server's.
    pub(super) fn whole_from_server(&self, tag: u8) -> usize {
        match tag == b'D' && self.renumbers_rows() {
            true => WHOLE_NUMBERED_MAX,
            false => whole_max(tag, Sender::Server),
        }
    }

    /// Which parameters of a Bind have numbers inside that the server does not know.
    fn numbered_parameters(&self, bind: &Bind<'_>, reads_catalogs: bool) -> Vec<Place> {
        let (Seat::Server(server), Some(routed)) = (&self.place, &self.routed) else {
            return Vec::new();
        };
        let Some(numbered) = server.numbers.as_ref().filter(|view| !view.is_reference()) else {
            return Vec::new();
        };
        let (attempt, rest) = self.statement_of(bind);
        let inside = routed.numbers.inside.as_deref();
        let told = inside.and_then(|inside| inside.statements.get(&attempt));
        let mut places = told.map_or_else(Vec::new, |told| told.parameters.to_vec());
        for (index, oid) in frames::types_of_statement(rest).enumerate() {
            let said = Place::of_users(numbered, index, oid)
                .or_else(|| Place::of_parameter(index, oid).filter(|_| reads_catalogs));
            if let Some(said) = said
                && places.iter().all(|place| place.index != index)
            {
                places.push(said);
            }
        }
        // Whether they are in binary format is not known yet.
        places.retain(|place| place.counts(true, reads_catalogs));
        places
    }

    /// The attempt that has prepared what is bound, and its Parse's body behind the name.
    fn statement_of(&self, bind: &Bind<'_>) -> (Attempt, &[u8]) {
        match self.statements.get(bind.statement) {
            Some((attempt, prepared)) => (attempt, prepared.statement.rest()),
            None if bind.statement.is_empty() => (
                self.unnamed.attempt,
                self.unnamed.rest().unwrap_or_default(),
            ),
            None => (0, &[]),
        }
    }

    /// Whether its server has other numbers than the client is told.
    fn is_renumbered(&self) -> bool {
        match &self.place {
            Seat::Server(server) => {
                let numbers = server.numbers.as_ref();
                numbers.is_some_and(|numbered| !numbered.is_reference())
            }
            _ => false,
        }
    }

    /// A Bind with the server's numbers in its values; `step` is what has become of its names.
    pub(super) fn bind_numbered(
        &mut self,
        step: Step,
        input: &[u8],
        at: Range<usize>,
        splice: &mut Splice<'_>,
        shared: &Shared,
    ) -> Step {
        let written = match step {
            Step::Pass => 0,
            Step::Written(written) => written,
            _ => return step,
        };
        let frame = input.get(at).unwrap_or_default();
        let bind = Bind::read(frame.get(HEADER_LEN..).unwrap_or_default());
        let Some(bind) = bind.filter(|_| self.is_renumbered()) else {
            return step;
        };
        let (_, rest) = self.statement_of(&bind);
        let reads_catalogs = self.reads_catalogs(rest.split(|byte| *byte == 0).next(), shared);
        self.number_portal(&bind, reads_catalogs);
        let places = self.numbered_parameters(&bind, reads_catalogs);
        let Seat::Server(server) = &self.place else {
            return step;
        };
        let (Some(numbered), false) = (&server.numbers, places.is_empty()) else {
            return step;
        };
        // What is not whole has another form.
        let tail = frames::bound(bind.tail, |index, is_binary, value| {
            let place = places.iter().find(|place| place.index == index)?;
            place
                .counts(is_binary, reads_catalogs)
                .then(|| numbered.renumbered(value, is_binary, place.form, Toward::Node))
        });
        let Some(tail) = tail else { return step };
        let out = splice.make(input);
        let names = frame.len() - bind.tail.len();
        out.put_slice(frame.get(written..names).unwrap_or_default());
        // What stands there now is the header, and two names with a zero byte behind each.
        let statement = out.iter().rev().skip(1).position(|byte| *byte == 0);
        let statement = statement.unwrap_or_default();
        let start = out
            .len()
            .checked_sub(HEADER_LEN + bind.portal.len() + statement + 2);
        out.put_slice(&tail);
        if let Some(start) = start {
            patch_len(out, start, out.len() - start - 1);
        }
        Step::Written(frame.len())
    }

    /// A portal is bound: it gets a number, and its columns are noted if they are known.
    fn number_portal(&mut self, bind: &Bind<'_>, reads_catalogs: bool) {
        let (attempt, _) = self.statement_of(bind);
        let Some(routed) = &mut self.routed else {
            return;
        };
        let inside = routed.numbers.inside.get_or_insert_default();
        if let Seat::Server(server) = &self.place {
            inside.forget_unused(&server.owed);
        }
        let portal = inside.next_portal();
        inside.bound.retain(|(known, _)| **known != *bind.portal);
        if inside.bound.len() >= NAMES_MAX {
            // The oldest, which is hardly there any more.
            inside.bound.remove(0);
        }
        inside.bound.push((bind.portal.into(), portal));
        let told = inside.statements.get(&attempt);
        let mut places = Vec::new();
        if let (Some(told), Some(formats)) = (told, frames::result_formats(bind.tail)) {
            let all = told.columns.iter();
            let all = all.map(|place| (*place, formats.is_binary(place.index)));
            places = all
                .filter(|(place, is_binary)| place.counts(*is_binary, reads_catalogs))
                .collect();
        }
        inside.portals.push(Columns {
            portal,
            reads_catalogs,
            places,
        });
    }

    /// A Query has gone to the server: if it reads catalogs, its rows have numbers.
    pub(super) fn number_query(&mut self, body: &[u8], shared: &Shared) {
        let text = body.strip_suffix(b"\0");
        if !self.is_renumbered() || !self.reads_catalogs(text, shared) {
            return;
        }
        let (Seat::Server(server), Some(routed)) = (&mut self.place, &mut self.routed) else {
            return;
        };
        let inside = routed.numbers.inside.get_or_insert_default();
        inside.forget_unused(&server.owed);
        let portal = inside.next_portal();
        server.owed.names_portal(portal);
        inside.portals.push(Columns {
            portal,
            reads_catalogs: true,
            places: Vec::new(),
        });
    }

    fn reads_catalogs(&self, text: Option<&[u8]>, shared: &Shared) -> bool {
        let Some(text) = text.filter(|text| may_read_catalogs(text)) else {
            return false;
        };
        let settings = shared.settings.load();
        let chooser = self.chooser(shared, &settings);
        chooser.is_some_and(|chooser| chooser.reads_catalogs(text))
    }

    /// A FunctionCall with the server's number of the function.
    pub(super) fn call_numbered(
        &mut self,
        input: &[u8],
        at: Range<usize>,
        splice: &mut Splice<'_>,
    ) -> Step {
        let Seat::Server(server) = &self.place else {
            return Step::Pass;
        };
        let Some(numbered) = &server.numbers else {
            return Step::Pass;
        };
        let frame = input.get(at).unwrap_or_default();
        let Some(start) = frame.get(..HEADER_LEN + 4) else {
            return Step::Pass;
        };
        let out = splice.make(input);
        let function = out.len() + HEADER_LEN;
        out.put_slice(start);
        frames::in_function_call(out.get_mut(function..).unwrap_or_default(), |oid| {
            numbered.function(oid)
        });
        Step::Written(start.len())
    }

    /// Waits for the types of a Parse that the server's node is not known to have.
    pub(super) fn lacks_types(&mut self, body: &[u8]) -> bool {
        let Seat::Server(server) = &self.place else {
            return false;
        };
        let Some(numbered) = &server.numbers else {
            return false;
        };
        let mut reader = Reader::new(body);
        let missing = reader
            .cstr()
            .ok()
            .and_then(|_| numbered.missing(reader.rest()));
        let lacks = missing.is_some();
        if let Some(meeting) = missing {
            self.wait_for_number(meeting);
        }
        lacks
    }
}

/// What becomes of a message's body.
pub(super) enum Renumbered {
    Same,
    Other(Vec<u8>),
}

/// A Bind's body.
struct Bind<'a> {
    portal: &'a [u8],
    statement: &'a [u8],
    /// Formats and values.
    tail: &'a [u8],
}

impl<'a> Bind<'a> {
    fn read(body: &'a [u8]) -> Option<Bind<'a>> {
        let mut reader = Reader::new(body);
        Some(Bind {
            portal: reader.cstr().ok()?,
            statement: reader.cstr().ok()?,
            tail: reader.rest(),
        })
    }
}

/// Gives the types of what was written behind the name of a Parse the server's numbers.
pub(super) fn renumber_types(server: &Server, rest: &mut [u8]) {
    if let Some(numbered) = &server.numbers {
        numbered.statement(rest);
    }
}

fn u32s(mut reader: Reader<'_>) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || reader.u32().ok())
}
