//! `tandem drain` and `tandem resume`: a node is taken out of service, or back into it.

use std::time::{Duration, Instant};

use hyper::Method;
use serde::Serialize;
use serde_json::Value;
use tokio::time::sleep;

use super::admin::AdminPort;
use super::args::{DrainArguments, ResumeArguments};
use super::operator::{read, with_query};
use super::table::printable;
use super::{Exit, Failure, out};

/// Bound on the daemon's answer, which may first let another handoff end.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// How often it is asked how it goes.
const LOOK: Duration = Duration::from_millis(50);
/// What it waits for is told at most this often.
const TELL: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct Of<'a> {
    node: &'a str,
}

/// `tandem drain`
pub(super) async fn drain(arguments: DrainArguments) -> Result<Exit, Failure> {
    let port = AdminPort::find(&arguments.daemon)?;
    let node = arguments.node.as_str();
    let exit = outcome(&port, "/api/drain", node, arguments.wait).await?;
    if exit == Exit::Yes && arguments.wait {
        nobody_left(&port, node).await?;
    }
    Ok(exit)
}

/// `tandem resume`
pub(super) async fn resume(arguments: ResumeArguments) -> Result<Exit, Failure> {
    let port = AdminPort::find(&arguments.daemon)?;
    outcome(&port, "/api/resume", &arguments.node, true).await
}

async fn ask(port: &AdminPort, method: Method, path: &str, node: &str) -> Result<Value, Failure> {
    let path = with_query(path, &Of { node })?;
    let answer = port.ask(method, &path, ANSWER_TIMEOUT).await?;
    read(port, &answer)
}

/// Begins it, and waits for what comes of it. `shows`: what it waits for meanwhile is told.
async fn outcome(port: &AdminPort, path: &str, node: &str, shows: bool) -> Result<Exit, Failure> {
    let mut progress = ask(port, Method::POST, path, node).await?;
    let mut told = String::new();
    let mut next = Instant::now() + TELL;
    loop {
        let outcome = progress.pointer("/handoff/outcome").and_then(Value::as_str);
        if let Some(outcome) = outcome {
            let sentence = progress.get("sentence").and_then(Value::as_str);
            out::line(&printable(sentence.unwrap_or(outcome)))?;
            return Ok(match outcome {
                "stayed" => Exit::No,
                _ => Exit::Yes,
            });
        }
        let waits_for = waits_for(&progress);
        if shows && !waits_for.is_empty() && waits_for != told && Instant::now() >= next {
            out::line(&waits_for)?;
            next = Instant::now() + TELL;
            told = waits_for;
        }
        sleep(LOOK).await;
        progress = ask(port, Method::GET, "/api/handoff", node).await?;
    }
}

/// What it waits for, a line each.
fn waits_for(progress: &Value) -> String {
    let list = progress.pointer("/handoff/waits_for");
    let list = list.and_then(Value::as_array).into_iter().flatten();
    let lines = list.filter_map(Value::as_str);
    let lines: Vec<String> = lines
        .map(|line| printable(&format!("waits: {line}")))
        .collect();
    lines.join("\n")
}

/// Waits until no client has a connection to the node any more.
async fn nobody_left(port: &AdminPort, node: &str) -> Result<(), Failure> {
    let mut told = None;
    let mut next = Instant::now();
    loop {
        let progress = ask(port, Method::GET, "/api/handoff", node).await?;
        let left = progress.get("connections").and_then(Value::as_u64);
        if left == Some(0) {
            return Ok(out::line("no connection of a client is left")?);
        }
        if told != left && Instant::now() >= next {
            let left = left.map_or_else(|| "?".to_owned(), |left| left.to_string());
            out::line(&format!("connections of clients that are left: {left}"))?;
            next = Instant::now() + TELL;
        }
        told = left;
        if progress.get("health").and_then(Value::as_str) != Some("drained") {
            let problem = format!("node {} is not drained any more", printable(node));
            return Err(Failure::Refused(problem));
        }
        sleep(LOOK).await;
    }
}
