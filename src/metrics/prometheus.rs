//! The text that Prometheus reads (<https://prometheus.io/docs/instrumenting/exposition_formats/>, version 0.0.4).

use std::{
    collections::BTreeMap,
    fmt::{Display, Write},
    time::Duration,
};

use super::{Counter, Durations, Histogram, Metrics};
use nano_webhooks_core::delivery::attempt::FailureKind;

/// The `Content-Type` of that text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The upper bounds of the histograms, in seconds: from an answer over loopback to the last attempts of a schedule.
const BUCKETS: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 600.0,
    3600.0, 21600.0, 86400.0,
];

/// How many measured times lay within each bound.
#[derive(Debug, Default)]
pub(super) struct HistogramBuckets {
    /// The last one counts those beyond the last bound.
    within: [u64; BUCKETS.len() + 1],
    sum: Duration,
}

impl HistogramBuckets {
    pub(super) fn take(&mut self, took: Duration) {
        let place = BUCKETS
            .iter()
            .position(|bound| took.as_secs_f64() <= *bound)
            .unwrap_or(BUCKETS.len());
        self.within[place] += 1;
        self.sum += took;
    }
}

impl Metrics {
    /// Numbers that are gathered for [`Metrics::text`].
    pub fn prometheus() -> Self {
        Self::new(Durations::Histograms(BTreeMap::new()))
    }

    /// What was gathered since the process started.
    pub fn text(&self) -> String {
        let numbers = self.lock();
        let count = |what| numbers.counts.get(&what).copied().unwrap_or(0);
        let mut text = Exposition::default();
        text.counter(
            "events_total",
            "Jobs that ended, as the stream told.",
            [(String::new(), count(Counter::Events))],
        );
        text.counter(
            "attempts_total",
            "Attempts that were made.",
            [(String::new(), count(Counter::Attempts))],
        );
        let failed = FailureKind::ALL.map(|kind| {
            (
                format!("{{failure=\"{}\"}}", kind.as_str()),
                count(Counter::FailedAttempts(kind)),
            )
        });
        text.counter(
            "failed_attempts_total",
            "Attempts that failed, by the kind of the failure.",
            failed,
        );
        let outcomes = [
            ("delivered", Counter::Delivered),
            ("failed", Counter::Failed),
        ];
        let outcomes =
            outcomes.map(|(name, what)| (format!("{{outcome=\"{name}\"}}"), count(what)));
        text.counter(
            "deliveries_total",
            "Deliveries that ended, by how they did.",
            outcomes,
        );
        let poison = [(String::new(), count(Counter::Poison))];
        text.counter(
            "poison_records_total",
            "Stream records that could not be understood, and were kept.",
            poison,
        );
        let transitions = [
            ("open", Counter::BreakersOpened),
            ("closed", Counter::BreakersClosed),
        ];
        let transitions =
            transitions.map(|(name, what)| (format!("{{to=\"{name}\"}}"), count(what)));
        text.counter(
            "breaker_transitions_total",
            "Circuit breakers that attempts opened or closed.",
            transitions,
        );
        let disabled = [(String::new(), count(Counter::WebhooksDisabled))];
        text.counter(
            "webhooks_disabled_total",
            "Webhooks disabled for what their endpoint answered.",
            disabled,
        );
        if let Durations::Histograms(histograms) = &numbers.durations {
            let none = HistogramBuckets::default();
            let histogram = |what| histograms.get(&what).unwrap_or(&none);
            let attempts = histogram(Histogram::AttemptDuration);
            text.histogram(
                "attempt_duration_seconds",
                "How long attempts took.",
                attempts,
            );
            let latency = histogram(Histogram::DeliveryLatency);
            text.histogram(
                "delivery_latency_seconds",
                "From the write of the job to the 2xx that was read.",
                latency,
            );
        }
        if let Some(sweep) = numbers.sweep {
            text.gauge(
                "retries_due",
                "Deliveries that the latest sweep found due.",
                &sweep.due,
            );
            text.gauge(
                "sweep_lag_seconds",
                "For how long the first of them had waited for a sweep.",
                &sweep.lag.as_secs_f64(),
            );
        }
        text.0
    }
}

/// Lines of the exposition format.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(
            self.0,
            "# HELP nano_webhooks_{name} {help}\n# TYPE nano_webhooks_{name} {kind}"
        );
    }

    fn counter<const N: usize>(&mut self, name: &str, help: &str, values: [(String, u64); N]) {
        self.head(name, "counter", help);
        for (labels, value) in values {
            let _ = writeln!(self.0, "nano_webhooks_{name}{labels} {value}");
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: &dyn Display) {
        self.head(name, "gauge", help);
        let _ = writeln!(self.0, "nano_webhooks_{name} {value}");
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &HistogramBuckets) {
        self.head(name, "histogram", help);
        let mut so_far = 0;
        let bounds = BUCKETS
            .iter()
            .map(ToString::to_string)
            .chain(["+Inf".to_owned()]);
        for (bound, within) in bounds.zip(histogram.within) {
            so_far += within;
            let _ = writeln!(
                self.0,
                "nano_webhooks_{name}_bucket{{le=\"{bound}\"}} {so_far}"
            );
        }
        let sum = histogram.sum.as_secs_f64();
        let _ = writeln!(
            self.0,
            "nano_webhooks_{name}_sum {sum}\nnano_webhooks_{name}_count {so_far}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::SweepStats;

    fn value(metrics: &Metrics, name: &str) -> Option<String> {
        metrics
            .text()
            .lines()
            .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(' ')?.to_owned()))
    }

    #[test]
    fn every_count_is_there_from_the_start_and_adds_up() {
        let metrics = Metrics::prometheus();
        let of = |name: &str| value(&metrics, &format!("nano_webhooks_{name}"));
        assert_eq!(
            of("failed_attempts_total{failure=\"tls\"}").as_deref(),
            Some("0")
        );
        assert_eq!(of("retries_due"), None, "before the first sweep");
        metrics.count(Counter::FailedAttempts(FailureKind::Tls));
        metrics.swept(SweepStats {
            due: 3,
            lag: Duration::from_millis(1500),
        });
        for _ in 0..2 {
            assert_eq!(
                of("failed_attempts_total{failure=\"tls\"}").as_deref(),
                Some("1")
            );
            assert_eq!(of("retries_due").as_deref(), Some("3"));
            assert_eq!(of("sweep_lag_seconds").as_deref(), Some("1.5"));
        }
    }

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        let metrics = Metrics::prometheus();
        for millis in [1, 2, 400, 100_000_000] {
            metrics.measure(Histogram::AttemptDuration, Duration::from_millis(millis));
        }
        let of = |name: &str| {
            value(
                &metrics,
                &format!("nano_webhooks_attempt_duration_seconds{name}"),
            )
            .unwrap()
        };
        let buckets = ["0.001", "0.0025", "0.5", "86400", "+Inf"]
            .map(|le| of(&format!("_bucket{{le=\"{le}\"}}")));
        assert_eq!(buckets, ["1", "2", "3", "3", "4"]);
        assert_eq!(
            (of("_count"), of("_sum")),
            ("4".to_owned(), "100000.403".to_owned())
        );
    }
}
