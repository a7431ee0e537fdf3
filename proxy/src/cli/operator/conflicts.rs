//! `tandem conflicts` and `tandem reapply`.

use hyper::Method;
use serde_json::Value;

use super::args::{ConflictsArguments, ReapplyArguments};
use super::{ANSWER_TIMEOUT, complete, list, read, text, with_query};
use crate::cli::admin::AdminPort;
use crate::cli::table::Table;
use crate::cli::{Exit, Failure, out};

/// `tandem conflicts`
pub(in crate::cli) async fn conflicts(arguments: ConflictsArguments) -> Result<Exit, Failure> {
    let port = AdminPort::find(&arguments.daemon)?;
    let path = match arguments.summary {
        true => "/api/conflicts/summary",
        false => "/api/conflicts",
    };
    let path = with_query(path, &arguments.filter())?;
    let answer = port.ask(Method::GET, &path, ANSWER_TIMEOUT).await?;
    let found = read(&port, &answer)?;
    match (arguments.json, arguments.summary) {
        (true, _) => out::line(&String::from_utf8_lossy(&answer.body))?,
        (false, true) => out::line(&counts(&found))?,
        (false, false) => out::line(&lines(&found))?,
    }
    complete(&found)
}

/// `tandem reapply`
pub(in crate::cli) async fn reapply(arguments: ReapplyArguments) -> Result<Exit, Failure> {
    let port = AdminPort::find(&arguments.daemon)?;
    let query = [
        ("id", arguments.id.to_string()),
        ("force", arguments.force.to_string()),
    ];
    let path = with_query("/api/conflicts/reapply", &query)?;
    let answer = port.ask(Method::POST, &path, ANSWER_TIMEOUT).await?;
    out::line(&reapplied(&read(&port, &answer)?))?;
    Ok(Exit::Yes)
}

fn lines(found: &Value) -> String {
    let lines = list(found, "conflicts");
    if lines.is_empty() {
        return "no conflicts".to_owned();
    }
    let mut table = Table::new(&[
        "id",
        "detected",
        "table",
        "type",
        "operation",
        "outcome",
        "local",
        "local version",
        "remote",
        "remote version",
        "reapplied",
    ]);
    for line in lines {
        let of = |key| line.get(key);
        let version = |timestamp, node| {
            let version = format!("{} {}", of(timestamp)?.as_str()?, of(node)?.as_str()?);
            Some(Value::String(version))
        };
        table.row(&[
            of("id"),
            of("detected"),
            of("relation"),
            of("type"),
            of("operation"),
            of("outcome"),
            of("local_image"),
            version("local_timestamp", "local_node").as_ref(),
            of("remote_image"),
            version("remote_timestamp", "remote_node").as_ref(),
            of("reapplied"),
        ]);
    }
    table.render()
}

fn counts(found: &Value) -> String {
    let counts = list(found, "counts");
    if counts.is_empty() {
        return "no conflicts".to_owned();
    }
    let mut table = Table::new(&["table", "type", "lines", "reapplied", "newest"]);
    for count in counts {
        let keys = ["relation", "type", "lines", "reapplied", "newest"];
        table.row(&keys.map(|key| count.get(key)));
    }
    table.render()
}

fn reapplied(done: &Value) -> String {
    let table = text(done, "table");
    let mut line = match done.get("done").and_then(Value::as_str) {
        Some("deleted") => format!("{}: the row of {table} is deleted", text(done, "id")),
        _ => format!("{}: the row of {table} is written", text(done, "id")),
    };
    if !list(done, "left_out").is_empty() {
        line.push_str(&format!(
            "; counters are left as they are: {}",
            text(done, "left_out")
        ));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_are_a_table_with_images_and_versions_of_both_sides() {
        let found = json!({ "conflicts": [{
            "id": "n2/7", "detected": "2026-11-22 10:00:00.5+00", "relation": "public.item",
            "type": "update_origin_differs", "operation": null, "resolver": "last_update_wins", "outcome": "local",
            "local_image": { "id": "1", "name": "b\u{9b}" }, "local_timestamp": "2026-11-22 10:00:00+00", "local_node": "n2",
            "remote_image": { "id": "1", "name": "a" }, "remote_timestamp": "2026-11-22 09:59:59+00", "remote_node": "n1",
            "reapplied": null,
        }], "problems": [] });
        let text = lines(&found);
        let wanted = "n2/7  2026-11-22 10:00:00.5+00  public.item  update_origin_differs  -          local    \
                      {\"id\":\"1\",\"name\":\"b\\u{9b}\"}  2026-11-22 10:00:00+00 n2  {\"id\":\"1\",\"name\":\"a\"}  \
                      2026-11-22 09:59:59+00 n1  -";
        assert_eq!(text.lines().nth(1), Some(wanted), "{text}");
        assert_eq!(lines(&json!({ "conflicts": [] })), "no conflicts");
    }

    #[test]
    fn what_was_done_names_the_counters_that_were_left() {
        let done =
            json!({ "id": "n1/2", "table": "public.t", "done": "written", "left_out": ["hits"] });
        assert_eq!(
            reapplied(&done),
            "n1/2: the row of public.t is written; counters are left as they are: hits"
        );
        let done = json!({ "id": "n1/2", "table": "public.t", "done": "deleted", "left_out": [] });
        assert_eq!(reapplied(&done), "n1/2: the row of public.t is deleted");
    }
}
