//! `tandem import-pgbouncer`: a `tandem.toml` from a `pgbouncer.ini`.

use std::fs::OpenOptions;
use std::io::Write as _;

use super::args::ImportArguments;
use super::{Exit, Failure, out};
use crate::pgbouncer::import;

/// `tandem import-pgbouncer`
pub(super) fn import_pgbouncer(arguments: &ImportArguments) -> Result<Exit, Failure> {
    let imported =
        import(&arguments.file, arguments.database.as_deref()).map_err(Failure::other)?;
    match &arguments.out {
        None => out::line(imported.text.trim_end())?,
        Some(path) => {
            // Whatever is there was perhaps edited by hand.
            let created = OpenOptions::new().write(true).create_new(true).open(path);
            created
                .and_then(|mut file| file.write_all(imported.text.as_bytes()))
                .map_err(|error| {
                    Failure::Refused(format!("cannot write {}: {error}", path.display()))
                })?;
        }
    }
    for note in &imported.notes {
        eprintln!("{note}");
    }
    if let Some(path) = &arguments.out {
        eprintln!(
            "{} is written; {} could not be carried over as it was. Next: tandem check --config {}",
            path.display(),
            match imported.notes.len() {
                1 => "one line".to_owned(),
                lines => format!("{lines} lines"),
            },
            path.display()
        );
    }
    Ok(Exit::Yes)
}
