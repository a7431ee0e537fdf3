//! Owns what a worker remembers of texts that come again and again.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Texts that are remembered at most, a power of two.
const PLACES: usize = 128;
/// Bytes of a text that is remembered.
const TEXT_MAX: usize = 1024;

/// What was found out of texts, each at the place that its hash gives. A text is kept when it comes a second time with
/// no other at its place between: one that never comes again, for what is written out in it, leaves its hash only.
#[derive(Debug)]
pub(crate) struct Texts<T>(Vec<Place<T>>);

#[derive(Debug)]
struct Place<T> {
    hash: u64,
    found: Option<Found<T>>,
}

#[derive(Debug)]
struct Found<T> {
    scope: u64,
    text: Box<[u8]>,
    what: T,
}

impl<T: Clone> Texts<T> {
    /// Nothing yet.
    pub(crate) const fn new() -> Texts<T> {
        Texts(Vec::new())
    }

    /// What `read` finds out of a text, or found out of the same one under the same `scope` before.
    pub(crate) fn get(&mut self, scope: u64, text: &[u8], read: impl FnOnce() -> T) -> T {
        if text.len() > TEXT_MAX {
            return read();
        }
        self.at(xxh3_64_with_seed(text, scope), scope, text, read)
    }

    fn at(&mut self, hash: u64, scope: u64, text: &[u8], read: impl FnOnce() -> T) -> T {
        if self.0.is_empty() {
            self.0.resize_with(PLACES, || Place {
                hash: 0,
                found: None,
            });
        }
        // The remainder is less than the number of places.
        #[allow(clippy::cast_possible_truncation)]
        let Some(place) = self.0.get_mut((hash % PLACES as u64) as usize) else {
            return read();
        };
        if place.hash != hash {
            *place = Place { hash, found: None };
            return read();
        }
        // Two texts can have one hash.
        let is_same = |known: &&Found<T>| known.scope == scope && *known.text == *text;
        if let Some(known) = place.found.as_ref().filter(is_same) {
            return known.what.clone();
        }
        let what = read();
        place.found = Some(Found {
            scope,
            text: text.into(),
            what: what.clone(),
        });
        what
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_comes_again_is_read_twice_at_most() {
        let mut texts = Texts::new();
        let mut reads = 0;
        for _ in 0..5 {
            let found = texts.get(7, b"BEGIN", || {
                reads += 1;
                reads
            });
            assert_eq!(found, reads);
        }
        assert_eq!(reads, 2);
        assert_eq!(texts.get(8, b"BEGIN", || 0), 0);
    }

    #[test]
    fn a_text_is_never_taken_for_another_one_of_its_hash_place_or_scope() {
        let mut texts = Texts::new();
        let place = PLACES as u64;
        for _ in 0..3 {
            for (hash, scope, text) in [
                (1, 0, "BEGIN"),
                (1, 0, "COMMIT"),
                (1, 1, "COMMIT"),
                (1 + place, 0, "LISTEN a"),
                (1, 0, ""),
            ] {
                for _ in 0..3 {
                    let found = texts.at(hash, scope, text.as_bytes(), || (scope, text));
                    assert_eq!(found, (scope, text));
                }
            }
        }
    }

    #[test]
    fn texts_that_do_not_come_again_and_long_ones_are_not_kept() {
        let mut texts = Texts::new();
        for number in 0..10_000 {
            let text = format!("SELECT f({number})");
            texts.get(0, text.as_bytes(), || number);
        }
        let long = "a".repeat(TEXT_MAX + 1);
        for number in 0..3 {
            assert_eq!(texts.get(0, long.as_bytes(), || number), number);
        }
        assert!(texts.0.iter().all(|place| place.found.is_none()));
    }
}
