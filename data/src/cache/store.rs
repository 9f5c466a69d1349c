//! Where entries are kept: a folder, or a bucket of an object store.

use super::entry::{Blobs, Fault, Files, Problem};
use super::folder::Folder;
use crate::error::{Error, Result};
use std::path::Path;

/// Entries are whole or not there, whatever becomes of their writers. Threads, processes and machines may share a store.
pub(super) trait Store: Send + Sync {
    /// An entry's files; None where it is not there.
    fn open(&self, key: &str) -> Option<Result<Files, Fault>>;
    /// Errors: an entry that cannot be written, and a place that is taken by one that is not whole.
    fn write(&self, key: &str, entry: &Blobs) -> Result<(), Problem>;
    /// As far as that is possible; an entry that stays is found damaged again.
    fn remove(&self, key: &str);
    /// Bytes that an entry takes.
    fn size(&self, key: &str) -> u64;
    /// A line that was remembered under a name.
    fn recall(&self, name: &str) -> Option<String>;
    /// What is not remembered is only computed again.
    fn remember(&self, name: &str, line: &str);
}

/// The store at `place`, a folder or the URL of an object store, with at most so many bytes.
pub(super) fn open(place: &Path, max_bytes: Option<u64>) -> Result<Box<dyn Store>> {
    match place.to_str().filter(|text| text.contains("://")) {
        None => Ok(Box::new(Folder::open(place, max_bytes)?)),
        Some(_) if max_bytes.is_some() => Err(Error::setting(
            format!("{}: a bucket is not kept to a size by vocoe", place.display()),
            "give it a rule for its objects' lifetime in place of --cache-size",
        )),
        Some(url) => bucket(url),
    }
}

#[cfg(feature = "object-store")]
fn bucket(url: &str) -> Result<Box<dyn Store>> {
    Ok(Box::new(super::bucket::Bucket::open(url)?))
}

#[cfg(not(feature = "object-store"))]
fn bucket(url: &str) -> Result<Box<dyn Store>> {
    Err(Error::setting(
        format!("{url}: this vocoe was built without object stores"),
        "build it with --features object-store, or name a folder",
    ))
}
