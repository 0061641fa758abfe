//! `stats`: what stands in the tables, as far as indexes and small partitions tell it; no table is scanned.

use std::{cmp::Reverse, collections::BTreeMap, io::Write};

use serde_json::{Value, json};

use super::{
    escape_for_terminal, explain, format_relative, open_store, pluralize, poison::days_to_list,
    progress::progress,
};
use crate::args::{CliError, StatsArgs, TablesArgs};
use nano_webhooks::{
    clock::Clock,
    concurrency,
    store::{
        self, Store,
        delivery_log::{DeliveryFilter, DeliveryStatus},
        key_schema::{self, DUE_SHARDS},
        replays::ReplayKey,
        resume::ResumeJob,
        webhooks::WebhookRecord,
    },
};
use nano_webhooks_core::{
    account_id::AccountId, delivery::DeliveryKey, timestamp::Timestamp, webhook::WebhookId,
};

/// How many entries of the index `due` are read, beyond which the counts are "at least".
const MAX_COUNTED: usize = 100_000;
/// How many poison records of a day are counted.
const MAX_COUNTED_POISON: usize = 10_000;
/// How many deliveries of a webhook in a state are counted.
const MAX_COUNTED_PER_WEBHOOK: usize = 10_000;
/// How many of them are read at a time.
const PAGE: usize = 500;
/// How many webhooks are named that most is pending to.
const TOP_WEBHOOKS: usize = 5;
/// How many webhooks are named whose deliveries are being replayed, or made due again.
const MAX_ACTIVE_JOBS: usize = 2_000;
/// How many days, and how many webhooks, are read at the same time.
const CONCURRENT: usize = 8;

/// Counts.
pub(crate) async fn run(args: StatsArgs) -> Result<(), CliError> {
    let StatsArgs {
        account,
        json,
        tables,
    } = args;
    match account {
        None => print_global(json, &tables).await,
        Some(account) => print_account(&account, json, &tables).await,
    }
}

async fn print_global(json: bool, tables: &TablesArgs) -> Result<(), CliError> {
    let (store, now) = (open_store(tables).await?, Clock::system().now());
    let explain = |error: store::Error| explain(&error, tables);
    let days = days_to_list(None, now)?;
    let bar = progress(
        "Counting what is pending, then poison by day:",
        Some(days.len()),
    );
    let due = store
        .due_index()
        .list_due(Timestamp::from_millis(i64::MAX), of_each_shard())
        .await
        .map_err(explain)?;
    let due: Vec<_> = due
        .into_iter()
        .map(|due| (due.key, due.next_attempt_at))
        .collect();
    let pending = PendingStats::of(&due, now);
    let counts = days.into_iter().map(async |day| {
        let counted = store.poison().count(&day, MAX_COUNTED_POISON).await;
        bar.inc(1);
        counted.map(|(count, complete)| (day, count, complete))
    });
    let counts = concurrency::join_bounded(counts.collect(), CONCURRENT).await;
    let mut poison = counts
        .into_iter()
        .collect::<store::Result<Vec<_>>>()
        .map_err(explain)?;
    poison.retain(|(_, count, _)| *count > 0);
    poison.sort_by(|(one, ..), (other, ..)| other.cmp(one));
    let replaying = store
        .replays()
        .list_active(MAX_ACTIVE_JOBS)
        .await
        .map_err(explain)?;
    let unparking = store
        .resumes()
        .list(MAX_ACTIVE_JOBS)
        .await
        .map_err(explain)?;
    drop(bar);

    let mut out = std::io::stdout();
    if json {
        let poison: Vec<_> = poison
            .iter()
            .map(|(day, count, complete)| json!({ "day": day, "records": count, "complete": complete }))
            .collect();
        let replaying = replaying.iter().map(|ReplayKey { account, webhook, id }| {
            json!({ "account": account.as_str(), "webhook_id": webhook.get(), "replay": id.as_str() })
        });
        let unparking = unparking.iter().map(
            |ResumeJob {
                 account, webhook, ..
             }| json!({ "account": account.as_str(), "webhook_id": webhook.get() }),
        );
        let (replaying, unparking): (Vec<_>, Vec<_>) = (replaying.collect(), unparking.collect());
        let stats = json!({ "pending": pending.json(), "poison": poison, "replaying": replaying, "unparking": unparking });
        return Ok(writeln!(out, "{stats}")?);
    }
    pending.print(&mut out, now)?;
    if poison.is_empty() {
        writeln!(out, "Poison     no records")?;
    }
    for (day, count, complete) in poison {
        writeln!(
            out,
            "Poison     {day}: {}{}",
            at_least(complete),
            pluralize(count, "record", "records")
        )?;
    }
    for ReplayKey {
        account,
        webhook,
        id,
    } in replaying
    {
        writeln!(
            out,
            "Replayed   account {}, webhook {webhook}: {id}",
            escape_for_terminal(account.as_str())
        )?;
    }
    for ResumeJob {
        account, webhook, ..
    } in unparking
    {
        writeln!(
            out,
            "Unparked   account {}, webhook {webhook}",
            escape_for_terminal(account.as_str())
        )?;
    }
    Ok(())
}

/// What the index `due` holds: what is pending and not parked.
struct PendingStats {
    overdue: usize,
    oldest: Option<Timestamp>,
    waiting: usize,
    next: Option<Timestamp>,
    /// Every entry was read.
    complete: bool,
    /// The webhooks that most is pending to.
    most: Vec<(AccountId, WebhookId, usize)>,
}

const fn of_each_shard() -> usize {
    MAX_COUNTED / DUE_SHARDS as usize
}

impl PendingStats {
    /// From what names each entry, and when its next attempt is due.
    fn of(entries: &[(DeliveryKey, Timestamp)], now: Timestamp) -> Self {
        let (overdue, waiting): (Vec<_>, Vec<_>) = entries
            .iter()
            .map(|(_, due_at)| *due_at)
            .partition(|due_at| *due_at <= now);
        let (mut shards, mut webhooks) = (BTreeMap::new(), BTreeMap::new());
        for (key, _) in entries {
            *shards.entry(key_schema::due_shard(&key.event)).or_insert(0) += 1;
            webhooks
                .entry((key.account.as_str(), key.webhook.get()))
                .or_insert((key, 0))
                .1 += 1;
        }
        let mut most: Vec<_> = webhooks
            .into_values()
            .map(|(key, count)| (key.account.clone(), key.webhook, count))
            .collect();
        most.sort_by_key(|(.., count)| Reverse(*count));
        most.truncate(TOP_WEBHOOKS);
        Self {
            overdue: overdue.len(),
            oldest: overdue.into_iter().min(),
            waiting: waiting.len(),
            next: waiting.into_iter().min(),
            complete: shards.into_values().all(|count| count < of_each_shard()),
            most,
        }
    }

    fn json(&self) -> Value {
        let most = self.most.iter().map(
            |(account, webhook, count)| json!({ "account": account.as_str(), "webhook_id": webhook.get(), "pending": count }),
        );
        json!({
            "overdue": self.overdue,
            "oldest_due_at": self.oldest.map(Timestamp::to_rfc3339),
            "waiting": self.waiting,
            "next_due_at": self.next.map(Timestamp::to_rfc3339),
            "complete": self.complete,
            "most": most.collect::<Vec<_>>(),
        })
    }

    fn print(&self, out: &mut impl Write, now: Timestamp) -> std::io::Result<()> {
        let at_least = at_least(self.complete);
        let since = self.oldest.map_or_else(String::new, |at| {
            format!(", the oldest since {}", format_relative(at, now))
        });
        writeln!(
            out,
            "Overdue    {at_least}{}{since}",
            pluralize(self.overdue, "delivery", "deliveries")
        )?;
        let next = self.next.map_or_else(String::new, |at| {
            format!(", the next due at {}", format_relative(at, now))
        });
        writeln!(
            out,
            "Waiting    {at_least}{}{next}",
            pluralize(self.waiting, "delivery", "deliveries")
        )?;
        for (account, webhook, count) in &self.most {
            writeln!(
                out,
                "Most to    account {}, webhook {webhook}: {count}",
                escape_for_terminal(account.as_str())
            )?;
        }
        Ok(())
    }
}

const fn at_least(complete: bool) -> &'static str {
    if complete { "" } else { "at least " }
}

async fn print_account(
    account: &AccountId,
    json: bool,
    tables: &TablesArgs,
) -> Result<(), CliError> {
    let (store, now) = (open_store(tables).await?, Clock::system().now());
    let explain = |error: store::Error| explain(&error, tables);
    let subscribers = store
        .webhooks()
        .list_records(account)
        .await
        .map_err(explain)?;
    let (subscribers, unreadable): (Vec<_>, Vec<_>) =
        subscribers.into_iter().partition(Result::is_ok);
    let subscribers: Vec<WebhookRecord> = subscribers.into_iter().flatten().collect();
    if subscribers.is_empty() && unreadable.is_empty() {
        writeln!(std::io::stderr(), "Account {account} has no webhooks.")?;
    }
    let bar = progress("Counting deliveries of webhooks:", Some(subscribers.len()));
    let counts = subscribers.into_iter().map(async |subscriber| {
        let counts = WebhookStats::of(&store, account, subscriber, now).await;
        bar.inc(1);
        counts
    });
    let counts = concurrency::join_bounded(counts.collect(), CONCURRENT).await;
    let mut counts = counts
        .into_iter()
        .collect::<store::Result<Vec<_>>>()
        .map_err(explain)?;
    counts.sort_by_key(|counts| counts.of.webhook.id.get());
    drop(bar);
    let mut out = std::io::stdout();
    for counts in counts {
        if json {
            writeln!(out, "{}", counts.json())?;
        } else {
            counts.print(&mut out, now)?;
        }
    }
    if unreadable.is_empty() {
        return Ok(());
    }
    let unreadable = pluralize(unreadable.len(), "webhook", "webhooks");
    Err(CliError(format!(
        "{unreadable} of account {account} cannot be read and left out"
    )))
}

/// A webhook, and how many of its deliveries are in a state.
struct WebhookStats {
    of: WebhookRecord,
    pending: usize,
    overdue: usize,
    parked: usize,
    pending_complete: bool,
    failed: usize,
    failed_complete: bool,
}

impl WebhookStats {
    async fn of(
        store: &Store,
        account: &AccountId,
        of: WebhookRecord,
        now: Timestamp,
    ) -> store::Result<Self> {
        let id = of.webhook.id;
        let (pending, pending_complete) =
            next_attempts(store, account, id, DeliveryStatus::Pending).await?;
        let (failed, failed_complete) =
            next_attempts(store, account, id, DeliveryStatus::Failed).await?;
        Ok(Self {
            of,
            pending: pending.len(),
            overdue: pending
                .iter()
                .flatten()
                .filter(|due_at| **due_at <= now)
                .count(),
            parked: pending.iter().filter(|due_at| due_at.is_none()).count(),
            pending_complete,
            failed: failed.len(),
            failed_complete,
        })
    }

    fn json(&self) -> Value {
        let WebhookRecord {
            webhook,
            health,
            detail,
            ..
        } = &self.of;
        json!({
            "webhook_id": webhook.id.get(),
            "url": webhook.url.as_str(),
            "status": webhook.status.as_str(),
            "disabled_reason": detail.disabled_reason,
            "health": {
                "state": health.label(),
                "breaker_open": health.is_open(),
                "failing_since": health.failing_since.map(Timestamp::to_rfc3339),
                "last_success_at": health.first_success_after_failure_at.map(Timestamp::to_rfc3339),
                "last_failure": health.last_failure,
            },
            "pending": { "count": self.pending, "overdue": self.overdue, "parked": self.parked, "complete": self.pending_complete },
            "failed": { "count": self.failed, "complete": self.failed_complete },
        })
    }

    fn print(&self, out: &mut impl Write, now: Timestamp) -> std::io::Result<()> {
        let WebhookRecord {
            webhook,
            health,
            detail,
            ..
        } = &self.of;
        let reason = detail
            .disabled_reason
            .as_ref()
            .map_or_else(String::new, |why| format!(": {}", escape_for_terminal(why)));
        writeln!(
            out,
            "Webhook {}  {}  {}{reason}",
            webhook.id,
            escape_for_terminal(webhook.url.as_str()),
            webhook.status.as_str()
        )?;
        let since = health.failing_since.map_or_else(String::new, |at| {
            format!(" since {}", format_relative(at, now))
        });
        let last = health.last_failure.map_or_else(String::new, |kind| {
            format!(", last failure {}", kind.as_str())
        });
        let open = if health.is_open() {
            ", breaker open"
        } else {
            ""
        };
        writeln!(out, "  health   {}{since}{last}{open}", health.label())?;
        let Self {
            pending,
            overdue,
            parked,
            failed,
            ..
        } = self;
        let pending_at_least = at_least(self.pending_complete);
        writeln!(
            out,
            "  pending  {pending_at_least}{pending}, of which {overdue} overdue, {parked} parked"
        )?;
        writeln!(out, "  failed   {}{failed}", at_least(self.failed_complete))
    }
}

/// When the next attempts of a webhook's deliveries in a state are due, and whether these are all deliveries in it.
async fn next_attempts(
    store: &Store,
    account: &AccountId,
    id: WebhookId,
    status: DeliveryStatus,
) -> store::Result<(Vec<Option<Timestamp>>, bool)> {
    let mut filter = DeliveryFilter {
        status: Some(status),
        event: None,
        after: None,
        limit: PAGE,
    };
    let mut found = Vec::new();
    loop {
        let page = store.delivery_log().list(account, id, &filter).await?;
        found.extend(
            page.deliveries
                .iter()
                .map(|listed| listed.row.next_attempt_at),
        );
        filter.after = page.next;
        if filter.after.is_none() || found.len() >= MAX_COUNTED_PER_WEBHOOK {
            return Ok((found, filter.after.is_none()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nano_webhooks_core::event::EventId;

    fn entry(webhook: u64, due_at: i64) -> (DeliveryKey, Timestamp) {
        let key = DeliveryKey {
            account: AccountId::parse("acme").unwrap(),
            webhook: WebhookId::new(webhook).unwrap(),
            event: EventId::parse("evt_01JFSFB4807P0XDV4PAY2Y4PMB").unwrap(),
        };
        (key, Timestamp::from_millis(due_at))
    }

    #[test]
    fn what_is_pending_is_told_by_when_it_is_due_and_by_webhook() {
        let entries = [
            entry(1, 10),
            entry(2, 7),
            entry(2, 8),
            entry(2, 30),
            entry(3, 20),
        ];
        let pending = PendingStats::of(&entries, Timestamp::from_millis(10));
        assert_eq!(
            (pending.overdue, pending.oldest),
            (3, Some(Timestamp::from_millis(7)))
        );
        assert_eq!(
            (pending.waiting, pending.next),
            (2, Some(Timestamp::from_millis(20)))
        );
        let most: Vec<_> = pending
            .most
            .iter()
            .map(|(_, webhook, count)| (webhook.get(), *count))
            .collect();
        assert_eq!(most, [(2, 3), (1, 1), (3, 1)]);
        assert!(pending.complete);
    }

    #[test]
    fn a_shard_that_was_not_read_to_its_end_makes_the_counts_the_least_that_there_is() {
        let mut entries = vec![entry(1, 10); of_each_shard()];
        let printed = |entries: &[_]| {
            let mut out = Vec::new();
            PendingStats::of(entries, Timestamp::from_millis(10))
                .print(&mut out, Timestamp::from_millis(10))
                .unwrap();
            String::from_utf8(out).unwrap()
        };
        assert!(
            printed(&entries)
                .starts_with("Overdue    at least 6250 deliveries, the oldest since 1970-")
        );
        entries.pop();
        assert!(printed(&entries).starts_with("Overdue    6249 deliveries, "));
    }
}
