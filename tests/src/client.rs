//! Owns connections of tests: to a node or to the proxy, over tokio-postgres.

use std::time::Duration;

use tokio_postgres::{Client, Error, NoTls, SimpleQueryMessage};

/// How long a login may take.
const LOGIN_LIMIT: Duration = Duration::from_secs(20);

/// Connects to 127.0.0.1 without TLS. The connection ends when the client is dropped.
///
/// # Errors
/// The server refuses, or is not there.
///
/// # Panics
/// It does not answer in time.
pub async fn connect(
    port: u16,
    user: &str,
    password: Option<&str>,
    database: &str,
) -> Result<Client, Error> {
    connect_with(&config(port, user, password, database)).await
}

/// What [`connect`] connects with.
#[must_use]
pub fn config(
    port: u16,
    user: &str,
    password: Option<&str>,
    database: &str,
) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(port)
        .user(user)
        .dbname(database);
    if let Some(password) = password {
        config.password(password);
    }
    config
}

/// Connects with all that `config` says, without TLS.
///
/// # Errors
/// The server refuses, or is not there.
///
/// # Panics
/// It does not answer in time.
pub async fn connect_with(config: &tokio_postgres::Config) -> Result<Client, Error> {
    let (client, connection) = tokio::time::timeout(LOGIN_LIMIT, config.connect(NoTls))
        .await
        .expect("a login is answered in time")?;
    // Its end is reported by the client's next call.
    tokio::spawn(connection);
    Ok(client)
}

/// The SQLSTATE of an error, or why it has none.
#[must_use]
pub fn sqlstate(error: &Error) -> String {
    error.code().map_or_else(
        || format!("no SQLSTATE: {error:?}"),
        |code| code.code().to_owned(),
    )
}

/// The rows of a query as text.
///
/// # Errors
/// The server refuses it.
pub async fn try_rows(client: &Client, sql: &str) -> Result<Vec<Vec<Option<String>>>, Error> {
    let messages = client.simple_query(sql).await?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(
            (0..row.len())
                .map(|index| row.get(index).map(str::to_owned))
                .collect(),
        ),
        _ => None,
    });
    Ok(rows.collect())
}

/// The rows of a query as text.
///
/// # Panics
/// The server refuses it.
pub async fn rows(client: &Client, sql: &str) -> Vec<Vec<Option<String>>> {
    try_rows(client, sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {}", describe(&error)))
}

/// The first column of the first row of a query; NULL and no row are both empty.
///
/// # Panics
/// The server refuses it.
pub async fn value(client: &Client, sql: &str) -> String {
    rows(client, sql)
        .await
        .into_iter()
        .next()
        .and_then(|row| row.into_iter().next())
        .flatten()
        .unwrap_or_default()
}

/// Runs statements.
///
/// # Panics
/// The server refuses one.
pub async fn execute(client: &Client, sql: &str) {
    client
        .batch_execute(sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {}", describe(&error)));
}

/// The server's own words, which `Display` leaves out.
#[must_use]
pub fn describe(error: &Error) -> String {
    error.as_db_error().map_or_else(
        || format!("{error:?}"),
        |db| format!("{} {}", db.code().code(), db.message()),
    )
}
