//! `tandem quarantine list|show|retry|skip|edit`.

use hyper::Method;
use serde_json::Value;
use tandem_replicator::operator::{Assignment, ItemId};

use super::args::{
    EditArguments, ListArguments, QuarantineArguments, QuarantineCommand, RetryArguments,
    ShowArguments, SkipArguments,
};
use super::{ANSWER_TIMEOUT, complete, list, read, text, with_query};
use crate::cli::admin::AdminPort;
use crate::cli::table::Table;
use crate::cli::{Exit, Failure, out};

/// `tandem quarantine`
pub(in crate::cli) async fn quarantine(arguments: QuarantineArguments) -> Result<Exit, Failure> {
    match arguments.command {
        QuarantineCommand::List(arguments) => list_all(arguments).await,
        QuarantineCommand::Show(arguments) => show(arguments).await,
        QuarantineCommand::Retry(arguments) => retry(arguments).await,
        QuarantineCommand::Skip(arguments) => skip(arguments).await,
        QuarantineCommand::Edit(arguments) => edit(arguments).await,
    }
}

async fn list_all(arguments: ListArguments) -> Result<Exit, Failure> {
    let port = AdminPort::find(&arguments.daemon)?;
    let path = with_query("/api/quarantine", &[("node", arguments.node)])?;
    let answer = port.ask(Method::GET, &path, ANSWER_TIMEOUT).await?;
    let found = read(&port, &answer)?;
    match arguments.json {
        true => out::line(&String::from_utf8_lossy(&answer.body))?,
        false => out::line(&listed(&found))?,
    }
    complete(&found)
}

async fn show(arguments: ShowArguments) -> Result<Exit, Failure> {
    let port = AdminPort::find(&arguments.daemon)?;
    let path = with_query("/api/quarantine/transaction", &of(&arguments.id))?;
    let answer = port.ask(Method::GET, &path, ANSWER_TIMEOUT).await?;
    let found = read(&port, &answer)?;
    match arguments.json {
        true => out::line(&String::from_utf8_lossy(&answer.body))?,
        false => out::line(&shown(&found))?,
    }
    Ok(Exit::Yes)
}

async fn retry(arguments: RetryArguments) -> Result<Exit, Failure> {
    let port = AdminPort::find(&arguments.daemon)?;
    let id = arguments.id.map(|id| id.to_string());
    let path = with_query(
        "/api/quarantine/retry",
        &[("id", id), ("node", arguments.node)],
    )?;
    let answer = port.ask(Method::POST, &path, ANSWER_TIMEOUT).await?;
    let retried = read(&port, &answer)?;
    let attempts = list(&retried, "attempts");
    out::line(&tried(attempts))?;
    complete(&retried)?;
    Ok(exit(attempts))
}

async fn skip(arguments: SkipArguments) -> Result<Exit, Failure> {
    let port = AdminPort::find(&arguments.daemon)?;
    let path = with_query("/api/quarantine/skip", &of(&arguments.id))?;
    let answer = port.ask(Method::POST, &path, ANSWER_TIMEOUT).await?;
    out::line(&skipped(&read(&port, &answer)?, &arguments.id.node))?;
    Ok(Exit::Yes)
}

async fn edit(arguments: EditArguments) -> Result<Exit, Failure> {
    let port = AdminPort::find(&arguments.daemon)?;
    let path = with_query("/api/quarantine/edit", &of(&arguments.id))?;
    let assignments: Vec<Assignment> = arguments.set.into_iter().chain(arguments.null).collect();
    let answer = port.tell(&path, &assignments, ANSWER_TIMEOUT).await?;
    let edited = read(&port, &answer)?;
    let attempt = edited.get("attempt").map_or(&[][..], std::slice::from_ref);
    let changes = text(&edited, "changes");
    out::line(&format!(
        "{}: changes edited: {changes}\n{}",
        text(&edited, "id"),
        tried(attempt)
    ))?;
    Ok(exit(attempt))
}

fn of(id: &ItemId) -> [(&'static str, String); 1] {
    [("id", id.to_string())]
}

/// Yes when all have left the quarantine.
fn exit(attempts: &[Value]) -> Exit {
    let applied = |attempt: &Value| attempt.get("outcome") == Some(&Value::from("applied"));
    match attempts.iter().all(applied) {
        true => Exit::Yes,
        false => Exit::No,
    }
}

fn listed(found: &Value) -> String {
    let transactions = list(found, "transactions");
    if transactions.is_empty() {
        return "nothing is in quarantine".to_owned();
    }
    let mut table = Table::new(&[
        "id",
        "source",
        "committed",
        "in quarantine since",
        "attempts",
        "behind",
        "changes",
        "tables",
        "reason",
    ]);
    for transaction in transactions {
        let of = |key| transaction.get(key);
        table.row(&[
            of("id"),
            of("source"),
            of("committed"),
            of("quarantined"),
            of("attempts"),
            of("behind"),
            of("changes"),
            Some(&Value::String(text(transaction, "tables"))),
            of("reason"),
        ]);
    }
    table.render()
}

fn shown(found: &Value) -> String {
    let none = Value::Null;
    let transaction = found.get("transaction").unwrap_or(&none);
    let mut head = format!(
        "{} of {}, committed {}, in quarantine since {}, attempts: {}, edits: {}\nrefused: {}",
        text(transaction, "id"),
        text(transaction, "source"),
        text(transaction, "committed"),
        text(transaction, "quarantined"),
        text(transaction, "attempts"),
        text(transaction, "edits"),
        text(transaction, "reason"),
    );
    if transaction
        .get("behind")
        .is_some_and(|behind| !behind.is_null())
    {
        head.push_str(&format!("\nbehind: {}", text(transaction, "behind")));
    }
    let mut table = Table::new(&["table", "operation", "old", "new"]);
    for change in list(found, "changes") {
        table.row(&["table", "operation", "old", "new"].map(|key| change.get(key)));
    }
    let mut shown = format!("{head}\n\n{}", table.render());
    match found.get("more").and_then(Value::as_u64) {
        None | Some(0) => {}
        Some(more) => shown.push_str(&format!("\nand {more} more")),
    }
    for statement in list(found, "statements") {
        shown.push_str(&format!("\nDDL: {}", statement.as_str().unwrap_or("?")));
    }
    shown
}

fn tried(attempts: &[Value]) -> String {
    if attempts.is_empty() {
        return "nothing is in quarantine".to_owned();
    }
    let mut table = Table::new(&["id", "outcome", "reason"]);
    for attempt in attempts {
        table.row(&["id", "outcome", "reason"].map(|key| attempt.get(key)));
    }
    table.render()
}

fn skipped(skipped: &Value, node: &str) -> String {
    let mut line = format!(
        "{} is skipped; lines in the conflict log of {node}: {}; its rows differ from the other nodes' until they are written \
         again (`tandem conflicts --node {node} --type quarantine_skipped`, `tandem reapply`)",
        text(skipped, "id"),
        text(skipped, "lines")
    );
    if !list(skipped, "counters").is_empty() {
        line.push_str(&format!(
            "\nthe counters of {} on {node} lack what it added to them",
            text(skipped, "counters")
        ));
    }
    for statement in list(skipped, "statements") {
        let statement = statement.as_str().unwrap_or("?");
        line.push_str(&format!("\nDDL that {node} lacks: {statement}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn transaction() -> Value {
        json!({
            "id": "n2/3", "source": "n1", "committed": "2026-11-22 10:00:00+00", "quarantined": "2026-11-22 10:00:01+00",
            "attempts": 2, "edits": 0, "behind": "n2/1", "reason": "no", "tables": ["public.a", "public.b"], "changes": 4,
        })
    }

    #[test]
    fn the_list_is_a_table_and_an_empty_one_says_so() {
        let text = listed(&json!({ "transactions": [transaction()] }));
        let wanted = "n2/3  n1      2026-11-22 10:00:00+00  2026-11-22 10:00:01+00         2  n2/1          4  public.a, public.b  no";
        assert_eq!(text.lines().nth(1), Some(wanted), "{text}");
        assert_eq!(listed(&json!({})), "nothing is in quarantine");
    }

    #[test]
    fn a_transaction_is_shown_with_its_changes() {
        let changes = json!([
            { "table": "public.a", "operation": "update", "old": null, "new": { "id": "1" } },
        ]);
        let text = shown(&json!({ "transaction": transaction(), "changes": changes, "more": 3 }));
        assert!(
            text.contains("attempts: 2, edits: 0\nrefused: no\nbehind: n2/1\n"),
            "{text}"
        );
        assert!(
            text.contains("public.a  update     -    {\"id\":\"1\"}\nand 3 more"),
            "{text}"
        );
    }

    #[test]
    fn only_when_all_are_applied_the_answer_is_yes() {
        let attempt = |outcome: &str| json!({ "id": "n2/3", "outcome": outcome, "reason": null });
        assert_eq!(exit(&[attempt("applied")]), Exit::Yes);
        assert_eq!(exit(&[]), Exit::Yes);
        for other in ["refused", "behind", "not_tried"] {
            assert_eq!(exit(&[attempt("applied"), attempt(other)]), Exit::No);
        }
        assert_eq!(tried(&[]), "nothing is in quarantine");
    }

    #[test]
    fn what_was_skipped_names_counters_that_fall_short() {
        let text = skipped(
            &json!({ "id": "n2/3", "lines": 2, "counters": ["public.a"] }),
            "n2",
        );
        assert!(
            text.contains("n2/3 is skipped") && text.contains("the counters of public.a on n2"),
            "{text}"
        );
        let text = skipped(&json!({ "id": "n2/3", "lines": 2, "counters": [] }), "n2");
        assert!(!text.contains("counters"), "{text}");
    }
}
