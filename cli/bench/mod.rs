//! `vocoe bench`: how fast this machine computes.

mod step;

use crate::Result;
use clap::Subcommand;

/// Time a training step.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Step(step::Args),
}

pub fn command(args: &Args) -> Result<bool> {
    match &args.what {
        What::Step(args) => step::command(args),
    }
}
