//! `/api/diff` and `/api/repair`: what a comparison finds, as lines of JSON, while it finds it.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use tandem_replicator::{RepairRequest, Verification, VerifyBusy, VerifyRequest};

use super::Context;

/// The media type of lines of JSON.
const LINES_OF_JSON: &str = "application/x-ndjson";

/// Compares all nodes. Without a body: all tables.
pub(super) async fn diff(
    State(context): State<Arc<Context>>,
    request: Option<Json<VerifyRequest>>,
) -> Response {
    let Json(request) = request.unwrap_or_default();
    answer(context.replicator.diff(request))
}

/// Compares all nodes and mends what differs. Without a body: all tables, by the newest version.
pub(super) async fn repair(
    State(context): State<Arc<Context>>,
    request: Option<Json<RepairRequest>>,
) -> Response {
    let Json(request) = request.unwrap_or_default();
    answer(context.replicator.repair(request))
}

/// The run lives in the body: it ends with the connection.
fn answer(started: Result<Verification, VerifyBusy>) -> Response {
    let run = match started {
        Ok(run) => run,
        Err(busy) => return (StatusCode::CONFLICT, format!("{busy}\n")).into_response(),
    };
    let lines = stream::unfold(run, async |mut run| {
        let event = run.next().await?;
        // Events consist of texts and numbers, which always serialise.
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), run))
    });
    (
        [(header::CONTENT_TYPE, LINES_OF_JSON)],
        Body::from_stream(lines),
    )
        .into_response()
}
