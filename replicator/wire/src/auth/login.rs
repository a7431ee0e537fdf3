//! Logging in to a server: answers its authentication requests from credentials. No I/O.

use std::io;
use std::mem;

use bytes::{Bytes, BytesMut};

use super::scram::{
    ChannelBinding, ClientExchange, ClientSecret, MECHANISM, MECHANISM_PLUS, ScramError,
};
use super::{Credentials, md5_answer, md5_stored, off_reactor};
use crate::backend::{Authentication, Mechanisms};
use crate::encode::frontend as encode;
use crate::reader::ReadError;

/// Why we cannot log in to a server.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The server wants proof and there are no credentials.
    #[error("the server asks for {0} authentication, but no password is configured for this user")]
    NoCredentials(&'static str),
    /// The credentials do not fit the server's method.
    #[error(
        "the server asks for {asked} authentication, which {have} cannot answer; set the user's password again under one password_encryption on all servers"
    )]
    WrongCredentials {
        /// The server's method.
        asked: &'static str,
        /// What we have.
        have: &'static str,
    },
    /// The server wants the password in clear over a connection that others may read.
    #[error(
        "the server asks for the password in clear over an unencrypted connection: refused; use sslmode=require or scram-sha-256 in its pg_hba.conf"
    )]
    CleartextRefused,
    /// The server offers only SASL mechanisms we do not speak.
    #[error("the server offers no SASL mechanism that we know (SCRAM-SHA-256)")]
    NoMechanism,
    /// The server asks for a method we do not speak, by its number in the protocol.
    #[error("the server asks for authentication method {0}, which is not supported")]
    Unsupported(i32),
    /// The SCRAM exchange failed.
    #[error(transparent)]
    Scram(#[from] ScramError),
    /// The server's message does not fit the state of the exchange, such as success before it proved itself.
    #[error("authentication message of the server out of order")]
    OutOfOrder,
    /// A malformed message.
    #[error("malformed authentication message of the server: {0}")]
    Malformed(#[from] ReadError),
    /// An answer cannot be sent: a password with a zero byte, or no thread to compute on.
    #[error("cannot answer the server's authentication request: {0}")]
    Answer(#[from] io::Error),
}

#[derive(Debug)]
enum State {
    /// Nothing was asked yet.
    Start,
    /// A password or hash was sent.
    PasswordSent,
    /// The first SCRAM message was sent.
    ScramFirst(Box<ClientExchange>),
    /// The proof was sent.
    ScramFinal(Box<ClientExchange>),
    /// The server has proven itself.
    ScramVerified,
    /// The server let us in.
    Done,
    /// An error ended it.
    Failed,
}

/// The authentication part of a login, from the first request to `AuthenticationOk`.
#[derive(Debug)]
pub struct Login {
    user: String,
    credentials: Credentials,
    confidential: bool,
    tls: bool,
    endpoint_binding: Option<Vec<u8>>,
    state: State,
}

impl Login {
    /// A login as `user`. `confidential`: nobody can read along (TLS or unix socket). `tls`: the connection is TLS;
    /// `endpoint_binding` then holds the `tls-server-end-point` data of the server's certificate where it has any.
    pub fn new(
        user: impl Into<String>,
        credentials: Credentials,
        confidential: bool,
        tls: bool,
        endpoint_binding: Option<Vec<u8>>,
    ) -> Self {
        Self {
            user: user.into(),
            credentials,
            confidential,
            tls,
            endpoint_binding,
            state: State::Start,
        }
    }

    /// Whether the server has said that we are in.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Takes the body of an authentication message and appends the answer to `out`. A SCRAM challenge costs
    /// milliseconds where we have a password: not for an async thread.
    ///
    /// # Errors
    /// [`LoginError`]; the login has then failed.
    pub fn handle(&mut self, body: &[u8], out: &mut BytesMut) -> Result<(), LoginError> {
        let request = Authentication::parse(body);
        let state = mem::replace(&mut self.state, State::Failed);
        self.state = match (state, request?) {
            (State::Start | State::PasswordSent | State::ScramVerified, Authentication::Ok) => {
                State::Done
            }
            (State::Start, Authentication::CleartextPassword) => {
                self.cleartext(out)?;
                State::PasswordSent
            }
            (State::Start, Authentication::Md5Password { salt }) => {
                self.md5(salt, out)?;
                State::PasswordSent
            }
            (State::Start, Authentication::Sasl(mechanisms)) => {
                let exchange = self.begin_scram(mechanisms)?;
                encode::sasl_initial(out, exchange.mechanism(), &exchange.first())?;
                State::ScramFirst(exchange)
            }
            (State::ScramFirst(mut exchange), Authentication::SaslContinue(message)) => {
                encode::sasl_response(out, &exchange.handle_server_first(message)?)?;
                State::ScramFinal(exchange)
            }
            (State::ScramFinal(mut exchange), Authentication::SaslFinal(message)) => {
                exchange.handle_server_final(message)?;
                State::ScramVerified
            }
            (State::Start, Authentication::Unsupported(method)) => {
                return Err(LoginError::Unsupported(method));
            }
            _ => return Err(LoginError::OutOfOrder),
        };
        Ok(())
    }

    fn cleartext(&self, out: &mut BytesMut) -> Result<(), LoginError> {
        let asked = "cleartext password";
        if !self.confidential {
            return Err(LoginError::CleartextRefused);
        }
        match &self.credentials {
            Credentials::Password(password) => Ok(encode::password(out, password.expose())?),
            other => Err(cannot(asked, other)),
        }
    }

    fn md5(&self, salt: [u8; 4], out: &mut BytesMut) -> Result<(), LoginError> {
        let answer = match &self.credentials {
            Credentials::Password(password) => {
                md5_answer(md5_stored(password.expose(), &self.user).as_bytes(), salt)
            }
            Credentials::Md5Hash(stored) => md5_answer(stored.expose(), salt),
            other => return Err(cannot("md5", other)),
        };
        Ok(encode::password(out, answer.as_bytes())?)
    }

    fn begin_scram(&self, mut offered: Mechanisms<'_>) -> Result<Box<ClientExchange>, LoginError> {
        let secret = match &self.credentials {
            Credentials::Password(password) => ClientSecret::Password(password.clone()),
            Credentials::ScramKeys(keys) => ClientSecret::Keys(keys.clone()),
            other => return Err(cannot("scram-sha-256", other)),
        };
        let plus = offered
            .clone()
            .any(|name| name == MECHANISM_PLUS.as_bytes());
        let plain = offered.any(|name| name == MECHANISM.as_bytes());
        let binding = match (&self.endpoint_binding, plus) {
            (Some(data), true) if self.tls => ChannelBinding::EndPoint(data.clone()),
            _ if !plain => return Err(LoginError::NoMechanism),
            // 'y' tells a server that does offer -PLUS that somebody in between took it out of the list.
            (Some(_), false) if self.tls => ChannelBinding::NotOffered,
            _ => ChannelBinding::Unsupported,
        };
        Ok(Box::new(ClientExchange::new(secret, binding)?))
    }
}

fn cannot(asked: &'static str, credentials: &Credentials) -> LoginError {
    let have = match credentials {
        Credentials::None => return LoginError::NoCredentials(asked),
        Credentials::Password(_) => "a password",
        Credentials::Md5Hash(_) => "an md5 hash",
        Credentials::ScramKeys(_) => "a SCRAM key",
    };
    LoginError::WrongCredentials { asked, have }
}

/// [`Login::handle`]; off the async threads where it derives a key from a password. Takes and returns the login because
/// the work may move to another thread.
pub(crate) async fn drive_login_step(
    mut login: Login,
    body: Bytes,
) -> Result<(Login, BytesMut), LoginError> {
    let mut out = BytesMut::new();
    let derives = matches!(
        (&login.state, &login.credentials),
        (State::ScramFirst(_), Credentials::Password(_))
    );
    if !derives {
        return login.handle(&body, &mut out).map(|()| (login, out));
    }
    off_reactor(move || login.handle(&body, &mut out).map(|()| (login, out))).await?
}
