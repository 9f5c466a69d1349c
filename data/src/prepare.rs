//! Fills a cache ahead of training, on several threads, and with [`Shard`] on several machines.

use crate::cache::{Cache, Prepared};
use crate::dataset::Source;
use crate::error::{Error, Result};
use crate::sample::Sampling;
use serde::Serialize;
use std::collections::HashSet;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Part `index` of `parts`, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    parts: usize,
}

impl Shard {
    pub const ALL: Shard = Shard { index: 1, parts: 1 };

    /// Every `parts`-th source. The parts are disjoint and complete where all machines list the same sources in the same order.
    pub fn of(self, sources: Vec<Source>) -> Vec<Source> {
        sources.into_iter().skip(self.index - 1).step_by(self.parts).collect()
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, parts)) if (1..=parts).contains(&index) => Ok(Shard { index, parts }),
            _ => Err("write I/N with I from 1 to N, such as 2/8".into()),
        }
    }
}

/// What came of the volumes.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub written: usize,
    /// There already, and whole by their checksums.
    pub found: usize,
    /// There, but damaged; written anew.
    pub mended: usize,
    /// Listed, but not there: for who made the list to fill in.
    pub missing: Vec<String>,
    /// Why volumes are not in the cache, a line each that names the file.
    pub skipped: Vec<String>,
    /// How many of the volumes made way for others again, because all together are larger than the cache may be.
    pub evicted: usize,
    /// Of all but the skipped ones: bytes there, and as float32.
    pub bytes: u64,
    pub float_bytes: u64,
}

/// Puts every source into `cache` on `threads` threads. `done` is told after each how many are. A volume that cannot be
/// processed is skipped. The report is of what was done until the end, or until an error.
///
/// Errors: the cache cannot be written to.
pub fn run(
    sources: &[Source],
    sampling: &Sampling,
    cache: &Cache,
    threads: usize,
    done: &(dyn Fn(usize) + Sync),
) -> (Report, Result<()>) {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let state = Mutex::new((Report::default(), Ok(()), HashSet::new()));
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(source) = sources.get(number) else { break };
            let prepared = cache.prepare(source, sampling);
            // every change of the report is complete before the lock is given up
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let (report, outcome, skipped) = &mut *state;
            match prepared {
                Err(error) if cache.is_at_fault(&error) => {
                    *outcome = Err(error);
                    stop.store(true, Ordering::Relaxed);
                }
                prepared => {
                    if prepared.is_err() {
                        skipped.insert(number);
                    }
                    report.add(prepared);
                }
            }
            done(report.count());
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let (mut report, outcome, skipped) = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.skipped.sort();
    if cache.has_limit() && outcome.is_ok() {
        let sizes: Vec<_> = sources.iter().map(|source| cache.size(source, sampling)).collect();
        report.bytes = sizes.iter().sum();
        report.evicted = (0..sizes.len()).filter(|number| sizes[*number] == 0 && !skipped.contains(number)).count();
    }
    (report, outcome)
}

impl Report {
    fn add(&mut self, prepared: Result<(Prepared, u64, u64), Error>) {
        match prepared {
            Ok((prepared, bytes, float_bytes)) => {
                match prepared {
                    Prepared::Found => self.found += 1,
                    Prepared::Written => self.written += 1,
                    Prepared::Mended => self.mended += 1,
                }
                self.bytes += bytes;
                self.float_bytes += float_bytes;
            }
            Err(error) => self.skipped.push(error.to_string()),
        }
    }

    fn count(&self) -> usize {
        self.written + self.found + self.mended + self.skipped.len()
    }
}
