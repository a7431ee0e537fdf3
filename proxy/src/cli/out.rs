//! What a command says to its user, on standard output.

use std::io::{self, Write};

/// Writes `text` and a newline to standard output, and flushes.
///
/// A reader who went away (`tandem status | head -1`) is no error.
///
/// # Errors
/// Whatever else keeps standard output from being written, such as a full disk.
pub fn line(text: &str) -> io::Result<()> {
    write_line(&mut io::stdout().lock(), text)
}

fn write_line(output: &mut impl Write, text: &str) -> io::Result<()> {
    match writeln!(output, "{text}").and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_who_went_away_is_no_error_and_a_full_disk_is() {
        assert!(write_line(&mut Failing(io::ErrorKind::BrokenPipe), "x").is_ok());
        assert!(write_line(&mut Failing(io::ErrorKind::StorageFull), "x").is_err());
        let mut written = Vec::new();
        write_line(&mut written, "x").unwrap();
        assert_eq!(written, b"x\n");
    }
}
