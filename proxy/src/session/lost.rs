//! Owns the decision what becomes of a session whose server is lost, from what was under way there. Pure.
//!
//! **Invariant:** a client is told that nothing has committed, so that it tries again, only if nothing that could commit was given to
//! the socket. What was written there counts as given, whether or not the server has read it.

use super::{
    losses::Loss,
    owed::{By, Item, Sent, Status},
    trace::Control,
};

/// What the client has sent up to where it is told that the server is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Segment {
    /// Something of it has run, and the client has the answer.
    pub(super) has_run: bool,
    /// So many of its messages run something, and are not answered.
    pub(super) runs: usize,
    /// What all of that does to the transaction.
    pub(super) control: Control,
    /// Its end was sent: a Sync, or it is a Query or a FunctionCall.
    pub(super) is_ended: bool,
}

impl Segment {
    /// Of these messages, in order, behind what has `ran`; `is_open`: more of the last batch is to come.
    pub(super) fn all<'a>(
        items: impl Iterator<Item = &'a Item>,
        ran: Option<Control>,
        is_open: bool,
    ) -> Vec<Segment> {
        let mut all = Vec::new();
        let mut now = Segment {
            has_run: ran.is_some(),
            control: ran.unwrap_or_default(),
            ..Segment::default()
        };
        for item in items.filter(|item| item.by == By::Client) {
            let is_whole = matches!(item.sent, Sent::Query | Sent::FunctionCall);
            // What has run is of this one.
            let has_begun = is_whole && now.has_run;
            if !has_begun && (is_whole || item.sent == Sent::Execute) {
                now.runs += 1;
                now.control = now.control.then(item.control);
            }
            now.is_ended = is_whole || item.sent == Sent::Sync;
            if now.is_ended {
                all.push(std::mem::take(&mut now));
            }
        }
        if is_open {
            all.push(now);
        }
        all
    }

    fn may_have_run(&self) -> bool {
        self.has_run || self.runs > 0
    }
}

/// What is known of a server that is lost, and of what its client was doing there.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// Something of the session's is on this server only.
    pub(super) is_held: bool,
    /// The last that the client was told of the transaction.
    pub(super) status: Status,
    /// What is not answered.
    pub(super) segments: Vec<Segment>,
    /// The first of them has failed, and the client has its error.
    pub(super) is_told: bool,
    /// How many answers the client waits for is not known.
    pub(super) is_unclear: bool,
    /// What is outside of a block may write.
    pub(super) may_write: bool,
    /// All that was sent can be sent once more, and the client has heard nothing of it.
    pub(super) can_repeat: bool,
    /// The transaction's number.
    pub(super) xid: Option<u64>,
}

/// What becomes of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// It was doing nothing: it goes elsewhere with what comes next.
    Idle,
    /// It is between two statements of a block, which has failed. `told`: before, and the client knows.
    Between {
        /// See there.
        told: bool,
    },
    /// What it has sent only reads, and is sent once more.
    Again,
    /// It was ending a transaction that commits nothing: so it has.
    RolledBack,
    /// Its block is over, and the client was told so: only the end of the batch is still to come.
    Ended,
    /// Nothing of its transaction has committed.
    Nothing,
    /// Its COMMIT, or PREPARE TRANSACTION, is in doubt, and the node can tell what became of the transaction of this number.
    Asks(u64),
    /// Something may have committed.
    Unknown,
    /// It ends, with what it had there only. `in_doubt`: something may have committed.
    Over {
        /// See there.
        in_doubt: bool,
    },
    /// It ends, because nobody knows how many answers its client waits for.
    Unclear,
}

impl Facts {
    /// Whether something that could commit was given to the socket, and is not known to have failed.
    pub(super) fn may_have_committed(&self) -> bool {
        let mut behind = self.segments.iter().skip(usize::from(self.is_told));
        if self.is_told {
            // Whether its block is over is not known of what failed.
            let may_write = self.may_write || self.status != Status::Idle;
            return may_write && behind.any(Segment::may_have_run);
        }
        let (mut is_open, mut may_write) = (self.status != Status::Idle, self.may_write);
        let mut fails = self.status == Status::Failed;
        behind.any(|segment| {
            let commits = match is_open {
                true => !fails && segment.control.may_commit(),
                false => may_write,
            };
            if let Some(opens) = segment.control.opens() {
                // Nobody has looked at what follows the end of a block.
                (is_open, may_write, fails) = (opens, true, false);
            }
            commits && segment.may_have_run()
        })
    }
}

impl Lost {
    /// What it comes to for the client; none: it will be known later, or nothing can be said.
    pub(super) fn comes_to(self) -> Option<Loss> {
        match self {
            Lost::Idle | Lost::Between { told: true } => Some(Loss::Unnoticed),
            Lost::Again => Some(Loss::Resent),
            Lost::RolledBack | Lost::Ended => Some(Loss::Ended),
            Lost::Between { told: false } | Lost::Nothing => Some(Loss::Aborted),
            Lost::Unknown => Some(Loss::Unknown),
            Lost::Over { .. } => Some(Loss::Disconnected),
            Lost::Asks(_) | Lost::Unclear => None,
        }
    }

    /// The one place where this is decided.
    pub(super) fn decide(facts: &Facts) -> Lost {
        let in_doubt = facts.may_have_committed();
        if facts.is_unclear {
            return Lost::Unclear;
        }
        if facts.is_held {
            return Lost::Over { in_doubt };
        }
        let only = match facts.segments.as_slice() {
            [only] if only.is_ended && !facts.is_told => Some((only.control, only.runs)),
            _ => None,
        };
        let can_be_asked_for = |control: Control| control.can_be_asked_for().is_some();
        match (facts.status, only) {
            (Status::Idle, _) if facts.segments.is_empty() => Lost::Idle,
            (status, _) if facts.segments.is_empty() => Lost::Between {
                told: status == Status::Failed,
            },
            (
                Status::Transaction | Status::Failed,
                Some((Control::RollsBack | Control::Commits | Control::Prepares, 0)),
            ) => Lost::Ended,
            (Status::Transaction | Status::Failed, Some((Control::RollsBack, 1)))
            | (Status::Failed, Some((Control::Commits | Control::Prepares, 1))) => Lost::RolledBack,
            (Status::Transaction, Some((control, 1))) if can_be_asked_for(control) => {
                facts.xid.map_or(Lost::Unknown, Lost::Asks)
            }
            (Status::Idle, _) if !facts.may_write && !facts.is_told && facts.can_repeat => {
                Lost::Again
            }
            _ if in_doubt => Lost::Unknown,
            _ => Lost::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(status: Status, segments: &[Segment]) -> Facts {
        Facts {
            is_held: false,
            status,
            segments: segments.to_vec(),
            is_told: false,
            is_unclear: false,
            may_write: true,
            can_repeat: false,
            xid: None,
        }
    }

    fn ended(control: Control) -> Segment {
        Segment {
            has_run: false,
            runs: 1,
            control,
            is_ended: true,
        }
    }

    fn over(control: Control) -> Segment {
        Segment { control, ..RAN }
    }

    fn two(control: Control) -> Segment {
        Segment {
            runs: 2,
            ..ended(control)
        }
    }

    const RUNS: Segment = Segment {
        has_run: false,
        runs: 1,
        control: Control::None,
        is_ended: true,
    };
    /// Parse and Sync.
    const PREPARES: Segment = Segment { runs: 0, ..RUNS };
    /// All of it is answered, but for the Sync.
    const RAN: Segment = Segment {
        has_run: true,
        ..PREPARES
    };

    #[test]
    fn what_becomes_of_a_session() {
        use Control as C;
        use Status::{Failed, Idle, Transaction};
        let table: &[(Status, &[Segment], Lost)] = &[
            (Idle, &[], Lost::Idle),
            (Transaction, &[], Lost::Between { told: false }),
            (Failed, &[], Lost::Between { told: true }),
            // Outside of a block each ends a transaction of its own.
            (Idle, &[RUNS], Lost::Unknown),
            (Idle, &[PREPARES], Lost::Nothing),
            (Idle, &[PREPARES, RUNS], Lost::Unknown),
            (Idle, &[ended(C::Opens)], Lost::Unknown),
            (Idle, &[RAN], Lost::Unknown),
            (Transaction, &[RAN], Lost::Nothing),
            (Transaction, &[over(C::Commits)], Lost::Ended),
            (Transaction, &[over(C::RollsBack)], Lost::Ended),
            (Transaction, &[over(C::Commits), RUNS], Lost::Unknown),
            (Transaction, &[over(C::MayCommit)], Lost::Unknown),
            (Transaction, &[two(C::Commits)], Lost::Unknown),
            (Transaction, &[two(C::RollsBack)], Lost::Nothing),
            (Transaction, &[RUNS], Lost::Nothing),
            (Transaction, &[RUNS, RUNS], Lost::Nothing),
            (Transaction, &[PREPARES], Lost::Nothing),
            (Transaction, &[ended(C::RollsBack)], Lost::RolledBack),
            (Transaction, &[RUNS, ended(C::RollsBack)], Lost::Nothing),
            (Transaction, &[ended(C::RollsBack), RUNS], Lost::Unknown),
            (Transaction, &[ended(C::RollsBack), PREPARES], Lost::Nothing),
            (
                Transaction,
                &[ended(C::RollsBack), ended(C::Opens)],
                Lost::Unknown,
            ),
            (Transaction, &[ended(C::Commits)], Lost::Unknown),
            (Transaction, &[RUNS, ended(C::Commits)], Lost::Unknown),
            (Transaction, &[ended(C::Commits), RUNS], Lost::Unknown),
            (Transaction, &[ended(C::Prepares)], Lost::Unknown),
            (Transaction, &[ended(C::Chains)], Lost::Unknown),
            (Transaction, &[over(C::Prepares)], Lost::Ended),
            // Another block has begun there.
            (Transaction, &[over(C::Chains)], Lost::Unknown),
            (Failed, &[ended(C::Prepares)], Lost::RolledBack),
            (Transaction, &[ended(C::MayCommit)], Lost::Unknown),
            (Transaction, &[ended(C::MayCommitOpens)], Lost::Unknown),
            (Transaction, &[ended(C::MayCommitEnds)], Lost::Unknown),
            (Transaction, &[ended(C::Opens)], Lost::Nothing),
            (Failed, &[RUNS], Lost::Nothing),
            (Failed, &[ended(C::RollsBack)], Lost::RolledBack),
            (Failed, &[ended(C::Commits)], Lost::RolledBack),
            (Failed, &[ended(C::RollsBack), RUNS], Lost::Unknown),
        ];
        for (status, segments, wanted) in table {
            let facts = facts(*status, segments);
            assert_eq!(Lost::decide(&facts), *wanted, "{facts:?}");
        }
    }

    #[test]
    fn a_commit_whose_transaction_has_a_number_can_be_asked_for() {
        let commit = ended(Control::Commits);
        let with = |segments: &[Segment]| {
            Lost::decide(&Facts {
                xid: Some(7),
                ..facts(Status::Transaction, segments)
            })
        };
        assert_eq!(with(&[commit]), Lost::Asks(7));
        assert_eq!(with(&[ended(Control::Prepares)]), Lost::Asks(7));
        assert_eq!(with(&[ended(Control::Chains)]), Lost::Asks(7));
        // What became of the others could not be told.
        assert_eq!(with(&[RUNS, commit]), Lost::Unknown);
        assert_eq!(with(&[commit, RUNS]), Lost::Unknown);
        assert_eq!(with(&[ended(Control::MayCommitOpens)]), Lost::Unknown);
        assert_eq!(with(&[RUNS]), Lost::Nothing);
        // Its Sync is still to come.
        let open = Segment {
            is_ended: false,
            ..commit
        };
        assert_eq!(with(&[open]), Lost::Unknown);
    }

    #[test]
    fn messages_are_taken_together_up_to_where_a_server_is_ready() {
        let item = |sent, by, control| Item {
            sent,
            by,
            note: 0,
            portal: 0,
            control,
        };
        let client = |sent, control| item(sent, By::Client, control);
        let none = Control::None;
        let items = [
            item(Sent::FunctionCall, By::Proxy, none),
            client(Sent::Parse, none),
            client(Sent::Execute, none),
            client(Sent::Execute, Control::Commits),
            client(Sent::Sync, none),
            client(Sent::Query, Control::Opens),
            client(Sent::Bind, none),
        ];
        let of = |ran, is_open| Segment::all(items.iter(), ran, is_open);
        let second = ended(Control::Opens);
        let open = Segment::default();
        assert_eq!(of(None, true), [two(Control::Commits), second, open]);
        let has_run = Segment {
            has_run: true,
            ..two(Control::Commits)
        };
        assert_eq!(of(Some(none), false), [has_run, second]);
        // Of a Query that has run in part, the rest is not another one.
        let query = [client(Sent::Query, Control::Commits)];
        let all = Segment::all(query.iter(), Some(Control::Commits), false);
        assert_eq!(all, [over(Control::Commits)]);
    }

    #[test]
    fn reads_of_which_nothing_was_heard_are_sent_once_more() {
        let read = |can_repeat, is_told| Facts {
            may_write: false,
            can_repeat,
            is_told,
            ..facts(Status::Idle, &[RUNS])
        };
        assert_eq!(Lost::decide(&read(true, false)), Lost::Again);
        assert_eq!(Lost::decide(&read(false, false)), Lost::Nothing);
        assert_eq!(Lost::decide(&read(true, true)), Lost::Nothing);
        let write = Facts {
            may_write: true,
            ..read(true, false)
        };
        assert_eq!(Lost::decide(&write), Lost::Unknown);
    }

    #[test]
    fn what_has_failed_before_does_not_commit() {
        let failed = |segments: &[Segment]| {
            Lost::decide(&Facts {
                is_told: true,
                ..facts(Status::Idle, segments)
            })
        };
        assert_eq!(failed(&[RUNS]), Lost::Nothing);
        assert_eq!(failed(&[RUNS, RUNS]), Lost::Unknown);
    }

    #[test]
    fn what_was_there_only_ends_the_session_and_says_whether_something_may_have_committed() {
        let held = |status, segments: &[Segment]| {
            Lost::decide(&Facts {
                is_held: true,
                ..facts(status, segments)
            })
        };
        let sure = Lost::Over { in_doubt: false };
        let in_doubt = Lost::Over { in_doubt: true };
        assert_eq!(held(Status::Idle, &[]), sure);
        assert_eq!(held(Status::Transaction, &[RUNS]), sure);
        assert_eq!(held(Status::Idle, &[RUNS]), in_doubt);
        assert_eq!(
            held(Status::Transaction, &[ended(Control::Commits)]),
            in_doubt
        );
        let unclear = Facts {
            is_unclear: true,
            ..facts(Status::Idle, &[RUNS])
        };
        assert_eq!(Lost::decide(&unclear), Lost::Unclear);
    }

    /// Whatever was under way: who is told that nothing has committed has sent nothing that could commit.
    #[test]
    fn nobody_is_told_to_try_again_what_may_have_committed() {
        use Control as C;
        let controls = [
            C::None,
            C::Opens,
            C::RollsBack,
            C::Commits,
            C::Chains,
            C::Prepares,
            C::MayCommit,
            C::MayCommitOpens,
            C::MayCommitEnds,
        ];
        let segments: Vec<Segment> = controls
            .into_iter()
            .flat_map(|control| {
                let of = |(is_ended, has_run, runs)| Segment {
                    has_run,
                    runs,
                    control,
                    is_ended,
                };
                [
                    (true, false, 1),
                    (false, false, 1),
                    (true, true, 0),
                    (true, true, 1),
                ]
                .map(of)
            })
            .collect();
        for first in &segments {
            for second in &segments {
                for may_write in [false, true] {
                    for can_repeat in [false, true] {
                        let both = [*first, *second];
                        let of = |status| Facts {
                            may_write,
                            can_repeat,
                            ..facts(status, &both)
                        };
                        let tries_again =
                            |lost| matches!(lost, Lost::Nothing | Lost::Again | Lost::RolledBack);
                        if tries_again(Lost::decide(&of(Status::Transaction))) {
                            assert!(both.iter().all(|one| !one.control.may_commit()));
                            assert_ne!(first.control.opens(), Some(false));
                        }
                        if tries_again(Lost::decide(&of(Status::Idle))) {
                            assert!(!may_write);
                        }
                    }
                }
            }
        }
    }
}
