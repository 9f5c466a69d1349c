//! What the loader can feed from a warm cache, and how long a step would wait for it.

use super::median;
use crate::verbosity::{print, say};
use crate::{Error, Result};
use data::{Bits, Cache, Loader, LoaderConfig, Region, Sampling, Source, phantom, prepare};
use rayon::prelude::*;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Patients of the cache that is made for it, where none is given.
const PATIENTS: usize = 4;
/// Volumes of a batch, as published.
const VOLUMES: usize = 2;

/// Feed batches of 2 volumes from a warm cache to a synthetic consumer.
///
/// Prints how many samples (a volume's 2 random and 9 base crops of 64³) and GB a second the loader yields to a consumer that
/// only takes them, what one sample takes, and reading its sub-volume of 192x192x64 voxels alone, and the share of its time that
/// a consumer waits which keeps every core busy for --step seconds a batch.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vocoe bench loader --step 30
  vocoe bench loader --data DIR --region chest --cache CACHE --json")]
pub struct Args {
    /// Volumes to feed [default: phantoms]
    #[arg(long, value_name = "PATH", requires_all = ["region", "cache"])]
    data: Option<PathBuf>,
    #[arg(long)]
    region: Option<Region>,
    /// Cache to read, filled where it lacks something [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[arg(long, value_name = "N", default_value = "8")]
    cache_bits: Bits,
    #[arg(long, value_name = "N", default_value_t = 2)]
    loader_threads: usize,
    /// Seconds of computing for each batch of the busy consumer
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    step: f64,
    /// Batches for each consumer
    #[arg(long, value_name = "N", default_value_t = 10)]
    batches: usize,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Measured {
    volumes: usize,
    loader_threads: usize,
    /// Of one sample, read and cut on one thread: the median.
    sample_seconds: f64,
    /// Of its sub-volume alone, read on one thread: the median.
    read_seconds: f64,
    samples_per_s: f64,
    crops_per_s: f64,
    gb_per_s: f64,
    step_seconds: f64,
    /// Share of its time that the busy consumer waited.
    wait: f64,
    /// Cores that feed 8 GPUs at 100 crops/s each.
    cores_for_800_crops_per_s: f64,
}

pub fn command(args: &Args) -> Result<bool> {
    if args.batches == 0 || !(0.0..1e6).contains(&args.step) {
        return Err(Error::Message("bench loader: --batches must be at least 1, --step seconds".into()));
    }
    let temporary = tempfile::tempdir().map_err(|e| Error::Message(format!("a temporary folder: {e}; set TMPDIR")))?;
    let measured = measure(args, temporary.path())?;
    if args.json {
        print(serde_json::to_string(&measured).map_err(|e| Error::Message(e.to_string()))?)?;
        return Ok(true);
    }
    let Measured { sample_seconds, read_seconds, samples_per_s, crops_per_s, gb_per_s, step_seconds, wait, .. } =
        measured;
    say(format!("sample    {:.1} ms on one thread, of which reading {:.1}", 1e3 * sample_seconds, 1e3 * read_seconds))?;
    say(format!("feeds     {samples_per_s:.1} samples/s, {crops_per_s:.0} crops/s, {gb_per_s:.2} GB/s"))?;
    say(format!("wait      {:.2} % beside a step of {step_seconds} s", 100.0 * wait))?;
    say(format!("8 GPUs at 100 crops/s each: {:.1} cores", measured.cores_for_800_crops_per_s))?;
    Ok(true)
}

fn measure(args: &Args, temporary: &Path) -> Result<Measured> {
    let sampling = Sampling::default();
    let sources = sources(args, temporary)?;
    let folder = args.cache.clone().unwrap_or_else(|| temporary.join("cache"));
    let cache = Arc::new(Cache::open(&folder, args.cache_bits, None)?);
    let (report, outcome) = prepare::run(&sources, &sampling, &cache, rayon::current_num_threads(), &|_| ());
    outcome?;
    if let Some(line) = report.skipped.first() {
        return Err(Error::Message(format!("bench loader: {line}")));
    }
    let config = LoaderConfig { sampling, volumes: VOLUMES, threads: args.loader_threads, ..LoaderConfig::default() };
    let start = || Loader::cached(sources.clone(), config, Some(cache.clone()));
    let sample_seconds = per_source(&sources, args.batches, &|source, seed| {
        cache.draw(source, &sampling, seed)?;
        Ok(())
    })?;
    let read_seconds =
        per_source(&sources, args.batches, &|source, seed| match cache.sub_volume(source, &sampling, seed)? {
            Some(_) => Ok(()),
            None => Err(Error::Message(format!("bench loader: {} lost its cache entry; run it again", source.name()))),
        })?;
    let (seconds, samples, bytes) = take(&mut start()?, config.prefetch, args.batches)?;
    let crops_per_sample = sampling.crops + sampling.bases();
    let per_core = 1.0 / sample_seconds;
    Ok(Measured {
        volumes: sources.len(),
        loader_threads: args.loader_threads,
        sample_seconds,
        read_seconds,
        samples_per_s: samples / seconds,
        crops_per_s: samples * crops_per_sample as f64 / seconds,
        gb_per_s: bytes / seconds / 1e9,
        step_seconds: args.step,
        wait: wait(&mut start()?, args.batches, args.step)?,
        cores_for_800_crops_per_s: 800.0 / crops_per_sample as f64 / per_core,
    })
}

fn sources(args: &Args, temporary: &Path) -> Result<Vec<Source>> {
    let region = args.region.unwrap_or(Region::Abdomen);
    if let Some(data) = &args.data {
        return Ok(data::dataset::find(data, &[])?.sources(region));
    }
    phantom::write_set(temporary, PATIENTS, 0, &|_| ())?;
    Ok(data::dataset::find(temporary, &[])?.sources(region))
}

/// Seconds that `work` takes on one thread: the median of `count` seeds of every source.
fn per_source(sources: &[Source], count: usize, work: &(dyn Fn(&Source, u64) -> Result<()> + Sync)) -> Result<f64> {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(|e| Error::Message(e.to_string()))?;
    let mut times = Vec::new();
    for (seed, source) in (0..count as u64).flat_map(|seed| sources.iter().map(move |s| (seed, s))) {
        let started = Instant::now();
        one.install(|| work(source, seed))?;
        times.push(started.elapsed().as_secs_f64());
    }
    Ok(median(times))
}

/// Seconds, samples and bytes of as many batches as a consumer gets that does nothing else, once it has had those made `ahead`.
fn take(loader: &mut Loader, ahead: usize, batches: usize) -> Result<(f64, f64, f64)> {
    for _ in 0..=ahead {
        loader.next_batch()?;
    }
    let started = Instant::now();
    let (mut samples, mut bytes) = (0, 0);
    for _ in 0..batches {
        let batch = loader.next_batch()?;
        samples += batch.volumes;
        bytes += size_of::<f32>() * (batch.crops.len() + batch.bases.len());
    }
    Ok((started.elapsed().as_secs_f64(), samples as f64, bytes as f64))
}

/// Share of its time that a consumer waits which keeps every core busy for `step` seconds a batch.
fn wait(loader: &mut Loader, batches: usize, step: f64) -> Result<f64> {
    loader.next_batch()?; // the first is waited for once in a run
    let started = Instant::now();
    let mut waited = Duration::ZERO;
    for _ in 0..batches {
        busy(step);
        let asked = Instant::now();
        loader.next_batch()?;
        waited += asked.elapsed();
    }
    Ok(waited.as_secs_f64() / started.elapsed().as_secs_f64())
}

fn busy(seconds: f64) {
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    (0..rayon::current_num_threads()).into_par_iter().for_each(|_| {
        while Instant::now() < until {
            std::hint::spin_loop();
        }
    });
}
