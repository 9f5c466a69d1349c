//! Processed volumes on disk, each written once, of which a sample reads only the chunks that it touches.
//!
//! `DIR/KEY.zarr` is a volume, named by its content and settings; `DIR/names` remembers the content of files. An entry is
//! written under a temporary name and renamed, so that it is whole or not there: of two writers the first wins, and what a
//! killed one leaves is removed by a later one. Every chunk has a checksum; an entry that is damaged is written anew.

mod bits;
mod entry;
mod evict;
mod key;
#[cfg(test)]
mod tests;

pub use bits::Bits;
pub use entry::Entry;

use crate::dataset::{Origin, Source};
use crate::error::{Error, Result};
use crate::sample::{Sample, Sampling};
use crate::volume::Volume;
use evict::Budget;
use serde_json::{Map, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A folder of entries. Threads, processes and machines may share it.
pub struct Cache {
    folder: PathBuf,
    bits: Bits,
    budget: Option<Budget>,
    problems: Mutex<Vec<String>>,
}

/// What [`Cache::prepare`] found or did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepared {
    /// Whole, and there already.
    Found,
    Written,
    /// There, but damaged; written anew.
    Mended,
}

impl Cache {
    /// Opens the cache in `folder`, which is created, and removes what killed writers left. Beyond `max_bytes` the volumes that
    /// were not used for the longest time are removed; a volume that was just written stays.
    ///
    /// Errors: a folder that cannot be made.
    pub fn open(folder: &Path, bits: Bits, max_bytes: Option<u64>) -> Result<Cache> {
        std::fs::create_dir_all(folder.join("names"))
            .map_err(|e| Error::io(folder, e, "name a folder for the cache that can be written to"))?;
        evict::remove_leftovers(folder);
        evict::remove_leftovers(&folder.join("names"));
        let budget = max_bytes.map(|most| Budget::new(folder, most));
        Ok(Cache { folder: folder.to_owned(), bits, budget, problems: Mutex::default() })
    }

    /// Whether sources of this kind are kept: files are, volumes in memory are not.
    pub fn keeps(source: &Source) -> bool {
        matches!(source.origin, Origin::File(_))
    }

    /// The sample that [`Sampling::draw`] draws of the quantised volume, read from its entry, or from the volume, which then
    /// becomes an entry. It does not matter for the sample which; what went wrong with the entry is in [`Cache::take_problems`].
    ///
    /// Errors: what [`Source::load`] refuses.
    pub fn draw(&self, source: &Source, sampling: &Sampling, seed: u64) -> Result<Sample> {
        let key = self.key(source, sampling)?;
        match self.find(&key) {
            Some(Ok(entry)) => {
                let sample = sampling.draw_from(entry.dims, seed, |corner, size| entry.read(corner, size));
                match sample {
                    Ok(sample) => return Ok(sample),
                    Err(problem) => self.discard(&key, source, &problem),
                }
            }
            Some(Err(problem)) => self.discard(&key, source, &problem),
            None => {}
        }
        let volume = self.quantised(source, sampling)?;
        if let Err(problem) = self.write(&key, source, &volume) {
            self.report(format!("{}: not cached: {problem}", source.name()));
        }
        Ok(sampling.draw(&volume, seed))
    }

    /// Makes sure that the volume is in the cache, whole. Also the bytes it takes there, and as float32.
    ///
    /// Errors: what [`Source::load`] refuses, and an entry that cannot be written.
    pub fn prepare(&self, source: &Source, sampling: &Sampling) -> Result<(Prepared, u64, u64)> {
        let key = self.key(source, sampling)?;
        let mut done = Prepared::Written;
        match self.find(&key).map(|entry| entry.and_then(|entry| entry.read([0; 3], entry.dims))) {
            Some(Ok(volume)) => return Ok((Prepared::Found, self.size(&key), float_bytes(&volume))),
            Some(Err(problem)) => {
                self.discard(&key, source, &problem);
                done = Prepared::Mended;
            }
            None => {}
        }
        let volume = self.quantised(source, sampling)?;
        self.write(&key, source, &volume).map_err(|problem| {
            Error::file(
                &self.folder,
                format!("cannot be written to ({problem})"),
                "make room there, or check its permissions",
            )
        })?;
        Ok((done, self.size(&key), float_bytes(&volume)))
    }

    /// What went wrong since the last call, a line each: entries that were damaged, or could not be written.
    pub fn take_problems(&self) -> Vec<String> {
        std::mem::take(&mut self.problems.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the error of [`Cache::prepare`] is the cache's, and not the volume's.
    pub fn is_at_fault(&self, error: &Error) -> bool {
        matches!(error, Error::File { path, .. } if *path == self.folder)
    }

    fn key(&self, source: &Source, sampling: &Sampling) -> Result<String> {
        let Origin::File(path) = &source.origin else {
            return Err(Error::setting(format!("{} is no file", source.name()), "only files are cached"));
        };
        let content = key::content(path, &self.folder.join("names"))?;
        Ok(key::of(content, source.region, sampling, self.bits))
    }

    fn place(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.zarr"))
    }

    fn find(&self, key: &str) -> Option<Result<Entry, String>> {
        let place = self.place(key);
        let entry = Entry::open(&place)?;
        if self.budget.is_some() {
            evict::mark_used(&place);
        }
        Some(entry)
    }

    /// The processed volume, as it comes back from an entry.
    fn quantised(&self, source: &Source, sampling: &Sampling) -> Result<Volume> {
        let mut volume = Arc::unwrap_or_clone(source.load(sampling)?);
        volume.data.iter_mut().for_each(|v| *v = self.bits.round_trip(*v));
        Ok(volume)
    }

    fn write(&self, key: &str, source: &Source, volume: &Volume) -> Result<(), String> {
        let place = self.place(key);
        let about = Map::from_iter([("source".into(), json!(source.name())), ("region".into(), json!(source.region))]);
        let temporary = temporary(&place);
        let written = std::fs::create_dir(&temporary)
            .map_err(|e| e.to_string())
            .and_then(|()| entry::write(&temporary, volume, self.bits, &about))
            .and_then(|()| std::fs::rename(&temporary, &place).map_err(|e| e.to_string()));
        if let Err(problem) = written {
            // best effort: a later writer removes what stays
            let _ = std::fs::remove_dir_all(&temporary);
            // another writer was first, with the same bytes
            return if place.is_dir() { Ok(()) } else { Err(problem) };
        }
        if let Some(budget) = &self.budget {
            budget.grow(&place);
        }
        Ok(())
    }

    fn discard(&self, key: &str, source: &Source, problem: &str) {
        self.report(format!("{}: its cache entry {key} is damaged ({problem}); written anew", source.name()));
        evict::remove(&self.place(key));
    }

    fn report(&self, line: String) {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).push(line.replace('\n', " "));
    }

    fn size(&self, key: &str) -> u64 {
        evict::size(&self.place(key))
    }
}

fn float_bytes(volume: &Volume) -> u64 {
    (volume.data.len() * size_of::<f32>()) as u64
}

/// A name beside `place` that no other writer uses.
fn temporary(place: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let started = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    place.with_extension(format!("{process}-{started}-{count}.{}", evict::TEMPORARY))
}

/// Writes a small file whole or not at all.
fn write_whole(place: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = temporary(place);
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, place)
}
