//! The command line `nano-webhooks`: the whole service on one machine, and the operator's commands.
//!
//! [`local_client`] and [`embedded_dynamodb`] are public because the integration tests and the
//! benchmarks use them.

mod args;
mod command_line;
mod commands;
mod dev_server;
pub mod embedded_dynamodb;
mod examples;
mod http_server;
mod invocation;
mod job_data;
mod json_line;
mod limited_http_client;
mod local_client;
mod received_request;
mod request_json;
mod settings;
mod store_error;
mod table;
mod terminal;
mod value_parsers;
mod verify;

use std::process::ExitCode;

use nano_webhooks::{
    config::{env_var, log_filter},
    error_chain::error_chain,
    telemetry::{self, LogFormat},
};

use args::{Cli, Command};
pub use dev_server::{BATCH_SIZE, BATCH_TIMEOUT, SCHEDULE_INTERVAL};
pub use local_client::local_client;

/// Parses the command line and runs its command.
pub async fn run() -> anyhow::Result<()> {
    let Cli { command } = command_line::parse_process_args();
    let default_level = match command {
        // The engine warns of every rejected request, including failed conditions.
        Command::Serve(_) => "info,dynoxide=error",
        _ => "error",
    };
    telemetry::init_tracing(
        LogFormat::Text(terminal::log_colors()),
        log_filter(env_var, default_level)?,
    );
    commands::run(command).await
}

/// Prints an error and its causes as one line, with control characters escaped. Prints nothing if
/// the command ended because the reader of its output had closed the pipe.
pub fn report_error(error: &anyhow::Error) -> ExitCode {
    if terminal::is_closed_pipe(error) {
        return ExitCode::SUCCESS;
    }
    let causes = terminal::escape_for_terminal(&error_chain(error.as_ref()));
    terminal::print_remark(format_args!("nano-webhooks: {causes}"));
    ExitCode::FAILURE
}
