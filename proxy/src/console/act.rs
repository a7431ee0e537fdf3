//! Owns what the console does: rights first, then the statement.

use tandem_replicator::operator::{ErrorKind, OperatorError, Retried};
use tandem_wire::ErrorReport;

use super::{
    answer::{Answer, json_rows, text},
    show,
    statement::{Quarantine, ShutdownMode, Statement},
};
use crate::{
    daemon::Shutdown,
    handoff::{self, Kind, Refused},
    reload::reload,
    session::{Shared, report, stopping},
};

/// Does what a user asks for, if that may be.
pub(super) async fn run(
    shared: &Shared,
    user: &str,
    statement: &Statement,
) -> Result<Answer, ErrorReport> {
    shared.console.permissions.load().check(user, statement)?;
    match statement {
        Statement::Help => Ok(show::help()),
        Statement::Show(what) => show::show(shared, user, statement, what).await,
        Statement::Set => Ok(Answer::default()),
        Statement::Quarantine(what) => {
            log(user, statement);
            quarantine(shared, statement, what)
                .await
                .map_err(|error| failed(&error))
        }
        Statement::Reapply { id, force } => {
            log(user, statement);
            let operator = shared.console.replicator.operator();
            let done = operator.reapply(id, *force).await;
            let done = done.map_err(|error| failed(&error))?;
            Ok(Answer::rows(json_rows(&[done], statement.columns())))
        }
        Statement::Reload => {
            log(user, statement);
            match reload(shared).await {
                Ok(done) => Ok(Answer::default().with_notices(done.sentences())),
                Err(error) => Err(ErrorReport::error("F0000", "nothing was reloaded")
                    .with_detail(error.to_string())),
            }
        }
        Statement::Pause { database } => {
            log(user, statement);
            let database = known(shared, database.as_deref())?;
            shared.pools.pause(database);
            let mut stop = shared.stop.clone();
            tokio::select! {
                () = shared.pools.released(database) => Ok(Answer::default()),
                () = stopping(&mut stop) => Err(report::shutting_down()),
            }
        }
        Statement::Resume { database } => {
            log(user, statement);
            let database = database.as_deref();
            match (shared.pools.resume(database), database) {
                (true, _) => Ok(Answer::default()),
                (false, Some(name)) if node_named(shared, name).is_some() => {
                    hand(shared, name, Kind::Resume).await
                }
                (false, None) => Err(ErrorReport::error("55000", "nothing is paused")),
                (false, Some(name)) => Err(ErrorReport::error(
                    "55000",
                    format!("database \"{name}\" was not paused by its name"),
                )
                .with_hint("SHOW DATABASES says which are paused; RESUME lets all go on.")),
            }
        }
        Statement::Drain { node } => {
            log(user, statement);
            hand(shared, node, Kind::Drain).await
        }
        Statement::Reconnect { database } => {
            log(user, statement);
            let database = known(shared, database.as_deref())?;
            shared.pools.reconnect(database);
            Ok(Answer::default())
        }
        Statement::Kill { database } => {
            log(user, statement);
            let pids = shared.console.clients.of_database(database.as_deref());
            let ended = pids.iter().filter(|pid| shared.registry.stop_one(**pid));
            let sentence = format!("sessions ended: {}", ended.count());
            Ok(Answer::default().with_notices(vec![sentence]))
        }
        Statement::KillClient(pid) => {
            log(user, statement);
            match shared.registry.stop_one(*pid) {
                true => Ok(Answer::default()),
                false => Err(
                    ErrorReport::error("42704", format!("no client has id {pid}"))
                        .with_hint("SHOW CLIENTS has them in its last column."),
                ),
            }
        }
        Statement::Shutdown(mode) => {
            log(user, statement);
            Ok(Answer {
                then: Some(match mode {
                    ShutdownMode::Now => Shutdown::Fast,
                    ShutdownMode::WaitForServers => Shutdown::Smart,
                }),
                ..Answer::default()
            })
        }
        Statement::Missing(verb) => Err(ErrorReport::error(
            "0A000",
            format!("{verb} is not available in Tandem"),
        )
        .with_hint("HELP lists what there is.")),
    }
}

fn node_named(shared: &Shared, name: &str) -> Option<usize> {
    shared.nodes.iter().position(|node| node.name() == name)
}

/// Takes a node out of service or back, and waits for what comes of it.
async fn hand(shared: &Shared, name: &str, kind: Kind) -> Result<Answer, ErrorReport> {
    let refused = |refused: Refused| {
        let code = match refused {
            Refused::Unknown(_) => "42704",
            _ => "55000",
        };
        ErrorReport::error(code, refused.to_string())
    };
    let node =
        node_named(shared, name).ok_or_else(|| refused(Refused::Unknown(name.to_owned())))?;
    let told = handoff::ask(shared, node, kind).await.map_err(refused)?;
    let report = told.await.map_err(|_| refused(Refused::Stopping))?;
    let sentence = report.sentence(name);
    match report.has_moved() {
        true => Ok(Answer::default().with_notices(vec![sentence])),
        false => Err(ErrorReport::error("55000", sentence)),
    }
}

/// A database that Tandem knows of.
fn known<'a>(shared: &Shared, database: Option<&'a str>) -> Result<Option<&'a str>, ErrorReport> {
    match database {
        Some(name)
            if name != shared.settings.load().config.replication.database
                && !shared.pools.has_database(name) =>
        {
            let message = format!("no client works in database \"{name}\"");
            Err(ErrorReport::error("3D000", message).with_hint("SHOW POOLS lists what there is."))
        }
        database => Ok(database),
    }
}

/// Who did what is known later.
fn log(user: &str, statement: &Statement) {
    tracing::info!(
        user,
        statement = statement.tag(),
        "asked for in the console"
    );
}

async fn quarantine(
    shared: &Shared,
    statement: &Statement,
    what: &Quarantine,
) -> Result<Answer, OperatorError> {
    let operator = shared.console.replicator.operator();
    let columns = statement.columns();
    Ok(match what {
        Quarantine::List { node } => {
            let found = operator.quarantined(node.as_deref()).await?;
            Answer::rows(json_rows(&found.transactions, columns)).with_notices(found.problems)
        }
        Quarantine::Show(id) => {
            let found = operator.quarantined_transaction(id).await?;
            let transaction = &found.transaction;
            let mut notices = vec![format!(
                "{id} of {}, committed {}, attempts: {}, refused: {}",
                transaction.source, transaction.committed, transaction.attempts, transaction.reason
            )];
            if found.more > 0 {
                notices.push(format!("{} more changes are not shown", found.more));
            }
            Answer::rows(json_rows(&found.changes, columns)).with_notices(notices)
        }
        Quarantine::Retry(id) => {
            let Retried { attempts, problems } = match id {
                None => operator.retry_all(None).await?,
                Some(id) => Retried {
                    attempts: vec![operator.retry(id).await?],
                    problems: Vec::new(),
                },
            };
            Answer::rows(json_rows(&attempts, columns)).with_notices(problems)
        }
        Quarantine::Skip(id) => {
            let skipped = operator.skip(id).await?;
            Answer::rows(json_rows(&[skipped], columns))
        }
        Quarantine::Edit { id, assignments } => {
            let edited = operator.edit(id, assignments).await?;
            let [attempt] = [&edited.attempt];
            let mut row = vec![text(&edited.id), text(&edited.changes)];
            row.extend(json_rows(&[attempt], &["outcome", "reason"]).concat());
            Answer::rows(vec![row])
        }
    })
}

/// What went wrong, for the client.
pub(super) fn failed(error: &OperatorError) -> ErrorReport {
    let code = match error.kind() {
        ErrorKind::NotFound => "42704",
        ErrorKind::Refused => "55000",
        ErrorKind::Unavailable => "08006",
    };
    ErrorReport::error(code, error.to_string())
}
