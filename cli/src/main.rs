//! The binary `nano-webhooks`.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match nano_webhooks_cli::run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nano-webhooks: {}", nano_webhooks_cli::format_error(&error));
            ExitCode::FAILURE
        }
    }
}
