//! The nearest known word to a mistyped one.

/// Longest word compared; a longer one is no typing mistake, and the work stays bounded.
const COMPARED_CHARS_MAX: usize = 64;

/// The known word with the fewest typing mistakes (one character added, left out, changed, or two swapped), if
/// they are few for its length.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let typed: Vec<char> = word.to_lowercase().chars().collect();
    if typed.len() > COMPARED_CHARS_MAX {
        return None;
    }
    let (distance, best) = known
        .iter()
        .map(|candidate| {
            (
                distance(
                    &typed,
                    &candidate.to_lowercase().chars().collect::<Vec<_>>(),
                ),
                *candidate,
            )
        })
        .min_by_key(|(distance, _)| *distance)?;
    let allowed = (best.chars().count().max(typed.len()) / 3).max(1);
    (distance <= allowed).then_some(best)
}

/// Optimal string alignment distance.
fn distance(left: &[char], right: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for (row, from) in left.iter().enumerate() {
        let mut current = Vec::with_capacity(right.len() + 1);
        let mut to_the_left = row + 1;
        current.push(to_the_left);
        for (column, to) in right.iter().enumerate() {
            let (Some(diagonal), Some(above)) = (last.get(column), last.get(column + 1)) else {
                break;
            };
            let mut best = (diagonal + usize::from(from != to))
                .min(above + 1)
                .min(to_the_left + 1);
            let swapped = row > 0
                && column > 0
                && left.get(row - 1) == Some(to)
                && right.get(column - 1) == Some(from);
            if swapped && let Some(two_back) = before_last.get(column - 1) {
                best = best.min(two_back + 1);
            }
            to_the_left = best;
            current.push(best);
        }
        before_last = core::mem::replace(&mut last, current);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_finds_its_word_and_a_stranger_finds_none() {
        let known = ["listen", "pool_mode", "max_client_connections", "id"];
        assert_eq!(nearest("lsiten", &known), Some("listen"));
        assert_eq!(nearest("Pool-Mode", &known), Some("pool_mode"));
        assert_eq!(
            nearest("max_client_connection", &known),
            Some("max_client_connections")
        );
        assert_eq!(nearest("di", &known), Some("id"));
        assert_eq!(nearest("colour", &known), None);
        assert_eq!(nearest("x", &[]), None);
        assert_eq!(nearest(&"listen".repeat(1_000), &known), None);
    }

    #[test]
    fn distance_counts_each_kind_of_mistake_once() {
        let between = |left: &str, right: &str| {
            distance(
                &left.chars().collect::<Vec<_>>(),
                &right.chars().collect::<Vec<_>>(),
            )
        };
        assert_eq!(between("abc", "abc"), 0);
        assert_eq!(between("abc", "acb"), 1);
        assert_eq!(between("abc", "ab"), 1);
        assert_eq!(between("abc", "abcd"), 1);
        assert_eq!(between("abc", "axc"), 1);
        assert_eq!(between("", "abc"), 3);
        assert_eq!(between("kitten", "sitting"), 3);
    }
}
