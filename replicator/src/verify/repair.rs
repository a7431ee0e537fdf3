//! Mends rows of tables with a key.

use std::collections::{BTreeMap, HashMap};

use super::look::{Candidate, keys_json};
use super::plan::Table;
use super::report::Event;
use super::state::{Action, Choice, choose, follow};
use super::write::{Statements, Step, Values};
use super::{Run, VerifyError};
use crate::version::Version;

/// So often a row is written anew because it changed meanwhile.
const ATTEMPTS_MAX: usize = 3;
/// Rows of one transaction.
const TRANSACTION_ROWS: usize = 100;

/// One row to write on one node.
#[derive(Debug, Clone)]
struct Write {
    key: Vec<String>,
    action: Action,
    /// The local transaction that wrote the row that is there.
    xmin: Option<String>,
    /// What the row shall be.
    values: Option<Values>,
}

/// Where, and under which version; `None`: as a change of the node's own.
type Place = (usize, Option<Version>);

/// Why rows were not written, by key.
type Problems = HashMap<Vec<String>, String>;

impl Run {
    /// Looks closer at rows that may differ: lists those that do, and mends them in a repair.
    pub(super) async fn examine(
        &mut self,
        table: &Table,
        suspects: Vec<Candidate>,
    ) -> Result<(), VerifyError> {
        let shared = std::sync::Arc::clone(&self.shared);
        // A delete must not be forgotten between the look at it and what is written because of it.
        let _remembered = match self.mending {
            Some(_) => Some(shared.collecting.lock().await),
            None => None,
        };
        let (differing, changing) = self.settle(table, suspects).await?;
        self.summary.changing += changing;
        if differing.is_empty() {
            return Ok(());
        }
        self.count_differences(differing.len());
        let ids: Vec<u16> = self.sides.iter().map(|side| side.id).collect();
        let truth = self.mending.map(|mending| mending.truth);
        let actions = |candidate: &Candidate| -> Option<Vec<Action>> {
            match truth? {
                Some(truth) => Some(follow(truth, &candidate.states)),
                None => choose(&ids, &candidate.states).map(|choice| choice.actions),
            }
        };
        Box::pin(self.show(table, &differing, actions)).await?;
        match self.mending {
            Some(mending) if !mending.dry_run => Box::pin(self.mend(table, differing)).await,
            _ => Ok(()),
        }
    }

    async fn mend(&mut self, table: &Table, differing: Vec<Candidate>) -> Result<(), VerifyError> {
        let all = differing.len() as u64;
        let mut left = differing;
        let mut problems = Problems::new();
        let mut restless = 0;
        for _ in 0..ATTEMPTS_MAX {
            if left.is_empty() {
                break;
            }
            problems = self.write_all(table, &left).await?;
            let (still, changing) = self.settle(table, left).await?;
            left = still;
            restless += changing;
        }
        let unmended = left.len() as u64 + restless;
        self.summary.changing += restless;
        self.summary.repaired += all - unmended;
        for candidate in left {
            let problem = problems.remove(&candidate.key);
            let problem =
                problem.unwrap_or_else(|| "it still differs after it was written".to_owned());
            self.leave(table, Some(candidate.key), problem).await?;
        }
        self.summary.left += restless;
        Ok(())
    }

    /// Tells of a row that was not mended, up to the limit.
    pub(super) async fn leave(
        &mut self,
        table: &Table,
        key: Option<Vec<String>>,
        problem: String,
    ) -> Result<(), VerifyError> {
        self.summary.left += 1;
        if self.summary.left > self.limit {
            return Ok(());
        }
        let left = Event::Left {
            table: table.title.clone(),
            key,
            problem,
        };
        self.reporter.tell(left).await
    }

    async fn write_all(
        &mut self,
        table: &Table,
        candidates: &[Candidate],
    ) -> Result<Problems, VerifyError> {
        let mut problems = Problems::new();
        let writes = match self.mending.and_then(|mending| mending.truth) {
            Some(truth) => anew(truth, candidates),
            None => self.versioned(table, candidates, &mut problems).await?,
        };
        for ((index, version), writes) in writes {
            let Some(node) = table.nodes.get(index) else {
                continue;
            };
            for writes in writes.chunks(TRANSACTION_ROWS) {
                let steps = |writes: &[Write]| steps(&Statements(node), writes, version);
                let written = self.writers.write(index, version, steps(writes)).await?;
                if written.is_ok() {
                    continue;
                }
                // One of them keeps the others from being written.
                for write in writes {
                    let one = steps(std::slice::from_ref(write));
                    if let Err(error) = self.writers.write(index, version, one).await? {
                        let side = self.sides.get(index).map_or("?", |side| side.name.as_str());
                        problems.insert(write.key.clone(), format!("{side}: {error}"));
                    }
                }
            }
        }
        Ok(problems)
    }

    /// What to write so that every node has the newest version.
    async fn versioned(
        &self,
        table: &Table,
        candidates: &[Candidate],
        problems: &mut Problems,
    ) -> Result<BTreeMap<Place, Vec<Write>>, VerifyError> {
        let ids: Vec<u16> = self.sides.iter().map(|side| side.id).collect();
        let chosen: Vec<(&Candidate, Choice)> = candidates
            .iter()
            .filter_map(|candidate| Some((candidate, choose(&ids, &candidate.states)?)))
            .collect();
        let values = self.values(table, &chosen).await?;
        let mut writes: BTreeMap<Place, Vec<Write>> = BTreeMap::new();
        for (candidate, choice) in chosen {
            let values = match choice.source {
                Some(_) => match values.get(&candidate.key) {
                    Some(values) => Some(values.clone()),
                    None => {
                        let problem = "the row has changed since it was compared".to_owned();
                        problems.insert(candidate.key.clone(), problem);
                        continue;
                    }
                },
                None => None,
            };
            for (index, &action) in choice.actions.iter().enumerate() {
                if action != Action::Keep {
                    writes
                        .entry((index, Some(choice.version)))
                        .or_default()
                        .push(Write::new(candidate, index, action, values.clone()));
                }
            }
        }
        Ok(writes)
    }

    /// The values of the rows that win, by key; without those that are not what they were.
    async fn values(
        &self,
        table: &Table,
        chosen: &[(&Candidate, Choice)],
    ) -> Result<HashMap<Vec<String>, Values>, VerifyError> {
        let mut found = HashMap::new();
        for (index, (side, node)) in self.sides.iter().zip(&table.nodes).enumerate() {
            let wanted: Vec<(&Candidate, Values)> = chosen
                .iter()
                .filter(|(_, choice)| choice.source == Some(index))
                .map(|(candidate, _)| (*candidate, named(&candidate.key, xmin(candidate, index))))
                .collect();
            for wanted in wanted.chunks(TRANSACTION_ROWS) {
                let keys = keys_json(wanted.iter().map(|(_, named)| named));
                for row in side.ask(&side.asker(node).values(keys)).await? {
                    let place: i64 = side.get(&row, 0)?;
                    let place = usize::try_from(place - 1).unwrap_or(usize::MAX);
                    if let Some((candidate, _)) = wanted.get(place) {
                        found.insert(candidate.key.clone(), side.get(&row, 1)?);
                    }
                }
            }
        }
        Ok(found)
    }
}

/// What to write where the node at index `truth` is right.
fn anew(truth: usize, candidates: &[Candidate]) -> BTreeMap<Place, Vec<Write>> {
    let mut writes: BTreeMap<Place, Vec<Write>> = BTreeMap::new();
    for candidate in candidates {
        for (index, action) in follow(truth, &candidate.states).into_iter().enumerate() {
            if action != Action::Keep {
                let write = Write::new(candidate, index, action, None);
                writes.entry((index, None)).or_default().push(write);
            }
        }
    }
    writes
}

impl Write {
    fn new(candidate: &Candidate, index: usize, action: Action, values: Option<Values>) -> Self {
        Self {
            key: candidate.key.clone(),
            action,
            xmin: xmin(candidate, index),
            values,
        }
    }
}

fn xmin(candidate: &Candidate, index: usize) -> Option<String> {
    let state = candidate.states.get(index)?;
    state.row.as_ref().map(|row| row.xmin.clone())
}

/// A key with the xmin behind it.
fn named(key: &[String], xmin: Option<String>) -> Values {
    key.iter().cloned().map(Some).chain([xmin]).collect()
}

/// The statements of one transaction.
fn steps(statements: &Statements<'_>, writes: &[Write], version: Option<Version>) -> Vec<Step> {
    let rows = |wanted: Action, row: &dyn Fn(&Write) -> Values| -> Vec<Values> {
        writes
            .iter()
            .filter(|write| write.action == wanted)
            .map(row)
            .collect()
    };
    let by_key = |write: &Write| named(&write.key, write.xmin.clone());
    let whole = |write: &Write| write.values.clone().unwrap_or_default();
    let replaced = |write: &Write| [whole(write), vec![write.xmin.clone()]].concat();
    let mut steps = Vec::new();
    let mut add = |rows: Vec<Values>, step: &dyn Fn(&[Values]) -> Step| {
        if !rows.is_empty() {
            steps.push(step(&rows));
        }
    };
    add(rows(Action::Touch, &by_key), &|rows| statements.touch(rows));
    let deleted = [Action::Delete, Action::DeleteAnew].map(|action| rows(action, &by_key));
    add(deleted.concat(), &|rows| statements.delete(rows, version));
    add(rows(Action::Replace, &replaced), &|rows| {
        statements.replace(rows)
    });
    if let Some(version) = version {
        let missing = rows(Action::Insert, &whole);
        add(missing, &|rows| statements.insert(rows, version));
        let written = [Action::Insert, Action::Replace].map(|action| rows(action, &whole));
        add(written.concat(), &|rows| statements.complete(rows));
    }
    steps
}
