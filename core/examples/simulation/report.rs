//! What a run counts.

use std::{
    fmt,
    ops::{Add, AddAssign},
    time::Duration,
};

/// Writes to the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// Items that were written, or whose condition failed.
    pub items: u64,
    /// Write units: an item, each changed entry of an index, and a transaction twice.
    pub units: u64,
}

impl Writes {
    /// One item, with these units for it and its index entries.
    pub const fn item(units: u64) -> Self {
        Self { items: 1, units }
    }
}

impl Add for Writes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            items: self.items + other.items,
            units: self.units + other.units,
        }
    }
}

impl AddAssign for Writes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// Delays.
#[derive(Clone, Debug, Default)]
pub struct Waits(Vec<Duration>);

impl Waits {
    pub fn push(&mut self, wait: Duration) {
        self.0.push(wait);
    }

    pub fn sort(&mut self) {
        self.0.sort_unstable();
    }

    /// The wait that a share of one in a hundred does not exceed. Sort first.
    pub fn percentile(&self, percent: usize) -> Duration {
        match self.0.len().checked_sub(1) {
            Some(last) => self.0[last * percent / 100],
            None => Duration::ZERO,
        }
    }
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, high, max] = [50, 99, 100].map(|percent| self.percentile(percent));
        let [median, high, max] = [median, high, max].map(|wait| wait.as_secs_f64());
        let decimals = if max < 100.0 { 2 } else { 0 };
        write!(
            f,
            "{median:.decimals$} / {high:.decimals$} / {max:.decimals$} s"
        )
    }
}

/// What happened in a period.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Attempts to the endpoint with the backlog.
    pub backlog_attempts: u64,
    /// Attempts to the other dead endpoints.
    pub dead_attempts: u64,
    /// Writes for the account with the backlog, its events and probes included.
    pub backlog_account_writes: Writes,
    /// Writes for the deliveries of the backlog alone.
    pub backlog_writes: Writes,
    /// Writes for the other accounts with a dead endpoint.
    pub dead_writes: Writes,
    /// Writes for the accounts whose endpoints respond.
    pub other_writes: Writes,
    /// Deliveries that sweeps moved to the queue.
    pub swept: u64,
    /// Deliveries that found no slot.
    pub deferred: u64,
    /// Deliveries that were due and began to wait for their endpoint.
    pub paused: u64,
    /// Messages sent to the retry queue.
    pub messages: u64,
    /// How long all environments of the retry function were busy, in total.
    pub busy: Duration,
    /// From the due time of a healthy account's retry to its attempt.
    pub healthy_retries: Waits,
    /// From a slow account's event to its attempt from the queue.
    pub slow_attempts: Waits,
    /// From a healthy account's event to its first attempt.
    pub healthy_first_attempts: Waits,
    /// Deliveries of the backlog that were neither attempted nor paused by the end of the period.
    pub untouched: u64,
    /// When deliveries of the backlog were delivered, since the start of the run.
    pub delivered_after: Vec<Duration>,
}
