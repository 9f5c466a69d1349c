//! Processed volumes, each written once, of which a sample reads only the chunks that it touches.
//!
//! Entry `KEY.zarr` is a volume, named by its content and settings; the content of files is remembered beside them. An entry is
//! whole or not there, and every chunk has a checksum; one that is damaged is written anew, one that cannot be read stays.

mod bits;
#[cfg(feature = "object-store")]
mod bucket;
mod chunk;
mod entry;
mod evict;
mod folder;
mod key;
mod store;
mod sums;
#[cfg(test)]
mod tests;

pub use bits::Bits;
pub use entry::{Entry, Fault};

use crate::dataset::{Origin, Source};
use crate::error::{Error, Result};
use crate::sample::{Sample, Sampling};
use crate::volume::Volume;
use serde_json::{Map, json};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::Store;

/// A folder or bucket of entries. Threads, processes and machines may share it.
pub struct Cache {
    place: PathBuf,
    store: Box<dyn Store>,
    bits: Bits,
    has_limit: bool,
    contents: key::Contents,
    problems: Mutex<Problems>,
}

const REMEDY: &str = "make room there, or check that it exists and may be written to";

/// Lines that nobody has taken yet, and everything that is not to be said again.
#[derive(Default)]
struct Problems {
    lines: Vec<String>,
    said: HashSet<String>,
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
    /// Opens the cache in a folder, which is created, or at the URL of an object store. In a folder, beyond `max_bytes` the volumes
    /// that were not used for the longest time are removed; a volume that was just written stays.
    ///
    /// Errors: a folder that cannot be made, a URL that cannot be used.
    pub fn open(place: &Path, bits: Bits, max_bytes: Option<u64>) -> Result<Cache> {
        Ok(Cache::of(place, store::open(place, max_bytes)?, bits, max_bytes.is_some()))
    }

    fn of(place: &Path, store: Box<dyn Store>, bits: Bits, has_limit: bool) -> Cache {
        let (contents, problems) = Default::default();
        Cache { place: place.to_owned(), store, bits, has_limit, contents, problems }
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
        let fetch = |entry: Entry| sampling.draw_from(entry.dims, seed, |corner, size| entry.read(corner, size));
        let damage = match self.find(&key).map(|entry| entry.and_then(fetch)) {
            Some(Ok(sample)) => return Ok(sample),
            Some(Err(Fault::Unreachable(problem))) => {
                let line = format!("{}: its cache entry {key} cannot be read now ({problem})", source.name());
                self.report_once(line.clone(), line);
                return Ok(sampling.draw(&self.quantised(source, sampling)?, seed));
            }
            Some(Err(Fault::Damaged(problem))) => Some(problem),
            None => None,
        };
        let volume = self.quantised(source, sampling)?;
        if let Err(problem) = self.write(&key, source, &volume, damage) {
            let (name, place) = (source.name(), self.place.display());
            let line = format!("{name}: not cached in {place}: {problem}; {REMEDY} (said once; more may be so)");
            self.report_once("not cached".into(), line); // problems of a bucket differ in names and times
        }
        Ok(sampling.draw(&volume, seed))
    }

    /// What [`Cache::draw`] reads for the sample of this seed: the sub-volume that its crops are cut out of. None where the volume has no
    /// whole entry.
    ///
    /// Errors: a source that is no file, or cannot be read.
    pub fn sub_volume(&self, source: &Source, sampling: &Sampling, seed: u64) -> Result<Option<Volume>> {
        let Some(Ok(entry)) = self.find(&self.key(source, sampling)?) else { return Ok(None) };
        let place = sampling.place(entry.dims, seed);
        Ok(entry.read(place.corner, sampling.extent()).ok())
    }

    /// Makes sure that the volume is in the cache, whole. Also the bytes it takes there, and as float32.
    ///
    /// Errors: what [`Source::load`] refuses, and an entry that cannot be written, or not be read at this time.
    pub fn prepare(&self, source: &Source, sampling: &Sampling) -> Result<(Prepared, u64, u64)> {
        let key = self.key(source, sampling)?;
        let damage = match self.find(&key).map(|entry| entry.and_then(|entry| entry.read_all())) {
            Some(Ok(volume)) => return Ok((Prepared::Found, self.store.size(&key), float_bytes(&volume))),
            Some(Err(Fault::Unreachable(problem))) => {
                let problem = format!("its cache entry {key} cannot be read ({problem})");
                let remedy = "prepare it again, and look at the cache's disk if this stays";
                return Err(Error::file(Path::new(&source.name()), problem, remedy));
            }
            Some(Err(Fault::Damaged(problem))) => Some(problem),
            None => None,
        };
        let done = if damage.is_some() { Prepared::Mended } else { Prepared::Written };
        let volume = self.quantised(source, sampling)?;
        self.write(&key, source, &volume, damage)
            .map_err(|problem| Error::file(&self.place, format!("cannot be written to ({problem})"), REMEDY))?;
        Ok((done, self.store.size(&key), float_bytes(&volume)))
    }

    /// Whether volumes make way for others where they are too many.
    pub fn has_limit(&self) -> bool {
        self.has_limit
    }

    /// Bytes of the volume's entry, whole or not; 0 where there is none.
    pub fn size(&self, source: &Source, sampling: &Sampling) -> u64 {
        self.key(source, sampling).map_or(0, |key| self.store.size(&key))
    }

    /// What went wrong since the last call, a line each: entries that were damaged, or could not be read or written. What every draw
    /// would say again is said by the first.
    pub fn take_problems(&self) -> Vec<String> {
        std::mem::take(&mut self.problems().lines)
    }

    /// Whether the error of [`Cache::prepare`] is the cache's, and not the volume's.
    pub fn is_at_fault(&self, error: &Error) -> bool {
        matches!(error, Error::File { path, .. } if *path == self.place)
    }

    fn key(&self, source: &Source, sampling: &Sampling) -> Result<String> {
        let Origin::File(path) = &source.origin else {
            return Err(Error::setting(format!("{} is no file", source.name()), "only files are cached"));
        };
        let content = key::content(path, &*self.store, &self.contents)?;
        Ok(key::of(content, source.region, sampling, self.bits))
    }

    fn find(&self, key: &str) -> Option<Result<Entry, Fault>> {
        Some(self.store.open(key)?.and_then(Entry::of))
    }

    /// The processed volume, as it comes back from an entry.
    fn quantised(&self, source: &Source, sampling: &Sampling) -> Result<Volume> {
        let mut volume = Arc::unwrap_or_clone(source.load(sampling)?);
        volume.data.iter_mut().for_each(|v| *v = self.bits.round_trip(*v));
        Ok(volume)
    }

    /// Writes the volume's entry, in place of the one with this damage where there is one.
    fn write(&self, key: &str, source: &Source, volume: &Volume, damage: Option<String>) -> Result<(), String> {
        let about = Map::from_iter([("source".into(), json!(source.name())), ("region".into(), json!(source.region))]);
        let entry = entry::encode(volume, self.bits, &about)?;
        let Some(damage) = damage else { return self.store.write(key, &entry) };
        let damaged = format!("its cache entry {key} was damaged ({damage})");
        self.store.remove(key);
        self.store.write(key, &entry).map_err(|problem| format!("{damaged}, and then: {problem}"))?;
        self.report(format!("{}: {damaged}; written anew", source.name()));
        Ok(())
    }

    fn report(&self, line: String) {
        self.problems().lines.push(line.replace('\n', " "));
    }

    /// Unless a line was reported for this cause before.
    fn report_once(&self, cause: String, line: String) {
        let is_new = self.problems().said.insert(cause);
        if is_new {
            self.report(line);
        }
    }

    fn problems(&self) -> MutexGuard<'_, Problems> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn float_bytes(volume: &Volume) -> u64 {
    (volume.data.len() * size_of::<f32>()) as u64
}
