//! Owns what a server connection owes: every message sent to it enqueues its replies, every reply must be owed. Pure.
//!
//! It follows PostgreSQL's `PostgresMain` and `SocketBackend` (postgres.c) and the manual, "Message Flow": which reply
//! ends which message, what an error makes the server throw away, and what a COPY does to the messages behind it.
//!
//! **Invariant:** a reply that nobody is owed is an error, and its connection is never used again. [`Owed::is_settled`] is true only
//! when not a byte of an answer can be on its way.

use std::collections::VecDeque;

use tandem_wire::backend::ErrorFields;

use super::trace::Control;

/// A message to the server, as far as its replies go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// `Q`
    Query,
    /// `F`
    FunctionCall,
    /// `P`
    Parse,
    /// `B`
    Bind,
    /// `D` of a statement
    DescribeStatement,
    /// `D` of a portal
    DescribePortal,
    /// `E`
    Execute,
    /// `C`
    Close,
    /// `S`
    Sync,
    /// `c` or `f`: owed nothing, but it ends a COPY
    CopyEnd,
}

impl Sent {
    /// Whether it belongs to the extended protocol: an error of it makes the server skip to the next Sync.
    fn is_extended(self) -> bool {
        match self {
            Sent::Parse
            | Sent::Bind
            | Sent::DescribeStatement
            | Sent::DescribePortal
            | Sent::Execute
            | Sent::Close => true,
            Sent::Query | Sent::FunctionCall | Sent::Sync | Sent::CopyEnd => false,
        }
    }
}

/// Who sent a message, and gets its replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// The client.
    Client,
    /// The proxy: the client never hears of the replies.
    Proxy,
}

/// Names one attempt to prepare a statement, so that it can be taken back. 0: none.
pub(crate) type Attempt = u64;

/// What goes with a message: of a Parse its [`Attempt`], of a Bind or Describe that of the client's which has prepared the
/// statement, of a Query or Execute what it does to the session. 0: nothing.
pub(crate) type Note = u64;

/// A message that is owed replies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Item {
    pub(crate) sent: Sent,
    pub(crate) by: By,
    pub(crate) note: Note,
    /// The number of the portal that it names, where the session gives them any; 0: none.
    pub(crate) portal: u32,
    /// What it does to the transaction that it runs in.
    pub(crate) control: Control,
}

/// What a reply is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Who gets it.
    pub(crate) to: By,
    /// What of it concerns more than the client.
    pub(crate) event: Event,
}

/// What a reply means beyond being passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Nothing.
    None,
    /// This message is answered; a Describe of a statement as one of a portal, behind its parameters.
    Answered(Sent, Note),
    /// The first half of the answer to a Describe of a statement.
    Parameters(Note),
    /// A statement of a Query has ended; more may follow.
    Completed(Note),
    /// A COPY from the client begins.
    CopyBegun,
    /// An error that answers this message, with its note (none: the session ends).
    Error(Option<Sent>, Note),
    /// The server waits for the next message.
    Ready,
    /// A setting was reported.
    Parameter,
}

/// A reply that nobody is owed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("message type {} of the server answers nothing (expected an answer to {head:?})", char::from(*.tag))]
pub(crate) struct Mismatch {
    tag: u8,
    head: Option<Sent>,
}

/// Where a COPY stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CopyState {
    None,
    /// The server reads data: it takes anything but data, Sync and Flush for an error.
    In,
    /// It has been given the end of the data, or something that makes it give up.
    InEnded,
    Out,
}

/// The transaction status as of the last ReadyForQuery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// Outside.
    Idle,
    /// In a transaction block.
    Transaction,
    /// In a failed one.
    Failed,
}

impl Status {
    /// As ReadyForQuery has it.
    pub(crate) fn byte(self) -> u8 {
        match self {
            Status::Idle => b'I',
            Status::Transaction => b'T',
            Status::Failed => b'E',
        }
    }
}

/// The replies that a server owes.
#[derive(Debug)]
pub(crate) struct Owed {
    items: VecDeque<Item>,
    status: Status,
    /// The server throws away everything up to the next Sync.
    skipping: bool,
    /// A message of the extended protocol was sent since the last Sync.
    batch_open: bool,
    copy: CopyState,
    /// Syncs that the server ignores if it meets them while it reads COPY data.
    copy_syncs: u32,
    /// Syncs of which nobody knows whether they were ignored: the COPY failed at an unknown place.
    doubtful_syncs: u32,
    fatal: bool,
    /// What is answered now has failed: only the end of its batch is still to come.
    told: bool,
    /// What was run and answered since then does this to the transaction; none: nothing was.
    ran: Option<Control>,
    /// The client is in the middle of a batch.
    clients_batch: bool,
    /// Something of the client's went there since it has the connection.
    touched: bool,
    undone: Vec<Attempt>,
}

impl Owed {
    /// Of a connection that is ready for its first query.
    pub(crate) fn new() -> Self {
        Self {
            items: VecDeque::new(),
            status: Status::Idle,
            skipping: false,
            batch_open: false,
            copy: CopyState::None,
            copy_syncs: 0,
            doubtful_syncs: 0,
            fatal: false,
            told: false,
            ran: None,
            clients_batch: false,
            touched: false,
            undone: Vec::new(),
        }
    }

    /// Another client has the connection now.
    pub(crate) fn begin(&mut self) {
        self.touched = false;
    }

    /// A transaction block of the client's has begun there.
    pub(crate) fn touch(&mut self) {
        self.touched = true;
    }

    /// Whether it reads data of a COPY, and answers nothing until that ends.
    pub(crate) fn is_copying_in(&self) -> bool {
        self.copy == CopyState::In
    }

    /// Whether nothing that this client sent has gone there: nothing of it can have run.
    pub(crate) fn is_untouched(&self) -> bool {
        !self.touched
    }

    /// A message goes to the server. Answers whether it can have an effect: behind an error it is thrown away.
    pub(crate) fn sent(&mut self, sent: Sent, by: By, note: Note) -> bool {
        if by == By::Client {
            self.touched = true;
            self.clients_batch = match sent {
                Sent::Query | Sent::FunctionCall | Sent::Sync => false,
                Sent::CopyEnd => self.clients_batch,
                _ => true,
            };
        }
        if self.skipping && sent != Sent::Sync {
            return false;
        }
        if self.copy == CopyState::In {
            return self.sent_into_copy(sent);
        }
        if sent == Sent::CopyEnd && self.items.is_empty() {
            return false;
        }
        self.skipping = false;
        match sent {
            Sent::Query | Sent::FunctionCall | Sent::Sync => self.batch_open = false,
            Sent::CopyEnd => {}
            _ => self.batch_open = true,
        }
        self.items.push_back(Item {
            sent,
            by,
            note,
            portal: 0,
            control: Control::None,
        });
        true
    }

    /// While it reads data the server ignores Sync (`CopyGetData` in copyfromparse.c), and gives up at what is no COPY message.
    fn sent_into_copy(&mut self, sent: Sent) -> bool {
        if sent == Sent::Sync {
            self.copy_syncs += 1;
        } else {
            self.copy = CopyState::InEnded;
        }
        sent == Sent::CopyEnd
    }

    /// A message of the server has come: its type and what of its body is there.
    ///
    /// # Errors
    /// [`Mismatch`] when nobody is owed such a message.
    pub(crate) fn reply(&mut self, tag: u8, body: &[u8]) -> Result<Reply, Mismatch> {
        let head = self.items.front().copied();
        let to = head.map_or(By::Client, |item| item.by);
        let mismatch = Mismatch {
            tag,
            head: head.map(|item| item.sent),
        };
        let event = match tag {
            b'N' | b'A' => Event::None,
            b'S' => Event::Parameter,
            b'E' => self.error(head, body).ok_or(mismatch)?,
            b'Z' => self.ready(head, body).ok_or(mismatch)?,
            _ => {
                let item = head.ok_or_else(|| mismatch.clone())?;
                let event = self.answer(item, tag).ok_or(mismatch)?;
                // Replies come in order: whatever those Syncs were answered with would have come before this.
                self.doubtful_syncs = 0;
                event
            }
        };
        // The end of a COPY is owed nothing.
        while self
            .items
            .front()
            .is_some_and(|item| item.sent == Sent::CopyEnd)
        {
            self.items.pop_front();
        }
        Ok(Reply { to, event })
    }

    /// The message that is answered now.
    pub(crate) fn head(&self) -> Option<Item> {
        self.items.front().copied()
    }

    /// What was sent last names the portal of this number.
    pub(crate) fn names_portal(&mut self, portal: u32) {
        if let Some(item) = self.items.back_mut() {
            item.portal = portal;
        }
    }

    /// What was sent last does this to its transaction.
    pub(crate) fn controls(&mut self, control: Control) {
        if let Some(item) = self.items.back_mut() {
            item.control = control;
        }
    }

    /// What is not answered, in order.
    pub(crate) fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.iter()
    }

    /// Whether the client has the error of what is answered now.
    pub(crate) fn is_told(&self) -> bool {
        self.told
    }

    /// What the answered part of the batch, or of the Query, that is answered now does to its transaction; none: nothing of it
    /// has run.
    pub(crate) fn ran(&self) -> Option<Control> {
        self.ran
    }

    /// Whether the client has begun a batch that its Sync has not ended yet.
    pub(crate) fn is_in_clients_batch(&self) -> bool {
        self.clients_batch
    }

    /// Whether nobody can tell how many answers the client waits for: a Sync may have met a server that reads data of a COPY.
    pub(crate) fn is_unclear(&self) -> bool {
        self.doubtful_syncs > 0 || self.copy_syncs > 0
    }

    /// Whether something is owed that names this portal.
    pub(crate) fn awaits_portal(&self, portal: u32) -> bool {
        self.items.iter().any(|item| item.portal == portal)
    }

    /// Whether any DataRow that comes now is the client's, and means nothing beyond that.
    pub(crate) fn passes_rows(&self) -> bool {
        self.copy == CopyState::None
            && self.doubtful_syncs == 0
            && self.items.front().is_some_and(|head| {
                head.by == By::Client && matches!(head.sent, Sent::Query | Sent::Execute)
            })
    }

    fn answer(&mut self, head: Item, tag: u8) -> Option<Event> {
        match (head.sent, tag) {
            (Sent::Parse, b'1') | (Sent::Bind, b'2') | (Sent::Close, b'3') => {}
            (Sent::DescribePortal, b'T' | b'n') => {}
            (Sent::DescribeStatement, b't') => {
                self.items.front_mut()?.sent = Sent::DescribePortal;
                return Some(Event::Parameters(head.note));
            }
            (Sent::Execute | Sent::Query, b'G') if self.copy == CopyState::None => {
                self.begin_copy_in();
                return Some(Event::CopyBegun);
            }
            (Sent::Execute | Sent::Query, b'H') if self.copy == CopyState::None => {
                self.copy = CopyState::Out;
                return Some(Event::None);
            }
            (Sent::Execute | Sent::Query, b'd' | b'c') if self.copy == CopyState::Out => {
                return Some(Event::None);
            }
            (Sent::Execute, b'D') | (Sent::Query, b'T' | b'D') if self.copy == CopyState::None => {
                return Some(Event::None);
            }
            (Sent::Execute, b'C') => self.end_copy(),
            (Sent::Execute, b'I' | b's') if self.copy == CopyState::None => {}
            (Sent::Query, b'C') => {
                self.end_copy();
                self.ran = Some(head.control);
                return Some(Event::Completed(head.note));
            }
            (Sent::Query, b'I') if self.copy == CopyState::None => return Some(Event::None),
            (Sent::FunctionCall, b'V') => {
                self.ran = Some(Control::None);
                return Some(Event::None);
            }
            _ => return None,
        }
        self.items.pop_front();
        if head.sent == Sent::Execute {
            self.ran = Some(self.ran.unwrap_or_default().then(head.control));
        }
        Some(Event::Answered(head.sent, head.note))
    }

    /// What was sent behind the message that began the COPY meets a server that reads data.
    fn begin_copy_in(&mut self) {
        self.copy = CopyState::In;
        while self.copy == CopyState::In && self.items.len() > 1 {
            let Some(next) = self.items.remove(1) else {
                return;
            };
            self.undo(next);
            self.sent_into_copy(next.sent);
        }
    }

    fn end_copy(&mut self) {
        self.copy = CopyState::None;
        self.copy_syncs = 0;
    }

    fn error(&mut self, head: Option<Item>, body: &[u8]) -> Option<Event> {
        if is_fatal(body) {
            self.fatal = true;
            return Some(Event::Error(None, 0));
        }
        let head = head?;
        self.told = true;
        if self.copy != CopyState::None {
            self.doubtful_syncs += self.copy_syncs;
            self.end_copy();
        }
        if head.sent.is_extended() {
            self.skip_to_sync();
        }
        Some(Event::Error(Some(head.sent), head.note))
    }

    fn skip_to_sync(&mut self) {
        while let Some(item) = self.items.front().copied() {
            if item.sent == Sent::Sync {
                return;
            }
            self.items.pop_front();
            self.undo(item);
        }
        self.skipping = true;
    }

    fn undo(&mut self, item: Item) {
        if item.sent == Sent::Parse && item.note != 0 {
            self.undone.push(item.note);
        }
    }

    fn ready(&mut self, head: Option<Item>, body: &[u8]) -> Option<Event> {
        let status = match body {
            b"I" => Status::Idle,
            b"T" => Status::Transaction,
            b"E" => Status::Failed,
            _ => return None,
        };
        match head.map(|item| item.sent) {
            Some(Sent::Query | Sent::FunctionCall | Sent::Sync) => {
                self.items.pop_front();
            }
            _ if self.doubtful_syncs > 0 => self.doubtful_syncs -= 1,
            _ => return None,
        }
        self.status = status;
        self.told = false;
        self.ran = None;
        self.end_copy();
        Some(Event::Ready)
    }

    /// Attempts to prepare that have failed, or were thrown away, since the last call.
    pub(crate) fn take_undone(&mut self) -> Vec<Attempt> {
        std::mem::take(&mut self.undone)
    }

    /// What was attempted before this is answered; 0: nothing is under way.
    pub(crate) fn oldest_attempt(&self) -> Attempt {
        let mut parses = self.items.iter().filter(|item| item.sent == Sent::Parse);
        parses.next().map_or(0, |item| item.note)
    }

    /// Whether everything is answered and no transaction is open: another client may have the connection.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_quiet() && self.status == Status::Idle && self.doubtful_syncs == 0 && !self.fatal
    }

    /// Whether the server owes nothing and waits for a new batch.
    pub(crate) fn is_quiet(&self) -> bool {
        self.items.is_empty() && !self.batch_open && !self.skipping
    }

    /// Whether all of a batch is answered that no Sync has ended yet.
    pub(crate) fn awaits_sync(&self) -> bool {
        self.items.is_empty() && self.batch_open && !self.skipping
    }

    /// Whether a message of the extended protocol was sent since the last Sync.
    pub(crate) fn is_in_batch(&self) -> bool {
        self.batch_open
    }

    /// Whether a Query now would come into a batch of the extended protocol that is its own transaction. PostgreSQL reports
    /// that transaction as ended, but it is not: whatever comes next on the connection fails with "unexpected state STARTED"
    /// (15 to 18).
    pub(crate) fn is_in_implicit_batch(&self) -> bool {
        self.batch_open && self.status == Status::Idle
    }

    /// Whether the server throws away everything up to the next Sync.
    pub(crate) fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// The transaction status as of the last ReadyForQuery.
    pub(crate) fn status(&self) -> Status {
        self.status
    }

    /// The server has said that it ends the session.
    pub(crate) fn is_fatal(&self) -> bool {
        self.fatal
    }

    #[cfg(test)]
    /// Whether a COPY failed in a way that leaves open how many answers are still to come.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.doubtful_syncs > 0
    }
}

/// Whether an ErrorResponse announces that the server ends the session.
fn is_fatal(body: &[u8]) -> bool {
    ErrorFields::parse(body).is_ok_and(|fields| {
        fields
            .severity()
            .is_some_and(|severity| severity == b"FATAL" || severity == b"PANIC")
    })
}

#[cfg(test)]
mod tests;
