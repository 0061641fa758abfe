//! The days and pages in which poison records are read.

use std::time::Duration;

use nano_webhooks::store::key_schema;
use nano_webhooks_core::timestamp::Timestamp;

/// How many records are read at a time. A page of 1 MB may have fewer.
pub const PAGE_SIZE: usize = 100;
const DAY: Duration = Duration::from_hours(24);

/// The given day, or all days within the retention time, newest first.
pub fn days_to_list(day: Option<String>, now: Timestamp, retention: Duration) -> Vec<String> {
    if let Some(day) = day {
        return vec![day];
    }
    let mut days = Vec::new();
    let mut age = Duration::ZERO;
    while age <= retention {
        days.push(key_schema::utc_day(now - age));
        age += DAY;
    }
    days
}
