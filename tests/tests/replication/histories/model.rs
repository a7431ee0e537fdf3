//! What every node has to end with: a pure function of what was committed where.

use std::collections::{BTreeMap, BTreeSet};

use super::write::{Content, Key, Table, Version, Written};

/// Everything that was written under each key, oldest version first, and what was added to its counter.
#[derive(Debug, Default)]
pub(super) struct History {
    pub versions: BTreeMap<Key, BTreeMap<Version, Option<Content>>>,
    pub added: BTreeMap<Key, Vec<(Version, i64)>>,
}

/// What a row shows: its content, and its counter where it has one.
pub(super) type Shown = (Content, Option<i64>);

impl History {
    pub(super) fn of(histories: Vec<Vec<Written>>) -> Self {
        let mut history = Self::default();
        for written in histories.into_iter().flatten() {
            for (key, value) in written.rows {
                let versions = history.versions.entry(key).or_default();
                versions.insert(written.version, value);
            }
            for (key, amount) in written.added {
                let added = history.added.entry(key).or_default();
                added.push((written.version, amount));
            }
        }
        for added in history.added.values_mut() {
            added.sort_unstable();
        }
        history
    }

    /// The rows of a table: the newest version of each key; of those that collide, in the order of age from the newest on,
    /// the ones for which there is room.
    pub(super) fn rows(&self, table: Table, counted: bool) -> BTreeMap<i32, Shown> {
        let of_table = self
            .versions
            .iter()
            .filter(|((name, _), _)| *name == table.name);
        let newest = of_table.filter_map(|(key, versions)| {
            let (version, content) = versions.last_key_value()?;
            Some((*version, *key, content.clone()?))
        });
        let mut newest: Vec<_> = newest.collect();
        newest.sort_unstable_by_key(|(version, ..)| std::cmp::Reverse(*version));
        let mut taken = BTreeSet::new();
        if table.collides {
            newest.retain(|(_, _, (_, place))| place.is_none_or(|place| taken.insert(place)));
        }
        let shown = newest.into_iter().map(|(_, key, content)| {
            let sum = self
                .added
                .get(&key)
                .map(|added| added.iter().map(|(_, amount)| amount).sum());
            (key.1, (content, sum.filter(|_| counted)))
        });
        shown.collect()
    }
}

#[test]
fn rows_that_collide_yield_to_the_newest() {
    let table = Table {
        name: "seat",
        collides: true,
    };
    let row = |at, key, place| Written {
        version: (at, 1),
        rows: BTreeMap::from([(("seat", key), Some((format!("at {at}"), Some(place))))]),
        added: Vec::new(),
    };
    let history = History::of(vec![vec![
        row(1, 1, 7),
        row(3, 2, 7),
        row(2, 3, 8),
        row(4, 2, 9),
    ]]);
    let keys: Vec<_> = history.rows(table, false).into_keys().collect();
    // The second gave its place up, so the first has it again.
    assert_eq!(keys, [1, 2, 3]);
    let history = History::of(vec![vec![row(1, 1, 7), row(3, 2, 7)]]);
    let keys: Vec<_> = history.rows(table, false).into_keys().collect();
    assert_eq!(keys, [2]);
}
