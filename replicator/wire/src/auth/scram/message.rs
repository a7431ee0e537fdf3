//! Parsers of the four SCRAM messages. Pure; strict where PostgreSQL is strict (auth-scram.c, fe-auth-scram.c).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::{KEY_LEN, ScramError};

/// Comma-separated attributes, `name=value`.
struct Attributes<'a> {
    /// `None` when the last one was taken.
    rest: Option<&'a [u8]>,
}

impl<'a> Attributes<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self { rest: Some(text) }
    }

    fn next(&mut self) -> Result<Option<(u8, &'a [u8])>, ScramError> {
        let Some(rest) = self.rest else {
            return Ok(None);
        };
        let [name, b'=', text @ ..] = rest else {
            return Err(ScramError::Malformed("attribute expected"));
        };
        if !name.is_ascii_alphabetic() {
            return Err(ScramError::Malformed("invalid attribute name"));
        }
        let (value, rest) = split_at_comma(text);
        self.rest = rest;
        Ok(Some((*name, value)))
    }

    fn expect(&mut self, name: u8) -> Result<&'a [u8], ScramError> {
        match self.next()? {
            Some((found, value)) if found == name => Ok(value),
            _ => Err(ScramError::Malformed("another attribute expected")),
        }
    }

    /// Extensions that may follow are read over, not used.
    fn skip_rest(&mut self) -> Result<(), ScramError> {
        while self.next()?.is_some() {}
        Ok(())
    }

    fn end(&self) -> Result<(), ScramError> {
        match self.rest {
            None => Ok(()),
            Some(_) => Err(ScramError::Malformed("garbage at the end")),
        }
    }
}

fn split_at_comma(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    let mut parts = text.splitn(2, |&byte| byte == b',');
    (parts.next().unwrap_or_default(), parts.next())
}

fn no_zero_byte(message: &[u8]) -> Result<(), ScramError> {
    if message.is_empty() || message.contains(&0) {
        return Err(ScramError::Malformed("empty or with a zero byte"));
    }
    Ok(())
}

fn printable(nonce: &[u8]) -> Result<&[u8], ScramError> {
    if nonce.is_empty() || !nonce.iter().all(u8::is_ascii_graphic) {
        return Err(ScramError::Malformed(
            "nonce with other than printable characters",
        ));
    }
    Ok(nonce)
}

fn key(text: &[u8]) -> Result<[u8; KEY_LEN], ScramError> {
    BASE64
        .decode(text)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(ScramError::Malformed("proof or signature of a wrong form"))
}

/// An iteration count: decimal digits, at least 1.
pub(super) fn iterations(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 18 {
        return None;
    }
    text.iter()
        .try_fold(0_u64, |sum, byte| {
            byte.is_ascii_digit()
                .then(|| sum * 10 + u64::from(byte - b'0'))
        })
        .filter(|&count| count > 0)
}

/// What the client says about channel binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BindingFlag<'a> {
    /// `n`: it cannot.
    No,
    /// `y`: it can, but thinks that the server cannot.
    ServerCannot,
    /// `p=`: it uses this type.
    Type(&'a [u8]),
}

/// The client's first message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientFirst<'a> {
    /// The head up to and with the second comma; comes back inside of the channel binding of the last message.
    pub gs2_header: &'a [u8],
    /// What it says about channel binding.
    pub binding: BindingFlag<'a>,
    /// The message without the head.
    pub bare: &'a [u8],
    /// The client's nonce.
    pub nonce: &'a [u8],
}

impl<'a> ClientFirst<'a> {
    /// Reads the message.
    ///
    /// # Errors
    /// [`ScramError::Malformed`].
    pub fn parse(message: &'a [u8]) -> Result<Self, ScramError> {
        no_zero_byte(message)?;
        let (flag, rest) = split_at_comma(message);
        let binding = match flag {
            b"n" => BindingFlag::No,
            b"y" => BindingFlag::ServerCannot,
            [b'p', b'=', name @ ..] if !name.is_empty() => BindingFlag::Type(name),
            _ => return Err(ScramError::Malformed("unexpected channel binding flag")),
        };
        let rest = rest.ok_or(ScramError::Malformed("comma expected"))?;
        let (identity, bare) = split_at_comma(rest);
        if !identity.is_empty() {
            return Err(ScramError::Malformed(
                "client uses an authorization identity, which is not supported",
            ));
        }
        let bare = bare.ok_or(ScramError::Malformed("comma expected"))?;
        let gs2_header = message
            .get(..message.len() - bare.len())
            .unwrap_or_default();
        if bare.starts_with(b"m=") {
            return Err(ScramError::Malformed(
                "client requires an extension, which is not supported",
            ));
        }
        let mut attributes = Attributes::new(bare);
        attributes.expect(b'n')?;
        let nonce = printable(attributes.expect(b'r')?)?;
        attributes.skip_rest()?;
        Ok(Self {
            gs2_header,
            binding,
            bare,
            nonce,
        })
    }
}

/// The server's first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFirst<'a> {
    /// The client's nonce and the server's.
    pub nonce: &'a [u8],
    /// The salt, decoded.
    pub salt: Vec<u8>,
    /// Iterations, at least 1; not bounded here.
    pub iterations: u64,
}

impl<'a> ServerFirst<'a> {
    /// Reads the message.
    ///
    /// # Errors
    /// [`ScramError::Malformed`].
    pub fn parse(message: &'a [u8]) -> Result<Self, ScramError> {
        no_zero_byte(message)?;
        let mut attributes = Attributes::new(message);
        let nonce = printable(attributes.expect(b'r')?)?;
        let salt = BASE64
            .decode(attributes.expect(b's')?)
            .ok()
            .filter(|salt| !salt.is_empty())
            .ok_or(ScramError::Malformed("salt of a wrong form"))?;
        let iterations = iterations(attributes.expect(b'i')?)
            .ok_or(ScramError::Malformed("iteration count of a wrong form"))?;
        attributes.end()?;
        Ok(Self {
            nonce,
            salt,
            iterations,
        })
    }
}

/// The client's last message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFinal<'a> {
    /// The channel binding as sent, in base64.
    pub channel_binding: &'a [u8],
    /// Both nonces.
    pub nonce: &'a [u8],
    /// The proof.
    pub proof: [u8; KEY_LEN],
    /// The message up to the proof, which the proof covers.
    pub without_proof: &'a [u8],
}

impl<'a> ClientFinal<'a> {
    /// Reads the message.
    ///
    /// # Errors
    /// [`ScramError::Malformed`].
    pub fn parse(message: &'a [u8]) -> Result<Self, ScramError> {
        no_zero_byte(message)?;
        let mut attributes = Attributes::new(message);
        let channel_binding = attributes.expect(b'c')?;
        let nonce = printable(attributes.expect(b'r')?)?;
        loop {
            let left = attributes.rest.map_or(0, <[u8]>::len);
            match attributes.next()? {
                Some((b'p', proof)) => {
                    attributes.end()?;
                    // The proof is the last attribute; before it stands a comma that the proof does not cover.
                    let covered = message.len().saturating_sub(left + 1);
                    return Ok(Self {
                        channel_binding,
                        nonce,
                        proof: key(proof)?,
                        without_proof: message.get(..covered).unwrap_or_default(),
                    });
                }
                Some(_) => {}
                None => return Err(ScramError::Malformed("proof missing")),
            }
        }
    }
}

/// The server's last message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerFinal<'a> {
    /// The server's signature.
    Signature([u8; KEY_LEN]),
    /// The server's reason to end the exchange.
    Error(&'a [u8]),
}

impl<'a> ServerFinal<'a> {
    /// Reads the message.
    ///
    /// # Errors
    /// [`ScramError::Malformed`].
    pub fn parse(message: &'a [u8]) -> Result<Self, ScramError> {
        no_zero_byte(message)?;
        let mut attributes = Attributes::new(message);
        let parsed = match attributes.next()? {
            Some((b'e', text)) => Self::Error(text),
            Some((b'v', signature)) => Self::Signature(key(signature)?),
            _ => return Err(ScramError::Malformed("signature or error expected")),
        };
        attributes.end()?;
        Ok(parsed)
    }
}
