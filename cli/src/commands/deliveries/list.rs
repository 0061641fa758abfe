//! `deliveries list`: the newest deliveries of an account.

use std::{cmp::Reverse, sync::Arc};

use anyhow::ensure;
use nano_webhooks::{
    api::deliveries::DeliverySummaryResponse,
    clock::Clock,
    concurrency,
    store::{
        self, Store,
        delivery_log::{DeliveryFilter, DeliverySummary},
        webhooks::WebhookRecord,
    },
};
use nano_webhooks_core::{
    account_id::AccountId, delivery::status::DeliveryStatus, webhook::WebhookId,
};
use serde::Serialize;

use super::table::{ListedDelivery, print_table};
use crate::{
    args::ListDeliveriesArgs, commands::tables::open_store, json_line::print_json,
    terminal::print_remark,
};

/// How many pages of a webhook's log are read at most. A page reads 500 items, and filters may
/// leave few of them.
const MAX_PAGES: usize = 20;
/// How many logs are read at the same time.
const CONCURRENT_LOGS: usize = 8;

/// A delivery as JSON.
#[derive(Serialize)]
struct ListedDeliveryJson {
    webhook_id: u64,
    #[serde(flatten)]
    summary: DeliverySummaryResponse,
}

/// A webhook whose deliveries are listed.
#[derive(Clone)]
struct ListedWebhook {
    id: WebhookId,
    /// `None` if it was deleted.
    record: Option<Arc<WebhookRecord>>,
}

/// The newest deliveries to a webhook.
#[derive(Default)]
struct WebhookPage {
    deliveries: Vec<ListedDelivery>,
    /// There may be more deliveries.
    truncated: bool,
}

pub async fn list(args: ListDeliveriesArgs) -> anyhow::Result<()> {
    let store = open_store(&args.tables).await?;
    let webhooks = resolve_webhooks(&store, &args.account, args.webhook).await?;
    let filter = DeliveryFilter {
        status: args.status,
        event: args.event,
        after: None,
        limit: args.limit,
    };
    let reads = webhooks
        .into_iter()
        .map(|webhook| read_page(&store, &args.account, webhook, filter.clone()));
    let pages = concurrency::join_bounded(reads.collect(), CONCURRENT_LOGS).await;
    let mut deliveries = Vec::new();
    let mut truncated = false;
    for page in pages {
        let page = page?;
        deliveries.extend(page.deliveries);
        truncated |= page.truncated;
    }
    truncated |= deliveries.len() > args.limit;
    // Event ids start with the time. The deliveries of one event are sorted by webhook.
    deliveries.sort_by_cached_key(|delivery| {
        (
            Reverse(delivery.summary.event_id.clone()),
            delivery.webhook.get(),
        )
    });
    deliveries.truncate(args.limit);
    if args.json {
        print_lines(deliveries)?;
    } else {
        print_table(&deliveries, Clock::system().now())?;
    }
    if truncated {
        print_remark("There may be more deliveries: narrow the search, or raise --limit.");
    }
    Ok(())
}

fn print_lines(deliveries: Vec<ListedDelivery>) -> anyhow::Result<()> {
    for delivery in deliveries {
        let json = ListedDeliveryJson {
            webhook_id: delivery.webhook.get(),
            summary: DeliverySummaryResponse::new(delivery.summary, delivery.record.as_deref()),
        };
        print_json(&json)?;
    }
    Ok(())
}

/// Reads the newest deliveries to a webhook, up to the limit of the filter.
async fn read_page(
    store: &Store,
    account: &AccountId,
    webhook: ListedWebhook,
    mut filter: DeliveryFilter,
) -> store::Result<WebhookPage> {
    let mut page = WebhookPage::default();
    // Pending deliveries of a deleted webhook count as cancelled, even if that is not stored yet.
    if webhook.record.is_none() && filter.status == Some(DeliveryStatus::Pending) {
        return Ok(page);
    }
    for _ in 0..MAX_PAGES {
        let log = store.delivery_log();
        let mut log_page = log.list(account, webhook.id, &filter).await?;
        if webhook.record.is_some() {
            log.read_wait_reasons(account, webhook.id, &mut log_page.deliveries)
                .await?;
        }
        filter.limit -= log_page.deliveries.len();
        for summary in log_page.deliveries {
            page.deliveries.push(to_listed_delivery(&webhook, summary));
        }
        page.truncated = log_page.next.is_some();
        filter.after = log_page.next;
        if !page.truncated || filter.limit == 0 {
            break;
        }
    }
    Ok(page)
}

fn to_listed_delivery(webhook: &ListedWebhook, summary: DeliverySummary) -> ListedDelivery {
    ListedDelivery {
        webhook: webhook.id,
        record: webhook.record.clone(),
        summary,
    }
}

/// Finds the webhooks whose deliveries to list: the given one, which may be deleted, or all that
/// exist.
async fn resolve_webhooks(
    store: &Store,
    account: &AccountId,
    webhook: Option<WebhookId>,
) -> anyhow::Result<Vec<ListedWebhook>> {
    if let Some(id) = webhook {
        let record = store.webhooks().get_record(account, id).await?;
        ensure!(
            record.is_some() || store.webhooks().ever_existed(account, id).await?,
            "account {account} has no webhook {id}"
        );
        let record = record.map(Arc::new);
        return Ok(vec![ListedWebhook { id, record }]);
    }
    let records = store.webhooks().list_records(account).await?;
    let mut webhooks = Vec::with_capacity(records.len());
    for record in records.into_iter().flatten() {
        webhooks.push(ListedWebhook {
            id: record.webhook.id,
            record: Some(Arc::new(record)),
        });
    }
    let ids: Vec<_> = webhooks.iter().map(|webhook| webhook.id).collect();
    print_webhooks(account, &ids);
    Ok(webhooks)
}

fn print_webhooks(account: &AccountId, ids: &[WebhookId]) {
    if ids.is_empty() {
        print_remark(format_args!(
            "Account {account} has no webhooks. To list the deliveries of a deleted webhook, pass \
             --webhook."
        ));
        return;
    }
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    let ids = ids.join(", ");
    print_remark(format_args!("Webhooks of account {account}: {ids}."));
}
