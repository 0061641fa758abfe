//! The whole service on a developer's machine, and the commands around it.

use std::process::ExitCode;

use nano_webhooks::local::cli::{self, Failed};

#[tokio::main]
async fn main() -> ExitCode {
    match cli::run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed(reason)) => {
            eprintln!("nano-webhooks: {}", cli::printable(&reason));
            ExitCode::FAILURE
        }
    }
}
