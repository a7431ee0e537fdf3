//! Which statement of a text a command is, and what has to be changed of it where it is carried out again.

use pg_query::NodeEnum;
use pg_query::protobuf::{
    AlterTableType, ObjectType, ParseResult, RawStmt, Token, TransactionStmtKind,
};

use super::DdlError;

/// The statement of `text` that is its `number`-th command (from 0) for which event triggers fire.
///
/// # Errors
/// When the text cannot be parsed, or that statement is not what `tag` says.
pub(super) fn choose(
    text: &str,
    tag: &str,
    number: usize,
    conforming_strings: bool,
) -> Result<String, DdlError> {
    let unparsed = |error: pg_query::Error| DdlError::Unparsed {
        tag: tag.to_owned(),
        problem: error.to_string(),
    };
    let options = if conforming_strings {
        pg_query::ParserOptions::DEFAULT
    } else {
        pg_query::ParserOptions::DISABLE_STANDARD_CONFORMING_STRINGS
    };
    let parsed = pg_query::parse(text, options).map_err(unparsed)?.protobuf;
    let firing: Vec<&RawStmt> = parsed
        .stmts
        .iter()
        .filter(|raw| node(raw).is_some_and(fires))
        .collect();
    let not_found = || DdlError::NotFound {
        tag: tag.to_owned(),
    };
    let verb = tag.split(' ').next().unwrap_or_default();
    // A function may carry the same text out again and again.
    let number = number.checked_rem(firing.len()).ok_or_else(not_found)?;
    let at = firing.get(number..).unwrap_or_default();
    let chosen = if parsed.stmts.iter().filter_map(node).any(rolls_back) {
        // What was rolled back was not counted, so that it is this one or one behind it.
        let mut fitting = at.iter().filter(|raw| begins_with(text, raw, verb));
        let first = fitting.next();
        first.filter(|_| fitting.next().is_none())
    } else {
        let mut at = at.iter();
        at.next().filter(|raw| begins_with(text, raw, verb))
    };
    let chosen = *chosen.ok_or_else(not_found)?;
    let sql = part(text, chosen).ok_or_else(not_found)?;
    let tokens = pg_query::scan_tokens(sql).map_err(unparsed)?;
    match node(chosen) {
        // What another node has dropped as well is not there any more.
        Some(NodeEnum::DropStmt(drop)) => {
            let mut drop = drop.clone();
            drop.missing_ok = true;
            drop.concurrent = false;
            let statement = ParseResult {
                version: parsed.version,
                stmts: vec![RawStmt {
                    stmt: Some(Box::new(pg_query::Node {
                        node: Some(NodeEnum::DropStmt(drop)),
                    })),
                    stmt_location: 0,
                    stmt_len: 0,
                }],
            };
            pg_query::deparse(&statement, pg_query::DeparseOptions::default()).map_err(unparsed)
        }
        Some(found) if is_concurrent(found) => {
            let word = tokens
                .iter()
                .find(|found| found.token == Token::Concurrently as i32);
            let word = word.and_then(|word| range(word.start, word.end));
            let word = word.ok_or_else(not_found)?;
            let (before, behind) = (sql.get(..word.start), sql.get(word.end..));
            let (before, behind) = before.zip(behind).ok_or_else(not_found)?;
            Ok(format!("{before}{behind}"))
        }
        _ => Ok(sql.to_owned()),
    }
}

fn node(raw: &RawStmt) -> Option<&NodeEnum> {
    raw.stmt.as_ref()?.node.as_ref()
}

fn range(start: i32, end: i32) -> Option<std::ops::Range<usize>> {
    Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
}

/// The text of one statement.
fn part<'t>(text: &'t str, raw: &RawStmt) -> Option<&'t str> {
    let start = usize::try_from(raw.stmt_location).ok()?;
    let rest = text.get(start..)?;
    // No length: up to the end.
    match usize::try_from(raw.stmt_len).ok()? {
        0 => Some(rest),
        length => rest.get(..length),
    }
}

/// Whether the first word of a statement is this one.
fn begins_with(text: &str, raw: &RawStmt, verb: &str) -> bool {
    let Some(sql) = part(text, raw) else {
        return false;
    };
    let Ok(tokens) = pg_query::scan_tokens(sql) else {
        return false;
    };
    let comments = [Token::SqlComment as i32, Token::CComment as i32];
    let first = tokens.iter().find(|found| !comments.contains(&found.token));
    let first = first.and_then(|found| sql.get(range(found.start, found.end)?));
    first.is_some_and(|word| word.eq_ignore_ascii_case(verb))
}

/// Whether it undoes what was done before.
fn rolls_back(node: &NodeEnum) -> bool {
    let kinds = [
        TransactionStmtKind::TransStmtRollback as i32,
        TransactionStmtKind::TransStmtRollbackTo as i32,
    ];
    matches!(node, NodeEnum::TransactionStmt(transaction) if kinds.contains(&transaction.kind))
}

/// Whether it cannot run inside of a transaction, although what it does can.
fn is_concurrent(node: &NodeEnum) -> bool {
    match node {
        NodeEnum::IndexStmt(index) => index.concurrent,
        NodeEnum::AlterTableStmt(alter) => alter.cmds.iter().any(|command| {
            let Some(NodeEnum::AlterTableCmd(command)) = &command.node else {
                return false;
            };
            let detached = match command.def.as_deref().and_then(|def| def.node.as_ref()) {
                Some(NodeEnum::PartitionCmd(partition)) => partition.concurrent,
                _ => false,
            };
            command.subtype == AlterTableType::AtDetachPartition as i32 && detached
        }),
        _ => false,
    }
}

/// Whether `ddl_command_end` triggers fire for it (src/backend/tcop/utility.c, `ProcessUtilitySlow` and
/// `EventTriggerSupportsObjectType`). REINDEX, for which they do from PostgreSQL 17 on, is not told.
fn fires(node: &NodeEnum) -> bool {
    let of_database = |kind: i32| {
        let beyond = [
            ObjectType::ObjectDatabase,
            ObjectType::ObjectTablespace,
            ObjectType::ObjectRole,
            ObjectType::ObjectEventTrigger,
            ObjectType::ObjectParameterAcl,
        ];
        !beyond.iter().any(|&object| object as i32 == kind)
    };
    match node {
        NodeEnum::SelectStmt(select) => select.into_clause.is_some(),
        NodeEnum::CommentStmt(comment) => of_database(comment.objtype),
        NodeEnum::SecLabelStmt(label) => of_database(label.objtype),
        NodeEnum::GrantStmt(grant) => of_database(grant.objtype),
        NodeEnum::DropStmt(drop) => of_database(drop.remove_type),
        NodeEnum::RenameStmt(rename) => of_database(rename.rename_type),
        NodeEnum::AlterOwnerStmt(owner) => of_database(owner.object_type),
        NodeEnum::InsertStmt(_)
        | NodeEnum::DeleteStmt(_)
        | NodeEnum::UpdateStmt(_)
        | NodeEnum::MergeStmt(_)
        | NodeEnum::CopyStmt(_)
        | NodeEnum::TransactionStmt(_)
        | NodeEnum::VariableSetStmt(_)
        | NodeEnum::VariableShowStmt(_)
        | NodeEnum::TruncateStmt(_)
        | NodeEnum::VacuumStmt(_)
        | NodeEnum::ExplainStmt(_)
        | NodeEnum::PrepareStmt(_)
        | NodeEnum::ExecuteStmt(_)
        | NodeEnum::DeallocateStmt(_)
        | NodeEnum::DeclareCursorStmt(_)
        | NodeEnum::ClosePortalStmt(_)
        | NodeEnum::FetchStmt(_)
        | NodeEnum::NotifyStmt(_)
        | NodeEnum::ListenStmt(_)
        | NodeEnum::UnlistenStmt(_)
        | NodeEnum::LoadStmt(_)
        | NodeEnum::LockStmt(_)
        | NodeEnum::ClusterStmt(_)
        | NodeEnum::ReindexStmt(_)
        | NodeEnum::CheckPointStmt(_)
        | NodeEnum::DiscardStmt(_)
        | NodeEnum::ConstraintsSetStmt(_)
        | NodeEnum::DoStmt(_)
        | NodeEnum::CallStmt(_)
        | NodeEnum::GrantRoleStmt(_)
        | NodeEnum::CreateRoleStmt(_)
        | NodeEnum::AlterRoleStmt(_)
        | NodeEnum::AlterRoleSetStmt(_)
        | NodeEnum::DropRoleStmt(_)
        | NodeEnum::CreatedbStmt(_)
        | NodeEnum::DropdbStmt(_)
        | NodeEnum::AlterDatabaseStmt(_)
        | NodeEnum::AlterDatabaseRefreshCollStmt(_)
        | NodeEnum::AlterDatabaseSetStmt(_)
        | NodeEnum::AlterSystemStmt(_)
        | NodeEnum::CreateTableSpaceStmt(_)
        | NodeEnum::DropTableSpaceStmt(_)
        | NodeEnum::AlterTableSpaceOptionsStmt(_)
        | NodeEnum::CreateEventTrigStmt(_)
        | NodeEnum::AlterEventTrigStmt(_) => false,
        _ => true,
    }
}
