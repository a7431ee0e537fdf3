//! What every part of the reading needs: paths, files, durations, sizes, warnings.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tandem_routing_rules::document::{
    Document, Problem, Problems, Section, Value, line_and_column,
};

use super::error::{ConfigError, ConfigProblem};
use super::quantity::{parse_duration, parse_size};

/// Looks up an environment variable.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The longest of all timeouts.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3_600);

/// What all parts of the reading share.
pub(super) struct Reader<'a> {
    source: &'a str,
    /// The path as the user gave it, for messages.
    pub(super) shown_path: &'a Path,
    pub(super) absolute: PathBuf,
    /// The directory that relative paths count from.
    pub(super) base: PathBuf,
    environment: Environment<'a>,
    pub(super) problems: Problems,
    /// Problems in files that this one names.
    pub(super) elsewhere: Vec<ConfigProblem>,
    pub(super) warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        path: &'a Path,
        source: &'a str,
        environment: Environment<'a>,
    ) -> Result<Self, ConfigError> {
        let absolute = std::path::absolute(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            source,
            shown_path: path,
            base: absolute.parent().map_or_else(PathBuf::new, Path::to_owned),
            absolute,
            environment,
            problems: Problems::default(),
            elsewhere: Vec::new(),
            warnings: Vec::new(),
        })
    }

    /// Parses the text. Syntax errors end the reading: every further problem would only follow from them.
    pub(super) fn document(&mut self) -> Result<Document<'a>, ConfigError> {
        let document = Document::parse(self.source, &mut self.problems);
        if self.problems.is_empty() {
            return Ok(document);
        }
        let found = std::mem::take(&mut self.problems).into_sorted();
        let problems = ConfigProblem::in_file(self.shown_path, self.source, found);
        Err(ConfigError::Invalid {
            path: self.shown_path.to_owned(),
            problems,
        })
    }

    /// All problems found, those of this file first.
    pub(super) fn into_problems(self) -> Vec<ConfigProblem> {
        let here = self.problems.into_sorted();
        let mut problems = ConfigProblem::in_file(self.shown_path, self.source, here);
        problems.extend(self.elsewhere);
        problems
    }

    /// The text of a file that this one names.
    pub(super) fn text_of(
        &mut self,
        what: &str,
        path: &Path,
        span: Range<usize>,
    ) -> Option<String> {
        match fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) => {
                let message = format!("cannot read the {what} `{}`: {error}", path.display());
                let hint = "a relative path counts from this file's directory";
                self.problems.add_with_hint(span, message, hint);
                None
            }
        }
    }

    /// Notes problems in a file that this one names, under the path as the user would write it.
    pub(super) fn add_elsewhere(&mut self, path: &Path, source: &str, problems: Vec<Problem>) {
        let shown = path.strip_prefix(&self.base).map_or_else(
            |_| path.to_owned(),
            |relative| self.shown_path.with_file_name(relative),
        );
        self.elsewhere
            .extend(ConfigProblem::in_file(&shown, source, problems));
    }

    /// A duration between `min` and [`TIMEOUT_MAX`]; `default` when it is missing or wrong.
    pub(super) fn duration(
        &mut self,
        section: &mut Section<'_>,
        key: &'static str,
        default: Duration,
        min: Duration,
    ) -> Duration {
        let Some(value) = section.take(key) else {
            return default;
        };
        let Some(text) = value.string(&mut self.problems) else {
            return default;
        };
        match parse_duration(text) {
            Ok(duration) if (min..=TIMEOUT_MAX).contains(&duration) => duration,
            Ok(_) => {
                let hint = format!("allowed: {min:?} to {}h", TIMEOUT_MAX.as_secs() / 3_600);
                self.problems.add_with_hint(
                    value.span(),
                    format!("`{}` is out of range", value.path()),
                    hint,
                );
                default
            }
            Err(hint) => {
                self.problems.add_with_hint(
                    value.span(),
                    format!("`{text}` is not a duration"),
                    hint,
                );
                default
            }
        }
    }

    /// A size of at least `min` bytes; `default` when it is missing or wrong.
    pub(super) fn size(
        &mut self,
        section: &mut Section<'_>,
        key: &'static str,
        default: u64,
        min: u64,
    ) -> u64 {
        let Some(value) = section.take(key) else {
            return default;
        };
        let Some(text) = value.string(&mut self.problems) else {
            return default;
        };
        match parse_size(text) {
            Ok(size) if size >= min => return size,
            Ok(_) => {
                let message = format!("`{}` is too small", value.path());
                let hint = format!("allowed: {min}B and more");
                self.problems.add_with_hint(value.span(), message, hint);
            }
            Err(hint) => {
                let message = format!("`{text}` is not a size");
                self.problems.add_with_hint(value.span(), message, hint);
            }
        }
        default
    }

    /// A path, made absolute from the configuration's directory.
    pub(super) fn path(&mut self, value: &Value<'_>) -> Option<PathBuf> {
        Some(self.base.join(value.string(&mut self.problems)?))
    }

    /// A path to a file that is there.
    pub(super) fn file(&mut self, value: &Value<'_>) -> Option<PathBuf> {
        let path = self.path(value)?;
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => Some(path),
            outcome => {
                let why = outcome
                    .map_or_else(|error| error.to_string(), |_| "it is not a file".to_owned());
                let hint = "a relative path counts from this file's directory";
                self.problems.add_with_hint(
                    value.span(),
                    format!("cannot use `{}`: {why}", path.display()),
                    hint,
                );
                None
            }
        }
    }

    /// A path to a file that is there and that nobody else should be able to read.
    pub(super) fn secret_file(&mut self, value: &Value<'_>) -> Option<PathBuf> {
        let path = self.file(value)?;
        if others_can_read(&path) {
            let display = path.display();
            self.warn(
                value,
                &format!("other users can read `{display}`; run chmod 0600 on it"),
            );
        }
        Some(path)
    }

    /// Warns when a password stands in the configuration itself and others can read that.
    pub(super) fn warn_if_source_is_open(&mut self, value: &Value<'_>) {
        if others_can_read(self.shown_path) {
            let display = self.shown_path.display();
            let text = format!(
                "other users can read this password; run chmod 0600 on `{display}` or use password_file"
            );
            self.warn(value, &text);
        }
    }

    /// An environment variable.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        (self.environment)(name)
    }

    /// Notes something that is allowed but should be known.
    pub(super) fn warn(&mut self, value: &Value<'_>, text: &str) {
        let (line, column) = line_and_column(self.source, value.span().start);
        self.warnings.push(format!(
            "{}:{line}:{column}: {text}",
            self.shown_path.display()
        ));
    }
}

fn others_can_read(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}
