//! Prometheus' text format, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::{
    collections::BTreeMap,
    fmt::{Display, Write},
};

use super::{
    Counter, Durations, Histogram, Metrics, Registry,
    buckets::{BUCKETS, HistogramBuckets},
};
use nano_webhooks_core::delivery::failure::FailureKind;

/// The `Content-Type` of the text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Metrics {
    /// Metrics for [`Metrics::render`].
    pub fn prometheus() -> Self {
        Self::new(Durations::Buckets(BTreeMap::new()))
    }

    /// Everything since the process started, in the text format.
    pub fn render(&self) -> String {
        let registry = self.lock();
        let mut text = Exposition::default();
        render_attempts(&mut text, &registry);
        render_deliveries(&mut text, &registry);
        render_webhooks(&mut text, &registry);
        render_durations(&mut text, &registry);
        render_sweep(&mut text, &registry);
        text.0
    }
}

fn count(registry: &Registry, counter: Counter) -> u64 {
    registry.counts.get(&counter).copied().unwrap_or(0)
}

fn render_attempts(text: &mut Exposition, registry: &Registry) {
    text.counter(
        "events_total",
        "Events that were read from the stream.",
        count(registry, Counter::Events),
    );
    text.counter(
        "attempts_total",
        "Attempts that were made.",
        count(registry, Counter::Attempts),
    );
    text.head(
        "failed_attempts_total",
        "counter",
        "Attempts that failed, by kind of failure.",
    );
    for kind in FailureKind::ALL {
        let failed = count(registry, Counter::FailedAttempts(kind));
        text.labeled("failed_attempts_total", "failure", kind.as_str(), failed);
    }
    text.counter(
        "deferred_attempts_total",
        "Attempts that this process could not make now, such as without free file descriptors.",
        count(registry, Counter::DeferredAttempts),
    );
}

fn render_deliveries(text: &mut Exposition, registry: &Registry) {
    text.head(
        "deliveries_total",
        "counter",
        "Deliveries that ended, by outcome.",
    );
    for (outcome, counter) in [
        ("delivered", Counter::Delivered),
        ("failed", Counter::Failed),
    ] {
        let ended = count(registry, counter);
        text.labeled("deliveries_total", "outcome", outcome, ended);
    }
    text.counter(
        "poison_records_total",
        "Stream records that were stored as poison records.",
        count(registry, Counter::Poison),
    );
}

fn render_webhooks(text: &mut Exposition, registry: &Registry) {
    text.head(
        "breaker_transitions_total",
        "counter",
        "Circuit breakers that opened or closed.",
    );
    for (state, counter) in [
        ("open", Counter::BreakersOpened),
        ("closed", Counter::BreakersClosed),
    ] {
        let transitions = count(registry, counter);
        text.labeled("breaker_transitions_total", "to", state, transitions);
    }
    text.counter(
        "probes_total",
        "Attempts to endpoints whose circuit breaker was open.",
        count(registry, Counter::Probes),
    );
    text.counter(
        "webhooks_disabled_total",
        "Webhooks that were disabled because of their endpoint's responses or failures.",
        count(registry, Counter::WebhooksDisabled),
    );
}

fn render_durations(text: &mut Exposition, registry: &Registry) {
    let Durations::Buckets(histograms) = &registry.durations else {
        return;
    };
    let empty = HistogramBuckets::default();
    text.histogram(
        "attempt_duration_seconds",
        "The duration of attempts.",
        histograms
            .get(&Histogram::AttemptDuration)
            .unwrap_or(&empty),
    );
    text.histogram(
        "delivery_latency_seconds",
        "The time from the write of the job to the 2xx response.",
        histograms
            .get(&Histogram::DeliveryLatency)
            .unwrap_or(&empty),
    );
}

fn render_sweep(text: &mut Exposition, registry: &Registry) {
    let Some(sweep) = registry.sweep else {
        return;
    };
    text.gauge(
        "retries_due",
        "Due deliveries that the latest sweep sent to the queue.",
        &sweep.due,
    );
    text.gauge(
        "sweep_lag_seconds",
        "How long the oldest due delivery had waited for the latest sweep.",
        &sweep.lag.as_secs_f64(),
    );
    text.gauge(
        "sweep_refused",
        "Due deliveries whose writes the table refused in the latest sweep.",
        &sweep.refused,
    );
}

/// Lines of the text format. Writing to a `String` cannot fail.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(
            self.0,
            "# HELP nano_webhooks_{name} {help}\n# TYPE nano_webhooks_{name} {kind}"
        );
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        let _ = writeln!(self.0, "nano_webhooks_{name} {value}");
    }

    fn labeled(&mut self, name: &str, label: &str, label_value: &str, value: u64) {
        let _ = writeln!(
            self.0,
            "nano_webhooks_{name}{{{label}=\"{label_value}\"}} {value}"
        );
    }

    fn gauge(&mut self, name: &str, help: &str, value: &dyn Display) {
        self.head(name, "gauge", help);
        let _ = writeln!(self.0, "nano_webhooks_{name} {value}");
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &HistogramBuckets) {
        self.head(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        let mut cumulative = 0;
        for (bound, count) in BUCKETS.iter().zip(histogram.counts) {
            cumulative += count;
            self.labeled(&bucket, "le", &bound.to_string(), cumulative);
        }
        cumulative += histogram.counts[BUCKETS.len()];
        self.labeled(&bucket, "le", "+Inf", cumulative);
        let sum = histogram.sum.as_secs_f64();
        let _ = writeln!(
            self.0,
            "nano_webhooks_{name}_sum {sum}\nnano_webhooks_{name}_count {cumulative}"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::SweepStats;

    fn value(metrics: &Metrics, name: &str) -> Option<String> {
        let prefix = format!("nano_webhooks_{name} ");
        metrics
            .render()
            .lines()
            .find_map(|line| line.strip_prefix(&prefix).map(str::to_owned))
    }

    /// Counters are rendered from the start, and rendering does not reset them.
    #[test]
    fn counters_start_at_zero_and_accumulate() {
        let metrics = Metrics::prometheus();
        let tls_failures = "failed_attempts_total{failure=\"tls\"}";
        assert_eq!(value(&metrics, tls_failures).as_deref(), Some("0"));
        assert_eq!(value(&metrics, "retries_due"), None, "no sweep yet");
        metrics.increment(Counter::FailedAttempts(FailureKind::Tls));
        metrics.record_sweep(SweepStats {
            due: 3,
            lag: Duration::from_millis(1500),
            refused: 3,
        });
        for _ in 0..2 {
            assert_eq!(value(&metrics, tls_failures).as_deref(), Some("1"));
            assert_eq!(value(&metrics, "retries_due").as_deref(), Some("3"));
            assert_eq!(value(&metrics, "sweep_lag_seconds").as_deref(), Some("1.5"));
            assert_eq!(value(&metrics, "sweep_refused").as_deref(), Some("3"));
        }
    }

    #[test]
    fn histogram_buckets_are_cumulative() {
        let metrics = Metrics::prometheus();
        for millis in [1, 2, 400, 100_000_000] {
            metrics.record(Histogram::AttemptDuration, Duration::from_millis(millis));
        }
        for (suffix, expected) in [
            ("_bucket{le=\"0.001\"}", "1"),
            ("_bucket{le=\"0.0025\"}", "2"),
            ("_bucket{le=\"0.5\"}", "3"),
            ("_bucket{le=\"86400\"}", "3"),
            ("_bucket{le=\"+Inf\"}", "4"),
            ("_count", "4"),
            ("_sum", "100000.403"),
        ] {
            let name = format!("attempt_duration_seconds{suffix}");
            assert_eq!(value(&metrics, &name).as_deref(), Some(expected), "{name}");
        }
    }
}
