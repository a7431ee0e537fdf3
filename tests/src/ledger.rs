//! Owns a drill's ledger on clusters of tests: its clients, and what a node has of what they wrote.

use std::time::Duration;

use tandem::cli::drill::{
    audit::Found,
    ledger::{Client, DEFINITION, TABLE, WHO},
};
use tandem_wire::{
    ConnectOptions, Credentials, Secret,
    tls::{ClientTls, SslMode},
};

use crate::{
    Node, client,
    template::{APP, DATABASE},
};

/// What sets the rows apart that it writes: there is only one in a test.
pub const RUN: u64 = 1;

/// How long a login may take.
const LOGIN_LIMIT: Duration = Duration::from_secs(10);

/// Makes its table.
#[must_use]
pub fn schema() -> String {
    format!("CREATE TABLE {TABLE} {DEFINITION};")
}

/// What the nodes call themselves.
///
/// # Panics
/// One does not answer.
pub async fn names(nodes: &[Node]) -> Vec<String> {
    let mut names = Vec::new();
    for node in nodes {
        names.push(node.value(&format!("SELECT {WHO}")).await);
    }
    names
}

/// A client at this port of 127.0.0.1, with a key if it has one.
///
/// # Panics
/// There is no TLS to be had.
#[must_use]
pub fn client(port: u16, number: u32, key: Option<String>, names: &[String]) -> Client {
    let setting = key.as_ref().map(|key| format!("-c tandem.key={key}"));
    Client {
        run: RUN,
        number,
        key,
        options: ConnectOptions {
            host: "127.0.0.1".to_owned(),
            port,
            user: APP.to_owned(),
            database: DATABASE.to_owned(),
            credentials: Credentials::Password(Secret::new(APP)),
            tls: ClientTls::new(SslMode::Disable, None).expect("no TLS"),
            params: setting
                .map(|setting| ("options".to_owned(), setting))
                .into_iter()
                .collect(),
            connect_timeout: LOGIN_LIMIT,
        },
        names: names.to_vec(),
        also: None,
    }
}

/// What a node has of it.
///
/// # Panics
/// It does not answer.
pub async fn found(node: &Node) -> Found {
    let sql = format!("SELECT client, seq, last FROM {TABLE} WHERE run = {RUN}");
    Found::read(&node.name, &client::rows(&node.connect().await, &sql).await)
}
