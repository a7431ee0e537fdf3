//! `tandem diff` and `tandem repair`: asks the daemon, and shows what it finds while it does.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::admin::AdminPort;
use super::args::{DiffArguments, RepairArguments};
use super::{Exit, Failure, out};

/// The daemon tells its progress far more often.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// `tandem diff`
pub(super) async fn diff(arguments: DiffArguments) -> Result<Exit, Failure> {
    let body = json!({ "tables": arguments.tables, "limit": arguments.limit });
    run("/api/diff", &arguments, &body).await
}

/// `tandem repair`
pub(super) async fn repair(arguments: RepairArguments) -> Result<Exit, Failure> {
    let compare = &arguments.compare;
    let body = json!({
        "tables": compare.tables, "limit": compare.limit,
        "source": arguments.source, "dry_run": arguments.dry_run,
    });
    run("/api/repair", compare, &body).await
}

async fn run(
    path: &str,
    arguments: &DiffArguments,
    body: &serde_json::Value,
) -> Result<Exit, Failure> {
    let port = AdminPort::find(&arguments.daemon)?;
    let mut screen = Screen {
        json: arguments.json,
        progress: Bar::new(arguments.progress),
        is_equal: None,
        problem: None,
    };
    let line = |line: &[u8]| screen.take(line);
    let answer = port
        .ask_lines(path, body.to_string(), SILENCE_MAX, line)
        .await?;
    let answer = answer?;
    if answer.status != StatusCode::OK {
        return Err(port.unexpected(&answer).into());
    }
    match (screen.problem, screen.is_equal) {
        (Some(problem), _) => Err(Failure::Other(problem.into())),
        (None, Some(true)) => Ok(Exit::Yes),
        (None, Some(false)) => Ok(Exit::No),
        (None, None) => Err(Failure::Other("the daemon broke off before the end".into())),
    }
}

/// What the daemon tells: `tandem_replicator::Event`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    event: String,
    equal: bool,
    table: String,
    problem: String,
    key: Option<Box<RawValue>>,
    nodes: Option<Box<RawValue>>,
    tables: u64,
    tables_not_compared: u64,
    rows: u64,
    rows_done: u64,
    rows_expected: u64,
    differences: u64,
    listed: u64,
    changing: u64,
    repaired: u64,
    left: u64,
    milliseconds: u64,
}

/// A row as a node has it.
#[derive(Debug, Deserialize)]
struct NodeRow {
    node: String,
    row: Option<Box<RawValue>>,
    version: Option<Version>,
    deleted: Option<Version>,
    copies: Option<i64>,
    action: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Version {
    timestamp: String,
    node: String,
}

struct Screen {
    json: bool,
    progress: Bar,
    is_equal: Option<bool>,
    problem: Option<String>,
}

impl Screen {
    fn take(&mut self, text: &[u8]) -> Result<(), Failure> {
        let line: Line = serde_json::from_slice(text).map_err(Failure::other)?;
        match line.event.as_str() {
            "progress" => return Ok(self.progress.show(&progress(&line))?),
            "failed" => {
                self.progress.clear()?;
                self.problem = Some(line.problem);
                return Ok(());
            }
            "summary" => self.is_equal = Some(line.equal),
            _ => {}
        }
        self.progress.clear()?;
        if self.json {
            return Ok(out::line(&String::from_utf8_lossy(text))?);
        }
        let shown = match line.event.as_str() {
            "table" => format!("{}: not compared: {}", line.table, line.problem),
            "difference" => difference(&line).map_err(Failure::other)?,
            "left" => format!("{}: not mended: {}", title(&line), line.problem),
            "summary" => summary(&line),
            // What a newer daemon tells.
            _ => return Ok(()),
        };
        Ok(out::line(&shown)?)
    }
}

/// Table and key.
fn title(line: &Line) -> String {
    match &line.key {
        Some(key) => format!("{} {}", line.table, printable(key.get())),
        None => line.table.clone(),
    }
}

fn difference(line: &Line) -> Result<String, serde_json::Error> {
    let nodes = line.nodes.as_ref().map_or("[]", |nodes| nodes.get());
    let nodes: Vec<NodeRow> = serde_json::from_str(nodes)?;
    let mut text = title(line);
    let sample = nodes.iter().find_map(|node| node.row.as_ref());
    if let (None, Some(row)) = (&line.key, sample) {
        text.push_str(&format!(" {}", printable(row.get())));
    }
    for node in nodes {
        let version = |version: Version| format!("{} {}", version.timestamp, version.node);
        let what = match (node.copies, &node.row) {
            (Some(copies), _) => format!("{copies} times"),
            (None, Some(row)) => printable(row.get()),
            (None, None) => "absent".to_owned(),
        };
        text.push_str(&format!("\n  {}: {what}", node.node));
        if let Some(written) = node.version {
            text.push_str(&format!(", written {}", version(written)));
        }
        if let Some(deleted) = node.deleted {
            text.push_str(&format!(", deleted {}", version(deleted)));
        }
        if let Some(action) = node.action.filter(|action| action != "keep") {
            text.push_str(&format!(" -> {action}"));
        }
    }
    Ok(text)
}

/// JSON as it is, but for what a terminal would obey.
fn printable(json: &str) -> String {
    let shown = |c: char| match c.is_control() {
        true => c.escape_unicode().collect(),
        false => c.to_string(),
    };
    json.chars().map(shown).collect()
}

fn progress(line: &Line) -> String {
    format!(
        "{}: {} of about {} rows, {} differences",
        line.table, line.rows_done, line.rows_expected, line.differences
    )
}

fn summary(line: &Line) -> String {
    let mut text = format!(
        "{} rows of {} tables compared in {:.1} s: ",
        line.rows,
        line.tables,
        Duration::from_millis(line.milliseconds).as_secs_f64()
    );
    match line.differences {
        0 => text.push_str("no difference"),
        1 => text.push_str("1 row differs"),
        count => text.push_str(&format!("{count} rows differ")),
    }
    for (count, what) in [
        (
            line.differences - line.listed.min(line.differences),
            "not listed",
        ),
        (line.repaired, "mended"),
        (line.left, "not mended"),
        (line.changing, "written too often to be compared"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    if line.tables_not_compared > 0 {
        text.push_str(&format!(
            "; {} tables not compared",
            line.tables_not_compared
        ));
    }
    text
}

/// The progress on standard error: one line that is written over on a terminal.
struct Bar {
    is_terminal: bool,
    is_wanted: bool,
    width: usize,
}

impl Bar {
    fn new(asked_for: bool) -> Self {
        let is_terminal = io::stderr().is_terminal();
        Self {
            is_terminal,
            is_wanted: asked_for || is_terminal,
            width: 0,
        }
    }

    fn show(&mut self, text: &str) -> io::Result<()> {
        if !self.is_wanted {
            return Ok(());
        }
        let mut error = io::stderr().lock();
        if !self.is_terminal {
            return writeln!(error, "{text}");
        }
        let width = text.chars().count();
        write!(error, "\r{text:<pad$}", pad = self.width.max(width))?;
        self.width = width;
        error.flush()
    }

    fn clear(&mut self) -> io::Result<()> {
        if self.width == 0 {
            return Ok(());
        }
        let mut error = io::stderr().lock();
        write!(error, "\r{:width$}\r", "", width = self.width)?;
        self.width = 0;
        error.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Line {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_difference_is_shown_node_by_node_with_exact_values() {
        let line = read(
            r#"{"event":"difference","table":"public.t","key":[42],"nodes":[
            {"node":"n1","row":{"id":42,"n":12345678901234567890.5},
             "version":{"timestamp":"2026-01-01 00:00:00.000001+00","node":"n1"},
             "deleted":null,"copies":null,"action":"keep"},
            {"node":"n2","row":null,"version":null,
             "deleted":{"timestamp":"2025-01-01 00:00:00.000000+00","node":"n2"},"copies":null,"action":"insert"}]}"#,
        );
        let wanted = "public.t [42]\n  \
             n1: {\"id\":42,\"n\":12345678901234567890.5}, written 2026-01-01 00:00:00.000001+00 n1\n  \
             n2: absent, deleted 2025-01-01 00:00:00.000000+00 n2 -> insert";
        assert_eq!(difference(&line).unwrap(), wanted);
    }

    #[test]
    fn a_summary_tells_what_was_found_and_what_became_of_it() {
        let line = read(
            r#"{"event":"summary","tables":2,"rows":1000000,"differences":3,"listed":2,"repaired":2,"left":1,
            "milliseconds":2140}"#,
        );
        assert_eq!(
            summary(&line),
            "1000000 rows of 2 tables compared in 2.1 s: 3 rows differ, 1 not listed, 2 mended, 1 not mended"
        );
    }

    #[test]
    fn nothing_that_a_row_holds_reaches_the_terminal_as_a_command() {
        assert_eq!(printable("a\u{9b}31m"), "a\\u{9b}31m");
    }
}
