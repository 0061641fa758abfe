//! The whole service on a developer's machine, and the commands around it.

use std::process::ExitCode;

use nano_webhooks_cli::args::{self, Failed};

#[tokio::main]
async fn main() -> ExitCode {
    match args::run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed(reason)) => {
            eprintln!("nano-webhooks: {}", args::printable(&reason));
            ExitCode::FAILURE
        }
    }
}
