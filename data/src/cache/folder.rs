//! A cache in a folder: `DIR/KEY.zarr` is an entry, `DIR/names` remembers lines. Everything is written under a temporary name and
//! renamed, so that of two writers the first wins, and what a killed one leaves is removed by a later one.

use super::entry::{Blobs, DESCRIPTION, Entry, Fault, Files, Problem, SHARD};
use super::evict::{self, Budget};
use super::store::Store;
use crate::error::{Error, Result};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) struct Folder {
    path: PathBuf,
    budget: Option<Budget>,
}

impl Folder {
    /// Creates the folder, and removes what killed writers left. Beyond `max_bytes` the volumes that were not used for the longest
    /// time are removed; a volume that was just written stays.
    ///
    /// Errors: a folder that cannot be made.
    pub(super) fn open(path: &Path, max_bytes: Option<u64>) -> Result<Folder> {
        std::fs::create_dir_all(path.join("names"))
            .map_err(|e| Error::io(path, e, "name a folder for the cache that can be written to"))?;
        evict::remove_leftovers(path);
        evict::remove_leftovers(&path.join("names"));
        Ok(Folder { path: path.to_owned(), budget: max_bytes.map(|most| Budget::new(path, most)) })
    }

    pub(super) fn place(&self, key: &str) -> PathBuf {
        self.path.join(format!("{key}.zarr"))
    }
}

impl Store for Folder {
    fn open(&self, key: &str) -> Option<Result<Files, Fault>> {
        let place = self.place(key);
        let files = Files::open(&place)?;
        if self.budget.is_some() {
            evict::mark_used(&place);
        }
        Some(files)
    }

    fn write(&self, key: &str, entry: &Blobs) -> Result<(), Problem> {
        let place = self.place(key);
        let temporary = temporary(&place);
        let written = write_files(&temporary, entry).and_then(|()| std::fs::rename(&temporary, &place));
        if let Err(problem) = written {
            // best effort: a later writer removes what stays
            let _ = std::fs::remove_dir_all(&temporary);
            let taken = [ErrorKind::DirectoryNotEmpty, ErrorKind::AlreadyExists].contains(&problem.kind());
            return match Files::open(&place).map(|files| Entry::of(files?)?.read_all()) {
                // another writer was first, with the same bytes
                Some(Ok(_)) => Ok(()),
                // which made way again since
                None if taken => Ok(()),
                Some(Err(fault)) if taken => Err(format!("{key}.zarr is there already, but not whole: {fault}")),
                _ => Err(problem.to_string()),
            };
        }
        if let Some(budget) = &self.budget {
            budget.grow(&place);
        }
        Ok(())
    }

    fn remove(&self, key: &str) {
        // by the trait's contract, it may stay
        let _ = evict::remove(&self.place(key));
    }

    fn size(&self, key: &str) -> u64 {
        evict::size(&self.place(key))
    }

    fn recall(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.path.join("names").join(name)).ok()
    }

    fn remember(&self, name: &str, line: &str) {
        // best effort, by the trait's contract
        let _ = write_whole(&self.path.join("names").join(name), line.as_bytes());
    }
}

/// Into a new folder; its parent must be there.
fn write_files(at: &Path, entry: &Blobs) -> std::io::Result<()> {
    std::fs::create_dir(at)?;
    std::fs::write(at.join(DESCRIPTION), &entry.description)?;
    let shard = at.join(SHARD);
    std::fs::create_dir_all(shard.parent().unwrap_or(at))?;
    std::fs::write(shard, &entry.shard)
}

/// A name beside `place` that no other writer uses.
pub(super) fn temporary(place: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let started = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    place.with_extension(format!("{process}-{started}-{count}.tmp"))
}

/// Whether the name is that of an entry, `KEY.zarr`.
pub(super) fn is_entry(path: &Path) -> bool {
    name(path).strip_suffix(".zarr").is_some_and(is_key)
}

/// Whether the name is one that [`temporary`] gives beside an entry or a remembered line.
pub(super) fn is_temporary(path: &Path) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let parts = name(path).strip_suffix(".tmp").and_then(|name| name.split_once('.'));
    parts.is_some_and(|(key, numbers)| {
        is_key(key) && numbers.split('-').count() == 3 && numbers.split('-').all(is_number)
    })
}

/// 32 hexadecimal digits.
fn is_key(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Writes a small file whole or not at all.
fn write_whole(place: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = temporary(place);
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, place)
}
