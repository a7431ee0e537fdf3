//! Views of what a client sends. Each borrows from the body of one message and is checked as a whole by `parse`, so
//! that its iterators cannot fail later. Texts are bytes: their encoding is the session's, not always UTF-8.
//!
//! Source of the forms: PostgreSQL manual, "Message Formats" (protocol-message-formats).

use std::fmt;

use crate::reader::{ReadError, Reader};

/// A simple query (`Q`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query<'a> {
    /// The SQL text, one or more statements.
    pub sql: &'a [u8],
}

impl<'a> Query<'a> {
    /// Reads the body of a `Q` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        let sql = reader.cstr()?;
        reader.finish()?;
        Ok(Self { sql })
    }
}

/// Makes a prepared statement (`P`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parse<'a> {
    /// Name of the statement; empty: the unnamed one.
    pub name: &'a [u8],
    /// Its SQL text, one statement.
    pub sql: &'a [u8],
    types: &'a [u8],
}

impl<'a> Parse<'a> {
    /// Reads the body of a `P` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    #[expect(
        clippy::self_named_constructors,
        reason = "every view is made by `parse`; the message is called Parse"
    )]
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        let name = reader.cstr()?;
        let sql = reader.cstr()?;
        let count = reader.u16()?;
        let types = reader.bytes(usize::from(count) * 4)?;
        reader.finish()?;
        Ok(Self { name, sql, types })
    }

    /// The OIDs the client gives for the parameters; 0 leaves a type open.
    pub fn types(&self) -> impl Iterator<Item = u32> + use<'a> {
        let mut reader = Reader::new(self.types);
        std::iter::from_fn(move || reader.u32().ok())
    }
}

/// Makes a portal from a statement and parameter values (`B`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bind<'a> {
    /// Name of the portal; empty: the unnamed one.
    pub portal: &'a [u8],
    /// Name of the statement.
    pub statement: &'a [u8],
    formats: &'a [u8],
    param_count: u16,
    params: &'a [u8],
    result_formats: &'a [u8],
}

impl fmt::Debug for Bind<'_> {
    /// Leaves out the parameter values: they are the user's data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bind")
            .field("portal", &self.portal)
            .field("statement", &self.statement)
            .field("params", &self.param_count)
            .finish_non_exhaustive()
    }
}

impl<'a> Bind<'a> {
    /// Reads the body of a `B` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        let portal = reader.cstr()?;
        let statement = reader.cstr()?;
        let format_count = reader.u16()?;
        let formats = reader.bytes(usize::from(format_count) * 2)?;
        let param_count = reader.u16()?;
        let mut before = reader;
        for _ in 0..param_count {
            reader.value()?;
        }
        let params = before.bytes(before.remaining() - reader.remaining())?;
        let result_count = reader.u16()?;
        let result_formats = reader.bytes(usize::from(result_count) * 2)?;
        reader.finish()?;
        Ok(Self {
            portal,
            statement,
            formats,
            param_count,
            params,
            result_formats,
        })
    }

    /// How many parameters there are.
    pub fn param_count(&self) -> usize {
        self.param_count.into()
    }

    /// The parameter values in order; `None` is NULL.
    pub fn params(&self) -> impl Iterator<Item = Option<&'a [u8]>> + use<'a> {
        let mut reader = Reader::new(self.params);
        std::iter::from_fn(move || reader.value().ok())
    }

    /// The parameter formats as sent: none (all text), one for all, or one for each. 0 text, 1 binary.
    pub fn formats(&self) -> impl Iterator<Item = i16> + use<'a> {
        let mut reader = Reader::new(self.formats);
        std::iter::from_fn(move || reader.i16().ok())
    }

    /// The format of parameter `index` (from 0), with the rule for missing formats applied. A number of formats that
    /// fits no rule is left to the server to refuse: it does so without ending the session.
    pub fn format_of(&self, index: usize) -> i16 {
        let single = self.formats.len() == 2;
        self.formats()
            .nth(if single { 0 } else { index })
            .unwrap_or(0)
    }

    /// The wanted formats of the result columns, as sent.
    pub fn result_formats(&self) -> impl Iterator<Item = i16> + use<'a> {
        let mut reader = Reader::new(self.result_formats);
        std::iter::from_fn(move || reader.i16().ok())
    }
}

/// What [`Describe`] and [`Close`] are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// A prepared statement (`S`).
    Statement(&'a [u8]),
    /// A portal (`P`).
    Portal(&'a [u8]),
}

impl<'a> Target<'a> {
    fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        let kind = reader.u8()?;
        let name = reader.cstr()?;
        reader.finish()?;
        match kind {
            b'S' => Ok(Self::Statement(name)),
            b'P' => Ok(Self::Portal(name)),
            _ => Err(ReadError::Invalid(
                "kind of object: neither statement nor portal",
            )),
        }
    }
}

/// Asks for the description of a statement or portal (`D`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Describe<'a> {
    /// Of what.
    pub target: Target<'a>,
}

impl<'a> Describe<'a> {
    /// Reads the body of a `D` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        Target::parse(body).map(|target| Self { target })
    }
}

/// Closes a statement or portal (`C`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close<'a> {
    /// Which one.
    pub target: Target<'a>,
}

impl<'a> Close<'a> {
    /// Reads the body of a `C` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        Target::parse(body).map(|target| Self { target })
    }
}

/// Runs a portal (`E`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Execute<'a> {
    /// Name of the portal.
    pub portal: &'a [u8],
    /// At most so many rows; 0 and below: all.
    pub max_rows: i32,
}

impl<'a> Execute<'a> {
    /// Reads the body of an `E` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        let parsed = Self {
            portal: reader.cstr()?,
            max_rows: reader.i32()?,
        };
        reader.finish()?;
        Ok(parsed)
    }
}

/// A password in clear or hashed with a salt (`p`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PasswordMessage<'a> {
    /// What the client answered.
    pub password: &'a [u8],
}

impl fmt::Debug for PasswordMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordMessage(***)")
    }
}

impl<'a> PasswordMessage<'a> {
    /// Reads the body of a `p` message that answers a password request.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        let password = reader.cstr()?;
        reader.finish()?;
        Ok(Self { password })
    }
}

/// The choice of a SASL mechanism and its first message (`p`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SaslInitialResponse<'a> {
    /// Name of the mechanism.
    pub mechanism: &'a [u8],
    /// The first message; `None`: the client sends it when asked.
    pub data: Option<&'a [u8]>,
}

impl fmt::Debug for SaslInitialResponse<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SaslInitialResponse")
            .field("mechanism", &self.mechanism.escape_ascii().to_string())
            .finish_non_exhaustive()
    }
}

impl<'a> SaslInitialResponse<'a> {
    /// Reads the body of a `p` message that answers an offer of SASL mechanisms.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        let mechanism = reader.cstr()?;
        let data = reader.value()?;
        reader.finish()?;
        Ok(Self { mechanism, data })
    }
}

/// A further message of a SASL exchange (`p`): its whole body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SaslResponse<'a> {
    /// The message of the mechanism.
    pub data: &'a [u8],
}

impl fmt::Debug for SaslResponse<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SaslResponse(***)")
    }
}

impl<'a> SaslResponse<'a> {
    /// Takes the body of a `p` message that answers a SASL challenge.
    ///
    /// # Errors
    /// [`ReadError`] when the body is empty.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        if body.is_empty() {
            return Err(ReadError::Invalid("empty SASL message"));
        }
        Ok(Self { data: body })
    }
}

/// A call of a function by its OID (`F`), the "Fastpath". Only the head is looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FunctionCall {
    /// OID of the function.
    pub function: u32,
}

impl FunctionCall {
    /// Reads the head of the body of an `F` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is too short for an OID.
    pub fn parse(body: &[u8]) -> Result<Self, ReadError> {
        Ok(Self {
            function: Reader::new(body).u32()?,
        })
    }
}

#[cfg(test)]
mod tests;
