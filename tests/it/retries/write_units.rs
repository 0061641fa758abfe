//! The write units of a delivery.

use nano_webhooks::dispatch::Dispatcher;

use crate::support::{
    proxy::Proxy,
    retry_fixture::RetryFixture,
    stream::{completed_jobs, dispatch_batch},
};

/// A successful delivery costs one write unit, and reads are shared by the batch.
#[tokio::test]
async fn success_costs_one_write_unit() {
    let fixture = RetryFixture::new("1s").await;
    let webhook = fixture.subscribe("/ok").await;
    // Only the first success writes the endpoint's health.
    fixture.end_jobs(1000, 1).await;
    let proxy = Proxy::start(fixture.tables.endpoint.clone()).await;
    let counted = fixture
        .tables
        .store_through(nano_webhooks_cli::local_client(
            &proxy.url,
            crate::support::tables::patient_timeouts(),
        ));
    let dispatcher = Dispatcher {
        store: counted,
        ..fixture.dispatcher.clone()
    };
    assert_eq!(
        dispatch_batch(&dispatcher, &completed_jobs(0, 100)).await,
        []
    );
    let expected = [("BatchGetItem", 1), ("BatchWriteItem", 4), ("Query", 1)]
        .map(|(name, n)| (name.to_owned(), n));
    assert_eq!(proxy.counts(), expected);
    assert_eq!(fixture.deliveries(webhook).await.len(), 100);
    for item in fixture.tables.items(&fixture.tables.names.deliveries).await {
        assert!(
            !["due_shard", "sweep_at", "state_key"]
                .iter()
                .any(|key| item.contains_key(*key)),
            "the write touches no index"
        );
        assert!(size(&item) <= 1024, "{} bytes: {item:?}", size(&item));
    }
}

/// An item's size as DynamoDB counts it ("Item sizes and formats" of its developer guide), rounded
/// up.
fn size(
    item: &std::collections::HashMap<String, aws_sdk_dynamodb::types::AttributeValue>,
) -> usize {
    use aws_sdk_dynamodb::types::AttributeValue;
    fn value(of: &AttributeValue) -> usize {
        match of {
            AttributeValue::S(text) => text.len(),
            AttributeValue::N(digits) => digits.len() / 2 + 2,
            AttributeValue::L(items) => 3 + items.iter().map(|item| 1 + value(item)).sum::<usize>(),
            AttributeValue::M(entries) => {
                3 + entries
                    .iter()
                    .map(|(key, item)| 1 + key.len() + value(item))
                    .sum::<usize>()
            }
            AttributeValue::Bool(_) | AttributeValue::Null(_) => 1,
            other => panic!("{other:?}"),
        }
    }
    item.iter()
        .map(|(key, attribute)| key.len() + value(attribute))
        .sum()
}
