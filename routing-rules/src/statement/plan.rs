//! What a template does, found once, and the keys of each text of it.

use core::fmt;

use super::source::{Origin, Source};
use super::value::{Parameter, keys};
use super::{Access, AnalysisError, Class};
use crate::catalog::ColumnType;
use crate::expression::Expression;
use crate::model::Policy;
use crate::placement::Key;
use crate::template::Literals;

/// What all texts of one template do, under the rules, the catalog and the search path that it was made with.
///
/// A text of several statements is one: the most demanding class of them, the tables and keys of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What it does.
    pub class: Class,
    /// What made it that, in a few words.
    pub because: Box<str>,
    /// Why nothing is known of it; it is of the class [`Class::Unknown`] then.
    pub refused: Option<AnalysisError>,
    /// Whether LOCK TABLE is in it.
    pub locks_table: bool,
    /// The tables, views replaced by what is behind them.
    pub tables: Box<[PlannedTable]>,
    /// The keys that it names.
    pub keys: Box<[PlannedKey]>,
    /// The places of the template whose literals have to be the same for this plan to hold, in rising order.
    pub kept: Box<[usize]>,
}

/// A table of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTable {
    /// Its name, with the schema where that is known.
    pub name: Box<str>,
    /// What is done with it.
    pub access: Access,
    /// The placement of the rule that it has.
    pub placement: Option<Box<str>>,
    /// What its rule asks of writes; none: it has no rule.
    pub policy: Option<Policy>,
    /// Whether a write to it does what the statement does not say: rules, triggers.
    pub writes_elsewhere: bool,
}

/// How the keys of one use of a table are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedKey {
    /// The key space.
    pub placement: Box<str>,
    /// The table's name.
    pub table: Box<str>,
    /// What is done with it.
    pub access: Access,
    /// The type of the column, if a catalog said it.
    pub column_type: Option<ColumnType>,
    /// How the key comes from the column.
    pub expression: Option<Expression>,
    /// Each is all that one condition, or one assignment, says of the column. Empty: nothing is said.
    pub conditions: Box<[Box<[Source]>]>,
}

/// What a text and its Bind say that its template does not.
#[derive(Debug, Clone, Copy, Default)]
pub struct Values<'v> {
    /// The literals; none need be given where [`Plan::needs_literals`] says so.
    pub literals: Literals<'v>,
    /// The parameters, in their order.
    pub parameters: &'v [Parameter<'v>],
}

/// The keys that a text names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence<'p> {
    /// All that it does and that has a key has this one.
    Key {
        /// The key space.
        placement: &'p str,
        /// The key.
        key: Key,
    },
    /// Several keys, each once; whether they have one home is not known here. The first one that the text names is first.
    Keys(Vec<(&'p str, Key)>),
    /// None.
    None(NoKey<'p>),
}

impl fmt::Display for Evidence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A key is the client's text: escaped, so that it cannot forge a log line.
        let one =
            |placement: &str, key: &Key| format!("{placement}:{}", key.to_string().escape_debug());
        match self {
            Self::Key { placement, key } => f.write_str(&one(placement, key)),
            Self::Keys(keys) => {
                let keys = keys.iter().map(|(placement, key)| one(placement, key));
                f.write_str(&keys.collect::<Vec<_>>().join(", "))
            }
            Self::None(because) => because.fmt(f),
        }
    }
}

/// Why a text has no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoKey<'p> {
    /// No table that counts has a rule.
    #[error("no table of it has a rule")]
    NoRule,
    /// Nothing says which rows of a table they are.
    #[error("it does not say which key of table {0}")]
    NotSaid(&'p str),
    /// The value cannot be told, or is none of the column's type.
    #[error("the key of table {0} cannot be told")]
    NotTold(&'p str),
}

impl Plan {
    /// The plan of a text of which nothing is known.
    #[must_use]
    pub fn unknown(because: AnalysisError) -> Self {
        Self {
            class: Class::Unknown,
            because: because.to_string().into(),
            refused: Some(because),
            locks_table: false,
            tables: Box::default(),
            keys: Box::default(),
            kept: Box::default(),
        }
    }

    /// How many bytes it takes, about.
    #[cfg(feature = "grammar")]
    pub(super) fn bytes(&self) -> usize {
        let tables = self.tables.iter();
        let tables = tables.map(|table| size_of::<PlannedTable>() + table.name.len());
        let keys = self.keys.iter().map(|key| {
            let sources = key
                .conditions
                .iter()
                .map(|sources| sources.len())
                .sum::<usize>();
            size_of::<PlannedKey>() + key.table.len() + sources * size_of::<Source>()
        });
        size_of::<Self>() + tables.sum::<usize>() + keys.sum::<usize>()
    }

    /// Whether [`Plan::evidence`] looks at literals: it does not where all keys are parameters.
    #[must_use]
    pub fn needs_literals(&self) -> bool {
        let sources = self.keys.iter().flat_map(|key| &key.conditions).flatten();
        let is_literal = |source: &Source| matches!(source.origin, Origin::Literal { .. });
        sources.into_iter().any(is_literal)
    }

    /// Whether it changes rows or locks them, or may do so. What is locked besides rows, and what is changed besides them,
    /// has no key.
    #[must_use]
    pub fn writes_rows(&self) -> bool {
        match self.class {
            Class::Write | Class::Unknown => !self.locks_table,
            Class::Lock => !self.locks_table && self.written().next().is_some(),
            Class::Transaction | Class::Session | Class::Read | Class::Ddl => false,
        }
    }

    /// What is asked of it as a write: what all tables ask that it writes or locks, `default` of those without a rule.
    #[must_use]
    pub fn policy(&self, default: Policy) -> Policy {
        let of_tables = self.written().map(|table| table.policy.unwrap_or(default));
        of_tables.reduce(Policy::and).unwrap_or(default)
    }

    /// The tables that it writes or locks.
    fn written(&self) -> impl Iterator<Item = &PlannedTable> {
        let tables = self.tables.iter();
        tables.filter(|table| table.access > Access::Read)
    }

    /// The first table that it writes, or locks, of which this plan can never tell a key.
    #[must_use]
    pub fn unplaced(&self) -> Option<&str> {
        let without = |table: &&PlannedTable| {
            let named = |key: &PlannedKey| key.table == table.name && !key.conditions.is_empty();
            table.access > Access::Read && (table.writes_elsewhere || !self.keys.iter().any(named))
        };
        let found = self.tables.iter().find(without);
        found.map(|table| &*table.name)
    }

    /// The keys that a text names. Where it writes, those of the tables that it only reads do not count.
    #[must_use]
    pub fn evidence(&self, values: &Values<'_>) -> Evidence<'_> {
        let written = match self.class.is_write() {
            true => self.keys_with(values, Access::Write),
            false => self.keys_with(values, Access::Read),
        };
        match written {
            // What is written in such a statement is as a rule what it locked before.
            Evidence::None(because) if self.class.is_write() => {
                match self.keys_with(values, Access::Lock) {
                    Evidence::None(NoKey::NoRule) => Evidence::None(because),
                    locked => locked,
                }
            }
            found => found,
        }
    }

    fn keys_with(&self, values: &Values<'_>, access: Access) -> Evidence<'_> {
        let mut found: Vec<(&str, Key)> = Vec::new();
        let mut nothing = NoKey::NoRule;
        for planned in self.keys.iter().filter(|key| key.access == access) {
            let before = found.len();
            for condition in &planned.conditions {
                let start = found.len();
                if planned.add(condition, values, &mut found).is_none() {
                    found.truncate(start);
                }
            }
            if found.len() == before {
                nothing = match planned.conditions.is_empty() {
                    true => NoKey::NotSaid(&planned.table),
                    false => NoKey::NotTold(&planned.table),
                };
            }
        }
        if found.len() > 1 {
            let first = found.first().cloned();
            found.sort_unstable();
            found.dedup();
            let place = found.iter().position(|key| Some(key) == first.as_ref());
            found.swap(0, place.unwrap_or(0));
        }
        match found.len() {
            0 => Evidence::None(nothing),
            1 => found
                .pop()
                .map_or(Evidence::None(nothing), |(placement, key)| Evidence::Key {
                    placement,
                    key,
                }),
            _ => Evidence::Keys(found),
        }
    }
}

impl PlannedKey {
    /// Adds the keys of one condition. `None`: one of them cannot be told, and so none of them says anything.
    fn add<'p>(
        &'p self,
        condition: &[Source],
        values: &Values<'_>,
        found: &mut Vec<(&'p str, Key)>,
    ) -> Option<()> {
        let mut all = true;
        for source in condition {
            let mut push = |key: Key| {
                let key = match (&self.expression, key) {
                    (None, key) => Some(key),
                    (Some(expression), Key::Integer(value)) => {
                        expression.evaluate(value).ok().map(Key::Integer)
                    }
                    (Some(_), Key::Text(_)) => None,
                };
                match key {
                    Some(key) => found.push((&self.placement, key)),
                    None => all = false,
                }
            };
            keys(
                source,
                self.column_type,
                values.literals,
                values.parameters,
                &mut push,
            )?;
        }
        all.then_some(())
    }
}
