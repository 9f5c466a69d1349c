//! The error that ended a run, in `ended.txt` of its folder: the step that failed is in no other file.

use crate::{Error, Result, file};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

fn path(folder: &Path) -> PathBuf {
    folder.join("ended.txt")
}

/// Keeps `error` for those who look at the run later. A run that never began has nothing to look at.
pub fn record(folder: &Path, error: &Error) -> Result<()> {
    if !folder.join("metrics.jsonl").exists() {
        return Ok(());
    }
    file::replace(&path(folder), format!("{error}\n"))
}

/// The run goes on.
pub fn forget(folder: &Path) -> Result<()> {
    match std::fs::remove_file(path(folder)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(&path(folder))(error)),
        _ => Ok(()),
    }
}

/// What ended the run, where it was an error.
pub fn read(folder: &Path) -> Result<Option<String>> {
    match std::fs::read(path(folder)) {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).trim().to_string())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(&path(folder))(error)),
    }
}
