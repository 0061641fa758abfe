//! The metrics of each invocation, and the trace context of a job.

use std::{collections::BTreeMap, time::Duration};

use nano_webhooks::{
    clock::{Clock, Deadline},
    dispatch::Dispatcher,
};
use nano_webhooks_core::timestamp::Timestamp;
use serde_json::json;

use crate::support::{
    metrics::collect_metrics,
    receiver::Receiver,
    stream::{dispatch_batch, insert_record, job_image},
    tables::TestTables,
    webhooks::subscribe,
};

/// The creation time of the stream records.
const WRITTEN: Timestamp = Timestamp::from_millis(1_734_948_000_000);

/// Tables, and a dispatcher whose clock is 1.5 seconds after the creation of the records.
async fn fixture() -> (TestTables, Receiver, Dispatcher) {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    let clock = Clock::manual(WRITTEN + Duration::from_millis(1_500));
    let dispatcher = Dispatcher {
        clock,
        schedule: "1s".parse().unwrap(),
        ..tables.dispatcher()
    };
    (tables, receiver, dispatcher)
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
    let (tables, receiver, dispatcher) = fixture().await;
    subscribe(&tables, "acme", &receiver.url("/ok"), None).await;
    subscribe(&tables, "acme", &receiver.url("/status/500"), None).await;
    let mut no_account = job_image("t2", "completed");
    no_account.as_object_mut().unwrap().remove("account_id");
    assert_eq!(
        dispatch_batch(
            &dispatcher,
            &[
                insert_record(1, job_image("t1", "completed")),
                insert_record(2, no_account)
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
    assert_eq!(
        collect_metrics(&dispatcher),
        numbers([]),
        "each metric is reported once"
    );

    let timer = tables.timers().remove(0);
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
        "the schedule is exhausted"
    );
}

/// A sweep reports the number of due deliveries and its lag.
#[tokio::test]
async fn sweep_reports_due_and_lag() {
    let (tables, receiver, dispatcher) = fixture().await;
    subscribe(&tables, "acme", &receiver.url("/status/500"), None).await;
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
        numbers([
            ("RetriesDue", 0.0),
            ("SweepLag", 0.0),
            ("SweepRefused", 0.0)
        ])
    );

    // The message is lost, so the sweep takes the delivery five minutes after it was due.
    let due = tables.timers().remove(0).due;
    dispatcher.clock.advance(
        due.saturating_duration_since(dispatcher.clock.now())
            + Duration::from_mins(5)
            + Duration::from_secs(42),
    );
    assert_eq!(sweep().await.unwrap(), 1);
    assert_eq!(
        collect_metrics(&dispatcher),
        numbers([
            ("RetriesDue", 1.0),
            ("SweepLag", 42_000.0),
            ("SweepRefused", 0.0)
        ])
    );
}

/// A valid `traceparent` is sent with every attempt, and an invalid one with none.
#[tokio::test]
async fn traceparent_is_passed_on() {
    let (tables, receiver, dispatcher) = fixture().await;
    subscribe(&tables, "acme", &receiver.url("/status/500"), None).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut traced = job_image("t1", "completed");
    let mut broken = job_image("t2", "completed");
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
    for timer in tables.timers() {
        dispatcher.retry(&timer.message).await.unwrap();
    }
    let received = receiver.received();
    let sent = received.iter().map(|request| {
        (
            request.json()["task_id"].as_str().unwrap().to_owned(),
            request.header("traceparent").to_owned(),
        )
    });
    let mut sent: Vec<_> = sent.collect();
    sent.sort();
    // An endpoint that has never responded gets one direct attempt; the other event was queued.
    assert_eq!(
        sent,
        [("t1", trace), ("t1", trace), ("t2", "")].map(|(task, trace)| (task.into(), trace.into()))
    );
}
