//! The head of a request as its bytes arrive at an endpoint.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use nano_webhooks::{client::webhook_client::WebhookClient, clock::Clock, dispatch::Dispatcher};
use nano_webhooks_core::{
    delivery::attempt::WebhookRequest,
    endpoint_url::EndpointUrl,
    event::{EventId, traceparent::Traceparent},
    event_type::EventType,
    signing::Signatures,
    static_headers::StaticHeaders,
};
use serde_json::json;

use crate::support::{
    accounts::account,
    client::client,
    stream::{dispatch_batch, insert_record, job_image},
    tables::TestTables,
    webhooks::subscribe,
    wire::{Keep, RecordingWire},
};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const ERROR: &[u8] = b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n";

/// The names of the header lines, sorted.
fn names(head: &str) -> Vec<&str> {
    let mut names: Vec<_> = head
        .lines()
        .skip(1)
        .map(|line| line.split_once(": ").unwrap().0)
        .collect();
    names.sort_unstable();
    names
}

/// Makes an attempt. A complete request is signed and has a `traceparent`.
async fn send(
    client: &WebhookClient,
    wire: &RecordingWire,
    headers: &StaticHeaders,
    is_complete: bool,
) {
    let signatures = Signatures {
        nano: "v1=00".to_owned(),
        standard: "v1,AA==".to_owned(),
    };
    let traceparent = Traceparent::parse(TRACE).unwrap();
    let request = WebhookRequest {
        event_id: &EventId::parse("evt_01JFS8TX800000000000000000").unwrap(),
        event_type: EventType::JobCompleted,
        attempt_number: 1,
        started_at: Clock::system().now(),
        signatures: is_complete.then_some(&signatures),
        traceparent: is_complete.then_some(&traceparent),
        static_headers: headers,
        version: "0",
    };
    let url = EndpointUrl::parse(&wire.url()).unwrap();
    let sent = client.attempt(&account("acme"), &url, request, "{}").await;
    let (_, outcome) = sent.unwrap();
    assert_eq!(outcome.failure, None);
}

/// Every header has the documented case, and static headers have the case that their owner chose.
#[tokio::test]
async fn names_have_documented_case() {
    let wire = RecordingWire::start(OK, Keep::Connection).await;
    send(&client(), &wire, &StaticHeaders::NONE, false).await;
    let unsigned = [
        "Accept",
        "Content-Length",
        "Content-Type",
        "Host",
        "User-Agent",
        "X-Nano-Attempt",
        "X-Nano-Event",
        "X-Nano-Timestamp",
        "webhook-id",
        "webhook-timestamp",
    ];
    let heads = wire.heads();
    assert_eq!(names(&heads[0]), unsigned);
    assert!(heads[0].starts_with("POST / HTTP/1.1\r\n"));
    assert!(heads[0].contains("\r\nAccept: */*\r\n"));

    let headers = r#"[["authorization","Bearer a"],["COOKIE","a=b; c=d"],["X-API-key","k"],
                      ["X-Plain","v"]]"#;
    send(
        &client(),
        &wire,
        &StaticHeaders::from_json(headers).unwrap(),
        true,
    )
    .await;
    let complete = [
        "X-Nano-Signature",
        "webhook-signature",
        "traceparent",
        "authorization",
        "COOKIE",
        "X-API-key",
        "X-Plain",
    ];
    let mut expected = [&unsigned[..], &complete].concat();
    expected.sort_unstable();
    let heads = wire.heads();
    assert_eq!(names(&heads[1]), expected);
    for line in [
        "authorization: Bearer a",
        "COOKIE: a=b; c=d",
        "X-API-key: k",
        &format!("traceparent: {TRACE}"),
    ] {
        assert!(
            heads[1].contains(&format!("\r\n{line}\r\n")),
            "{}",
            heads[1]
        );
    }
}

/// A request that is sent again over a new connection, because the endpoint had closed the idle
/// one, has the same head.
#[tokio::test]
async fn repeated_request_has_same_head() {
    let wire = RecordingWire::start(OK, Keep::FirstExchange).await;
    let headers = StaticHeaders::from_json(r#"[["x-api-key","k"]]"#).unwrap();
    let client = client();
    // The client keeps connections to a server that serves two at the same time.
    tokio::join!(
        send(&client, &wire, &headers, true),
        send(&client, &wire, &headers, true),
    );
    send(&client, &wire, &headers, true).await;
    let heads = wire.heads();
    assert_eq!(heads.len(), 4, "the third request was sent twice");
    for head in &heads {
        assert_eq!(names(head), names(&heads[0]));
        assert!(head.contains("\r\nx-api-key: k\r\n"), "{head}");
        assert_eq!(traces(head).len(), 1, "{head}");
    }
}

/// The lines with the name `traceparent`, in any case.
fn traces(head: &str) -> Vec<&str> {
    head.lines()
        .filter(|line| line.to_ascii_lowercase().starts_with("traceparent"))
        .collect()
}

/// A valid `traceparent` is one line of each attempt. If the table has an invalid one, it is not
/// sent.
#[tokio::test]
async fn traceparent_is_sent_once_or_not() {
    let tables = TestTables::new().await;
    let wire = RecordingWire::start(ERROR, Keep::Connection).await;
    subscribe(&tables, "acme", &wire.url(), None).await;
    let clock = Clock::manual(Clock::system().now());
    let dispatcher = Dispatcher {
        clock: clock.clone(),
        ..tables.dispatcher()
    };
    let mut traced = job_image("t1", "completed");
    traced["traceparent"] = json!({ "S": TRACE });
    assert_eq!(
        dispatch_batch(&dispatcher, &[insert_record(1, traced)]).await,
        []
    );
    retry(&tables, &dispatcher, &clock).await;
    let heads = wire.heads();
    assert_eq!(heads.len(), 2);
    for head in &heads {
        assert_eq!(traces(head), [format!("traceparent: {TRACE}")]);
    }

    let mut delivery = tables.items(&tables.names.deliveries).await.pop().unwrap();
    let twice = format!("{TRACE}\r\ntraceparent: {TRACE}");
    delivery.insert("traceparent".to_owned(), AttributeValue::S(twice));
    let put = tables.client.put_item();
    let put = put.table_name(&tables.names.deliveries);
    put.set_item(Some(delivery)).send().await.unwrap();
    retry(&tables, &dispatcher, &clock).await;
    let heads = wire.heads();
    assert_eq!(heads.len(), 3);
    assert!(traces(&heads[2]).is_empty(), "{}", heads[2]);
}

/// Makes the only scheduled attempt.
async fn retry(tables: &TestTables, dispatcher: &Dispatcher, clock: &Clock) {
    let timer = tables.timers().pop().unwrap();
    clock.advance(Duration::from_mins(10));
    dispatcher.retry(&timer.message).await.unwrap();
}
