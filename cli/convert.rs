//! `vocoe convert`: weights between PyTorch's checkpoints and safetensors.

use crate::verbosity::say;
use crate::{Error, Result};
use models::swin_unetr::merging_order;
use models::weights::{Format, PATCH_MERGING, Weights};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  vocoe convert VoCo_B_SSL_head.pt voco-b.safetensors
  vocoe convert runs/mixed/model.safetensors mixed.pt";

/// The order of patch merging of MONAI's releases up to 1.3, under which the published models were trained.
const USUAL_MERGING: &str = "monai-1.3";

/// Convert weights between PyTorch checkpoints (.pt, .pth) and .safetensors.
///
/// A checkpoint is read without running anything in it: it may hold tensors in dicts, and plain values beside them. The entry
/// `state_dict`, `network_weights`, `net` or `student` is opened where there is one, and `module.` and `backbone.` are removed
/// from the names. Every tensor keeps its dtype.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Weights to read
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Weights to write; the ending decides the format
    #[arg(value_name = "OUT")]
    output: PathBuf,
}

pub fn command(args: &Args) -> Result<bool> {
    let Args { input, output } = args;
    Format::of(input).and_then(|_| Format::of(output))?;
    refuse_same_file(input, output)?;
    let bytes = std::fs::read(input).map_err(|e| Error::file(input, e))?;
    let mut weights = Weights::parse(input, &bytes)?;
    let renamed = weights.rename().map_err(|detail| Error::file(input, detail))?;
    let said = weights.metadata.contains_key(PATCH_MERGING);
    let merging = weights.metadata.entry(PATCH_MERGING.into()).or_insert_with(|| USUAL_MERGING.into()).clone();
    merging_order(&merging)?;
    weights.save(output)?;
    say(format!("{}: {}", output.display(), notice(&weights, renamed, &merging, said)))?;
    Ok(true)
}

fn refuse_same_file(input: &Path, output: &Path) -> Result<()> {
    match (input.canonicalize(), output.canonicalize()) {
        (Ok(a), Ok(b)) if a == b => Err(Error::file(output, "is the input itself; choose another name for the output")),
        _ => Ok(()),
    }
}

/// What was written, on one line.
fn notice(weights: &Weights, renamed: usize, merging: &str, said: bool) -> String {
    let mut line = format!("{} tensors, {} bytes", weights.tensors.len(), weights.size());
    if let Some(wrapper) = weights.wrapper {
        line += &format!(", from its entry {wrapper}");
    }
    line += &format!(", {renamed} names changed, patch_merging {merging}");
    if !said {
        line += " (the input does not say)";
    }
    if !weights.ignored.is_empty() {
        let ignored: Vec<&str> = weights.ignored.iter().map(String::as_str).collect();
        line += &format!("; left out: {}", ignored.join(", "));
    }
    line
}
