//! Weighted rendezvous hashing: the same key has the same home on every machine and in every version.
//!
//! Each node draws a number from the key and its own id; the best number wins. So a node that leaves moves only its
//! own keys, and the order in which nodes are listed means nothing. The arithmetic is in integers throughout,
//! because the last bit of a floating-point logarithm differs between platforms. The test vectors at the bottom are a
//! promise: changing them moves keys of running clusters.

use core::cmp::Ordering;

use xxhash_rust::xxh3::xxh3_64;

/// Starts what is hashed for a key of a placement.
const PLACEMENT_DOMAIN: &[u8] = b"tandem/placement/1\0";
/// Starts what is hashed for the default home of a database.
const DEFAULT_HOME_DOMAIN: &[u8] = b"tandem/default-home/1\0";
/// What is hashed is put together on the stack up to this length.
const DIGEST_ON_STACK_MAX: usize = 128;
/// Bits behind the binary point of a logarithm.
const FRACTION_BITS: u32 = 32;

/// Digest of a key, given as canonical text, inside the key space `placement`.
pub(crate) fn key_digest(placement: &str, key: &str) -> u64 {
    digest(&[
        PLACEMENT_DOMAIN,
        placement.as_bytes(),
        b"\0",
        key.as_bytes(),
    ])
}

/// The node that writes without a key go to, for one database: rendezvous over its name among `nodes` (their ids,
/// in any order). `None` when there are no nodes.
pub fn default_home(database: &str, nodes: &[u16]) -> Option<u16> {
    default_home_among(database, nodes.iter().copied())
}

/// The same of nodes that are found one by one.
pub(crate) fn default_home_among(database: &str, nodes: impl Iterator<Item = u16>) -> Option<u16> {
    let digest = digest(&[DEFAULT_HOME_DOMAIN, database.as_bytes()]);
    winner(digest, nodes.map(|node| (node, 1)))
}

/// The node that wins a digest among pairs of node id and weight. Weight 0 counts as 1.
pub(crate) fn winner(digest: u64, nodes: impl Iterator<Item = (u16, u16)>) -> Option<u16> {
    let draws = nodes.map(|(node, weight)| Draw {
        node,
        weight: u64::from(weight.max(1)),
        score: draw(digest, node),
    });
    draws.reduce(Draw::better).map(|draw| draw.node)
}

struct Draw {
    node: u16,
    weight: u64,
    score: u64,
}

impl Draw {
    /// The smaller cost per weight wins; then the larger score, then the smaller id, so that the order is total.
    fn better(self, other: Self) -> Self {
        // Of equal weights the larger score is the smaller cost, or an equal one, and wins in both cases.
        let cost = match self.weight == other.weight {
            true => Ordering::Equal,
            // cost < 2^39 and weight < 2^16: the products fit.
            false => (cost(self.score) * other.weight).cmp(&(cost(other.score) * self.weight)),
        };
        let order = cost
            .then(other.score.cmp(&self.score))
            .then(self.node.cmp(&other.node));
        if order.is_le() { self } else { other }
    }
}

fn digest(parts: &[&[u8]]) -> u64 {
    let mut buffer = [0; DIGEST_ON_STACK_MAX];
    let mut length = 0;
    for part in parts {
        let Some(place) = buffer.get_mut(length..length + part.len()) else {
            return xxh3_64(&parts.concat());
        };
        place.copy_from_slice(part);
        length += part.len();
    }
    xxh3_64(buffer.get(..length).unwrap_or_default())
}

/// What one node draws for a digest.
fn draw(digest: u64, node: u16) -> u64 {
    let mut bytes = [0; 10];
    let (head, tail) = bytes.split_at_mut(8);
    head.copy_from_slice(&digest.to_le_bytes());
    tail.copy_from_slice(&node.to_le_bytes());
    xxh3_64(&bytes)
}

/// `-log2(u)` for u = (score + 1) / 2^64, in fixed point. An exponential variable: divided by the weight, the
/// smallest one picks each node in proportion to its weight.
fn cost(score: u64) -> u64 {
    let Some(value) = score.checked_add(1) else {
        return 0;
    };
    let exponent = value.ilog2();
    // The mantissa in [1, 2), with 63 bits behind the point. Squaring it shifts the next bit of the logarithm out.
    let mut mantissa = value << (63 - exponent);
    let mut logarithm = u64::from(exponent);
    for _ in 0..FRACTION_BITS {
        let square = (u128::from(mantissa) * u128::from(mantissa)) >> 64;
        let square = u64::try_from(square).unwrap_or(u64::MAX);
        let carried = square >> 63;
        logarithm = (logarithm << 1) | carried;
        mantissa = if carried == 1 { square } else { square << 1 };
    }
    (64_u64 << FRACTION_BITS) - logarithm
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_hash_is_xxh3_as_published() {
        // XXH3_64bits of the empty input with seed 0, from the xxHash specification's reference implementation.
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2);
    }

    #[test]
    fn a_digest_is_of_the_parts_put_together_however_long() {
        for length in [
            0,
            1,
            100,
            DIGEST_ON_STACK_MAX - 1,
            DIGEST_ON_STACK_MAX,
            1_000,
        ] {
            let long = vec![7; length];
            assert_eq!(
                digest(&[b"a", &long]),
                xxh3_64(&[b"a", long.as_slice()].concat())
            );
        }
    }

    #[test]
    fn the_logarithm_is_right_to_its_last_bits() {
        let in_float = |score: u64| cost(score) as f64 / 2f64.powi(32);
        assert_eq!(cost(u64::MAX), 0);
        assert_eq!(cost(0), 64 << 32);
        assert_eq!(cost((1 << 63) - 1), 1 << 32);
        for score in [
            1,
            2,
            12_345,
            u64::MAX / 3,
            u64::MAX / 7 * 5,
            u64::MAX - 1_000_000_000,
        ] {
            let wanted = 64.0 - ((score as f64) + 1.0).log2();
            assert!(
                (in_float(score) - wanted).abs() < 1e-8,
                "{score}: {} {wanted}",
                in_float(score)
            );
        }
    }

    #[test]
    fn weights_share_keys_in_proportion() {
        let mut counts = [0_u32; 4];
        for key in 0..40_000 {
            let digest = key_digest("station", &key.to_string());
            let home = winner(digest, [(1, 1), (2, 2), (3, 5)].into_iter()).unwrap();
            counts[usize::from(home)] += 1;
        }
        for (home, share) in [(1, 5_000), (2, 10_000), (3, 25_000)] {
            let count = i64::from(counts[home]);
            assert!(
                (count - share).abs() < share / 20,
                "node {home} got {count}, wanted about {share}"
            );
        }
    }

    // Computed a second time by an independent program over the reference implementation of xxHash.
    #[test]
    fn test_vectors_hold() {
        let home =
            |key: &str| winner(key_digest("station", key), (1..=5).map(|node| (node, 1))).unwrap();
        let homes: Vec<u16> = ["1", "2", "3", "4", "5", "42", "-1", "paris", "", "é"]
            .map(home)
            .to_vec();
        assert_eq!(homes, [4, 4, 4, 3, 3, 2, 4, 1, 5, 1]);
        assert_eq!(key_digest("station", "42"), 0x7ea2_6b29_7950_3b82);
        assert_eq!(draw(0, 1), 0x55eb_f54b_8658_cdba);
        let weighted = |key: &str| {
            winner(
                key_digest("branch", key),
                [(1, 1), (7, 3), (1023, 2)].into_iter(),
            )
            .unwrap()
        };
        assert_eq!(
            ["1", "2", "3", "4", "5", "6", "7", "8"].map(weighted),
            [1, 1023, 1, 7, 1023, 1023, 7, 1023]
        );
        assert_eq!(
            ["app", "postgres", "bikes", ""].map(|name| default_home(name, &[1, 2, 3]).unwrap()),
            [2, 3, 1, 1]
        );
    }

    proptest! {
        #[test]
        fn the_larger_score_never_costs_more(one: u64, other: u64) {
            let (low, high) = (one.min(other), one.max(other));
            prop_assert!(cost(high) <= cost(low));
            prop_assert!(cost(low.saturating_add(1)) <= cost(low));
        }

        #[test]
        fn the_order_of_nodes_means_nothing(
            key in ".{0,12}",
            nodes in proptest::collection::btree_map(1u16..1024, 1u16..1000, 1..8).prop_map(|m| m.into_iter().collect::<Vec<_>>()),
            turn in 0usize..8,
        ) {
            let digest = key_digest("p", &key);
            let mut turned = nodes.clone();
            turned.rotate_left(turn % nodes.len());
            let mut reversed = nodes.clone();
            reversed.reverse();
            let home = winner(digest, nodes.into_iter());
            prop_assert_eq!(winner(digest, turned.into_iter()), home);
            prop_assert_eq!(winner(digest, reversed.into_iter()), home);
        }

        #[test]
        fn a_node_that_leaves_moves_only_its_own_keys(
            key in ".{0,12}",
            nodes in proptest::collection::btree_map(1u16..1024, 1u16..1000, 2..8).prop_map(|m| m.into_iter().collect::<Vec<_>>()),
            leaves in 0usize..8,
        ) {
            let digest = key_digest("p", &key);
            let gone = nodes[leaves % nodes.len()].0;
            let before = winner(digest, nodes.iter().copied()).unwrap();
            let after = winner(digest, nodes.iter().copied().filter(|(node, _)| *node != gone)).unwrap();
            if before == gone { prop_assert_ne!(after, gone) } else { prop_assert_eq!(after, before) }
        }

        #[test]
        fn more_weight_only_draws_keys_toward_the_node(key in ".{0,12}", weight in 1u16..500, more in 1u16..500) {
            let digest = key_digest("p", &key);
            let home = |weight| winner(digest, [(1, 100), (2, weight), (3, 100)].into_iter()).unwrap();
            let (before, after) = (home(weight), home(weight + more));
            prop_assert!(after == before || after == 2);
        }

        #[test]
        fn the_default_home_is_one_of_the_nodes(database in ".{0,20}", nodes in proptest::collection::vec(1u16..1024, 0..6)) {
            match default_home(&database, &nodes) {
                Some(home) => prop_assert!(nodes.contains(&home)),
                None => prop_assert!(nodes.is_empty()),
            }
        }
    }
}
