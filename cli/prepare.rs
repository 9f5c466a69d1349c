//! `vocoe prepare`: every volume into the cache that `train --cache` reads.

use crate::progress::Progress;
use crate::verbosity::{note, print, say};
use crate::{Error, Result, train};
use data::prepare::{self, Report, Shard};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use training::source::Volumes;

/// Process every volume once and write it to a cache, for `train --cache`; volumes that are there already stay.
///
/// Takes the settings of train. A volume is a Zarr v3 array, named by its content and by what was done to it. May be interrupted,
/// and run by several processes or machines on one folder.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Settings file (TOML), as for train; flags override it
    #[arg(long, value_name = "F.toml")]
    config: Option<PathBuf>,
    /// Only part I of N of the volumes, I from 1: one part for each machine
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: train::Options,
}

const EXAMPLES: &str = "\
Examples:
  vocoe prepare --data DIR --region chest --cache CACHE
  vocoe prepare --config mixed.toml --cache CACHE --cache-bits 16 --max-size 500GB
  vocoe prepare --config mixed.toml --cache CACHE --shard 2/8";

/// Whether every volume that was named is in the cache.
pub fn command(args: Args) -> Result<bool> {
    let config = train::settings(args.config.as_deref(), args.options)?;
    config.check()?;
    if config.demo {
        return Err(Error::Message("prepare: the demo's volumes are made in memory; name some with --data".into()));
    }
    let cache = training::source::cache(&config)?;
    let cache = cache.ok_or_else(|| Error::Message("prepare: name a folder to write to with --cache DIR".into()))?;
    let Volumes { sources, missing } = training::source::volumes(&config, &mut |line| note(line))?;
    let sources = args.shard.unwrap_or(Shard::ALL).of(sources);
    let progress = Mutex::new(Progress::patient(sources.len() as u64, "volume"));
    let show = |done: usize| {
        // a bar is whole at any time
        progress.lock().unwrap_or_else(PoisonError::into_inner).show(done as u64, "");
    };
    let started = Instant::now();
    let threads = rayon::current_num_threads();
    let (mut report, outcome) = prepare::run(&sources, &config.sampling(), &cache, threads, &show);
    report.missing = missing.iter().map(|path| path.display().to_string()).collect();
    progress.into_inner().unwrap_or_else(PoisonError::into_inner).finish();
    cache.take_problems().into_iter().for_each(note);
    match args.json {
        true => print(serde_json::to_string(&report).map_err(|e| Error::Message(e.to_string()))?)?,
        false => summary(&report, started.elapsed().as_secs_f64())?,
    }
    outcome?;
    Ok(report.skipped.is_empty() && report.missing.is_empty() && report.evicted == 0)
}

fn summary(report: &Report, seconds: f64) -> Result<()> {
    let Report { written, found, mended, missing, skipped, evicted, bytes, float_bytes } = report;
    skipped.iter().try_for_each(|line| say(format!("skipped: {line}")))?;
    let (skipped, missing) = (skipped.len(), missing.len());
    say(format!(
        "{written} written, {found} there already, {mended} damaged and mended, {skipped} skipped, {missing} missing; \
         {seconds:.1} s"
    ))?;
    if *evicted > 0 {
        say(format!("{evicted} volumes made way for others again: give a larger --max-size, or none"))?;
    }
    if *bytes > 0 {
        let (mb, share) = (*bytes as f64 / 1e6, *float_bytes as f64 / *bytes as f64);
        say(format!("{mb:.1} MB, 1/{share:.1} of the volumes as float32"))?;
    }
    Ok(())
}
