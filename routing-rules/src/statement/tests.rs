mod plans;

use super::value::keys;
use super::*;
use crate::placement::Key;
use crate::template::{Literals, TEXT_MAX, Template};

fn parameter(text: &str) -> Parameter<'_> {
    Parameter {
        value: Some(text.as_bytes()),
        binary: false,
        type_oid: 0,
    }
}

/// The keys of a column, `?` where they cannot be told.
fn told(values: &ColumnValues, literals: Literals<'_>) -> String {
    let parameters = [parameter("101"), parameter("{201,202}")];
    let ColumnValues::Of(sources) = values else {
        return "?".to_owned();
    };
    let mut found: Vec<String> = Vec::new();
    for source in sources {
        let mut push = |key: Key| {
            let key = key.to_string();
            if !found.contains(&key) {
                found.push(key);
            }
        };
        if keys(source, None, literals, &parameters, &mut push).is_none() {
            return "?".to_owned();
        }
    }
    found.join("|")
}

/// What is found, in one line: class, then each table with what is done to it and the keys of its columns.
fn shown(text: &str) -> String {
    let mut template = Template::default();
    let literals = template.read(text.as_bytes());
    let literals = literals.map(|shape| shape.literals).unwrap_or_default();
    let all = match analyse(text) {
        Ok(all) => all,
        Err(error) => return format!("refused: {error}"),
    };
    let statements = all.iter().map(|statement| {
        let tables = statement.tables.iter().map(|table| {
            let columns = table.columns.iter();
            let columns =
                columns.map(|(column, values)| format!("{column}={}", told(values, literals)));
            let access = match table.access {
                Access::Read => "r",
                Access::Lock => "l",
                Access::Write => "w",
            };
            format!(
                " {access}:{table}({})",
                columns.collect::<Vec<_>>().join(",")
            )
        });
        format!("{}:{}", statement.class.word(), tables.collect::<String>())
    });
    statements.collect::<Vec<_>>().join(" / ")
}

#[test]
fn statements_are_what_they_do_and_name_their_keys() {
    let mut wrong = String::new();
    for line in include_str!("tests/corpus.txt").lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (text, expected) = line.split_once(" => ").expect("two halves");
        let found = shown(text);
        if found != expected {
            wrong += &format!("{text}\n   expected {expected}\n   found    {found}\n");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn a_text_that_postgresql_refuses_or_that_is_too_long_or_too_deep_is_an_error() {
    assert!(matches!(analyse("SELEC 1"), Err(AnalysisError::Grammar(_))));
    let long = format!("SELECT '{}'", "x".repeat(TEXT_MAX));
    assert_eq!(analyse(&long), Err(AnalysisError::TooLong));
    for (open, inside, close) in [
        ("1+", "1", ""),
        ("(", "1", ")"),
        ("NOT ", "true", ""),
        ("- ", "1", ""),
        ("(SELECT ", "1", ")"),
        ("f(", "1", ")"),
        ("ARRAY[", "1", "]"),
        ("CASE WHEN a THEN ", "1", " END"),
    ] {
        let times = TEXT_MAX / (open.len() + close.len()) - 10;
        let deep = format!(
            "SELECT {}{inside}{}",
            open.repeat(times),
            close.repeat(times)
        );
        assert!(
            matches!(analyse(&deep), Err(AnalysisError::Grammar(_))),
            "{open}"
        );
    }
    assert_eq!(analyse(""), Ok(Vec::new()));
}

#[test]
fn a_text_of_many_equalities_takes_no_long_time() {
    let pairs: Vec<_> = (0..1_500)
        .map(|n| format!("t.a{n}=u.a{} AND t.a{n}={n}", n + 1))
        .collect();
    let text = format!("SELECT FROM t, u WHERE {}", pairs.join(" AND "));
    let before = std::time::Instant::now();
    assert!(analyse(&text).is_ok());
    assert!(before.elapsed().as_secs() < 5, "{:?}", before.elapsed());
}
