//! What the admin port offers to take nodes out of service and back: `drain`, `resume`, and how that is going.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};

use super::Context;
use crate::{
    handoff::{self, Kind, Refused, Report},
    session::Shared,
};

/// The routes, below the token.
pub(super) fn router() -> Router<Arc<Context>> {
    Router::new()
        .route("/api/drain", post(drain))
        .route("/api/resume", post(resume))
        .route("/api/handoff", get(progress))
}

#[derive(Deserialize)]
struct Of {
    node: String,
}

/// How a node's handoff is going.
#[derive(Serialize)]
struct Progress {
    node: String,
    health: &'static str,
    /// Connections of clients to it.
    connections: usize,
    /// The last one, or the one that is under way.
    handoff: Option<Report>,
    /// What has come of it, for people.
    sentence: Option<String>,
}

fn place(shared: &Shared, name: &str) -> Result<usize, Refused> {
    let place = shared.nodes.iter().position(|node| node.name() == name);
    place.ok_or_else(|| Refused::Unknown(name.to_owned()))
}

fn told(shared: &Shared, name: String, node: usize) -> Progress {
    let handoff = shared.handoffs.report(node);
    let done = handoff.as_ref().filter(|report| report.outcome.is_some());
    Progress {
        sentence: done.map(|report| report.sentence(&name)),
        node: name,
        health: shared.health.health(node).word(),
        connections: shared.pools.connections(node),
        handoff,
    }
}

fn refused(refused: &Refused) -> Response {
    let status = match refused {
        Refused::Unknown(_) => StatusCode::NOT_FOUND,
        Refused::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        Refused::Drained(_)
        | Refused::NotDrained(..)
        | Refused::Last(_)
        | Refused::Away(_)
        | Refused::Busy => StatusCode::CONFLICT,
    };
    let problem = serde_json::json!({ "problem": refused.to_string() });
    (status, Json(problem)).into_response()
}

/// Begins one; how it goes on is asked for.
async fn begin(shared: &Shared, of: Of, kind: Kind) -> Response {
    let begun = async {
        let node = place(shared, &of.node)?;
        handoff::ask(shared, node, kind).await?;
        Ok(told(shared, of.node, node))
    };
    match begun.await {
        Ok(progress) => Json(progress).into_response(),
        Err(error) => refused(&error),
    }
}

async fn drain(State(context): State<Arc<Context>>, Query(of): Query<Of>) -> Response {
    begin(&context.shared, of, Kind::Drain).await
}

async fn resume(State(context): State<Arc<Context>>, Query(of): Query<Of>) -> Response {
    begin(&context.shared, of, Kind::Resume).await
}

async fn progress(State(context): State<Arc<Context>>, Query(of): Query<Of>) -> Response {
    match place(&context.shared, &of.node) {
        Ok(node) => Json(told(&context.shared, of.node, node)).into_response(),
        Err(error) => refused(&error),
    }
}
