//! Which columns a text counts up or down: `SET n = n + 1`.
//!
//! Texts may be whatever has SQL inside: statements, bodies of functions, rules.

use std::collections::BTreeSet;

use pg_query::{
    NodeEnum, NodeRef,
    protobuf::{AExprKind, ColumnRef, Node, RangeVar},
};

use crate::lex::{Kind, Lexer, Token};
use crate::model::Rules;
use crate::statement::{Access, Plan};
use crate::template::TEXT_MAX;

/// So many statements of one text are looked at.
const STATEMENTS_MAX: usize = 1_000;

/// A column that an UPDATE, or an INSERT .. ON CONFLICT, sets to its own value and something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SelfUpdate {
    /// The table's schema, if it is named.
    pub schema: Option<String>,
    /// The table's name.
    pub table: String,
    /// The column.
    pub column: String,
    /// Whether the statement names the key of the table's rule, so that it goes to that key's home.
    pub names_key: bool,
}

/// All of them in a text. What is not understood is left out.
#[must_use]
pub fn self_updates(text: &str, rules: &Rules) -> Vec<SelfUpdate> {
    let tokens: Vec<Token<'_>> = Lexer::new(text.as_bytes(), true).significant().collect();
    let mut found = BTreeSet::new();
    let pieces = tokens.split(|token| token.kind == Kind::Punctuation && token.text == b";");
    for piece in pieces.take(STATEMENTS_MAX) {
        let end = piece.last().map_or(0, Token::end);
        // What stands before is the language around it. The first that is a whole statement counts.
        let starts = piece.iter().filter(|token| {
            ["with", "insert", "update"]
                .iter()
                .any(|word| token.is_word(word))
        });
        let statements = starts.filter_map(|token| text.get(token.start..end));
        for statement in statements.filter(|statement| statement.len() <= TEXT_MAX) {
            if let Some(of_statement) = of_statement(statement, rules) {
                found.extend(of_statement);
                break;
            }
        }
    }
    found.into_iter().collect()
}

fn of_statement(text: &str, rules: &Rules) -> Option<Vec<SelfUpdate>> {
    let parsed = pg_query::parse(text, pg_query::ParserOptions::default()).ok()?;
    let plan = Plan::of(text, rules, None, &["public"]);
    let mut found = Vec::new();
    for (node, ..) in parsed.protobuf.nodes() {
        let (relation, targets) = match node {
            NodeRef::UpdateStmt(update) => (&update.relation, &update.target_list),
            NodeRef::InsertStmt(insert) => match &insert.on_conflict_clause {
                Some(conflict) => (&insert.relation, &conflict.target_list),
                None => continue,
            },
            _ => continue,
        };
        let Some(relation) = relation else { continue };
        let columns = targets.iter().filter_map(counted);
        found.extend(columns.map(|column| update_of(relation, column, &plan)));
    }
    Some(found)
}

fn update_of(relation: &RangeVar, column: &str, plan: &Plan) -> SelfUpdate {
    let schema = Some(relation.schemaname.clone()).filter(|schema| !schema.is_empty());
    let is_it = |name: &str| name.rsplit('.').next() == Some(relation.relname.as_str());
    let mut keys = plan.keys.iter();
    SelfUpdate {
        names_key: keys.any(|key| {
            key.access == Access::Write && is_it(&key.table) && !key.conditions.is_empty()
        }),
        schema,
        table: relation.relname.clone(),
        column: column.to_owned(),
    }
}

/// The column of `column = column + ..`.
fn counted(target: &Node) -> Option<&str> {
    let Some(NodeEnum::ResTarget(target)) = &target.node else {
        return None;
    };
    let Some(NodeEnum::AExpr(value)) = &target.val.as_ref()?.node else {
        return None;
    };
    if value.kind() != AExprKind::AexprOp {
        return None;
    }
    let operator = value.name.iter().rev().find_map(text);
    let is_itself = |operand: &Option<Box<Node>>| {
        let node = operand.as_ref().and_then(|node| node.node.as_ref());
        matches!(node, Some(NodeEnum::ColumnRef(column)) if last_name(column) == Some(target.name.as_str()))
    };
    let counts = match operator? {
        "+" => is_itself(&value.lexpr) || is_itself(&value.rexpr),
        "-" => is_itself(&value.lexpr),
        _ => false,
    };
    counts.then_some(target.name.as_str())
}

fn last_name(column: &ColumnRef) -> Option<&str> {
    column.fields.last().and_then(text)
}

fn text(node: &Node) -> Option<&str> {
    match &node.node {
        Some(NodeEnum::String(text)) => Some(&text.sval),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = "[placement.shop]\nstrategy = \"hash\"\n[[affinity]]\nplacement = \"shop\"\ntables = { stock = \"shop_id\" }\n";

    /// `table.column`, with `!` where the key is not named.
    fn found(text: &str) -> Vec<String> {
        let rules = Rules::parse(RULES, &[]).unwrap();
        let show = |update: SelfUpdate| {
            let mark = if update.names_key { "" } else { "!" };
            let schema = update
                .schema
                .map_or_else(String::new, |schema| schema + ".");
            format!("{mark}{schema}{}.{}", update.table, update.column)
        };
        self_updates(text, &rules).into_iter().map(show).collect()
    }

    #[test]
    fn counting_up_and_down_is_found_wherever_sql_stands() {
        let table: [(&str, &[&str]); 12] = [
            (
                "UPDATE stock SET n = n - $1 WHERE shop_id = $2 AND item = $3",
                &["stock.n"],
            ),
            ("UPDATE stock SET n = n - 1 WHERE item = 7", &["!stock.n"]),
            (
                "update s.hits h set n = h.n + 1, at = now()",
                &["!s.hits.n"],
            ),
            ("UPDATE hits SET n = 1 + n", &["!hits.n"]),
            ("UPDATE hits SET n = 1 - n", &[]),
            ("UPDATE hits SET n = m + 1, text = text || 'a', k = 3", &[]),
            (
                "INSERT INTO hits VALUES (1) ON CONFLICT (id) DO UPDATE SET n = hits.n + excluded.n",
                &["!hits.n"],
            ),
            (
                "WITH x AS (UPDATE hits SET n = n + 1 RETURNING n) SELECT * FROM x",
                &["!hits.n"],
            ),
            (
                "DECLARE x int; BEGIN IF x > 1 THEN UPDATE hits SET n = n + x; END IF; UPDATE hits SET m = m - 1; END",
                &["!hits.m", "!hits.n"],
            ),
            (
                "CREATE RULE r AS ON UPDATE TO v DO INSTEAD UPDATE hits SET n = hits.n + 1",
                &["!hits.n"],
            ),
            ("SELECT 'UPDATE hits SET n = n + 1' FOR UPDATE", &[]),
            ("no sql; UPDATE; $$", &[]),
        ];
        for (text, wanted) in table {
            assert_eq!(found(text), wanted, "{text}");
        }
    }
}
