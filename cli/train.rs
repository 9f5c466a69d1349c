//! `vocoe train`: settings from file and flags, data, and what the person in front of it sees.

use crate::progress::Progress;
use crate::verbosity::{Verbosity, note, say};
use crate::{DeviceChoice, Error, Result, config, plan, size};
use clap::ValueEnum;
use data::{Bits, Geometry, Region, Source};
use engine::{Device, parallel::inside};
use serde::Deserialize;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use training::Config;
use training::checkpoint::{self, Saved};
use training::config::{LossKind, SourceConfig, TeacherKind};
use training::metrics::{Metrics, ends};
use training::pretrain::{self, Outcome, Watch};

/// Pre-train a SwinUNETR encoder with VoCo.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Settings file (TOML); flags override it
    #[arg(long, value_name = "F.toml", conflicts_with = "resume")]
    config: Option<PathBuf>,
    /// Go on with the run in --out, or from this checkpoint, with that run's settings; later checkpoints of it are made anew
    #[arg(long, value_name = "CHECKPOINT")]
    resume: Option<Option<PathBuf>>,
    /// Record the second step, with every kernel on a GPU, for Perfetto (ui.perfetto.dev) or Chrome's tracing
    #[arg(long, value_name = "FILE.json")]
    profile: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

const EXAMPLES: &str = "\
Examples:
  vocoe train --demo
  vocoe train --data DIR --region abdomen --size B --out runs/first
  vocoe train --config first.toml --seed 1";

/// One definition per setting, for the file's keys and for the flags.
#[derive(clap::Args, Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// A folder, a text list, or a dataset.json; may be given several times
    #[arg(long, value_name = "PATH")]
    data: Vec<PathBuf>,
    /// Body region of every --data: decides spacing, window and resizing [default: abdomen]
    #[arg(long)]
    region: Option<Region>,
    #[arg(skip)]
    sources: Vec<SourceConfig>,
    /// Leave out files that match
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Feature size 12, 48, 96 or 192 [default: B]
    #[arg(long)]
    size: Option<Size>,
    /// Any multiple of 12, in place of --size
    #[arg(long, value_name = "N")]
    feature_size: Option<usize>,
    /// Width of the projectors [default: 1024]
    #[arg(long, value_name = "N")]
    projection: Option<usize>,
    /// Optimiser steps [default: 2000000]
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Steps of linear warm-up [default: 5000, at most a twentieth of the steps]
    #[arg(long, value_name = "N")]
    warmup: Option<u64>,
    /// Volumes per step [default: 2]
    #[arg(long, value_name = "N")]
    volumes: Option<usize>,
    /// Only pair volumes of one region; an epoch's last step of each may hold fewer
    #[arg(long)]
    same_region: bool,
    /// Random crops per volume [default: 2]
    #[arg(long, value_name = "N")]
    crops: Option<usize>,
    /// How volumes are cut: voco, or cvpr with 4 x 4 bases of 96 voxels over all of it, seen at 64 [default: voco]
    #[arg(long)]
    geometry: Option<Geometry>,
    /// Base crops along x and along y [default: 3, with geometry cvpr 4]
    #[arg(long, value_name = "N")]
    grid: Option<usize>,
    /// Side of a crop in voxels [default: 64]
    #[arg(long, value_name = "N")]
    roi: Option<usize>,
    /// First loss term; the cvpr losses have no inter term, cvpr1 no teacher, cvpr3 a symmetric prediction [default: voco]
    #[arg(long)]
    loss: Option<Loss>,
    /// Initial weights of the backbone: .safetensors, .pt or .pth [default: drawn from the seed]
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Learning rate after warm-up [default: 1e-4]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lr: Option<f64>,
    /// Weight decay of AdamW [default: 0.01]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    weight_decay: Option<f64>,
    /// What the teacher averages: the student's projector, or all of it, for a second forward per step [default: projector]
    #[arg(long)]
    teacher: Option<Teacher>,
    /// Share of itself that the teacher keeps at a step; 0: no memory, the student's own weights [default: 0.9]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    momentum: Option<f64>,
    /// Probability that the student sees nothing of a crop [default: 0.2]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    row_dropout: Option<f64>,
    /// Probability that the student does not see one value of an embedding [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    element_dropout: Option<f64>,
    /// How much position prediction within a volume counts; 0 leaves it out [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    intra_weight: Option<f64>,
    /// How much agreement across volumes counts [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    inter_weight: Option<f64>,
    /// How much keeping bases apart counts [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    reg_weight: Option<f64>,
    /// The same seed gives the same numbers [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Threads that read and cut volumes; results do not depend on it [default: 2]
    #[arg(long, value_name = "N")]
    loader_threads: Option<usize>,
    /// Folder (or s3://BUCKET/FOLDER) of processed volumes, which is read where it has a volume and written where it has not
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Bits that a voxel has there, 8 or 16: intensities come back within half of 1/255, or of 1/65535, of the window [default: 8]
    #[arg(long, value_name = "N")]
    cache_bits: Option<Bits>,
    /// Largest size of the cache, such as 500GB; the volumes that were not used for the longest time make way [default: none]
    #[arg(long, visible_alias = "max-size", value_name = "SIZE", value_parser = size::parse)]
    #[serde(deserialize_with = "size::deserialize")]
    cache_size: Option<u64>,
    /// Share of the volumes that may turn out unusable before the run stops [default: 0.2]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    bad_share: Option<f64>,
    /// Where to compute: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long, value_name = "D")]
    device: Option<DeviceChoice>,
    /// What products are computed in; in 16 bits, of which the CPU knows bf16, parameters, sums, statistics and losses stay in f32 [default: f32]
    #[arg(long)]
    precision: Option<Precision>,
    /// Recompute activations in backward: less memory, a third more arithmetic
    #[arg(long)]
    recompute: bool,
    /// On a GPU, launch every step kernel by kernel, in place of repeating one that was captured; results do not depend on it
    #[arg(long)]
    no_graph: bool,
    /// Write a checkpoint every N steps, and at the end [default: 1000]
    #[arg(long, value_name = "N")]
    checkpoint_every: Option<u64>,
    /// How many of the newest checkpoints stay, besides the best [default: 3]
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
    /// Folder for results [default: the first free runs/pretrain-N or runs/demo-N]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Train a tiny model on generated phantoms, for about two minutes
    #[arg(long)]
    demo: bool,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Deserialize)]
pub(crate) enum Size {
    #[value(name = "tiny")]
    #[serde(rename = "tiny")]
    Tiny,
    #[value(name = "B")]
    B,
    #[value(name = "L")]
    L,
    #[value(name = "H")]
    H,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Loss {
    Voco,
    Infonce,
    Cvpr1,
    Cvpr3,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Teacher {
    Projector,
    Whole,
}

#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Precision {
    #[default]
    F32,
    Bf16,
    Fp16,
}

impl From<Precision> for training::config::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
            Precision::Fp16 => Self::Fp16,
        }
    }
}

pub fn command(args: Args) -> Result<bool> {
    let (config, saved) = match args.resume {
        Some(from) => resume(args.options, from.as_deref()).map(|(config, saved)| (config, Some(saved)))?,
        None => (fresh(args.config.as_deref(), args.options)?, None),
    };
    config.check()?;
    if config.warmup >= config.steps {
        let (warmup, steps) = (config.warmup, config.steps);
        note(format!(
            "note: {steps} steps end before a warm-up of {warmup} does, below the learning rate given: --warmup N"
        ));
    }
    let sources = training::source::find(&config, &mut note)?;
    let room = plan::room(&config, saved.is_some())?;
    say(config.to_toml()?.trim_end())?;
    let stop = stop_on_signals()?;
    let outcome = go(&config, saved, sources, room, args.profile.as_deref(), &stop)?;
    if let Some(file) = &args.profile {
        let written =
            if outcome.has_profile { "" } else { " was not written: the run ended before the second step from here" };
        say(format!("profile: {}{written}", file.display()))?;
    }
    say(summary(&outcome.metrics))?;
    say(format!("best checkpoint: step {} (mean loss {:.4})", outcome.best.step, outcome.best.loss))?;
    let Some(model) = &outcome.model else {
        let (checkpoint, out) = (outcome.checkpoint.display(), config.out.display());
        note(format!("stopped; all of it is in {checkpoint}. Go on with: vocoe train --resume --out {out}"));
        return Ok(false);
    };
    say(format!("weights: {}", model.display()))?;
    Ok(true)
}

/// Trains on `sources`, with `room` bytes of memory for the loader, until the end or until `stop`, and shows how it goes. Writes
/// the `profile` of a step.
pub(crate) fn go(
    config: &Config,
    saved: Option<Saved>,
    sources: Vec<Source>,
    room: u64,
    profile: Option<&Path>,
    stop: &AtomicBool,
) -> Result<Outcome> {
    let run = || steps(config, saved, sources, room, profile, stop);
    // A thread that waits for a GPU is better none of the pool's.
    if config.device()? == Device::Cpu { inside(run) } else { run() }
}

fn steps(
    config: &Config,
    saved: Option<Saved>,
    sources: Vec<Source>,
    room: u64,
    profile: Option<&Path>,
    stop: &AtomicBool,
) -> Result<Outcome> {
    let first = saved.as_ref().map_or(0, |s| s.step);
    // half of it for volumes to keep, the other half for those being read
    let volumes = training::source::list(&sources);
    let mut left_out = note;
    let mut batches = training::source::batches(config, sources, first, room / 2, &mut left_out)?;
    let progress = RefCell::new(Progress::going_on(first, config.steps, "step"));
    let mut observe = |m: &Metrics| progress.borrow_mut().show(m.step, &line(m));
    let mut hint = |line: String| progress.borrow().suspend(|| note(format!("note: {line}")));
    let mut watch = Watch { observe: &mut observe, note: &mut hint, stop, profile };
    let outcome = pretrain::run(config, saved, &volumes, &mut batches, &mut watch);
    progress.borrow().finish();
    engine::memory::flush(); // the pictures need buffers of other sizes
    if let Ok(Outcome { model: Some(model), .. }) = &outcome
        && let Err(error) = crate::inspect::draw_run(config, model)
    {
        note(format!("note: no pictures: {error}"));
    }
    write_report(&config.out, outcome.as_ref().err());
    Ok(outcome?)
}

/// A run is worth no less when its report cannot be written, and one that failed needs it most; but one that found the folder
/// taken is none of it.
fn write_report(out: &Path, error: Option<&training::Error>) {
    let taken = matches!(error, Some(training::Error::Locked { .. }));
    if taken || !out.join("metrics.jsonl").exists() {
        return; // it never began
    }
    match training::report::write(out, error.map(ToString::to_string).as_deref()) {
        Ok(path) => note(format!("report: {}", path.display())),
        Err(error) => note(format!("note: no report: {error}")),
    }
}

/// The settings of a new run.
pub fn fresh(file: Option<&Path>, flags: Options) -> Result<Config> {
    let config = settings(file, flags)?;
    refuse_to_overwrite(&config.out)?;
    Ok(config)
}

/// Flags over file over defaults.
pub(crate) fn settings(file: Option<&Path>, flags: Options) -> Result<Config> {
    let file = match file {
        Some(path) => read_options(path)?,
        None => Options::default(),
    };
    flags.over(file).resolve()
}

/// The newest whole checkpoint of the run in `out`, if there is one.
pub(crate) fn saved(out: &Path) -> Result<Option<Saved>> {
    let folder = out.join("checkpoints");
    if !checkpoint::any(&folder) {
        return Ok(None);
    }
    Ok(Some(Saved::newest(&folder, &mut |line| note(format!("note: {line}")))?))
}

/// Settings that may change on the way without changing a run's numbers.
const FREE: [&str; 9] =
    ["out", "loader_threads", "cache", "cache_size", "bad_share", "checkpoint_every", "keep", "device", "no_graph"];

/// The settings and the state of the run in --out, or of the checkpoint `from`.
fn resume(flags: Options, from: Option<&Path>) -> Result<(Config, Saved)> {
    let mut damaged = |line: String| note(format!("note: {line}"));
    let saved = match (from, &flags.out) {
        (Some(checkpoint), _) => Saved::read(checkpoint)?,
        (None, Some(out)) => Saved::newest(&out.join("checkpoints"), &mut damaged)?,
        (None, None) => return Err(Error::Message("--resume needs --out DIR, or the path of a checkpoint".into())),
    };
    let run = run_of(&saved.path)?;
    let mut stored: Options =
        toml::from_str(&saved.config).map_err(|e| Error::file(&saved.path, config::one_line(&e.to_string())))?;
    let elsewhere = flags.out.as_ref().is_some_and(|out| std::fs::canonicalize(out).ok().as_ref() != Some(&run));
    if elsewhere {
        let problem = format!("is a checkpoint of the run in {}, and goes on there; leave --out out", run.display());
        return Err(Error::file(&saved.path, problem));
    }
    stored.out = Some(run);
    // where it computed need not be there any more, and does not matter
    let was = Options { device: None, ..stored.clone() }.resolve()?;
    let config = flags.over(stored).resolve()?;
    if let Some(name) = changed(&was, &config)? {
        let rule = "a run goes on with the settings it began with; leave it out, or start a new run";
        return Err(Error::Message(format!("--resume: {name} differs from the run's: {rule}")));
    }
    note(format!("resuming from {} after step {}", saved.path.display(), saved.step));
    Ok((config, saved))
}

/// The whole path of the folder of a checkpoint's run.
fn run_of(checkpoint: &Path) -> Result<PathBuf> {
    let whole = std::fs::canonicalize(checkpoint).map_err(|e| Error::file(checkpoint, e))?;
    let folder = whole.parent().filter(|folder| folder.ends_with("checkpoints")).and_then(Path::parent);
    let lost = || {
        Error::file(checkpoint, "is in no run's folder; put it into the checkpoints folder beside its metrics.jsonl")
    };
    folder.map(Path::to_path_buf).ok_or_else(lost)
}

/// The first setting in which two configurations differ, of those that matter for the numbers.
pub(crate) fn changed(a: &Config, b: &Config) -> Result<Option<String>> {
    let table = |c: &Config| toml::Table::try_from(c).map_err(|e| Error::Message(e.to_string()));
    let (a, b) = (table(a)?, table(b)?);
    let names = a.keys().chain(b.keys()).filter(|k| !FREE.contains(&k.as_str()));
    Ok(names.into_iter().find(|k| a.get(*k) != b.get(*k)).cloned())
}

/// True after an interrupt or a request to terminate. A second one ends the process at once. One for all that the process does, so
/// that none is lost that comes between two runs.
pub(crate) fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .map_err(|e| Error::Message(format!("signals: {e}")))?;
    }
    Ok(stop)
}

fn read_options(path: &Path) -> Result<Options> {
    parse(config::read(path)?).map_err(|problem| Error::file(path, problem))
}

pub(crate) fn parse(table: toml::Table) -> Result<Options, String> {
    table.try_into().map_err(|e: toml::de::Error| config::one_line(&e.to_string()))
}

/// Adds the flags that are keys of a settings file too.
pub(crate) fn augment_settings(command: clap::Command) -> clap::Command {
    <Options as clap::Args>::augment_args(command)
}

/// Every setting with its default, as a settings file gives it.
pub(crate) fn defaults() -> Result<toml::Table> {
    let config = Options::default().resolve()?;
    let mut table = toml::Table::try_from(config).map_err(|e| Error::Message(e.to_string()))?;
    // a size in letters stands for the feature size, which would win over it
    table.insert("size".into(), "B".into());
    table.remove("feature_size");
    Ok(table)
}

impl Options {
    /// These settings where they are given, else those of `file`.
    fn over(self, file: Options) -> Options {
        let own_data = !self.data.is_empty();
        Options {
            data: if own_data { self.data } else { file.data },
            sources: if own_data { Vec::new() } else { file.sources },
            region: self.region.or(file.region),
            exclude: if self.exclude.is_empty() { file.exclude } else { self.exclude },
            // A size given by flag replaces the file's feature size too.
            feature_size: self.feature_size.or(if self.size.is_some() { None } else { file.feature_size }),
            projection: self.projection.or(file.projection),
            size: self.size.or(file.size),
            steps: self.steps.or(file.steps),
            warmup: self.warmup.or(file.warmup),
            volumes: self.volumes.or(file.volumes),
            same_region: self.same_region || file.same_region,
            crops: self.crops.or(file.crops),
            geometry: self.geometry.or(file.geometry),
            grid: self.grid.or(file.grid),
            roi: self.roi.or(file.roi),
            loss: self.loss.or(file.loss),
            weights: self.weights.or(file.weights),
            lr: self.lr.or(file.lr),
            weight_decay: self.weight_decay.or(file.weight_decay),
            teacher: self.teacher.or(file.teacher),
            momentum: self.momentum.or(file.momentum),
            row_dropout: self.row_dropout.or(file.row_dropout),
            element_dropout: self.element_dropout.or(file.element_dropout),
            intra_weight: self.intra_weight.or(file.intra_weight),
            inter_weight: self.inter_weight.or(file.inter_weight),
            reg_weight: self.reg_weight.or(file.reg_weight),
            seed: self.seed.or(file.seed),
            loader_threads: self.loader_threads.or(file.loader_threads),
            cache: self.cache.or(file.cache),
            cache_bits: self.cache_bits.or(file.cache_bits),
            cache_size: self.cache_size.or(file.cache_size),
            bad_share: self.bad_share.or(file.bad_share),
            device: self.device.or(file.device),
            precision: self.precision.or(file.precision),
            recompute: self.recompute || file.recompute,
            no_graph: self.no_graph || file.no_graph,
            checkpoint_every: self.checkpoint_every.or(file.checkpoint_every),
            keep: self.keep.or(file.keep),
            out: self.out.or(file.out),
            demo: self.demo || file.demo,
        }
    }

    pub(crate) fn resolve(self) -> Result<Config> {
        let demo = self.demo;
        let size = self.size.unwrap_or(if demo { Size::Tiny } else { Size::B });
        let steps = self.steps.unwrap_or(if demo { DEMO_STEPS } else { 2_000_000 });
        let geometry = self.geometry.unwrap_or_default();
        let region = self.region.unwrap_or(Region::Abdomen);
        let mut sources = self.sources;
        if self.region.is_some() && self.data.is_empty() && !sources.is_empty() {
            return Err(Error::Message("--region is that of --data; a [[sources]] entry has its own `region`".into()));
        }
        if self.cache.is_none() && (self.cache_bits.is_some() || self.cache_size.is_some()) {
            return Err(Error::Message("cache_bits and cache_size are those of --cache, which is not given".into()));
        }
        sources.extend(self.data.into_iter().map(|path| SourceConfig { path, region }));
        Ok(Config {
            demo,
            exclude: self.exclude,
            feature_size: self.feature_size.unwrap_or(size.feature_size()),
            projection: self.projection.unwrap_or(1024),
            steps,
            warmup: self.warmup.unwrap_or(if demo { DEMO_WARMUP.min(steps / 2) } else { (steps / 20).min(5000) }),
            volumes: self.volumes.unwrap_or(if demo { DEMO_VOLUMES } else { 2 }),
            same_region: self.same_region,
            crops: self.crops.unwrap_or(if demo { DEMO_CROPS } else { 2 }),
            geometry,
            grid: self.grid.unwrap_or(if demo && geometry == Geometry::Voco { DEMO_GRID } else { geometry.grid() }),
            roi: self.roi.unwrap_or(64),
            loss: match self.loss {
                None | Some(Loss::Voco) => LossKind::Voco,
                Some(Loss::Infonce) => LossKind::Infonce,
                Some(Loss::Cvpr1) => LossKind::Cvpr1,
                Some(Loss::Cvpr3) => LossKind::Cvpr3,
            },
            weights: self.weights,
            lr: self.lr.unwrap_or(if demo { DEMO_LR } else { 1e-4 }),
            weight_decay: self.weight_decay.unwrap_or(0.01),
            teacher: match self.teacher {
                Some(Teacher::Whole) => TeacherKind::Whole,
                _ => TeacherKind::Projector,
            },
            momentum: self.momentum.unwrap_or(0.9),
            row_dropout: self.row_dropout.unwrap_or(0.2),
            element_dropout: self.element_dropout.unwrap_or(0.0),
            intra_weight: self.intra_weight.unwrap_or(1.0),
            inter_weight: self.inter_weight.unwrap_or(1.0),
            reg_weight: self.reg_weight.unwrap_or(1.0),
            seed: self.seed.unwrap_or(0),
            loader_threads: self.loader_threads.unwrap_or(2),
            cache_bits: self.cache.is_some().then(|| self.cache_bits.unwrap_or_default()),
            cache: self.cache,
            cache_size: self.cache_size,
            bad_share: self.bad_share.unwrap_or(0.2),
            device: self.device.unwrap_or_default().resolve()?.to_string(),
            precision: self.precision.unwrap_or_default().into(),
            recompute: self.recompute,
            no_graph: self.no_graph,
            checkpoint_every: self.checkpoint_every.unwrap_or(1000),
            keep: self.keep.unwrap_or(3),
            out: self.out.unwrap_or_else(|| free_folder(if demo { "demo" } else { "pretrain" })),
            sources,
        })
    }
}

/// The demo: about two minutes on two cores, so fewer crops a step and a higher rate than the recipe's.
const DEMO_STEPS: u64 = 36;
const DEMO_WARMUP: u64 = 3;
const DEMO_VOLUMES: usize = 1;
const DEMO_CROPS: usize = 3;
const DEMO_GRID: usize = 2;
const DEMO_LR: f64 = 3e-4;

impl Size {
    pub(crate) fn feature_size(self) -> usize {
        match self {
            Size::Tiny => 12,
            Size::B => 48,
            Size::L => 96,
            Size::H => 192,
        }
    }
}

/// `runs/NAME-N` with the smallest N that does not exist.
fn free_folder(name: &str) -> PathBuf {
    let numbered = (1..).map(|n: u32| Path::new("runs").join(format!("{name}-{n}")));
    numbered.into_iter().find(|p| !p.exists()).unwrap_or_else(|| "runs".into())
}

/// A run that ended before its first step, such as one without a usable volume, leaves nothing that is worth keeping.
fn refuse_to_overwrite(out: &Path) -> Result<()> {
    let has_metrics = std::fs::metadata(out.join("metrics.jsonl")).is_ok_and(|file| file.len() > 0);
    if has_metrics || checkpoint::any(&out.join("checkpoints")) {
        return Err(Error::file(out, "holds a run already; choose another --out, or remove it"));
    }
    Ok(())
}

/// What a step's line says; with `-v` also what the update was made with.
fn line(m: &Metrics) -> String {
    let mut line = format!(
        "loss {:.4} (intra {:.4} inter {:.4} reg {:.4})  top-1 {:.2}  {:.2} crops/s  wait {:.0} %",
        m.loss,
        m.intra,
        m.inter,
        m.reg,
        m.position_top1,
        m.crops_per_s,
        100.0 * m.data_wait
    );
    if Verbosity::chosen() == Verbosity::Verbose {
        line += &format!("  lr {:.2e}  gradient {:.3}", m.lr, m.grad_norm);
    }
    line
}

/// The loss of the first and of the last sixth of the steps.
fn summary(metrics: &[Metrics]) -> String {
    let mean = |part: &[Metrics]| part.iter().map(|m| m.loss).sum::<f64>() / part.len() as f64;
    let (first, last) = ends(metrics);
    let (first, last) = (mean(first), mean(last));
    format!("loss: first sixth {first:.4}, last sixth {last:.4} ({:+.1} %)", 100.0 * (last / first - 1.0))
}
