//! `completions`: the completion script of a shell.

use std::io::{self, Write};

use clap::CommandFactory;

use crate::args::{Cli, CompletionsArgs};

/// Prints the script. It is built in memory, because the generator panics if its output fails.
pub fn print(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut Cli::command(),
        "nano-webhooks",
        &mut script,
    );
    io::stdout().write_all(&script)?;
    Ok(())
}
