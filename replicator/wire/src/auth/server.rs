//! Authenticating a client: drives the exchange of the chosen method over its stream.

use std::num::NonZeroU32;
use std::sync::OnceLock;

use aws_lc_rs::hmac;
use bytes::BytesMut;

use super::scram::{
    DEFAULT_ITERATIONS, MECHANISM, MECHANISM_PLUS, ScramError, ScramVerifier, ServerExchange,
    ServerStep,
};
use super::{
    AuthError, ClientIo, Credentials, Verifier, md5_answer, md5_stored, off_reactor, random,
};
use crate::encode::backend as encode;
use crate::frame::AUTH_MESSAGE_LIMIT;
use crate::frontend::{PasswordMessage, SaslInitialResponse, SaslResponse};
use crate::secret::{Secret, constant_time_eq};

/// PostgreSQL's `PG_MAX_SASL_MESSAGE_LENGTH` (auth-sasl.h).
const SASL_MESSAGE_LIMIT: usize = 1024;

/// How a client proves its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// It need not.
    Trust,
    /// It sends the password; refused unless the connection is TLS or a unix socket.
    Cleartext,
    /// It sends an MD5 hash. A user with a SCRAM verifier gets SCRAM instead, as with PostgreSQL's `md5`.
    Md5,
    /// SCRAM-SHA-256, over TLS also -PLUS.
    #[default]
    Scram,
}

/// What a successful exchange tells us about the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// What we can log in to a server with as this user.
    pub credentials: Credentials,
}

/// Authenticates a client. Sends neither `AuthenticationOk` nor an error: the caller does, from the result. `verifier`
/// `None`: the user is not known; the exchange then runs as for a known user and fails at its end. `endpoint_binding`
/// is [`crate::startup::TlsInfo::endpoint_binding`].
///
/// # Errors
/// [`AuthError`]. The caller bounds the time.
pub async fn authenticate_client(
    conn: &mut ClientIo,
    method: Method,
    user: &str,
    verifier: Option<&Verifier>,
    endpoint_binding: Option<&[u8]>,
) -> Result<Proven, AuthError> {
    // Nobody logs in with an empty password, whatever a users file says; PostgreSQL stores none either.
    let verifier = verifier.filter(
        |known| !matches!(known, Verifier::Plain(password) if password.expose().is_empty()),
    );
    let credentials = match (method, verifier) {
        (Method::Trust, _) => Credentials::None,
        (Method::Cleartext, _) => cleartext(conn, user, verifier).await?,
        (Method::Md5, Some(Verifier::Scram(_))) | (Method::Scram, _) => {
            scram(conn, user, verifier, endpoint_binding).await?
        }
        (Method::Md5, _) => md5(conn, user, verifier).await?,
    };
    Ok(Proven { credentials })
}

async fn cleartext(
    conn: &mut ClientIo,
    user: &str,
    verifier: Option<&Verifier>,
) -> Result<Credentials, AuthError> {
    if !conn.stream.is_confidential() {
        return Err(AuthError::protocol(
            "password authentication in clear needs a TLS connection",
        ));
    }
    let mut out = BytesMut::new();
    encode::authentication_cleartext(&mut out);
    conn.send(&out).await?;
    let body = conn.password_message(AUTH_MESSAGE_LIMIT as usize).await?;
    let given = read_password(&body)?;
    let matches = match verifier {
        Some(Verifier::Plain(password)) => *password == given,
        Some(Verifier::Md5(stored)) => {
            constant_time_eq(md5_stored(given.expose(), user).as_bytes(), stored.expose())
        }
        known => {
            // An unknown user costs the same time as one with a SCRAM verifier.
            let known = match known {
                Some(Verifier::Scram(verifier)) => Some(verifier.clone()),
                _ => None,
            };
            let against = known.clone().map_or_else(|| mock_verifier(user), Ok)?;
            let given = given.clone();
            off_reactor(move || against.matches(given.expose())).await? && known.is_some()
        }
    };
    if matches {
        Ok(Credentials::Password(given))
    } else {
        Err(AuthError::Rejected)
    }
}

fn read_password(body: &[u8]) -> Result<Secret, AuthError> {
    let message = PasswordMessage::parse(body)
        .map_err(|_| AuthError::protocol("invalid password packet size"))?;
    // An empty password would match an empty verifier; PostgreSQL refuses it for all methods.
    if message.password.is_empty() {
        return Err(AuthError::Rejected);
    }
    Ok(Secret::new(message.password))
}

async fn md5(
    conn: &mut ClientIo,
    user: &str,
    verifier: Option<&Verifier>,
) -> Result<Credentials, AuthError> {
    let salt = random::<4>()?;
    let mut out = BytesMut::new();
    encode::authentication_md5(&mut out, salt);
    conn.send(&out).await?;
    let body = conn.password_message(AUTH_MESSAGE_LIMIT as usize).await?;
    let given = read_password(&body)?;
    let (stored, credentials) = match verifier {
        Some(Verifier::Md5(stored)) => (stored.clone(), Credentials::Md5Hash(stored.clone())),
        Some(Verifier::Plain(password)) => (
            Secret::new(md5_stored(password.expose(), user)),
            Credentials::Password(password.clone()),
        ),
        Some(Verifier::Scram(_)) | None => {
            return Err(AuthError::Rejected);
        }
    };
    let expected = md5_answer(stored.expose(), salt);
    if constant_time_eq(given.expose(), expected.as_bytes()) {
        Ok(credentials)
    } else {
        Err(AuthError::Rejected)
    }
}

async fn scram(
    conn: &mut ClientIo,
    user: &str,
    verifier: Option<&Verifier>,
    endpoint_binding: Option<&[u8]>,
) -> Result<Credentials, AuthError> {
    let (against, doomed) = match verifier {
        Some(Verifier::Scram(verifier)) => (verifier.clone(), false),
        Some(Verifier::Plain(password)) => {
            let (password, salt) = (password.clone(), mock_salt(user)?);
            let derived = off_reactor(move || {
                ScramVerifier::derive(password.expose(), salt, default_iterations())
            })
            .await?;
            (derived, false)
        }
        Some(Verifier::Md5(_)) | None => (mock_verifier(user)?, true),
    };
    let offered_binding = endpoint_binding
        .filter(|_| conn.stream.is_tls())
        .map(<[u8]>::to_vec);
    let mut out = BytesMut::new();
    match offered_binding {
        Some(_) => encode::authentication_sasl(&mut out, &[MECHANISM_PLUS, MECHANISM]),
        None => encode::authentication_sasl(&mut out, &[MECHANISM]),
    }
    conn.send(&out).await?;

    let body = conn.password_message(SASL_MESSAGE_LIMIT).await?;
    let initial = SaslInitialResponse::parse(&body)
        .map_err(|error| AuthError::protocol(error.to_string()))?;
    let plus = match initial.mechanism {
        name if name == MECHANISM.as_bytes() => false,
        name if name == MECHANISM_PLUS.as_bytes() && offered_binding.is_some() => true,
        _ => {
            return Err(AuthError::protocol(
                "client selected an invalid SASL authentication mechanism",
            ));
        }
    };
    let mut message = match initial.data {
        Some(data) => data.to_vec(),
        None => {
            // The client wants to be asked for its first message.
            challenge(conn, &[]).await?
        }
    };
    let mut exchange =
        ServerExchange::new(against, doomed, offered_binding, plus).map_err(scram_error)?;
    loop {
        match exchange.handle(&message).map_err(scram_error)? {
            ServerStep::Continue(answer) => message = challenge(conn, &answer).await?,
            ServerStep::Done { message, keys } => {
                let mut out = BytesMut::new();
                encode::sasl_final(&mut out, &message)?;
                conn.send(&out).await?;
                return Ok(match verifier {
                    Some(Verifier::Plain(password)) => Credentials::Password(password.clone()),
                    _ => Credentials::ScramKeys(keys),
                });
            }
        }
    }
}

async fn challenge(conn: &mut ClientIo, data: &[u8]) -> Result<Vec<u8>, AuthError> {
    let mut out = BytesMut::new();
    encode::sasl_continue(&mut out, data)?;
    conn.send(&out).await?;
    let body = conn.password_message(SASL_MESSAGE_LIMIT).await?;
    let response =
        SaslResponse::parse(&body).map_err(|error| AuthError::protocol(error.to_string()))?;
    Ok(response.data.to_vec())
}

fn scram_error(error: ScramError) -> AuthError {
    match error {
        ScramError::Rejected => AuthError::Rejected,
        other => AuthError::protocol(other.to_string()),
    }
}

fn default_iterations() -> NonZeroU32 {
    NonZeroU32::new(DEFAULT_ITERATIONS).unwrap_or(NonZeroU32::MIN)
}

/// A salt that is always the same for a user and that nobody outside of this process can compute: a second try must
/// not look different from the first, or one could tell unknown users from known ones.
fn mock_salt(user: &str) -> Result<Vec<u8>, AuthError> {
    static KEY: OnceLock<hmac::Key> = OnceLock::new();
    let key = match KEY.get() {
        Some(key) => key,
        None => {
            let fresh = hmac::Key::new(hmac::HMAC_SHA256, &random::<32>()?);
            KEY.get_or_init(|| fresh)
        }
    };
    let tag = hmac::sign(key, user.as_bytes());
    Ok(tag.as_ref().iter().copied().take(16).collect())
}

/// What an unknown user is checked against. The exchange that uses it is doomed whatever comes.
fn mock_verifier(user: &str) -> Result<ScramVerifier, AuthError> {
    Ok(ScramVerifier {
        iterations: DEFAULT_ITERATIONS,
        salt: mock_salt(user)?,
        stored_key: [0; 32],
        server_key: [0; 32],
    })
}
