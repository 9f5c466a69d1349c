//! The `vocoe` command line: what the binary does, as a library, so that the tests can call it.

pub mod ablate;
pub mod bench;
pub mod device;
pub mod error;
pub mod gradcheck;
pub mod phantom;
pub mod report;
pub mod train;
pub mod verify;

pub use device::DeviceChoice;
pub use error::{Error, Result};

use clap::{Parser, Subcommand};
use std::num::NonZeroUsize;
use std::process::ExitCode;

/// Pre-trains 3D medical imaging networks with VoCo, on its own tensors, autograd and kernels.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    /// Worker threads for the kernels [default: one per core]. Results do not depend on it.
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Train(Box<train::Args>),
    Verify(verify::Args),
    Gradcheck(gradcheck::Args),
    Phantom(phantom::Args),
    Report(report::Args),
    Ablate(ablate::Args),
    Bench(bench::Args),
}

/// Runs the command of this process's arguments. Exit 1 after an error or a failed check, 2 after a wrong usage.
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything that the command checked was right.
pub fn run(cli: Cli) -> Result<bool> {
    if let Some(threads) = cli.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global();
        pool.map_err(|e| Error::Message(format!("--threads {threads}: {e}")))?;
    }
    match cli.command {
        Command::Train(args) => train::command(*args),
        Command::Verify(args) => verify::command(&args),
        Command::Gradcheck(args) => gradcheck::command(&args),
        Command::Phantom(args) => phantom::command(&args),
        Command::Report(args) => report::command(&args),
        Command::Ablate(args) => ablate::command(&args),
        Command::Bench(args) => bench::command(&args),
    }
}
