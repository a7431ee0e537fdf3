//! Messages of a client, by `postgres_protocol`. What it cannot express (a startup version, cancel keys longer than
//! four bytes) is written here.

use std::io;

use bytes::{BufMut, BytesMut};
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend as raw;

use super::{all_or_nothing, invalid};
use crate::startup::{CANCEL_REQUEST_CODE, MAX_STARTUP_PACKET_LENGTH};

/// The startup message: protocol version as (major, minor) and parameters, `user` among them.
///
/// # Errors
/// When a name or value holds a zero byte, a name is empty, or the packet would be longer than a server takes.
pub fn startup<'a>(
    buf: &mut BytesMut,
    version: (u16, u16),
    params: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> io::Result<()> {
    all_or_nothing(buf, |buf| {
        let mut body = BytesMut::new();
        body.put_u16(version.0);
        body.put_u16(version.1);
        for (name, value) in params {
            if name.is_empty() || name.contains('\0') || value.contains('\0') {
                return Err(invalid(
                    "startup parameter with an empty name or a zero byte",
                ));
            }
            for text in [name, value] {
                body.put_slice(text.as_bytes());
                body.put_u8(0);
            }
        }
        body.put_u8(0);
        let length = u32::try_from(body.len() + 4)
            .ok()
            .filter(|_| body.len() <= MAX_STARTUP_PACKET_LENGTH)
            .ok_or_else(|| invalid("startup parameters are longer than 10,000 bytes"))?;
        buf.put_u32(length);
        buf.put_slice(&body);
        Ok(())
    })
}

/// A simple query.
///
/// # Errors
/// When the text holds a zero byte or is too large.
pub fn query(buf: &mut BytesMut, sql: &str) -> io::Result<()> {
    all_or_nothing(buf, |buf| raw::query(sql, buf))
}

/// Prepares a statement. `name` empty: the unnamed one. `types`: OIDs of the parameters, 0 leaves one open.
///
/// # Errors
/// When a text holds a zero byte or the message is too large.
pub fn parse(
    buf: &mut BytesMut,
    name: &str,
    sql: &str,
    types: impl IntoIterator<Item = u32>,
) -> io::Result<()> {
    all_or_nothing(buf, |buf| raw::parse(name, sql, types, buf))
}

/// Binds parameters to a statement: all parameters and all result columns in text form, `None` is NULL.
///
/// # Errors
/// When a name holds a zero byte, there are more than 65,535 parameters, or the message is too large.
pub fn bind_text<'a>(
    buf: &mut BytesMut,
    portal: &str,
    statement: &str,
    params: impl IntoIterator<Item = Option<&'a [u8]>>,
) -> io::Result<()> {
    all_or_nothing(buf, |buf| {
        raw::bind(
            portal,
            statement,
            [],
            params,
            |param, buf| {
                Ok(match param {
                    None => IsNull::Yes,
                    Some(value) => {
                        buf.put_slice(value);
                        IsNull::No
                    }
                })
            },
            [],
            buf,
        )
        .map_err(|error| match error {
            raw::BindError::Serialization(error) => error,
            raw::BindError::Conversion(error) => io::Error::other(error),
        })
    })
}

/// Runs a portal. `max_rows` 0: all rows.
///
/// # Errors
/// When the name holds a zero byte.
pub fn execute(buf: &mut BytesMut, portal: &str, max_rows: i32) -> io::Result<()> {
    all_or_nothing(buf, |buf| raw::execute(portal, max_rows, buf))
}

/// Asks for the parameters and columns of a statement.
///
/// # Errors
/// When the name holds a zero byte.
pub fn describe_statement(buf: &mut BytesMut, name: &str) -> io::Result<()> {
    all_or_nothing(buf, |buf| raw::describe(b'S', name, buf))
}

/// Asks for the columns of a portal.
///
/// # Errors
/// When the name holds a zero byte.
pub fn describe_portal(buf: &mut BytesMut, name: &str) -> io::Result<()> {
    all_or_nothing(buf, |buf| raw::describe(b'P', name, buf))
}

/// Closes a statement.
///
/// # Errors
/// When the name holds a zero byte.
pub fn close_statement(buf: &mut BytesMut, name: &str) -> io::Result<()> {
    all_or_nothing(buf, |buf| raw::close(b'S', name, buf))
}

/// Closes a portal.
///
/// # Errors
/// When the name holds a zero byte.
pub fn close_portal(buf: &mut BytesMut, name: &str) -> io::Result<()> {
    all_or_nothing(buf, |buf| raw::close(b'P', name, buf))
}

/// Ends a batch of the extended protocol.
pub fn sync(buf: &mut BytesMut) {
    raw::sync(buf);
}

/// Asks the server to send what it has, without ending the batch.
pub fn flush(buf: &mut BytesMut) {
    raw::flush(buf);
}

/// Ends the session.
pub fn terminate(buf: &mut BytesMut) {
    raw::terminate(buf);
}

/// A piece of COPY data.
///
/// # Errors
/// When the piece is too large.
pub fn copy_data(buf: &mut BytesMut, data: &[u8]) -> io::Result<()> {
    raw::CopyData::new(data).map(|message| message.write(buf))
}

/// Ends a COPY.
pub fn copy_done(buf: &mut BytesMut) {
    raw::copy_done(buf);
}

/// Aborts a COPY with a reason.
///
/// # Errors
/// When the reason holds a zero byte.
pub fn copy_fail(buf: &mut BytesMut, reason: &str) -> io::Result<()> {
    all_or_nothing(buf, |buf| raw::copy_fail(reason, buf))
}

/// Answers a password request.
///
/// # Errors
/// When the password holds a zero byte.
pub fn password(buf: &mut BytesMut, password: &[u8]) -> io::Result<()> {
    all_or_nothing(buf, |buf| raw::password_message(password, buf))
}

/// Chooses a SASL mechanism and sends its first message.
///
/// # Errors
/// When the name holds a zero byte or the message is too large.
pub fn sasl_initial(buf: &mut BytesMut, mechanism: &str, data: &[u8]) -> io::Result<()> {
    all_or_nothing(buf, |buf| raw::sasl_initial_response(mechanism, data, buf))
}

/// Answers a SASL challenge.
///
/// # Errors
/// When the message is too large.
pub fn sasl_response(buf: &mut BytesMut, data: &[u8]) -> io::Result<()> {
    all_or_nothing(buf, |buf| raw::sasl_response(data, buf))
}

/// Asks whether the server speaks TLS.
pub fn ssl_request(buf: &mut BytesMut) {
    raw::ssl_request(buf);
}

/// Asks to cancel what a session runs. `secret` has 4 to 256 bytes.
///
/// # Errors
/// When the secret has another length.
pub fn cancel_request(buf: &mut BytesMut, pid: i32, secret: &[u8]) -> io::Result<()> {
    let length = u32::try_from(12 + secret.len())
        .ok()
        .filter(|_| (4..=256).contains(&secret.len()))
        .ok_or_else(|| invalid("a cancel key has 4 to 256 bytes"))?;
    buf.put_u32(length);
    buf.put_u32(CANCEL_REQUEST_CODE);
    buf.put_i32(pid);
    buf.put_slice(secret);
    Ok(())
}
