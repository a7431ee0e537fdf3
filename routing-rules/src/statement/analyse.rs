//! From a text to what its statements do: the walk over PostgreSQL's parse tree.

use std::collections::HashSet;

use super::{Access, AnalysisError, Class, TableUse};
use crate::catalog::Catalog;
use crate::lex::{Kind, Lexer};
use crate::template::{Literals, TEXT_MAX, Template};

/// What is known of one statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// What it does.
    pub class: Class,
    /// What made it that, in a few words: `DELETE`, `function nextval`.
    pub because: String,
    /// The tables that it names, each as often as it does.
    pub tables: Vec<TableUse>,
    /// Whether it is LOCK TABLE.
    pub locks_table: bool,
}

/// What names mean.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Names<'c> {
    pub(super) catalog: Option<&'c Catalog>,
    pub(super) search_path: &'c [&'c str],
}

/// The statements of a text, and the places of its template whose literals are values of expressions.
#[derive(Debug)]
pub(super) struct Analysis {
    pub(super) statements: Vec<Statement>,
    /// Where the literals begin that may be others in the same plan.
    pub(super) replaceable: HashSet<usize>,
}

/// Analyses every statement of a text, which is read as with `standard_conforming_strings` on. Names are not looked up.
///
/// # Errors
/// See [`AnalysisError`]; such a text is to be treated as a write.
///
/// ```
/// use tandem_routing_rules::statement::{Access, Class, analyse};
///
/// let found = analyse("UPDATE bikes SET at = 3 WHERE station_id = 7 AND free")?;
/// assert_eq!(found[0].class, Class::Write);
/// assert_eq!((found[0].tables[0].access, found[0].tables[0].columns[1].0.as_str()), (Access::Write, "station_id"));
/// # Ok::<(), tandem_routing_rules::statement::AnalysisError>(())
/// ```
pub fn analyse(text: &str) -> Result<Vec<Statement>, AnalysisError> {
    let mut template = Template::default();
    let shape = template.read(text.as_bytes());
    let literals = shape.map(|shape| shape.literals).unwrap_or_default();
    analysis(text, literals, Names::default()).map(|found| found.statements)
}

/// Analyses a text whose literals were found already.
pub(super) fn analysis(
    text: &str,
    literals: Literals<'_>,
    names: Names<'_>,
) -> Result<Analysis, AnalysisError> {
    if text.len() > TEXT_MAX {
        return Err(AnalysisError::TooLong);
    }
    let parsed = parse(text)?;
    let mut replaceable = HashSet::new();
    let statements = parsed.stmts.iter().filter_map(|raw| raw.stmt.as_deref());
    let statements = statements.map(|node| {
        let mut scan = Scan::new(text, literals, names);
        scan.statement(node);
        replaceable.extend(scan.replaceable);
        Statement {
            class: scan.class.unwrap_or(Class::Unknown),
            because: scan.because,
            tables: scan.tables,
            locks_table: scan.locks_table,
        }
    });
    Ok(Analysis {
        statements: statements.collect(),
        replaceable,
    })
}

/// PostgreSQL's parse tree of a text.
pub(super) fn parse(text: &str) -> Result<pg_query::protobuf::ParseResult, AnalysisError> {
    let parsed = pg_query::parse(text, pg_query::ParserOptions::default())
        .map_err(|error| AnalysisError::Grammar(error.to_string()))?;
    Ok(parsed.protobuf)
}

/// What was found so far in one statement.
#[derive(Debug)]
pub(super) struct Scan<'c> {
    text: &'c str,
    pub(super) literals: Literals<'c>,
    pub(super) names: Names<'c>,
    pub(super) class: Option<Class>,
    because: String,
    pub(super) tables: Vec<TableUse>,
    pub(super) locks_table: bool,
    /// Names of the WITH queries that can be seen here: no tables.
    pub(super) with: Vec<String>,
    /// Where literals begin whose value does not change what is found.
    replaceable: HashSet<usize>,
    /// How many calls surround this place for which the value of an argument matters.
    pub(super) keeping: usize,
}

impl<'c> Scan<'c> {
    pub(super) fn new(text: &'c str, literals: Literals<'c>, names: Names<'c>) -> Self {
        Self {
            text,
            literals,
            names,
            class: None,
            because: String::new(),
            tables: Vec::new(),
            locks_table: false,
            with: Vec::new(),
            replaceable: HashSet::new(),
            keeping: 0,
        }
    }

    /// The statement is at least this.
    pub(super) fn rise(&mut self, class: Class, because: impl Into<String>) {
        if self.class < Some(class) {
            self.class = Some(class);
            self.because = because.into();
        }
    }

    /// Notes a use of a table, unless the name is a WITH query's. Answers its place among the uses.
    pub(super) fn table(
        &mut self,
        range: &pg_query::protobuf::RangeVar,
        access: Access,
    ) -> Option<usize> {
        let named = !range.schemaname.is_empty();
        if !named && access == Access::Read && self.with.contains(&range.relname) {
            return None;
        }
        self.tables.push(TableUse {
            schema: named.then(|| range.schemaname.clone()),
            name: range.relname.clone(),
            access,
            columns: Vec::new(),
            first_columns: Vec::new(),
        });
        Some(self.tables.len() - 1)
    }

    /// Another literal in this place would change nothing but values.
    pub(super) fn replaceable(&mut self, location: i32) {
        if self.keeping == 0
            && let Some((_, start, _)) = literal_at(self.text, self.literals, location)
        {
            self.replaceable.insert(start);
        }
    }

    /// Looks into a statement that is not run: nothing of it counts but which literals are values.
    pub(super) fn not_run(&mut self, node: &pg_query::Node) {
        let mut inside = Self::new(self.text, self.literals, self.names);
        inside.statement(node);
        self.replaceable.extend(inside.replaceable);
    }

    /// Where the values of expressions of this text stand.
    pub(super) fn places(&self) -> Places<'c> {
        Places {
            text: self.text,
            literals: self.literals,
        }
    }
}

/// Finds the places of literals of a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places<'c> {
    text: &'c str,
    literals: Literals<'c>,
}

impl Places<'_> {
    /// The place of the literal that begins at a location, and whether an odd number of minus signs stands before it.
    pub(super) fn at(self, location: i32) -> Option<(usize, bool)> {
        let found = literal_at(self.text, self.literals, location)?;
        Some((found.0, found.2))
    }
}

/// Place, beginning and sign of the literal at a location of the parse tree, which may be that of a sign before it.
fn literal_at(text: &str, literals: Literals<'_>, location: i32) -> Option<(usize, usize, bool)> {
    let location = usize::try_from(location).ok()?;
    let (place, literal) = literals.from(location)?;
    let before = text.as_bytes().get(location..literal.start)?;
    let mut negative = false;
    for token in Lexer::new(before, true).significant() {
        match token.kind {
            Kind::Operator if token.text == b"-" => negative = !negative,
            _ => return None,
        }
    }
    Some((place, literal.start, negative))
}
