//! Tells differences from lag, and shows them.

use std::pin::pin;

use futures_util::future::try_join_all;
use serde_json::value::RawValue;
use tokio::time::{Duration, Instant};

use super::plan::Table;
use super::report::{Difference, Event, NodeRow, VersionText};
use super::side::{Side, reread};
use super::state::{Action, State, Verdict, judge};
use super::{Run, VerifyError};
use crate::control::ControlError;
use crate::version::Version;
use crate::watermark;

/// So often a key is looked at before it is called changing.
const LOOKS_MAX: usize = 8;
/// How long the nodes may take to catch up with each other before a look.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(300);
/// How often it is seen whether a node has gone meanwhile.
const LOST_INTERVAL: Duration = Duration::from_millis(500);
/// Rows that are shown in full at once: they may be large.
const IMAGES: usize = 20;

/// A key whose rows are not the same on all nodes, and what each has.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    /// Its columns as text.
    pub(super) key: Vec<String>,
    /// By node.
    pub(super) states: Vec<State>,
}

impl Run {
    /// Waits until everything that was committed so far is applied everywhere: what differs as it did before is no lag.
    pub(super) async fn catch_up(&self) -> Result<(), VerifyError> {
        let deadline = Instant::now() + CATCH_UP_TIMEOUT;
        let mut applied = pin!(watermark::everywhere(&self.shared, deadline));
        let mut ticks = tokio::time::interval(LOST_INTERVAL);
        loop {
            tokio::select! {
                done = &mut applied => return Ok(done?),
                _ = ticks.tick() => {
                    // The node may come back, but this run has no connection to it any more.
                    if let Some(side) = self.sides.iter().find(|side| side.control.is_closed()) {
                        return Err(side.lost());
                    }
                }
            }
        }
    }

    /// Looks at candidates until each is equal, or differs in the same way twice: those remain, as they were last seen.
    /// The number is that of the keys which never stood still.
    pub(super) async fn settle(
        &self,
        table: &Table,
        mut candidates: Vec<Candidate>,
    ) -> Result<(Vec<Candidate>, u64), VerifyError> {
        let mut settled = Vec::new();
        for _ in 0..LOOKS_MAX {
            if candidates.is_empty() {
                break;
            }
            self.catch_up().await?;
            let mut left = Vec::new();
            let seen = self.look(table, &candidates).await?;
            for (candidate, states) in candidates.into_iter().zip(seen) {
                let verdict = judge(&candidate.states, &states);
                let seen = Candidate {
                    key: candidate.key,
                    states,
                };
                match verdict {
                    Verdict::Equal | Verdict::Moving => {}
                    Verdict::Differs => settled.push(seen),
                    Verdict::Unsettled => left.push(seen),
                }
            }
            candidates = left;
        }
        Ok((settled, candidates.len() as u64))
    }

    /// What all nodes have under the candidates' keys now, by candidate.
    async fn look(
        &self,
        table: &Table,
        candidates: &[Candidate],
    ) -> Result<Vec<Vec<State>>, VerifyError> {
        let keys = keys_json(candidates.iter().map(|candidate| candidate.key.clone()));
        let asking = self
            .sides
            .iter()
            .zip(&table.nodes)
            .map(|(side, node)| reread(side, node, keys.clone()));
        let mut sides: Vec<_> = try_join_all(asking)
            .await?
            .into_iter()
            .map(Vec::into_iter)
            .collect();
        let states = |_| {
            sides
                .iter_mut()
                .map(|side| side.next().unwrap_or_default())
                .collect()
        };
        Ok(candidates.iter().map(states).collect())
    }

    /// Lists differences, up to the limit; `actions` says what a repair does about one.
    pub(super) async fn show(
        &mut self,
        table: &Table,
        differing: &[Candidate],
        actions: impl Fn(&Candidate) -> Option<Vec<Action>>,
    ) -> Result<(), VerifyError> {
        for candidates in differing.chunks(IMAGES) {
            let room = self.limit.saturating_sub(self.summary.listed);
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            let candidates = candidates.get(..room).unwrap_or(candidates);
            if candidates.is_empty() {
                return Ok(());
            }
            let keys = keys_json(candidates.iter().map(|candidate| candidate.key.clone()));
            let images = |side: &Side, index: usize| {
                let node = table.nodes.get(index)?;
                Some(side.asker(node).images(keys.clone()))
            };
            let images = self.ask_all(images).await?;
            for (place, candidate) in candidates.iter().enumerate() {
                let mut key = None;
                let actions = actions(candidate);
                let mut nodes = Vec::new();
                for (index, (side, state)) in self.sides.iter().zip(&candidate.states).enumerate() {
                    let image = images.get(index).and_then(|rows| rows.get(place));
                    let row = match image {
                        Some(image) => {
                            key = key.or(Some(raw(side, side.get(image, 0)?)?));
                            let row: Option<String> = side.get(image, 1)?;
                            row.map(|row| raw(side, row)).transpose()?
                        }
                        None => None,
                    };
                    let version = state.row.as_ref().and_then(|row| row.version);
                    nodes.push(NodeRow {
                        node: side.name.clone(),
                        row,
                        version: version.map(|version| self.version_text(version)),
                        deleted: state.deleted.map(|version| self.version_text(version)),
                        copies: None,
                        action: actions
                            .as_ref()
                            .and_then(|actions| actions.get(index))
                            .map(|action| action.name()),
                    });
                }
                self.list(Difference {
                    table: table.title.clone(),
                    key,
                    nodes,
                })
                .await?;
            }
        }
        Ok(())
    }

    /// Lists one difference.
    pub(super) async fn list(&mut self, difference: Difference) -> Result<(), VerifyError> {
        self.summary.listed += 1;
        self.reporter.tell(Event::Difference(difference)).await
    }

    /// Counts differences.
    pub(super) fn count_differences(&mut self, differences: usize) {
        self.summary.differences += differences as u64;
        self.reporter
            .progress(|progress| progress.differences += differences as u64);
    }

    /// A version for people.
    pub(super) fn version_text(&self, version: Version) -> VersionText {
        let node = self.sides.iter().find(|side| side.id == version.node);
        VersionText {
            timestamp: version.timestamp_text(),
            node: node.map_or_else(|| version.node.to_string(), |side| side.name.clone()),
        }
    }
}

/// Keys, or whatever else consists of texts, as the JSON array of arrays that queries take.
pub(super) fn keys_json<T: serde::Serialize>(keys: impl Iterator<Item = T>) -> String {
    let keys: Vec<T> = keys.collect();
    // Texts always serialise.
    serde_json::to_string(&keys).unwrap_or_default()
}

/// JSON as the server printed it.
pub(super) fn raw(side: &Side, text: String) -> Result<Box<RawValue>, VerifyError> {
    RawValue::from_string(text).map_err(|_| side.failed(ControlError::Unexpected("row_to_json")))
}
