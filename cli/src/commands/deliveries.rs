//! `deliveries`: the delivery log of an account, as the API has it.

use std::{cmp::Reverse, fmt::Write as _, io::Write};

use serde::Serialize;

use super::{escape_for_terminal, explain, format_relative, load_config, open_store, pluralize};
use crate::args::{CliError, DeliveriesCommand, DeliveryArgs, TablesArgs};
use nano_webhooks::{
    api::deliveries::{DeliveryResponse, DeliverySummaryResponse},
    clock::Clock,
    concurrency,
    store::{
        self, Store,
        delivery_log::{DeliveryFilter, DeliveryStatus, DeliverySummary},
    },
};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{Delivery, DeliveryKey, DeliveryState, attempt::Attempt, timings::PhaseTimings},
    timestamp::Timestamp,
    webhook::{WebhookId, WebhookStatus},
};

/// How many pages of a webhook's log are read at most, of 500 items each, however few of them are asked for.
const MAX_PAGES: usize = 20;
/// How many webhooks' logs are read at the same time.
const CONCURRENT: usize = 8;

/// Does a command on deliveries.
pub(crate) async fn run(command: DeliveriesCommand) -> Result<(), CliError> {
    match command {
        DeliveriesCommand::List {
            account,
            webhook,
            status,
            event,
            limit,
            json,
            tables,
        } => {
            let filter = DeliveryFilter {
                status,
                event,
                after: None,
                limit,
            };
            list(&account, webhook, &filter, json, &tables).await
        }
        DeliveriesCommand::Show {
            delivery,
            json,
            tables,
        } => show(delivery, json, &tables).await,
        DeliveriesCommand::Retry { delivery, tables } => retry(delivery, &tables).await,
    }
}

/// A delivery as it is listed, with its webhook.
#[derive(Serialize)]
struct ListedDelivery {
    webhook_id: u64,
    #[serde(flatten)]
    row: DeliverySummaryResponse,
}

/// A webhook's newest deliveries.
struct WebhookPage {
    webhook: WebhookId,
    deleted: bool,
    listed: Vec<DeliverySummary>,
    /// There may be others.
    more: bool,
}

async fn list(
    account: &AccountId,
    webhook: Option<WebhookId>,
    filter: &DeliveryFilter,
    json: bool,
    tables: &TablesArgs,
) -> Result<(), CliError> {
    let (store, now, mut err) = (
        open_store(tables).await?,
        Clock::system().now(),
        std::io::stderr(),
    );
    let explain = |error: store::Error| explain(&error, tables);
    let webhooks = resolve_webhooks(&store, account, webhook, tables).await?;
    let newest = webhooks
        .into_iter()
        .map(|(id, deleted)| newest(&store, account, id, deleted, filter))
        .collect();
    let newest = concurrency::join_bounded(newest, CONCURRENT)
        .await
        .into_iter()
        .collect::<store::Result<Vec<_>>>()
        .map_err(explain)?;
    let more = newest.iter().any(|of| of.more)
        || newest.iter().map(|of| of.listed.len()).sum::<usize>() > filter.limit;
    let mut listed: Vec<_> = newest
        .into_iter()
        .flat_map(
            |WebhookPage {
                 webhook,
                 deleted,
                 listed,
                 ..
             }| listed.into_iter().map(move |one| (webhook, deleted, one)),
        )
        .collect();
    // Ids begin with the time. Of one event the webhooks stand in their order.
    let place = |(webhook, _, one): &(WebhookId, bool, DeliverySummary)| {
        (Reverse(one.event_id.clone()), webhook.get())
    };
    listed.sort_by_cached_key(place);
    let mut out = std::io::stdout();
    for (webhook, deleted, one) in listed.into_iter().take(filter.limit) {
        if json {
            let row = ListedDelivery {
                webhook_id: webhook.get(),
                row: DeliverySummaryResponse::from(one).of_webhook(deleted),
            };
            writeln!(out, "{}", serde_json::to_string(&row)?)?;
        } else {
            writeln!(out, "{}", format_line(webhook, deleted, &one, now))?;
        }
    }
    if more {
        writeln!(
            err,
            "There may be more: narrow the search, or raise --limit."
        )?;
    }
    Ok(())
}

/// The newest deliveries to a webhook, as far as they are asked for.
async fn newest(
    store: &Store,
    account: &AccountId,
    webhook: WebhookId,
    deleted: bool,
    filter: &DeliveryFilter,
) -> store::Result<WebhookPage> {
    let mut newest = WebhookPage {
        webhook,
        deleted,
        listed: Vec::new(),
        more: false,
    };
    // What was pending to a webhook that is deleted is cancelled, also where that is not written yet.
    if deleted && filter.status == Some(DeliveryStatus::Pending) {
        return Ok(newest);
    }
    let mut filter = filter.clone();
    for _ in 0..MAX_PAGES {
        let page = store.delivery_log().list(account, webhook, &filter).await?;
        filter.limit -= page.deliveries.len();
        newest.listed.extend(page.deliveries);
        newest.more = page.next.is_some();
        filter.after = page.next;
        if !newest.more || filter.limit == 0 {
            break;
        }
    }
    Ok(newest)
}

fn format_line(webhook: WebhookId, deleted: bool, one: &DeliverySummary, now: Timestamp) -> String {
    let DeliverySummary { event_id, row } = one;
    let (status, next) = match (&*row.status, row.next_attempt_at) {
        ("pending", _) if deleted => ("cancelled", String::new()),
        ("pending", Some(at)) => ("pending", format!(", next {}", format_relative(at, now))),
        ("pending", None) => ("pending", ", parked".to_owned()),
        (status, _) => (status, String::new()),
    };
    let failed = row.last_failure.map_or_else(String::new, |kind| {
        format!(", last failure {}", kind.as_str())
    });
    let job = row.task_id.as_ref().map_or_else(String::new, |task| {
        format!("  {}", escape_for_terminal(task))
    });
    let attempts = pluralize(row.attempt_count as usize, "attempt", "attempts");
    let created_at = row.created_at.to_rfc3339();
    format!(
        "{event_id}  webhook {webhook}  {created_at}  {}{job}  {status}, {attempts}{failed}{next}",
        row.event
    )
}

async fn show(args: DeliveryArgs, json: bool, tables: &TablesArgs) -> Result<(), CliError> {
    let store = open_store(tables).await?;
    let explain = |error: store::Error| explain(&error, tables);
    let delivery = find(&store, args, tables).await?;
    let DeliveryKey {
        account, webhook, ..
    } = &delivery.key;
    let deleted = store
        .webhooks()
        .get_record(account, *webhook)
        .await
        .map_err(explain)?
        .is_none();
    let mut out = std::io::stdout();
    if json {
        return Ok(writeln!(
            out,
            "{}",
            serde_json::to_string(&DeliveryResponse::from(&delivery).of_webhook(deleted))?
        )?);
    }
    Ok(write!(
        out,
        "{}",
        format_delivery(&delivery, deleted, Clock::system().now())
    )?)
}

/// What a delivery's status is, and what happens next.
fn status(delivery: &Delivery, deleted: bool, now: Timestamp) -> (&'static str, String) {
    let status = delivery.state.as_str();
    let next = match delivery.state {
        // Also where that is not written yet.
        DeliveryState::Pending(_) | DeliveryState::Paused if deleted => {
            return (
                DeliveryStatus::Cancelled.as_str(),
                "nothing: the webhook is deleted".to_owned(),
            );
        }
        DeliveryState::Pending(at) if at <= now => format!(
            "an attempt, due since {} or in flight",
            format_relative(at, now)
        ),
        DeliveryState::Pending(at) => format!("an attempt at {}", format_relative(at, now)),
        DeliveryState::Paused => format!(
            "an attempt once webhook {} is enabled again",
            delivery.key.webhook
        ),
        DeliveryState::Delivered => "nothing: it was accepted".to_owned(),
        DeliveryState::Failed => "nothing, unless a retry or a replay is asked for".to_owned(),
        DeliveryState::Cancelled => "nothing: the webhook was deleted".to_owned(),
    };
    let asked = match (&delivery.state_before_retry, &delivery.replay) {
        (None, _) => String::new(),
        (Some(_), Some(replay)) => format!(", asked for by replay {replay}"),
        (Some(before), None) => format!(
            ", asked for by a person (if it fails: {} as before)",
            before.as_str()
        ),
    };
    (status, next + &asked)
}

fn format_delivery(delivery: &Delivery, deleted: bool, now: Timestamp) -> String {
    let DeliveryKey {
        account,
        webhook,
        event,
    } = &delivery.key;
    let (status, next) = status(delivery, deleted, now);
    let mut out = format!(
        "Delivery {event} to webhook {webhook} of account {}\n  event     {}\n",
        escape_for_terminal(account.as_str()),
        delivery.event_type.as_str()
    );
    if let Some(task) = &delivery.task_id {
        let _ = writeln!(out, "  job       {}", escape_for_terminal(task));
    }
    let _ = writeln!(
        out,
        "  created   {}",
        format_relative(delivery.created_at, now)
    );
    let _ = writeln!(out, "  url       {}", escape_for_terminal(&delivery.url));
    let _ = writeln!(out, "  payload   {}", escape_for_terminal(&delivery.body));
    let attempts = pluralize(delivery.attempt_count as usize, "attempt", "attempts");
    let _ = writeln!(out, "  status    {status} after {attempts}");
    let _ = writeln!(out, "  next      {next}");
    for attempt in &delivery.attempts {
        describe_attempt(&mut out, delivery, attempt, now);
    }
    out
}

/// Writing to a string cannot fail.
fn describe_attempt(out: &mut String, delivery: &Delivery, attempt: &Attempt, now: Timestamp) {
    let answer = attempt.status_code.map_or_else(
        || "no answer".to_owned(),
        |status| format!("status {status}"),
    );
    let at = format_relative(attempt.started_at, now);
    let _ = writeln!(
        out,
        "\nAttempt {} at {at}: {answer} after {} ms",
        attempt.number, attempt.duration_ms
    );
    let PhaseTimings {
        dns,
        connect,
        tls,
        wait: answer,
        receive: body,
    } = attempt.timings;
    let phases = [
        ("dns", dns),
        ("connect", connect),
        ("tls", tls),
        ("answer", answer),
        ("body", body),
    ];
    let ms = |micros: u64| format!("{}.{} ms", micros / 1_000, micros % 1_000 / 100);
    let phases: Vec<_> = phases
        .iter()
        .filter_map(|(name, took)| Some(format!("{name} {}", ms((*took)?))))
        .collect();
    if !phases.is_empty() {
        let _ = writeln!(out, "  phases    {}", phases.join(", "));
    }
    if let Some(kind) = attempt.failure {
        let detail = attempt.detail.as_deref().unwrap_or_default();
        let _ = writeln!(
            out,
            "  failure   {}: {}",
            kind.as_str(),
            escape_for_terminal(detail)
        );
    }
    if let Some(excerpt) = &attempt.response_excerpt {
        let _ = writeln!(out, "  answered  {}", escape_for_terminal(excerpt));
    }
    for (name, value) in attempt
        .to_request(
            &delivery.key.event,
            delivery.event_type,
            delivery.traceparent.as_ref(),
        )
        .headers()
    {
        let _ = writeln!(out, "  sent      {name}: {value}");
    }
}

async fn retry(args: DeliveryArgs, tables: &TablesArgs) -> Result<(), CliError> {
    let (store, now) = (open_store(tables).await?, Clock::system().now());
    let explain = |error: store::Error| explain(&error, tables);
    let found = find(&store, args, tables).await?;
    let DeliveryKey {
        account,
        webhook,
        event,
    } = &found.key;
    match store
        .webhooks()
        .get_record(account, *webhook)
        .await
        .map_err(explain)?
    {
        None => {
            return Err(CliError(format!(
                "webhook {webhook} of account {account} is deleted: nothing is sent to it"
            )));
        }
        Some(subscriber) if subscriber.webhook.status == WebhookStatus::Disabled => {
            return Err(CliError(format!(
                "webhook {webhook} of account {account} is disabled: enable it first"
            )));
        }
        Some(_) => {}
    }
    let hastened = store
        .leases()
        .schedule_retry_for_sweep(&found, now, load_config()?.retention)
        .await
        .map_err(explain)?;
    if hastened.is_none() {
        return Err(CliError(format!(
            "delivery {event} is being attempted: look at how that goes first, with `deliveries show`"
        )));
    }
    let number = found.attempt_count + 1;
    Ok(writeln!(
        std::io::stdout(),
        "Attempt {number} of {event} to webhook {webhook} is due; the next sweep, within a minute, sends it."
    )?)
}

async fn find(
    store: &Store,
    args: DeliveryArgs,
    tables: &TablesArgs,
) -> Result<Delivery, CliError> {
    let DeliveryArgs {
        account,
        webhook,
        event,
    } = args;
    let missing = format!(
        "account {account} has no delivery {event} to webhook {webhook}; `deliveries list` shows those it has"
    );
    let found = store
        .deliveries()
        .get(&DeliveryKey {
            account,
            webhook,
            event,
        })
        .await
        .map_err(|error| explain(&error, tables))?;
    found.ok_or(CliError(missing))
}

/// The webhooks whose logs are asked for, and whether each was deleted.
async fn resolve_webhooks(
    store: &Store,
    account: &AccountId,
    webhook: Option<WebhookId>,
    tables: &TablesArgs,
) -> Result<Vec<(WebhookId, bool)>, CliError> {
    let explain = |error: store::Error| explain(&error, tables);
    if let Some(id) = webhook {
        let deleted = store
            .webhooks()
            .get_record(account, id)
            .await
            .map_err(explain)?
            .is_none();
        if deleted
            && !store
                .webhooks()
                .ever_existed(account, id)
                .await
                .map_err(explain)?
        {
            return Err(CliError(format!("account {account} has no webhook {id}")));
        }
        return Ok(vec![(id, deleted)]);
    }
    let subscribers = store
        .webhooks()
        .list_records(account)
        .await
        .map_err(explain)?;
    let ids: Vec<_> = subscribers
        .into_iter()
        .flatten()
        .map(|known| known.webhook.id)
        .collect();
    let names = ids
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    let mut err = std::io::stderr();
    if ids.is_empty() {
        writeln!(
            err,
            "Account {account} has no webhooks; the log of a deleted one is listed with --webhook."
        )?;
    } else {
        writeln!(err, "To the webhooks that account {account} has: {names}.")?;
    }
    Ok(ids.into_iter().map(|id| (id, false)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nano_webhooks_core::{event::EventId, event_type::EventType, replay::ReplayId};

    #[test]
    fn it_is_told_what_happens_next() {
        let at = Timestamp::from_millis;
        let key = DeliveryKey {
            account: AccountId::parse("acme").unwrap(),
            webhook: WebhookId::new(3).unwrap(),
            event: EventId::parse("evt_01JFSFB4807P0XDV4PAY2Y4PMB").unwrap(),
        };
        let new = Delivery::new(
            key,
            EventType::JobFailed,
            None,
            String::new(),
            "{}".into(),
            at(0),
        );
        let replay = ReplayId::parse("rpl_0123456789abcdef");
        for (state, resume, replay, deleted, status_now, next) in [
            (
                DeliveryState::Pending(at(240_000)),
                None,
                None,
                false,
                "pending",
                "an attempt at 1970-01-01T00:04:00Z (in 4 min)",
            ),
            (
                DeliveryState::Pending(at(-1000)),
                Some(DeliveryState::Failed),
                None,
                false,
                "pending",
                "an attempt, due since 1969-12-31T23:59:59Z (1 s ago) or in flight, asked for by a person (if it fails: failed as before)",
            ),
            (
                DeliveryState::Pending(at(1000)),
                Some(DeliveryState::Failed),
                replay,
                false,
                "pending",
                "an attempt at 1970-01-01T00:00:01Z (in 1 s), asked for by replay rpl_0123456789abcdef",
            ),
            (
                DeliveryState::Paused,
                None,
                None,
                false,
                "pending",
                "an attempt once webhook 3 is enabled again",
            ),
            (
                DeliveryState::Paused,
                None,
                None,
                true,
                "cancelled",
                "nothing: the webhook is deleted",
            ),
            (
                DeliveryState::Pending(at(1)),
                Some(DeliveryState::Failed),
                None,
                true,
                "cancelled",
                "nothing: the webhook is deleted",
            ),
            (
                DeliveryState::Delivered,
                None,
                None,
                true,
                "delivered",
                "nothing: it was accepted",
            ),
            (
                DeliveryState::Failed,
                None,
                None,
                false,
                "failed",
                "nothing, unless a retry or a replay is asked for",
            ),
            (
                DeliveryState::Cancelled,
                None,
                None,
                true,
                "cancelled",
                "nothing: the webhook was deleted",
            ),
        ] {
            let delivery = Delivery {
                state,
                state_before_retry: resume,
                replay,
                ..new.clone()
            };
            assert_eq!(
                status(&delivery, deleted, at(0)),
                (status_now, next.to_owned())
            );
        }
    }
}
