//! Owns one client from accept to close: startup, login, choice of a node, relay, goodbye.

mod ahead;
mod ask;
mod block;
mod checkout;
mod consistency;
mod end;
mod homed;
mod inbound;
mod input;
mod listening;
mod login;
pub(crate) mod losing;
pub(crate) mod losses;
mod lost;
mod numbers;
mod outbound;
pub(crate) mod outbox;
mod outcome;
pub(crate) mod owed;
mod parameters;
mod parked;
mod policing;
mod position;
pub(crate) mod prepared;
mod prepared_transactions;
pub(crate) mod profile;
mod program;
mod ready;
pub(crate) mod registry;
pub(crate) mod report;
pub(crate) mod route;
mod runs;
mod seen;
mod sequences;
mod shape;
mod slow;
mod splice;
pub(crate) mod state;
mod task;
#[cfg(test)]
mod tests;
pub(crate) mod trace;
mod unit;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use tandem_replicator::Replicator;
use tandem_wire::{Stream, auth::ClientIo, startup, tls::ClientTlsMode};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    acknowledged::Acknowledged,
    auth::{Gate, control::Control},
    bound::Bound,
    cancel::Canceller,
    config::PoolMode,
    console::{
        self, Console,
        clients::{About, Listed, Who},
    },
    handoff::Handoffs,
    health::HealthBoard,
    limits::{Counted, Limits},
    node::Nodes,
    notifications::Notifications,
    pool::{Pools, current_worker},
    recovery::Recoveries,
    reload::{Files, Settings},
    routing::Router,
};
pub(crate) use end::farewell;
use end::{Boundary, End};
use login::Ended;
use losses::Losses;
use registry::{Registry, Stop};
use task::{Begin, Task};
use unit::Routed;

/// What all sessions share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// What counts now, as the last reload left it.
    pub(crate) settings: ArcSwap<Settings>,
    /// `slow_statement` of `[log]`
    pub(crate) slow_statement: Bound,
    /// What became of the configuration's files.
    pub(crate) files: Files,
    /// Another daemon may take over while this one ends: nobody is turned away.
    pub(crate) shares_addresses: bool,
    /// `server_connect_timeout`
    pub(crate) connect_timeout: Bound,
    pub(crate) nodes: Nodes,
    pub(crate) router: Router,
    pub(crate) acknowledged: Arc<Acknowledged>,
    pub(crate) replicator: Arc<Replicator>,
    pub(crate) health: Arc<HealthBoard>,
    pub(crate) handoffs: Handoffs,
    pub(crate) recoveries: Recoveries,
    pub(crate) gate: Gate,
    /// What sessions have to ask of nodes.
    pub(crate) control: Arc<Control>,
    pub(crate) pools: Arc<Pools>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) losses: Losses,
    pub(crate) canceller: Canceller,
    pub(crate) clients: Clients,
    pub(crate) limits: Limits,
    /// Who listens on which channels.
    pub(crate) notifications: Notifications,
    pub(crate) console: Console,
    /// What the daemon wants of sessions; for those still logging in. The others hear of it through the registry.
    pub(crate) stop: watch::Receiver<Stop>,
}

/// Counts clients against `max_client_connections`.
#[derive(Debug)]
pub(crate) struct Clients {
    current: Arc<AtomicUsize>,
    max: AtomicUsize,
}

/// A place for a client; free again when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    current: Arc<AtomicUsize>,
    _counted: Counted,
}

impl Place {
    /// Counts for its user and its database too.
    pub(crate) fn counted(mut self, counted: Counted) -> Place {
        self._counted = counted;
        self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.current.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Clients {
    /// Places for `max` clients.
    pub(crate) fn new(max: usize) -> Clients {
        Clients {
            current: Arc::new(AtomicUsize::new(0)),
            max: AtomicUsize::new(max),
        }
    }

    /// A place, unless all are taken.
    pub(crate) fn take(&self) -> Option<Place> {
        let max = self.max();
        self.current
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < max).then_some(n + 1)
            })
            .ok()
            .map(|_| Place {
                current: Arc::clone(&self.current),
                _counted: Counted::default(),
            })
    }

    /// Clients now.
    pub(crate) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// Clients at most.
    pub(crate) fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// So many at most from now on; who is in stays in.
    pub(crate) fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }
}

/// Returns when the daemon begins to stop.
pub(crate) async fn stopping(stop: &mut watch::Receiver<Stop>) {
    // A sender that is gone means that the daemon is.
    let _ = stop.wait_for(|stop| *stop != Stop::No).await;
}

/// Returns when those who are logging in are turned away.
pub(crate) async fn turning_away(shared: &Shared) {
    let mut stop = shared.stop.clone();
    let from = match shared.shares_addresses {
        true => Stop::AtOnce,
        false => Stop::WhenIdle,
    };
    // A sender that is gone means that the daemon is.
    let _ = stop.wait_for(|stop| *stop >= from).await;
}

/// A client who has logged in.
struct Ready {
    task: Task,
    _listed: Listed,
    _place: Place,
}

/// Serves one accepted connection to its end, on the worker that this runs on. `home`: the worker whose reactor it is
/// registered with. Not an `async fn`, whose future would keep the room of what it was given beside what an idle session needs.
pub(crate) fn serve(shared: Arc<Shared>, stream: Stream, home: usize) -> impl Future<Output = ()> {
    // In a box of its own, so that the login's buffers and futures do not stay with an idle session.
    let begun = Box::pin(begin_here(Arc::clone(&shared), stream, home));
    async move {
        let Some(mut ready) = begun.await else {
            return;
        };
        let end = ready.task.run(&shared).await;
        Box::pin(conclude(&shared, ready, end)).await;
    }
}

async fn begin_here(shared: Arc<Shared>, stream: Stream, home: usize) -> Option<Box<Ready>> {
    let moved = if home == current_worker() {
        Ok(stream)
    } else {
        stream.rehome()
    };
    match moved {
        Ok(stream) => begin(&shared, stream).await,
        Err(error) => {
            tracing::warn!(%error, "a client's connection could not be moved to a worker");
            None
        }
    }
}

/// Everything up to the first ReadyForQuery. What comes of it is in a box of its own size: a future that holds it keeps
/// room for it more than once.
async fn begin(shared: &Shared, stream: Stream) -> Option<Box<Ready>> {
    let since = Instant::now();
    let settings = shared.settings.load_full();
    let proxy = &settings.config.proxy;
    let deadline = since + proxy.client_login_timeout;
    let peer = stream.peer_addr();
    let address = source_address(&stream);
    let mode = proxy.tls.as_ref();
    let mode = mode.map_or(ClientTlsMode::Disable, |tls| tls.mode);
    let accept = startup::accept(stream, settings.tls.as_ref(), mode);
    let accepted = match timeout_at(deadline, accept).await {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(error)) => {
            tracing::debug!(peer, %error, "connection ended before a startup packet");
            return None;
        }
        Err(_) => {
            tracing::info!(peer, "no startup packet within client_login_timeout");
            shared.gate.failed(address);
            return None;
        }
    };
    let (mut io, startup, tls) = match accepted {
        startup::Accepted::Session {
            stream,
            startup,
            tls,
        } => (ClientIo::new(stream), startup, tls),
        startup::Accepted::Cancel {
            pid,
            secret,
            stream,
        } => {
            shared.canceller.on_request(pid, &secret, &peer).await;
            drop(stream);
            return None;
        }
    };
    if startup.database == console::DATABASE {
        let (startup, tls, peer) = (&startup, tls.as_ref(), peer.as_str());
        let guest = console::Guest {
            startup,
            tls,
            peer,
            address,
        };
        Box::pin(console::serve(shared, io, &guest, deadline)).await;
        return None;
    }
    let login = login::Login {
        shared,
        startup: &startup,
        tls: tls.as_ref(),
        peer: &peer,
        address,
    };
    match login.run(&mut io, deadline).await {
        Ok(welcome) => {
            let about = Arc::new(About {
                who: shared.console.clients.who(Who {
                    user: startup.user.into(),
                    database: startup.database.into(),
                    hints: welcome.hints,
                }),
                tls: tls.is_some(),
                peer: peer.into(),
                since,
            });
            let listed = shared
                .console
                .clients
                .list(welcome.registered.pid(), &about);
            let near = welcome.pool.key().node;
            let is_routed = shared.nodes.len() > 1 && proxy.pool.mode == PoolMode::Transaction;
            let is_replicated = shared.router.is_replicated(&about.who.database);
            let acknowledged = is_replicated.then(|| Arc::clone(&shared.acknowledged));
            Some(Box::new(Ready {
                task: Task::new(Begin {
                    client: io.stream,
                    from_client: io.rx,
                    server: welcome.server,
                    profile: welcome.profile,
                    about,
                    pool: welcome.pool,
                    counted: welcome.counted,
                    registered: welcome.registered,
                    session: shared.pools.next_session(),
                    mode: proxy.pool.mode,
                    routed: is_routed.then(|| Box::new(Routed::new(near, acknowledged))),
                    slow_statement: shared.slow_statement.clone(),
                }),
                _listed: listed,
                _place: welcome.place,
            }))
        }
        Err(Ended { last_words, reason }) if last_words.is_empty() => {
            // Among them psql, which goes away to ask its user for a password.
            tracing::debug!(peer, user = startup.user, reason, "login not finished");
            None
        }
        Err(Ended { last_words, reason }) => {
            tracing::info!(
                peer,
                user = startup.user,
                database = startup.database,
                reason,
                "login failed"
            );
            farewell(&mut io.stream, &last_words).await;
            None
        }
    }
}

fn source_address(stream: &Stream) -> Option<IpAddr> {
    stream
        .tcp()
        .and_then(|tcp| tcp.peer_addr().ok())
        .map(|address| address.ip())
}

/// Tells client, server, health and log about the end of a session.
async fn conclude(shared: &Shared, ready: Box<Ready>, end: End) {
    let Ready {
        task,
        _listed,
        _place,
    } = *ready;
    let about = Arc::clone(&task.about);
    let hold = task
        .state
        .hold()
        .map_or_else(String::new, |hold| hold.to_string());
    let (node, cut, in_flight) = (
        task.node(),
        task.boundary() == Boundary::Cut,
        task.in_flight(),
    );
    let name = shared.nodes.get(node).map_or("?", |node| node.name());
    let last_words = match &end {
        End::Client | End::ClientLost(_) | End::ServerFatal => BytesMut::new(),
        End::ClientViolation(error) => report::bytes(&report::client_violation(error)),
        End::TooMuchPrepared => report::bytes(&report::too_much_prepared()),
        End::NoServer(report) | End::Lost(report) => report::bytes(report),
        End::NotReady(error) => report::bytes(&report::not_ready(name, error)),
        End::Untaken => report::bytes(&report::notifications_untaken()),
        End::ServerLost(_) => report::bytes(&report::node_lost(name)),
        End::ServerViolation(_) | End::ServerMismatch(_) => {
            report::bytes(&report::node_violation(name))
        }
        End::Stopped => match shared.health.fence(node) {
            Some(reason) if *shared.stop.borrow() == Stop::No => {
                report::bytes(&report::node_fenced(name, &reason))
            }
            _ => report::bytes(&report::administrator_command()),
        },
    };
    match &end {
        End::ServerLost(_) | End::ServerFatal => shared.health.evidence(node),
        End::ServerViolation(_) | End::ServerMismatch(_) => {
            tracing::error!(node = name, %end, "the connection is closed");
        }
        End::NoServer(_) | End::Lost(_) | End::NotReady(_) => {
            tracing::info!(
                peer = &*about.peer,
                user = &*about.who.user,
                database = &*about.who.database,
                node = name,
                %end,
                "session ended"
            );
        }
        _ => {}
    }
    let (mut client, unsent, server) = task.into_parts();
    let mut bytes = unsent;
    if cut {
        bytes.clear();
    } else {
        bytes.extend_from_slice(&last_words);
    }
    let close = async {
        let Some(server) = server else { return };
        if in_flight && !matches!(end, End::Client | End::ServerFatal | End::ServerLost(_)) {
            // The backend would go on working for nobody.
            shared.canceller.forward(server.face.begin_cancel()).await;
        } else {
            server.close();
        }
    };
    let say = async {
        // Closing a socket says that nothing more comes; TLS has a message for it.
        if !bytes.is_empty() || client.is_tls() {
            farewell(&mut client, &bytes).await;
        }
    };
    tokio::join!(say, close);
    tracing::debug!(
        peer = &*about.peer,
        user = &*about.who.user,
        database = &*about.who.database,
        node = name,
        seconds = about.since.elapsed().as_secs_f64(),
        %end,
        hold,
        cut,
        "session ended"
    );
}
