//! The benchmark cases: the steps of a delivery without I/O.

use std::{hint::black_box, sync::Arc, time::Duration};

use nano_webhooks::dispatch::{lambda_event::Invocation, stream_record::Record};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{
        Delivery, DeliveryKey,
        attempt::{Attempt, AttemptOutcome, WebhookRequest},
        endpoint_health::{EndpointHealth, Observation},
        failure::Failure,
        schedule::RetrySchedule,
        timings::PhaseTimings,
    },
    event::EventId,
    event_type::EventType,
    secret::Secret,
    signing,
    timestamp::Timestamp,
    webhook::WebhookId,
};

/// Batches as Lambda passes them: with one record, and with six of all kinds.
const COMPLETED: &str = include_str!("../../events/stream-completed.json");
const MIXED: &str = include_str!("../../events/stream-mixed.json");
const NOW: Timestamp = Timestamp::from_millis(1_734_948_000_000);

/// A named step.
pub type Case = (&'static str, Box<dyn FnMut()>);

fn parse_batch(text: &str) -> Vec<Record> {
    match Invocation::from_json(text) {
        Ok(Invocation::Stream(records)) => records,
        other => panic!("{other:?}"),
    }
}

/// An attempt that received this status, or no response.
fn outcome(status: Option<u16>) -> AttemptOutcome {
    let failure = match status {
        Some(200..=299) => None,
        Some(status) => Some(Failure::Status(status)),
        None => Some(Failure::Connect),
    };
    let took = Duration::from_millis(12);
    AttemptOutcome {
        duration: took,
        timings: PhaseTimings::default(),
        status_code: status,
        failure,
        retry_after: None,
        body_excerpt: None,
    }
}

/// All cases.
pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, case: Box<dyn FnMut()>| cases.push((name, case));

    let records = parse_batch(COMPLETED);
    let job = records[0].event().expect("a record").expect("an event");
    let body: Arc<str> = job.to_canonical_json().into();
    let id = EventId::parse("evt_01JFSFB4807P0XDV4PAY2Y4PMB").expect("an id");
    for (name, secrets) in [
        ("sign, one secret", &["my-secret-key"][..]),
        (
            "sign, two secrets",
            &["my-secret-key", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        ),
    ] {
        let secrets = secrets
            .iter()
            .map(|text| Secret::parse((*text).to_owned()).expect("a secret"));
        let (secrets, id, body): (Vec<_>, _, _) = (secrets.collect(), id.clone(), body.clone());
        add(
            name,
            Box::new(move || {
                drop(black_box(signing::sign(
                    &secrets,
                    &id,
                    NOW,
                    black_box(body.as_bytes()),
                )));
            }),
        );
    }
    add(
        "parse a batch of one record",
        Box::new(|| drop(black_box(parse_batch(black_box(COMPLETED))))),
    );
    add(
        "parse a batch of six records",
        Box::new(|| drop(black_box(parse_batch(black_box(MIXED))))),
    );
    add(
        "parse an event",
        Box::new(move || drop(black_box(black_box(&records[0]).event()))),
    );
    add(
        "write the canonical payload",
        Box::new(move || drop(black_box(black_box(&job).to_canonical_json()))),
    );

    let key = DeliveryKey {
        account: AccountId::parse("acme").expect("a name"),
        webhook: WebhookId::new(1).expect("an id"),
        event: id,
    };
    let task = Some("task_1".to_owned());
    let delivery = Delivery::new(
        key,
        EventType::JobCompleted,
        task,
        "https://example.com/".to_owned(),
        body,
        NOW,
    );
    for (name, status) in [
        ("decide, delivered", Some(204)),
        ("decide, failed", Some(503)),
    ] {
        let (delivery, outcome, schedule) =
            (delivery.clone(), outcome(status), RetrySchedule::default());
        let decide = move || {
            let mut delivery = delivery.clone();
            let request = WebhookRequest {
                event_id: &delivery.key.event,
                event_type: delivery.event_type,
                attempt_number: 1,
                started_at: NOW,
                signatures: None,
                traceparent: None,
                version: "0",
            };
            let attempt = Attempt::new(&request, &outcome);
            delivery.record_attempt(attempt, &outcome, &schedule, NOW, black_box(|| 0.5));
            black_box(delivery.state);
        };
        add(name, Box::new(decide));
    }
    let seen = Observation {
        failure: outcome(None).failure.map(|failure| failure.kind()),
        duration: Duration::from_millis(500),
    };
    let after = move || {
        black_box(black_box(EndpointHealth::default()).observe(seen, NOW));
    };
    add("observe a failure", Box::new(after));
    cases
}
