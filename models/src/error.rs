use std::io;
use std::path::PathBuf;
use thiserror::Error;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Autograd(#[from] autograd::Error),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error("{0}")]
    Config(String),
    #[error("{}: {detail}", path.display())]
    File { path: PathBuf, detail: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Why weights were not written.
#[derive(Debug, Error)]
pub enum Unwritten {
    #[error("{0}")]
    Unfit(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Error {
    /// On one line, whatever the names in a file are.
    pub(crate) fn file(path: &std::path::Path, detail: impl ToString) -> Self {
        Error::File { path: path.to_path_buf(), detail: detail.to_string().replace(char::is_control, " ") }
    }
}
