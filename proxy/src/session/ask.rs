//! Owns asking a server whether it takes the settings of a login, and what it makes of them.

use std::io;

use bytes::BytesMut;
use tandem_routing_rules::state::{Change, effects};
use tandem_wire::backend::{ErrorFields, ParameterStatus};
use tokio::io::AsyncWriteExt;

use super::{profile::wanted, ready::put_query};
use crate::pool::{Kind, Params, Server};

/// Gives these settings to a server that `reported` this at its login; what it refuses it does not have. `name`s in
/// `settings` are in lower case.
///
/// # Errors
/// The connection ends, or the server cannot be brought back to what it was: then it must not be used again.
pub(super) async fn ask(
    server: &mut Server,
    settings: &Params,
    reported: &[(String, String)],
) -> io::Result<Kind> {
    let statements = server.settings.lead_to(&wanted(settings, reported), 0);
    let mut out = BytesMut::new();
    for statement in &statements {
        // One by one, so that each is judged, and read in the encoding that the one before it has set.
        put_query(&mut out, statement);
    }
    server.statements.unnamed = 0;
    server.settings.version = 0;
    server.stream.write_all(&out).await?;
    server.stream.flush().await?;
    let (mut refused, mut lasting) = (Vec::new(), true);
    for statement in &statements {
        if let Some(code) = answer(server, statement).await? {
            let names = settings_of(statement, settings);
            if names.is_empty() {
                return Err(io::Error::other("a server cannot be cleaned"));
            }
            refused.extend(names);
            lasting &= is_judgement(&code);
        }
    }
    Ok(if refused.is_empty() {
        Kind::Taken(server.settings.reports(reported))
    } else {
        Kind::Refused {
            names: refused.into(),
            lasting,
        }
    })
}

/// Reads the answer to one statement: the SQLSTATE of an error.
async fn answer(server: &mut Server, statement: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut refusal = None;
    loop {
        let (tag, body) = server.message().await?;
        match tag {
            b'S' => {
                let status = ParameterStatus::parse(&body).map_err(io::Error::other)?;
                server.settings.now.reported(status.name, status.value);
            }
            b'E' => {
                let fields = ErrorFields::parse(&body).map_err(io::Error::other)?;
                if fields.severity() != Some(b"ERROR") {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                refusal = Some(fields.code().unwrap_or_default().to_vec());
            }
            b'Z' => {
                let done = refusal.is_none().then_some(statement);
                server.settings.did(done.into_iter());
                return Ok(refusal);
            }
            // The answer to a SELECT, notices.
            b'T' | b'D' | b'C' | b'N' | b'A' => {}
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Which of the settings a statement sets.
fn settings_of(statement: &[u8], settings: &Params) -> Vec<String> {
    let changes = effects(statement, true).changes;
    let set = changes.into_iter().filter_map(|change| match change {
        Change::Set { name, .. } => String::from_utf8(name).ok(),
        Change::FromCurrent { .. } | Change::ResetAll => None,
    });
    set.filter(|set| settings.iter().any(|(name, _)| name == set))
        .collect()
}

/// Whether an error says something about the setting, and not about the moment.
fn is_judgement(code: &[u8]) -> bool {
    [b"0A", b"22", b"42", b"55"].contains(&code.first_chunk().unwrap_or(b"XX"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_settings_and_says_whether_it_lasts() {
        let settings: Params = [("work_mem".to_owned(), "x".to_owned())].into();
        assert_eq!(
            settings_of(b"SET \"work_mem\" TO 'x'", &settings),
            ["work_mem"]
        );
        assert!(settings_of(b"RESET \"timezone\"", &settings).is_empty());
        for code in ["22023", "42704", "42501", "55P02", "0A000"] {
            assert!(is_judgement(code.as_bytes()), "{code}");
        }
        for code in ["57014", "53200", "40001", ""] {
            assert!(!is_judgement(code.as_bytes()), "{code}");
        }
    }
}
