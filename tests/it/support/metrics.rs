//! The metrics that a dispatcher has recorded.

use std::collections::BTreeMap;

use nano_webhooks::dispatch::Dispatcher;
use serde_json::Value;

/// The sums of all metrics since the last call, except the duration of attempts. A key is the name
/// of the metric, and for failures also their kind.
pub fn collect_metrics(dispatcher: &Dispatcher) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for line in dispatcher
        .metrics
        .drain_emf("tested", dispatcher.clock.now())
    {
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["Stack"], "tested");
        for metric in line["_aws"]["CloudWatchMetrics"][0]["Metrics"]
            .as_array()
            .unwrap()
        {
            let name = metric["Name"].as_str().unwrap();
            let value = match &line[name] {
                Value::Array(values) => values.iter().map(|value| value.as_f64().unwrap()).sum(),
                value => value.as_f64().unwrap(),
            };
            let name = line["Failure"]
                .as_str()
                .map_or(name.to_owned(), |kind| format!("{name} {kind}"));
            *sums.entry(name).or_insert(0.0) += value;
        }
    }
    sums.remove("AttemptDuration");
    sums
}
