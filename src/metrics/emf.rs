//! CloudWatch's embedded metric format: log lines from which CloudWatch Logs extracts metrics
//! (<https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>).

use std::{collections::BTreeMap, mem, time::Duration};

use serde_json::{Map, Value, json};

use super::{Counter, Durations, Histogram, Metrics, Registry, SweepStats};
use nano_webhooks_core::{delivery::failure::FailureKind, timestamp::Timestamp};

/// The namespace of the metrics in CloudWatch.
const NAMESPACE: &str = "NanoWebhooks";
/// The most values of one metric in a line, by the specification.
const MAX_VALUES: usize = 100;

impl Metrics {
    /// Metrics for [`Metrics::drain_emf`].
    pub fn embedded() -> Self {
        Self::new(Durations::Samples(BTreeMap::new()))
    }

    /// Takes what was recorded since the last call, as lines for the log. The stack's name is a
    /// dimension, so that two stacks of one AWS account do not mix.
    pub fn drain_emf(&self, stack: &str, now: Timestamp) -> Vec<String> {
        let recorded = take_recorded(&mut self.lock());
        let mut lines = Vec::new();
        let mut aggregated = Vec::new();
        for (counter, count) in recorded.counts {
            match emf_counter(counter) {
                EmfCounter::Plain(name) => aggregated.push(Metric::count(name, json!(count))),
                EmfCounter::FailedAttempts(kind) => {
                    lines.push(render_failed_attempts(stack, now, kind, count));
                }
            }
        }
        if let Some(SweepStats { due, lag, refused }) = recorded.sweep {
            aggregated.push(Metric::count("RetriesDue", json!(due)));
            aggregated.push(Metric::milliseconds("SweepLag", to_milliseconds(lag)));
            aggregated.push(Metric::count("SweepRefused", json!(refused)));
        }
        if !aggregated.is_empty() {
            lines.push(Line::new(stack, now).render(aggregated));
        }
        for (histogram, samples) in recorded.samples {
            let name = histogram_name(histogram);
            for chunk in samples.chunks(MAX_VALUES) {
                let values = chunk.iter().copied().map(to_milliseconds).collect();
                lines.push(Line::new(stack, now).render(vec![Metric::milliseconds(name, values)]));
            }
        }
        lines
    }
}

struct Recorded {
    counts: BTreeMap<Counter, u64>,
    sweep: Option<SweepStats>,
    samples: BTreeMap<Histogram, Vec<Duration>>,
}

fn take_recorded(registry: &mut Registry) -> Recorded {
    let samples = match &mut registry.durations {
        Durations::Samples(samples) => mem::take(samples),
        Durations::Buckets(_) => BTreeMap::new(),
    };
    Recorded {
        counts: mem::take(&mut registry.counts),
        sweep: registry.sweep.take(),
        samples,
    }
}

/// How a counter is exported.
enum EmfCounter {
    /// With the stack as its only dimension.
    Plain(&'static str),
    /// In total and by kind of failure.
    FailedAttempts(FailureKind),
}

const fn emf_counter(counter: Counter) -> EmfCounter {
    match counter {
        Counter::Events => EmfCounter::Plain("Events"),
        Counter::Attempts => EmfCounter::Plain("Attempts"),
        Counter::FailedAttempts(kind) => EmfCounter::FailedAttempts(kind),
        Counter::DeferredAttempts => EmfCounter::Plain("DeferredAttempts"),
        Counter::Delivered => EmfCounter::Plain("Delivered"),
        Counter::Failed => EmfCounter::Plain("Failed"),
        Counter::Poison => EmfCounter::Plain("Poison"),
        Counter::BreakersOpened => EmfCounter::Plain("BreakersOpened"),
        Counter::BreakersClosed => EmfCounter::Plain("BreakersClosed"),
        Counter::Probes => EmfCounter::Plain("Probes"),
        Counter::WebhooksDisabled => EmfCounter::Plain("WebhooksDisabled"),
    }
}

const fn histogram_name(histogram: Histogram) -> &'static str {
    match histogram {
        Histogram::AttemptDuration => "AttemptDuration",
        Histogram::DeliveryLatency => "DeliveryLatency",
    }
}

/// Milliseconds with one decimal.
fn to_milliseconds(duration: Duration) -> Value {
    json!((duration.as_secs_f64() * 10_000.0).round() / 10.0)
}

struct Metric {
    name: &'static str,
    unit: &'static str,
    value: Value,
}

impl Metric {
    const fn count(name: &'static str, value: Value) -> Self {
        Self {
            name,
            unit: "Count",
            value,
        }
    }

    const fn milliseconds(name: &'static str, value: Value) -> Self {
        Self {
            name,
            unit: "Milliseconds",
            value,
        }
    }
}

fn render_failed_attempts(stack: &str, now: Timestamp, kind: FailureKind, count: u64) -> String {
    let mut line = Line::new(stack, now);
    line.dimension_sets = json!([["Stack"], ["Stack", "Failure"]]);
    line.failure = Some(kind);
    line.render(vec![Metric::count("FailedAttempts", json!(count))])
}

/// A line of the log.
struct Line<'a> {
    stack: &'a str,
    now: Timestamp,
    /// CloudWatch aggregates the values once for each set.
    dimension_sets: Value,
    failure: Option<FailureKind>,
}

impl<'a> Line<'a> {
    fn new(stack: &'a str, now: Timestamp) -> Self {
        Self {
            stack,
            now,
            dimension_sets: json!([["Stack"]]),
            failure: None,
        }
    }

    fn render(self, metrics: Vec<Metric>) -> String {
        let definitions: Vec<_> = metrics
            .iter()
            .map(|metric| json!({ "Name": metric.name, "Unit": metric.unit }))
            .collect();
        let directive = json!({
            "Namespace": NAMESPACE, "Dimensions": self.dimension_sets, "Metrics": definitions,
        });
        let mut line = Map::new();
        // Lambda's JSON log format sorts lines by these two fields.
        line.insert("timestamp".to_owned(), json!(self.now.to_rfc3339()));
        line.insert("level".to_owned(), json!("INFO"));
        line.insert(
            "_aws".to_owned(),
            json!({ "Timestamp": self.now.as_unix_millis(), "CloudWatchMetrics": [directive] }),
        );
        line.insert("Stack".to_owned(), json!(self.stack));
        if let Some(kind) = self.failure {
            line.insert("Failure".to_owned(), json!(kind.as_str()));
        }
        for metric in metrics {
            line.insert(metric.name.to_owned(), metric.value);
        }
        Value::Object(line).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(metrics: &Metrics) -> Vec<Value> {
        let now = Timestamp::from_millis(1_734_948_000_000);
        let lines = metrics.drain_emf("nano", now);
        lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// What was recorded is exported once; without new values nothing is written.
    #[test]
    fn drain_exports_each_value_once() {
        let metrics = Metrics::embedded();
        assert_eq!(drain(&metrics), Vec::<Value>::new());
        metrics.increment(Counter::Events);
        metrics.increment(Counter::Events);
        metrics.record_sweep(SweepStats {
            due: 0,
            lag: Duration::ZERO,
            refused: 3,
        });
        assert_eq!(
            drain(&metrics),
            [json!({
                "timestamp": "2024-12-23T10:00:00Z",
                "level": "INFO",
                "_aws": {
                    "Timestamp": 1_734_948_000_000_i64,
                    "CloudWatchMetrics": [{
                        "Namespace": "NanoWebhooks",
                        "Dimensions": [["Stack"]],
                        "Metrics": [
                            {"Name": "Events", "Unit": "Count"},
                            {"Name": "RetriesDue", "Unit": "Count"},
                            {"Name": "SweepLag", "Unit": "Milliseconds"},
                            {"Name": "SweepRefused", "Unit": "Count"},
                        ],
                    }],
                },
                "Stack": "nano", "Events": 2, "RetriesDue": 0, "SweepLag": 0.0,
                "SweepRefused": 3,
            })]
        );
        assert_eq!(drain(&metrics), Vec::<Value>::new());
    }

    #[test]
    fn failed_attempts_count_in_total_and_by_kind() {
        let metrics = Metrics::embedded();
        metrics.increment(Counter::FailedAttempts(FailureKind::Dns));
        metrics.increment(Counter::FailedAttempts(FailureKind::Tls));
        metrics.increment(Counter::FailedAttempts(FailureKind::Tls));
        let lines = drain(&metrics);
        assert_eq!(lines.len(), 2);
        for (line, (kind, count)) in lines.iter().zip([("dns", 1), ("tls", 2)]) {
            assert_eq!(line["Failure"], kind);
            assert_eq!(line["FailedAttempts"], count);
            let dimensions = &line["_aws"]["CloudWatchMetrics"][0]["Dimensions"];
            assert_eq!(dimensions, &json!([["Stack"], ["Stack", "Failure"]]));
        }
    }

    #[test]
    fn line_has_at_most_100_values() {
        let metrics = Metrics::embedded();
        for n in 0..250 {
            metrics.record(Histogram::DeliveryLatency, Duration::from_micros(n * 100));
        }
        let values: Vec<_> = drain(&metrics)
            .iter()
            .map(|line| line["DeliveryLatency"].as_array().unwrap().clone())
            .collect();
        assert_eq!(
            values.iter().map(Vec::len).collect::<Vec<_>>(),
            [100, 100, 50]
        );
        assert_eq!(values[0][..3], [json!(0.0), json!(0.1), json!(0.2)]);
    }
}
