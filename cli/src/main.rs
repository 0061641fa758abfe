//! The whole service on a developer's machine, and the commands around it.

use std::process::ExitCode;

use nano_webhooks_cli::args::{self, CliError};

#[tokio::main]
async fn main() -> ExitCode {
    match args::run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(CliError(reason)) => {
            eprintln!("nano-webhooks: {}", args::escape_for_terminal(&reason));
            ExitCode::FAILURE
        }
    }
}
