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

/// The middle one, or between the two middle ones. Infinite where there is none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

/// Of sorted values, the one that this share of them lies below; in proportion where that falls between two.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::INFINITY };
    let at = share * last as f64;
    let (low, high) = (sorted[at as usize], sorted[(at as usize + 1).min(last)]);
    low + (high - low) * at.fract()
}

pub fn command(args: &Args) -> Result<bool> {
    match &args.what {
        What::Loader(args) => loader::command(args),
        What::Read(args) => read::command(args),
        What::Step(args) => inside(|| step::command(args)),
        What::Kernels(args) => inside(|| kernels::command(args)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_lies_in_the_middle_and_quartiles_halfway_to_the_ends() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 8.0]), 3.0);
        assert_eq!((median(vec![5.0]), median(vec![])), (5.0, f64::INFINITY));
        let of = |share| quantile(&[1.0, 2.0, 4.0], share);
        assert_eq!([0.0, 0.25, 0.5, 0.75, 1.0].map(of), [1.0, 1.5, 2.0, 3.0, 4.0]);
    }
}
