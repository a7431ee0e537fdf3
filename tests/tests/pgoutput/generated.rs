//! Random messages of every kind, and damaged ones.

use std::collections::BTreeSet;

use crate::oracle::{ours, theirs};

/// Every tag but those of two-phase commit, which ours refuses.
const TAGS: &[u8] = b"BCORYIUDTMSEcA";
const ROUNDS: usize = 100_000;

struct Generator {
    random: fastrand::Rng,
    bytes: Vec<u8>,
}

impl Generator {
    fn message(&mut self, tag: u8, in_stream: bool) -> Vec<u8> {
        self.bytes = vec![tag];
        if in_stream && b"RYIUDTM".contains(&tag) {
            self.noise(4);
        }
        match tag {
            b'B' => self.noise(8 + 8 + 4),
            b'C' => self.noise(1 + 8 + 8 + 8),
            b'O' => {
                self.noise(8);
                self.name();
            }
            b'R' => self.relation(),
            b'Y' => {
                self.noise(4);
                self.name();
                self.name();
            }
            b'I' => {
                self.noise(4);
                self.row(b'N');
            }
            b'U' => {
                self.noise(4);
                if let Some(kind) = self.random.choice([None, Some(b'K'), Some(b'O')]).flatten() {
                    self.row(kind);
                }
                self.row(b'N');
            }
            b'D' => {
                self.noise(4);
                let kind = *self.pick(b"KO");
                self.row(kind);
            }
            b'T' => {
                let count = self.random.u8(0..4);
                self.bytes.extend(u32::from(count).to_be_bytes());
                self.noise(1 + 4 * usize::from(count));
            }
            b'M' => {
                self.noise(1 + 8);
                self.name();
                self.sized();
            }
            b'S' => self.noise(4 + 1),
            b'c' => self.noise(4 + 1 + 8 + 8 + 8),
            b'A' => {
                self.noise(4 + 4);
                if self.random.bool() {
                    self.noise(8 + 8);
                }
            }
            _ => {}
        }
        std::mem::take(&mut self.bytes)
    }

    fn relation(&mut self) {
        self.noise(4);
        self.name();
        self.name();
        let identity = *self.pick(b"dnfi");
        self.bytes.push(identity);
        let count = self.random.u16(0..5);
        self.bytes.extend(count.to_be_bytes());
        for _ in 0..count {
            self.noise(1);
            self.name();
            self.noise(4 + 4);
        }
    }

    fn row(&mut self, kind: u8) {
        self.bytes.push(kind);
        let count = self.random.u16(0..5);
        self.bytes.extend(count.to_be_bytes());
        for _ in 0..count {
            let form = *self.pick(b"nutb");
            self.bytes.push(form);
            if form == b't' || form == b'b' {
                self.sized();
            }
        }
    }

    fn sized(&mut self) {
        let length = self.random.u8(0..20);
        self.bytes.extend(u32::from(length).to_be_bytes());
        self.noise(length.into());
    }

    fn name(&mut self) {
        let name = *self.pick(&["", "t", "public", "a \"b\"", "größe"]);
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
    }

    fn noise(&mut self, count: usize) {
        for _ in 0..count {
            self.bytes.push(self.random.u8(..));
        }
    }

    fn pick<'l, T>(&mut self, list: &'l [T]) -> &'l T {
        &list[self.random.usize(..list.len())]
    }
}

#[test]
fn every_generated_message_means_the_same_to_both() {
    let seed = fastrand::u64(..);
    let mut generator = Generator {
        random: fastrand::Rng::with_seed(seed),
        bytes: Vec::new(),
    };
    for round in 0..ROUNDS {
        let in_stream = generator.random.bool();
        let tag = TAGS[round % TAGS.len()];
        let bytes = generator.message(tag, in_stream);
        let (ours, theirs) = (ours(&bytes, in_stream), theirs(&bytes, in_stream));
        let ours = ours.unwrap_or_else(|error| panic!("SEED={seed}: {error}: {bytes:?}"));
        assert_eq!(Ok(ours), theirs, "SEED={seed}: {bytes:?}");
    }
}

/// Ours is the stricter one (it refuses what is left over, bytes that select no form, names that are not UTF-8), so
/// only what it accepts is compared.
#[test]
fn a_damaged_message_is_refused_or_means_the_same_to_both() {
    let seed = fastrand::u64(..);
    let mut generator = Generator {
        random: fastrand::Rng::with_seed(seed),
        bytes: Vec::new(),
    };
    let mut accepted = BTreeSet::new();
    for round in 0..ROUNDS {
        let in_stream = generator.random.bool();
        let mut bytes = generator.message(TAGS[round % TAGS.len()], in_stream);
        for _ in 0..generator.random.usize(1..3) {
            let at = generator.random.usize(..bytes.len());
            bytes[at] = generator.random.u8(..);
        }
        if generator.random.u8(..8) == 0 {
            bytes.truncate(generator.random.usize(..=bytes.len()));
        }
        if let Ok(ours) = ours(&bytes, in_stream) {
            assert_eq!(
                Ok(ours),
                theirs(&bytes, in_stream),
                "SEED={seed}: {bytes:?}"
            );
            accepted.insert(bytes[0]);
        }
    }
    let missing: Vec<_> = TAGS.iter().filter(|tag| !accepted.contains(tag)).collect();
    assert!(
        missing.is_empty(),
        "SEED={seed}: nothing of {missing:?} was comparable"
    );
}
