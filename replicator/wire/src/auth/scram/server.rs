//! The server side of an exchange.

use std::mem;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::message::{BindingFlag, ClientFinal, ClientFirst};
use super::{ClientKeys, ScramError, ScramVerifier, hmac_sha256, nonce, sha256, xor};
use crate::secret::constant_time_eq;

/// What follows from a client's message.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerStep {
    /// Send this as challenge and wait for the answer.
    Continue(Vec<u8>),
    /// The client has proven itself: send this as the last message.
    Done {
        /// The last message.
        message: Vec<u8>,
        /// The client's keys, recovered from its proof.
        keys: ClientKeys,
    },
}

#[derive(Debug)]
enum State {
    ClientFirst,
    ClientFinal {
        /// The client's head and the server's channel binding data, in base64.
        channel_binding: String,
        /// Both nonces.
        nonce: Vec<u8>,
        /// The bare first messages of client and server with the comma between.
        first_messages: Vec<u8>,
    },
    Ended,
}

/// One exchange with a client. It moves from the client's first message to its last and ends there, or at the first
/// error.
#[derive(Debug)]
pub struct ServerExchange {
    verifier: ScramVerifier,
    /// The user is not known: everything runs as usual and fails at the end, so that nobody can find out which users
    /// exist ("mock authentication" in auth-scram.c).
    doomed: bool,
    /// The binding data of our certificate, where the -PLUS mechanism was offered.
    offered_binding: Option<Vec<u8>>,
    /// Whether the client chose -PLUS.
    plus: bool,
    own_nonce: String,
    state: State,
}

impl ServerExchange {
    /// An exchange against a stored verifier. `offered_binding` is our `tls-server-end-point` data where -PLUS was
    /// offered to the client; `plus` says whether the client chose it. `doomed`: fail at the end whatever the proof.
    ///
    /// # Errors
    /// [`ScramError::Random`].
    pub fn new(
        verifier: ScramVerifier,
        doomed: bool,
        offered_binding: Option<Vec<u8>>,
        plus: bool,
    ) -> Result<Self, ScramError> {
        Ok(Self::with_nonce(
            verifier,
            doomed,
            offered_binding,
            plus,
            nonce()?,
        ))
    }

    pub(super) fn with_nonce(
        verifier: ScramVerifier,
        doomed: bool,
        offered_binding: Option<Vec<u8>>,
        plus: bool,
        own_nonce: String,
    ) -> Self {
        Self {
            verifier,
            doomed,
            offered_binding,
            plus,
            own_nonce,
            state: State::ClientFirst,
        }
    }

    /// Takes the client's next message.
    ///
    /// # Errors
    /// [`ScramError`]; the exchange has then ended and takes no further message.
    pub fn handle(&mut self, message: &[u8]) -> Result<ServerStep, ScramError> {
        match mem::replace(&mut self.state, State::Ended) {
            State::ClientFirst => self.client_first(message),
            State::ClientFinal {
                channel_binding,
                nonce,
                first_messages,
            } => self.client_final(message, &channel_binding, &nonce, &first_messages),
            State::Ended => Err(ScramError::OutOfOrder),
        }
    }

    fn client_first(&mut self, message: &[u8]) -> Result<ServerStep, ScramError> {
        let first = ClientFirst::parse(message)?;
        let mut bound = first.gs2_header.to_vec();
        match (first.binding, self.plus, &self.offered_binding) {
            (BindingFlag::Type(b"tls-server-end-point"), true, Some(data)) => bound.extend(data),
            (BindingFlag::Type(_), true, _) => {
                return Err(ScramError::ChannelBinding(
                    "unsupported channel binding type",
                ));
            }
            (BindingFlag::Type(_), false, _) => {
                return Err(ScramError::ChannelBinding(
                    "the client selected SCRAM-SHA-256 without channel binding, but its message includes binding data",
                ));
            }
            (_, true, _) => {
                return Err(ScramError::ChannelBinding(
                    "the client selected SCRAM-SHA-256-PLUS, but its message does not include binding data",
                ));
            }
            (BindingFlag::ServerCannot, false, Some(_)) => {
                return Err(ScramError::ChannelBinding(
                    "the client thinks the server does not support channel binding, but it was offered",
                ));
            }
            (BindingFlag::No | BindingFlag::ServerCannot, false, _) => {}
        }
        let mut nonce = first.nonce.to_vec();
        nonce.extend(self.own_nonce.as_bytes());

        let mut answer = b"r=".to_vec();
        answer.extend(&nonce);
        answer.extend(
            format!(
                ",s={},i={}",
                BASE64.encode(&self.verifier.salt),
                self.verifier.iterations
            )
            .bytes(),
        );
        let mut first_messages = first.bare.to_vec();
        first_messages.push(b',');
        first_messages.extend(&answer);
        self.state = State::ClientFinal {
            channel_binding: BASE64.encode(bound),
            nonce,
            first_messages,
        };
        Ok(ServerStep::Continue(answer))
    }

    fn client_final(
        &self,
        message: &[u8],
        channel_binding: &str,
        nonce: &[u8],
        first_messages: &[u8],
    ) -> Result<ServerStep, ScramError> {
        let last = ClientFinal::parse(message)?;
        if !constant_time_eq(last.channel_binding, channel_binding.as_bytes()) {
            return Err(ScramError::ChannelBinding(
                "the client's binding data are not those of this connection",
            ));
        }
        if !constant_time_eq(last.nonce, nonce) {
            return Err(ScramError::Malformed("nonce does not match"));
        }
        let auth_message: [&[u8]; 3] = [first_messages, b",", last.without_proof];
        let signature = hmac_sha256(&self.verifier.stored_key, &auth_message);
        let client_key = xor(&last.proof, &signature);
        let proven = constant_time_eq(&sha256(&client_key), &self.verifier.stored_key);
        if !proven || self.doomed {
            return Err(ScramError::Rejected);
        }
        let server_signature = hmac_sha256(&self.verifier.server_key, &auth_message);
        Ok(ServerStep::Done {
            message: format!("v={}", BASE64.encode(server_signature)).into_bytes(),
            keys: ClientKeys {
                client_key,
                server_key: self.verifier.server_key,
            },
        })
    }
}
