//! Logs: JSON lines when deployed, a readable form on a terminal.

use std::{
    fmt,
    io::{IsTerminal, Write},
    process::ExitCode,
};

use tracing::Level;
use tracing_subscriber::{
    filter::{Targets, filter_fn},
    fmt::layer,
    prelude::*,
};

use crate::config::{ConfigError, env_var};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, for CloudWatch.
    Json,
    /// For a person at a terminal.
    Text,
}

/// Runs a function until Lambda ends it. What keeps it from starting is an error in its log like any other.
pub async fn run_lambda<E: fmt::Display>(run: impl AsyncFnOnce() -> Result<(), E>) -> ExitCode {
    if let Err(error) = init_tracing(LogFormat::Json, "info") {
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
pub fn error_chain(error: &dyn std::error::Error) -> String {
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
pub fn init_tracing(format: LogFormat, default: &str) -> Result<(), ConfigError> {
    let filter = filter(&env_var("RUST_LOG")?.unwrap_or_else(|| default.to_owned()))?;
    // Below this level the libraries print requests and answers as they are, and with them secrets.
    let bodies = filter_fn(|line| {
        *line.level() <= Level::INFO || line.target().starts_with(env!("CARGO_CRATE_NAME"))
    });
    let registry = tracing_subscriber::registry().with(filter).with(bodies);
    match format {
        // With `timestamp` and `level` at the top, as Lambda's JSON format knows them, and with the request id of the invocation
        // in `span`.
        LogFormat::Json => {
            let lines = layer()
                .json()
                .flatten_event(true)
                .with_span_list(false)
                .with_target(false);
            registry.with(lines.with_writer(std::io::stderr)).init();
        }
        LogFormat::Text => {
            registry
                .with(
                    layer()
                        .with_ansi(std::io::stderr().is_terminal())
                        .with_target(false)
                        .with_writer(std::io::stderr),
                )
                .init();
        }
    }
    Ok(())
}

/// What is logged: levels, and targets with levels, separated by commas.
fn filter(directives: &str) -> Result<Targets, ConfigError> {
    let directives: Vec<_> = directives
        .split(',')
        .map(str::trim)
        .filter(|one| !one.is_empty())
        .collect();
    // Of spans and fields nothing here knows; as the name of a target they would silence everything.
    let is_one = |one: &str| !one.contains('[') && one.parse::<Targets>().is_ok();
    match directives.iter().find(|one| !is_one(one)) {
        Some(other) => {
            let expected = "expected levels, and targets with levels, as in `info,hyper=warn`";
            Err(ConfigError::new(
                "RUST_LOG",
                format!("`{other}`: {expected}"),
            ))
        }
        None => Ok(directives.join(",").parse().expect("each was read")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_logged_is_said_by_levels_and_targets_and_nothing_else_silences_it() {
        for (directives, own, others) in [
            ("info", true, true),
            ("info,", true, true),
            ("warn, nano_webhooks=info", true, false),
            ("WARN", false, false),
            ("info,nano_webhooks=off", false, true),
            ("off", false, false),
        ] {
            let filter = filter(directives).unwrap();
            let would = [own, others];
            assert_eq!(
                ["nano_webhooks::x", "hyper"]
                    .map(|target| filter.would_enable(target, &Level::INFO)),
                would,
                "{directives}"
            );
        }
        for directives in ["nano_webhooks=loud", "info,x[y]=debug", "info,[y]"] {
            let refused = filter(directives).unwrap_err().to_string();
            assert!(
                refused.contains(directives.rsplit(',').next().unwrap()),
                "{refused}"
            );
        }
    }
}
