//! Webhooks of test accounts.

use nano_webhooks::{
    clock::Clock,
    store::{
        key_schema,
        webhooks::{CreateOutcome, NewWebhook},
    },
};
use nano_webhooks_core::{
    delivery::endpoint_health::EndpointHealth, endpoint_url::EndpointUrl, event_type::EventTypes,
    secret::Secret, static_headers::StaticHeaders, webhook::WebhookId,
};

use crate::support::{accounts::account, tables::TestTables};

pub async fn subscribe(
    tables: &TestTables,
    who: &str,
    url: &str,
    secret: Option<&str>,
) -> WebhookId {
    subscribe_to(tables, who, url, &["job.completed", "job.failed"], secret).await
}

pub async fn subscribe_to(
    tables: &TestTables,
    who: &str,
    url: &str,
    events: &[&str],
    secret: Option<&str>,
) -> WebhookId {
    let new = NewWebhook {
        url: EndpointUrl::parse(url).unwrap(),
        events: EventTypes::parse(events.iter().copied()).unwrap(),
        secret: secret.map(|text| Secret::parse(text.to_owned()).unwrap()),
        headers: StaticHeaders::NONE,
        description: None,
        max_per_second: None,
    };
    match tables
        .store
        .webhooks()
        .create(&account(who), &new, 50, None, Clock::system().now())
        .await
        .unwrap()
    {
        CreateOutcome::Webhook(webhook) => webhook.id,
        other => panic!("{other:?}"),
    }
}

/// Stores the health of an endpoint of `acme` as earlier versions did: without a revision, and
/// without a marker if the breaker is open.
pub async fn put_health(tables: &TestTables, webhook: WebhookId, health: &EndpointHealth) {
    let mut item = key_schema::health(&account("acme"), webhook).into_item();
    let fields: nano_webhooks::store::Item = serde_dynamo::to_item(health).unwrap();
    item.extend(fields);
    tables
        .client
        .put_item()
        .table_name(&tables.names.webhooks)
        .set_item(Some(item))
        .send()
        .await
        .unwrap();
}
