//! A histogram with fixed buckets.

use std::time::Duration;

/// The upper bounds of the buckets, in seconds: from a response over loopback to the last attempts
/// of a retry schedule.
pub(super) const BUCKETS: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 600.0,
    3600.0, 21600.0, 86400.0,
];

/// The number of durations in each bucket, and their sum.
#[derive(Debug, Default)]
pub(super) struct HistogramBuckets {
    /// The last count is of the durations beyond the last bound.
    pub(super) counts: [u64; BUCKETS.len() + 1],
    pub(super) sum: Duration,
}

impl HistogramBuckets {
    pub(super) fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS
            .iter()
            .position(|bound| seconds <= *bound)
            .unwrap_or(BUCKETS.len());
        self.counts[bucket] += 1;
        self.sum += duration;
    }
}
