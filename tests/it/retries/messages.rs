//! Messages of the retry queue.

use std::time::Duration;

use nano_webhooks::{
    clock::Deadline,
    dispatch::{Dispatcher, lambda_event::Invocation},
};
use serde_json::{Value, json};

use crate::support::{queue::queue_message, retry_fixture::RetryFixture};

/// Early, late and repeated messages make no additional attempt.
#[tokio::test]
async fn stale_message_makes_no_attempt() {
    let fixture = RetryFixture::new("10s,20s").await;
    let webhook = fixture.subscribe("/status/500").await;
    fixture.end_jobs(1, 1).await;
    let first = fixture.timer();
    fixture.retry(&first.message).await;
    assert_eq!(
        fixture.timer(),
        first,
        "an early message is scheduled again"
    );
    assert_eq!(fixture.requests(), 1);

    fixture.clock.advance(Duration::from_secs(15));
    fixture.retry(&first.message).await;
    let second = fixture.timer();
    for _ in 0..3 {
        fixture.retry(&first.message).await;
    }
    assert_eq!(
        (fixture.requests(), fixture.tables.timers().len()),
        (2, 0),
        "a stale message is dropped"
    );
    assert_eq!(fixture.only(webhook).await.attempt_count, 2);
    assert_eq!(second.message.attempt_count, 2);
}

/// A queue batch reports the messages to repeat and drops unknown ones.
#[tokio::test]
async fn queue_batch_reports_failed_messages() {
    let fixture = RetryFixture::new("1s,1s").await;
    fixture.subscribe("/status/500").await;
    fixture.end_jobs(1, 1).await;
    let ours = fixture.timer().message.to_json();
    fixture.clock.advance(Duration::from_secs(2));
    let records = [queue_message("m1", &ours), queue_message("m2", "nonsense")];
    let event = json!({ "Records": records }).to_string();
    let unreachable = fixture
        .tables
        .store_through(nano_webhooks_cli::local_client(
            "http://127.0.0.1:9",
            nano_webhooks::aws::timeouts(),
        ));
    let without_tables = Dispatcher {
        store: unreachable,
        ..fixture.dispatcher.clone()
    };
    assert_eq!(
        invoke(&without_tables, &event).await,
        json!({"batchItemFailures": [{"itemIdentifier": "m1"}]})
    );
    assert_eq!(
        invoke(&fixture.dispatcher, &event).await,
        json!({"batchItemFailures": []})
    );
    assert_eq!(fixture.requests(), 2);
    for job in ["sweep", "advance"] {
        let scheduled = format!(r#"{{"job":"{job}"}}"#);
        assert!(Invocation::from_json(&scheduled).is_ok(), "{job}");
    }
    for other in ["{}", "[]", "1", r#"{"job":"something else"}"#] {
        assert!(Invocation::from_json(other).is_err(), "{other}");
    }
}

async fn invoke(dispatcher: &Dispatcher, event: &str) -> Value {
    let invocation = Invocation::from_json(event).unwrap();
    let deadline = Deadline::from_now(Duration::from_secs(20));
    dispatcher.invoke(invocation, deadline).await.unwrap()
}
