use super::source::Parameter;
use super::*;
use crate::placement::Key;

/// What is found, in one line: class, then each table with what is done to it and the keys of its columns.
fn shown(text: &str) -> String {
    let all = match analyse(text) {
        Ok(all) => all,
        Err(error) => return format!("refused: {error}"),
    };
    let statements = all.iter().map(|statement| {
        let tables = statement.tables.iter().map(|table| {
            let columns = table.columns.iter().map(|(column, values)| {
                let parameter = |number: u16| match number {
                    1 => Parameter::Text("101"),
                    2 => Parameter::Text("{201,202}"),
                    _ => Parameter::Unknown,
                };
                let keys = values.keys(text, parameter);
                let keys = keys.map_or_else(
                    || "?".to_owned(),
                    |keys| {
                        let keys: Vec<_> = keys.iter().map(Key::to_string).collect();
                        keys.join("|")
                    },
                );
                format!("{column}={keys}")
            });
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
    let deep = format!("SELECT {}1", "1+".repeat(20_000));
    assert!(matches!(analyse(&deep), Err(AnalysisError::Grammar(_))));
    assert_eq!(analyse(""), Ok(Vec::new()));
}
