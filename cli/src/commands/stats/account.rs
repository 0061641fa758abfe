//! `stats --account`: the webhooks of an account.

use std::io::Write;

use anyhow::ensure;
use indicatif::ProgressBar;
use nano_webhooks::{
    clock::Clock,
    concurrency,
    store::{self, Store, delivery_log::DeliveryFilter, webhooks::WebhookRecord},
};
use nano_webhooks_core::{
    account_id::AccountId, delivery::status::DeliveryStatus, timestamp::Timestamp,
    webhook::WebhookId,
};
use serde_json::{Value, json};

use super::count::Count;
use crate::{
    args::TablesArgs,
    commands::{progress::start_progress, tables::open_store},
    terminal::{escape_for_terminal, format_relative, pluralize, print_remark},
};

/// How many deliveries of a webhook are counted in each state.
const MAX_COUNTED_PER_WEBHOOK: usize = 10_000;
/// How many of them are read at a time.
const PAGE_SIZE: usize = 500;
/// How many webhooks are read at the same time.
const CONCURRENT_WEBHOOKS: usize = 8;

pub async fn print(account: &AccountId, tables: &TablesArgs, as_json: bool) -> anyhow::Result<()> {
    let store = open_store(tables).await?;
    let now = Clock::system().now();
    let (readable, unreadable): (Vec<_>, Vec<_>) = store
        .webhooks()
        .list_records(account)
        .await?
        .into_iter()
        .partition(Result::is_ok);
    if readable.is_empty() && unreadable.is_empty() {
        print_remark(format_args!("Account {account} has no webhooks."));
    }
    let webhooks = readable.into_iter().flatten().collect();
    let stats = load_stats(&store, account, webhooks, now).await?;
    let mut out = std::io::stdout();
    for webhook_stats in stats {
        if as_json {
            writeln!(out, "{}", webhook_stats.to_json())?;
        } else {
            webhook_stats.write(&mut out, now)?;
        }
    }
    ensure!(
        unreadable.is_empty(),
        "{} of account {account} could not be read and are left out",
        pluralize(unreadable.len(), "webhook", "webhooks")
    );
    Ok(())
}

/// A webhook and the counts of its deliveries.
struct WebhookStats {
    record: WebhookRecord,
    pending: Count,
    overdue: usize,
    paused: usize,
    failed: Count,
}

async fn load_stats(
    store: &Store,
    account: &AccountId,
    webhooks: Vec<WebhookRecord>,
    now: Timestamp,
) -> store::Result<Vec<WebhookStats>> {
    let progress = start_progress("Counting deliveries of webhooks:", webhooks.len());
    let loads = webhooks
        .into_iter()
        .map(|record| WebhookStats::load(store, account, record, now, &progress));
    let mut stats = concurrency::join_bounded(loads.collect(), CONCURRENT_WEBHOOKS)
        .await
        .into_iter()
        .collect::<store::Result<Vec<_>>>()?;
    stats.sort_by_key(|stats| stats.record.webhook.id.get());
    Ok(stats)
}

impl WebhookStats {
    async fn load(
        store: &Store,
        account: &AccountId,
        record: WebhookRecord,
        now: Timestamp,
        progress: &ProgressBar,
    ) -> store::Result<Self> {
        let id = record.webhook.id;
        let pending = read_next_attempts(store, account, id, DeliveryStatus::Pending).await?;
        let failed = read_next_attempts(store, account, id, DeliveryStatus::Failed).await?;
        progress.inc(1);
        let due_times = pending.times.iter().flatten();
        Ok(Self {
            record,
            pending: pending.count(),
            overdue: due_times.filter(|due_at| **due_at <= now).count(),
            paused: pending.times.iter().filter(|time| time.is_none()).count(),
            failed: failed.count(),
        })
    }

    fn to_json(&self) -> Value {
        let WebhookRecord {
            webhook,
            health,
            metadata,
            ..
        } = &self.record;
        let first_success = health.first_success_after_failure_at;
        json!({
            "webhook_id": webhook.id.get(),
            "url": webhook.url.as_str(),
            "status": webhook.status.as_str(),
            "disabled_reason": metadata.disabled_reason,
            "health": {
                "state": health.state().as_str(),
                "failing_since": health.failing_since.map(Timestamp::to_rfc3339),
                "first_success_after_failure_at": first_success.map(Timestamp::to_rfc3339),
                "last_failure": health.last_failure,
            },
            "pending": {
                "count": self.pending.value,
                "overdue": self.overdue,
                "paused": self.paused,
                "complete": self.pending.is_complete,
            },
            "failed": { "count": self.failed.value, "complete": self.failed.is_complete },
        })
    }

    fn write(&self, out: &mut impl Write, now: Timestamp) -> std::io::Result<()> {
        writeln!(out, "{}", self.format_webhook())?;
        writeln!(out, "  health   {}", self.format_health(now))?;
        writeln!(
            out,
            "  pending  {} ({} overdue, {} paused)",
            self.pending, self.overdue, self.paused
        )?;
        writeln!(out, "  failed   {}", self.failed)
    }

    fn format_webhook(&self) -> String {
        let webhook = &self.record.webhook;
        let mut line = format!(
            "Webhook {}  {}  {}",
            webhook.id,
            escape_for_terminal(webhook.url.as_str()),
            webhook.status.as_str()
        );
        if let Some(reason) = &self.record.metadata.disabled_reason {
            line += ": ";
            line += &escape_for_terminal(reason);
        }
        line
    }

    fn format_health(&self, now: Timestamp) -> String {
        let health = &self.record.health;
        let since = match health.failing_since {
            Some(time) => format!(" since {}", format_relative(time, now)),
            None => String::new(),
        };
        let failure = match health.last_failure {
            Some(kind) => format!(", last failure {}", kind.as_str()),
            None => String::new(),
        };
        format!("{}{since}{failure}", health.state().as_str())
    }
}

/// The next attempts of a webhook's deliveries in one state.
struct NextAttempts {
    /// `None`: no attempt is due, for example because the delivery is paused.
    times: Vec<Option<Timestamp>>,
    /// All deliveries in the state were read.
    is_complete: bool,
}

impl NextAttempts {
    const fn count(&self) -> Count {
        Count {
            value: self.times.len(),
            is_complete: self.is_complete,
        }
    }
}

/// Counts a webhook's deliveries in one state, up to [`MAX_COUNTED_PER_WEBHOOK`].
pub async fn count_deliveries(
    store: &Store,
    account: &AccountId,
    webhook: WebhookId,
    status: DeliveryStatus,
) -> store::Result<Count> {
    let next_attempts = read_next_attempts(store, account, webhook, status).await?;
    Ok(next_attempts.count())
}

async fn read_next_attempts(
    store: &Store,
    account: &AccountId,
    webhook: WebhookId,
    status: DeliveryStatus,
) -> store::Result<NextAttempts> {
    let mut filter = DeliveryFilter {
        status: Some(status),
        event: None,
        after: None,
        limit: PAGE_SIZE,
    };
    let mut times = Vec::new();
    loop {
        let page = store.delivery_log().list(account, webhook, &filter).await?;
        for delivery in page.deliveries {
            times.push(delivery.row.next_attempt_at);
        }
        let is_complete = page.next.is_none();
        if is_complete || times.len() >= MAX_COUNTED_PER_WEBHOOK {
            return Ok(NextAttempts { times, is_complete });
        }
        filter.after = page.next;
    }
}
