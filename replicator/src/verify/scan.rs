//! Finds the rows of a table with a key that may differ: digests of buckets of ranges, then the rows of the buckets
//! whose digests differ.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::future::try_join_all;

use super::look::Candidate;
use super::plan::Table;
use super::side::Side;
use super::sql::{Query, Range};
use super::state::{State, are_equal};
use super::{Run, VerifyError};

/// Rows of one range: what a node reads in one query of some hundred milliseconds.
const RANGE_ROWS: u32 = 50_000;
/// Rows of one bucket, roughly: what is listed for one row that differs.
const BUCKET_ROWS: u64 = 200;
/// Buckets of one digest at most. Powers of two, all of them.
const BUCKETS_MAX: i64 = 65_536;
/// Rows that are listed at once per node, roughly.
const LIST_ROWS: u64 = 50_000;
/// Keys that are looked at again at once.
pub(super) const BATCH_KEYS: usize = 500;

/// What a node answers of a bucket: how many rows, and two sums over them (exact, so as text).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Digest {
    rows: u64,
    sums: (String, String),
}

/// The digests of all nodes.
pub(super) struct Digests {
    nodes: Vec<HashMap<i64, Digest>>,
}

impl Digests {
    /// How many rows the node has that has most.
    pub(super) fn rows(&self) -> u64 {
        let rows = |node: &HashMap<i64, Digest>| node.values().map(|digest| digest.rows).sum();
        self.nodes.iter().map(rows).max().unwrap_or(0)
    }

    /// The buckets that differ, in groups of about [`LIST_ROWS`] rows.
    pub(super) fn differing(&self) -> Vec<Vec<i64>> {
        let Some((first, others)) = self.nodes.split_first() else {
            return Vec::new();
        };
        let buckets: BTreeSet<i64> = self.nodes.iter().flat_map(HashMap::keys).copied().collect();
        let mut groups: Vec<Vec<i64>> = Vec::new();
        let mut rows = 0;
        for bucket in buckets {
            let digest = first.get(&bucket);
            if others.iter().all(|other| other.get(&bucket) == digest) {
                continue;
            }
            let most = self.nodes.iter().filter_map(|node| node.get(&bucket));
            let most = most.map(|digest| digest.rows).max().unwrap_or(0);
            match groups.last_mut() {
                Some(group) if rows + most <= LIST_ROWS => {
                    group.push(bucket);
                    rows += most;
                }
                _ => {
                    groups.push(vec![bucket]);
                    rows = most;
                }
            }
        }
        groups
    }
}

/// How many buckets so many rows get.
fn buckets_for(rows: u64) -> i64 {
    let wanted = (rows / BUCKET_ROWS).max(16).next_power_of_two();
    i64::try_from(wanted).unwrap_or(i64::MAX).min(BUCKETS_MAX)
}

impl Run {
    /// Compares a table with a key.
    pub(super) async fn compare(&mut self, table: &Table) -> Result<(), VerifyError> {
        let mut lower = None;
        loop {
            let upper = self.boundary(table, lower.as_deref()).await?;
            let range = Range { lower, upper };
            self.compare_range(table, &range).await?;
            match range.upper {
                Some(upper) => lower = Some(upper),
                None => return Ok(()),
            }
        }
    }

    /// Where the range that begins at `lower` ends: by the first node, which is as good as any.
    async fn boundary(
        &self,
        table: &Table,
        lower: Option<&[String]>,
    ) -> Result<Option<Vec<String>>, VerifyError> {
        let (Some(side), Some(node)) = (self.sides.first(), table.nodes.first()) else {
            return Ok(None);
        };
        if table.ranged == 0 {
            return Ok(None);
        }
        let query = side.asker(node).boundary(lower, table.ranged, RANGE_ROWS);
        let rows = side.ask(&query).await?;
        rows.first().map(|row| side.get(row, 0)).transpose()
    }

    async fn compare_range(&mut self, table: &Table, range: &Range) -> Result<(), VerifyError> {
        let expected = match table.ranged {
            0 => table.rows,
            _ => RANGE_ROWS.into(),
        };
        let (digests, buckets) = self.digests(table, range, expected).await?;
        for group in digests.differing() {
            let list = |side: &Side, index: usize| {
                let node = table.nodes.get(index)?;
                Some(side.asker(node).list(range, buckets, &group))
            };
            let listed = self.ask_all(list).await?;
            let mut keys: BTreeMap<Vec<String>, Vec<State>> = BTreeMap::new();
            for (index, (side, rows)) in self.sides.iter().zip(&listed).enumerate() {
                for row in rows {
                    let states = keys
                        .entry(side.get(row, 6)?)
                        .or_insert_with(|| vec![State::default(); self.sides.len()]);
                    if let Some(state) = states.get_mut(index) {
                        state.row = side.row(row)?;
                    }
                }
            }
            drop(listed);
            let mut suspects = keys
                .into_iter()
                .filter(|(_, states)| !are_equal(states))
                .map(|(key, states)| Candidate { key, states });
            loop {
                let batch: Vec<_> = suspects.by_ref().take(BATCH_KEYS).collect();
                if batch.is_empty() {
                    break;
                }
                self.examine(table, batch).await?;
            }
        }
        self.count_rows(digests.rows());
        Ok(())
    }

    pub(super) fn count_rows(&mut self, rows: u64) {
        self.summary.rows += rows;
        self.reporter
            .progress(|progress| progress.rows_done += rows);
    }

    /// The digests of a range with about `expected` rows, and their number of buckets; once more where there are far
    /// more rows than that.
    pub(super) async fn digests(
        &self,
        table: &Table,
        range: &Range,
        expected: u64,
    ) -> Result<(Digests, i64), VerifyError> {
        let mut buckets = buckets_for(expected);
        loop {
            let digest = |side: &Side, index: usize| {
                let node = table.nodes.get(index)?;
                Some(side.asker(node).digest(range, buckets))
            };
            let mut nodes = Vec::new();
            for (side, rows) in self.sides.iter().zip(self.ask_all(digest).await?) {
                let mut digests = HashMap::new();
                for row in &rows {
                    let digest = Digest {
                        rows: u64::try_from(side.get::<i64>(row, 1)?).unwrap_or(0),
                        sums: (side.get(row, 2)?, side.get(row, 3)?),
                    };
                    digests.insert(side.get(row, 0)?, digest);
                }
                nodes.push(digests);
            }
            let digests = Digests { nodes };
            let wanted = buckets_for(digests.rows());
            if wanted <= buckets * 8 {
                return Ok((digests, buckets));
            }
            buckets = wanted;
        }
    }

    /// Asks all nodes at once; `query` is given the node and its index.
    pub(super) async fn ask_all(
        &self,
        query: impl Fn(&Side, usize) -> Option<Query>,
    ) -> Result<Vec<Vec<tokio_postgres::Row>>, VerifyError> {
        let asking = self.sides.iter().enumerate().map(|(index, side)| {
            let query = query(side, index);
            async move {
                match query {
                    Some(query) => side.ask(&query).await,
                    None => Ok(Vec::new()),
                }
            }
        });
        try_join_all(asking).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(rows: u64, sum: &str) -> Digest {
        Digest {
            rows,
            sums: (sum.to_owned(), sum.to_owned()),
        }
    }

    #[test]
    fn a_bucket_differs_where_one_node_has_other_sums_or_no_row() {
        let nodes = vec![
            HashMap::from([(0, digest(3, "9")), (1, digest(2, "5"))]),
            HashMap::from([
                (0, digest(3, "9")),
                (1, digest(2, "6")),
                (7, digest(1, "1")),
            ]),
        ];
        let digests = Digests { nodes };
        assert_eq!(digests.differing(), [[1, 7]]);
        assert_eq!(digests.rows(), 6);
    }

    #[test]
    fn many_differing_rows_are_listed_in_groups() {
        let many = HashMap::from([(0, digest(40_000, "1")), (1, digest(40_000, "1"))]);
        let digests = Digests {
            nodes: vec![many, HashMap::new()],
        };
        assert_eq!(digests.differing(), [[0], [1]]);
    }

    #[test]
    fn buckets_grow_with_the_rows_up_to_a_bound() {
        assert_eq!(buckets_for(0), 16);
        assert_eq!(buckets_for(RANGE_ROWS.into()), 256);
        assert_eq!(buckets_for(u64::MAX), BUCKETS_MAX);
    }
}
