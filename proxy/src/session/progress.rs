//! Owns what the relay knows of a session's protocol state: which answers are owed and the transaction status.
//!
//! It follows only tags, never bodies. It decides when a session may be ended without cutting
//! off work, so a doubt is always resolved towards *busy*.

/// What a session is doing, as far as the messages that passed tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Outside a transaction, and nothing is owed.
    Idle,
    /// Inside a transaction (or a failed one), and nothing is owed.
    InTransaction,
    /// The server owes an answer.
    Active,
}

impl Activity {
    /// The number under which an activity is kept in an atomic.
    pub(crate) fn code(self) -> u8 {
        match self {
            Activity::Idle => 0,
            Activity::InTransaction => 1,
            Activity::Active => 2,
        }
    }

    /// The activity of a number; an unknown one counts as active.
    pub(crate) fn from_code(code: u8) -> Activity {
        match code {
            0 => Activity::Idle,
            1 => Activity::InTransaction,
            _ => Activity::Active,
        }
    }
}

/// Counts the ReadyForQuery messages a session is owed.
///
/// Query, FunctionCall and Sync are owed one each. The exception is COPY: the server throws away
/// a Sync that reaches it between its CopyInResponse and the client's CopyDone or CopyFail
/// ("COPY Operations", PostgreSQL's protocol documentation). Drivers of the extended protocol
/// send one there, because they send Sync before they know that a COPY begins.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Messages sent so far that are owed a ReadyForQuery.
    sent: u64,
    /// ReadyForQuery messages seen so far.
    answered: u64,
    /// Number of the latest Query or FunctionCall; its Syncs are not thrown away by a COPY.
    latest_simple: u64,
    /// The server waits for COPY data.
    copy_in: bool,
    /// Some message went to the server since it was last ready.
    unready: bool,
    transaction: bool,
    terminate: bool,
}

impl Progress {
    /// A session that has just logged in.
    pub(crate) fn new() -> Progress {
        Progress {
            sent: 0,
            answered: 0,
            latest_simple: 0,
            copy_in: false,
            unready: false,
            transaction: false,
            terminate: false,
        }
    }

    /// A message of the client is on its way to the server.
    pub(crate) fn on_client(&mut self, tag: u8) {
        match tag {
            b'Q' | b'F' => {
                self.sent += 1;
                self.latest_simple = self.sent;
            }
            b'S' if !self.copy_in => self.sent += 1,
            // Behind an error the rest of the COPY data is thrown away.
            b'd' | b'c' | b'f' if !self.copy_in => return,
            b'c' | b'f' => self.copy_in = false,
            b'X' => self.terminate = true,
            _ => {}
        }
        self.unready = true;
    }

    /// A message of the server is on its way to the client. `status` is the transaction status of a ReadyForQuery.
    pub(crate) fn on_server(&mut self, tag: u8, status: Option<u8>) {
        match tag {
            b'Z' => {
                self.answered = (self.answered + 1).min(self.sent);
                self.transaction = status != Some(b'I');
                self.copy_in = false;
                // Without a pipeline the session is quiet now. With one, `sent` says what is still owed.
                self.unready = self.sent > self.answered;
            }
            b'G' => {
                self.copy_in = true;
                let head = self.answered + 1;
                // All Syncs on the way were sent behind the COPY, as those before it are answered.
                self.sent = if self.latest_simple >= head {
                    self.latest_simple
                } else {
                    self.answered
                };
            }
            b'E' => self.copy_in = false,
            _ => {}
        }
    }

    /// The client has said goodbye.
    pub(crate) fn terminate_seen(&self) -> bool {
        self.terminate
    }

    /// What the session is doing.
    pub(crate) fn activity(&self) -> Activity {
        if self.unready {
            Activity::Active
        } else if self.transaction {
            Activity::InTransaction
        } else {
            Activity::Idle
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a script: lower level notation `>Q` is a client's message, `<Z:I` a server's.
    fn run(script: &str) -> Progress {
        let mut progress = Progress::new();
        for word in script.split_whitespace() {
            let mut bytes = word.bytes();
            let side = bytes.next().expect("a side");
            let tag = bytes.next().expect("a tag");
            let status = word.split_once(':').and_then(|(_, s)| s.bytes().next());
            match side {
                b'>' => progress.on_client(tag),
                _ => progress.on_server(tag, status),
            }
        }
        progress
    }

    #[test]
    fn a_session_is_idle_only_when_everything_is_answered() {
        let cases = [
            ("", Activity::Idle),
            (">Q", Activity::Active),
            (">Q <T <D <C <Z:I", Activity::Idle),
            (">Q <C <Z:T", Activity::InTransaction),
            (">Q <E <Z:E", Activity::InTransaction),
            (">P", Activity::Active),
            (">P >B >E >S <1 <2 <C <Z:I", Activity::Idle),
            // Two batches on the way: the first answer does not make it idle.
            (">P >B >E >S >P >B >E >S <1 <2 <C <Z:I", Activity::Active),
            (
                ">P >B >E >S >P >B >E >S <1 <2 <C <Z:I <1 <2 <C <Z:I",
                Activity::Idle,
            ),
            // A batch after the last Sync has no Sync yet, but its Flush may have been answered.
            (">P >S <1 <Z:I >B >H <2", Activity::Active),
            (">F <V <Z:I", Activity::Idle),
        ];
        for (script, expected) in cases {
            assert_eq!(run(script).activity(), expected, "{script}");
        }
    }

    #[test]
    fn syncs_swallowed_by_copy_are_not_owed() {
        let cases = [
            (">Q <G >d >c <C <Z:I", Activity::Idle),
            (">Q <G >d >d", Activity::Active),
            (">P >B >E >S <1 <2 <G >d >c >S <C <Z:I", Activity::Idle),
            (">P >B >E >S <1 <2 <G >d >S >c >S <C <Z:I", Activity::Idle),
            (">P >B >E >S <1 <2 <G >d >f >S <E <Z:I", Activity::Idle),
            // The server gives up in the middle; the client answers with Sync alone.
            (">P >B >E >S <1 <2 <G >d <E >S <Z:I", Activity::Idle),
            (">Q <G >d <E <Z:I >d >c", Activity::Idle),
        ];
        for (script, expected) in cases {
            assert_eq!(run(script).activity(), expected, "{script}");
        }
    }

    #[test]
    fn terminate_is_remembered() {
        assert!(!run(">Q <Z:I").terminate_seen());
        assert!(run(">Q <Z:I >X").terminate_seen());
    }
}
