//! `vocoe report`: a run's curves, settings and pictures on one page.

use crate::Result;
use std::path::PathBuf;

/// Write report.html into the folder of a run, as `train` does at its end.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The run's folder, the --out of train
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub fn command(args: &Args) -> Result<bool> {
    println!("{}", training::report::write(&args.folder, None)?.display());
    Ok(true)
}
