//! `vocoe convert`: weights between PyTorch's checkpoints and safetensors.

use crate::verbosity::say;
use crate::{Error, Result};
use models::weights::{self, Format, Merging, Weights};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  vocoe convert VoCo_B_SSL_head.pt voco-b.safetensors
  vocoe convert runs/mixed/model.safetensors mixed.pt";

/// Tensors that share a storage are written apart: times by which a file may grow in that way before it is taken for one that was
/// made to fill disks.
const GROWTH: usize = 64;

/// Convert weights between PyTorch checkpoints (.pt, .pth) and .safetensors.
///
/// A checkpoint is read without running anything in it: it may hold tensors in dicts, and plain values beside them. The entry
/// `state_dict`, `network_weights`, `net` or `student` is opened where there is one, and `module.` and `backbone.` are removed
/// from the names, in which `swin_vit` becomes `swinViT`. Every tensor keeps its dtype; a .pt with float8, complex, or unsigned integers beyond uint8 is refused.
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
    let bytes = weights::read(input)?;
    let mut weights = Weights::parse(input, &bytes)?;
    refuse_growth(input, weights.size(), bytes.len())?;
    let renamed = weights.rename().map_err(|detail| Error::file(input, detail))?;
    let merging = weights.merging().map_err(|e| Error::file(input, e))?;
    weights.save(output).map_err(failed)?;
    say(format!("{}: {}", output.display(), notice(&weights, renamed, merging)))?;
    Ok(true)
}

fn refuse_growth(input: &Path, apart: usize, together: usize) -> Result<()> {
    if apart / GROWTH <= together {
        return Ok(());
    }
    let detail = format!(
        "its tensors share storages, and written apart they would take {apart} bytes, more than {GROWTH} times the file; save it \
         again without the names that repeat"
    );
    Err(Error::file(input, detail))
}

fn failed(error: models::Error) -> Error {
    match error {
        models::Error::Io { .. } => {
            Error::Message(format!("{error}; name a file in a folder that can be written to and has room"))
        }
        error => error.into(),
    }
}

fn refuse_same_file(input: &Path, output: &Path) -> Result<()> {
    match (input.canonicalize(), output.canonicalize()) {
        (Ok(a), Ok(b)) if a == b => Err(Error::file(output, "is the input itself; choose another name for the output")),
        _ => Ok(()),
    }
}

/// What was written, on one line.
fn notice(weights: &Weights, renamed: usize, merging: Merging) -> String {
    let mut line = format!("{} tensors, {} bytes", weights.tensors.len(), weights.size());
    if let Some(wrapper) = weights.wrapper {
        line += &format!(", from its entry {wrapper}");
    }
    line += &format!(", {renamed} names changed, {merging}");
    if !weights.ignored.is_empty() {
        let ignored: Vec<&str> = weights.ignored.iter().map(String::as_str).collect();
        line += &format!("; left out: {}", ignored.join(", "));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_growth_is_allowed() {
        let grown = |apart| refuse_growth(Path::new("w.pt"), apart, 1000);
        assert!(grown(9000).is_ok() && grown(64_063).is_ok());
        let error = grown(64_064).expect_err("too much").to_string();
        assert!(error.starts_with("w.pt: its tensors share storages") && error.lines().count() == 1, "{error}");
    }
}
