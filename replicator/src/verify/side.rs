//! One node in a run: a connection of the run's own, and what its rows' versions mean.

use std::collections::HashMap;
use std::sync::Arc;
use std::{fmt, io};

use futures_util::future::try_join_all;
use tokio::time::{Duration, Instant};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::VerifyError;
use super::plan::NodeTable;
use super::sql::{Asker, Query, RowVersion};
use super::state::{self, State};
use crate::control::{Control, ControlError};
use crate::node::{NodeState, Shared};
use crate::origin::OriginName;
use crate::setup::slot_name;
use crate::version::Version;

/// How long a daemon that has just started may take to reach a node.
const TAKEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Beside what every control connection pins: what values print as, and that row security hides nothing silently.
pub(super) const SETTINGS: &str =
    "SET row_security = off; SET lc_monetary = 'C'; SET xmloption = content; SET jit = off";

/// One node.
pub(super) struct Side {
    /// Its name.
    pub(super) name: String,
    /// Its id.
    pub(super) id: u16,
    /// The run's connection: its queries may take long, which those of the control connection must not.
    pub(super) control: Arc<Control>,
    version: RowVersion,
}

impl fmt::Debug for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Side").field("name", &self.name).finish()
    }
}

/// Connects to all nodes, once all are taken.
///
/// # Errors
/// When one of them is not usable.
pub(super) async fn open(shared: &Shared) -> Result<Vec<Side>, VerifyError> {
    let config = &shared.config;
    let deadline = Instant::now() + TAKEN_TIMEOUT;
    for (index, node) in config.nodes.iter().enumerate() {
        let unusable = |problem: String| VerifyError::NotUsable {
            node: node.name.clone(),
            problem,
        };
        if let NodeState::Down { problem } = shared.state(index) {
            return Err(unusable(problem));
        }
        let Some(control) = shared.controls.get(index) else {
            continue;
        };
        let mut control = control.subscribe();
        let taken = tokio::time::timeout_at(deadline, control.wait_for(Option::is_some)).await;
        taken
            .map_err(|_| unusable("not connected yet".to_owned()))?
            .map_err(|_| VerifyError::Stopping)?;
    }
    let connecting = config.nodes.iter().map(|node| async {
        let name = format!("tandem:{}:verify", config.cluster);
        let asked = async {
            let control = Control::connect(&node.connect, &name).await?;
            control.execute(SETTINGS).await?;
            let facts = facts(&control, &config.cluster).await?;
            Ok((control, facts))
        };
        asked.await.map_err(|error| VerifyError::Node {
            node: node.name.clone(),
            error: Box::new(error),
        })
    });
    let opened = try_join_all(connecting).await?;
    let since: HashMap<u16, String> = config
        .nodes
        .iter()
        .zip(&opened)
        .filter_map(|(node, (_, facts))| Some((node.id, facts.since.clone()?)))
        .collect();
    // Rows of a run carry another version on the node that applied it than on the others.
    let mut compared_from: HashMap<u16, Vec<String>> = HashMap::new();
    let runs = opened.iter().flat_map(|(_, facts)| facts.runs.clone());
    for (node, at) in since.into_iter().chain(runs) {
        compared_from.entry(node).or_default().push(at);
    }
    let sides = config.nodes.iter().zip(opened);
    Ok(sides
        .map(|(node, (control, facts))| Side {
            name: node.name.clone(),
            id: node.id,
            control: Arc::new(control),
            version: RowVersion::new(node.id, &facts.origins, &compared_from),
        })
        .collect())
}

struct Facts {
    origins: HashMap<u32, u16>,
    since: Option<String>,
    /// Behind which timestamps no row of a node is a run's.
    runs: Vec<(u16, String)>,
}

async fn facts(control: &Control, cluster: &str) -> Result<Facts, ControlError> {
    let mut origins = HashMap::new();
    let sql = "SELECT roident, roname FROM pg_replication_origin";
    for row in control.query(sql, &[]).await? {
        let name: String = row.try_get(1)?;
        if let Some(origin) = OriginName::parse(&name) {
            origins.insert(row.try_get(0)?, origin.node);
        }
    }
    let sql = "SELECT created::text FROM tandem.slot WHERE name = $1";
    let rows = control.query(sql, &[&slot_name(cluster)]).await?;
    let since = rows.first().map(|row| row.try_get(0)).transpose()?;
    let sql =
        "SELECT source, (max(stamp) + interval '1 microsecond')::text FROM tandem.run GROUP BY 1";
    let mut runs = Vec::new();
    for row in control.query(sql, &[]).await? {
        let node: i32 = row.try_get(0)?;
        runs.push((u16::try_from(node).unwrap_or_default(), row.try_get(1)?));
    }
    Ok(Facts {
        origins,
        since,
        runs,
    })
}

impl Side {
    /// Names the node in an error.
    pub(super) fn failed(&self, error: impl Into<ControlError>) -> VerifyError {
        VerifyError::Node {
            node: self.name.clone(),
            error: Box::new(error.into()),
        }
    }

    /// That the connection has ended.
    pub(super) fn lost(&self) -> VerifyError {
        let lost = "the connection was lost";
        self.failed(ControlError::Lost(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            lost,
        )))
    }

    /// Writes the queries of a table.
    pub(super) fn asker<'a>(&'a self, table: &'a NodeTable) -> Asker<'a> {
        Asker {
            table,
            version: &self.version,
        }
    }

    /// Asks, however long the answer takes: the size of a table bounds it. A node that is gone is noticed by its
    /// connection's keepalives.
    pub(super) async fn ask(&self, query: &Query) -> Result<Vec<Row>, VerifyError> {
        let params: Vec<&(dyn ToSql + Sync)> = query
            .params
            .iter()
            .map(|param| param as &(dyn ToSql + Sync))
            .collect();
        let rows = self.control.client().query(&query.sql, &params).await;
        rows.map_err(|error| self.failed(error))
    }

    /// A column of an answer.
    pub(super) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(
        &self,
        row: &'a Row,
        column: usize,
    ) -> Result<T, VerifyError> {
        row.try_get(column).map_err(|error| self.failed(error))
    }

    /// The row of an answer whose first six columns are those of a state (see [`Asker`]).
    pub(super) fn row(&self, row: &Row) -> Result<Option<state::Row>, VerifyError> {
        let Some(first) = self.get::<Option<i64>>(row, 0)? else {
            return Ok(None);
        };
        Ok(Some(state::Row {
            content: (first, self.get(row, 1)?),
            version: self.version(row, 2)?,
            counts: self.get(row, 4)?,
            xmin: self.get(row, 5)?,
        }))
    }

    /// The version in two columns of an answer, from `column` on.
    pub(super) fn version(&self, row: &Row, column: usize) -> Result<Option<Version>, VerifyError> {
        let timestamp: Option<i64> = self.get(row, column)?;
        let node: Option<i32> = self.get(row, column + 1)?;
        Ok(timestamp.zip(node).map(|(timestamp, node)| Version {
            timestamp,
            node: u16::try_from(node).unwrap_or(0),
        }))
    }
}

/// Reads the states of some keys on one node, in their order.
///
/// # Errors
/// When the node cannot be asked.
pub(super) async fn reread(
    side: &Side,
    table: &NodeTable,
    keys: String,
) -> Result<Vec<State>, VerifyError> {
    let rows = side.ask(&side.asker(table).reread(keys)).await?;
    rows.iter()
        .map(|row| {
            Ok(State {
                row: side.row(row)?,
                deleted: side.version(row, 6)?,
            })
        })
        .collect()
}
