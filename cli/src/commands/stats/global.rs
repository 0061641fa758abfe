//! `stats` over all accounts.

use std::{cmp::Reverse, collections::BTreeMap, io::Write, time::Duration};

use indicatif::ProgressBar;
use nano_webhooks::{
    clock::Clock,
    concurrency,
    store::{
        self, Store,
        key_schema::{self, DUE_SHARDS},
        probes::OpenBreaker,
        replays::ReplayKey,
        resumes::ResumeJob,
    },
};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{DeliveryKey, status::DeliveryStatus},
    timestamp::Timestamp,
    webhook::WebhookId,
};
use serde_json::{Value, json};

use super::{account::count_deliveries, count::Count};
use crate::{
    args::TablesArgs,
    commands::{
        poison::days_to_list,
        progress::start_progress,
        tables::{load_config, open_store},
    },
    json_line::print_json,
    terminal::{escape_for_terminal, format_relative},
};

/// How many entries of the index `due` are counted.
const MAX_COUNTED: usize = 100_000;
/// How many of them are in one shard of the index.
const MAX_COUNTED_PER_SHARD: usize = MAX_COUNTED / DUE_SHARDS as usize;
/// How many poison records of a day are counted.
const MAX_COUNTED_POISON: usize = 10_000;
/// How many webhooks with the most pending deliveries are named.
const TOP_WEBHOOKS: usize = 5;
/// How many active replays and how many active resumes are named.
const MAX_ACTIVE_JOBS: usize = 2_000;
/// How many endpoints whose breaker is open are named.
const MAX_UNREACHABLE: usize = 200;
/// How many of them are counted at the same time.
const CONCURRENT_ENDPOINTS: usize = 8;
/// How many days are read at the same time.
const CONCURRENT_DAYS: usize = 8;

struct GlobalStats {
    pending: PendingStats,
    /// Only days with records, newest first.
    poison: Vec<PoisonDay>,
    replays: Vec<ReplayKey>,
    resumes: Vec<ResumeJob>,
    /// The longest backlog first.
    unreachable: Vec<UnreachableEndpoint>,
}

/// An endpoint whose breaker is open.
struct UnreachableEndpoint {
    breaker: OpenBreaker,
    pending: Count,
}

struct PoisonDay {
    day: String,
    records: Count,
}

pub async fn print(tables: &TablesArgs, as_json: bool) -> anyhow::Result<()> {
    let store = open_store(tables).await?;
    let now = Clock::system().now();
    let retention = load_config(tables)?.retention;
    let stats = GlobalStats::load(&store, now, retention).await?;
    if as_json {
        print_json(&stats.to_json())?;
    } else {
        stats.write(&mut std::io::stdout(), now)?;
    }
    Ok(())
}

impl GlobalStats {
    async fn load(store: &Store, now: Timestamp, retention: Duration) -> anyhow::Result<Self> {
        let days = days_to_list(None, now, retention);
        let progress = start_progress(
            "Counting pending deliveries, then poison records by day:",
            days.len(),
        );
        let end_of_time = Timestamp::from_millis(i64::MAX);
        let due = store
            .due_index()
            .list_due(end_of_time, MAX_COUNTED_PER_SHARD)
            .await?;
        let due: Vec<_> = due
            .into_iter()
            .map(|delivery| PendingDelivery {
                key: delivery.key,
                due_at: delivery.next_attempt_at,
            })
            .collect();
        Ok(Self {
            pending: PendingStats::from_deliveries(&due, now),
            poison: count_poison(store, days, &progress).await?,
            replays: store.replays().list_active(MAX_ACTIVE_JOBS).await?,
            resumes: store.resumes().list(MAX_ACTIVE_JOBS).await?,
            unreachable: count_unreachable(store).await?,
        })
    }

    fn to_json(&self) -> Value {
        let poison: Vec<_> = self.poison.iter().map(PoisonDay::to_json).collect();
        let replays: Vec<_> = self.replays.iter().map(replay_to_json).collect();
        let resumes: Vec<_> = self.resumes.iter().map(resume_to_json).collect();
        let unreachable = self.unreachable.iter().map(UnreachableEndpoint::to_json);
        let unreachable: Vec<_> = unreachable.collect();
        json!({
            "pending": self.pending.to_json(),
            "poison": poison,
            "replaying": replays,
            "resuming": resumes,
            "unreachable": unreachable,
        })
    }

    fn write(&self, out: &mut impl Write, now: Timestamp) -> std::io::Result<()> {
        self.pending.write(out, now)?;
        if self.poison.is_empty() {
            write_row(out, "Poison", "no records")?;
        }
        for PoisonDay { day, records } in &self.poison {
            let records = records.with_noun("record", "records");
            write_row(out, "Poison", &format!("{day}: {records}"))?;
        }
        for replay in &self.replays {
            let webhook = format_webhook(&replay.account, replay.webhook);
            write_row(out, "Replaying", &format!("{webhook}: {}", replay.id))?;
        }
        for resume in &self.resumes {
            write_row(
                out,
                "Resuming",
                &format_webhook(&resume.account, resume.webhook),
            )?;
        }
        if self.unreachable.len() == MAX_UNREACHABLE {
            let text = format!("{MAX_UNREACHABLE} endpoints are named; there may be more");
            write_row(out, "Unreachable", &text)?;
        }
        for UnreachableEndpoint { breaker, pending } in &self.unreachable {
            let webhook = format_webhook(&breaker.account, breaker.webhook);
            let pending = pending.with_noun("delivery", "deliveries");
            let next_probe = format_relative(breaker.next_probe_at, now);
            write_row(
                out,
                "Unreachable",
                &format!("{webhook}: {pending} pending, next probe at {next_probe}"),
            )?;
        }
        Ok(())
    }
}

impl UnreachableEndpoint {
    async fn load(store: &Store, breaker: OpenBreaker) -> store::Result<Self> {
        let OpenBreaker {
            account, webhook, ..
        } = &breaker;
        let status = DeliveryStatus::Pending;
        let pending = count_deliveries(store, account, *webhook, status).await?;
        Ok(Self { breaker, pending })
    }

    fn to_json(&self) -> Value {
        json!({
            "account": self.breaker.account.as_str(),
            "webhook_id": self.breaker.webhook.get(),
            "next_probe_at": self.breaker.next_probe_at.to_rfc3339(),
            "pending": self.pending.value,
            "complete": self.pending.is_complete,
        })
    }
}

impl PoisonDay {
    fn to_json(&self) -> Value {
        json!({
            "day": self.day,
            "records": self.records.value,
            "complete": self.records.is_complete,
        })
    }
}

fn replay_to_json(replay: &ReplayKey) -> Value {
    json!({
        "account": replay.account.as_str(),
        "webhook_id": replay.webhook.get(),
        "replay": replay.id.as_str(),
    })
}

fn resume_to_json(resume: &ResumeJob) -> Value {
    json!({
        "account": resume.account.as_str(),
        "webhook_id": resume.webhook.get(),
    })
}

async fn count_unreachable(store: &Store) -> store::Result<Vec<UnreachableEndpoint>> {
    let open = store.probes().list_open(MAX_UNREACHABLE).await?;
    let loads = open
        .into_iter()
        .map(|breaker| UnreachableEndpoint::load(store, breaker));
    let loaded = concurrency::join_bounded(loads.collect(), CONCURRENT_ENDPOINTS).await;
    let mut unreachable = loaded.into_iter().collect::<store::Result<Vec<_>>>()?;
    unreachable.sort_by_key(|endpoint| Reverse(endpoint.pending.value));
    Ok(unreachable)
}

async fn count_poison(
    store: &Store,
    days: Vec<String>,
    progress: &ProgressBar,
) -> store::Result<Vec<PoisonDay>> {
    let counts = days
        .into_iter()
        .map(|day| count_poison_of_day(store, day, progress));
    let counts = concurrency::join_bounded(counts.collect(), CONCURRENT_DAYS).await;
    let mut poison_days = Vec::new();
    for count in counts {
        let poison_day = count?;
        if poison_day.records.value > 0 {
            poison_days.push(poison_day);
        }
    }
    poison_days.sort_by(|left, right| right.day.cmp(&left.day));
    Ok(poison_days)
}

async fn count_poison_of_day(
    store: &Store,
    day: String,
    progress: &ProgressBar,
) -> store::Result<PoisonDay> {
    let count = store.poison().count(&day, MAX_COUNTED_POISON).await?;
    progress.inc(1);
    Ok(PoisonDay {
        day,
        records: Count {
            value: count.records,
            is_complete: count.is_complete,
        },
    })
}

/// An entry of the index `due`.
struct PendingDelivery {
    key: DeliveryKey,
    due_at: Timestamp,
}

/// Pending deliveries in the index `due`, which does not have paused ones.
struct PendingStats {
    overdue: Count,
    oldest_due_at: Option<Timestamp>,
    waiting: Count,
    next_due_at: Option<Timestamp>,
    /// The webhooks with the most pending deliveries.
    top_webhooks: Vec<TopWebhook>,
}

struct TopWebhook {
    account: AccountId,
    webhook: WebhookId,
    pending: usize,
}

impl PendingStats {
    fn from_deliveries(deliveries: &[PendingDelivery], now: Timestamp) -> Self {
        let (overdue, waiting): (Vec<_>, Vec<_>) = deliveries
            .iter()
            .map(|delivery| delivery.due_at)
            .partition(|due_at| *due_at <= now);
        let is_complete = largest_shard(deliveries) < MAX_COUNTED_PER_SHARD;
        Self {
            overdue: Count {
                value: overdue.len(),
                is_complete,
            },
            oldest_due_at: overdue.into_iter().min(),
            waiting: Count {
                value: waiting.len(),
                is_complete,
            },
            next_due_at: waiting.into_iter().min(),
            top_webhooks: find_top_webhooks(deliveries),
        }
    }

    fn to_json(&self) -> Value {
        let top_webhooks: Vec<_> = self.top_webhooks.iter().map(TopWebhook::to_json).collect();
        json!({
            "overdue": self.overdue.value,
            "oldest_due_at": self.oldest_due_at.map(Timestamp::to_rfc3339),
            "waiting": self.waiting.value,
            "next_due_at": self.next_due_at.map(Timestamp::to_rfc3339),
            "complete": self.overdue.is_complete,
            "top_webhooks": top_webhooks,
        })
    }

    fn write(&self, out: &mut impl Write, now: Timestamp) -> std::io::Result<()> {
        let overdue = self.overdue.with_noun("delivery", "deliveries");
        let oldest = match self.oldest_due_at {
            Some(time) => format!(", the oldest since {}", format_relative(time, now)),
            None => String::new(),
        };
        write_row(out, "Overdue", &format!("{overdue}{oldest}"))?;
        let waiting = self.waiting.with_noun("delivery", "deliveries");
        let next = match self.next_due_at {
            Some(time) => format!(", the next due at {}", format_relative(time, now)),
            None => String::new(),
        };
        write_row(out, "Waiting", &format!("{waiting}{next}"))?;
        for top in &self.top_webhooks {
            let webhook = format_webhook(&top.account, top.webhook);
            write_row(out, "Top webhooks", &format!("{webhook}: {}", top.pending))?;
        }
        Ok(())
    }
}

impl TopWebhook {
    fn to_json(&self) -> Value {
        json!({
            "account": self.account.as_str(),
            "webhook_id": self.webhook.get(),
            "pending": self.pending,
        })
    }
}

/// The number of entries in the largest shard.
fn largest_shard(deliveries: &[PendingDelivery]) -> usize {
    let mut shards: BTreeMap<String, usize> = BTreeMap::new();
    for delivery in deliveries {
        *shards
            .entry(key_schema::due_shard(&delivery.key.event))
            .or_default() += 1;
    }
    shards.into_values().max().unwrap_or(0)
}

fn find_top_webhooks(deliveries: &[PendingDelivery]) -> Vec<TopWebhook> {
    let mut counts: BTreeMap<(&str, u64), TopWebhook> = BTreeMap::new();
    for PendingDelivery { key, .. } in deliveries {
        let count = counts
            .entry((key.account.as_str(), key.webhook.get()))
            .or_insert_with(|| TopWebhook {
                account: key.account.clone(),
                webhook: key.webhook,
                pending: 0,
            });
        count.pending += 1;
    }
    let mut top_webhooks: Vec<_> = counts.into_values().collect();
    top_webhooks.sort_by_key(|top| Reverse(top.pending));
    top_webhooks.truncate(TOP_WEBHOOKS);
    top_webhooks
}

fn write_row(out: &mut impl Write, label: &str, text: &str) -> std::io::Result<()> {
    writeln!(out, "{label:<13} {text}")
}

fn format_webhook(account: &AccountId, webhook: WebhookId) -> String {
    let account = escape_for_terminal(account.as_str());
    format!("account {account}, webhook {webhook}")
}

#[cfg(test)]
mod tests {
    use nano_webhooks_core::event::EventId;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(10);

    fn pending_delivery(webhook: u64, due_at: i64) -> PendingDelivery {
        PendingDelivery {
            key: DeliveryKey {
                account: AccountId::parse("acme").unwrap(),
                webhook: WebhookId::new(webhook).unwrap(),
                event: EventId::parse("evt_01JFSFB4807P0XDV4PAY2Y4PMB").unwrap(),
            },
            due_at: Timestamp::from_millis(due_at),
        }
    }

    fn same_shard(count: usize) -> String {
        let deliveries: Vec<_> = (0..count).map(|_| pending_delivery(1, 10)).collect();
        let mut out = Vec::new();
        PendingStats::from_deliveries(&deliveries, NOW)
            .write(&mut out, NOW)
            .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn pending_deliveries_are_counted_by_due_time() {
        let deliveries = [(1, 10), (2, 7), (2, 8), (2, 30), (3, 20)]
            .map(|(webhook, due_at)| pending_delivery(webhook, due_at));
        let stats = PendingStats::from_deliveries(&deliveries, NOW);
        assert_eq!((stats.overdue.value, stats.waiting.value), (3, 2));
        assert_eq!(stats.oldest_due_at, Some(Timestamp::from_millis(7)));
        assert_eq!(stats.next_due_at, Some(Timestamp::from_millis(20)));
        assert!(stats.overdue.is_complete);
        let top_webhooks: Vec<_> = stats
            .top_webhooks
            .iter()
            .map(|top| (top.webhook.get(), top.pending))
            .collect();
        assert_eq!(top_webhooks, [(2, 3), (1, 1), (3, 1)]);
    }

    /// A shard that was not read to its end makes all counts lower bounds.
    #[test]
    fn full_shard_makes_counts_incomplete() {
        assert!(
            same_shard(MAX_COUNTED_PER_SHARD)
                .starts_with("Overdue       at least 6250 deliveries, the oldest since 1970-")
        );
        assert!(
            same_shard(MAX_COUNTED_PER_SHARD - 1).starts_with("Overdue       6249 deliveries, ")
        );
    }
}
