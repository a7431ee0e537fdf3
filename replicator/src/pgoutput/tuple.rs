//! Rows as borrowed views.

use super::{DecodeError, Fields};

/// What an UPDATE or DELETE tells of the old row.
#[derive(Debug, Clone, Copy)]
pub enum OldTuple<'a> {
    /// Only the columns of the replica identity are set, the others read as NULL.
    Key(Tuple<'a>),
    /// The whole row (REPLICA IDENTITY FULL).
    Full(Tuple<'a>),
}

impl<'a> OldTuple<'a> {
    /// Reads what stands behind `kind`; `None` when that is not the byte of an old row.
    pub(super) fn read(fields: &mut Fields<'a>, kind: u8) -> Result<Option<Self>, DecodeError> {
        Ok(match kind {
            b'K' => Some(Self::Key(Tuple::read(fields)?)),
            b'O' => Some(Self::Full(Tuple::read(fields)?)),
            _ => None,
        })
    }

    /// The tuple, whichever kind it is.
    pub fn tuple(&self) -> Tuple<'a> {
        match self {
            Self::Key(tuple) | Self::Full(tuple) => *tuple,
        }
    }
}

/// One column of a tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column<'a> {
    /// SQL NULL.
    Null,
    /// A TOAST value that the UPDATE did not touch; it is not in the stream.
    Unchanged,
    /// The type's text output.
    Text(&'a [u8]),
    /// The type's send function's output. Comes only where the option `binary` was given.
    Binary(&'a [u8]),
}

impl<'a> Column<'a> {
    fn read(fields: &mut Fields<'a>) -> Result<Self, DecodeError> {
        Ok(match fields.u8()? {
            b'n' => Self::Null,
            b'u' => Self::Unchanged,
            b't' => Self::Text(fields.sized()?),
            b'b' => Self::Binary(fields.sized()?),
            byte => return Err(fields.unexpected(byte)),
        })
    }
}

/// A row's columns. Invariant: its bytes were walked once, so that iterating it again cannot fail.
#[derive(Debug, Clone, Copy)]
pub struct Tuple<'a> {
    count: u16,
    body: Fields<'a>,
}

impl<'a> Tuple<'a> {
    pub(super) fn read(fields: &mut Fields<'a>) -> Result<Self, DecodeError> {
        let count = fields.u16()?;
        let body = *fields;
        for _ in 0..count {
            Column::read(fields)?;
        }
        Ok(Self { count, body })
    }

    /// Its bytes in the message.
    pub fn size(&self) -> usize {
        let size = |column| match column {
            Column::Null | Column::Unchanged => 1,
            Column::Text(value) | Column::Binary(value) => 1 + size_of::<u32>() + value.len(),
        };
        size_of::<u16>() + self.columns().map(size).sum::<usize>()
    }

    /// The columns, in the relation's order.
    pub fn columns(&self) -> impl Iterator<Item = Column<'a>> + use<'a> {
        let mut body = self.body;
        (0..self.count).map_while(move |_| Column::read(&mut body).ok())
    }
}
