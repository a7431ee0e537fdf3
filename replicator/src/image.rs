//! Rows of the stream as JSON objects, for people and for the conflict log: a member for each column, its value the
//! type's text.

use serde_json::{Map, Value};

use crate::pgoutput::{Column, DecodeError, Message, OldTuple, decode};
use crate::relation::Relation;
use crate::transaction::Change;

/// A row, or what is known of it.
pub(crate) type Image = Map<String, Value>;

/// What becomes of columns that read as NULL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nulls {
    /// They are NULL.
    Shown,
    /// They may be NULL only for want of a value: the tuple may be a mere key.
    LeftOut,
}

/// The image of a tuple; what the stream leaves out is left out here too.
pub(crate) fn image<'a>(
    relation: &Relation,
    columns: impl IntoIterator<Item = Column<'a>>,
    nulls: Nulls,
) -> Image {
    let named = relation.columns.iter().zip(columns);
    let member = |(name, column): (&String, Column<'_>)| {
        let value = match column {
            Column::Null if nulls == Nulls::LeftOut => return None,
            Column::Null => Value::Null,
            Column::Unchanged | Column::Binary(_) => return None,
            Column::Text(text) => String::from_utf8_lossy(text).into_owned().into(),
        };
        Some((name.clone(), value))
    };
    named.filter_map(member).collect()
}

/// A change's rows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Images {
    /// What the stream tells of the old row: all of it, its key, or nothing.
    pub old: Option<Image>,
    /// The new row, without the large values that the stream leaves out.
    pub new: Option<Image>,
}

impl Images {
    /// Reads them.
    ///
    /// # Errors
    /// When the message is none of pgoutput's.
    pub(crate) fn of(change: &Change) -> Result<Self, DecodeError> {
        let relation = &change.relation;
        let old_image = |old: OldTuple<'_>| {
            let nulls = match old {
                OldTuple::Key(_) => Nulls::LeftOut,
                OldTuple::Full(_) => Nulls::Shown,
            };
            image(relation, old.tuple().columns(), nulls)
        };
        Ok(match decode(&change.message)? {
            Message::Insert { new, .. } => Self {
                old: None,
                new: Some(image(relation, new.columns(), Nulls::Shown)),
            },
            Message::Update { old, new, .. } => {
                let whole = match old {
                    Some(OldTuple::Full(tuple)) => tuple.columns().collect(),
                    Some(OldTuple::Key(_)) | None => Vec::new(),
                };
                // Under REPLICA IDENTITY FULL an unchanged large value stands in the old row.
                let filled = new
                    .columns()
                    .enumerate()
                    .map(|(index, column)| match column {
                        Column::Unchanged => whole.get(index).copied().unwrap_or(column),
                        column => column,
                    });
                Self {
                    old: old.map(old_image),
                    new: Some(image(relation, filled, Nulls::Shown)),
                }
            }
            Message::Delete { old, .. } => Self {
                old: Some(old_image(old)),
                new: None,
            },
            _ => Self::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::relation::Interner;
    use crate::transaction::Operation;

    fn images(operation: Operation, message: &'static [u8]) -> Images {
        let shape = b"R\0\0\0\x07public\0t\0d\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\0note\0\0\0\0\x19\xff\xff\xff\xff";
        let relation: Arc<Relation> = Interner::default().intern(shape).expect("a shape");
        let change = Change {
            relation,
            operation,
            message: Bytes::from_static(message),
        };
        Images::of(&change).expect("a change")
    }

    fn object(value: &Value) -> Option<Image> {
        value.as_object().cloned()
    }

    #[test]
    fn an_insert_shows_its_nulls_and_a_deletes_key_has_no_other_columns() {
        let insert = images(Operation::Insert, b"I\0\0\0\x07N\0\x02t\0\0\0\x011n");
        assert_eq!(insert.new, object(&json!({ "id": "1", "note": null })));
        assert_eq!(insert.old, None);
        let delete = images(Operation::Delete, b"D\0\0\0\x07K\0\x02t\0\0\0\x011n");
        assert_eq!(delete.old, object(&json!({ "id": "1" })));
        let whole = images(Operation::Delete, b"D\0\0\0\x07O\0\x02t\0\0\0\x011n");
        assert_eq!(whole.old, object(&json!({ "id": "1", "note": null })));
    }

    #[test]
    fn a_large_value_that_an_update_leaves_out_is_taken_from_the_old_row_where_that_is_whole() {
        let without = images(Operation::Update, b"U\0\0\0\x07N\0\x02t\0\0\0\x011u");
        assert_eq!(
            (without.old, without.new),
            (None, object(&json!({ "id": "1" })))
        );
        let whole = images(
            Operation::Update,
            b"U\0\0\0\x07O\0\x02t\0\0\0\x011t\0\0\0\x01xN\0\x02t\0\0\0\x012u",
        );
        assert_eq!(whole.old, object(&json!({ "id": "1", "note": "x" })));
        assert_eq!(whole.new, object(&json!({ "id": "2", "note": "x" })));
    }
}
