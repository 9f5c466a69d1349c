//! `vocoe bench`: how fast this machine computes.

mod kernels;
mod loader;
mod read;
mod step;

use crate::Result;
use clap::Subcommand;
use engine::parallel::inside;

/// Time a training step, every operation alone, reading, or the loader.
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
  vocoe bench read --volumes scan.nii.gz=chest --peer python3
  vocoe bench kernels --size B --filter \"conv3d wgrad\"
  vocoe bench kernels --device cuda --dtype bf16 --crops 22 --peer python3 --json";

#[derive(Debug, Subcommand)]
enum What {
    Step(step::Args),
    Kernels(kernels::Args),
    Read(read::Args),
    Loader(loader::Args),
}

pub fn command(args: &Args) -> Result<bool> {
    match &args.what {
        What::Loader(args) => loader::command(args),
        What::Read(args) => read::command(args),
        What::Step(args) => inside(|| step::command(args)),
        What::Kernels(args) => inside(|| kernels::command(args)),
    }
}
