//! `vocoe completions` and `vocoe man`: what a package installs beside the binary.

use crate::{Cli, Error, Result};
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use std::io::Write;

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
    #[arg(value_name = "COMMAND")]
    page: Option<String>,
}

const MAN_EXAMPLES: &str = "\
Examples:
  vocoe man > vocoe.1
  vocoe man train > vocoe-train.1";

pub fn completions(args: &CompletionsArgs) -> Result<bool> {
    // through memory: the generator panics where it cannot write, as into a closed pipe
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "vocoe", &mut script);
    write(&script)
}

pub fn man(args: &ManArgs) -> Result<bool> {
    let mut root = Cli::command();
    root.build();
    let page = match &args.page {
        Some(name) => subcommand(&root, name)?,
        None => root,
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text).map_err(Error::Output)?;
    write(&text)
}

fn subcommand(root: &Command, name: &str) -> Result<Command> {
    let found = root.find_subcommand(name).cloned();
    found.ok_or_else(|| {
        let known: Vec<&str> = root.get_subcommands().map(Command::get_name).collect();
        Error::Message(format!("no command {name}; there are {}", known.join(", ")))
    })
}

fn write(bytes: &[u8]) -> Result<bool> {
    std::io::stdout().lock().write_all(bytes).map_err(Error::Output)?;
    Ok(true)
}
