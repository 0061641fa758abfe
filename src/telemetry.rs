//! Logs: JSON lines when deployed, a readable form on a terminal.

use std::{
    fmt,
    io::{IsTerminal, Write},
    process::ExitCode,
};

use tracing::Level;
use tracing_subscriber::{
    filter::{ParseError, Targets, filter_fn},
    fmt::layer,
    prelude::*,
};

use crate::config::{ConfigError, variable};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line, for CloudWatch.
    Json,
    /// For a person at a terminal.
    Text,
}

/// Runs a function until Lambda ends it. What keeps it from starting is an error in its log like any other.
pub async fn function<E: fmt::Display>(run: impl AsyncFnOnce() -> Result<(), E>) -> ExitCode {
    if let Err(error) = init(Format::Json, "info") {
        // There is no log to write it to.
        let _ = writeln!(std::io::stderr(), "{error}");
        return ExitCode::FAILURE;
    }
    // Boxed, since the compiler has a bound for how deep futures lie in each other, and a function's come near it.
    match Box::pin(run()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the function does not start");
            ExitCode::FAILURE
        }
    }
}

/// An error and what caused it, in a line; some of the SDK's texts are several.
pub fn in_a_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Starts logging to stderr. `RUST_LOG` chooses what is logged; without it, `default` does.
///
/// # Errors
/// If `RUST_LOG` is malformed.
pub fn init(format: Format, default: &str) -> Result<(), ConfigError> {
    let directives = variable("RUST_LOG")?.unwrap_or_else(|| default.to_owned());
    let filter: Targets =
        directives.parse().map_err(|error: ParseError| ConfigError::new("RUST_LOG", error.to_string()))?;
    // Below this level the libraries print requests and answers as they are, and with them secrets.
    let bodies = filter_fn(|line| *line.level() <= Level::INFO || line.target().starts_with(env!("CARGO_CRATE_NAME")));
    let registry = tracing_subscriber::registry().with(filter).with(bodies);
    match format {
        // With `timestamp` and `level` at the top, as Lambda's JSON format knows them, and with the request id of the invocation
        // in `span`.
        Format::Json => {
            let lines = layer().json().flatten_event(true).with_span_list(false).with_target(false);
            registry.with(lines.with_writer(std::io::stderr)).init();
        }
        Format::Text => {
            registry
                .with(
                    layer().with_ansi(std::io::stderr().is_terminal()).with_target(false).with_writer(std::io::stderr),
                )
                .init();
        }
    }
    Ok(())
}
