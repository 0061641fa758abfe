//! `deliveries`: the delivery log of an account.

mod format;
mod list;
mod table;

use std::io::Write;

use anyhow::{Context, bail};
use nano_webhooks::{api::deliveries::DeliveryResponse, clock::Clock, store::Store};
use nano_webhooks_core::{
    delivery::{Delivery, DeliveryKey},
    webhook::WebhookStatus,
};

pub use list::list;
use serde_json::json;

use super::tables::{load_config, open_store};
use crate::{
    args::{DeliveryArgs, RetryDeliveryArgs, ShowDeliveryArgs},
    json_line::print_json,
};

pub async fn show(args: ShowDeliveryArgs) -> anyhow::Result<()> {
    let store = open_store(&args.tables).await?;
    let delivery = find_delivery(&store, args.delivery).await?;
    let key = &delivery.key;
    let webhooks = store.webhooks();
    let webhook = webhooks.get_record(&key.account, key.webhook).await?;
    if args.json {
        let response = DeliveryResponse::new(&delivery, webhook.as_ref());
        print_json(&response)?;
    } else {
        let now = Clock::system().now();
        write!(
            std::io::stdout(),
            "{}",
            format::format_delivery(&delivery, webhook.as_ref(), now)
        )?;
    }
    Ok(())
}

pub async fn retry(args: RetryDeliveryArgs) -> anyhow::Result<()> {
    let store = open_store(&args.tables).await?;
    let delivery = find_delivery(&store, args.delivery).await?;
    let DeliveryKey {
        account,
        webhook,
        event,
    } = &delivery.key;
    let Some(subscriber) = store.webhooks().get_record(account, *webhook).await? else {
        bail!(
            "webhook {webhook} of account {account} is deleted, so its deliveries cannot be retried"
        );
    };
    if subscriber.webhook.status == WebhookStatus::Disabled {
        bail!("webhook {webhook} of account {account} is disabled; enable it first");
    }
    let retention = load_config(&args.tables)?.retention;
    let scheduled = store
        .leases()
        .schedule_retry_for_sweep(&delivery, Clock::system().now(), retention)
        .await?;
    if scheduled.is_none() {
        bail!("delivery {event} is being attempted; check the result with `deliveries show` first");
    }
    let attempt = delivery.attempt_count + 1;
    if args.json {
        let due = json!({
            "webhook_id": webhook.get(),
            "event_id": event.as_str(),
            "attempt": attempt,
        });
        print_json(&due)?;
    } else {
        writeln!(
            std::io::stdout(),
            "Attempt {attempt} of {event} to webhook {webhook} is due. The next sweep sends it, \
             usually within a minute."
        )?;
    }
    Ok(())
}

async fn find_delivery(store: &Store, args: DeliveryArgs) -> anyhow::Result<Delivery> {
    let key = DeliveryKey {
        account: args.account,
        webhook: args.webhook,
        event: args.event,
    };
    store.deliveries().get(&key).await?.with_context(|| {
        format!(
            "account {} has no delivery {} to webhook {}; list its deliveries with `deliveries \
             list`",
            key.account, key.event, key.webhook
        )
    })
}
