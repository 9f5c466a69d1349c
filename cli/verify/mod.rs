//! `vocoe verify`: every reference case of a folder, computed again and compared with PyTorch's numbers.
//!
//! A case is a safetensors file; `tests/reference/README.md` describes the format. Its `kind` picks the computation from
//! [`KINDS`]; [`compare`] holds the bounds.

pub mod case;
pub mod compare;
pub mod made;
mod models;
pub mod network;
mod ops;
mod optimiser;
mod preprocess;
mod report;
mod sliding_window;

use crate::progress::Progress;
use crate::{DeviceChoice, Error, Result};
use case::Case;
use clap::ValueEnum;
use compare::Comparison;
use engine::{DType, Device, Tensor};
use network::{AsComputed, Network};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Compute the reference cases of a folder and compare them with PyTorch's numbers.
///
/// One line per case: the tensor that comes closest to its bound (or breaks it), its error, the bound, the verdict. Exit 1
/// when a case fails, is NaN, cannot be read or has an unknown kind.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder with the cases (*.safetensors)
    #[arg(long, value_name = "DIR")]
    pub reference: PathBuf,
    /// Only cases whose names contain this text
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub filter: String,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "D", default_value_t)]
    pub device: DeviceChoice,
    /// What to compute in. f64 tries the rules themselves: rounding cannot move a LeakyReLU input to the other side of zero,
    /// so bounds are tighter (1e-6) and the same for all. bf16 and f16, on GPUs, are for single operations; whole networks are left
    /// out
    #[arg(long, value_enum, default_value_t)]
    pub dtype: Precision,
    /// Folder with the CT volumes of `preprocess` cases [default: DIR/../../ct]
    #[arg(long, value_name = "DIR")]
    pub ct: Option<PathBuf>,
    /// One JSON object per line instead of text
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  vocoe verify --reference tests/reference
  vocoe verify --reference tests/reference --filter conv3d --dtype f64";

/// What `--dtype` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    #[default]
    F32,
    F64,
    Bf16,
    F16,
}

impl From<Precision> for DType {
    fn from(precision: Precision) -> DType {
        match precision {
            Precision::F32 => DType::F32,
            Precision::F64 => DType::F64,
            Precision::Bf16 => DType::BF16,
            Precision::F16 => DType::F16,
        }
    }
}

/// What a run depends on besides its case.
#[derive(Clone, Debug)]
pub struct Context {
    pub device: Device,
    /// F32, F64, BF16 or F16.
    pub dtype: DType,
    /// The folder of the cases: `attrs.weights` names a file in it, or in its parent.
    pub folder: PathBuf,
    pub ct: PathBuf,
}

/// What a run computed, in PyTorch's layouts, under the names that a case gives its expectations: `out.y`, `grad.x`, ...
pub type Computed = BTreeMap<String, Tensor>;

/// How a kind of case is computed.
enum Run {
    Plain(fn(&Case, &Context) -> Result<Computed>),
    Network(Network),
    /// Several steps of a network.
    Steps(fn(&Case, &Context) -> Result<Computed>),
}

use Run::Plain;

/// Every kind of case and its computation.
const KINDS: &[(&str, Run)] = &[
    ("adamw", Plain(optimiser::adamw)),
    ("batch_norm", Plain(ops::batch_norm)),
    ("conv3d", Plain(ops::conv3d)),
    ("conv_transpose3d", Plain(ops::conv_transpose3d)),
    ("dice_ce", Plain(ops::dice_ce)),
    ("gelu", Plain(ops::gelu)),
    ("global_avg_pool3d", Plain(ops::global_avg_pool)),
    ("info_nce", Plain(ops::info_nce)),
    ("instance_norm", Plain(ops::instance_norm)),
    ("layer_norm", Plain(ops::layer_norm)),
    ("leaky_relu", Plain(ops::leaky_relu)),
    ("linear", Plain(ops::linear)),
    ("preprocess", Plain(preprocess::run)),
    ("relu", Plain(ops::relu)),
    ("resize_trilinear", Plain(ops::resize)),
    ("sliding_window", Plain(sliding_window::run)),
    ("swin_unetr", Run::Network(models::SWIN_UNETR)),
    ("voco_head", Run::Network(models::VOCO_HEAD)),
    ("voco_loss", Plain(ops::voco_loss)),
    ("voco_trajectory", Run::Steps(models::voco_trajectory)),
    ("window_attention", Plain(ops::window_attention)),
];

/// The names of all kinds.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(kind, _)| *kind)
}

/// Kinds that are computed in float32 where others are in 16 bits: losses, the update, and what no network computes.
const FLOAT32: &[&str] = &["adamw", "dice_ce", "info_nce", "preprocess", "sliding_window", "voco_loss"];

/// The kind of files that only hold parameters for other cases.
const WEIGHTS: &str = "weights";

/// The verdict on one file.
#[derive(Debug)]
pub struct Outcome {
    pub name: String,
    pub verdict: Verdict,
    /// Of a network whose gradients were judged with rectifier inputs on the sides of float64.
    pub as_computed: Option<AsComputed>,
}

#[derive(Debug)]
pub enum Verdict {
    /// What was compared; never empty. The case passes when all of it does.
    Compared(Vec<Comparison>),
    /// It could not be computed or compared.
    Failed(String),
    /// A readable file of parameters.
    Weights,
    /// A whole network in 16 bits: at random weights its gradients are mostly noise, in PyTorch too.
    NotJudged,
}

impl Outcome {
    pub fn failed(&self) -> bool {
        match &self.verdict {
            Verdict::Compared(all) => !all.iter().all(Comparison::passed),
            Verdict::Failed(_) => true,
            Verdict::Weights | Verdict::NotJudged => false,
        }
    }
}

/// Prints one line per case; whether all passed.
pub fn command(args: &Args) -> Result<bool> {
    let files = files(&args.reference, &args.filter)?;
    let context = Context {
        device: args.device.resolve()?,
        dtype: args.dtype.into(),
        folder: args.reference.clone(),
        ct: args.ct.clone().unwrap_or_else(|| args.reference.join("../../ct")),
    };
    let mut report = report::Report::new(args.json);
    let mut progress = Progress::patient(files.len() as u64, "case");
    for (done, file) in (1..).zip(&files) {
        let outcome = check(file, &context);
        progress.suspend(|| report.add(&outcome))?;
        progress.show(done, &outcome.name);
    }
    progress.finish();
    report.finish(&args.reference)
}

/// The folder's safetensors files whose names contain `filter`, by name. Errors when there are none.
pub fn files(folder: &Path, filter: &str) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::file(folder, format!("{e}; name a folder of cases, such as tests/reference"));
    let entries = std::fs::read_dir(folder).map_err(failed)?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == "safetensors") && case::name(&path).contains(filter) {
            files.push(path);
        }
    }
    files.sort();
    match files.is_empty() {
        true if filter.is_empty() => Err(Error::file(
            folder,
            "no reference case (*.safetensors) in this folder; name one such as tests/reference",
        )),
        true => Err(Error::file(folder, format!("no reference case matches --filter {filter}"))),
        false => Ok(files),
    }
}

/// Computes one case and compares it. Memory is poisoned and guarded meanwhile, and a panic is a failure of the case alone.
pub fn check(file: &Path, context: &Context) -> Outcome {
    engine::memory::check(true);
    let verdict = catch_unwind(AssertUnwindSafe(|| judge(file, context)));
    let (verdict, as_computed) = match verdict {
        Ok(Ok(judged)) => judged,
        Ok(Err(error)) => (Verdict::Failed(error.to_string()), None),
        Err(panic) => (Verdict::Failed(format!("panicked: {}", message(&*panic))), None),
    };
    Outcome { name: case::name(file), verdict, as_computed }
}

fn judge(file: &Path, context: &Context) -> Result<(Verdict, Option<AsComputed>)> {
    let mut case = Case::read(file, context.dtype)?;
    if case.kind == WEIGHTS {
        return Ok((Verdict::Weights, None));
    }
    let Some((_, run)) = KINDS.iter().find(|(kind, _)| *kind == case.kind) else {
        let known: Vec<&str> = kinds().collect();
        return Err(Error::Message(format!("unknown kind \"{}\"; known are {}", case.kind, known.join(", "))));
    };
    if case.dtype.is_half() && FLOAT32.contains(&case.kind.as_str()) {
        case = case.computed_in(DType::F32);
    }
    Ok(match run {
        Run::Network(_) | Run::Steps(_) if case.dtype.is_half() => (Verdict::NotJudged, None),
        Plain(compute) | Run::Steps(compute) => {
            (Verdict::Compared(compare::compare(&case, &compute(&case, context)?)?), None)
        }
        Run::Network(network) => {
            let (judged, as_computed) = network.judge(&case, context)?;
            (Verdict::Compared(judged), as_computed)
        }
    })
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
