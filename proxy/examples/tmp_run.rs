//! Throw-away runner.
#![allow(clippy::all, missing_docs)]
use tandem::{
    config::Config,
    daemon::{Daemon, Shutdown},
};
fn main() {
    tandem::log::init("info", tandem::log::Format::Text);
    let rt = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    rt.block_on(async {
        let config = match Config::load(std::path::Path::new(&std::env::args().nth(1).unwrap())) {
            Ok(c) => c,
            Err(e) => {
                eprintln!("{e:?}");
                std::process::exit(1)
            }
        };
        let daemon = match Daemon::start(config).await {
            Ok(d) => d,
            Err(e) => {
                eprintln!("error: {e}");
                std::process::exit(1)
            }
        };
        use tokio::signal::unix::{SignalKind, signal};
        let mut term = signal(SignalKind::terminate()).unwrap();
        let mut int = signal(SignalKind::interrupt()).unwrap();
        let how =
            tokio::select! { _ = term.recv() => Shutdown::Smart, _ = int.recv() => Shutdown::Fast };
        daemon.shutdown(how).await;
    });
}
