//! A client that calls any target, and one attempt with it.

use std::{path::Path, time::Duration};

use nano_webhooks::{
    client::{
        target_guard::TargetGuard,
        webhook_client::{Timeouts, WebhookClient},
    },
    clock::Clock,
};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::attempt::{AttemptOutcome, WebhookRequest},
    endpoint_url::EndpointUrl,
    event::EventId,
    event_type::EventType,
    static_headers::StaticHeaders,
    target_policy::TargetPolicy,
};

/// A client with the target policy that allows every target.
pub fn client() -> WebhookClient {
    WebhookClient::new(any_target(), Timeouts::QUEUED, None).unwrap()
}

/// A client that waits this long for a connection and for an attempt.
pub fn client_with_timeout(timeout: Duration) -> WebhookClient {
    let timeouts = Timeouts {
        connect: timeout,
        total: timeout,
    };
    WebhookClient::new(any_target(), timeouts, None).unwrap()
}

/// A client that trusts the certificates of this PEM file.
pub fn client_with_ca(file: &Path) -> WebhookClient {
    WebhookClient::new(any_target(), Timeouts::QUEUED, Some(file)).unwrap()
}

fn any_target() -> TargetGuard {
    TargetGuard::new(TargetPolicy::Any, vec![])
}

/// Makes one attempt of an unsigned event.
pub async fn post(client: &WebhookClient, url: &str) -> AttemptOutcome {
    let request = WebhookRequest {
        event_id: &EventId::parse("evt_01JFS8TX800000000000000000").unwrap(),
        event_type: EventType::JobCompleted,
        attempt_number: 1,
        started_at: Clock::system().now(),
        signatures: None,
        traceparent: None,
        static_headers: &StaticHeaders::NONE,
        version: "0",
    };
    let url = EndpointUrl::parse(url).unwrap();
    let attempted = client.attempt(&account(), &url, request, "{}").await;
    let (_, outcome) = attempted.unwrap();
    outcome
}

/// The account whose attempts [`post`] makes.
pub fn account() -> AccountId {
    AccountId::parse("acme").unwrap()
}

/// Makes two attempts at the same time. If the server responds to both, their connections can be
/// reused: the client knows that the server serves more than one.
pub async fn post_two(client: &WebhookClient, url: &str) -> [AttemptOutcome; 2] {
    tokio::join!(post(client, url), post(client, url)).into()
}
