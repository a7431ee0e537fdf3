//! Where in a statement the value of a key stands.

use crate::catalog::ColumnType;

/// One value, or the elements of one array.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    /// Where it stands.
    pub origin: Origin,
    /// Whether it is an array, of which each element counts.
    pub array: bool,
    /// The type, or the type of the elements, that the statement casts it to.
    pub cast: Option<ColumnType>,
}

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The literals at a place of the template.
    Literal {
        /// The place.
        place: usize,
        /// Whether a minus sign stands before it.
        negative: bool,
    },
    /// A parameter, counted from 1.
    Parameter(u16),
    /// The statement's template says it: this text.
    Constant(Box<str>),
}

/// The values of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnValues {
    /// These and no others.
    Of(Vec<Source>),
    /// Something that only the server can tell: a default, an expression, NULL.
    Unknown,
}
