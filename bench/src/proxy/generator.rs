//! Owns the clients that pgbench has not: they know their SCRAM keys, so that a login costs them little.

use std::error::Error;
use std::num::NonZeroU32;
use std::time::Duration;

use tandem_tests::template::{APP, DATABASE};
use tandem_wire::auth::{ClientKeys, Verifier};
use tandem_wire::tls::{ClientTls, SslMode};
use tandem_wire::{ConnectError, ConnectOptions, Connection, Credentials, connect};

use super::stage::{Stage, Way};

/// Longest time for a login: some cases start thousands at once.
const LOGIN_LIMIT: Duration = Duration::from_secs(60);

/// A query that costs a server little.
pub(super) const QUERY: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = 1";

/// Makes clients of one way.
#[derive(Debug, Clone)]
pub(super) struct Generator {
    options: ConnectOptions,
}

impl Generator {
    /// Of clients of role `app`, with or without TLS.
    ///
    /// # Errors
    /// The verifier of the role is not SCRAM's.
    pub(super) fn new(stage: &Stage, way: &Way, tls: bool) -> Result<Self, Box<dyn Error>> {
        let Verifier::Scram(verifier) = Verifier::parse(&stage.verifier)? else {
            return Err("the verifier is not SCRAM's".into());
        };
        let iterations = NonZeroU32::new(verifier.iterations).ok_or("no iterations")?;
        let keys = ClientKeys::derive(APP.as_bytes(), &verifier.salt, iterations);
        let tls = if tls {
            ClientTls::new(SslMode::Require, None)?
        } else {
            ClientTls::disabled()
        };
        Ok(Self {
            options: ConnectOptions {
                host: "127.0.0.1".to_owned(),
                port: way.port,
                user: APP.to_owned(),
                database: DATABASE.to_owned(),
                credentials: Credentials::ScramKeys(keys),
                tls,
                params: Vec::new(),
                connect_timeout: LOGIN_LIMIT,
            },
        })
    }

    /// A client that is ready for its first query.
    ///
    /// # Errors
    /// The login fails.
    pub(super) async fn log_in(&self) -> Result<Connection, ConnectError> {
        connect(&self.options).await
    }

    /// Logs in, asks one query, and goes.
    ///
    /// # Errors
    /// Any of it fails.
    pub(super) async fn visit(&self) -> Result<(), String> {
        let mut client = self.log_in().await.map_err(|error| error.to_string())?;
        let asked = client.simple_query(QUERY).await;
        asked.map_err(|error| error.to_string())?;
        client.close().await;
        Ok(())
    }

    /// So many clients, each of which has asked one query; some logins at a time.
    ///
    /// # Errors
    /// One of them fails.
    pub(super) async fn crowd(&self, count: usize) -> Result<Vec<Connection>, Box<dyn Error>> {
        const AT_ONCE: usize = 40;
        let mut makers = tokio::task::JoinSet::new();
        for maker in 0..AT_ONCE {
            let generator = self.clone();
            let share = (count + AT_ONCE - 1 - maker) / AT_ONCE;
            makers.spawn(async move {
                let mut clients = Vec::with_capacity(share);
                for _ in 0..share {
                    let mut client = generator
                        .log_in()
                        .await
                        .map_err(|error| error.to_string())?;
                    let asked = client.simple_query(QUERY).await;
                    asked.map_err(|error| error.to_string())?;
                    clients.push(client);
                }
                Ok::<_, String>(clients)
            });
        }
        let mut clients = Vec::with_capacity(count);
        while let Some(made) = makers.join_next().await {
            clients.extend(made??);
        }
        Ok(clients)
    }
}
