//! Owns what becomes of a statement that uses what all sessions have to use on one node, while its own runs on another one: an
//! advisory lock that is taken there would exclude nobody, a snapshot's name would be another one's.
//!
//! The first statement of a unit goes to the right node by itself. A later one is refused in its place (`policing.rs`).

use tandem_routing_rules::state::{Effect, Homed, LARGE_OBJECT_OIDS, Transaction};
use tandem_wire::{ErrorReport, Reader};

use super::{
    Shared,
    program::{Program, Step},
    report,
    task::Task,
};
use crate::config::LargeObjects;

/// What the statements of a text use that all sessions have to use on one node.
pub(super) fn homed(program: Option<&Program>) -> Option<Homed> {
    let steps = program?.iter();
    steps.filter_map(|step| step.effects.homed()).max()
}

/// Why a statement is refused.
#[derive(Debug, Clone, Copy)]
enum Refusal {
    /// There are no large objects through Tandem.
    LargeObjects,
    /// It would have to run on another node than its transaction.
    Elsewhere(Homed),
    /// It prepares a transaction that listens, or does not any more.
    Listens,
}

impl Refusal {
    /// What the client is told. `node`: where its transaction runs.
    fn report(self, node: &str) -> ErrorReport {
        match self {
            Refusal::LargeObjects => report::large_objects_refused(),
            Refusal::Elsewhere(homed) => report::not_at_home(homed, node),
            Refusal::Listens => report::prepares_listening(),
        }
    }
}

impl Task {
    /// What the client is told if what a message uses is refused on the server that it has.
    pub(super) fn refusal(
        &self,
        program: Option<&Program>,
        shared: &Shared,
    ) -> Option<ErrorReport> {
        let program = program?;
        let prepares = |step: &Step| {
            let effect = &step.effects.effect;
            matches!(effect, Effect::Transaction(Transaction::Prepare(_)))
        };
        // The server has not heard of the LISTEN.
        let hearing = self.state.hearing.as_ref();
        if hearing.is_some_and(|hearing| hearing.listening.is_changing())
            && program.iter().any(prepares)
        {
            return Some(Refusal::Listens.report(self.pool.node_name()));
        }
        self.refusal_of(homed(Some(program))?, shared)
    }

    /// The same of a call in the function call protocol.
    pub(super) fn refusal_of_call(&self, body: &[u8], shared: &Shared) -> Option<ErrorReport> {
        let function = Reader::new(body).u32().ok()?;
        LARGE_OBJECT_OIDS.binary_search(&function).ok()?;
        self.refusal_of(Homed::LargeObject, shared)
    }

    fn refusal_of(&self, homed: Homed, shared: &Shared) -> Option<ErrorReport> {
        // Only with several nodes.
        self.routed.as_ref()?;
        let settings = shared.settings.load();
        let replication = &settings.config.replication;
        if homed == Homed::LargeObject
            && replication.large_objects == LargeObjects::Refuse
            && self.pool.key().database == replication.database
        {
            return Some(Refusal::LargeObjects.report(self.pool.node_name()));
        }
        let home = self.chooser(shared, &settings)?.home(homed)?;
        let refusal = Refusal::Elsewhere(homed);
        (home != self.node()).then(|| refusal.report(self.pool.node_name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_objects_are_known_by_their_numbers() {
        assert!(LARGE_OBJECT_OIDS.is_sorted());
    }
}
