//! Owns the admin console: database `tandem` at the proxy's port, for psql and whatever else speaks the protocol.
//!
//! **Invariant:** nobody is in without a login that proved who it is, and nothing is done that the user was not given
//! in `[admin]`, which is looked at for each statement: who is taken out of it and reloaded may do nothing more.

mod act;
mod answer;
pub(crate) mod clients;
mod lexer;
mod permissions;
mod pools;
mod protocol;
mod recovery;
mod rules;
mod show;
mod statement;

use std::{fmt, net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use tandem_replicator::Replicator;
use tandem_wire::{
    ErrorReport,
    auth::ClientIo,
    encode,
    startup::{Startup, TlsInfo},
};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, timeout_at},
};

use crate::{
    auth::{Applicant, Denied},
    config::{AdminConfig, AuthMethod},
    daemon::Shutdown,
    session::{Shared, farewell, report, stopping},
};
use clients::Clients;
use permissions::Permissions;
use protocol::Conversation;

/// The console's name as a database.
pub(crate) const DATABASE: &str = "tandem";

/// Consoles at the same time. They do not count as clients: who has to see why there are too many must come in.
const CONSOLES_MAX: usize = 64;

/// What the console works with, beside what sessions share.
pub(crate) struct Console {
    replicator: Arc<Replicator>,
    /// Who is in, at the nodes' side of the proxy.
    pub(crate) clients: Clients,
    permissions: ArcSwap<Permissions>,
    shutdown: watch::Sender<Option<Shutdown>>,
    places: Semaphore,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("permissions", &self.permissions)
            .finish_non_exhaustive()
    }
}

impl Console {
    /// A console that asks for the daemon's end by `shutdown`.
    pub(crate) fn new(
        replicator: Arc<Replicator>,
        config: &AdminConfig,
        shutdown: watch::Sender<Option<Shutdown>>,
    ) -> Console {
        Console {
            replicator,
            clients: Clients::default(),
            permissions: ArcSwap::from_pointee(Permissions::new(config)),
            shutdown,
            places: Semaphore::new(CONSOLES_MAX),
        }
    }

    /// Replaces who may do what.
    pub(crate) fn set_permissions(&self, config: &AdminConfig) {
        self.permissions.store(Arc::new(Permissions::new(config)));
    }
}

/// Somebody at the door.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) startup: &'a Startup,
    pub(crate) tls: Option<&'a TlsInfo>,
    pub(crate) peer: &'a str,
    pub(crate) address: Option<IpAddr>,
}

/// Serves one client of the console to its end.
pub(crate) async fn serve(shared: &Shared, mut io: ClientIo, guest: &Guest<'_>, deadline: Instant) {
    let user = guest.startup.user.as_str();
    let (peer, console) = (guest.peer, &shared.console);
    let Ok(_place) = console.places.try_acquire() else {
        let report = ErrorReport::fatal("53300", "too many clients of the console");
        return farewell(&mut io.stream, &report::bytes(&report)).await;
    };
    let mut stop = shared.stop.clone();
    let login = tokio::select! {
        login = timeout_at(deadline, login(shared, &mut io, guest)) => login,
        () = stopping(&mut stop) => {
            return farewell(&mut io.stream, &report::bytes(&report::shutting_down())).await;
        }
    };
    match login {
        Ok(Ok(())) => {}
        Ok(Err(Denied::Report { report, reason })) => {
            tracing::info!(peer, user, reason, "login to the console failed");
            return farewell(&mut io.stream, &report::bytes(&report)).await;
        }
        Ok(Err(Denied::Gone(error))) => {
            tracing::debug!(peer, user, %error, "login to the console not finished");
            return;
        }
        Err(_) => {
            shared.gate.failed(guest.address);
            return farewell(&mut io.stream, &report::bytes(&report::login_timeout())).await;
        }
    }
    tracing::info!(peer, user, "console begins");
    let mut conversation = Conversation::new(shared, user, io);
    let last_words = conversation.run(&mut stop).await;
    farewell(&mut conversation.into_io().stream, &last_words).await;
    tracing::debug!(peer, user, "console ended");
}

/// Lets a client in who has proved who it is and may do something.
async fn login(shared: &Shared, io: &mut ClientIo, guest: &Guest<'_>) -> Result<(), Denied> {
    let user = guest.startup.user.as_str();
    let applicant = Applicant {
        user,
        database: &guest.startup.database,
        address: guest.address,
        tls: guest.tls,
    };
    let admitted = shared.gate.admit(io, &applicant).await?;
    let refused = |report: ErrorReport, reason: &str| Denied::Report {
        report: Box::new(report),
        reason: reason.to_owned(),
    };
    if admitted.method == AuthMethod::Trust {
        let report = ErrorReport::fatal("28000", "the console is not open to logins by trust")
            .with_hint(
                "Give database \"tandem\" a host rule with a method that proves who somebody is.",
            );
        return Err(refused(report, "method trust proves nothing"));
    }
    if shared.console.permissions.load().right(user).is_none() {
        let report =
            ErrorReport::fatal("42501", format!("user \"{user}\" may not use the console"))
                .with_hint("List it in `users` or `readers` of [admin], then reload.");
        return Err(refused(report, "not in users or readers of [admin]"));
    }
    let greeting = greeting().map_err(Denied::Gone)?;
    io.send(&greeting).await.map_err(Denied::Gone)
}

/// What a server sends after a login. There is no cancel key, as nothing can be cancelled.
fn greeting() -> std::io::Result<BytesMut> {
    // The oldest server that we know: psql warns of servers newer than itself.
    let version = concat!("15.0 (Tandem ", env!("CARGO_PKG_VERSION"), ")");
    let parameters = [
        ("server_version", version),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("IntervalStyle", "postgres"),
        ("TimeZone", "UTC"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
        ("is_superuser", "off"),
    ];
    let mut out = BytesMut::with_capacity(512);
    encode::backend::authentication_ok(&mut out);
    for (name, value) in parameters {
        encode::backend::parameter_status(&mut out, name, value)?;
    }
    encode::backend::ready_for_query(&mut out, b'I');
    Ok(out)
}
