//! The batches of a run: real volumes through the loader, or phantoms made on the spot.

use crate::{Config, Result};
use data::{Batch, Loader, LoaderConfig, Region, Sampling, Source, phantom, preprocess};

/// Phantom patients of the demo.
const PATIENTS: u64 = 8;

/// Starts the loader on everything that `config` names. `notice` gets one line for each thing worth saying: what was found and
/// left out, and later each volume that could not be used. Batch `first` comes first: the step that the run is at.
pub fn batches<'n>(
    config: &Config,
    first: u64,
    notice: &'n mut dyn FnMut(String),
) -> Result<impl Iterator<Item = data::Result<Batch>> + use<'n>> {
    let sources = if config.demo { phantoms(config.seed)? } else { volumes(config, notice)? };
    let settings = LoaderConfig {
        volumes: config.volumes,
        sampling: Sampling { crops: config.crops, roi: config.roi, grid: config.grid },
        seed: config.seed,
        threads: config.loader_threads,
        first_batch: first,
        bad_share: config.bad_share,
        ..LoaderConfig::default()
    };
    let mut loader = Loader::new(sources, settings)?;
    Ok(std::iter::from_fn(move || {
        let batch = loader.next_batch();
        if let Ok(batch) = &batch {
            batch.rejected.iter().for_each(|line| notice(format!("left out: {line}")));
        }
        Some(batch)
    }))
}

fn volumes(config: &Config, notice: &mut dyn FnMut(String)) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for source in &config.sources {
        let found = data::dataset::find(&source.path, &config.exclude)?;
        notice(format!(
            "{}: {} volumes ({:?}), left out {} label files, {} excluded, {} missing",
            source.path.display(),
            found.images.len(),
            source.region,
            found.labels,
            found.excluded,
            found.missing.len()
        ));
        sources.extend(found.sources(source.region));
    }
    Ok(sources)
}

/// Preprocessed as any abdominal CT.
fn phantoms(seed: u64) -> Result<Vec<Source>> {
    (0..PATIENTS)
        .map(|i| {
            let name = format!("phantom {i}");
            let hu = phantom::generate(seed, i, phantom::DIMS, phantom::SPACING).hu();
            let processed = preprocess::volume(&name, hu, &Region::Abdomen.settings())?;
            Ok(Source::memory(name, processed.image, Region::Abdomen))
        })
        .collect()
}
