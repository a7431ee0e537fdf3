//! The status as text, for 100 columns: what is wrong comes first, in words.

use std::time::Duration;

use serde_json::Value;

use crate::cli::table::{Cell, Table, printable};

/// The status as text: a line about the whole, what is wrong, a table of nodes, a table of links.
pub(super) fn rendered(status: &Value) -> String {
    let text = |pointer: &str| match status.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => "?".to_owned(),
    };
    let mut parts = vec![format!(
        "cluster {}, tandem {}, {} of {} clients",
        printable(&text("/cluster")),
        text("/version"),
        text("/clients/current"),
        text("/clients/max")
    )];
    let problems = problems(status);
    if !problems.is_empty() {
        parts.push(format!("attention:\n  {}", problems.join("\n  ")));
    }
    parts.push(nodes(status));
    parts.extend(handoffs(status));
    parts.extend(recoveries(status));
    parts.push(links(list(status, "/replication/links")));
    parts.push(streams(status));
    parts.join("\n\n")
}

/// One line for each thing that is not as it should be: whose it is, and what it is.
fn problems(status: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let mut add = |whose: &str, value: Option<&Value>| {
        if let Some(problem) = value.and_then(Value::as_str) {
            let line = printable(&format!("{whose}: {problem}"));
            if !problems.contains(&line) {
                problems.push(line);
            }
        }
    };
    for refused in list(status, "/files_refused") {
        add("files refused, the old ones count", Some(refused));
    }
    for node in list(status, "/nodes") {
        add(name(node, "name"), node.get("problem"));
        let is_behind = node.get("behind").and_then(Value::as_bool) == Some(true);
        let behind = Value::from("it is behind the others: reads go elsewhere");
        add(name(node, "name"), Some(&behind).filter(|_| is_behind));
    }
    for node in list(status, "/replication/nodes") {
        let whose = name(node, "name");
        add(whose, node.get("problem"));
        add(&format!("{whose}, fenced"), node.pointer("/clock/fenced"));
        add(&format!("{whose}, its stream"), node.get("capture_problem"));
        add(
            &format!("{whose}, its journal"),
            node.pointer("/journal/problem"),
        );
    }
    for link in list(status, "/replication/links") {
        let whose = format!("{} to {}", name(link, "source"), name(link, "target"));
        let since = duration(link.get("state_ms")).unwrap_or_default();
        let state = match name(link, "state") {
            "waiting_for_cause" | "waiting_for_clock" => format!("{whose}, waiting for {since}"),
            state => format!("{whose}, {state} for {since}"),
        };
        add(&state, link.get("problem"));
        add(&whose, refusal(link).map(Value::from).as_ref());
    }
    problems
}

/// What a link's target refuses.
fn refusal(link: &Value) -> Option<String> {
    let count = link.get("quarantined").and_then(Value::as_u64);
    let count = count.filter(|&count| count > 0)?;
    Some(format!(
        "refuses {count} transactions; see tandem quarantine list"
    ))
}

fn nodes(status: &Value) -> String {
    let mut table = Table::new(&[
        "node",
        "id",
        "zone",
        "health",
        "rtt",
        "sessions",
        "replication",
        "clock",
    ]);
    for node in list(status, "/nodes") {
        let replicated = replicated(status, node);
        let of = |pointer| replicated.and_then(|other| other.pointer(pointer));
        table.cells([
            Cell::new(node.get("name")),
            Cell::new(node.get("id")),
            Cell::new(node.get("zone")),
            Cell::new(node.get("health")),
            Cell::quantity(number(node.get("rtt_ms")).map(|ms| format!("{ms:.1} ms"))),
            Cell::new(node.get("sessions")),
            Cell::new(of("/state")),
            Cell::quantity(number(of("/clock/offset_ms")).map(|ms| format!("{ms:+.1} ms"))),
        ]);
    }
    table.render()
}

/// How keys have moved last, and how they are moving now.
fn handoffs(status: &Value) -> Option<String> {
    let of_node = |node: &Value| {
        let handoff = node.get("handoff").filter(|handoff| handoff.is_object())?;
        let whose = format!("{} of {}", name(handoff, "kind"), name(node, "name"));
        let list = list(handoff, "/waits_for").iter().filter_map(Value::as_str);
        let waits_for: Vec<&str> = list.collect();
        let line = match handoff.get("outcome").and_then(Value::as_str) {
            None if waits_for.is_empty() => format!("{whose}: under way"),
            None => format!("{whose}: under way, waits for: {}", waits_for.join("; ")),
            Some(outcome) => {
                let [took, parked] = ["took_ms", "parked_ms"].map(|key| number(handoff.get(key)));
                let (took, parked) = (took.unwrap_or_default(), parked.unwrap_or_default());
                let told =
                    format!("{whose}: {outcome} in {took:.0} ms, writes waited {parked:.1} ms");
                match handoff.get("reason").and_then(Value::as_str) {
                    Some(reason) => format!("{told}: {reason}"),
                    None => told,
                }
            }
        };
        Some(printable(&line))
    };
    let lines: Vec<String> = list(status, "/nodes").iter().filter_map(of_node).collect();
    let epoch = status.get("epoch").and_then(Value::as_u64)?;
    (!lines.is_empty()).then(|| format!("placement epoch {epoch}\n{}", lines.join("\n")))
}

/// What the last loss of each node has cost.
fn recoveries(status: &Value) -> Option<String> {
    let of_node = |node: &Value| {
        let report = node.get("recovery").filter(|report| report.is_object())?;
        let told = name(report, "told");
        let line = format!(
            "recovery of {}, down {}, caught up {}: {told}",
            name(node, "name"),
            name(report, "down"),
            name(report, "caught_up")
        );
        Some(printable(&line))
    };
    let lines: Vec<String> = list(status, "/nodes").iter().filter_map(of_node).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// What is read from each node, and what is kept of it where.
fn streams(status: &Value) -> String {
    let mut table = Table::new(&[
        "written on",
        "tx/s",
        "rows/s",
        "bytes/s",
        "unread",
        "journal",
        "WAL held",
        "xid age",
        "carried",
    ]);
    for node in list(status, "/nodes") {
        let replicated = replicated(status, node);
        let of = |pointer| replicated.and_then(|other| other.pointer(pointer));
        let carried = of("/journal/carried").and_then(Value::as_array);
        let carried =
            carried.map(|names| names.iter().filter_map(Value::as_str).collect::<Vec<_>>());
        let carried = carried.filter(|names| !names.is_empty());
        let carried = carried.map(|names| Value::from(names.join(", ")));
        table.cells([
            Cell::new(node.get("name")),
            Cell::quantity(rate(of("/capture/rates/transactions"))),
            Cell::quantity(rate(of("/capture/rates/rows"))),
            Cell::quantity(bytes(of("/capture/rates/bytes"))),
            Cell::quantity(bytes(of("/capture/lag_bytes"))),
            Cell::quantity(bytes(of("/journal/bytes"))),
            Cell::quantity(bytes(of("/slot/retained_bytes"))),
            Cell::new(of("/slot/xid_age")),
            Cell::new(carried.as_ref()),
        ]);
    }
    table.render()
}

fn links(links: &[Value]) -> String {
    let mut table = Table::new(&[
        "source",
        "target",
        "state",
        "behind",
        "bytes",
        "queue",
        "tx/s",
        "rows/s",
        "applied",
        "conflicts",
    ]);
    for link in links {
        table.cells([
            Cell::new(link.get("source")),
            Cell::new(link.get("target")),
            Cell::new(link.get("state")),
            Cell::quantity(duration(link.get("lag_ms"))),
            Cell::quantity(bytes(link.get("lag_bytes"))),
            Cell::new(link.get("lag_transactions")),
            Cell::quantity(rate(link.pointer("/rates/transactions"))),
            Cell::quantity(rate(link.pointer("/rates/rows"))),
            Cell::new(link.get("transactions")),
            Cell::new(link.get("conflicts")),
        ]);
    }
    let mut text = table.render();
    for link in links {
        let types = link.get("conflicts_by_type").and_then(Value::as_object);
        let types = types.into_iter().flatten();
        let types: Vec<_> = types
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        if !types.is_empty() {
            let (source, target) = (name(link, "source"), name(link, "target"));
            let line = format!("{source} to {target}, conflicts: {}", types.join(", "));
            text.push('\n');
            text.push_str(&printable(&line));
        }
    }
    text
}

/// What is behind after a wait that was too short.
pub(super) fn not_converged(behind: &Value, timeout: Duration) -> String {
    let mut text = format!("not converged after {timeout:?}");
    for node in list(behind, "/unreachable") {
        text.push('\n');
        text.push_str(&printable(node.as_str().unwrap_or_default()));
    }
    let lags = list(behind, "/lags");
    for lag in lags {
        let (source, target) = (name(lag, "source"), name(lag, "target"));
        let problem = lag.get("problem").and_then(Value::as_str);
        for problem in problem.map(str::to_owned).into_iter().chain(refusal(lag)) {
            text.push('\n');
            text.push_str(&printable(&format!("{source} to {target}: {problem}")));
        }
    }
    if !lags.is_empty() {
        text.push('\n');
        text.push_str(&links(lags));
    }
    text
}

fn replicated<'a>(status: &'a Value, node: &Value) -> Option<&'a Value> {
    list(status, "/replication/nodes")
        .iter()
        .find(|other| other.get("name") == node.get("name"))
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn name<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("?")
}

fn number(value: Option<&Value>) -> Option<f64> {
    value.and_then(Value::as_f64)
}

fn rate(value: Option<&Value>) -> Option<String> {
    let rate = number(value)?;
    Some(if rate < 10.0 {
        format!("{rate:.1}")
    } else {
        format!("{rate:.0}")
    })
}

/// Decimal units, as df -H has them.
fn bytes(value: Option<&Value>) -> Option<String> {
    let count = number(value)?;
    let units = [
        ("B", 1.0),
        ("kB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("TB", 1e12),
    ];
    let fitting = units.iter().rev().find(|(_, size)| count >= *size);
    let (unit, size) = fitting.copied().unwrap_or(("B", 1.0));
    let scaled = count / size;
    Some(if unit == "B" || scaled >= 100.0 {
        format!("{scaled:.0} {unit}")
    } else {
        format!("{scaled:.1} {unit}")
    })
}

fn duration(value: Option<&Value>) -> Option<String> {
    let ms = value.and_then(Value::as_i64)?;
    let seconds = ms / 1000;
    Some(match ms {
        ..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{seconds}.{} s", ms % 1000 / 100),
        60_000..7_200_000 => format!("{} min", seconds / 60),
        7_200_000..172_800_000 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_wrong_comes_first_and_everything_fits_100_columns() {
        let status = json!({
            "cluster": "bikes", "version": "0.1.0", "clients": { "current": 2, "max": 100 },
            "files_refused": ["rules.toml:3:8: unknown node `pari`; did you mean `paris`?"],
            "nodes": [
                { "name": "paris", "id": 1, "zone": "eu", "health": "up", "rtt_ms": 0.21, "sessions": 2, "problem": null, "behind": true },
                { "name": "oslo", "id": 2, "zone": null, "health": "down", "rtt_ms": null, "sessions": 0, "problem": "refused",
                  "recovery": { "down": "then", "caught_up": "later", "told": "tail of 0 transactions, nothing lost" } },
            ],
            "replication": {
                "nodes": [
                    { "name": "oslo", "id": 2, "state": "down", "problem": "refused" },
                    { "name": "paris", "id": 1, "state": "up", "problem": null, "capture_problem": null,
                      "clock": { "offset_ms": 0.04 },
                      "capture": { "lag_bytes": 0, "rates": { "transactions": 120.4, "rows": 361.0, "bytes": 98765.0 } },
                      "slot": { "retained_bytes": 16_777_216_000_u64, "xid_age": 1234 },
                      "journal": { "bytes": 70123, "carried": ["oslo", "rio"], "problem": "full" } },
                ],
                "links": [
                    { "source": "paris", "target": "oslo", "state": "waiting", "lag_bytes": 4096, "lag_ms": 90061, "state_ms": 7,
                      "lag_transactions": null, "rates": { "transactions": 0.0, "rows": null }, "transactions": 7,
                      "conflicts": 3, "conflicts_by_type": { "insert_exists": 1, "update_deleted": 2 },
                      "quarantined": 0, "problem": null },
                    { "source": "oslo", "target": "paris", "state": "waiting_for_cause", "lag_bytes": 12, "lag_ms": 1530,
                      "state_ms": 1530, "lag_transactions": 2, "rates": { "transactions": 3.25, "rows": 12.0 },
                      "transactions": 9, "conflicts": 0, "conflicts_by_type": {}, "quarantined": 1,
                      "problem": "transactions of rio up to 0/3000148" },
                ],
            },
        });
        let wanted = "\
cluster bikes, tandem 0.1.0, 2 of 100 clients

attention:
  files refused, the old ones count: rules.toml:3:8: unknown node `pari`; did you mean `paris`?
  paris: it is behind the others: reads go elsewhere
  oslo: refused
  paris, its journal: full
  oslo to paris, waiting for 1.5 s: transactions of rio up to 0/3000148
  oslo to paris: refuses 1 transactions; see tandem quarantine list

node   id  zone  health  rtt     sessions  replication  clock
paris   1  eu    up      0.2 ms         2  up           +0.0 ms
oslo    2  -     down    -              0  down         -

recovery of oslo, down then, caught up later: tail of 0 transactions, nothing lost

source  target  state              behind  bytes   queue  tx/s  rows/s  applied  conflicts
paris   oslo    waiting             1 min  4.1 kB  -       0.0  -             7          3
oslo    paris   waiting_for_cause   1.5 s    12 B      2   3.2      12        9          0
paris to oslo, conflicts: insert_exists 1, update_deleted 2

written on  tx/s  rows/s  bytes/s  unread  journal  WAL held  xid age  carried
paris        120     361  98.8 kB     0 B  70.1 kB   16.8 GB     1234  oslo, rio
oslo        -     -       -        -       -        -         -        -";
        assert_eq!(rendered(&status), wanted);
        assert!(wanted.lines().all(|line| line.len() <= 100));
    }

    #[test]
    fn what_is_behind_is_shown_with_its_lags() {
        let behind = json!({
            "unreachable": ["rio: connection refused"],
            "lags": [{ "source": "paris", "target": "oslo", "state": "blocked", "lag_bytes": 12, "lag_ms": 3,
                       "transactions": 1, "problem": "no table" }],
        });
        let text = not_converged(&behind, Duration::from_secs(30));
        let begin = "not converged after 30s\nrio: connection refused\nparis to oslo: no table\nsource  target";
        assert!(text.starts_with(begin), "{text}");
        assert!(
            text.contains("paris   oslo    blocked    3 ms   12 B"),
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

    #[test]
    fn quantities_have_the_unit_that_fits() {
        let shown = |count: u64| bytes(Some(&json!(count)));
        assert_eq!(
            [0, 999, 1000, 123_456, 5_000_000_000].map(shown),
            ["0 B", "999 B", "1.0 kB", "123 kB", "5.0 GB"].map(|text| Some(text.to_owned()))
        );
        let shown = |ms: i64| duration(Some(&json!(ms)));
        assert_eq!(
            [0, 1999, 61_000, 10_000_000, 200_000_000].map(shown),
            ["0 ms", "1.9 s", "1 min", "2 h", "2 days"].map(|text| Some(text.to_owned()))
        );
    }
}
