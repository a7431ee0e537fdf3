//! Owns recoveries: what a node that comes back had committed that nobody had read, and what became of it.
//!
//! The replicator counts a node's tail from when it is found gone until it is back; when it has caught up both ways, the conflict
//! logs say which of the tail's rows have lost and won. `report.rs` is what is told of it, `kept.rs` what outlives the daemon.

mod kept;
pub(crate) mod report;

use std::{path::Path, sync::Arc, time::Duration};

use tandem_replicator::{Moment, Tail};
use tokio::time::{MissedTickBehavior, interval};

use crate::{health::Presence, session::Shared};
use kept::KeptFile;
pub(crate) use kept::Known;
use report::Absence;
pub(crate) use report::Report;

/// How often it is written down what was read of a tail.
const NOTE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a node that is back may take to say where its tail ends; it is asked again.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The absences of all nodes.
#[derive(Debug)]
pub(crate) struct Recoveries {
    files: Vec<KeptFile>,
}

impl Recoveries {
    /// Those of the nodes with these ids that are written down.
    pub(crate) fn read(state_dir: &Path, ids: impl IntoIterator<Item = u16>) -> Recoveries {
        let files = ids.into_iter().map(|id| KeptFile::read(state_dir, id));
        Recoveries {
            files: files.collect(),
        }
    }

    /// What an earlier daemon has counted of nodes that were gone.
    pub(crate) fn tails(&self) -> Vec<Option<Tail>> {
        let absences = self.files.iter().map(|file| file.known().absence);
        absences
            .map(|absence| absence.map(|absence| absence.tail))
            .collect()
    }

    /// What is known of a node.
    pub(crate) fn known(&self, node: usize) -> Known {
        self.files
            .get(node)
            .map(KeptFile::known)
            .unwrap_or_default()
    }

    /// The last report of a node.
    pub(crate) fn last(&self, node: usize) -> Option<Arc<Report>> {
        self.known(node).reports.pop()
    }
}

/// What is to be done now about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Nothing, but to write down what was read since.
    Wait,
    /// It is gone.
    Begin,
    /// It is back.
    Return,
    /// It is gone again before it had caught up.
    Reopen,
    /// It has caught up.
    Conclude,
}

/// The only place where it is decided how an absence goes on.
fn step(absence: Option<&Absence>, presence: Presence) -> Step {
    let is_back = absence.map(|absence| absence.back.is_some());
    match (is_back, presence) {
        (None, Presence::Away) => Step::Begin,
        (Some(false), Presence::Back) => Step::Return,
        (Some(true), Presence::Away) => Step::Reopen,
        (Some(_), Presence::Here) => Step::Conclude,
        (_, Presence::Unknown)
        | (None, Presence::Back | Presence::Here)
        | (Some(false), Presence::Away)
        | (Some(true), Presence::Back) => Step::Wait,
    }
}

/// Makes the reports of a node, for ever.
pub(crate) async fn keep(shared: Arc<Shared>, node: usize) {
    let Some(file) = shared.recoveries.files.get(node) else {
        return;
    };
    let mut verdicts = shared.health.verdicts();
    let mut ticks = interval(NOTE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let presence = shared.health.presence(node);
        let absence = file.known().absence;
        go_on(&shared, node, file, absence, presence).await;
        tokio::select! {
            // The sender lives as long as the board.
            _ = verdicts.changed() => {}
            _ = ticks.tick() => note(&shared, node, file).await,
        }
    }
}

async fn go_on(
    shared: &Shared,
    node: usize,
    file: &KeptFile,
    absence: Option<Absence>,
    presence: Presence,
) {
    let replicator = &shared.replicator;
    match (step(absence.as_ref(), presence), absence) {
        (Step::Begin, _) => {
            replicator.begin_tail(node);
            let absence = Absence {
                epoch: shared.health.epoch(),
                down: Moment::now(),
                back: None,
                tail: replicator.tail(node).unwrap_or_default(),
            };
            file.set_absence(Some(absence)).await;
        }
        (Step::Return, Some(absence)) => {
            let back = Some(Moment::now());
            replicator.end_tail(node, END_TIMEOUT).await;
            let tail = replicator.tail(node).unwrap_or_default();
            file.set_absence(Some(Absence {
                back,
                tail,
                ..absence
            }))
            .await;
        }
        (Step::Reopen, Some(absence)) => {
            replicator.reopen_tail(node);
            let tail = replicator.tail(node).unwrap_or_default();
            file.set_absence(Some(Absence {
                back: None,
                tail,
                ..absence
            }))
            .await;
        }
        (Step::Conclude, Some(absence)) => conclude(shared, node, file, absence).await,
        _ => {}
    }
}

/// Writes down what was read of the tail since; asks for its end where that is not known yet.
async fn note(shared: &Shared, node: usize, file: &KeptFile) {
    let Some(absence) = file.known().absence else {
        return;
    };
    let Some(tail) = shared.replicator.tail(node) else {
        return;
    };
    if absence.back.is_some() && !tail.has_end() {
        shared.replicator.end_tail(node, END_TIMEOUT).await;
    }
    if let Some(tail) = shared.replicator.tail(node)
        && tail != absence.tail
    {
        file.set_absence(Some(Absence { tail, ..absence })).await;
    }
}

/// The node has caught up both ways: all that can be known of its tail is known.
async fn conclude(shared: &Shared, node: usize, file: &KeptFile, absence: Absence) {
    let replicator = &shared.replicator;
    if replicator.is_foreign(node) {
        // The daemon that has the node has read its tail, and tells of it.
        replicator.forget_tail(node);
        file.set_absence(None).await;
        return;
    }
    let has_end = |tail: &Tail| tail.has_end();
    if !replicator.tail(node).as_ref().is_some_and(has_end) {
        replicator.end_tail(node, END_TIMEOUT).await;
    }
    let now = Moment::now();
    let tail = replicator.tail(node).unwrap_or(absence.tail);
    let judged = replicator
        .operator()
        .judged(node, &tail, absence.down)
        .await;
    let absence = Absence { tail, ..absence };
    let name = shared.nodes.get(node).map_or("?", |node| node.name());
    let report = Report::new(name, &absence, now, judged);
    report.log();
    file.conclude(report).await;
    replicator.forget_tail(node);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node's way as it is seen, with what is done at each step.
    #[test]
    fn an_absence_is_reported_when_the_node_has_caught_up_however_often_it_goes_again_before() {
        use Presence::{Away, Back, Here, Unknown};
        let way = [
            (Unknown, Step::Wait),
            (Back, Step::Wait),
            (Here, Step::Wait),
            (Away, Step::Begin),
            (Away, Step::Wait),
            (Unknown, Step::Wait),
            (Back, Step::Return),
            (Back, Step::Wait),
            (Away, Step::Reopen),
            (Back, Step::Return),
            (Unknown, Step::Wait),
            (Here, Step::Conclude),
            (Here, Step::Wait),
            // Nobody has looked while it caught up.
            (Away, Step::Begin),
            (Here, Step::Conclude),
        ];
        let mut absence: Option<Absence> = None;
        for (at, (presence, wanted)) in way.into_iter().enumerate() {
            let taken = step(absence.as_ref(), presence);
            assert_eq!(taken, wanted, "at {at}");
            let now = Moment::now();
            absence = match taken {
                Step::Begin => Some(Absence {
                    epoch: 1,
                    down: now,
                    back: None,
                    tail: Tail::default(),
                }),
                Step::Return => absence.map(|absence| Absence {
                    back: Some(now),
                    ..absence
                }),
                Step::Reopen => absence.map(|absence| Absence {
                    back: None,
                    ..absence
                }),
                Step::Conclude => None,
                Step::Wait => absence,
            };
        }
    }
}
