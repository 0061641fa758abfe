//! The days and pages in which poison records are read.

use std::time::Duration;

use nano_webhooks::{config::ConfigError, store::key_schema};
use nano_webhooks_core::timestamp::Timestamp;

use crate::commands::tables::load_config;

/// How many records are read at a time. A page of 1 MB may have fewer.
pub const PAGE_SIZE: usize = 100;
const DAY: Duration = Duration::from_hours(24);

/// The given day, or all days within the retention time, newest first.
pub fn days_to_list(day: Option<String>, now: Timestamp) -> Result<Vec<String>, ConfigError> {
    if let Some(day) = day {
        return Ok(vec![day]);
    }
    let retention = load_config()?.retention;
    let mut days = Vec::new();
    let mut age = Duration::ZERO;
    while age <= retention {
        days.push(key_schema::utc_day(now - age));
        age += DAY;
    }
    Ok(days)
}
