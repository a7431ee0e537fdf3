//! Why a configuration is refused, shown with the lines it is about.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use miette::{Diagnostic, NamedSource, SourceSpan};
use tandem_routing_rules::document::{Problem, line_and_column};
use thiserror::Error;

use super::secrets::masked;

/// Why a configuration is refused.
#[derive(Debug, Error, Diagnostic)]
pub enum ConfigError {
    /// The configuration itself cannot be read.
    #[error("cannot read the configuration `{}`: {source}", path.display())]
    #[diagnostic(help("give the file with --config FILE"))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The files were read and are wrong.
    #[error("the configuration `{}` has {} problem(s)", path.display(), problems.len())]
    Invalid {
        /// The configuration.
        path: PathBuf,
        /// Everything that is wrong, in it and in the files it names.
        #[related]
        problems: Vec<ConfigProblem>,
    },
}

impl ConfigError {
    /// Problems of one file alone.
    pub(crate) fn in_file(path: &Path, source: &str, problems: Vec<Problem>) -> Self {
        Self::Invalid {
            path: path.to_owned(),
            problems: ConfigProblem::in_file(path, source, problems),
        }
    }

    /// Each problem as one line `file:line:column: message; hint`, for logs.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Unreadable { .. } => vec![self.to_string()],
            Self::Invalid { problems, .. } => problems.iter().map(ConfigProblem::line).collect(),
        }
    }
}

/// One problem in one file. Snippets of the file show no password.
#[derive(Debug, Error, Diagnostic)]
#[error("{message}")]
pub struct ConfigProblem {
    message: String,
    line: usize,
    column: usize,
    #[help]
    hint: Option<String>,
    #[source_code]
    file: NamedSource<Arc<str>>,
    #[label("here")]
    span: SourceSpan,
}

impl ConfigProblem {
    /// Attaches the problems found in one file to its text.
    pub(super) fn in_file(path: &Path, source: &str, problems: Vec<Problem>) -> Vec<Self> {
        let shown: Arc<str> = masked(source).into();
        let name = path.display().to_string();
        let attach = |problem: Problem| {
            let (line, column) = line_and_column(source, problem.span.start);
            Self {
                message: problem.message,
                line,
                column,
                hint: problem.hint,
                file: NamedSource::new(&name, Arc::clone(&shown)),
                span: problem.span.into(),
            }
        };
        problems.into_iter().map(attach).collect()
    }

    /// `file:line:column: message; hint`
    pub fn line(&self) -> String {
        let place = format!("{}:{}:{}", self.file.name(), self.line, self.column);
        match &self.hint {
            Some(hint) => format!("{place}: {}; {hint}", self.message),
            None => format!("{place}: {}", self.message),
        }
    }
}
