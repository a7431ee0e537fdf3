//! Owns what a session has seen, and on which nodes: what another node has to show before the session goes on there. Pure.

use tandem_replicator::Point;
use tokio::time::Instant;

/// Something that was seen on a node, and that not all others are known to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    node: usize,
    point: Point,
    /// The node that did not show it in time, where the session went on all the same, and was told so.
    gave_up_on: Option<usize>,
}

impl Mark {
    fn new(node: usize, point: Point) -> Mark {
        Mark {
            node,
            point,
            gave_up_on: None,
        }
    }
}

/// What one session has seen.
///
/// Where it was last is enough as long as that node showed all that the session had seen before; what it did not is kept beside it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The node that the session last had a server of, and until when.
    last: Option<(usize, Instant)>,
    /// At most one time and one position of each node.
    others: Vec<Mark>,
    /// The node that shows all of this, as was found out when the session last went somewhere.
    shown: Option<usize>,
    /// Nodes that were lost with what was seen there, and when the session was told.
    lost: Vec<(usize, Instant)>,
}

impl Seen {
    /// The node that the session last had a server of.
    pub(super) fn last(&self) -> Option<usize> {
        self.last.map(|(node, _)| node)
    }

    /// It has had a server of this node until now.
    pub(super) fn left(&mut self, node: usize, now: Instant) {
        match (self.shown == Some(node), self.last) {
            (true, _) => self.others = Vec::new(),
            (false, Some((last, until))) if last != node => {
                keep(&mut self.others, Mark::new(last, Point::Time(until)));
            }
            (false, _) => {}
        }
        self.others.retain(|mark| mark.node != node);
        self.lost.retain(|(lost, _)| *lost != node);
        self.last = Some((node, now));
    }

    /// It goes to a node of which nothing is known yet.
    pub(super) fn goes(&mut self) {
        self.shown = None;
    }

    /// This node shows all that is [wanted](Self::wanted) of it. Whether nothing was given up there.
    pub(super) fn shows(&mut self, node: usize) {
        let gave_up = |mark: &Mark| mark.gave_up_on == Some(node);
        if !self.others.iter().any(gave_up) {
            self.shown = Some(node);
        }
    }

    /// It is to see this of a node, too.
    pub(super) fn add(&mut self, node: usize, point: Point) {
        keep(&mut self.others, Mark::new(node, point));
        self.shown = None;
    }

    /// What `to` has to show: what was seen on other nodes, and what was `written` there, by whomever.
    pub(super) fn wanted(
        &self,
        to: usize,
        written: impl IntoIterator<Item = (usize, Instant)>,
    ) -> Vec<(usize, Point)> {
        let mut wanted = Vec::new();
        let time = |(node, time)| Mark::new(node, Point::Time(time));
        let written = written
            .into_iter()
            .filter(|write| !self.is_over(to, *write));
        let others = self.others.iter().copied();
        for mark in others.chain(self.last.map(time)).chain(written.map(time)) {
            if mark.node != to && mark.gave_up_on != Some(to) {
                keep(&mut wanted, mark);
            }
        }
        wanted
            .into_iter()
            .map(|mark| (mark.node, mark.point))
            .collect()
    }

    /// Whether the session was told that it may not see this write on `to`.
    fn is_over(&self, to: usize, (node, at): (usize, Instant)) -> bool {
        let mut lost = self.lost.iter();
        lost.any(|(lost, told)| *lost == node && *told >= at)
            || self.others.iter().any(|mark| {
                let covers = matches!(mark.point, Point::Time(time) if time >= at);
                mark.node == node && covers && mark.gave_up_on == Some(to)
            })
    }

    /// It goes on on `to` without these, and was told so.
    pub(super) fn gave_up(&mut self, to: usize, late: &[(usize, Point)]) {
        for (node, point) in late.iter().copied() {
            let is_last = |(last, until): (usize, Instant)| {
                last == node && matches!(point, Point::Time(time) if time >= until)
            };
            if self.last.is_some_and(is_last) {
                self.last = None;
            }
            let mark = Mark {
                gave_up_on: Some(to),
                ..Mark::new(node, point)
            };
            keep(&mut self.others, mark);
        }
    }

    /// What it has seen on this node is lost, and it was told so.
    pub(super) fn lost(&mut self, node: usize, now: Instant) {
        self.others.retain(|mark| mark.node != node);
        self.last = self.last.filter(|(last, _)| *last != node);
        self.lost.retain(|(lost, _)| *lost != node);
        self.lost.push((node, now));
    }
}

/// Adds a mark, or puts it in the place of an earlier one of its node and kind.
fn keep(marks: &mut Vec<Mark>, mark: Mark) {
    let later = |known: &Mark| match known.node == mark.node {
        true => is_later(known.point, mark.point),
        false => None,
    };
    match marks.iter_mut().find(|known| later(known).is_some()) {
        Some(known) if later(known) == Some(true) => {}
        Some(known) => *known = mark,
        None => marks.push(mark),
    }
}

/// Whether one point of a node is later than another. None: nobody can tell.
fn is_later(one: Point, other: Point) -> Option<bool> {
    match (one, other) {
        (Point::Time(one), Point::Time(other)) => Some(one > other),
        (Point::Position(one), Point::Position(other)) => Some(one > other),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use tandem_wire::lsn::Lsn;

    use super::*;

    fn nobody() -> [(usize, Instant); 0] {
        []
    }

    #[test]
    fn where_it_was_last_is_all_that_counts_once_that_has_shown_the_rest() {
        let at = |seconds| Instant::now() + Duration::from_secs(seconds);
        let (one, two, three) = (at(1), at(2), at(3));
        let mut seen = Seen::default();
        assert!(seen.wanted(1, nobody()).is_empty());
        seen.left(0, one);
        assert!(seen.wanted(0, nobody()).is_empty());
        assert_eq!(seen.wanted(1, nobody()), [(0, Point::Time(one))]);
        seen.goes();
        seen.shows(1);
        seen.left(1, two);
        assert_eq!(seen.wanted(0, nobody()), [(1, Point::Time(two))]);
        // It went on without having been shown anything.
        seen.goes();
        seen.left(2, three);
        let both = [(1, Point::Time(two)), (2, Point::Time(three))];
        assert_eq!(seen.wanted(0, nobody()), both);
        assert_eq!(seen.wanted(2, nobody()), both[..1]);
        seen.goes();
        seen.shows(0);
        seen.left(0, three);
        assert_eq!(seen.wanted(3, nobody()), [(0, Point::Time(three))]);
    }

    #[test]
    fn what_was_given_up_on_a_node_is_still_wanted_of_the_others() {
        let now = Instant::now();
        let mut seen = Seen::default();
        seen.left(0, now);
        seen.goes();
        seen.gave_up(1, &seen.wanted(1, nobody()));
        for _ in 0..2 {
            assert!(seen.wanted(1, nobody()).is_empty());
            seen.shows(1);
            seen.left(1, now);
        }
        let wanted = [(0, Point::Time(now)), (1, Point::Time(now))];
        assert_eq!(seen.wanted(2, nobody()), wanted);
        // Something newer is waited for again.
        let later = now + Duration::from_secs(1);
        seen.left(0, later);
        assert_eq!(seen.wanted(1, nobody()), [(0, Point::Time(later))]);
    }

    #[test]
    fn what_is_lost_with_its_node_is_not_wanted_any_more() {
        let now = Instant::now();
        let mut seen = Seen::default();
        seen.left(1, now);
        seen.left(0, now);
        seen.add(0, Point::Position(Lsn(7)));
        seen.lost(0, now);
        assert_eq!(seen.wanted(2, [(0, now)]), [(1, Point::Time(now))]);
        let later = now + Duration::from_secs(1);
        let wanted = [(1, Point::Time(now)), (0, Point::Time(later))];
        assert_eq!(seen.wanted(2, [(0, later)]), wanted);
    }

    #[test]
    fn of_a_node_the_latest_time_and_the_latest_position_count() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut seen = Seen::default();
        for lsn in [7, 9, 8] {
            seen.add(0, Point::Position(Lsn(lsn)));
        }
        seen.left(0, now);
        assert_eq!(seen.wanted(1, [(0, later)]), [(0, Point::Time(later))]);
        seen.add(0, Point::Position(Lsn(9)));
        let both = [(0, Point::Position(Lsn(9))), (0, Point::Time(later))];
        assert_eq!(seen.wanted(1, [(0, later), (1, later)]), both);
        seen.gave_up(1, &both);
        assert!(seen.wanted(1, [(0, now), (0, later)]).is_empty());
    }

    /// Nodes as sets of what they have: who is shown what is wanted of it has all that the session saw, but for what it was told
    /// it would miss there.
    #[test]
    fn whoever_shows_what_is_wanted_shows_all_that_was_seen() {
        const NODES: usize = 4;
        for seed in 0..2_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let begun = Instant::now();
            let mut has: [BTreeSet<u64>; NODES] = Default::default();
            // What each node had at each time.
            let mut past: Vec<[BTreeSet<u64>; NODES]> = Vec::new();
            let mut session = Seen::default();
            let mut saw = BTreeSet::new();
            let mut told: [BTreeSet<u64>; NODES] = Default::default();
            for step in 0..12 {
                let to = random.usize(..NODES);
                session.goes();
                let wanted = session.wanted(to, nobody());
                match random.u8(..4) {
                    0 if !wanted.is_empty() => {
                        session.gave_up(to, &wanted);
                        told[to].extend(saw.difference(&has[to]));
                    }
                    // It goes there without looking, and sees nothing.
                    1 => {}
                    _ => {
                        for (from, point) in wanted {
                            let Point::Time(time) = point else { continue };
                            let at = usize::try_from((time - begun).as_secs()).expect("a step");
                            has[to].extend(&past[at][from]);
                        }
                        session.shows(to);
                        let missing = saw.difference(&has[to]);
                        let untold: Vec<&u64> =
                            missing.filter(|it| !told[to].contains(it)).collect();
                        assert!(untold.is_empty(), "seed {seed}, step {step}: {untold:?}");
                    }
                }
                has[to].insert(step);
                saw.extend(&has[to]);
                past.push(has.clone());
                session.left(to, begun + Duration::from_secs(step));
            }
        }
    }
}
