//! The batches of a run: real volumes through the loader, or phantoms made on the spot.

use crate::{Config, Error, Result, file};
use data::{Batch, Cache, Loader, LoaderConfig, Region, Source, phantom, preprocess};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How many absent volumes are named, of a list that may have been written for another disk.
const NAMED: usize = 5;
/// Phantom patients of the demo.
const PATIENTS: u64 = 8;

/// Everything that `config` names. `notice` gets one line for each thing worth saying: what was found and left out.
pub fn find(config: &Config, notice: &mut dyn FnMut(String)) -> Result<Vec<Source>> {
    if config.demo { phantoms(config) } else { Ok(volumes(config, notice)?.sources) }
}

/// Starts the loader on `sources`. `notice` gets a line for each volume that could not be used. Batch `first` comes first: the
/// step that the run is at. Processed volumes are kept in `spare` bytes at most.
pub fn batches<'n>(
    config: &Config,
    sources: Vec<Source>,
    first: u64,
    spare: u64,
    notice: &'n mut dyn FnMut(String),
) -> Result<impl Iterator<Item = data::Result<Batch>> + use<'n>> {
    let default = LoaderConfig::default();
    let settings = LoaderConfig {
        volumes: config.volumes,
        same_region: config.same_region,
        sampling: config.sampling(),
        seed: config.seed,
        threads: config.loader_threads,
        first_batch: first,
        bad_share: config.bad_share,
        cache_bytes: default.cache_bytes.min(usize::try_from(spare).unwrap_or(usize::MAX)),
        ..default
    };
    let all = sources.len();
    let cache = cache(config)?.map(Arc::new);
    let mut loader = Loader::cached(sources, settings, cache.clone())?;
    Ok(std::iter::from_fn(move || {
        let batch = loader.next_batch();
        if let Ok(batch) = &batch {
            let before = loader.rejected() - batch.rejected.len();
            let numbered = (before + 1..).zip(&batch.rejected);
            numbered.for_each(|(n, line)| notice(format!("left out ({n} of {all} volumes so far): {line}")));
        }
        cache.iter().flat_map(|cache| cache.take_problems()).for_each(&mut *notice);
        Some(batch)
    }))
}

/// The cache that `config` names.
pub fn cache(config: &Config) -> Result<Option<Cache>> {
    let open = |folder: &PathBuf| Cache::open(folder, config.cache_bits.unwrap_or_default(), config.cache_size);
    Ok(config.cache.as_ref().map(open).transpose()?)
}

/// What lists and folders name.
#[derive(Default)]
pub struct Volumes {
    pub sources: Vec<Source>,
    /// Listed, but not there.
    pub missing: Vec<PathBuf>,
}

/// Every volume that `config` names; `notice` is told what was found.
pub fn volumes(config: &Config, notice: &mut dyn FnMut(String)) -> Result<Volumes> {
    let mut volumes = Volumes::default();
    for source in &config.sources {
        let found = data::dataset::find(&source.path, &config.exclude)?;
        notice(format!(
            "{}: {} volumes ({:?}), left out {} label files, {} excluded, {}",
            source.path.display(),
            found.images.len(),
            source.region,
            found.labels,
            found.excluded,
            missing(&found.missing)
        ));
        volumes.sources.extend(found.sources(source.region));
        volumes.missing.extend(found.missing);
    }
    Ok(volumes)
}

/// How many, and the first of them by name.
fn missing(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths.iter().take(NAMED).map(|path| path.display().to_string()).collect();
    match paths.len() {
        0 => "0 missing".into(),
        all @ 1..=NAMED => format!("{all} missing: {}", names.join(", ")),
        all => format!("{all} missing: {} and {} more", names.join(", "), all - NAMED),
    }
}

/// The volumes in order, a line each: what a run's samples depend on beside its settings.
pub fn list(sources: &[Source]) -> String {
    let line =
        |source: &Source| format!("{} {:?} {}\n", source.weight, source.region, source.name().replace('\n', " "));
    sources.iter().map(line).collect()
}

/// Writes the list of a run's volumes to `volumes.txt` in its folder. `notice` is told where a run that goes on finds others than
/// before, whose samples are then others too.
pub(crate) fn record(out: &Path, list: &str, goes_on: bool, notice: &mut dyn FnMut(String)) -> Result<()> {
    let path = out.join("volumes.txt");
    let before = if goes_on { std::fs::read_to_string(&path).ok() } else { None };
    if let Some(before) = before.filter(|before| before != list) {
        notice(format!("{}; from here on the run sees other samples than it would have", difference(&before, list)));
    }
    file::replace(&path, list)
}

fn difference(before: &str, now: &str) -> String {
    let [old, new] = [before, now].map(|list| list.lines().collect::<HashSet<_>>());
    let (more, less) = (new.difference(&old).count(), old.difference(&new).count());
    match (more, less) {
        (0, 0) => "the volumes are in another order than before".into(),
        _ => format!("the volumes are not those of before: {more} are new and {less} are gone"),
    }
}

/// The first volume that `config` names, or the first phantom.
pub fn first(config: &Config) -> Result<Source> {
    let Some(source) = config.sources.first().filter(|_| !config.demo) else {
        return patient(config, 0);
    };
    let sources = data::dataset::find(&source.path, &config.exclude)?.sources(source.region);
    let first = sources.into_iter().next();
    first.ok_or_else(|| Error::Config(format!("{}: holds no volume", source.path.display())))
}

fn phantoms(config: &Config) -> Result<Vec<Source>> {
    (0..PATIENTS).map(|i| patient(config, i)).collect()
}

/// Preprocessed as any abdominal CT.
fn patient(config: &Config, index: u64) -> Result<Source> {
    let name = format!("phantom {index}");
    let hu = phantom::generate(config.seed, index, phantom::DIMS, phantom::SPACING).hu();
    let processed = preprocess::volume(&name, hu, &config.geometry.settings(Region::Abdomen))?;
    Ok(Source::memory(name, processed.image, Region::Abdomen))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_volumes_are_named_up_to_a_few() {
        let said = |count: usize| missing(&(1..=count).map(|i| format!("{i}.nii").into()).collect::<Vec<_>>());
        assert_eq!(said(0), "0 missing");
        assert_eq!(said(2), "2 missing: 1.nii, 2.nii");
        assert_eq!(said(9), "9 missing: 1.nii, 2.nii, 3.nii, 4.nii, 5.nii and 4 more");
    }

    #[test]
    fn a_run_that_goes_on_with_other_volumes_says_so() {
        let folder = tempfile::tempdir().expect("folder");
        let out = folder.path();
        let said = |names: &[&str], goes_on: bool| {
            let sources: Vec<_> = names.iter().map(|n| Source::file(n.into(), Region::Chest)).collect();
            let mut lines = Vec::new();
            record(out, &list(&sources), goes_on, &mut |line| lines.push(line)).expect("written");
            lines.join(" ")
        };
        assert_eq!(said(&["a.nii", "b.nii"], false), "");
        assert_eq!(said(&["a.nii", "b.nii"], true), "");
        assert!(said(&["b.nii", "c.nii", "d.nii"], true).contains("2 are new and 1 are gone"));
        assert_eq!(said(&["b.nii", "c.nii", "d.nii"], true), "");
        assert!(said(&["c.nii", "b.nii", "d.nii"], true).contains("another order"));
        assert_eq!(said(&["a.nii"], false), "", "a new run");
        assert_eq!(std::fs::read_to_string(out.join("volumes.txt")).expect("list"), "1 Chest a.nii\n");
    }
}
