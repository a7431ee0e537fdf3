//! PostgreSQL's own regression tests as a corpus: every statement is read without a panic, and what is called a read runs on
//! a server that lets nothing else through.
//!
//! The files are not part of this project: `TANDEM_TEST_REGRESS_DIR` says where they are (`src/test/regress/sql` of
//! PostgreSQL's source).

use std::{collections::BTreeMap, env, fs, path::PathBuf};

use tandem_routing_rules::{
    Rules,
    lex::{Lexer, split},
    state::Status,
    statement::{Class, Plan},
};
use tandem_tests::Cluster;

use crate::wire::Connection;

/// Where the files are.
const DIR: &str = "TANDEM_TEST_REGRESS_DIR";
/// What changes more than the database, or makes the server lose patience with its client.
const NOT_RUN: [&str; 7] = [
    "pg_terminate_backend",
    "alter system",
    "session_timeout",
    "transaction_timeout",
    "create database",
    "drop database",
    "alter database",
];
/// So many statements may end their connection, or take longer than anybody waits.
const LOST_MAX: usize = 20;

/// What came of the files.
#[derive(Debug, Default)]
struct Counts {
    files: usize,
    /// Files of which the end is no SQL any more, for psql's variables and commands.
    cut: usize,
    classes: BTreeMap<&'static str, usize>,
    reads_run: usize,
    /// By SQLSTATE: what reads were refused for.
    reads_refused: BTreeMap<String, usize>,
    writes_run: usize,
    /// Statements that the server did not answer.
    lost: Vec<String>,
}

/// The files, those that make tables for the others first.
fn files() -> Option<Vec<PathBuf>> {
    let dir = env::var_os(DIR)?;
    let entries = fs::read_dir(dir).expect("the directory of the regression tests");
    let paths = entries.map(|entry| entry.expect("a file").path());
    let mut files: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .collect();
    files.sort_by_key(|path| {
        let is_setup = path.file_stem().is_some_and(|name| name == "test_setup");
        (!is_setup, path.clone())
    });
    Some(files)
}

/// A file without what psql keeps for itself: its commands, and the rows of COPY.
fn without_commands(text: &str) -> String {
    let (mut kept, mut in_copy) = (String::new(), false);
    for line in text.lines() {
        if in_copy {
            in_copy = line.trim() != "\\.";
            continue;
        }
        let lower = line.to_ascii_lowercase();
        in_copy = lower.contains("from stdin") && line.trim_end().ends_with(';');
        match line.find("\\g").or_else(|| line.find("\\bind")) {
            Some(at) if !line.starts_with('\\') => {
                kept.push_str(line.get(..at).unwrap_or_default());
                kept.push(';');
            }
            _ if line.starts_with('\\') => {}
            _ => kept.push_str(line),
        }
        kept.push('\n');
    }
    kept
}

/// What is called a read and writes.
type Wrong = Vec<String>;

fn login(port: u16) -> Connection {
    let mut connection = Connection::login(port);
    connection.query(b"SET statement_timeout = '5s'; SET lock_timeout = '1s'");
    connection
}

fn run(port: u16, text: &str, counts: &mut Counts, wrong: &mut Wrong) {
    let mut connection = login(port);
    let mut status = Some(Status::Idle);
    for statement in split(text.as_bytes(), true) {
        let Ok(statement) = statement else {
            counts.cut += 1;
            return;
        };
        let sql = String::from_utf8_lossy(statement.text);
        let class = Plan::of(&sql, &Rules::default(), None, &["public"]).class;
        *counts.classes.entry(class.word()).or_default() += 1;
        let lower = sql.to_ascii_lowercase();
        if NOT_RUN.iter().any(|word| lower.contains(word)) {
            continue;
        }
        // Inside a transaction it cannot be taken back that nothing may be written.
        let is_judged = class == Class::Read && status == Some(Status::Idle);
        if is_judged {
            connection.query(b"SET default_transaction_read_only = on");
        }
        let Ok(answer) = connection.try_query(statement.text) else {
            counts.lost.push(sql.into_owned());
            connection = login(port);
            status = Some(Status::Idle);
            continue;
        };
        status = answer.status;
        if is_judged {
            connection.query(b"SET default_transaction_read_only = off");
            counts.reads_run += 1;
            if let Some((code, message)) = answer.error {
                if code == "25006" {
                    wrong.push(format!("{sql}: {message}"));
                }
                *counts.reads_refused.entry(code).or_default() += 1;
            }
        } else {
            counts.writes_run += usize::from(class == Class::Write);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_s_regression_tests_are_read_and_what_is_called_a_read_writes_nothing() {
    let Some(files) = files() else {
        eprintln!("SKIP: {DIR} does not say where PostgreSQL's src/test/regress/sql is");
        return;
    };
    let cluster = Cluster::of(&[18]).without_daemon().start().await;
    let port = cluster.nodes[0].port();
    let running = tokio::task::spawn_blocking(move || {
        let (mut counts, mut wrong) = (Counts::default(), Wrong::new());
        for file in files {
            let bytes = fs::read(&file).expect("the file");
            // As they are, too: what is no SQL is no reason for a panic.
            for conforming in [true, false] {
                assert!(Lexer::new(&bytes, conforming).count() > 0);
                assert!(split(&bytes, conforming).count() > 0);
            }
            let text = without_commands(&String::from_utf8_lossy(&bytes));
            let before = wrong.len();
            run(port, &text, &mut counts, &mut wrong);
            counts.files += 1;
            for found in wrong.iter_mut().skip(before) {
                *found = format!("{}: {found}", file.display());
            }
        }
        (counts, wrong)
    });
    let (counts, wrong) = running.await.expect("no panic");
    eprintln!("{counts:#?}");
    assert!(wrong.is_empty(), "{}: {wrong:#?}", wrong.len());
    assert!(counts.lost.len() <= LOST_MAX, "{}", counts.lost.len());
    assert!(counts.files > 0 && counts.reads_run > 0 && counts.writes_run > 0);
}
