use std::path::{Path, PathBuf};
use thiserror::Error;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One line for the user: what went wrong, where, and what to do.
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    Autograd(#[from] autograd::Error),
    #[error(transparent)]
    Models(#[from] models::Error),
    #[error(transparent)]
    Data(#[from] data::Error),
    #[error(transparent)]
    Training(#[from] training::Error),
    #[error("{}: {detail}", path.display())]
    File { path: PathBuf, detail: String },
    #[error("cannot write to standard output: {0}")]
    Output(std::io::Error),
    #[error("{0}")]
    Message(String),
}

impl Error {
    pub(crate) fn file(path: &Path, detail: impl ToString) -> Self {
        Error::File { path: path.to_path_buf(), detail: detail.to_string() }
    }
}
