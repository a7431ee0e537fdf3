//! Tables without a key: their rows are told apart by their content only, so what is compared is how often each content
//! is there. PostgreSQL takes no UPDATE and DELETE of them, so a row that a node lacks is one that did not arrive.

use std::collections::BTreeMap;

use super::look::raw;
use super::plan::Table;
use super::report::{Difference, NodeRow};
use super::scan::BATCH_KEYS;
use super::side::Side;
use super::sql::{Query, Range};
use super::state::{Content, UNVERSIONED};
use super::write::{Statements, Values};
use super::{Run, VerifyError};
use crate::version::Version;

/// So often a content is looked at before it is called changing.
const LOOKS_MAX: usize = 8;

/// How often each node has a content.
type Counts = BTreeMap<Content, Vec<i64>>;

/// How often each content is there on one node, by version.
type Versions = BTreeMap<Content, BTreeMap<Option<Version>, i64>>;

fn differ(counts: &[i64]) -> bool {
    counts.iter().any(|count| Some(count) != counts.first())
}

/// The node that has most of a content, the one of the lowest id where several have.
fn richest(ids: &[u16], counts: &[i64]) -> Option<usize> {
    let nodes = ids.iter().zip(counts).enumerate();
    let richest = nodes.max_by_key(|(_, (id, count))| (**count, std::cmp::Reverse(**id)));
    richest.map(|(index, _)| index)
}

/// Which versions of the copies that one node has another lacks: `missing` of them, the oldest first.
fn lacking(
    from: &BTreeMap<Option<Version>, i64>,
    to: &BTreeMap<Option<Version>, i64>,
    missing: i64,
) -> Vec<(Option<Version>, i64)> {
    let mut left = missing;
    let mut lacking = Vec::new();
    for (version, count) in from {
        let more = (count - to.get(version).copied().unwrap_or(0)).clamp(0, left);
        if more > 0 {
            lacking.push((*version, more));
            left -= more;
        }
    }
    lacking
}

impl Run {
    /// Compares a table without a key.
    pub(super) async fn compare_bag(&mut self, table: &Table) -> Result<(), VerifyError> {
        let (digests, buckets) = self.digests(table, &Range::default(), table.rows).await?;
        for group in digests.differing() {
            let contents = |side: &Side, index: usize| {
                Some(
                    side.asker(table.nodes.get(index)?)
                        .contents(buckets, &group),
                )
            };
            let counts = self.counts(contents).await?;
            let mut suspects = counts.into_iter().filter(|(_, counts)| differ(counts));
            loop {
                let batch: Counts = suspects.by_ref().take(BATCH_KEYS).collect();
                if batch.is_empty() {
                    break;
                }
                Box::pin(self.examine_bag(table, batch)).await?;
            }
        }
        self.count_rows(digests.rows());
        Ok(())
    }

    async fn counts(
        &self,
        query: impl Fn(&Side, usize) -> Option<Query>,
    ) -> Result<Counts, VerifyError> {
        let mut counts = Counts::new();
        let answers = self.ask_all(query).await?;
        for (index, (side, rows)) in self.sides.iter().zip(answers).enumerate() {
            for row in &rows {
                let nodes = counts
                    .entry((side.get(row, 0)?, side.get(row, 1)?))
                    .or_insert_with(|| vec![0; self.sides.len()]);
                if let Some(count) = nodes.get_mut(index) {
                    *count = side.get(row, 2)?;
                }
            }
        }
        Ok(counts)
    }

    /// As [`Run::settle`], for contents.
    async fn settle_bag(
        &self,
        table: &Table,
        mut suspects: Counts,
    ) -> Result<(Counts, u64), VerifyError> {
        let mut settled = Counts::new();
        for _ in 0..LOOKS_MAX {
            if suspects.is_empty() {
                break;
            }
            self.catch_up().await?;
            let contents = hashes(&suspects);
            let recount = |side: &Side, index: usize| {
                Some(side.asker(table.nodes.get(index)?).recount(&contents))
            };
            let mut seen = self.counts(recount).await?;
            let mut left = Counts::new();
            for (content, before) in suspects {
                let now = seen.remove(&content);
                let now = now.unwrap_or_else(|| vec![0; self.sides.len()]);
                if !differ(&now) {
                    continue;
                }
                let found = if now == before {
                    &mut settled
                } else {
                    &mut left
                };
                found.insert(content, now);
            }
            suspects = left;
        }
        Ok((settled, suspects.len() as u64))
    }

    async fn examine_bag(&mut self, table: &Table, suspects: Counts) -> Result<(), VerifyError> {
        let (differing, changing) = self.settle_bag(table, suspects).await?;
        self.summary.changing += changing;
        if differing.is_empty() {
            return Ok(());
        }
        self.count_differences(differing.len());
        self.show_bag(table, &differing).await?;
        match self.mending {
            Some(mending) if mending.dry_run => Ok(()),
            Some(mending) if mending.truth.is_some() => {
                for _ in differing {
                    let problem = "the table has no primary key, so no row of it can be deleted or written again; \
                        without a source, rows that a node lacks are written there";
                    self.leave(table, None, problem.to_owned()).await?;
                }
                Ok(())
            }
            Some(_) => self.mend_bag(table, differing).await,
            None => Ok(()),
        }
    }

    async fn show_bag(&mut self, table: &Table, differing: &Counts) -> Result<(), VerifyError> {
        let room = self.limit.saturating_sub(self.summary.listed);
        let shown: Counts = differing
            .iter()
            .take(usize::try_from(room).unwrap_or(usize::MAX))
            .map(|(content, counts)| (*content, counts.clone()))
            .collect();
        if shown.is_empty() {
            return Ok(());
        }
        let ids = self.ids();
        let repairs = self.mending.is_some_and(|mending| mending.truth.is_none());
        for (content, (image, _)) in self.samples(table, &shown).await? {
            let Some(counts) = shown.get(&content) else {
                continue;
            };
            let most = counts.iter().max().copied().unwrap_or(0);
            let holder = richest(&ids, counts);
            let mut nodes = Vec::new();
            for (index, (side, &count)) in self.sides.iter().zip(counts).enumerate() {
                nodes.push(NodeRow {
                    node: side.name.clone(),
                    row: (holder == Some(index))
                        .then(|| raw(side, image.clone()))
                        .transpose()?,
                    version: None,
                    deleted: None,
                    copies: Some(count),
                    action: repairs.then_some(if count < most { "insert" } else { "keep" }),
                });
            }
            self.list(Difference {
                table: table.title.clone(),
                key: None,
                nodes,
            })
            .await?;
        }
        Ok(())
    }

    fn ids(&self) -> Vec<u16> {
        self.sides.iter().map(|side| side.id).collect()
    }

    /// Each content as JSON and by its values, from the node that has most of it.
    async fn samples(
        &self,
        table: &Table,
        counts: &Counts,
    ) -> Result<BTreeMap<Content, (String, Values)>, VerifyError> {
        let contents = hashes(counts);
        let sample = |side: &Side, index: usize| {
            Some(side.asker(table.nodes.get(index)?).samples(&contents))
        };
        let ids = self.ids();
        let mut samples = BTreeMap::new();
        let answers = self.ask_all(sample).await?;
        for (index, (side, rows)) in self.sides.iter().zip(answers).enumerate() {
            for row in &rows {
                let content = (side.get(row, 0)?, side.get(row, 1)?);
                let holder = counts
                    .get(&content)
                    .and_then(|counts| richest(&ids, counts));
                if holder == Some(index) {
                    samples.insert(content, (side.get(row, 2)?, side.get(row, 3)?));
                }
            }
        }
        Ok(samples)
    }

    async fn versions(&self, table: &Table, counts: &Counts) -> Result<Vec<Versions>, VerifyError> {
        let contents = hashes(counts);
        let versions = |side: &Side, index: usize| {
            Some(side.asker(table.nodes.get(index)?).versions(&contents))
        };
        let mut nodes = Vec::new();
        for (side, rows) in self.sides.iter().zip(self.ask_all(versions).await?) {
            let mut versions = Versions::new();
            for row in &rows {
                let content = (side.get(row, 0)?, side.get(row, 1)?);
                let version = side.version(row, 2)?;
                let counted: i64 = side.get(row, 4)?;
                versions
                    .entry(content)
                    .or_default()
                    .insert(version, counted);
            }
            nodes.push(versions);
        }
        Ok(nodes)
    }

    /// Writes the copies that a node lacks, with the versions of those that it lacks.
    async fn mend_bag(&mut self, table: &Table, differing: Counts) -> Result<(), VerifyError> {
        let samples = self.samples(table, &differing).await?;
        let versions = self.versions(table, &differing).await?;
        let ids = self.ids();
        let none = BTreeMap::new();
        let mut writes: BTreeMap<(usize, Version), (Vec<Values>, usize)> = BTreeMap::new();
        for (content, counts) in &differing {
            let (Some(holder), Some((_, values))) = (richest(&ids, counts), samples.get(content))
            else {
                continue;
            };
            let of = |index: usize| {
                let versions = versions.get(index).and_then(|node| node.get(content));
                versions.unwrap_or(&none)
            };
            let most = counts.get(holder).copied().unwrap_or(0);
            for (index, count) in counts.iter().enumerate() {
                for (version, copies) in lacking(of(holder), of(index), most - count) {
                    let unversioned = || Version {
                        timestamp: UNVERSIONED,
                        node: ids.get(holder).copied().unwrap_or(0),
                    };
                    let version = version.unwrap_or_else(unversioned);
                    let (rows, total) = writes.entry((index, version)).or_default();
                    rows.push([values.clone(), vec![Some(copies.to_string())]].concat());
                    *total += usize::try_from(copies).unwrap_or(0);
                }
            }
        }
        let mut problem = None;
        for ((index, version), (rows, copies)) in writes {
            let (Some(node), Some(side)) = (table.nodes.get(index), self.sides.get(index)) else {
                continue;
            };
            let name = side.name.clone();
            let steps = vec![Statements(node).add(&rows, copies)];
            if let Err(error) = self.writers.write(index, Some(version), steps).await? {
                problem = Some(format!("{name}: {error}"));
            }
        }
        let all = differing.len() as u64;
        let (left, changing) = self.settle_bag(table, differing).await?;
        self.summary.changing += changing;
        self.summary.repaired += all - left.len() as u64 - changing;
        self.summary.left += changing;
        for _ in left {
            let problem = problem.clone();
            let problem =
                problem.unwrap_or_else(|| "it still differs after it was written".to_owned());
            self.leave(table, None, problem).await?;
        }
        Ok(())
    }
}

/// The first hash of each content: enough to ask for it.
fn hashes(counts: &Counts) -> Vec<i64> {
    counts.keys().map(|content| content.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_is_taken_from_the_node_that_has_most_of_it() {
        assert_eq!(richest(&[1, 2, 3], &[1, 2, 0]), Some(1));
        assert_eq!(richest(&[9, 4], &[2, 2]), Some(1));
    }

    #[test]
    fn copies_are_written_with_the_versions_of_those_that_are_missing() {
        let at = |timestamp| Some(Version { timestamp, node: 1 });
        let from = BTreeMap::from([(at(1), 2), (at(2), 1), (None, 1)]);
        let to = BTreeMap::from([(at(1), 1), (None, 1)]);
        assert_eq!(lacking(&from, &to, 2), [(at(1), 1), (at(2), 1)]);
        assert_eq!(lacking(&from, &from, 0), []);
    }
}
