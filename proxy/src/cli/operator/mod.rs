//! What an operator does to single rows and transactions: `conflicts`, `reapply`, `quarantine`.

mod args;
mod conflicts;
mod quarantine;

use std::time::Duration;

use hyper::StatusCode;
use serde::Serialize;
use serde_json::Value;

pub(super) use args::{ConflictsArguments, QuarantineArguments, ReapplyArguments};
pub(super) use conflicts::{conflicts, reapply};
pub(super) use quarantine::quarantine;

use super::admin::{AdminPort, Answer};
use super::table::printable;
use super::{Exit, Failure};

/// Bound on the daemon's answer. It bounds its own work on the nodes more tightly.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A path with a query.
pub(super) fn with_query(path: &str, query: &impl Serialize) -> Result<String, Failure> {
    let query = serde_urlencoded::to_string(query).map_err(Failure::other)?;
    Ok(format!("{path}?{query}"))
}

/// The daemon's answer, or the problem that it tells.
pub(super) fn read(port: &AdminPort, answer: &Answer) -> Result<Value, Failure> {
    let value: Option<Value> = serde_json::from_slice(&answer.body).ok();
    let problem = value
        .as_ref()
        .and_then(|value| value.get("problem")?.as_str());
    match (answer.status, value.as_ref(), problem) {
        (StatusCode::OK, Some(_), _) => {}
        (_, _, Some(problem)) => return Err(Failure::Refused(printable(problem))),
        _ => return Err(port.unexpected(answer).into()),
    }
    value.ok_or_else(|| port.unexpected(answer).into())
}

/// Nodes that could not be asked make the answer a failure.
fn complete(answer: &Value) -> Result<Exit, Failure> {
    let problems: Vec<_> = list(answer, "problems")
        .iter()
        .filter_map(Value::as_str)
        .map(printable)
        .collect();
    match problems.is_empty() {
        true => Ok(Exit::Yes),
        false => Err(Failure::Refused(problems.join("\n"))),
    }
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    let list = value.get(key).and_then(Value::as_array);
    list.map_or(&[], Vec::as_slice)
}

/// A member as text for a person; `-` where there is none.
fn text(value: &Value, key: &str) -> String {
    match value.get(key) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => printable(text),
        Some(Value::Array(list)) => {
            let texts = list.iter().filter_map(Value::as_str);
            printable(&texts.collect::<Vec<_>>().join(", "))
        }
        Some(other) => other.to_string(),
    }
}
