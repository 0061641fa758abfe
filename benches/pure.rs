//! What is pure, measured: signing, the canonical body, reading a batch of the stream, deciding about an attempt.

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use nano_webhooks::{
    clock::Instant,
    delivery::{
        Delivery, Key,
        attempt::{Attempt, Failure, Outcome, Request},
        health::{Health, Seen},
        phases::Phases,
        schedule::Schedule,
    },
    dispatch::{invocation::Invocation, stream::Record},
    event::EventId,
    signing,
    webhook::{Account, EventType, Secret, WebhookId},
};

/// A batch as Lambda gives it.
const BATCH: &str = include_str!("../events/stream-mixed.json");
const COMPLETED: &str = include_str!("../events/stream-completed.json");
const NOW: Instant = Instant::from_millis(1_734_948_000_000);

fn read(text: &str) -> Vec<Record> {
    match Invocation::from_json(text) {
        Ok(Invocation::Stream(records)) => records,
        other => panic!("{other:?}"),
    }
}

fn event() -> EventId {
    EventId::parse("evt_01JFSFB4807P0XDV4PAY2Y4PMB").expect("an id")
}

/// An exchange that ended with this status, or with no answer.
fn outcome(status: Option<u16>) -> Outcome {
    let failure = match status {
        Some(200..=299) => None,
        Some(status) => Some(Failure::Status(status)),
        None => Some(Failure::Connect),
    };
    let took = Duration::from_millis(12);
    Outcome { took, phases: Phases::default(), status_code: status, failure, retry_after: None, excerpt: None }
}

fn pure(c: &mut Criterion) {
    let body = read(COMPLETED)[0].event().expect("a record").expect("an event").body();
    let secrets = ["my-secret-key", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"];
    let secrets = secrets.map(|text| Secret::parse(text.to_owned()).expect("a secret"));
    let id = event();
    c.bench_function("sign, one secret", |b| {
        b.iter(|| signing::sign(&secrets[..1], &id, NOW, black_box(body.as_bytes())));
    });
    c.bench_function("sign, two secrets", |b| b.iter(|| signing::sign(&secrets, &id, NOW, black_box(body.as_bytes()))));

    let records = read(COMPLETED);
    c.bench_function("recognise an event", |b| b.iter(|| black_box(&records[0]).event()));
    let job = records[0].event().expect("a record").expect("an event");
    c.bench_function("canonical body", |b| b.iter(|| black_box(&job).body()));
    c.bench_function("read a batch", |b| b.iter(|| read(black_box(BATCH))));

    let key = Key {
        account: Account::parse("acme").expect("a name"),
        webhook: WebhookId::new(1).expect("an id"),
        event: event(),
    };
    let body: Arc<str> = body.into();
    let delivery = Delivery::new(
        key,
        EventType::JobCompleted,
        Some("task_1".to_owned()),
        "https://example.com/".to_owned(),
        body,
        NOW,
    );
    let schedule = Schedule::default();
    for (name, status) in [("decide, delivered", Some(204)), ("decide, failed", Some(503))] {
        let outcome = outcome(status);
        let request = Request {
            id: &delivery.key.event,
            event: delivery.event_type,
            number: 1,
            at: NOW,
            signatures: None,
            traceparent: None,
            version: "0",
        };
        c.bench_function(name, |b| {
            b.iter(|| {
                let mut delivery = delivery.clone();
                delivery.take(Attempt::new(&request, &outcome), &outcome, &schedule, NOW, black_box(0.5));
                delivery.state
            });
        });
    }
    let seen = Seen { failure: outcome(None).failure.map(|failure| failure.kind()), took: Duration::from_millis(500) };
    c.bench_function("health, after a failure", |b| b.iter(|| black_box(Health::default()).after(seen, NOW)));
}

criterion_group!(benches, pure);
criterion_main!(benches);
