//! Owns the tasks that bring server connections to a pool: opening one, and asking an idle one for a sign of life.

use std::{io, sync::Arc, time::Duration};

use tandem_wire::{ConnectError, Connection, connection::Parts, encode};
use tokio::{io::AsyncWriteExt, time::timeout};

use super::{Pool, Server, lock, wait::Ticket};
use crate::{
    health::{Verdict, verdict},
    pool::WaitError,
};

/// Why no server connection could be opened.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct OpenError {
    /// What happened.
    pub(crate) error: ConnectError,
    /// What that says of the node.
    pub(crate) verdict: Verdict,
    /// Probes of the node that had begun by then.
    pub(crate) probes: u64,
}

impl OpenError {
    /// A connection that could not be moved to another thread.
    pub(super) fn moved(error: io::Error, pool: &Pool) -> OpenError {
        OpenError {
            error: ConnectError::Io(error),
            verdict: Verdict::Ours,
            probes: pool.env.health.probes(pool.key.node),
        }
    }
}

/// Opens a connection and brings it to the queue.
pub(super) async fn open(pool: Arc<Pool>) {
    let outcome = Box::pin(connect(&pool)).await;
    let now = pool.env.now();
    match outcome {
        Ok(server) => {
            let (home, born) = (server.home, server.born);
            let refused = lock(&pool.queue).arrived(server, home, born, now);
            if let Err(server) = refused {
                server.close();
            }
        }
        Err(error) => {
            let key = &pool.key;
            let node = pool.env.node(key.node);
            let name = node.map_or("?", |node| node.name());
            tracing::info!(node = name, user = key.user, database = key.database, %error, "no server connection");
            if let Some(node) = node {
                let health = &pool.env.health;
                match (error.verdict.decides(), error.verdict) {
                    (Some(event), _) => health.decided(key.node, node, event, &error.to_string()),
                    (None, Verdict::Broken | Verdict::Unclear) => health.evidence(key.node),
                    (None, _) => {}
                }
            }
            let concerned: Vec<Arc<Ticket>> = lock(&pool.queue).failed(now);
            let error = Arc::new(error);
            for ticket in concerned {
                ticket.fail(WaitError::Open(Arc::clone(&error)));
            }
        }
    }
}

async fn connect(pool: &Arc<Pool>) -> Result<Box<Server>, OpenError> {
    let (key, env) = (&pool.key, &pool.env);
    let Some(node) = env.node(key.node) else {
        return Err(OpenError::moved(io::ErrorKind::NotFound.into(), pool));
    };
    // The earliest moment that counts, and more precise than the queue's time.
    let born = env.started.elapsed();
    let credentials = lock(&pool.credentials).clone();
    let options = node.client_options(
        &key.user,
        &key.database,
        credentials,
        key.params.to_vec(),
        env.connect_timeout.get(),
    );
    let turn = node.login_turn().await;
    let connected = tandem_wire::connect(&options).await;
    drop(turn);
    let parts = connected.map(Connection::into_parts).map_err(|error| {
        let verdict = verdict(&error);
        OpenError {
            error,
            verdict,
            probes: env.health.probes(key.node),
        }
    })?;
    Ok(pool.seat(parts, born))
}

impl Pool {
    /// Makes a server of a new connection, begun at `born` from the daemon's start. It is counted already.
    pub(crate) fn seat(self: &Arc<Pool>, parts: Parts, born: Duration) -> Box<Server> {
        lock(&self.kinds).note_reported(&parts.parameters.clone().into());
        let env = &self.env;
        let id = env
            .servers
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let server = Server::new(
            parts,
            &self.key,
            id,
            env.limits.load().prepared_max,
            born,
            self,
        );
        lock(&self.faces).push(Arc::downgrade(&server.face));
        Box::new(server)
    }
}

/// Asks a server for a sign of life and brings it to the queue. One that gives none is closed.
pub(super) async fn check(pool: Arc<Pool>, mut server: Box<Server>) {
    let alive = timeout(pool.env.connect_timeout.get(), is_alive(&mut server)).await;
    let now = pool.env.now();
    if matches!(alive, Ok(Ok(true))) {
        let (home, born) = (server.home, server.born);
        let refused = lock(&pool.queue).arrived(server, home, born, now);
        drop(refused);
        return;
    }
    match alive {
        // As when another server process has crashed.
        Ok(Err(_)) => pool.note_crash(),
        _ => pool.note_evidence(),
    }
    lock(&pool.queue).check_failed();
    drop(server);
}

/// Sends a Sync and waits for its answer.
async fn is_alive(server: &mut Server) -> io::Result<bool> {
    let mut out = bytes::BytesMut::new();
    encode::frontend::sync(&mut out);
    server.stream.write_all(&out).await?;
    server.stream.flush().await?;
    loop {
        match server.message().await? {
            (b'Z', body) if *body == *b"I" => return Ok(server.received.is_empty()),
            (b'N', _) => {}
            (b'S', body) => {
                if let Ok(status) = tandem_wire::backend::ParameterStatus::parse(&body) {
                    server.settings.reported(status.name, status.value);
                }
            }
            _ => return Ok(false),
        }
    }
}
