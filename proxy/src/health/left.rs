//! Owns which server processes may go on at a node although nobody has their connections any more. Pure.
//!
//! The process of a connection that is closed ends when it next looks at it. On a node that stands still, or that cannot be reached,
//! that is when the node is back, and what was sent before is done first: a COMMIT too.

use std::time::Instant;

/// So many are remembered; whoever is left behind beyond that meets its end by itself.
const LEFT_MAX: usize = 16 * 1024;

/// The processes of connections that were closed since the node was last seen well.
#[derive(Debug, Default)]
pub(super) struct Left {
    all: Vec<(i32, Instant)>,
}

impl Left {
    /// The connection of this process is closed.
    pub(super) fn add(&mut self, pid: i32, now: Instant) {
        if self.all.len() < LEFT_MAX {
            self.all.push((pid, now));
        }
    }

    /// A probe that began then was answered: the node has seen the end of what was closed before.
    pub(super) fn seen_well(&mut self, begun: Instant) {
        self.all.retain(|(_, closed)| *closed >= begun);
        // Most of the time there is nobody.
        if self.all.is_empty() {
            self.all = Vec::new();
        }
    }

    /// All of them, which are somebody else's concern from now on.
    pub(super) fn take(&mut self) -> Vec<i32> {
        let all = std::mem::take(&mut self.all);
        all.into_iter().map(|(pid, _)| pid).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn who_was_left_behind_before_the_node_was_seen_well_is_forgotten() {
        let start = Instant::now();
        let of = |millis| start + Duration::from_millis(millis);
        let mut left = Left::default();
        left.add(1, of(10));
        left.add(2, of(20));
        left.seen_well(of(15));
        left.add(3, of(30));
        assert_eq!(left.take(), [2, 3]);
        assert_eq!(left.take(), [0; 0]);
        for pid in 0..20_000 {
            left.add(pid, of(40));
        }
        assert_eq!(left.take().len(), LEFT_MAX);
    }
}
