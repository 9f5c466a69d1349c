//! `vocoe report`: a run's curves, settings and pictures on one page.

use crate::Result;
use crate::verbosity::say;
use std::path::PathBuf;

/// Write report.html into the folder of a run, as `train` does at its end.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The run's folder, the --out of train
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  vocoe report runs/mixed";

pub fn command(args: &Args) -> Result<bool> {
    say(training::report::write(&args.folder, None)?.display().to_string())?;
    Ok(true)
}
