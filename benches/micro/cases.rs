//! The benchmark cases: the steps of a delivery without I/O.

use std::{hint::black_box, sync::Arc, time::Duration};

use nano_webhooks::dispatch::{lambda_event::Invocation, stream_record::Record};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{
        Delivery, DeliveryKey,
        attempt::{Attempt, AttemptOutcome, WebhookRequest},
        breaker::AfterFailure,
        endpoint_health::{EndpointHealth, Observation},
        failure::Failure,
        schedule::RetrySchedule,
        timings::PhaseTimings,
    },
    event::EventId,
    event_type::EventType,
    secret::Secret,
    signing,
    static_headers::StaticHeaders,
    timestamp::Timestamp,
    webhook::WebhookId,
};

/// A batch of one record, in the JSON that Lambda passes to a function.
const COMPLETED: &str = include_str!("../../events/stream-completed.json");
/// A batch of six records of different kinds.
const MIXED: &str = include_str!("../../events/stream-mixed.json");
const NOW: Timestamp = Timestamp::from_millis(1_734_948_000_000);

/// A named step.
pub struct Case {
    /// Names the step in the results.
    pub name: &'static str,
    /// Runs the step once.
    pub step: Box<dyn FnMut()>,
}

impl Case {
    fn new(name: &'static str, step: impl FnMut() + 'static) -> Self {
        Self {
            name,
            step: Box::new(step),
        }
    }
}

/// Creates all cases.
pub fn create_cases() -> Vec<Case> {
    let mut cases = Vec::from(signing_cases());
    cases.extend(parsing_cases());
    cases.extend(decision_cases());
    cases
}

fn signing_cases() -> [Case; 2] {
    [
        signing_case("sign, one secret", &["my-secret-key"]),
        signing_case(
            "sign, two secrets",
            &["my-secret-key", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        ),
    ]
}

fn signing_case(name: &'static str, secrets: &[&str]) -> Case {
    let secrets: Vec<_> = secrets.iter().map(|text| parse_secret(text)).collect();
    let event_id = event_id();
    let payload = payload();
    Case::new(name, move || sign(&secrets, &event_id, &payload))
}

fn sign(secrets: &[Secret], event_id: &EventId, payload: &str) {
    let payload = black_box(payload.as_bytes());
    drop(black_box(signing::sign(secrets, event_id, NOW, payload)));
}

fn parsing_cases() -> [Case; 4] {
    let record = parse_batch(COMPLETED).remove(0);
    let job_event = record.event().expect("a record").expect("an event");
    [
        Case::new("parse a batch of one record", || {
            drop(black_box(parse_batch(black_box(COMPLETED))));
        }),
        Case::new("parse a batch of six records", || {
            drop(black_box(parse_batch(black_box(MIXED))));
        }),
        Case::new("parse an event", move || {
            drop(black_box(black_box(&record).event()));
        }),
        Case::new("write the canonical payload", move || {
            drop(black_box(black_box(&job_event).to_canonical_json()));
        }),
    ]
}

fn decision_cases() -> [Case; 3] {
    [
        decision_case("decide, delivered", Some(204)),
        decision_case("decide, failed", Some(503)),
        observation_case(),
    ]
}

fn decision_case(name: &'static str, status: Option<u16>) -> Case {
    let delivery = delivery();
    let outcome = attempt_outcome(status);
    let schedule = RetrySchedule::default();
    Case::new(name, move || decide(&delivery, &outcome, &schedule))
}

/// Records an attempt in a copy of the delivery.
fn decide(delivery: &Delivery, outcome: &AttemptOutcome, schedule: &RetrySchedule) {
    let mut delivery = delivery.clone();
    let request = WebhookRequest {
        event_id: &delivery.key.event,
        event_type: delivery.event_type,
        attempt_number: 1,
        started_at: NOW,
        signatures: None,
        traceparent: None,
        static_headers: &StaticHeaders::NONE,
        version: "0",
    };
    let attempt = Attempt::new(&request, outcome);
    let after_failure = AfterFailure::Retry;
    delivery.record_attempt(
        attempt,
        outcome,
        after_failure,
        schedule,
        NOW,
        black_box(|| 0.5),
    );
    black_box(delivery.state);
}

fn observation_case() -> Case {
    let observation = Observation {
        failure: attempt_outcome(None).failure.map(|failure| failure.kind()),
        duration: Duration::from_millis(500),
    };
    Case::new("observe a failure", move || {
        black_box(black_box(EndpointHealth::default()).observe(observation, NOW));
    })
}

fn parse_batch(text: &str) -> Vec<Record> {
    match Invocation::from_json(text) {
        Ok(Invocation::Stream(records)) => records,
        other => panic!("not a stream batch: {other:?}"),
    }
}

fn parse_secret(text: &str) -> Secret {
    Secret::parse(text.to_owned()).expect("a secret")
}

fn event_id() -> EventId {
    EventId::parse("evt_01JFSFB4807P0XDV4PAY2Y4PMB").expect("an id")
}

fn payload() -> Arc<str> {
    let record = parse_batch(COMPLETED).remove(0);
    let job_event = record.event().expect("a record").expect("an event");
    job_event.to_canonical_json().into()
}

/// The outcome of an attempt that received this status, or no response.
fn attempt_outcome(status: Option<u16>) -> AttemptOutcome {
    let failure = match status {
        Some(200..=299) => None,
        Some(status) => Some(Failure::Status(status)),
        None => Some(Failure::Connect),
    };
    AttemptOutcome {
        duration: Duration::from_millis(12),
        timings: PhaseTimings::default(),
        status_code: status,
        failure,
        retry_after: None,
        body_excerpt: None,
    }
}

fn delivery() -> Delivery {
    let key = DeliveryKey {
        account: AccountId::parse("acme").expect("a name"),
        webhook: WebhookId::new(1).expect("an id"),
        event: event_id(),
    };
    Delivery::new(
        key,
        EventType::JobCompleted,
        Some("task_1".to_owned()),
        "https://example.com/".to_owned(),
        payload(),
        NOW,
    )
}
