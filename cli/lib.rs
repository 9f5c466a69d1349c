//! The `vocoe` command line: what the binary does, as a library, so that the tests can call it.

pub mod ablate;
pub mod allocator;
pub mod bench;
pub mod config;
pub mod conformance;
pub mod convert;
pub mod device;
pub mod devices;
pub mod error;
pub mod generate;
pub mod gradcheck;
pub mod inspect;
pub mod machine;
pub mod phantom;
pub mod plan;
pub mod prepare;
pub mod progress;
pub mod report;
pub mod size;
pub mod train;
pub mod verbosity;
pub mod verify;

pub use device::DeviceChoice;
pub use error::{Error, Result};
use verbosity::Verbosity;

use clap::{Parser, Subcommand};
use engine::parallel::inside;
use std::process::ExitCode;

/// Pre-trains 3D medical imaging networks with VoCo, on its own tensors, autograd and kernels.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    /// Worker threads for the kernels [default: one per core]. Results do not depend on it.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Print errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print more detail
    #[arg(short, long, global = true)]
    pub verbose: bool,
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Exit status: 0 success, 1 an error or a failed check, 2 wrong usage

Examples:
  vocoe train --demo
  vocoe inspect scan.nii.gz --out pictures
  vocoe help train";

#[derive(Debug, Subcommand)]
pub enum Command {
    Train(Box<train::Args>),
    Plan(Box<plan::Args>),
    Devices(devices::Args),
    Prepare(Box<prepare::Args>),
    Conformance(conformance::Args),
    Convert(convert::Args),
    Verify(verify::Args),
    Gradcheck(gradcheck::Args),
    Phantom(phantom::Args),
    Report(report::Args),
    Ablate(ablate::Args),
    Bench(bench::Args),
    Inspect(inspect::Args),
    Config(config::Args),
    Completions(generate::CompletionsArgs),
    Man(Box<generate::ManArgs>),
}

/// Runs the command of this process's arguments. Exit 1 after an error or a failed check, 2 after a wrong usage.
pub fn main() -> ExitCode {
    allocator::keep_freed_memory();
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            verbosity::tell(format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Whether everything that the command checked was right.
pub fn run(cli: Cli) -> Result<bool> {
    Verbosity::from_flags(cli.quiet, cli.verbose).choose();
    if let Some(threads) = cli.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global();
        pool.map_err(|e| Error::Message(format!("--threads {threads}: {e}")))?;
    }
    match cli.command {
        Command::Train(args) => train::command(*args),
        Command::Plan(args) => plan::command(*args),
        Command::Devices(args) => devices::command(&args),
        Command::Prepare(args) => prepare::command(*args),
        Command::Conformance(args) => conformance::command(&args),
        Command::Convert(args) => convert::command(&args),
        Command::Verify(args) => inside(|| verify::command(&args)),
        Command::Gradcheck(args) => inside(|| gradcheck::command(&args)),
        Command::Phantom(args) => phantom::command(&args),
        Command::Report(args) => report::command(&args),
        Command::Ablate(args) => ablate::command(&args),
        Command::Bench(args) => bench::command(&args),
        Command::Inspect(args) => inspect::command(&args),
        Command::Config(args) => config::command(&args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
    }
}
