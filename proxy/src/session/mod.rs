//! Owns one client from accept to close: startup, login, choice of a node, relay, goodbye.

mod login;
pub(crate) mod progress;
mod pump;
pub(crate) mod registry;
mod relay;
pub(crate) mod report;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::BytesMut;
use tandem_routing_rules::Rules;
use tandem_wire::{
    Stream,
    auth::ClientIo,
    startup,
    tls::{ClientTlsMode, ServerTls},
};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    auth::Gate,
    cancel::Canceller,
    config::Config,
    console::{self, Console},
    health::HealthBoard,
    limits::{Counted, Limits},
    node::{CountedSession, Nodes},
};
use login::Ended;
use registry::{Registered, Registry, Stop};
pub(crate) use relay::farewell;
use relay::{Boundary, End, Relay};

/// What all sessions share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) rules: Arc<Rules>,
    pub(crate) nodes: Nodes,
    pub(crate) health: Arc<HealthBoard>,
    pub(crate) gate: Gate,
    pub(crate) tls: Option<ServerTls>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) canceller: Canceller,
    pub(crate) clients: Clients,
    pub(crate) limits: Limits,
    pub(crate) console: Console,
    /// What the daemon wants of sessions; for those still logging in. The others hear of it through the registry.
    pub(crate) stop: watch::Receiver<Stop>,
}

/// Counts clients against `max_client_connections`.
#[derive(Debug)]
pub(crate) struct Clients {
    current: Arc<AtomicUsize>,
    max: usize,
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
            max,
        }
    }

    /// A place, unless all are taken.
    pub(crate) fn take(&self) -> Option<Place> {
        self.current
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < self.max).then_some(n + 1)
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
        self.max
    }
}

/// Returns when the daemon begins to stop.
pub(crate) async fn stopping(stop: &mut watch::Receiver<Stop>) {
    // A sender that is gone means that the daemon is.
    let _ = stop.wait_for(|stop| *stop != Stop::No).await;
}

/// A client who has logged in and has a node.
struct Ready {
    client: Stream,
    from_client: BytesMut,
    server: Stream,
    from_server: BytesMut,
    registered: Registered,
    node: usize,
    about: Box<About>,
    _counted: CountedSession,
    _place: Place,
}

/// For the log.
struct About {
    peer: String,
    user: String,
    database: String,
    since: Instant,
}

/// Serves one accepted connection to its end.
pub(crate) async fn serve(shared: &Shared, stream: Stream) {
    // In a box of its own, so that the login's buffers and futures do not stay with an idle session.
    let Some(ready) = Box::pin(begin(shared, stream)).await else {
        return;
    };
    let Ready {
        client,
        from_client,
        server,
        from_server,
        registered,
        node,
        about,
        _counted,
        _place,
    } = ready;
    let mut relay = Relay::new(client, from_client, server, from_server);
    let end = relay.run(registered.entry()).await;
    Box::pin(conclude(shared, relay, end, &registered, node, &about)).await;
}

/// Everything up to the first ReadyForQuery.
async fn begin(shared: &Shared, stream: Stream) -> Option<Ready> {
    let since = Instant::now();
    let deadline = since + shared.config.proxy.client_login_timeout;
    let peer = stream.peer_addr();
    let address = source_address(&stream);
    let mode = shared
        .config
        .proxy
        .tls
        .as_ref()
        .map_or(ClientTlsMode::Disable, |tls| tls.mode);
    let accepted =
        match timeout_at(deadline, startup::accept(stream, shared.tls.as_ref(), mode)).await {
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
        Ok(welcome) => Some(Ready {
            client: io.stream,
            from_client: io.rx,
            server: welcome.server,
            from_server: welcome.from_server,
            registered: welcome.registered,
            node: welcome.node,
            about: Box::new(About {
                peer,
                user: startup.user,
                database: startup.database,
                since,
            }),
            _counted: welcome.counted,
            _place: welcome.place,
        }),
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
async fn conclude(
    shared: &Shared,
    relay: Relay<Stream, Stream>,
    end: End,
    registered: &Registered,
    node: usize,
    about: &About,
) {
    let name = shared.nodes.get(node).map_or("?", |node| node.name());
    let last_words = match &end {
        End::Client | End::ClientLost(_) | End::ServerFatal => BytesMut::new(),
        End::ClientViolation(error) => report::bytes(&report::client_violation(error)),
        End::ServerLost(_) => report::bytes(&report::node_lost(name)),
        End::ServerViolation(_) => report::bytes(&report::node_violation(name)),
        End::Stopped => match shared.health.fence(node) {
            Some(reason) if *shared.stop.borrow() == Stop::No => {
                report::bytes(&report::node_fenced(name, &reason))
            }
            _ => report::bytes(&report::administrator_command()),
        },
    };
    match &end {
        End::ServerLost(_) | End::ServerFatal => shared.health.evidence(node),
        End::ServerViolation(error) => {
            tracing::error!(node = name, %error, "the node broke the protocol; its connection is closed");
        }
        End::Stopped | End::Client | End::ClientLost(_) | End::ClientViolation(_) => {}
    }
    let cut = relay.boundary() == Boundary::Cut;
    // The backend would go on working for nobody.
    let cancel = matches!(end, End::Stopped) && relay.in_flight();
    let cancelled = async {
        if cancel {
            shared.canceller.forward(registered.target()).await;
        }
    };
    tokio::join!(relay.finish(&last_words), cancelled);
    tracing::debug!(
        peer = about.peer,
        user = about.user,
        database = about.database,
        node = name,
        seconds = about.since.elapsed().as_secs_f64(),
        %end,
        cut,
        "session ended"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_and_come_back() {
        let clients = Clients::new(2);
        let (first, second) = (clients.take(), clients.take());
        assert!(first.is_some() && second.is_some() && clients.take().is_none());
        assert_eq!((clients.current(), clients.max()), (2, 2));
        drop(first);
        assert!(clients.take().is_some());
    }

    #[test]
    fn the_state_of_an_idle_session_stays_small() {
        let relay = size_of::<Relay<Stream, Stream>>();
        assert!(relay <= 768, "{relay} bytes");
    }
}
