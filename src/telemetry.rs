//! Logging: JSON lines when deployed, a readable form on a terminal.

use std::{io, str::FromStr};

use tracing::{Level, Metadata};
use tracing_subscriber::{
    filter::{Targets, filter_fn},
    fmt::layer,
    prelude::*,
};

/// The prefix of the log targets of this project's packages.
const OWN_TARGETS: &str = env!("CARGO_CRATE_NAME");

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object for each line, for CloudWatch.
    Json,
    /// For a person.
    Text(LogColors),
}

/// Whether log lines have colors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogColors {
    /// Log lines are plain text.
    Off,
    /// Log lines have escape sequences for colors.
    On,
}

/// What is logged: levels, and targets with levels, separated by commas.
#[derive(Clone, Debug)]
pub struct LogFilter(Targets);

/// A directive of a log filter is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}`: expected levels, and targets with levels, as in `info,hyper=warn`")]
pub struct LogFilterError(String);

impl FromStr for LogFilter {
    type Err = LogFilterError;

    fn from_str(text: &str) -> Result<Self, LogFilterError> {
        let mut directives = Vec::new();
        for directive in text.split(',').map(str::trim) {
            if !directive.is_empty() {
                directives.push(validate_directive(directive)?);
            }
        }
        let targets = directives.join(",").parse();
        Ok(Self(targets.expect("every directive is valid")))
    }
}

/// Refuses directives for spans and fields, which the filter would take for the name of a target.
fn validate_directive(directive: &str) -> Result<&str, LogFilterError> {
    if directive.contains('[') || directive.parse::<Targets>().is_err() {
        return Err(LogFilterError(directive.to_owned()));
    }
    Ok(directive)
}

/// Starts logging to stderr.
///
/// # Panics
/// If logging was started before.
pub fn init_tracing(format: LogFormat, filter: LogFilter) {
    let registry = tracing_subscriber::registry()
        .with(filter.0)
        .with(filter_fn(shows_no_bodies));
    match format {
        LogFormat::Json => {
            // Lambda's JSON format expects `timestamp` and `level` at the top. The request id of
            // the invocation is in `span`.
            let lines = layer()
                .json()
                .flatten_event(true)
                .with_span_list(false)
                .with_target(false);
            registry.with(lines.with_writer(io::stderr)).init();
        }
        LogFormat::Text(colors) => {
            let lines = layer()
                .with_ansi(colors == LogColors::On)
                .with_target(false);
            registry.with(lines.with_writer(io::stderr)).init();
        }
    }
}

/// Below `info` the libraries log requests and responses, which contain secrets.
fn shows_no_bodies(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO || metadata.target().starts_with(OWN_TARGETS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<LogFilter, LogFilterError> {
        text.parse()
    }

    #[test]
    fn filter_has_levels_and_targets() {
        for (text, own, others) in [
            ("info", true, true),
            ("info,", true, true),
            ("warn, nano_webhooks=info", true, false),
            ("WARN", false, false),
            ("info,nano_webhooks=off", false, true),
            ("off", false, false),
        ] {
            let LogFilter(targets) = parse(text).unwrap();
            let enabled = ["nano_webhooks::x", "hyper"]
                .map(|target| targets.would_enable(target, &Level::INFO));
            assert_eq!(enabled, [own, others], "{text}");
        }
    }

    #[test]
    fn malformed_directive_is_named() {
        for (text, directive) in [
            ("nano_webhooks=loud", "nano_webhooks=loud"),
            ("info,x[y]=debug", "x[y]=debug"),
            ("info,[y]", "[y]"),
        ] {
            let expected = LogFilterError(directive.to_owned());
            assert_eq!(parse(text).unwrap_err(), expected);
        }
    }
}
