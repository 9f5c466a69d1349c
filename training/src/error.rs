use std::path::{Path, PathBuf};
use thiserror::Error;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Autograd(#[from] autograd::Error),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    Models(#[from] models::Error),
    #[error(transparent)]
    Data(#[from] data::Error),
    #[error("{0}")]
    Config(String),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: another run is writing there; wait until it has ended", folder.display())]
    Locked { folder: PathBuf },
    #[error("step {step}: the loss is {loss}; {signature}")]
    Diverged { step: u64, loss: f64, signature: String },
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<'_> {
        move |source| Error::Io { path: path.to_path_buf(), source }
    }
}
