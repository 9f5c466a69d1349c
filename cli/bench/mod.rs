//! `vocoe bench`: how fast this machine computes.

mod loader;
mod read;
mod kernels;
mod step;

use crate::Result;
use clap::Subcommand;

/// Time a training step, reading, or the loader.
/// Time a training step, or every operation alone.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

const EXAMPLES: &str = "\
Examples:
  vocoe bench step --size B --crops 2 --threads 2
  vocoe bench step --size tiny --crops 10 --json
  vocoe bench read --volumes scan.nii.gz=chest --peer python3";
  vocoe bench kernels --size B --filter \"conv3d wgrad\"
  vocoe bench kernels --device cuda --dtype bf16 --crops 22 --peer python3 --json";

#[derive(Debug, Subcommand)]
enum What {
    Loader(loader::Args),
    Read(read::Args),
    Step(step::Args),
    Kernels(kernels::Args),
}

pub fn command(args: &Args) -> Result<bool> {
    match &args.what {
        What::Loader(args) => loader::command(args),
        What::Read(args) => read::command(args),
        What::Step(args) => step::command(args),
        What::Kernels(args) => kernels::command(args),
    }
}
