//! The shapes of source tables, each held once however often it is read.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;

use crate::journal::codec::CodecError;
use crate::pgoutput::{Message, decode};

/// The shape of a source table at one time. Another shape is another value with another `id`.
#[derive(Debug)]
pub(crate) struct Relation {
    /// Unique in this process: what prepared statements are kept under.
    pub id: u64,
    /// Schema.
    pub schema: String,
    /// Table.
    pub name: String,
    /// Column names, in the order in which tuples carry them.
    pub columns: Vec<String>,
    /// The pgoutput message that says all this, and the columns' types.
    pub message: Bytes,
}

/// Gives the same [`Relation`] for the same message as long as somebody holds it.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_message: HashMap<Bytes, Weak<Relation>>,
    /// Forgotten shapes are swept out when so many are known.
    sweep_at: usize,
}

/// Shapes below this number are never swept.
const SWEEP_MIN: usize = 1024;

impl Interner {
    /// The shape that a pgoutput `R` message stands for.
    ///
    /// # Errors
    /// When it is no such message.
    pub(crate) fn intern(&self, message: &[u8]) -> Result<Arc<Relation>, CodecError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(relation) = known.by_message.get(message).and_then(Weak::upgrade) {
            return Ok(relation);
        }
        let Message::Relation(view) = decode(message)? else {
            return Err(CodecError::OutOfPlace {
                tag: message.first().map_or('?', |&tag| char::from(tag)),
                expected: "shape",
            });
        };
        let schema = if view.schema.is_empty() {
            "pg_catalog"
        } else {
            view.schema
        };
        let relation = Arc::new(Relation {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            schema: schema.to_owned(),
            name: view.name.to_owned(),
            columns: view
                .columns
                .iter()
                .map(|column| column.name.to_owned())
                .collect(),
            // A copy: the message may be a view of a whole receive buffer.
            message: Bytes::copy_from_slice(message),
        });
        if known.by_message.len() >= known.sweep_at {
            known.by_message.retain(|_, weak| weak.strong_count() > 0);
            known.sweep_at = SWEEP_MIN.max(known.by_message.len() * 2);
        }
        known
            .by_message
            .insert(relation.message.clone(), Arc::downgrade(&relation));
        Ok(relation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(oid: u32, column: &str, type_oid: u32) -> Vec<u8> {
        let mut bytes = vec![b'R'];
        bytes.extend(oid.to_be_bytes());
        bytes.extend(b"public\0t\0d\0\x01\x01");
        bytes.extend(column.as_bytes());
        bytes.push(0);
        bytes.extend(type_oid.to_be_bytes());
        bytes.extend((-1i32).to_be_bytes());
        bytes
    }

    #[test]
    fn the_same_shape_is_held_once_and_another_type_makes_another() {
        let interner = Interner::default();
        let one = interner.intern(&message(1, "id", 23)).expect("a shape");
        let same = interner.intern(&message(1, "id", 23)).expect("a shape");
        assert!(Arc::ptr_eq(&one, &same));
        for other in [
            message(1, "id", 20),
            message(1, "ID", 23),
            message(2, "id", 23),
        ] {
            assert_ne!(interner.intern(&other).expect("a shape").id, one.id);
        }
        assert_eq!((one.schema.as_str(), one.name.as_str()), ("public", "t"));
        assert_eq!(one.columns, ["id"]);
    }

    #[test]
    fn shapes_that_nobody_holds_are_forgotten() {
        let interner = Interner::default();
        let kept = interner.intern(&message(0, "id", 23)).expect("a shape");
        for oid in 1..10 * u32::try_from(SWEEP_MIN).expect("small") {
            interner.intern(&message(oid, "id", 23)).expect("a shape");
        }
        let known = interner.known.lock().expect("no panic").by_message.len();
        assert!(known <= 2 * SWEEP_MIN, "{known}");
        let again = interner.intern(&message(0, "id", 23)).expect("a shape");
        assert!(Arc::ptr_eq(&kept, &again));
    }

    #[test]
    fn other_messages_are_no_shapes() {
        let interner = Interner::default();
        for other in [&b"T\0\0\0\0\0"[..], b"", b"R\0\0"] {
            assert!(interner.intern(other).is_err());
        }
    }
}
