//! Owns the admin port: HTTP behind a token. What is not listed here is refused.

mod handoff;
mod metrics;
mod operator;
mod token;
mod verify;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize, Serializer};
use tandem_replicator::Replicator;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    config::AdminConfig,
    handoff::Report,
    listener::bind_tcp,
    pool::figures::Figures,
    recovery,
    session::{Shared, registry::Stop},
};
use token::Token;

pub use token::TokenError;

/// The longest wait a request may ask for.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// The wait of a request that does not say.
const WAIT_DEFAULT: Duration = Duration::from_secs(30);

/// The admin port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Binding failed.
    #[error(
        "cannot listen on {address} for the admin port: {source}; another process may listen there, see [admin] listen"
    )]
    Bind {
        /// The address as configured.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// No token.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// A bound admin port.
#[derive(Debug)]
pub(crate) struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    token: Token,
}

struct Context {
    shared: Arc<Shared>,
    replicator: Arc<Replicator>,
    token: Token,
}

impl Admin {
    /// Binds the port, which may be that of another daemon that shares it, and reads or makes the token.
    pub(crate) fn bind(config: &AdminConfig, shared: bool) -> Result<Admin, AdminError> {
        let token = Token::load_or_create(&config.token_file)?;
        let failed = |source| AdminError::Bind {
            address: config.listen,
            source,
        };
        let listener = bind_tcp(config.listen, shared).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "the admin port can be reached from other machines, and its token travels in clear");
        }
        Ok(Admin {
            listener,
            address,
            token,
        })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the daemon stops.
    pub(crate) async fn serve(
        self,
        shared: Arc<Shared>,
        replicator: Arc<Replicator>,
        mut stop: watch::Receiver<Stop>,
    ) {
        let shares = shared.shares_addresses;
        let context = Arc::new(Context {
            shared,
            replicator,
            token: self.token,
        });
        let router = router(context);
        let stopped = async move {
            // Status stays available while sessions drain; where another daemon takes over it answers for itself.
            let until = if shares { Stop::WhenIdle } else { Stop::AtOnce };
            let _ = stop.wait_for(|stop| *stop >= until).await;
        };
        if let Err(error) = axum::serve(self.listener, router)
            .with_graceful_shutdown(stopped)
            .await
        {
            tracing::error!(%error, "the admin port has failed");
        }
    }
}

fn router(context: Arc<Context>) -> Router {
    let protected = Router::new()
        .route("/api/status", get(status))
        .route("/metrics", get(metrics::metrics))
        .route("/api/wait-converged", post(wait_converged))
        .route("/api/diff", post(verify::diff))
        .route("/api/repair", post(verify::repair))
        .merge(handoff::router())
        .merge(operator::router())
        // Also for paths that do not exist: without a token nobody learns which do.
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(middleware::from_fn_with_state(
            Arc::clone(&context),
            require_token,
        ));
    Router::new()
        .route("/healthz", get(async || "ok"))
        .merge(protected)
        .with_state(context)
}

async fn require_token(
    State(context): State<Arc<Context>>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    let offered = headers
        .get(header::AUTHORIZATION)
        .map(|value| value.as_bytes())
        .and_then(|value| value.strip_prefix(b"Bearer "));
    if offered.is_some_and(|offered| context.token.is(offered)) {
        return next.run(request).await;
    }
    (
        StatusCode::UNAUTHORIZED,
        [(header::WWW_AUTHENTICATE, "Bearer")],
        "the admin port needs the token of the file [admin] token_file\n",
    )
        .into_response()
}

#[derive(Serialize)]
struct Status {
    /// The daemon's process number: two may answer on one port while one takes over from the other.
    pid: u32,
    cluster: String,
    version: &'static str,
    /// Why the configuration's files, as they are now, do not count, a problem each; empty: they do.
    files_refused: Vec<String>,
    /// The placement's epoch.
    epoch: u64,
    nodes: Vec<NodeStatus>,
    replication: tandem_replicator::Status,
    clients: ClientStatus,
    pools: Figures,
    panics: u64,
}

#[derive(Serialize)]
struct NodeStatus {
    name: String,
    id: u16,
    zone: Option<String>,
    host: String,
    port: u16,
    health: &'static str,
    /// Whether new sessions may go there.
    usable: bool,
    /// Reads go elsewhere, because it lacks what others wrote too long ago.
    behind: bool,
    problem: Option<String>,
    rtt_ms: Option<f64>,
    sessions: u32,
    /// Connections of clients to it, in use or not.
    connections: usize,
    /// The last handoff of its keys, or the one that is under way.
    handoff: Option<Report>,
    /// How often it was gone and has caught up.
    recoveries: u64,
    /// What the last time has cost.
    #[serde(serialize_with = "shared")]
    recovery: Option<Arc<recovery::Report>>,
}

fn shared<T: Serialize, S: Serializer>(
    value: &Option<Arc<T>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    value.as_deref().serialize(serializer)
}

#[derive(Serialize)]
struct ClientStatus {
    current: usize,
    max: usize,
    idle: usize,
    in_transaction: usize,
    active: usize,
}

async fn status(State(context): State<Arc<Context>>) -> Json<Status> {
    Json(snapshot(&context))
}

fn snapshot(context: &Context) -> Status {
    let shared = &context.shared;
    let nodes = shared
        .nodes
        .iter()
        .enumerate()
        .map(|(index, node)| NodeStatus {
            name: node.name().to_owned(),
            id: node.config().id,
            zone: node.config().zone.clone(),
            host: node.config().host.clone(),
            port: node.config().port,
            health: shared.health.health(index).word(),
            usable: shared.health.usable(index),
            behind: shared.health.lags(index),
            problem: shared
                .health
                .problem(index)
                .map(|problem| (*problem).clone()),
            rtt_ms: shared.health.rtt_us(index).map(|us| f64::from(us) / 1000.0),
            sessions: node.sessions(),
            connections: shared.pools.connections(index),
            handoff: shared.handoffs.report(index),
            recoveries: shared.recoveries.known(index).made,
            recovery: shared.recoveries.last(index),
        })
        .collect();
    let [idle, in_transaction, active] = shared.registry.activities();
    Status {
        pid: std::process::id(),
        cluster: shared.settings.load().config.cluster.clone(),
        version: env!("CARGO_PKG_VERSION"),
        files_refused: shared.files.refused(),
        epoch: shared.health.epoch(),
        nodes,
        replication: context.replicator.status(),
        clients: ClientStatus {
            current: shared.clients.current(),
            max: shared.clients.max(),
            idle,
            in_transaction,
            active,
        },
        pools: shared.pools.figures(),
        panics: crate::log::panics(),
    }
}

#[derive(Deserialize)]
struct Wait {
    timeout_ms: Option<u64>,
}

async fn wait_converged(State(context): State<Arc<Context>>, Query(wait): Query<Wait>) -> Response {
    let bound = wait
        .timeout_ms
        .map_or(WAIT_DEFAULT, Duration::from_millis)
        .min(WAIT_MAX);
    match context.replicator.wait_converged(bound).await {
        Ok(()) => Json(serde_json::json!({})).into_response(),
        Err(not_converged) => (StatusCode::GATEWAY_TIMEOUT, Json(not_converged)).into_response(),
    }
}
