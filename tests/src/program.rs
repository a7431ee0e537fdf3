//! Owns running client programs (psql, pgbench) as child processes with a deadline.

use std::{
    ffi::OsStr,
    fs::File,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tandem::dev::install::Install;
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
};

use crate::template::{APP, DATABASE};

/// A program about to be run, as role `app` on database `app` of 127.0.0.1 unless told otherwise. Nothing of the
/// caller's environment reaches it.
#[derive(Debug)]
pub struct Program {
    name: String,
    command: Command,
    input: Option<Vec<u8>>,
}

/// What a program left behind.
#[derive(Debug)]
pub struct Ran {
    name: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Program {
    /// Any program.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(&program);
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("LC_ALL", "C")
            .env("TZ", "UTC");
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGUSER", APP)
            .env("PGPASSWORD", APP)
            .env("PGDATABASE", DATABASE);
        command
            .env("PGCONNECT_TIMEOUT", "20")
            .env("PGCLIENTENCODING", "UTF8")
            .current_dir("/");
        // No password or history file of whoever runs the tests.
        command
            .env("HOME", "/nonexistent")
            .env("PSQL_HISTORY", "/dev/null");
        command.kill_on_drop(true);
        Self {
            name: program.as_ref().to_string_lossy().into_owned(),
            command,
            input: None,
        }
    }

    /// psql of an installation: plain output, stops at the first error, no start-up file.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn psql(install: &Install) -> Self {
        Self::new(install.client_program("psql").expect("psql")).args([
            "-X",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
        ])
    }

    /// pgbench of an installation.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn pgbench(install: &Install) -> Self {
        Self::new(install.client_program("pgbench").expect("pgbench"))
    }

    /// The port to connect to.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.env("PGPORT", &port.to_string())
    }

    /// Sets a variable, such as libpq's.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Further arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// What it reads from standard input; nothing otherwise.
    #[must_use]
    pub fn input(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.input = Some(text.into());
        self
    }

    /// Starts it without waiting; killed when dropped.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn spawn(mut self) -> Child {
        self.command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.command
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// Starts it without waiting, its output going to a file; killed when dropped.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn spawn_to(mut self, log: &Path) -> Child {
        let file = File::create(log).expect("a log file");
        self.command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("the log file"))
            .stderr(file);
        self.command
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// It cannot be started, or takes longer than `limit`.
    pub async fn run(mut self, limit: Duration) -> Ran {
        let stdin = if self.input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        };
        self.command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let feeding = child
            .stdin
            .take()
            .zip(self.input)
            .map(|(mut stdin, input)| {
                // A program that ends early does not read all of it.
                tokio::spawn(async move { stdin.write_all(&input).await.is_ok() })
            });
        let output = tokio::time::timeout(limit, child.wait_with_output()).await;
        let output =
            output.unwrap_or_else(|_| panic!("{} did not end within {limit:?}", self.name));
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        if let Some(feeding) = feeding {
            feeding.abort();
        }
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran {
            name: self.name,
            status: output.status,
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// As [`Self::run`], outside a runtime.
    ///
    /// # Panics
    /// As [`Self::run`].
    #[must_use]
    pub fn run_blocking(self, limit: Duration) -> Ran {
        let ran = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(self.run(limit))
        });
        ran.join().expect("the program runs to its end")
    }
}

impl Ran {
    /// Fails the test unless the program succeeded.
    ///
    /// # Panics
    /// It did not.
    pub fn expect_success(self) -> Self {
        assert!(
            self.status.success(),
            "{} ended with {}:\n{}{}",
            self.name,
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Fails the test unless the program failed.
    ///
    /// # Panics
    /// It succeeded.
    pub fn expect_failure(self) -> Self {
        assert!(
            !self.status.success(),
            "{} succeeded:\n{}{}",
            self.name,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Both outputs, for messages and searches.
    #[must_use]
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}
