//! The model of a session's settings beside a session: random statements, in simple queries of several and in pipelines,
//! inside and outside of transactions. After each message every setting is what the model says; at the end of each
//! history another connection is given what [`difference`] says, and has the same settings then.
//!
//! What fails says its seed; `TANDEM_TEST_SETTINGS_SEED` begins with that one.

use fastrand::Rng;
use tandem_routing_rules::{
    lex,
    state::{Settings, Status, Value, difference, effects},
};
use tandem_tests::Cluster;

use crate::wire::{Answer, Connection};

/// Histories on each server.
const HISTORIES: u64 = 300;
/// Messages of a history.
const MESSAGES: usize = 40;

/// Each setting, and values for it as SHOW has them. None is serializable: a deferrable transaction would wait for the
/// prepared one.
const VALUES: [(&str, &[&str]); 13] = [
    ("work_mem", &["'2MB'", "'3MB'", "4096"]),
    ("statement_timeout", &["'1min'", "'7min'", "0"]),
    ("DateStyle", &["ISO, DMY", "'German'", "'YMD'"]),
    ("application_name", &["''", "'it''s \"me\"'", "App"]),
    (
        "search_path",
        &["public", "app, \"B c\"", "'x y', 'it''s'", "''"],
    ),
    ("temp_tablespaces", &["''"]),
    ("tandem_test.a", &["'x'", "'it''s \\'", "-1"]),
    ("TANDEM_TEST.b", &["1.50", "on", "Word"]),
    (
        "default_transaction_isolation",
        &["'repeatable read'", "'read uncommitted'"],
    ),
    ("extra_float_digits", &["0", "-1", "+2"]),
    ("standard_conforming_strings", &["off", "on"]),
    ("xmloption", &["document", "'content'"]),
    // A superuser's.
    ("log_min_duration_statement", &["10000", "'5min'"]),
];

/// What is neither a value of [`VALUES`] nor one of [`TRANSACTIONS`].
const OTHERS: [&str; 42] = [
    "RESET ALL",
    "DISCARD ALL",
    "DISCARD PLANS",
    "SET TIME ZONE 'UTC'",
    "SET LOCAL TIME ZONE 'Europe/Paris'",
    "SET TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE",
    "SET TIME ZONE 3",
    "SET TIME ZONE LOCAL",
    "SET timezone = 'europe/oslo'",
    "RESET TIME ZONE",
    "SET NAMES 'latin1'",
    "SET LOCAL NAMES 'UTF8'",
    "SET NAMES DEFAULT",
    "SET SCHEMA 'app'",
    "SET XML OPTION DOCUMENT",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ WRITE, DEFERRABLE",
    "SET LOCAL SESSION CHARACTERISTICS AS TRANSACTION NOT DEFERRABLE",
    "SET ROLE state_a",
    "SET ROLE 'state_b'",
    "SET LOCAL ROLE state_a",
    "SET ROLE NONE",
    "RESET ROLE",
    "SET SESSION AUTHORIZATION state_a",
    "SET SESSION AUTHORIZATION 'state_b'",
    "SET LOCAL SESSION AUTHORIZATION state_a",
    "SET SESSION AUTHORIZATION DEFAULT",
    "RESET SESSION AUTHORIZATION",
    "SET SESSION SESSION AUTHORIZATION DEFAULT",
    "SET LOCAL SESSION AUTHORIZATION DEFAULT",
    "SET SESSION ROLE state_b",
    "SET LOCAL SCHEMA 'x y'",
    "SET TIME ZONE INTERVAL(0) '3:30'",
    "SET LOCAL TIME ZONE -7.5",
    "SET U&\"tandem_test!002ec\" UESCAPE '!' = 0x1f",
    "SET tandem_test.a = +1_0",
    "SET tandem_test.a = -99999999999",
    "SET /* ; */ \"Work_Mem\" -- ;\n = 2048",
    "SELECT set_config('role', 'state_a', true), set_config('Tandem_Test.A', NULL, false)",
    "SELECT 1",
    "SELECT 1/0",
    "SET TRANSACTION READ WRITE",
    "SET nothing.like.this.one TO 'x', 'y'",
];

const TRANSACTIONS: [&str; 21] = [
    "BEGIN",
    "BEGIN",
    "BEGIN",
    "BEGIN",
    "START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
    "COMMIT",
    "COMMIT",
    "END",
    "ROLLBACK",
    "ABORT",
    "COMMIT AND CHAIN",
    "ROLLBACK AND CHAIN",
    "PREPARE TRANSACTION 'state'",
    "SAVEPOINT s1",
    "SAVEPOINT s1",
    "SAVEPOINT s2",
    "SAVEPOINT s2",
    "RELEASE s1",
    "RELEASE SAVEPOINT s2",
    "ROLLBACK TO s1",
    "ROLLBACK TO SAVEPOINT s2",
];

/// Of settings only these two, so that what is done to one meets what was done to it before.
fn statement(rng: &mut Rng, settings: [usize; 2]) -> String {
    match rng.u8(0..100) {
        0..25 => return OTHERS[rng.usize(0..OTHERS.len())].to_owned(),
        25..55 => return TRANSACTIONS[rng.usize(0..TRANSACTIONS.len())].to_owned(),
        _ => {}
    }
    let (name, values) = VALUES[settings[rng.usize(0..2)]];
    let value = values[rng.usize(0..values.len())];
    match rng.u8(0..10) {
        0 => format!("RESET {name}"),
        1 => format!("SET {name} TO DEFAULT"),
        2 => format!("SET LOCAL {name} = DEFAULT"),
        3 => format!("SET {name} FROM CURRENT"),
        4 if value.starts_with('\'') && !value.contains("', ") => {
            let local = rng.bool();
            format!("SELECT pg_catalog.set_config('{name}', {value}, {local})")
        }
        5 if name == "search_path" => {
            format!("SELECT set_config('{name}', 'App, \"B c\"', false)")
        }
        5 | 6 => format!("SET LOCAL {name} TO {value}"),
        7 => format!("SET SESSION {name} = {value}"),
        _ => format!("SET {name} TO {value}"),
    }
}

/// Which `standard_conforming_strings` a statement is read with.
#[derive(Debug, Clone, Copy)]
enum Conforming {
    AtStart(bool),
    Now,
}

/// A session, and what the model says of it.
struct Session {
    connection: Connection,
    settings: Settings,
}

impl Session {
    fn login(port: u16) -> Self {
        let connection = Connection::login(port);
        let mut settings = Settings::default();
        for (name, value) in &connection.parameters {
            settings.reported_at_login(name.as_bytes(), value.as_bytes());
        }
        Self {
            connection,
            settings,
        }
    }

    fn conforming(&self) -> bool {
        *self.settings.value(b"standard_conforming_strings") != Value::Text(b"off".to_vec())
    }

    /// Sends a message and applies what the server says of it.
    fn run(&mut self, message: &str, is_pipeline: bool) {
        let conforming = self.conforming();
        let statements = lex::split(message.as_bytes(), conforming);
        let statements: Result<Vec<_>, _> =
            statements.map(|item| item.map(|item| item.text)).collect();
        let Ok(statements) = statements else {
            // With the other setting it is no SQL.
            let answer = self.connection.query(message.as_bytes());
            let (code, text) = answer.error.clone().expect("the server refuses it too");
            assert_eq!(code, "42601", "{message}: {text}");
            self.applied(&[], &answer, Conforming::AtStart(conforming));
            return;
        };
        let answer = if is_pipeline {
            self.connection.pipeline(&statements)
        } else {
            self.connection.query(message.as_bytes())
        };
        // Of a pipeline each statement is scanned when those before it have run.
        let conforming = if is_pipeline {
            Conforming::Now
        } else {
            Conforming::AtStart(conforming)
        };
        self.applied(&statements, &answer, conforming);
    }

    fn applied(&mut self, statements: &[&[u8]], answer: &Answer, conforming: Conforming) {
        for statement in &statements[..answer.completed] {
            let conforming = match conforming {
                Conforming::AtStart(conforming) => conforming,
                Conforming::Now => self.conforming(),
            };
            let effects = effects(statement, conforming);
            assert_eq!(
                effects.doubt,
                None,
                "{}",
                String::from_utf8_lossy(statement)
            );
            self.settings.apply(&effects);
        }
        if answer.error.is_some() {
            self.settings.failed();
        } else {
            assert_eq!(answer.completed, statements.len());
        }
        for (name, value) in &answer.parameters {
            self.settings.reported(name.as_bytes(), value.as_bytes());
        }
        let status = answer.status.expect("a status");
        self.settings.ready(status).expect("the model's status");
    }

    /// The settings as the server has them.
    fn shown(&mut self) -> Vec<(String, String)> {
        let extra = [
            "timezone",
            "client_encoding",
            "role",
            "session_authorization",
            "default_transaction_read_only",
            "default_transaction_deferrable",
        ];
        let names = VALUES.iter().map(|(name, _)| *name).chain(extra);
        let names: Vec<String> = names.map(str::to_ascii_lowercase).collect();
        let columns: Vec<String> = names
            .iter()
            .map(|name| format!("SELECT current_setting('{name}', true)"))
            .collect();
        let answer = self.connection.query(columns.join(";").as_bytes());
        assert_eq!(answer.error, None);
        let values = answer.values.into_iter();
        let values = values.map(|value| String::from_utf8_lossy(&value).into_owned());
        names.into_iter().zip(values).collect()
    }
}

/// What SHOW makes of the model's value.
fn expected(value: &Value, default: &str) -> String {
    let text = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
    match value {
        Value::Default => default.to_owned(),
        Value::Text(value) => text(value),
        Value::List(names) => {
            let names = names.iter().map(|name| text(name)).map(|name| {
                let is_plain =
                    !name.is_empty() && name.chars().all(|letter| letter.is_ascii_lowercase());
                if is_plain {
                    name
                } else {
                    format!("\"{name}\"")
                }
            });
            names.collect::<Vec<_>>().join(", ")
        }
    }
}

/// What SHOW says of a number without a unit.
fn canonical(name: &str, value: String) -> String {
    match (name, value.as_str()) {
        ("work_mem", "4096") => "4MB".to_owned(),
        ("work_mem", "2048") => "2MB".to_owned(),
        ("log_min_duration_statement", "10000") => "10s".to_owned(),
        _ => value,
    }
}

/// Whether the other connection could be given the session's settings.
fn history(port: u16, seed: u64, other: &mut Session) -> bool {
    let mut rng = Rng::with_seed(seed);
    let mut session = Session::login(port);
    let defaults = session.shown();
    let settings = [0, 1].map(|_| rng.usize(0..VALUES.len()));
    for _ in 0..MESSAGES {
        let count = if rng.bool() { 1 } else { rng.usize(2..4) };
        let statements: Vec<String> = (0..count).map(|_| statement(&mut rng, settings)).collect();
        let message = statements.join("; ");
        let is_pipeline = rng.u8(0..3) == 0;
        session.run(&message, is_pipeline);
        if session.settings.status() == Status::Failed {
            continue;
        }
        for ((name, value), (_, default)) in session.shown().into_iter().zip(&defaults) {
            let model = expected(session.settings.value(name.as_bytes()), default);
            let model = canonical(&name, model);
            assert_eq!(
                value, model,
                "seed {seed}: {name} after {message} (pipeline: {is_pipeline})"
            );
        }
    }
    session.run("ROLLBACK", false);
    // Perhaps there is none.
    Connection::login(port).query(b"ROLLBACK PREPARED 'state'");
    for statement in difference(&other.settings, &session.settings) {
        let statement = String::from_utf8(statement).expect("UTF-8");
        let answer = other.connection.query(statement.as_bytes());
        let refused = answer.error.as_ref().map(|(code, _)| code.as_str());
        if statement.starts_with("SET ROLE") && refused == Some("42501") {
            // A role from a transaction in which the session was somebody else.
            return false;
        }
        assert_eq!(answer.error, None, "seed {seed}: {statement}");
        other.applied(&[statement.as_bytes()], &answer, Conforming::Now);
    }
    assert_eq!(other.shown(), session.shown(), "seed {seed}");
    let rest = difference(&other.settings, &session.settings);
    assert_eq!(rest, Vec::<Vec<u8>>::new(), "seed {seed}");
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_of_a_sessions_settings_is_what_servers_do() {
    let cluster = Cluster::of(&[15, 18])
        .setting("max_prepared_transactions", "10")
        .without_daemon()
        .start()
        .await;
    let first = std::env::var("TANDEM_TEST_SETTINGS_SEED").ok();
    let first: u64 = first.map_or(1, |seed| seed.parse().expect("a number"));
    for node in &cluster.nodes {
        node.execute("CREATE ROLE state_a; CREATE ROLE state_b; GRANT state_b TO state_a")
            .await;
        let port = node.port();
        let histories = tokio::task::spawn_blocking(move || {
            let mut other = Session::login(port);
            let seeds = first..first + HISTORIES;
            let refused = seeds.filter(|&seed| !history(port, seed, &mut other));
            assert!(refused.count() < 5);
        });
        histories.await.expect("the model is right");
    }
}
