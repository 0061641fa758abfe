//! The numbers that an operator watches, counted as they happen. Deployed they go to CloudWatch with the log ([`emf`]); in
//! local mode Prometheus reads them ([`prometheus`]). None of them tells customers apart: their number would be without bound,
//! and the delivery log answers for each of them.

pub mod emf;
pub mod prometheus;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nano_webhooks_core::delivery::attempt::FailureKind;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    /// Jobs that ended, as the stream told.
    Events,
    /// Attempts that were made.
    Attempts,
    /// Those of them that failed.
    FailedAttempts(FailureKind),
    /// Deliveries that a 2xx was read for.
    Delivered,
    /// Deliveries whose schedule was exhausted.
    Failed,
    /// Stream records that could not be understood, and were kept.
    Poison,
    /// Circuit breakers that opened.
    BreakersOpened,
    /// Circuit breakers that closed.
    BreakersClosed,
    /// Webhooks that were disabled because their endpoint was gone, or failed for too long.
    WebhooksDisabled,
}

/// What is measured each time it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Histogram {
    /// How long an attempt took.
    AttemptDuration,
    /// The time from the write of the job to the 2xx that was read: from the stream record's time, which DynamoDB gives in whole
    /// seconds, so that it can say up to a second too much. Attempts out of turn, which come when somebody asks for them, do not
    /// count.
    DeliveryLatency,
}

/// What the latest sweep found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepStats {
    /// How many deliveries it put into the queue because their time had come.
    pub due: usize,
    /// For how long the first of them had waited for a sweep: a minute and more says that sweeps are late, or too few.
    pub lag: Duration,
}

/// Where the numbers are gathered; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Mutex<Registry>>);

/// What was gathered.
#[derive(Debug)]
struct Registry {
    counts: BTreeMap<Counter, u64>,
    durations: Durations,
    sweep: Option<SweepStats>,
}

/// Measured times, as whoever reads them needs them.
#[derive(Debug)]
enum Durations {
    /// Each of them, until they are written.
    Each(BTreeMap<Histogram, Vec<Duration>>),
    /// How many there were within each bound, since the start.
    Histograms(BTreeMap<Histogram, prometheus::HistogramBuckets>),
}

impl Metrics {
    fn new(durations: Durations) -> Self {
        Self(Arc::new(Mutex::new(Registry {
            counts: BTreeMap::new(),
            durations,
            sweep: None,
        })))
    }

    /// Counts one.
    pub fn count(&self, what: Counter) {
        self.add(what, 1);
    }

    /// Counts so many.
    pub fn add(&self, what: Counter, many: usize) {
        if many > 0 {
            *self.lock().counts.entry(what).or_default() += many as u64;
        }
    }

    /// Takes a measured time.
    pub fn measure(&self, what: Histogram, took: Duration) {
        match &mut self.lock().durations {
            Durations::Each(each) => each.entry(what).or_default().push(took),
            Durations::Histograms(histograms) => histograms.entry(what).or_default().take(took),
        }
    }

    /// Takes what a sweep found.
    pub fn swept(&self, sweep: SweepStats) {
        self.lock().sweep = Some(sweep);
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
