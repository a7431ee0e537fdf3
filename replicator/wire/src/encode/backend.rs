//! Messages of a server, by `pgwire`.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::data::{DataRow, FieldDescription, RowDescription};
use pgwire::messages::response::{
    CommandComplete, ErrorResponse, NoticeResponse, ReadyForQuery, TransactionStatus,
};
use pgwire::messages::startup::{
    Authentication, BackendKeyData, NegotiateProtocolVersion, ParameterStatus, SecretKey,
};

use super::{all_or_nothing, invalid};

/// Longest text of one field of an error that we produce.
const ERROR_TEXT_LIMIT: usize = 64 * 1024;

/// OID of the type `text` (`pg_type.dat`).
const TEXT_OID: u32 = 25;

/// An error or notice to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReport {
    /// `ERROR`, `FATAL`, `PANIC`; for notices `WARNING`, `NOTICE`, `DEBUG`, `INFO`, `LOG`.
    pub severity: &'static str,
    /// The SQLSTATE (manual, appendix "PostgreSQL Error Codes").
    pub code: &'static str,
    /// What happened, one line.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// The function of PostgreSQL that reports the same, where drivers go by that.
    pub routine: Option<&'static str>,
}

impl ErrorReport {
    /// An error that ends the session.
    pub fn fatal(code: &'static str, message: impl Into<String>) -> Self {
        Self::new("FATAL", code, message)
    }

    /// An error that ends the statement.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self::new("ERROR", code, message)
    }

    /// A report of any severity.
    pub fn new(severity: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity,
            code,
            message: message.into(),
            detail: None,
            hint: None,
            routine: None,
        }
    }

    /// Adds a detail.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Names the function of PostgreSQL that reports the same.
    #[must_use]
    pub fn with_routine(mut self, routine: &'static str) -> Self {
        self.routine = Some(routine);
        self
    }

    fn fields(&self) -> Vec<(u8, String)> {
        let mut fields = vec![
            (b'S', self.severity.to_owned()),
            (b'V', self.severity.to_owned()),
            (b'C', self.code.to_owned()),
            (b'M', field_text(&self.message)),
        ];
        fields.extend(self.detail.iter().map(|text| (b'D', field_text(text))));
        fields.extend(self.hint.iter().map(|text| (b'H', field_text(text))));
        fields.extend(self.routine.map(|name| (b'R', name.to_owned())));
        fields
    }
}

/// A zero byte would end the field early and make the rest of the message something else.
fn field_text(text: &str) -> String {
    let mut end = text.len().min(ERROR_TEXT_LIMIT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end)
        .unwrap_or_default()
        .replace('\0', "\u{fffd}")
}

fn put(buf: &mut BytesMut, message: &impl Message) -> io::Result<()> {
    all_or_nothing(buf, |buf| message.encode(buf).map_err(io::Error::other))
}

/// For messages whose size is bounded by construction, far below every limit.
fn put_bounded(buf: &mut BytesMut, message: &impl Message) {
    let written = put(buf, message);
    debug_assert!(
        written.is_ok(),
        "a message of bounded size did not fit: {written:?}"
    );
}

fn no_zero_byte(text: &str) -> io::Result<()> {
    if text.contains('\0') {
        return Err(invalid("text with a zero byte"));
    }
    Ok(())
}

/// The client is authenticated.
pub fn authentication_ok(buf: &mut BytesMut) {
    put_bounded(buf, &Authentication::Ok);
}

/// Asks for the password as it is.
pub fn authentication_cleartext(buf: &mut BytesMut) {
    put_bounded(buf, &Authentication::CleartextPassword);
}

/// Asks for the password hashed with `salt`.
pub fn authentication_md5(buf: &mut BytesMut, salt: [u8; 4]) {
    put_bounded(buf, &Authentication::MD5Password(salt.to_vec()));
}

/// Offers SASL mechanisms, best first.
pub fn authentication_sasl(buf: &mut BytesMut, mechanisms: &[&'static str]) {
    let mechanisms = mechanisms.iter().map(|&name| name.to_owned()).collect();
    put_bounded(buf, &Authentication::SASL(mechanisms));
}

/// A SASL challenge.
///
/// # Errors
/// When it is longer than 30,000 bytes.
pub fn sasl_continue(buf: &mut BytesMut, data: &[u8]) -> io::Result<()> {
    put(
        buf,
        &Authentication::SASLContinue(Bytes::copy_from_slice(data)),
    )
}

/// The last message of a SASL exchange.
///
/// # Errors
/// When it is longer than 30,000 bytes.
pub fn sasl_final(buf: &mut BytesMut, data: &[u8]) -> io::Result<()> {
    put(
        buf,
        &Authentication::SASLFinal(Bytes::copy_from_slice(data)),
    )
}

/// Reports the value of a setting.
///
/// # Errors
/// When a text holds a zero byte or both are longer than 30,000 bytes.
pub fn parameter_status(buf: &mut BytesMut, name: &str, value: &str) -> io::Result<()> {
    no_zero_byte(name)?;
    no_zero_byte(value)?;
    put(
        buf,
        &ParameterStatus::new(name.to_owned(), value.to_owned()),
    )
}

/// Gives the client what its cancel requests must carry. `secret` has 4 bytes in protocol 3.0, 4 to 256 in 3.2.
///
/// # Errors
/// When the secret has another length.
pub fn backend_key_data(buf: &mut BytesMut, pid: i32, secret: &[u8]) -> io::Result<()> {
    let key = SecretKey::Bytes(Bytes::copy_from_slice(secret));
    put(buf, &BackendKeyData::new(pid, key))
}

/// Ready for the next query. `status` is `I`, `T` or `E`; any other byte counts as `E`, which makes the client roll
/// back.
pub fn ready_for_query(buf: &mut BytesMut, status: u8) {
    let status = TransactionStatus::try_from(status).unwrap_or(TransactionStatus::Error);
    put_bounded(buf, &ReadyForQuery::new(status));
}

/// Tells the client the newest version we speak (as a whole version number, `3 << 16 | minor`) and which of its
/// options we do not know.
///
/// # Errors
/// When the names are longer than 30,000 bytes or hold a zero byte.
pub fn negotiate_protocol_version<'a>(
    buf: &mut BytesMut,
    newest: i32,
    options: impl IntoIterator<Item = &'a str>,
) -> io::Result<()> {
    let options: Vec<String> = options.into_iter().map(str::to_owned).collect();
    options.iter().try_for_each(|name| no_zero_byte(name))?;
    put(buf, &NegotiateProtocolVersion::new(newest, options))
}

/// An error. Texts are cut at 64 KiB, zero bytes in them are replaced.
pub fn error(buf: &mut BytesMut, report: &ErrorReport) {
    put_bounded(buf, &ErrorResponse::new(report.fields()));
}

/// A notice. Texts are cut at 64 KiB, zero bytes in them are replaced.
pub fn notice(buf: &mut BytesMut, report: &ErrorReport) {
    put_bounded(buf, &NoticeResponse::new(report.fields()));
}

/// Describes rows whose columns are all of type `text` in text form.
///
/// # Errors
/// When a name holds a zero byte or there are too many columns.
pub fn row_description(buf: &mut BytesMut, columns: &[&str]) -> io::Result<()> {
    i16::try_from(columns.len()).map_err(|_| invalid("more columns than a row can have"))?;
    columns.iter().try_for_each(|name| no_zero_byte(name))?;
    let fields = columns
        .iter()
        .map(|&name| FieldDescription::new(name.to_owned(), 0, 0, TEXT_OID, -1, -1, 0))
        .collect();
    put(buf, &RowDescription::new(fields))
}

/// One row in text form; `None` is NULL.
///
/// # Errors
/// When there are too many columns or the row is too large.
pub fn data_row<'a>(
    buf: &mut BytesMut,
    columns: impl IntoIterator<Item = Option<&'a str>>,
) -> io::Result<()> {
    let mut data = BytesMut::new();
    let mut count: i16 = 0;
    for column in columns {
        count = count
            .checked_add(1)
            .ok_or_else(|| invalid("more columns than a row can have"))?;
        match column {
            None => data.put_i32(-1),
            Some(text) => {
                data.put_i32(i32::try_from(text.len()).map_err(|_| invalid("value too large"))?);
                data.put_slice(text.as_bytes());
            }
        }
    }
    put(buf, &DataRow::new(data, count))
}

/// A statement ended, with its command tag.
///
/// # Errors
/// When the tag holds a zero byte or is longer than 30,000 bytes.
pub fn command_complete(buf: &mut BytesMut, tag: &str) -> io::Result<()> {
    no_zero_byte(tag)?;
    put(buf, &CommandComplete::new(tag.to_owned()))
}
