//! How much is said: `-q` errors only, `-v` more than usual. Set once, before a command runs.

use crate::{Error, Result};
use std::io::Write;
use std::sync::OnceLock;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    Quiet,
    #[default]
    Normal,
    Verbose,
}

static CHOSEN: OnceLock<Verbosity> = OnceLock::new();

impl Verbosity {
    pub fn from_flags(quiet: bool, verbose: bool) -> Self {
        match (quiet, verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        }
    }

    /// For the rest of the process; only the first choice counts.
    pub fn choose(self) {
        CHOSEN.get_or_init(|| self);
    }

    pub fn chosen() -> Self {
        CHOSEN.get().copied().unwrap_or_default()
    }
}

/// A result: on standard output, unless `-q`.
pub fn say(line: impl AsRef<str>) -> Result<()> {
    if Verbosity::chosen() > Verbosity::Quiet { print(line) } else { Ok(()) }
}

/// What was asked for itself, `-q` or not: on standard output.
pub fn print(line: impl AsRef<str>) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{}", line.as_ref()).map_err(Error::Output)
}

/// Something worth knowing on the way: on standard error, unless `-q`.
pub fn note(line: impl AsRef<str>) {
    if Verbosity::chosen() > Verbosity::Quiet {
        eprintln!("{}", line.as_ref());
    }
}

/// More than most want to know: on standard error, with `-v` only.
pub fn detail(line: impl AsRef<str>) {
    if Verbosity::chosen() == Verbosity::Verbose {
        eprintln!("{}", line.as_ref());
    }
}
