//! Cleans up after a test whose process was killed: waits for its end, then sweeps its directory.

use std::path::Path;

fn main() {
    if let Some(dir) = std::env::args_os().nth(1) {
        tandem_tests::scratch::sweep_when_dead(Path::new(&dir));
    }
}
