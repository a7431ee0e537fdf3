//! The client side of an exchange.

use std::fmt;
use std::mem;
use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::message::{ServerFinal, ServerFirst};
use super::{
    ClientKeys, MAX_ITERATIONS, MECHANISM, MECHANISM_PLUS, ScramError, hmac_sha256, nonce, sha256,
    xor,
};
use crate::secret::{Secret, constant_time_eq};

/// Longest text taken from a server that refuses.
const ERROR_TEXT_LIMIT: usize = 256;

/// What the client proves itself with.
#[derive(Clone)]
pub enum ClientSecret {
    /// The password.
    Password(Secret),
    /// Keys from an earlier exchange. They fit a server whose verifier has the same salt and iteration count.
    Keys(ClientKeys),
}

impl fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientSecret(***)")
    }
}

/// What the client can and the server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelBinding {
    /// We cannot: no TLS, or a certificate without a defined binding.
    Unsupported,
    /// We can, the server did not offer it.
    NotOffered,
    /// Bind to the server's certificate: its `tls-server-end-point` data. Selects the -PLUS mechanism.
    EndPoint(Vec<u8>),
}

impl ChannelBinding {
    fn gs2_header(&self) -> &'static str {
        match self {
            Self::Unsupported => "n,,",
            Self::NotOffered => "y,,",
            Self::EndPoint(_) => "p=tls-server-end-point,,",
        }
    }
}

enum State {
    ServerFirst,
    ServerFinal { signature: [u8; 32] },
    Ended,
}

/// One exchange with a server: send [`ClientExchange::first`], then what [`ClientExchange::handle_server_first`]
/// answers, and trust the server only after [`ClientExchange::handle_server_final`].
pub struct ClientExchange {
    secret: ClientSecret,
    binding: ChannelBinding,
    bare: String,
    own_nonce: String,
    max_iterations: u32,
    state: State,
}

impl fmt::Debug for ClientExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientExchange")
            .field("mechanism", &self.mechanism())
            .finish_non_exhaustive()
    }
}

impl ClientExchange {
    /// Begins an exchange; at most [`MAX_ITERATIONS`] are computed.
    ///
    /// # Errors
    /// [`ScramError::Random`].
    pub fn new(secret: ClientSecret, binding: ChannelBinding) -> Result<Self, ScramError> {
        Ok(Self::with_nonce(secret, binding, "", nonce()?))
    }

    pub(super) fn with_nonce(
        secret: ClientSecret,
        binding: ChannelBinding,
        user: &str,
        own_nonce: String,
    ) -> Self {
        Self {
            secret,
            binding,
            bare: format!("n={user},r={own_nonce}"),
            own_nonce,
            max_iterations: MAX_ITERATIONS,
            state: State::ServerFirst,
        }
    }

    /// Sets another bound on the iterations.
    #[must_use]
    pub fn max_iterations(mut self, cap: u32) -> Self {
        self.max_iterations = cap;
        self
    }

    /// The mechanism to name to the server.
    pub fn mechanism(&self) -> &'static str {
        match self.binding {
            ChannelBinding::EndPoint(_) => MECHANISM_PLUS,
            ChannelBinding::Unsupported | ChannelBinding::NotOffered => MECHANISM,
        }
    }

    /// The first message.
    pub fn first(&self) -> Vec<u8> {
        format!("{}{}", self.binding.gs2_header(), self.bare).into_bytes()
    }

    /// Takes the server's challenge and answers it. With a password this computes all iterations: milliseconds, not
    /// for an async thread.
    ///
    /// # Errors
    /// [`ScramError`]; the exchange has then ended.
    pub fn handle_server_first(&mut self, message: &[u8]) -> Result<Vec<u8>, ScramError> {
        let State::ServerFirst = mem::replace(&mut self.state, State::Ended) else {
            return Err(ScramError::OutOfOrder);
        };
        let first = ServerFirst::parse(message)?;
        let extended = first
            .nonce
            .strip_prefix(self.own_nonce.as_bytes())
            .is_some_and(|server_part| !server_part.is_empty());
        if !extended {
            return Err(ScramError::Malformed(
                "the server's nonce does not continue ours",
            ));
        }
        let iterations = u32::try_from(first.iterations)
            .ok()
            .and_then(NonZeroU32::new)
            .filter(|count| count.get() <= self.max_iterations)
            .ok_or(ScramError::TooManyIterations {
                asked: first.iterations,
                cap: self.max_iterations,
            })?;
        let keys = match &self.secret {
            ClientSecret::Password(password) => {
                ClientKeys::derive(password.expose(), &first.salt, iterations)
            }
            ClientSecret::Keys(keys) => keys.clone(),
        };

        let mut bound = self.binding.gs2_header().as_bytes().to_vec();
        if let ChannelBinding::EndPoint(data) = &self.binding {
            bound.extend(data);
        }
        let mut answer = format!("c={},r=", BASE64.encode(bound)).into_bytes();
        answer.extend(first.nonce);

        let auth_message: [&[u8]; 5] = [self.bare.as_bytes(), b",", message, b",", &answer];
        let proof = xor(
            &keys.client_key,
            &hmac_sha256(&sha256(&keys.client_key), &auth_message),
        );
        self.state = State::ServerFinal {
            signature: hmac_sha256(&keys.server_key, &auth_message),
        };
        answer.extend(format!(",p={}", BASE64.encode(proof)).bytes());
        Ok(answer)
    }

    /// Takes the server's last message and checks that the server knows the password too.
    ///
    /// # Errors
    /// [`ScramError`]; then the server must not be trusted.
    pub fn handle_server_final(&mut self, message: &[u8]) -> Result<(), ScramError> {
        let State::ServerFinal { signature } = mem::replace(&mut self.state, State::Ended) else {
            return Err(ScramError::OutOfOrder);
        };
        match ServerFinal::parse(message)? {
            ServerFinal::Error(text) => {
                let text = text.get(..ERROR_TEXT_LIMIT).unwrap_or(text);
                Err(ScramError::ServerError(text.escape_ascii().to_string()))
            }
            ServerFinal::Signature(theirs) if constant_time_eq(&theirs, &signature) => Ok(()),
            ServerFinal::Signature(_) => Err(ScramError::ServerSignature),
        }
    }
}
