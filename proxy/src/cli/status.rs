//! `tandem status` and `tandem wait-converged`: what the daemon says of itself.

use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::Value;

use super::admin::{AdminError, AdminPort, Answer};
use super::args::{StatusArguments, WaitArguments};
use super::table::Table;
use super::{Exit, Failure, out};

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

/// The status as text: a line about the whole, a table of nodes, a table of links.
fn rendered(status: &Value) -> String {
    let text = |pointer: &str| match status.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => "?".to_owned(),
    };
    let head = format!(
        "cluster {}, tandem {}, {} of {} clients",
        text("/cluster"),
        text("/version"),
        text("/clients/current"),
        text("/clients/max")
    );

    let mut nodes = Table::new(&[
        "node",
        "id",
        "zone",
        "health",
        "rtt ms",
        "sessions",
        "replication",
        "journal",
        "carries",
        "problem",
    ]);
    for node in list(status, "/nodes") {
        let replicated = list(status, "/replication/nodes")
            .iter()
            .find(|other| other.get("name") == node.get("name"));
        let of = |key| replicated.and_then(|other| other.get(key));
        let own = |key| node.get(key);
        let journal = |key| of("journal").and_then(|journal| journal.get(key));
        let problem = [of("problem"), of("capture_problem"), journal("problem")];
        let problem = problem
            .into_iter()
            .flatten()
            .find(|problem| !problem.is_null());
        let carried = journal("carried").and_then(Value::as_array);
        let carried =
            carried.map(|names| names.iter().filter_map(Value::as_str).collect::<Vec<_>>());
        let carried = carried.filter(|names| !names.is_empty());
        let carried = carried.map(|names| Value::from(names.join(", ")));
        nodes.row(&[
            own("name"),
            own("id"),
            own("zone"),
            own("health"),
            own("rtt_ms"),
            own("sessions"),
            of("state"),
            journal("bytes"),
            carried.as_ref(),
            problem.or_else(|| own("problem")),
        ]);
    }
    format!(
        "{head}\n\n{}\n\n{}",
        nodes.render(),
        links(list(status, "/replication/links"))
    )
}

fn links(links: &[Value]) -> String {
    let mut table = Table::new(&[
        "source",
        "target",
        "state",
        "lag bytes",
        "lag ms",
        "transactions",
        "conflicts",
        "quarantine",
        "problem",
    ]);
    for link in links {
        let keys = [
            "source",
            "target",
            "state",
            "lag_bytes",
            "lag_ms",
            "transactions",
            "conflicts",
            "quarantined",
            "problem",
        ];
        table.row(&keys.map(|key| link.get(key)));
    }
    table.render()
}

fn not_converged(behind: &Value, timeout: Duration) -> String {
    let mut text = format!("not converged after {timeout:?}");
    for node in list(behind, "/unreachable") {
        text.push_str(&format!(
            "\n{}",
            node.as_str().unwrap_or_default().escape_debug()
        ));
    }
    let lags = list(behind, "/lags");
    if !lags.is_empty() {
        text.push_str(&format!("\n{}", links(lags)));
    }
    text
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_status_is_shown_as_two_tables() {
        let status = json!({
            "cluster": "bikes", "version": "0.1.0", "clients": { "current": 2, "max": 100 },
            "nodes": [
                { "name": "paris", "id": 1, "zone": "eu", "health": "healthy", "rtt_ms": 0.21, "sessions": 2 },
                { "name": "oslo", "id": 2, "zone": null, "health": "down", "rtt_ms": null, "sessions": 0 },
            ],
            "replication": {
                "nodes": [
                    { "name": "oslo", "id": 2, "state": "down", "problem": "refused" },
                    { "name": "paris", "id": 1, "state": "up", "problem": null, "capture_problem": null,
                      "journal": { "bytes": 70123, "carried": ["oslo", "rio"], "problem": "full" } },
                ],
                "links": [{ "source": "paris", "target": "oslo", "state": "waiting", "lag_bytes": 4096,
                            "lag_ms": null, "transactions": 7, "conflicts": 2, "quarantined": 1, "problem": null }],
            },
        });
        let wanted = "\
cluster bikes, tandem 0.1.0, 2 of 100 clients

node   id  zone  health   rtt ms  sessions  replication  journal  carries    problem
paris   1  eu    healthy   0.210         2  up             70123  oslo, rio  full
oslo    2  -     down     -              0  down         -        -          refused

source  target  state    lag bytes  lag ms  transactions  conflicts  quarantine  problem
paris   oslo    waiting       4096  -                  7          2           1  -";
        assert_eq!(rendered(&status), wanted);
    }

    #[test]
    fn what_is_behind_is_shown_with_its_lags() {
        let behind = json!({
            "unreachable": ["rio: connection refused"],
            "lags": [{ "source": "paris", "target": "oslo", "state": "streaming", "lag_bytes": 12, "lag_ms": 3,
                       "transactions": 1, "problem": null }],
        });
        let text = not_converged(&behind, Duration::from_secs(30));
        assert!(
            text.starts_with("not converged after 30s\nrio: connection refused\nsource  target"),
            "{text}"
        );
        assert!(
            text.contains("paris   oslo    streaming         12       3"),
            "{text}"
        );
        assert_eq!(
            not_converged(&json!({}), Duration::from_millis(5)),
            "not converged after 5ms"
        );
    }

    #[test]
    fn a_status_of_an_unknown_shape_is_still_shown() {
        assert!(rendered(&json!([])).starts_with("cluster ?, tandem ?"));
    }
}
