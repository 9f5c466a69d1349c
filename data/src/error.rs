//! The crate's errors: one line that names the file (or the setting) and says what to do.

use std::path::{Path, PathBuf};
use thiserror::Error;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Error)]
pub enum Error {
    /// The operating system refused, or the compressed stream broke off.
    #[error("{}: {source}; {remedy}", path.display())]
    Io { path: PathBuf, source: std::io::Error, remedy: &'static str },
    /// The file could be read, but is not something this crate can use.
    #[error("{}: {problem}; {remedy}", path.display())]
    File { path: PathBuf, problem: String, remedy: &'static str },
    /// A setting that cannot work, whatever the files are.
    #[error("{problem}; {remedy}")]
    Setting { problem: String, remedy: &'static str },
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error, remedy: &'static str) -> Self {
        Error::Io { path: path.to_owned(), source, remedy }
    }

    pub(crate) fn file(path: &Path, problem: impl Into<String>, remedy: &'static str) -> Self {
        Error::File { path: path.to_owned(), problem: problem.into(), remedy }
    }

    pub(crate) fn setting(problem: impl Into<String>, remedy: &'static str) -> Self {
        Error::Setting { problem: problem.into(), remedy }
    }
}
