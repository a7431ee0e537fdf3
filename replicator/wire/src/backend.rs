//! Views of what a server sends. Each borrows from the body of one message and is checked as a whole by `parse`, so
//! that its iterators cannot fail later.
//!
//! Source of the forms: PostgreSQL manual, "Message Formats" (protocol-message-formats).

use std::fmt;

use crate::reader::{ReadError, Reader};

/// Longest text kept of one field of a server's error. A server is not trusted with our memory.
const ERROR_TEXT_LIMIT: usize = 16 * 1024;

/// A request or result of authentication (`R`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication<'a> {
    /// The client is authenticated.
    Ok,
    /// The server wants the password as it is.
    CleartextPassword,
    /// The server wants the password hashed with this salt.
    Md5Password {
        /// Four random bytes.
        salt: [u8; 4],
    },
    /// The server offers SASL mechanisms.
    Sasl(Mechanisms<'a>),
    /// A SASL challenge.
    SaslContinue(&'a [u8]),
    /// The last message of a SASL exchange.
    SaslFinal(&'a [u8]),
    /// A method this crate does not speak (Kerberos, GSSAPI, SSPI), by its number.
    Unsupported(i32),
}

impl<'a> Authentication<'a> {
    /// Reads the body of an `R` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        let parsed = match reader.i32()? {
            0 => Self::Ok,
            3 => Self::CleartextPassword,
            5 => {
                let [a, b, c, d] = *reader.bytes(4)? else {
                    return Err(ReadError::Invalid("salt"));
                };
                Self::Md5Password { salt: [a, b, c, d] }
            }
            10 => {
                let list = reader.rest();
                let mut names = Reader::new(list);
                while !names.cstr()?.is_empty() {}
                names.finish()?;
                Self::Sasl(Mechanisms { rest: list })
            }
            11 => Self::SaslContinue(reader.rest()),
            12 => Self::SaslFinal(reader.rest()),
            other => {
                reader.rest();
                Self::Unsupported(other)
            }
        };
        reader.finish()?;
        Ok(parsed)
    }
}

/// The names of the SASL mechanisms a server offers, best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mechanisms<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Mechanisms<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<Self::Item> {
        let mut reader = Reader::new(self.rest);
        let name = reader.cstr().ok().filter(|name| !name.is_empty())?;
        self.rest = reader.rest();
        Some(name)
    }
}

/// The fields of an error (`E`) or a notice (`N`). No field is taken for granted: a peer may leave out any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorFields<'a> {
    body: &'a [u8],
}

impl<'a> ErrorFields<'a> {
    /// Reads the body of an `E` or `N` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        while reader.u8()? != 0 {
            reader.cstr()?;
        }
        reader.finish()?;
        Ok(Self { body })
    }

    /// All fields as (code, text), in the order sent.
    pub fn fields(&self) -> impl Iterator<Item = (u8, &'a [u8])> + use<'a> {
        let mut reader = Reader::new(self.body);
        std::iter::from_fn(move || {
            let code = reader.u8().ok().filter(|&code| code != 0)?;
            Some((code, reader.cstr().ok()?))
        })
    }

    /// The text of the first field with this code (manual: "Error and Notice Message Fields").
    pub fn get(&self, code: u8) -> Option<&'a [u8]> {
        self.fields()
            .find(|&(found, _)| found == code)
            .map(|(_, text)| text)
    }

    /// The severity: not localized (`V`) where sent, else as sent (`S`).
    pub fn severity(&self) -> Option<&'a [u8]> {
        self.get(b'V').or_else(|| self.get(b'S'))
    }

    /// The SQLSTATE (`C`).
    pub fn code(&self) -> Option<&'a [u8]> {
        self.get(b'C')
    }

    /// The primary message (`M`).
    pub fn message(&self) -> Option<&'a [u8]> {
        self.get(b'M')
    }

    /// Copies the fields that matter. Each text is cut at 16 KiB; what is not UTF-8 is replaced.
    pub fn to_owned(&self) -> ServerError {
        let text = |code| self.get(code).map(bounded_text);
        ServerError {
            severity: self.severity().map(bounded_text).unwrap_or_default(),
            code: text(b'C').unwrap_or_default(),
            message: text(b'M').unwrap_or_default(),
            detail: text(b'D'),
            hint: text(b'H'),
        }
    }
}

fn bounded_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..ERROR_TEXT_LIMIT).unwrap_or(bytes)).into_owned()
}

/// An error a server reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL` or `PANIC`; empty when the server sent none.
    pub severity: String,
    /// The SQLSTATE, five characters; empty when the server sent none.
    pub code: String,
    /// The primary message.
    pub message: String,
    /// More about the problem.
    pub detail: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or = |text: &str, otherwise: &'static str| {
            if text.is_empty() {
                otherwise.to_owned()
            } else {
                text.to_owned()
            }
        };
        write!(
            f,
            "{}: {} (SQLSTATE {})",
            or(&self.severity, "ERROR"),
            or(&self.message, "no message"),
            or(&self.code, "unknown")
        )?;
        if let Some(detail) = &self.detail {
            write!(f, "; detail: {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

/// The value of a setting the server reports (`S`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterStatus<'a> {
    /// Name of the setting.
    pub name: &'a [u8],
    /// Its value now.
    pub value: &'a [u8],
}

impl<'a> ParameterStatus<'a> {
    /// Reads the body of an `S` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        let parsed = Self {
            name: reader.cstr()?,
            value: reader.cstr()?,
        };
        reader.finish()?;
        Ok(parsed)
    }
}

/// What a cancel request must carry (`K`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BackendKeyData<'a> {
    /// The process number of the backend.
    pub pid: i32,
    /// The secret: 4 bytes in protocol 3.0, 4 to 256 in 3.2.
    pub secret: &'a [u8],
}

impl fmt::Debug for BackendKeyData<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendKeyData")
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

impl<'a> BackendKeyData<'a> {
    /// Reads the body of a `K` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed or the secret has not 4 to 256 bytes.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        let pid = reader.i32()?;
        let secret = reader.rest();
        if !(4..=256).contains(&secret.len()) {
            return Err(ReadError::Invalid("length of the cancel key"));
        }
        Ok(Self { pid, secret })
    }
}

/// The server waits for the next query (`Z`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadyForQuery {
    /// `I` idle, `T` in a transaction block, `E` in a failed transaction block.
    pub status: u8,
}

impl ReadyForQuery {
    /// Reads the body of a `Z` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed or the status is none of the three.
    pub fn parse(body: &[u8]) -> Result<Self, ReadError> {
        match body {
            [status @ (b'I' | b'T' | b'E')] => Ok(Self { status: *status }),
            [_] => Err(ReadError::Invalid("transaction status")),
            [] => Err(ReadError::Truncated { needed: 1, left: 0 }),
            [_, more @ ..] => Err(ReadError::TrailingBytes(more.len())),
        }
    }
}

/// A statement ended (`C`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandComplete<'a> {
    /// The command tag, for example `INSERT 0 1`.
    pub tag: &'a [u8],
}

impl<'a> CommandComplete<'a> {
    /// Reads the body of a `C` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        let tag = reader.cstr()?;
        reader.finish()?;
        Ok(Self { tag })
    }
}

/// One column of a [`RowDescription`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// OID of the table it comes from, or 0.
    pub table_oid: u32,
    /// Attribute number in that table, or 0.
    pub attribute: i16,
    /// OID of its type.
    pub type_oid: u32,
    /// `pg_type.typlen`; negative: variable width.
    pub type_size: i16,
    /// `pg_attribute.atttypmod`.
    pub type_modifier: i32,
    /// 0 text, 1 binary.
    pub format: i16,
}

impl<'a> Column<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, ReadError> {
        Ok(Self {
            name: reader.cstr()?,
            table_oid: reader.u32()?,
            attribute: reader.i16()?,
            type_oid: reader.u32()?,
            type_size: reader.i16()?,
            type_modifier: reader.i32()?,
            format: reader.i16()?,
        })
    }
}

/// The columns of the rows to come (`T`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowDescription<'a> {
    count: u16,
    columns: &'a [u8],
}

impl<'a> RowDescription<'a> {
    /// Reads the body of a `T` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        let count = reader.u16()?;
        let mut columns = reader;
        for _ in 0..count {
            Column::read(&mut columns)?;
        }
        columns.finish()?;
        Ok(Self {
            count,
            columns: reader.rest(),
        })
    }

    /// How many columns there are.
    pub fn len(&self) -> usize {
        self.count.into()
    }

    /// Whether the rows have no column.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The columns in order.
    pub fn columns(&self) -> impl Iterator<Item = Column<'a>> + use<'a> {
        let mut reader = Reader::new(self.columns);
        std::iter::from_fn(move || Column::read(&mut reader).ok())
    }
}

/// One row (`D`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataRow<'a> {
    count: u16,
    values: &'a [u8],
}

impl<'a> DataRow<'a> {
    /// Reads the body of a `D` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        let count = reader.u16()?;
        let mut values = reader;
        for _ in 0..count {
            values.value()?;
        }
        values.finish()?;
        Ok(Self {
            count,
            values: reader.rest(),
        })
    }

    /// How many columns the row has.
    pub fn len(&self) -> usize {
        self.count.into()
    }

    /// Whether the row has no column.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The values in order; `None` is NULL.
    pub fn columns(&self) -> impl Iterator<Item = Option<&'a [u8]>> + use<'a> {
        let mut reader = Reader::new(self.values);
        std::iter::from_fn(move || reader.value().ok())
    }
}

/// The server speaks an older minor version or does not know some options (`v`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NegotiateProtocolVersion<'a> {
    /// The newest version the server speaks as a whole version number (`3 << 16 | minor`), which is what PostgreSQL
    /// sends although its manual speaks of the minor version only.
    pub newest: i32,
    options: &'a [u8],
}

impl<'a> NegotiateProtocolVersion<'a> {
    /// Reads the body of a `v` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        let newest = reader.i32()?;
        let count = reader.u32()?;
        let mut options = reader;
        for _ in 0..count {
            options.cstr()?;
        }
        options.finish()?;
        Ok(Self {
            newest,
            options: reader.rest(),
        })
    }

    /// The names of the options the server does not know.
    pub fn unsupported(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut reader = Reader::new(self.options);
        std::iter::from_fn(move || reader.cstr().ok())
    }
}

/// A COPY begins: in (`G`), out (`H`) or both ways (`W`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyResponse<'a> {
    /// 0 text, 1 binary.
    pub format: u8,
    columns: &'a [u8],
}

impl<'a> CopyResponse<'a> {
    /// Reads the body of a `G`, `H` or `W` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        let format = reader.u8()?;
        let count = reader.u16()?;
        let columns = reader.bytes(usize::from(count) * 2)?;
        reader.finish()?;
        Ok(Self { format, columns })
    }

    /// The format of each column.
    pub fn columns(&self) -> impl Iterator<Item = i16> + use<'a> {
        let mut reader = Reader::new(self.columns);
        std::iter::from_fn(move || reader.i16().ok())
    }
}

/// A NOTIFY that arrived (`A`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotificationResponse<'a> {
    /// Process number of the notifying backend.
    pub pid: i32,
    /// Name of the channel.
    pub channel: &'a [u8],
    /// The payload, often empty.
    pub payload: &'a [u8],
}

impl<'a> NotificationResponse<'a> {
    /// Reads the body of an `A` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        let parsed = Self {
            pid: reader.i32()?,
            channel: reader.cstr()?,
            payload: reader.cstr()?,
        };
        reader.finish()?;
        Ok(parsed)
    }
}

/// The parameter types of a prepared statement (`t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterDescription<'a> {
    types: &'a [u8],
}

impl<'a> ParameterDescription<'a> {
    /// Reads the body of a `t` message.
    ///
    /// # Errors
    /// [`ReadError`] when the body is malformed.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(body);
        let count = reader.u16()?;
        let types = reader.bytes(usize::from(count) * 4)?;
        reader.finish()?;
        Ok(Self { types })
    }

    /// The OIDs of the types in order.
    pub fn types(&self) -> impl Iterator<Item = u32> + use<'a> {
        let mut reader = Reader::new(self.types);
        std::iter::from_fn(move || reader.u32().ok())
    }
}

#[cfg(test)]
mod tests;
