//! Patterns over names: `*` stands for any run of characters, `?` for exactly one.

use core::fmt;

/// A pattern that a whole name must match, with regard to case. Displays as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Every text is a pattern; one without `*` and `?` matches only itself.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether the whole of `name` matches. Takes at most pattern length times name length steps.
    pub fn matches(&self, name: &str) -> bool {
        let pattern: Vec<char> = self.0.chars().collect();
        let name: Vec<char> = name.chars().collect();
        let (mut at, mut seen) = (0, 0);
        // The last `*` met and the part of the name it has swallowed so far: the only point worth going back to.
        let mut star: Option<(usize, usize)> = None;
        while let Some(character) = name.get(seen) {
            match pattern.get(at) {
                Some('*') => {
                    star = Some((at, seen));
                    at += 1;
                }
                Some(wanted) if *wanted == '?' || wanted == character => {
                    at += 1;
                    seen += 1;
                }
                _ => {
                    let Some((star_at, swallowed)) = star else {
                        return false;
                    };
                    star = Some((star_at, swallowed + 1));
                    at = star_at + 1;
                    seen = swallowed + 1;
                }
            }
        }
        pattern.iter().skip(at).all(|rest| *rest == '*')
    }

    /// Whether every name matches.
    pub fn is_any(&self) -> bool {
        !self.0.is_empty() && self.0.chars().all(|character| character == '*')
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_and_question_marks_match_like_file_names() {
        let table = [
            ("nightly-*", "nightly-2026", true),
            ("nightly-*", "nightly-", true),
            ("nightly-*", "nightly", false),
            ("*report*", "monthly report 7", true),
            ("a*b*c", "a__b_b__c", true),
            ("a*b*c", "a__c__b", false),
            ("n?de", "node", true),
            ("n?de", "nde", false),
            ("batch", "batch", true),
            ("batch", "Batch", false),
            ("*", "", true),
            ("**x", "x", true),
            ("é?", "éa", true),
            ("", "", true),
            ("", "a", false),
        ];
        for (pattern, name, wanted) in table {
            assert_eq!(
                Pattern::new(pattern).matches(name),
                wanted,
                "{pattern} over {name}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_pattern_made_by_starring_a_part_of_a_name_matches_it(name in "[a-c*?]{0,12}", from in 0usize..12, to in 0usize..12) {
            let from = from.min(name.len());
            let to = to.clamp(from, name.len());
            let pattern = Pattern::new(format!("{}*{}", &name[..from], &name[to..]));
            prop_assert!(pattern.matches(&name));
        }

        #[test]
        fn the_slow_definition_agrees(pattern in "[ab*?]{0,8}", name in "[ab]{0,8}") {
            fn slow(pattern: &[u8], name: &[u8]) -> bool {
                match (pattern.split_first(), name.split_first()) {
                    (None, None) => true,
                    (Some((b'*', rest)), None) => slow(rest, name),
                    (Some((b'*', rest)), Some((_, shorter))) => slow(rest, name) || slow(pattern, shorter),
                    (Some((p, rest)), Some((n, shorter))) if *p == b'?' || p == n => slow(rest, shorter),
                    _ => false,
                }
            }
            prop_assert_eq!(Pattern::new(pattern.clone()).matches(&name), slow(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
