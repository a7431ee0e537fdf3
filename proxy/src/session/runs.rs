//! Owns what is known of the messages ahead: what they run, and where the most demanding of it goes.

use tandem_routing_rules::state::{self, Doubt, Effect};

use super::{
    ahead::Until,
    block::Block,
    homed::homed,
    listening::listens,
    prepared_transactions::ended,
    program::{self, Program, program},
};
use crate::routing::{Choice, Chooser, Demand, Run};

/// What the messages ahead run.
#[derive(Debug)]
pub(super) struct Runs {
    pub(super) count: usize,
    pub(super) until: Until,
    /// Where the first goes of those that demand most.
    pub(super) choice: Choice,
    /// The first is about the block and nothing else.
    pub(super) is_block: bool,
    /// They run nothing, so the block need not begin for them.
    pub(super) goes_beside: bool,
    /// LISTEN does not keep the session on its server.
    pub(super) shares_channels: bool,
    /// The prepared transaction that the first ends.
    pub(super) gid: Option<Box<str>>,
    /// The first begins with COMMIT.
    pub(super) commits: bool,
    /// They do something that belongs to their transaction: settings, cursors, functions of which nothing is known.
    pub(super) is_bound: bool,
}

impl Runs {
    /// Nothing yet, which goes there.
    pub(super) fn new(choice: Choice, shares_channels: bool) -> Runs {
        Runs {
            count: 0,
            until: Until::More,
            choice,
            is_block: false,
            goes_beside: false,
            shares_channels,
            gid: None,
            commits: false,
            is_bound: false,
        }
    }

    /// One more; of one that cannot be read only the block knows what it is.
    pub(super) fn add(
        &mut self,
        run: Option<Run<'_>>,
        is_read: bool,
        chooser: &Chooser<'_>,
        block: &Block,
    ) {
        let program = run.and_then(|run| program(run.text));
        if self.count == 0 {
            self.is_block = run.is_some_and(|run| block.takes(run.text, program.as_ref()));
            self.gid = program.as_ref().and_then(ended);
            self.commits = program.as_ref().is_some_and(commits);
        }
        self.is_bound |= program.is_some();
        self.judge(run.filter(|_| is_read), program.as_ref(), chooser);
        self.count += 1;
    }

    pub(super) fn judge(
        &mut self,
        run: Option<Run<'_>>,
        program: Option<&Program>,
        chooser: &Chooser<'_>,
    ) {
        if self.choice.demand == Demand::Write {
            return;
        }
        let choice = chooser.choose(run.map(|run| Run {
            begins: program.is_some_and(|program| begins(program, self.shares_channels)),
            homed: homed(program),
            ..run
        }));
        if self.count == 0 || choice.demand > self.choice.demand {
            self.choice = choice;
        }
    }
}

/// Whether it begins a transaction block, or something that keeps the session on its server.
fn begins(program: &Program, shares_channels: bool) -> bool {
    let begins = |step: &program::Step| {
        !(step.effects.pins.is_empty() || shares_channels && listens(step))
            || matches!(step.effects.doubt, Some(Doubt::SetConfig | Doubt::Syntax))
            || matches!(
                step.effects.effect,
                Effect::Transaction(state::Transaction::Begin(_)) | Effect::Prepare { .. }
            )
    };
    program.iter().any(begins)
}

/// Whether a text begins with COMMIT.
pub(super) fn commits(program: &Program) -> bool {
    let first = program.first().map(|step| &step.effects.effect);
    matches!(
        first,
        Some(Effect::Transaction(state::Transaction::Commit { .. }))
    )
}
