//! What the admin port offers an operator: the conflict log, losing writes, what is in quarantine.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tandem_replicator::operator::{
    Assignment, ConflictFilter, ErrorKind, ItemId, OperatorError, Retried,
};

use super::Context;

/// The routes, below the token.
pub(super) fn router() -> Router<Arc<Context>> {
    Router::new()
        .route("/api/conflicts", get(conflicts))
        .route("/api/conflicts/summary", get(summary))
        .route("/api/conflicts/reapply", post(reapply))
        .route("/api/quarantine", get(quarantine))
        .route("/api/quarantine/transaction", get(transaction))
        .route("/api/quarantine/retry", post(retry))
        .route("/api/quarantine/skip", post(skip))
        .route("/api/quarantine/edit", post(edit))
}

/// Answers a result, or why there is none.
fn answer<T: Serialize>(result: Result<T, OperatorError>) -> Response {
    let error = match result {
        Ok(value) => return Json(value).into_response(),
        Err(error) => error,
    };
    let status = match error.kind() {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Refused => StatusCode::CONFLICT,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    };
    let problem = serde_json::json!({ "problem": error.to_string() });
    (status, Json(problem)).into_response()
}

async fn conflicts(
    State(context): State<Arc<Context>>,
    Query(filter): Query<ConflictFilter>,
) -> Response {
    answer(context.replicator.operator().conflicts(&filter).await)
}

async fn summary(
    State(context): State<Arc<Context>>,
    Query(filter): Query<ConflictFilter>,
) -> Response {
    let operator = context.replicator.operator();
    answer(operator.conflict_summary(&filter).await)
}

#[derive(Deserialize)]
struct Item {
    id: ItemId,
}

#[derive(Deserialize)]
struct Reapply {
    id: ItemId,
    #[serde(default)]
    force: bool,
}

async fn reapply(State(context): State<Arc<Context>>, Query(line): Query<Reapply>) -> Response {
    let operator = context.replicator.operator();
    answer(operator.reapply(&line.id, line.force).await)
}

#[derive(Deserialize)]
struct OfNode {
    node: Option<String>,
}

async fn quarantine(State(context): State<Arc<Context>>, Query(of): Query<OfNode>) -> Response {
    let operator = context.replicator.operator();
    answer(operator.quarantined(of.node.as_deref()).await)
}

async fn transaction(State(context): State<Arc<Context>>, Query(item): Query<Item>) -> Response {
    let operator = context.replicator.operator();
    answer(operator.quarantined_transaction(&item.id).await)
}

#[derive(Deserialize)]
struct Retry {
    id: Option<ItemId>,
    node: Option<String>,
}

async fn retry(State(context): State<Arc<Context>>, Query(which): Query<Retry>) -> Response {
    let operator = context.replicator.operator();
    let Some(id) = &which.id else {
        return answer(operator.retry_all(which.node.as_deref()).await);
    };
    answer(operator.retry(id).await.map(|attempt| Retried {
        attempts: vec![attempt],
        problems: Vec::new(),
    }))
}

async fn skip(State(context): State<Arc<Context>>, Query(item): Query<Item>) -> Response {
    answer(context.replicator.operator().skip(&item.id).await)
}

async fn edit(
    State(context): State<Arc<Context>>,
    Query(item): Query<Item>,
    Json(assignments): Json<Vec<Assignment>>,
) -> Response {
    let operator = context.replicator.operator();
    answer(operator.edit(&item.id, &assignments).await)
}
