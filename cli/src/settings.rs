//! The settings that this program shares with the functions.

use nano_webhooks::config::{ConfigError, env_var};

/// Reads a setting of the functions from the environment, unless `serve` has an option for it.
///
/// Options have variables of their own, with the prefix `NANO_WEBHOOKS_`. So a variable such as
/// `TARGETS` that belongs to another tool changes nothing here.
pub fn read_setting(name: &str) -> Result<Option<String>, ConfigError> {
    match name {
        "TARGETS" | "ALLOW_CIDRS" | "DENY_CIDRS" | "RETRY_SCHEDULE" | "EXTRA_CA_FILE" => Ok(None),
        _ => env_var(name),
    }
}
