//! `cargo xtask`: the project's own build steps.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::emulator::{self, Settings};
use xtask::{Result, images, root};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own build steps")]
struct Cli {
    #[command(subcommand)]
    step: Step,
}

#[derive(Subcommand)]
enum Step {
    /// Compile the kernels' images for all GPUs with the pinned compilers.
    Kernels {
        /// Write nothing; fail when the committed images or their table of resources are not what the sources give.
        #[arg(long)]
        check: bool,
    },
    /// Run a command on the CPU emulator: the same kernels, without a GPU.
    Emulate {
        #[command(flatten)]
        settings: Settings,
        /// The command and its arguments, after `--`.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().step) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(step: Step) -> Result<ExitCode> {
    match step {
        Step::Kernels { check } => images::kernels(&root(), check).map(|()| ExitCode::SUCCESS),
        Step::Emulate { settings, command } => {
            let status = emulator::emulate(&root(), &settings, &command)?;
            // As a shell does it: 128 and the signal's number for a command that a signal ended.
            let code = status.code().unwrap_or_else(|| 128 + signal(&status));
            Ok(ExitCode::from(code as u8))
        }
    }
}

fn signal(status: &std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.signal().unwrap_or_default()
}
