//! CloudWatch's embedded metric format: lines of the log that CloudWatch Logs takes the metrics from
//! (<https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>).

use std::{collections::BTreeMap, mem, time::Duration};

use serde_json::{Map, Value, json};

use super::{Counter, Durations, Histogram, Metrics, SweepStats};
use nano_webhooks_core::timestamp::Timestamp;

/// The namespace of the metrics.
const NAMESPACE: &str = "NanoWebhooks";
/// The most values that a line may have of one metric.
const MAX_VALUES: usize = 100;

impl Metrics {
    /// Numbers that are gathered for [`Metrics::lines`].
    pub fn embedded() -> Self {
        Self::new(Durations::Each(BTreeMap::new()))
    }

    /// What was gathered since the last call, as lines for the log. The metrics' dimension is the name of the stack, so that two
    /// stacks of an account do not mix.
    pub fn lines(&self, stack: &str, now: Timestamp) -> Vec<String> {
        let mut numbers = self.lock();
        let (counts, sweep) = (mem::take(&mut numbers.counts), numbers.sweep.take());
        let durations = match &mut numbers.durations {
            Durations::Each(each) => mem::take(each),
            Durations::Histograms(_) => BTreeMap::new(),
        };
        drop(numbers);
        let mut lines = Vec::new();
        let mut first = Vec::new();
        for (what, many) in counts {
            let name = match what {
                Counter::FailedAttempts(kind) => {
                    // Once in all, and once of its kind.
                    let dimensions = json!([["Stack"], ["Stack", "Failure"]]);
                    let metrics = vec![("FailedAttempts", COUNT, json!(many))];
                    lines.push(line(
                        stack,
                        now,
                        &dimensions,
                        Some(("Failure", json!(kind.as_str()))),
                        metrics,
                    ));
                    continue;
                }
                Counter::Events => "Events",
                Counter::Attempts => "Attempts",
                Counter::Delivered => "Delivered",
                Counter::Failed => "Failed",
                Counter::Poison => "Poison",
                Counter::BreakersOpened => "BreakersOpened",
                Counter::BreakersClosed => "BreakersClosed",
                Counter::WebhooksDisabled => "WebhooksDisabled",
            };
            first.push((name, COUNT, json!(many)));
        }
        if let Some(SweepStats { due, lag }) = sweep {
            first.extend([
                ("RetriesDue", COUNT, json!(due)),
                ("SweepLag", MILLISECONDS, milliseconds(lag)),
            ]);
        }
        let stack_alone = json!([["Stack"]]);
        if !first.is_empty() {
            lines.push(line(stack, now, &stack_alone, None, first));
        }
        for (what, took) in durations {
            let name = match what {
                Histogram::AttemptDuration => "AttemptDuration",
                Histogram::DeliveryLatency => "DeliveryLatency",
            };
            lines.extend(took.chunks(MAX_VALUES).map(|values| {
                let values = values.iter().copied().map(milliseconds).collect();
                line(
                    stack,
                    now,
                    &stack_alone,
                    None,
                    vec![(name, MILLISECONDS, values)],
                )
            }));
        }
        lines
    }
}

const COUNT: &str = "Count";
const MILLISECONDS: &str = "Milliseconds";

/// To a tenth.
fn milliseconds(took: Duration) -> Value {
    json!((took.as_secs_f64() * 10_000.0).round() / 10.0)
}

fn line(
    stack: &str,
    now: Timestamp,
    dimensions: &Value,
    dimension: Option<(&'static str, Value)>,
    metrics: Vec<(&'static str, &'static str, Value)>,
) -> String {
    let definitions: Vec<_> = metrics
        .iter()
        .map(|(name, unit, _)| json!({ "Name": name, "Unit": unit }))
        .collect();
    let directive =
        json!({ "Namespace": NAMESPACE, "Dimensions": dimensions, "Metrics": definitions });
    let mut line = Map::new();
    // Lambda's JSON format files lines by these two.
    line.insert("timestamp".to_owned(), json!(now.to_rfc3339()));
    line.insert("level".to_owned(), json!("INFO"));
    line.insert(
        "_aws".to_owned(),
        json!({ "Timestamp": now.as_unix_millis(), "CloudWatchMetrics": [directive] }),
    );
    line.insert("Stack".to_owned(), json!(stack));
    line.extend(dimension.map(|(name, value)| (name.to_owned(), value)));
    line.extend(
        metrics
            .into_iter()
            .map(|(name, _, value)| (name.to_owned(), value)),
    );
    Value::Object(line).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nano_webhooks_core::delivery::attempt::FailureKind;

    fn lines(metrics: &Metrics) -> Vec<Value> {
        let lines = metrics.lines("nano", Timestamp::from_millis(1_734_948_000_000));
        lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn what_was_gathered_is_written_once_and_silence_writes_nothing() {
        let metrics = Metrics::embedded();
        assert_eq!(lines(&metrics), Vec::<Value>::new());
        metrics.count(Counter::Events);
        metrics.count(Counter::Events);
        metrics.swept(SweepStats {
            due: 0,
            lag: Duration::ZERO,
        });
        let metric = |name, unit| json!({"Name": name, "Unit": unit});
        assert_eq!(
            lines(&metrics),
            [json!({
                "timestamp": "2024-12-23T10:00:00Z",
                "level": "INFO",
                "_aws": {
                    "Timestamp": 1_734_948_000_000_i64,
                    "CloudWatchMetrics": [{
                        "Namespace": "NanoWebhooks",
                        "Dimensions": [["Stack"]],
                        "Metrics": [
                            metric("Events", "Count"), metric("RetriesDue", "Count"), metric("SweepLag", "Milliseconds"),
                        ],
                    }],
                },
                "Stack": "nano", "Events": 2, "RetriesDue": 0, "SweepLag": 0.0,
            })]
        );
        assert_eq!(lines(&metrics), Vec::<Value>::new());
    }

    #[test]
    fn failures_count_in_all_and_by_their_kind() {
        let metrics = Metrics::embedded();
        metrics.count(Counter::FailedAttempts(FailureKind::Dns));
        metrics.count(Counter::FailedAttempts(FailureKind::Tls));
        metrics.count(Counter::FailedAttempts(FailureKind::Tls));
        let written = lines(&metrics);
        let told: Vec<_> = written
            .iter()
            .map(|line| (&line["Failure"], &line["FailedAttempts"]))
            .collect();
        assert_eq!(
            told,
            [(&json!("dns"), &json!(1)), (&json!("tls"), &json!(2))]
        );
        for line in &written {
            let dimensions = &line["_aws"]["CloudWatchMetrics"][0]["Dimensions"];
            assert_eq!(dimensions, &json!([["Stack"], ["Stack", "Failure"]]));
        }
    }

    #[test]
    fn a_line_has_no_more_values_than_cloudwatch_takes() {
        let metrics = Metrics::embedded();
        for n in 0..250 {
            metrics.measure(Histogram::DeliveryLatency, Duration::from_micros(n * 100));
        }
        let values: Vec<_> = lines(&metrics)
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
