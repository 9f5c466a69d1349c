//! `vocoe completions` and `vocoe man`: what a package installs beside the binary.

use crate::verbosity::write;
use crate::{Cli, Error, Result};
use clap::{Command, CommandFactory};
use clap_complete::Shell;

/// Print the completion script of a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub struct CompletionsArgs {
    shell: Shell,
}

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  vocoe completions bash > ~/.local/share/bash-completion/completions/vocoe
  vocoe completions fish > ~/.config/fish/completions/vocoe.fish";

/// Print the manual page of vocoe, or of one of its commands.
#[derive(Debug, clap::Args)]
#[command(after_help = MAN_EXAMPLES)]
pub struct ManArgs {
    /// A command, such as train
    #[arg(value_name = "COMMAND", value_parser = subcommand)]
    page: Option<Command>,
}

const MAN_EXAMPLES: &str = "\
Examples:
  vocoe man > vocoe.1
  vocoe man train > vocoe-train.1";

pub fn completions(args: &CompletionsArgs) -> Result<bool> {
    // through memory: the generator panics where it cannot write, as into a closed pipe
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "vocoe", &mut script);
    write(&script)?;
    Ok(true)
}

pub fn man(args: &ManArgs) -> Result<bool> {
    let page = args.page.clone().unwrap_or_else(root);
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text).map_err(Error::Output)?;
    write(&text)?;
    Ok(true)
}

/// With its subcommands' full names.
fn root() -> Command {
    let mut root = Cli::command();
    root.build();
    root
}

fn subcommand(name: &str) -> Result<Command, String> {
    let root = root();
    let known = || root.get_subcommands().map(Command::get_name).collect::<Vec<_>>().join(", ");
    root.find_subcommand(name).cloned().ok_or_else(|| format!("no command of this name; there are {}", known()))
}
