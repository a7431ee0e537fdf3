//! Owns the evidence that lies in what does not come: a node that sessions wait for, and that says nothing to any of them.
//!
//! The bytes of all its connections are counted anyway; they are looked at a few times a second, so that it costs sessions nothing.
//! It brings a probe forward, and is no more than that: a long statement is as quiet as a node that stands still.

use std::{sync::Arc, time::Duration};

use tokio::time::MissedTickBehavior;

use crate::{pool::figures::Flow, session::Shared};

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Looks without a word after which a node is quiet.
const LOOKS: u32 = 2;

/// What a look at a node's connections shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Something has come.
    Heard,
    /// Nothing that is worth anything.
    Nothing,
    /// It was asked something a while ago, and nothing has come since. Said once, until it is asked something else.
    Quiet,
}

/// What is known of a node's connections.
#[derive(Debug, Default)]
struct Quiet {
    flow: Flow,
    /// Looks since it was asked something, without a word from it.
    looks: Option<u32>,
}

impl Quiet {
    fn look(&mut self, flow: Flow) -> Look {
        let before = std::mem::replace(&mut self.flow, flow);
        let (asked, said) = (flow.asked != before.asked, flow.said != before.said);
        if said {
            // What it was asked last may be unanswered.
            self.looks = asked.then_some(0);
            return Look::Heard;
        }
        self.looks = match self.looks {
            None => asked.then_some(0),
            // That was of something else.
            Some(looks) if asked && looks >= LOOKS => Some(0),
            Some(looks) => Some(looks.saturating_add(1)),
        };
        match self.looks {
            Some(LOOKS) => Look::Quiet,
            _ => Look::Nothing,
        }
    }
}

/// Has nodes probed that are quiet, for ever.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let mut known: Vec<Quiet> = Vec::new();
    known.resize_with(shared.nodes.len(), Quiet::default);
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for (node, (quiet, flow)) in known.iter_mut().zip(shared.pools.flows()).enumerate() {
            match quiet.look(flow) {
                Look::Heard => shared.health.heard(node),
                Look::Nothing => {}
                Look::Quiet if shared.registry.awaits(node) => shared.health.evidence(node),
                Look::Quiet => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(flows: &[(u64, u64)]) -> Vec<Look> {
        let mut quiet = Quiet::default();
        let flows = flows.iter().map(|(asked, said)| Flow {
            asked: *asked,
            said: *said,
        });
        flows.map(|flow| quiet.look(flow)).collect()
    }

    #[test]
    fn a_node_is_quiet_once_when_nothing_comes_for_a_while_after_it_was_asked() {
        use Look::{Heard, Nothing, Quiet};
        for (flows, wanted) in [
            // Nobody asks.
            (&[(0, 0); 5][..], vec![Nothing; 5]),
            // It falls silent in the middle of its work, and later sessions change nothing about that.
            (
                &[(1, 1), (2, 2), (2, 2), (3, 2), (4, 2), (4, 2)],
                vec![Heard, Heard, Nothing, Quiet, Nothing, Nothing],
            ),
            // It was idle before.
            (
                &[(1, 1), (1, 2), (1, 2), (2, 2), (2, 2), (2, 2), (2, 2)],
                vec![Heard, Heard, Nothing, Nothing, Nothing, Quiet, Nothing],
            ),
            // It answers in the end, and falls silent once more.
            (
                &[(1, 0), (1, 0), (1, 0), (2, 1), (2, 1), (2, 1)],
                vec![Nothing, Nothing, Quiet, Heard, Nothing, Quiet],
            ),
            // One session waits for something that takes long; then another one does.
            (
                &[(1, 0), (1, 0), (1, 0), (1, 0), (2, 0), (2, 0), (2, 0)],
                vec![Nothing, Nothing, Quiet, Nothing, Nothing, Nothing, Quiet],
            ),
            // Who has the answer asks for nothing more.
            (
                &[(1, 0), (1, 1), (1, 1), (1, 1), (1, 1)],
                vec![Nothing, Heard, Nothing, Nothing, Nothing],
            ),
        ] {
            assert_eq!(looks(flows), wanted, "{flows:?}");
        }
    }
}
