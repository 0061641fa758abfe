//! `stats --account`: the webhooks of an account.

use std::io;

use anstyle::{AnsiColor, Style};
use anyhow::ensure;
use indicatif::ProgressBar;
use nano_webhooks::{
    clock::Clock,
    concurrency,
    store::{self, Store, delivery_log::DeliveryFilter, webhooks::WebhookRecord},
};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{endpoint_health::HealthState, status::DeliveryStatus},
    timestamp::Timestamp,
    webhook::WebhookId,
};
use serde_json::{Value, json};

use super::count::Count;
use crate::{
    args::TablesArgs,
    commands::{progress::start_progress, tables::open_store},
    json_line::print_json,
    table::Table,
    terminal::{format_relative, pluralize, print_remark},
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
    if as_json {
        for webhook_stats in stats {
            print_json(&webhook_stats.to_json())?;
        }
    } else {
        print_table(&stats, now)?;
    }
    ensure!(
        unreadable.is_empty(),
        "{} of account {account} could not be read and are left out",
        pluralize(unreadable.len(), "webhook", "webhooks")
    );
    Ok(())
}

fn print_table(stats: &[WebhookStats], now: Timestamp) -> io::Result<()> {
    let mut table = Table::new([
        "HEALTH",
        "WEBHOOK",
        "STATUS",
        "PENDING",
        "OVERDUE",
        "PAUSED",
        "FAILED",
        "FAILING SINCE",
        "LAST FAILURE",
        "URL",
    ]);
    for webhook_stats in stats {
        webhook_stats.add_to(&mut table, now);
    }
    table.print()
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

    fn add_to(&self, table: &mut Table<10>, now: Timestamp) {
        let WebhookRecord {
            webhook, health, ..
        } = &self.record;
        let state = health.state();
        let failing_since = health.failing_since.map(|time| format_relative(time, now));
        let last_failure = health.last_failure.map(|kind| kind.as_str().to_owned());
        table.add_styled_row(
            style_of(state),
            [
                state.as_str().to_owned(),
                webhook.id.to_string(),
                self.describe_status(),
                self.pending.to_string(),
                self.overdue.to_string(),
                self.paused.to_string(),
                self.failed.to_string(),
                failing_since.unwrap_or_default(),
                last_failure.unwrap_or_default(),
                webhook.url.as_str().to_owned(),
            ],
        );
    }

    fn describe_status(&self) -> String {
        let status = self.record.webhook.status.as_str();
        match &self.record.metadata.disabled_reason {
            Some(reason) => format!("{status}: {reason}"),
            None => status.to_owned(),
        }
    }
}

const fn style_of(state: HealthState) -> Style {
    match state {
        HealthState::Healthy => AnsiColor::Green.on_default(),
        HealthState::Slow => AnsiColor::Yellow.on_default(),
        HealthState::Failing | HealthState::Unreachable => AnsiColor::Red.on_default(),
        HealthState::Unknown => Style::new().dimmed(),
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
