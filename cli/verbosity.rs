//! How much is said: `-q` errors only, `-v` more than usual. Set once, before a command runs.

use crate::{Error, Result};
use std::io::{ErrorKind, Write};
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
    write(format!("{}\n", line.as_ref()).as_bytes())
}

/// Bytes on standard output. A reader that has seen enough, such as `head`, is no error: the rest goes unsaid, and a command
/// that does more than print goes on.
pub fn write(bytes: &[u8]) -> Result<()> {
    match std::io::stdout().lock().write_all(bytes) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::Output(error)),
        _ => Ok(()),
    }
}

/// Something worth knowing on the way: on standard error, unless `-q`.
pub fn note(line: impl AsRef<str>) {
    if Verbosity::chosen() > Verbosity::Quiet {
        tell(line);
    }
}

/// More than most want to know: on standard error, with `-v` only.
pub fn detail(line: impl AsRef<str>) {
    if Verbosity::chosen() == Verbosity::Verbose {
        tell(line);
    }
}

/// On standard error, `-q` or not. A line that cannot be written there has nobody to read it.
pub fn tell(line: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr(), "{}", line.as_ref());
}
