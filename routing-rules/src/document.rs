//! Reading a TOML document with byte spans: every problem is collected, none ends the reading.
//!
//! A derived deserializer stops at the first problem. A person who edits a rules file wants all of them, each with
//! its place and a mend, so the document is walked by hand over `toml`'s spanned tree. The configuration of the
//! daemon is read with the same words.

use core::fmt;
use core::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::nearest::nearest;

/// One thing wrong in a document, with the bytes it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Byte range in the source text. Empty at 0 when something is missing from the document as a whole.
    pub span: Range<usize>,
    /// What is wrong. One sentence without a full stop.
    pub message: String,
    /// How to mend it, when that can be said.
    pub hint: Option<String>,
}

impl Problem {
    /// Says where in `source` the problem is, for a reader.
    pub fn located<'a>(&'a self, source: &'a str) -> Located<'a> {
        let (line, column) = line_and_column(source, self.span.start);
        let text = match self.span.is_empty() && self.span.start > 0 {
            // Something is missing here: what stands in this line says where that is.
            true => source.lines().nth(line - 1).unwrap_or("").trim(),
            false => source.get(self.span.clone()).unwrap_or(""),
        };
        Located {
            line,
            column,
            text: text.lines().next().unwrap_or(""),
            problem: self,
        }
    }
}

/// A [`Problem`] with its place in words. Displays as `line:column: message (at "text"); hint`.
#[derive(Debug)]
pub struct Located<'a> {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// The first line of the offending text. Where something is missing inside a line, that line; empty when it is missing from
    /// the document as a whole.
    pub text: &'a str,
    /// The problem itself.
    pub problem: &'a Problem,
}

impl fmt::Display for Located<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.problem.message)?;
        if !self.text.is_empty() {
            write!(f, " (at `{}`)", self.text)?;
        }
        if let Some(hint) = &self.problem.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

/// Line and column (in characters), both counted from 1, of a byte offset.
pub fn line_and_column(source: &str, offset: usize) -> (usize, usize) {
    let before = source.get(..offset).unwrap_or(source);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = before
        .get(line_start..)
        .map_or(0, |text| text.chars().count())
        + 1;
    (line, column)
}

/// Collects problems while a document is read.
#[derive(Debug, Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Notes a problem that has no mend to offer.
    pub fn add(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.0.push(Problem {
            span,
            message: message.into(),
            hint: None,
        });
    }

    /// Notes a problem and how to mend it.
    pub fn add_with_hint(
        &mut self,
        span: Range<usize>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.0.push(Problem {
            span,
            message: message.into(),
            hint: Some(hint.into()),
        });
    }

    /// Notes a word that is none of `known`, and suggests the nearest of them.
    pub fn add_unknown_word(&mut self, span: Range<usize>, what: &str, word: &str, known: &[&str]) {
        let hint = match nearest(word, known) {
            Some(known_word) => format!("did you mean `{known_word}`?"),
            None if known.is_empty() => "nothing can stand here".to_owned(),
            None => format!("known: {}", quoted_list(known)),
        };
        self.add_with_hint(span, format!("unknown {what} `{word}`"), hint);
    }

    /// How many were noted.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was noted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All problems in the order of their place in the document.
    pub fn into_sorted(mut self) -> Vec<Problem> {
        self.0
            .sort_by_key(|problem| (problem.span.start, problem.span.end));
        self.0
    }
}

/// `a`, `b`, `c`
fn quoted_list(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    quoted.join(", ")
}

/// A parsed document. After a syntax error it holds what could be read of it.
#[derive(Debug)]
pub struct Document<'a> {
    root: Spanned<DeTable<'a>>,
}

impl<'a> Document<'a> {
    /// Parses `source`; syntax errors go to `problems`.
    pub fn parse(source: &'a str, problems: &mut Problems) -> Self {
        let (root, errors) = DeTable::parse_recoverable(source);
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            let (what, hint) = match error.message().split_once(", expected `") {
                Some((what, expected)) => (what, format!("write `{expected} here")),
                None => (error.message(), "see toml.io for the syntax".to_owned()),
            };
            problems.add_with_hint(
                span.start.min(source.len())..span.end.min(source.len()),
                format!("not valid TOML: {what}"),
                hint,
            );
        }
        Self { root }
    }

    /// The top level of the document.
    pub fn root(&self) -> Section<'_> {
        Section {
            path: String::new(),
            span: 0..0,
            table: self.root.get_ref(),
            known: Vec::new(),
        }
    }
}

/// A table while its keys are read one by one. What was never asked for is unknown: see [`Section::finish`].
#[derive(Debug)]
pub struct Section<'d> {
    path: String,
    span: Range<usize>,
    table: &'d DeTable<'d>,
    known: Vec<&'static str>,
}

impl<'d> Section<'d> {
    /// The bytes of the table, or of its header.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Takes a key that may be missing.
    pub fn take(&mut self, key: &'static str) -> Option<Value<'d>> {
        self.known.push(key);
        let (name, value) = self.table.get_key_value(key)?;
        Some(Value {
            path: self.child(key),
            key_span: name.span(),
            value,
        })
    }

    /// Takes a key that has to be there.
    pub fn require(&mut self, key: &'static str, problems: &mut Problems) -> Option<Value<'d>> {
        let taken = self.take(key);
        if taken.is_none() {
            let place = if self.path.is_empty() {
                "the file".to_owned()
            } else {
                format!("`{}`", self.path)
            };
            problems.add_with_hint(
                self.span(),
                format!("{place} has no `{key}`"),
                format!("add `{key} = ...`"),
            );
        }
        taken
    }

    /// Takes a sub-table that may be missing.
    pub fn take_table(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
    ) -> Option<Section<'d>> {
        self.take(key).and_then(|value| value.table(problems))
    }

    /// All entries of a table whose keys are names chosen by the user, in the order of the file.
    pub fn entries(self) -> Vec<Entry<'d>> {
        let mut entries: Vec<Entry<'d>> = self
            .table
            .iter()
            .map(|(name, value)| {
                let path = self.child(name.get_ref());
                Entry {
                    name: name.get_ref(),
                    value: Value {
                        path,
                        key_span: name.span(),
                        value,
                    },
                }
            })
            .collect();
        entries.sort_by_key(|entry| entry.value.key_span.start);
        entries
    }

    /// Notes every key that was never taken.
    pub fn finish(self, problems: &mut Problems) {
        let place = if self.path.is_empty() {
            "key".to_owned()
        } else {
            format!("key in `{}`:", self.path)
        };
        for name in self.table.keys() {
            if !self.known.iter().any(|known| known == name.get_ref()) {
                problems.add_unknown_word(name.span(), &place, name.get_ref(), &self.known);
            }
        }
    }

    fn child(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}

/// One entry of a table with free keys.
#[derive(Debug)]
pub struct Entry<'d> {
    /// The key as the user wrote it.
    pub name: &'d str,
    /// What it is set to.
    pub value: Value<'d>,
}

/// A value with the path that leads to it.
#[derive(Debug)]
pub struct Value<'d> {
    path: String,
    key_span: Range<usize>,
    value: &'d Spanned<DeValue<'d>>,
}

impl<'d> Value<'d> {
    /// The bytes of the value.
    pub fn span(&self) -> Range<usize> {
        self.value.span()
    }

    /// The bytes of its key.
    pub fn key_span(&self) -> Range<usize> {
        self.key_span.clone()
    }

    /// The dotted path, for messages.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The text of a string; `None` without a problem for any other type.
    pub fn as_str(&self) -> Option<&'d str> {
        self.value.get_ref().as_str()
    }

    /// Whether the value is an integer.
    pub fn is_integer(&self) -> bool {
        self.value.get_ref().is_integer()
    }

    /// A string that is not empty.
    pub fn string(&self, problems: &mut Problems) -> Option<&'d str> {
        match self.value.get_ref().as_str() {
            Some("") => {
                problems.add_with_hint(
                    self.span(),
                    format!("`{}` is empty", self.path),
                    "give it a value, or leave the key out",
                );
                None
            }
            Some(text) => Some(text),
            None => self.wrong_type("a string", problems),
        }
    }

    /// An integer inside `range`.
    pub fn integer(&self, range: RangeInclusive<i64>, problems: &mut Problems) -> Option<i64> {
        let Some(integer) = self.value.get_ref().as_integer() else {
            return self.wrong_type("an integer", problems);
        };
        match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                let message = format!("`{}` is out of range", self.path);
                problems.add_with_hint(
                    self.span(),
                    message,
                    format!("allowed: {} to {}", range.start(), range.end()),
                );
                None
            }
        }
    }

    /// `true` or `false`.
    pub fn boolean(&self, problems: &mut Problems) -> Option<bool> {
        match self.value.get_ref().as_bool() {
            Some(value) => Some(value),
            None => self.wrong_type("true or false", problems),
        }
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)], problems: &mut Problems) -> Option<T> {
        let word = self.string(problems)?;
        let chosen = choices.iter().find(|(name, _)| *name == word);
        if chosen.is_none() {
            let known: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            problems.add_unknown_word(
                self.span(),
                &format!("value of `{}`:", self.path),
                word,
                &known,
            );
        }
        chosen.map(|(_, value)| *value)
    }

    /// The elements of an array.
    pub fn array(&self, problems: &mut Problems) -> Option<Vec<Value<'d>>> {
        let Some(array) = self.value.get_ref().as_array() else {
            return self.wrong_type("an array", problems);
        };
        let element = |(index, value): (usize, &'d Spanned<DeValue<'d>>)| Value {
            path: format!("{}[{index}]", self.path),
            key_span: self.key_span(),
            value,
        };
        Some(array.iter().enumerate().map(element).collect())
    }

    /// An array of strings that are not empty, each with its value for later problems.
    pub fn strings(&self, problems: &mut Problems) -> Option<Vec<(&'d str, Value<'d>)>> {
        let elements = self.array(problems)?;
        Some(
            elements
                .into_iter()
                .filter_map(|value| Some((value.string(problems)?, value)))
                .collect(),
        )
    }

    /// A table.
    pub fn table(&self, problems: &mut Problems) -> Option<Section<'d>> {
        let Some(table) = self.value.get_ref().as_table() else {
            return self.wrong_type("a table", problems);
        };
        Some(Section {
            path: self.path.clone(),
            span: self.span(),
            table,
            known: Vec::new(),
        })
    }

    /// The tables of an array of tables (`[[name]]`).
    pub fn tables(&self, problems: &mut Problems) -> Option<Vec<Section<'d>>> {
        let elements = self.array(problems)?;
        Some(
            elements
                .iter()
                .filter_map(|value| value.table(problems))
                .collect(),
        )
    }

    /// Notes that the value has the wrong type. The value itself is not repeated: it may be a secret.
    pub fn wrong_type<T>(&self, wanted: &str, problems: &mut Problems) -> Option<T> {
        let found = self.value.get_ref().type_str();
        let message = format!("`{}` must be {wanted}, not of type {found}", self.path);
        let hint = match wanted {
            "a string" => "write it in quotes, \"...\"",
            "an integer" => "write digits, without quotes",
            "true or false" => "write true or false, without quotes",
            "an array" => "write a list, [\"...\", \"...\"]",
            "a table" => "write { key = value }, or a section of its own",
            _ => "write one of these",
        };
        problems.add_with_hint(self.span(), message, hint);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: &str, reader: impl FnOnce(&mut Section<'_>, &mut Problems)) -> Vec<String> {
        let mut problems = Problems::default();
        let document = Document::parse(source, &mut problems);
        let mut root = document.root();
        reader(&mut root, &mut problems);
        root.finish(&mut problems);
        problems
            .into_sorted()
            .iter()
            .map(|problem| problem.located(source).to_string())
            .collect()
    }

    #[test]
    fn several_syntax_errors_are_all_reported() {
        let told = read("a = \nb = 1\nc = [1\n", |root, _| {
            root.take("a");
            root.take("b");
            root.take("c");
        });
        assert!(told.len() >= 2, "{told:?}");
        assert!(told[0].starts_with("1:"), "{told:?}");
    }

    #[test]
    fn integers_are_read_in_every_notation_of_toml() {
        let told = read("a = 1_000\nb = 0x1f\nc = -7\nd = +3\n", |root, problems| {
            let mut number = |key| root.take(key).unwrap().integer(-10..=2_000, problems);
            assert_eq!(
                [number("a"), number("b"), number("c"), number("d")],
                [Some(1_000), Some(31), Some(-7), Some(3)]
            );
        });
        assert!(told.is_empty(), "{told:?}");
    }

    #[test]
    fn an_unknown_key_is_named_with_the_nearest_known_one() {
        let told = read("[proxy]\nlisten_adress = 1\n", |root, problems| {
            let mut proxy = root.take_table("proxy", problems).unwrap();
            proxy.take("listen_address");
            proxy.finish(problems);
        });
        let wanted = "2:1: unknown key in `proxy`: `listen_adress` (at `listen_adress`); did you mean `listen_address`?";
        assert_eq!(told, [wanted]);
    }

    #[test]
    fn a_missing_key_is_told_at_the_header_of_its_table() {
        let told = read("x = 1\n[[node]]\nid = 1\n", |root, problems| {
            root.take("x");
            for mut node in root.take("node").unwrap().tables(problems).unwrap() {
                node.take("id");
                assert!(node.require("name", problems).is_none());
            }
        });
        assert_eq!(
            told,
            ["2:1: `node[0]` has no `name` (at `[[node]]`); add `name = ...`"]
        );
    }

    #[test]
    fn a_value_of_the_wrong_type_is_not_repeated_in_the_message() {
        let told = read("password = 4711\n", |root, problems| {
            assert!(root.take("password").unwrap().string(problems).is_none());
        });
        assert_eq!(told.len(), 1);
        assert!(
            told[0].contains("must be a string, not of type integer"),
            "{told:?}"
        );
    }

    #[test]
    fn columns_count_characters_and_lines_count_from_one() {
        assert_eq!(line_and_column("é = 1\nx", 0), (1, 1));
        assert_eq!(line_and_column("é = 1\nx", 2), (1, 2));
        assert_eq!(line_and_column("é = 1\nx", 7), (2, 1));
        assert_eq!(line_and_column("a", 99), (1, 2));
    }
}
