//! Owns `auth_query`: the operator's statement that returns a user's secret.

use std::sync::Mutex;

use tandem_wire::Secret;

use super::{Lookup, LookupError, control::Control};

/// The statement, as configured, and the form of it that runs.
#[derive(Debug)]
pub(crate) struct AuthQuery {
    configured: String,
    /// Fixed once a node has told how many columns the statement returns.
    wrapped: Mutex<Option<String>>,
}

impl AuthQuery {
    /// A statement with the user as `$1` that returns (user, secret) or (user, secret, valid until).
    pub(crate) fn new(configured: &str) -> AuthQuery {
        let configured = configured.trim().trim_end_matches(';').to_owned();
        AuthQuery {
            configured,
            wrapped: Mutex::new(None),
        }
    }

    /// Asks one node after the other until one answers.
    pub(crate) async fn lookup(
        &self,
        control: &Control,
        candidates: &[usize],
        user: &str,
    ) -> Result<Lookup, LookupError> {
        let mut failures = Vec::new();
        for node in candidates {
            match self.ask(control, *node, user).await {
                Ok(lookup) => return Ok(lookup),
                Err(error) => {
                    let name = control.nodes().get(*node).map_or("?", |node| node.name());
                    tracing::warn!(node = name, %error, "auth_query failed on this node");
                    failures.push(format!("{name}: {error}"));
                }
            }
        }
        Err(LookupError::NoAnswer(failures.join("; ")))
    }

    async fn ask(&self, control: &Control, node: usize, user: &str) -> Result<Lookup, QueryError> {
        let known = self
            .wrapped
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone();
        let sql = match known {
            Some(sql) => sql,
            None => {
                let columns = control.columns(node, &self.configured).await?;
                let sql = wrap(&self.configured, columns).ok_or(QueryError::Columns(columns))?;
                *self
                    .wrapped
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(sql.clone());
                sql
            }
        };
        let rows = control.query(node, &sql, &[&user]).await?;
        let mut rows = rows.iter();
        let (Some(row), more) = (rows.next(), rows.next()) else {
            return Ok(Lookup::Unknown);
        };
        if more.is_some() {
            return Err(QueryError::SeveralRows);
        }
        let text = |column| {
            row.try_get::<_, Option<String>>(column)
                .map_err(QueryError::row)
        };
        // Whoever the statement found must be who asked: nobody logs in as somebody else.
        if text(0)?.as_deref() != Some(user) {
            return Err(QueryError::OtherUser);
        }
        if row.try_get::<_, bool>(2).map_err(QueryError::row)? {
            return Ok(Lookup::Expired);
        }
        Ok(text(1)?.map_or(Lookup::NoPassword, |secret| {
            Lookup::Secret(Secret::new(secret))
        }))
    }
}

/// Wraps the statement so that types do not matter: (user text, secret text, expired boolean).
fn wrap(sql: &str, columns: usize) -> Option<String> {
    let (names, expired) = match columns {
        2 => ("name, secret", "false"),
        3 => (
            "name, secret, until",
            "coalesce(until::pg_catalog.timestamptz <= pg_catalog.now(), false)",
        ),
        _ => return None,
    };
    Some(format!(
        "SELECT name::pg_catalog.text, secret::pg_catalog.text, {expired} FROM ({sql}\n) AS answer({names}) LIMIT 2"
    ))
}

/// Why the statement gave no usable answer.
#[derive(Debug, thiserror::Error)]
enum QueryError {
    #[error("{0}")]
    Control(#[from] super::control::ControlError),
    #[error(
        "auth_query must return (user, secret) or (user, secret, valid until); it returns {0} columns"
    )]
    Columns(usize),
    #[error("auth_query returned more than one row for a user")]
    SeveralRows,
    #[error("auth_query returned another user than it was asked for")]
    OtherUser,
}

impl QueryError {
    fn row(error: tokio_postgres::Error) -> QueryError {
        QueryError::Control(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statement_is_wrapped_by_its_number_of_columns() {
        let two = wrap(
            "SELECT usename, passwd FROM pg_shadow WHERE usename=$1 -- x",
            2,
        )
        .expect("two");
        assert!(
            two.contains("-- x\n) AS answer(name, secret)"),
            "a trailing comment does no harm: {two}"
        );
        assert!(
            wrap("q", 3)
                .expect("three")
                .contains("until::pg_catalog.timestamptz <=")
        );
        assert_eq!(wrap("q", 1), None);
        assert_eq!(wrap("q", 4), None);
    }

    #[test]
    fn a_trailing_semicolon_is_taken_off() {
        assert_eq!(AuthQuery::new(" SELECT 1, 2 ; ").configured, "SELECT 1, 2 ");
    }
}
