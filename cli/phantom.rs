//! `vocoe phantom`: synthetic CT volumes, for trials and tests.

use crate::Result;
use crate::progress::Progress;
use crate::verbosity::{self, say};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Write body-like synthetic CT volumes with organ labels, as NIfTI.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder to write to; it is created, and must not hold such volumes yet
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How many patients
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,
    /// The same seed writes the same volumes
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
}

const EXAMPLES: &str = "\
Examples:
  vocoe phantom --out phantoms --count 8
  vocoe train --data phantoms --size tiny --steps 100";

pub fn command(args: &Args) -> Result<bool> {
    let state = Mutex::new((0, Progress::patient(args.count.into(), "phantom")));
    let written = |path: &Path| {
        // the count and the bar are whole at any time, also after a panic elsewhere
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let (done, progress) = &mut *state;
        *done += 1;
        progress.suspend(|| verbosity::detail(path.display().to_string()));
        progress.show(*done, "");
    };
    let paths = data::phantom::write_set(&args.out, args.count as usize, args.seed, &written)?;
    state.into_inner().unwrap_or_else(PoisonError::into_inner).1.finish();
    say(format!("{}: {} volumes with their labels", args.out.display(), paths.len()))?;
    Ok(true)
}
