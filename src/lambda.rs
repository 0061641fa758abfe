//! Starts a Lambda function.

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
};

use crate::{
    config::{env_var, log_filter},
    telemetry::{LogFormat, init_tracing},
};

/// Starts logging and runs a function until Lambda ends it. An error that prevents the start is
/// logged.
pub async fn run_lambda<E: fmt::Display>(run: impl AsyncFnOnce() -> Result<(), E>) -> ExitCode {
    match log_filter(env_var, "info") {
        Ok(filter) => init_tracing(LogFormat::Json, filter),
        Err(error) => {
            // Logging has not started. Nothing can be done if stderr is closed as well.
            let _ = writeln!(io::stderr(), "{error}");
            return ExitCode::FAILURE;
        }
    }
    // Boxed, because the compiler limits how deeply futures are nested.
    match Box::pin(run()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "The function failed to start");
            ExitCode::FAILURE
        }
    }
}
