//! What an operator sees: the numbers of each invocation, and the trace that a job belongs to.

use std::{collections::BTreeMap, time::Duration};

use nano_webhooks::{
    clock::{Clock, Deadline},
    dispatch::Dispatcher,
};
use nano_webhooks_core::timestamp::Timestamp;
use serde_json::{Value, json};

use crate::{
    dispatch::{dispatch_batch, insert_record, job_image, subscribe},
    support::{Receiver, TestTables},
};

/// When the jobs of these tests were written, by their records.
const WRITTEN: Timestamp = Timestamp::from_millis(1_734_948_000_000);

/// A world, and a dispatcher whose clock stands a second and a half after the jobs were written.
async fn scene() -> (TestTables, Receiver, Dispatcher) {
    let (world, receiver) = (TestTables::new().await, Receiver::start().await);
    let clock = Clock::manual(WRITTEN + Duration::from_millis(1_500));
    let dispatcher = Dispatcher {
        clock,
        schedule: "1s".parse().unwrap(),
        ..world.dispatcher()
    };
    (world, receiver, dispatcher)
}

/// The metrics since the last look: name, and with it the kind of a failure, to the sum of the values. How long an attempt took
/// is left out.
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

fn numbers<const N: usize>(expected: [(&str, f64); N]) -> BTreeMap<String, f64> {
    expected
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Deliveries are counted by outcome, and the latency starts at the write of the job.
#[tokio::test]
async fn batch_is_counted_by_outcome() {
    let (world, receiver, dispatcher) = scene().await;
    subscribe(&world, "acme", &receiver.url("/ok"), None).await;
    subscribe(&world, "acme", &receiver.url("/status/500"), None).await;
    let mut nobody = job_image("t2", "completed");
    nobody.as_object_mut().unwrap().remove("account_id");
    assert_eq!(
        dispatch_batch(
            &dispatcher,
            &[
                insert_record(1, job_image("t1", "completed")),
                insert_record(2, nobody)
            ]
        )
        .await,
        []
    );
    let expected = [
        ("Events", 1.0),
        ("Attempts", 2.0),
        ("Delivered", 1.0),
        ("DeliveryLatency", 1_500.0),
        ("FailedAttempts status", 1.0),
        ("Poison", 1.0),
    ];
    assert_eq!(collect_metrics(&dispatcher), numbers(expected));
    assert_eq!(collect_metrics(&dispatcher), numbers([]), "each once");

    let timer = world.timers().remove(0);
    dispatcher.clock.advance(Duration::from_secs(10));
    dispatcher.retry(&timer.message).await.unwrap();
    let expected = [
        ("Attempts", 1.0),
        ("FailedAttempts status", 1.0),
        ("Failed", 1.0),
    ];
    assert_eq!(
        collect_metrics(&dispatcher),
        numbers(expected),
        "its schedule is exhausted"
    );
}

/// A sweep reports the number of due deliveries and its lag.
#[tokio::test]
async fn sweep_reports_due_and_lag() {
    let (world, receiver, dispatcher) = scene().await;
    subscribe(&world, "acme", &receiver.url("/status/500"), None).await;
    assert_eq!(
        dispatch_batch(
            &dispatcher,
            &[insert_record(1, job_image("t1", "completed"))]
        )
        .await,
        []
    );
    collect_metrics(&dispatcher);
    let sweep = || dispatcher.sweep(Deadline::from_now(Duration::from_mins(1)));
    assert_eq!(sweep().await.unwrap(), 0);
    assert_eq!(
        collect_metrics(&dispatcher),
        numbers([("RetriesDue", 0.0), ("SweepLag", 0.0)])
    );

    // Its message is lost; it is the sweep's from five minutes after it was due.
    let due = world.timers().remove(0).due;
    dispatcher.clock.advance(
        due.saturating_duration_since(dispatcher.clock.now())
            + Duration::from_mins(5)
            + Duration::from_secs(42),
    );
    assert_eq!(sweep().await.unwrap(), 1);
    assert_eq!(
        collect_metrics(&dispatcher),
        numbers([("RetriesDue", 1.0), ("SweepLag", 42_000.0)])
    );
}

/// A valid `traceparent` is sent with every attempt, and an invalid one with none.
#[tokio::test]
async fn traceparent_is_passed_on() {
    let (world, receiver, dispatcher) = scene().await;
    subscribe(&world, "acme", &receiver.url("/status/500"), None).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let (mut traced, mut broken) = (job_image("t1", "completed"), job_image("t2", "completed"));
    traced["traceparent"] = json!({ "S": trace });
    broken["traceparent"] = json!({"S": "00-0-0-01\r\nx-injected: yes"});
    assert_eq!(
        dispatch_batch(
            &dispatcher,
            &[insert_record(1, traced), insert_record(2, broken)]
        )
        .await,
        []
    );
    dispatcher.clock.advance(Duration::from_secs(10));
    for timer in world.timers() {
        dispatcher.retry(&timer.message).await.unwrap();
    }
    let received = receiver.received();
    let told = received.iter().map(|request| {
        (
            request.json()["task_id"].as_str().unwrap().to_owned(),
            request.header("traceparent").to_owned(),
        )
    });
    let mut told: Vec<_> = told.collect();
    told.sort();
    // Of an endpoint that has never answered the stream asks once; the other event began in the queue.
    assert_eq!(
        told,
        [("t1", trace), ("t1", trace), ("t2", "")].map(|(task, trace)| (task.into(), trace.into()))
    );
}
