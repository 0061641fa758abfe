//! The binary `nano-webhooks`.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match nano_webhooks_cli::run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => nano_webhooks_cli::report_error(&error),
    }
}
