//! Broken rules files: of each everything that is wrong is told with line, column, the offending text and a mend.
//!
//! `broken/NAME.toml` is the file, `broken/NAME.expected` what is told of it, a line for each problem.

use std::{fs, path::Path};

use tandem_routing_rules::{
    NodeInfo, Rules,
    catalog::ColumnType,
    check,
    schema::{Column, Table},
};

/// The nodes of the cluster that the files are for.
fn nodes() -> Vec<NodeInfo> {
    let names = (1..).zip(["paris", "oslo", "rome"]);
    let node = |(id, name): (u16, &str)| NodeInfo {
        id,
        name: name.to_owned(),
        zone: None,
    };
    names.map(node).collect()
}

/// The tables of its database.
fn tables() -> Vec<Table> {
    let text = |deterministic| ColumnType::Text { deterministic };
    let column = |(name, type_name, column_type): (&str, &str, ColumnType)| Column {
        name: name.to_owned(),
        type_name: type_name.to_owned(),
        column_type,
        sequence: None,
        is_counter: false,
    };
    let table = |name: &str, is_view, columns: &[(&str, &str, ColumnType)]| Table {
        schema: "public".to_owned(),
        name: name.to_owned(),
        is_view,
        is_partition: false,
        columns: columns.iter().copied().map(column).collect(),
        unique_keys: Vec::new(),
        foreign_keys: Vec::new(),
    };
    let orders = [
        ("id", "uuid", ColumnType::Uuid),
        ("shop_id", "integer", ColumnType::Integer),
        ("city", "text", text(false)),
        ("paid", "boolean", ColumnType::Bool),
    ];
    let stock = [
        ("shop_id", "integer", ColumnType::Integer),
        ("code", "text", text(true)),
        ("weight", "double precision", ColumnType::Other),
    ];
    vec![
        table("orders", false, &orders),
        table("stock", false, &stock),
        table("open_orders", true, &orders),
    ]
}

/// All that is wrong with a file, a line each.
fn told(source: &str) -> String {
    let problems = match Rules::parse(source, &nodes()) {
        Ok(rules) => check::problems(source, &rules, &tables()),
        Err(errors) => errors.problems,
    };
    let line = |problem: &tandem_routing_rules::document::Problem| {
        assert!(problem.hint.is_some(), "no mend: {problem:?}");
        format!("{}\n", problem.located(source))
    };
    problems.iter().map(line).collect()
}

#[test]
fn everything_that_is_wrong_is_told_with_place_text_and_mend() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken");
    let mut wrong = String::new();
    let mut files = 0;
    for entry in fs::read_dir(dir).expect("the files") {
        let path = entry.expect("a file").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        files += 1;
        let source = fs::read_to_string(&path).expect("the file");
        let expected = fs::read_to_string(path.with_extension("expected")).unwrap_or_default();
        let told = told(&source);
        if told != expected || told.is_empty() {
            let name = path.file_name().unwrap_or_default().display();
            wrong += &format!("{name}: expected\n{expected}told\n{told}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(files >= 10, "{files} files");
}

#[test]
fn rules_that_fit_the_tables_are_right() {
    let source = "[placement.shop]\nstrategy = \"hash\"\n[[affinity]]\nplacement = \"shop\"\n\
         tables = { \"public.orders\" = \"id\", stock = { column = \"shop_id\", key = \"shop_id / 10\" } }\n";
    assert_eq!(told(source), "");
}
