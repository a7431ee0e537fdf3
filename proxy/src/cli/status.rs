//! `tandem status` and `tandem wait-converged`: what the daemon says of itself.

use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::Value;

use super::admin::{AdminError, AdminPort, Answer};
use super::args::{StatusArguments, WaitArguments};
use super::{Exit, Failure, out};

mod render;

use render::{not_converged, rendered};

/// Bound on the daemon's answer to a question that makes it do no work.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// `tandem status`
pub(super) async fn status(arguments: StatusArguments) -> Result<Exit, Failure> {
    let port = AdminPort::find(&arguments.daemon)?;
    let answer = port.ask(Method::GET, "/api/status", ANSWER_TIMEOUT).await?;
    let status = json(&port, &answer, StatusCode::OK)?;
    match arguments.json {
        true => out::line(&String::from_utf8_lossy(&answer.body))?,
        false => out::line(&rendered(&status))?,
    }
    Ok(Exit::Yes)
}

/// `tandem wait-converged`
pub(super) async fn wait_converged(arguments: WaitArguments) -> Result<Exit, Failure> {
    let port = AdminPort::find(&arguments.daemon)?;
    let path = format!(
        "/api/wait-converged?timeout_ms={}",
        arguments.timeout.as_millis()
    );
    let answer = port
        .ask(
            Method::POST,
            &path,
            arguments.timeout.saturating_add(ANSWER_TIMEOUT),
        )
        .await?;
    if answer.status == StatusCode::OK {
        out::line("converged")?;
        return Ok(Exit::Yes);
    }
    let behind = json(&port, &answer, StatusCode::GATEWAY_TIMEOUT)?;
    out::line(&not_converged(&behind, arguments.timeout))?;
    Ok(Exit::No)
}

fn json(port: &AdminPort, answer: &Answer, wanted: StatusCode) -> Result<Value, AdminError> {
    let value = serde_json::from_slice(&answer.body).ok();
    value
        .filter(|_| answer.status == wanted)
        .ok_or_else(|| port.unexpected(answer))
}
