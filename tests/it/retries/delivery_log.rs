//! The delivery log.

use nano_webhooks::store::delivery_log::DeliveryFilter;
use nano_webhooks_core::delivery::status::DeliveryStatus;

use crate::support::{accounts::account, retry_fixture::RetryFixture};

/// The delivery log is listed newest first, by page, status and event.
#[tokio::test]
async fn log_is_filtered_and_paged() {
    let fixture = RetryFixture::new("1h").await;
    let webhook = fixture.subscribe("/status/500").await;
    let healthy = fixture.subscribe("/ok").await;
    for second in 0..30 {
        fixture.end_jobs(second, 1).await;
    }
    let log = fixture.tables.store.delivery_log();
    let acme = account("acme");
    for (webhook, status, found) in [
        (webhook, None, 30),
        (webhook, Some(DeliveryStatus::Pending), 30),
        (webhook, Some(DeliveryStatus::Failed), 0),
        (webhook, Some(DeliveryStatus::Delivered), 0),
        (healthy, Some(DeliveryStatus::Delivered), 30),
        (healthy, Some(DeliveryStatus::Pending), 0),
    ] {
        let mut ids = Vec::new();
        let mut filter = DeliveryFilter {
            status,
            event: None,
            after: None,
            limit: 7,
        };
        loop {
            let page = log.list(&acme, webhook, &filter).await.unwrap();
            assert!(page.deliveries.len() <= 7);
            ids.extend(page.deliveries.into_iter().map(|listed| listed.event_id));
            filter.after = page.next;
            if filter.after.is_none() {
                break;
            }
        }
        assert_eq!(ids.len(), found, "{status:?}");
        assert!(
            ids.windows(2).all(|pair| pair[0] > pair[1]),
            "each delivery is listed once, newest first"
        );
    }
}
