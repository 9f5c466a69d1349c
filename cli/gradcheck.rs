//! `vocoe gradcheck`: every backward rule against central differences, one line each.

use crate::{Error, Result};
use autograd::gradcheck::{self, BOUND, Case};
use std::io::Write;

/// Check every backward rule against central differences in f64.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only rules whose names contain this text
    #[arg(long, value_name = "OP", default_value = "")]
    pub filter: String,
}

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
    let mut out = std::io::stdout().lock();
    let mut failed = 0;
    for case in &cases {
        let (line, passed) = match (case.run)() {
            Ok(error) => (format!("{error:9.1e} <= {BOUND:.1e}"), error <= BOUND), // NaN fails
            Err(error) => (error.to_string(), false),
        };
        failed += usize::from(!passed);
        let verdict = if passed { "ok" } else { "FAILED" };
        writeln!(out, "{:32} {line}  {verdict}", case.name).map_err(Error::Output)?;
    }
    writeln!(out, "gradcheck: {} rules, {} ok, {failed} failed", cases.len(), cases.len() - failed)
        .map_err(Error::Output)?;
    Ok(failed == 0)
}
