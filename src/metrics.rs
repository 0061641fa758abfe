//! Counters and histograms of a process.
//!
//! Deployed, they go to CloudWatch through the log ([`emf`]). In local mode, Prometheus scrapes
//! them ([`prometheus`]). No metric has an account or a webhook as a dimension, because the number
//! of time series would grow without bound; the delivery log has the details of each account.

mod buckets;
pub mod emf;
pub mod prometheus;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use buckets::HistogramBuckets;
use nano_webhooks_core::delivery::failure::FailureKind;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    /// Events that were read from the stream.
    Events,
    /// Attempts that were made.
    Attempts,
    /// Attempts that failed, by kind of failure.
    FailedAttempts(FailureKind),
    /// Attempts that this process could not make. They are deferred and do not count as attempts.
    DeferredAttempts,
    /// Deliveries that received a 2xx response.
    Delivered,
    /// Deliveries whose retry schedule is exhausted.
    Failed,
    /// Stream records that were stored as poison records.
    Poison,
    /// Circuit breakers that opened.
    BreakersOpened,
    /// Circuit breakers that closed.
    BreakersClosed,
    /// Attempts to endpoints whose circuit breaker is open, at most one a minute for each.
    Probes,
    /// Webhooks that were disabled because of their endpoint's responses or failures.
    WebhooksDisabled,
}

/// A duration that is recorded each time it occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Histogram {
    /// The duration of an attempt.
    AttemptDuration,
    /// The time from the write of the job to the 2xx response. The stream reports the time of the
    /// write in whole seconds, so the value can be up to one second too high. Manual retries and
    /// replays are not recorded.
    DeliveryLatency,
}

/// The result of the latest sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepStats {
    /// The number of due deliveries that were sent to the queue.
    pub due: usize,
    /// How long the oldest due delivery had waited. More than a minute means that sweeps are late
    /// or cannot keep up.
    pub lag: Duration,
    /// The number of due deliveries that stay because the table refused their writes.
    pub refused: usize,
}

/// The metrics of a process; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Mutex<Registry>>);

#[derive(Debug)]
struct Registry {
    counts: BTreeMap<Counter, u64>,
    durations: Durations,
    sweep: Option<SweepStats>,
}

/// Recorded durations, in the form that the exporter needs.
#[derive(Debug)]
enum Durations {
    /// Every value since the last export.
    Samples(BTreeMap<Histogram, Vec<Duration>>),
    /// The number of values in each bucket since the process started.
    Buckets(BTreeMap<Histogram, HistogramBuckets>),
}

impl Metrics {
    fn new(durations: Durations) -> Self {
        Self(Arc::new(Mutex::new(Registry {
            counts: BTreeMap::new(),
            durations,
            sweep: None,
        })))
    }

    /// Adds one to a counter.
    pub fn increment(&self, counter: Counter) {
        self.increment_by(counter, 1);
    }

    /// Adds `amount` to a counter.
    pub fn increment_by(&self, counter: Counter, amount: usize) {
        if amount > 0 {
            *self.lock().counts.entry(counter).or_default() += amount as u64;
        }
    }

    /// Records a duration.
    pub fn record(&self, histogram: Histogram, duration: Duration) {
        match &mut self.lock().durations {
            Durations::Samples(samples) => samples.entry(histogram).or_default().push(duration),
            Durations::Buckets(buckets) => buckets.entry(histogram).or_default().observe(duration),
        }
    }

    /// Replaces the result of the latest sweep.
    pub fn record_sweep(&self, sweep: SweepStats) {
        self.lock().sweep = Some(sweep);
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
