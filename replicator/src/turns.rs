//! In which order nodes are taken, so that of several daemons that want them one gets them all: a daemon holds a node only
//! while no other daemon has one with a lower id. Otherwise two that wait could get a node each, and wait for each other.

use tokio::sync::watch;

/// What this daemon knows of the nodes that others own.
#[derive(Debug)]
pub(crate) struct Turns {
    /// By index.
    node_ids: Vec<u16>,
    /// Whether another daemon was found to own it, by index.
    foreign: watch::Sender<Vec<bool>>,
}

impl Turns {
    /// Nobody owns any of the nodes with these ids, as far as is known.
    pub(crate) fn new(node_ids: Vec<u16>) -> Self {
        let foreign = watch::Sender::new(vec![false; node_ids.len()]);
        Self { node_ids, foreign }
    }

    /// Says whether another daemon owns this node. One that cannot be asked counts as not owned: it keeps nobody from the rest.
    pub(crate) fn set_foreign(&self, node: usize, foreign: bool) {
        self.foreign
            .send_if_modified(|all| match all.get_mut(node) {
                Some(known) => std::mem::replace(known, foreign) != foreign,
                None => false,
            });
    }

    /// Whether another daemon owns this node, or keeps this one from taking it by owning another.
    pub(crate) fn is_foreign(&self, node: usize) -> bool {
        let foreign = self.foreign.borrow();
        foreign.get(node) == Some(&true) || self.first_before(node, &foreign).is_some()
    }

    /// The node because of which this one must not be held.
    pub(crate) fn before(&self, node: usize) -> Option<usize> {
        self.first_before(node, &self.foreign.borrow())
    }

    /// Waits until this node may be taken.
    pub(crate) async fn come(&self, node: usize) {
        self.changed(node, false).await;
    }

    /// Waits until this node has to be given up.
    pub(crate) async fn pass(&self, node: usize) {
        self.changed(node, true).await;
    }

    async fn changed(&self, node: usize, blocked: bool) {
        let mut foreign = self.foreign.subscribe();
        // The sender lives as long as this.
        let _ = foreign
            .wait_for(|all| self.first_before(node, all).is_some() == blocked)
            .await;
    }

    fn first_before(&self, node: usize, foreign: &[bool]) -> Option<usize> {
        let id = self.node_ids.get(node)?;
        let ids = self.node_ids.iter().zip(foreign).enumerate();
        ids.filter(|(_, (other, foreign))| **foreign && *other < id)
            .min_by_key(|(_, (other, _))| **other)
            .map(|(index, _)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_waits_for_those_of_lower_ids_that_another_daemon_owns() {
        let turns = Turns::new(vec![7, 3, 5]);
        let before = || [0, 1, 2].map(|node| turns.before(node));
        assert_eq!(before(), [None; 3]);
        turns.set_foreign(2, true);
        assert_eq!(before(), [Some(2), None, None]);
        assert_eq!(
            [0, 1, 2].map(|node| turns.is_foreign(node)),
            [true, false, true]
        );
        turns.set_foreign(1, true);
        assert_eq!(before(), [Some(1), None, Some(1)]);
        turns.set_foreign(2, false);
        turns.set_foreign(1, false);
        assert_eq!(before(), [None; 3]);
    }

    /// Daemons that look at one node after the other, in any order, and hold what nobody else holds.
    #[test]
    fn of_several_daemons_one_gets_every_node_whoever_tries_what_first() {
        const NODES: usize = 4;
        for seed in 0..500 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut owner = [None; NODES];
            let daemons: Vec<_> = (0..3).map(|_| Turns::new(vec![1, 2, 3, 4])).collect();
            let held_by_one = |owner: &[Option<usize>; NODES]| {
                owner.iter().all(|of| of.is_some() && *of == owner[0])
            };
            let mut steps = 0;
            while !held_by_one(&owner) {
                let (daemon, node) = (random.usize(0..3), random.usize(0..NODES));
                let turns = &daemons[daemon];
                if turns.before(node).is_none() {
                    let foreign = owner[node].is_some_and(|of| of != daemon);
                    turns.set_foreign(node, foreign);
                    if !foreign {
                        owner[node] = Some(daemon);
                    }
                }
                for (node, owner) in owner.iter_mut().enumerate() {
                    if *owner == Some(daemon) && turns.before(node).is_some() {
                        *owner = None;
                    }
                }
                steps += 1;
                assert!(steps < 10_000, "seed {seed}: {owner:?}");
            }
        }
    }
}
