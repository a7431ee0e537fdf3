//! Where two nodes may write what is one: keys, counters and references that the placement of rows does not keep apart.
//!
//! What is written on one node only meets nothing. So the question is always whether the rows concerned can have several
//! homes at the same time.

use crate::model::{Affinity, DefaultWrite, Mode, Rules, Strategy};
use crate::schema::{Column, ForeignKey, Sequence, Table, UniqueKey};

#[cfg(feature = "grammar")]
use super::SelfUpdate;

/// What risks depend on.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// The rules.
    pub rules: &'a Rules,
    /// The tables that are the same on all nodes.
    pub tables: &'a [Table],
    /// How many nodes there are.
    pub nodes: usize,
    /// Whole sessions have their node, chosen when they connect, and write everything there.
    pub by_session: bool,
    /// What the application's texts count up and down.
    #[cfg(feature = "grammar")]
    pub self_updates: &'a [SelfUpdate],
}

/// Something that two nodes may write at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Risk {
    /// The table, `schema.table`; none: it concerns all.
    pub table: Option<String>,
    /// What may happen. One sentence without a full stop.
    pub what: String,
    /// How to mend it.
    pub mend: String,
}

/// Where writes of a table's rows go.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Homes<'r> {
    /// To one node.
    One(Home<'r>),
    /// To the home of the key that a row has by this rule.
    OfKey(&'r Affinity),
    /// To wherever the session is.
    Any,
}

/// A home that is one for all rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Home<'r> {
    Default,
    Single(&'r str),
}

/// All that can be seen, in the order of the tables' names.
#[must_use]
pub fn risks(circumstances: &Circumstances<'_>) -> Vec<Risk> {
    if circumstances.nodes < 2 {
        return Vec::new();
    }
    let mut found: Vec<Risk> = everywhere(circumstances).into_iter().collect();
    let mut tables: Vec<&Table> = circumstances
        .tables
        .iter()
        .filter(|table| !table.is_view && !table.is_partition)
        .collect();
    tables.sort_by_key(|table| (&table.schema, &table.name));
    for table in tables {
        let homes = homes(circumstances, table);
        if !matches!(homes, Homes::One(_)) {
            let keys = table.unique_keys.iter();
            found.extend(keys.filter_map(|key| key_risk(circumstances, table, homes, key)));
            #[cfg(feature = "grammar")]
            found.extend(counter_risks(circumstances, table, homes));
        }
        let references = table.foreign_keys.iter();
        found.extend(references.filter_map(|key| reference_risk(circumstances, table, homes, key)));
    }
    found
}

/// What concerns every table without a rule.
fn everywhere(circumstances: &Circumstances<'_>) -> Option<Risk> {
    let rules = circumstances.rules;
    let (what, mend) = if circumstances.by_session {
        (
            "whole sessions go to a node, so two of them can write one row on two nodes at the same time",
            "pool_mode = \"transaction\", under which writes go to the home of their key",
        )
    } else if rules.mode == Mode::Advise {
        (
            "mode = \"advise\" only tells where writes would go: they go to the nearest node",
            "mode = \"enforce\" in the rules file",
        )
    } else if rules.default_write == DefaultWrite::Nearest {
        (
            "writes without a key go to the nearest node, so two sessions can write one row on two nodes at the same time",
            "write = \"home\" under [default], or an affinity rule for each table that is written",
        )
    } else {
        return None;
    };
    Some(Risk {
        table: None,
        what: what.to_owned(),
        mend: mend.to_owned(),
    })
}

fn homes<'a>(circumstances: &Circumstances<'a>, table: &Table) -> Homes<'a> {
    let rules = circumstances.rules;
    if circumstances.by_session || rules.mode == Mode::Advise {
        return Homes::Any;
    }
    let mut affinities = rules.affinities.iter();
    let Some(affinity) = affinities.find(|affinity| table.is_called(&affinity.table)) else {
        return match rules.default_write {
            DefaultWrite::Home => Homes::One(Home::Default),
            DefaultWrite::Nearest => Homes::Any,
        };
    };
    let placement = rules.placement(&affinity.placement);
    match placement.map(|placement| &placement.strategy) {
        Some(Strategy::Single { .. }) => Homes::One(Home::Single(&affinity.placement)),
        _ => Homes::OfKey(affinity),
    }
}

/// Rows of several homes that may come to the same values.
fn key_risk(
    circumstances: &Circumstances<'_>,
    table: &Table,
    homes: Homes<'_>,
    key: &UniqueKey,
) -> Option<Risk> {
    let nodes = circumstances.nodes;
    // In steps for all nodes it is taken to have been made to miss what the others count.
    let misses_others = |sequence: &Sequence| {
        usize::try_from(sequence.increment.unsigned_abs()).is_ok_and(|step| step >= nodes)
    };
    let columns = || key.columns.iter().filter_map(|name| table.column(name));
    // Rows that are alike in it are alike in the key of their home. Nobody makes one uuid twice.
    let is_safe = |column: &Column| {
        column.type_name == "uuid"
            || matches!(homes, Homes::OfKey(affinity) if affinity.column == column.name)
            || column.sequence.as_ref().is_some_and(misses_others)
    };
    if columns().any(is_safe) {
        return None;
    }
    let name = table.full_name();
    let counted =
        columns().find_map(|column| Some((&column.name, &column.sequence.as_ref()?.name)));
    if let Some((column, sequence)) = counted {
        return Some(Risk {
            what: format!(
                "{column} comes from sequence {sequence}, which counts on each node for itself: rows that are inserted at several \
                 homes get the same {}",
                key.name
            ),
            mend: format!(
                "uuid keys (DEFAULT gen_random_uuid()); or numbers that differ by node: on node i of {nodes} ALTER SEQUENCE \
                 {sequence} INCREMENT BY {nodes} RESTART WITH <a multiple of {nodes} above all, plus i>"
            ),
            table: Some(name),
        });
    }
    if key.is_primary && homes == Homes::Any {
        // What was said of all tables.
        return None;
    }
    let list = key.columns.join(", ");
    let mend = match homes {
        Homes::OfKey(affinity) => format!(
            "make {} part of {}, or keep the table at one home (a placement with strategy = \"single\", or no rule)",
            affinity.column, key.name
        ),
        Homes::Any | Homes::One(_) => {
            "let the table have one home: write = \"home\", or an affinity rule by these columns"
                .to_owned()
        }
    };
    let kind = if key.is_primary {
        "the primary key"
    } else {
        "unique"
    };
    Some(Risk {
        what: format!(
            "rows of several homes can take the same ({list}), {kind} by {}: the newest stays, the other loses",
            key.name
        ),
        mend,
        table: Some(name),
    })
}

/// Columns that are counted up on several nodes.
#[cfg(feature = "grammar")]
fn counter_risks(circumstances: &Circumstances<'_>, table: &Table, homes: Homes<'_>) -> Vec<Risk> {
    let name = table.full_name();
    let mut columns: Vec<&str> = circumstances
        .self_updates
        .iter()
        .filter(|update| {
            let schema = update.schema.as_ref();
            update.table == table.name && schema.is_none_or(|schema| *schema == table.schema)
        })
        .filter(|update| homes == Homes::Any || !update.names_key)
        .map(|update| update.column.as_str())
        .filter(|column| {
            table
                .column(column)
                .is_some_and(|column| !column.is_counter)
        })
        .collect();
    columns.sort_unstable();
    columns.dedup();
    let risk = |column: &str| Risk {
        table: Some(name.clone()),
        what: format!(
            "{column} is counted ({column} = {column} + ..) by statements that may run on two nodes at the same time: one of two \
             changes is lost"
        ),
        mend: match homes {
            Homes::OfKey(affinity) => format!(
                "name the key in the statement (WHERE {} = ..), or let the nodes' changes be added up: counters = \
                 [\"{column}\"] under [replication.table.\"{name}\"]",
                affinity.column
            ),
            Homes::Any | Homes::One(_) => {
                format!("counters = [\"{column}\"] under [replication.table.\"{name}\"]")
            }
        },
    };
    columns.into_iter().map(risk).collect()
}

/// A row and what it refers to, written on two nodes.
fn reference_risk(
    circumstances: &Circumstances<'_>,
    table: &Table,
    homes_here: Homes<'_>,
    key: &ForeignKey,
) -> Option<Risk> {
    let (schema, name) = &key.table;
    let mut tables = circumstances.tables.iter();
    let parent = tables.find(|table| table.schema == *schema && table.name == *name)?;
    let is_together = match (homes_here, homes(circumstances, parent)) {
        (Homes::One(one), Homes::One(other)) => one == other,
        (Homes::OfKey(one), Homes::OfKey(other)) => {
            let mut pairs = key.columns.iter().zip(&key.referenced);
            one.placement == other.placement
                && one.key == other.key
                && pairs.any(|(here, there)| *here == one.column && *there == other.column)
        }
        // What was said of all tables.
        (Homes::Any, Homes::Any) => true,
        _ => false,
    };
    if is_together {
        return None;
    }
    let parent = parent.full_name();
    let columns = key.columns.join(", ");
    Some(Risk {
        table: Some(table.full_name()),
        what: format!(
            "({columns}) refers to {parent}, whose rows may be written on another node: one that is deleted there while a row \
             that refers to it is inserted here leaves that without it ({})",
            key.name
        ),
        mend: format!(
            "one placement for both tables by ({columns}) and ({}), or delete from {parent} only what nothing refers to any more",
            key.referenced.join(", ")
        ),
    })
}

#[cfg(test)]
mod tests;
