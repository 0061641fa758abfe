//! Logs: JSON lines when deployed, a readable form on a terminal.

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::config::{ConfigError, variable};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line, for CloudWatch.
    Json,
    /// For a person at a terminal.
    Text,
}

/// Starts logging to stderr. `RUST_LOG` chooses what is logged; without it, `default` does.
///
/// # Errors
/// If `RUST_LOG` is malformed.
pub fn init(format: Format, default: &str) -> Result<(), ConfigError> {
    let directives = variable("RUST_LOG")?.unwrap_or_else(|| default.to_owned());
    let filter =
        EnvFilter::builder().parse(directives).map_err(|error| ConfigError::new("RUST_LOG", error.to_string()))?;
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        // Lambda stamps each line with its own time.
        Format::Json => {
            registry.with(fmt::layer().json().flatten_event(true).without_time().with_writer(std::io::stderr)).init();
        }
        Format::Text => {
            registry.with(fmt::layer().without_time().with_target(false).with_writer(std::io::stderr)).init();
        }
    }
    Ok(())
}
