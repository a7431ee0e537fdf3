//! Owns what a new node gets before the cluster starts: roles, the database, `--init` files, pgbench's tables.
//!
//! All of it runs while `track_commit_timestamp` is off, so that these rows have no version: they count as older than
//! any write, and are equal on all nodes (PostgreSQL: `pg_xact_commit_timestamp` of such a row is NULL).

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::AtomicBool,
    time::Duration,
};

use tandem_wire::{Secret, auth::ScramVerifier};
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::process::{run_interruptible, scrub_environment};

/// The role and password that applications use in a dev cluster.
pub(crate) const APP: &str = "app";

/// Databases that a cluster cannot be made for: PostgreSQL's own, and the name of the admin console.
const RESERVED: [&str; 4] = ["postgres", "template0", "template1", "tandem"];

/// PostgreSQL's own default (`scram_iterations`).
const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).unwrap();

/// How long one `--init` file or pgbench's loading may take.
const LOAD_LIMIT: Duration = Duration::from_secs(3600);

/// How long a login on loopback may take.
const LOGIN_LIMIT: Duration = Duration::from_secs(20);

/// Why a node could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// `--database` names a database that is not the user's.
    #[error("--database {0}: this name is taken by PostgreSQL or by Tandem's console")]
    ReservedDatabase(String),
    /// A statement of ours failed.
    #[error("node {node}: {what} failed: {problem}")]
    Statement {
        /// The node.
        node: String,
        /// What was being done.
        what: &'static str,
        /// What the server or the connection said.
        problem: String,
    },
    /// A client program is nowhere to be found.
    #[error(
        "--{option} needs \"{program}\", which is neither with the server's programs nor in PATH (on Debian: apt-get install postgresql-client)"
    )]
    NoProgram {
        /// Which option asked for it.
        option: &'static str,
        /// The program.
        program: &'static str,
    },
    /// A client program failed.
    #[error("node {node}: {program} failed{}:\n{problem}", .file.as_ref().map(|file| format!(" on {}", file.display())).unwrap_or_default())]
    Program {
        /// The node.
        node: String,
        /// `psql` or `pgbench`.
        program: &'static str,
        /// The `--init` file, for psql.
        file: Option<PathBuf>,
        /// The last that it said.
        problem: String,
    },
    /// After `--init` the nodes differ.
    #[error(
        "the --init files gave {table} other rows on {node} than on {first}: they must do the same on every node \
         (no random(), gen_random_uuid() or now(); give the values, or setseed())"
    )]
    Differs {
        /// The table.
        table: String,
        /// The node that differs.
        node: String,
        /// From which node.
        first: String,
    },
    /// A password could not be made.
    #[error("cannot make a password: {0}")]
    Password(String),
}

/// Verifiers as `pg_authid` stores them; the same text goes to every node, so that they are equal byte for byte.
pub(super) struct Verifiers {
    tandem: Secret,
    app: Secret,
}

impl Verifiers {
    /// Derives them with a new salt each.
    pub(super) fn new(tandem_password: &str) -> Result<Self, SetupError> {
        let verifier = |password: &str| {
            let salt = ScramVerifier::random_salt()
                .map_err(|error| SetupError::Password(error.to_string()))?;
            Ok(ScramVerifier::derive(password.as_bytes(), salt, ITERATIONS).to_text())
        };
        Ok(Self {
            tandem: verifier(tandem_password)?,
            app: verifier(APP)?,
        })
    }
}

/// A password of 128 random bits, in hex.
pub(super) fn random_password() -> Result<String, SetupError> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| SetupError::Password("the system gives no random bytes".to_owned()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Refuses names that are not the user's to use.
pub(super) fn check_database(name: &str) -> Result<(), SetupError> {
    if name.is_empty() || RESERVED.contains(&name) {
        return Err(SetupError::ReservedDatabase(name.to_owned()));
    }
    Ok(())
}

/// One node under way to be set up.
pub(super) struct NewNode<'a> {
    pub(super) name: &'a str,
    pub(super) port: u16,
    pub(super) database: &'a str,
    /// Set when the user wants to stop: running programs are then killed.
    pub(super) interrupt: &'a AtomicBool,
}

impl NewNode<'_> {
    /// Makes roles `tandem` (superuser: this is a dev cluster) and `app`, and the database, owned by `app`.
    pub(super) async fn make_roles(&self, verifiers: &Verifiers) -> Result<(), SetupError> {
        let statements = [
            format!(
                "CREATE ROLE tandem SUPERUSER REPLICATION LOGIN PASSWORD {}",
                secret_literal(&verifiers.tandem)
            ),
            format!(
                "CREATE ROLE {APP} LOGIN PASSWORD {}",
                secret_literal(&verifiers.app)
            ),
            format!("CREATE DATABASE {} OWNER {APP}", identifier(self.database)),
        ];
        let client = self.login("postgres").await?;
        for statement in statements {
            // The statement holds a verifier: only what the server says is told.
            client
                .batch_execute(&statement)
                .await
                .map_err(|error| self.statement("making roles and database", &error))?;
        }
        Ok(())
    }

    /// Runs an `--init` file as role `app`, with the given psql; stops at its first error. Blocks.
    pub(super) fn run_file(&self, psql: &Path, file: &Path) -> Result<(), SetupError> {
        let mut command = self.client_command(psql);
        command
            .args([
                "-X",
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                "-o",
                "/dev/null",
                "-d",
                self.database,
                "-f",
            ])
            .arg(file);
        self.run(&mut command, "psql", Some(file))
    }

    /// Makes and fills pgbench's tables as role `app`, with the given pgbench. Blocks.
    pub(super) fn run_pgbench(&self, pgbench: &Path, scale: u32) -> Result<(), SetupError> {
        let mut command = self.client_command(pgbench);
        command.args(["-i", "-q", "-s", &scale.to_string(), self.database]);
        self.run(&mut command, "pgbench", None)
    }

    fn client_command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        scrub_environment(&mut command);
        command
            .env("PGPASSWORD", APP)
            .env("PGCLIENTENCODING", "UTF8")
            .env("PGCONNECT_TIMEOUT", "20");
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", APP]);
        command
    }

    fn run(
        &self,
        command: &mut Command,
        program: &'static str,
        file: Option<&Path>,
    ) -> Result<(), SetupError> {
        let problem = match run_interruptible(command, LOAD_LIMIT, self.interrupt) {
            Ok(ran) if ran.status.success() => return Ok(()),
            Ok(ran) => ran.tail,
            Err(error) => error.to_string(),
        };
        Err(SetupError::Program {
            node: self.name.to_owned(),
            program,
            file: file.map(Path::to_owned),
            problem,
        })
    }

    /// What every table of the user holds: its number of rows and a sum over the rows' hashes, which knows no order.
    pub(super) async fn fingerprint(&self) -> Result<BTreeMap<String, String>, SetupError> {
        const TABLES: &str = "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class c \
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND c.relpersistence <> 't' \
             AND n.nspname NOT IN ('pg_catalog', 'information_schema')";
        let client = self.login(self.database).await?;
        let rows = async |text: String| {
            let messages = client.simple_query(&text).await;
            messages.map_err(|error| self.statement("comparing the nodes", &error))
        };
        let mut found = BTreeMap::new();
        for table in first_column(&rows(TABLES.to_owned()).await?) {
            let hash = "SELECT count(*) || '/' || coalesce(sum(hashtextextended((tandem_row.*)::text, 0)::numeric), 0)";
            let answer = rows(format!("{hash} FROM {table} AS tandem_row")).await?;
            found.insert(table, first_column(&answer).concat());
        }
        Ok(found)
    }

    async fn login(&self, database: &str) -> Result<tokio_postgres::Client, SetupError> {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.port)
            .user("postgres")
            .dbname(database);
        config
            .application_name("tandem dev")
            .connect_timeout(LOGIN_LIMIT);
        let (client, connection) = tokio::time::timeout(LOGIN_LIMIT, config.connect(NoTls))
            .await
            .map_err(|_| SetupError::Statement {
                node: self.name.to_owned(),
                what: "login",
                problem: format!("no answer within {} s", LOGIN_LIMIT.as_secs()),
            })?
            .map_err(|error| self.statement("login", &error))?;
        // Ends when the client is dropped; its errors also reach the client's calls.
        tokio::spawn(connection);
        Ok(client)
    }

    fn statement(&self, what: &'static str, error: &tokio_postgres::Error) -> SetupError {
        let problem = error
            .as_db_error()
            .map_or_else(|| error.to_string(), |db| db.message().to_owned());
        SetupError::Statement {
            node: self.name.to_owned(),
            what,
            problem,
        }
    }
}

/// Compares what the nodes hold; names the first table that differs.
pub(super) fn compare(found: &[(String, BTreeMap<String, String>)]) -> Result<(), SetupError> {
    let Some(((first, expected), others)) = found.split_first() else {
        return Ok(());
    };
    for (node, tables) in others {
        let mut names = expected.keys().chain(tables.keys());
        if let Some(table) = names.find(|table| expected.get(*table) != tables.get(*table)) {
            return Err(SetupError::Differs {
                table: table.clone(),
                node: node.clone(),
                first: first.clone(),
            });
        }
    }
    Ok(())
}

fn first_column(messages: &[SimpleQueryMessage]) -> Vec<String> {
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .collect()
}

/// An SQL string; standard_conforming_strings is on on our own servers.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn secret_literal(secret: &Secret) -> String {
    literal(&String::from_utf8_lossy(secret.expose()))
}

/// A quoted SQL name.
fn identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_strings_are_quoted() {
        assert_eq!(identifier("we\"ird"), "\"we\"\"ird\"");
        assert_eq!(literal("it's"), "'it''s'");
    }

    #[test]
    fn reserved_databases_are_refused() {
        assert!(
            check_database("tandem").is_err()
                && check_database("postgres").is_err()
                && check_database("").is_err()
        );
        assert!(check_database("app").is_ok());
    }

    #[test]
    fn the_table_that_differs_is_named() {
        let tables = |rows: &str| {
            BTreeMap::from([
                ("public.a".to_owned(), "1/5".to_owned()),
                ("public.b".to_owned(), rows.to_owned()),
            ])
        };
        let node = |name: &str, rows: &str| (name.to_owned(), tables(rows));
        compare(&[node("paris", "2/9"), node("delhi", "2/9")]).unwrap();
        let error = compare(&[node("paris", "2/9"), node("delhi", "2/8")])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("public.b") && error.contains("delhi") && error.contains("paris"),
            "{error}"
        );
    }

    #[test]
    fn verifiers_are_scram_and_differ_each_time() {
        let (a, b) = (Verifiers::new("x").unwrap(), Verifiers::new("x").unwrap());
        assert!(
            a.tandem.expose().starts_with(b"SCRAM-SHA-256$4096:")
                && a.app.expose().starts_with(b"SCRAM-SHA-256$4096:")
        );
        assert!(a.tandem.expose() != b.tandem.expose());
        assert_ne!(random_password().unwrap(), random_password().unwrap());
    }
}
