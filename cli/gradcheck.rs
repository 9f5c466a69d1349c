//! `vocoe gradcheck`: every backward rule against central differences, one line each.

use crate::{Error, Result, verbosity};
use autograd::gradcheck::{self, BOUND, Case};

/// Check every backward rule against central differences in f64.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only rules whose names contain this text
    #[arg(long, value_name = "OP", default_value = "")]
    pub filter: String,
}

const EXAMPLES: &str = "\
Examples:
  vocoe gradcheck
  vocoe gradcheck --filter conv3d";

/// Whether every rule that matches agrees with the differences. Errors when none matches.
pub fn command(args: &Args) -> Result<bool> {
    let cases: Vec<Case> = gradcheck::cases().into_iter().filter(|c| c.name.contains(&args.filter)).collect();
    if cases.is_empty() {
        let known: Vec<&str> = gradcheck::cases().iter().map(|c| c.name).collect();
        return Err(Error::Message(format!(
            "--filter {}: no rule matches; there are {}",
            args.filter,
            known.join(", ")
        )));
    }
    engine::memory::check(true);
    let mut failed = 0;
    for case in &cases {
        let (line, passed) = match (case.run)() {
            Ok(error) => (format!("{error:9.1e} <= {BOUND:.1e}"), error <= BOUND), // NaN fails
            Err(error) => (error.to_string(), false),
        };
        failed += usize::from(!passed);
        let verdict = if passed { "ok" } else { "FAILED" };
        let print = if passed { verbosity::say } else { verbosity::print };
        print(format!("{:32} {line}  {verdict}", case.name))?;
    }
    verbosity::say(format!("gradcheck: {} rules, {} ok, {failed} failed", cases.len(), cases.len() - failed))?;
    Ok(failed == 0)
}
