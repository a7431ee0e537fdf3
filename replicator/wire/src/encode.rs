//! Writers of messages into a buffer. A writer that fails leaves the buffer as it was, so that no half message is
//! ever sent.

use std::io;

use bytes::BytesMut;

pub mod backend;
pub mod frontend;

pub use backend::ErrorReport;

/// Runs a writer; takes back what it wrote when it fails.
fn all_or_nothing(
    buf: &mut BytesMut,
    write: impl FnOnce(&mut BytesMut) -> io::Result<()>,
) -> io::Result<()> {
    let before = buf.len();
    let result = write(buf);
    if result.is_err() {
        buf.truncate(before);
    }
    result
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests;
