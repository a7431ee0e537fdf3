//! Owns what a node is asked to learn its numbers.

use std::time::Duration;

use tandem_wire::{ConnectError, ConnectionError};

use super::view::{FIRST_USER_OID, Form, Made, Numbering, Type};
use crate::node::Node;

/// Bound of one look.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// What a node has said.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) numbering: Numbering,
    /// As it reports it to clients.
    pub(super) server_version: String,
}

impl Said {
    /// The major version, with which `server_version` begins: `17.2 (Debian 17.2-1)`, `18beta1`.
    pub(super) fn major(&self) -> u32 {
        let version = self.server_version.as_str();
        let end = version.find(|c: char| !c.is_ascii_digit());
        let digits = version.get(..end.unwrap_or(version.len()));
        digits
            .and_then(|digits| digits.parse().ok())
            .unwrap_or(u32::MAX)
    }
}

/// Why a node did not say its numbers.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Query(#[from] ConnectionError),
    #[error("a row is not as expected")]
    Row,
    #[error("no answer within {0} s")]
    Timeout(u64),
}

/// Asks a node. With an empty search path all names have their schemas. What only Tandem or one session can see is left out.
pub(super) async fn read(node: &Node, database: &str) -> Result<Said, ReadError> {
    let params = [
        ("application_name", "tandem identities"),
        ("options", "-c search_path= -c statement_timeout=5s"),
    ];
    let params = params.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let options = node.own_options(database, params.to_vec(), LIMIT);
    let mut connection = tandem_wire::connect(&options).await?;
    let server_version = connection.parameter("server_version").unwrap_or_default();
    let server_version = server_version.to_owned();
    let rows = connection.simple_query(&query()).await?;
    connection.close().await;
    Ok(Said {
        numbering: numbering(&rows)?,
        server_version,
    })
}

fn query() -> String {
    let of_users = format!(
        "oid >= {FIRST_USER_OID} AND n.nspname <> 'tandem' AND n.nspname !~ '^pg_(toast|temp)'"
    );
    format!(
        "SELECT 't', t.oid, t.oid::pg_catalog.regtype::text, CASE
            WHEN t.typtype = 'd' THEN t.typbasetype::text
            WHEN t.typtype = 'c' THEN 'record'
            WHEN t.typsubscript = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc THEN 'array' END
        FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace WHERE t.{of_users}
        UNION ALL
        SELECT 'c', c.oid, c.oid::pg_catalog.regclass::text, NULL
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.{of_users}
        UNION ALL
        SELECT 'f', p.oid, p.oid::pg_catalog.regprocedure::text, NULL
        FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE p.{of_users}
        UNION ALL
        SELECT 'n', n.oid, n.nspname, NULL FROM pg_catalog.pg_namespace n WHERE n.{of_users}"
    )
}

fn numbering(rows: &[Vec<Option<String>>]) -> Result<Numbering, ReadError> {
    let mut found = Numbering::default();
    for row in rows {
        let [Some(catalog), Some(oid), Some(name), detail] = row.as_slice() else {
            return Err(ReadError::Row);
        };
        let oid: u32 = oid.parse().map_err(|_| ReadError::Row)?;
        match catalog.as_str() {
            "c" | "f" | "n" => {
                found.others.insert(format!("{catalog} {name}").into(), oid);
            }
            _ => {
                let made = match detail.as_deref() {
                    None => Made::Plain,
                    Some("record") => Made::Of(Form::Record),
                    Some("array") => Made::Of(Form::Array),
                    Some(base) => Made::Over(base.parse().map_err(|_| ReadError::Row)?),
                };
                found.types.insert(name.as_str().into(), Type { oid, made });
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_is_taken_as_it_is() {
        let row = |row: [&str; 4]| {
            let filled = row.map(|text| (!text.is_empty()).then(|| text.to_owned()));
            filled.to_vec()
        };
        let rows = [
            row(["t", "20000", "public.mood", ""]),
            row(["t", "20001", "public.mood[]", "array"]),
            row(["t", "20002", "public.feeling", "20001"]),
            row(["c", "20003", "public.person", ""]),
            row(["f", "20004", "public.f(public.mood)", ""]),
        ];
        let found = numbering(&rows).expect("as the query gives it");
        let made = |name: &str| found.types.get(name).map(|known| known.made);
        assert_eq!(made("public.mood"), Some(Made::Plain));
        assert_eq!(made("public.mood[]"), Some(Made::Of(Form::Array)));
        assert_eq!(made("public.feeling"), Some(Made::Over(20_001)));
        assert_eq!(found.others.get("c public.person"), Some(&20_003));
        assert_eq!(found.others.get("f public.f(public.mood)"), Some(&20_004));
        assert!(numbering(&[row(["t", "many", "public.mood", ""])]).is_err());
        assert!(numbering(&[vec![None]]).is_err());
    }

    #[test]
    fn the_major_version_is_read_off() {
        for (version, major) in [
            ("15.4", 15),
            ("17.2 (Debian 17.2-1)", 17),
            ("18beta1", 18),
            ("", u32::MAX),
        ] {
            let said = Said {
                numbering: Numbering::default(),
                server_version: version.to_owned(),
            };
            assert_eq!(said.major(), major);
        }
    }
}
