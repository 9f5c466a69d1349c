//! `vocoe phantom`: synthetic CT volumes, for trials and tests.

use crate::Result;
use std::path::PathBuf;

/// Write body-like synthetic CT volumes with organ labels, as NIfTI.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder to write to; it is created
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How many patients
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub count: usize,
    /// The same seed writes the same volumes
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
}

pub fn command(args: &Args) -> Result<bool> {
    data::phantom::write_set(&args.out, args.count, args.seed)?;
    Ok(true)
}
