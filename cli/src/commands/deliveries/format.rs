//! A delivery as text for a terminal.

use std::fmt::{self, Write};

use nano_webhooks::store::webhooks::WebhookRecord;
use nano_webhooks_core::{
    delivery::{
        Delivery, DeliveryState, attempt::Attempt, status::DeliveryStatus, timings::PhaseTimings,
        wait_reason::WaitReason,
    },
    timestamp::Timestamp,
};

use crate::terminal::{escape_for_terminal, format_relative, pluralize};

/// Formats a delivery with its attempts. `webhook` is `None` if it was deleted.
pub fn format_delivery(
    delivery: &Delivery,
    webhook: Option<&WebhookRecord>,
    now: Timestamp,
) -> String {
    let mut text = String::new();
    write_delivery(&mut text, delivery, webhook, now).expect("writing to a string succeeds");
    text
}

fn write_delivery(
    out: &mut String,
    delivery: &Delivery,
    webhook: Option<&WebhookRecord>,
    now: Timestamp,
) -> fmt::Result {
    let reason = webhook.map(|webhook| explain_wait(delivery, webhook));
    let key = &delivery.key;
    let account = escape_for_terminal(key.account.as_str());
    writeln!(
        out,
        "Delivery {} to webhook {} of account {account}",
        key.event, key.webhook
    )?;
    writeln!(out, "  event     {}", delivery.event_type.as_str())?;
    if let Some(task_id) = &delivery.task_id {
        writeln!(out, "  job       {}", escape_for_terminal(task_id))?;
    }
    let created_at = format_relative(delivery.created_at, now);
    writeln!(out, "  created   {created_at}")?;
    writeln!(out, "  url       {}", escape_for_terminal(&delivery.url))?;
    writeln!(
        out,
        "  payload   {}",
        escape_for_terminal(&delivery.payload)
    )?;
    let status = describe_status(delivery, webhook.is_none());
    let attempts = pluralize_attempts(delivery.attempt_count);
    writeln!(out, "  status    {status} after {attempts}")?;
    let next_step = describe_next_step(delivery, reason, now);
    writeln!(out, "  next      {next_step}")?;
    for attempt in &delivery.attempts {
        write_attempt(out, delivery, attempt, now)?;
    }
    Ok(())
}

/// Pending deliveries of a deleted webhook count as cancelled, even if that is not stored yet.
const fn describe_status(delivery: &Delivery, is_webhook_deleted: bool) -> &'static str {
    match delivery.state {
        DeliveryState::Pending(_) | DeliveryState::Paused if is_webhook_deleted => {
            DeliveryStatus::Cancelled.as_str()
        }
        _ => delivery.state.status().as_str(),
    }
}

fn explain_wait(delivery: &Delivery, webhook: &WebhookRecord) -> WaitReason {
    let next_attempt_at = match delivery.state {
        DeliveryState::Pending(due_at) => Some(due_at),
        _ => None,
    };
    webhook.explain_wait(next_attempt_at, delivery.waiting_for)
}

/// Describes what happens next. `reason` is why the delivery waits if it is pending, and `None` if
/// its webhook was deleted.
fn describe_next_step(delivery: &Delivery, reason: Option<WaitReason>, now: Timestamp) -> String {
    let next_step = match delivery.state {
        DeliveryState::Delivered => return "none: the endpoint accepted the event".to_owned(),
        DeliveryState::Failed => "none, unless it is retried or replayed".to_owned(),
        DeliveryState::Cancelled | DeliveryState::Pending(_) | DeliveryState::Paused
            if reason.is_none() =>
        {
            return "none: the webhook is deleted".to_owned();
        }
        DeliveryState::Cancelled => "none: the webhook does not subscribe to the event".to_owned(),
        DeliveryState::Paused => "an attempt".to_owned(),
        DeliveryState::Pending(_) if reason.is_some_and(|reason| !reason.allows_attempt()) => {
            "an attempt".to_owned()
        }
        DeliveryState::Pending(due_at) if due_at <= now => format!(
            "an attempt, due since {} or in flight",
            format_relative(due_at, now)
        ),
        DeliveryState::Pending(due_at) => {
            format!("an attempt at {}", format_relative(due_at, now))
        }
    };
    next_step + describe_reason(delivery, reason) + &describe_request(delivery)
}

/// Says what a pending delivery waits for if it is not its time.
fn describe_reason(delivery: &Delivery, reason: Option<WaitReason>) -> &'static str {
    if delivery.state.status() != DeliveryStatus::Pending {
        return "";
    }
    match reason {
        Some(WaitReason::Endpoint) => " when the endpoint responds again",
        Some(WaitReason::Webhook) => " when the webhook is enabled",
        Some(WaitReason::Rate) => ", spaced in time from others to the endpoint",
        Some(WaitReason::Secret) => " if the webhook's secret and headers can be decrypted by then",
        Some(WaitReason::Schedule) | None => "",
    }
}

/// Says who requested the next attempt if it is not a scheduled one.
fn describe_request(delivery: &Delivery) -> String {
    match (&delivery.state_before_retry, &delivery.replay) {
        (None, _) => String::new(),
        (Some(_), Some(replay)) => format!(", requested by replay {replay}"),
        (Some(previous), None) => format!(
            ", requested by a manual retry (if it fails: {} as before)",
            previous.status().as_str()
        ),
    }
}

fn write_attempt(
    out: &mut String,
    delivery: &Delivery,
    attempt: &Attempt,
    now: Timestamp,
) -> fmt::Result {
    let response = match attempt.status_code {
        Some(status) => format!("status {status}"),
        None => "no response".to_owned(),
    };
    writeln!(
        out,
        "\nAttempt {} at {}: {response} after {} ms",
        attempt.number,
        format_relative(attempt.started_at, now),
        attempt.duration_ms
    )?;
    let timings = format_timings(&attempt.timings);
    if !timings.is_empty() {
        writeln!(out, "  timings   {timings}")?;
    }
    if let Some(kind) = attempt.failure {
        let detail = escape_for_terminal(attempt.detail.as_deref().unwrap_or_default());
        writeln!(out, "  failure   {}: {detail}", kind.as_str())?;
    }
    if let Some(excerpt) = &attempt.response_excerpt {
        writeln!(out, "  response  {}", escape_for_terminal(excerpt))?;
    }
    let headers = attempt.logged_headers(
        &delivery.key.event,
        delivery.event_type,
        delivery.traceparent.as_ref(),
    );
    for (name, value) in headers {
        writeln!(out, "  sent      {name}: {value}")?;
    }
    Ok(())
}

/// Formats the phases that took place, such as `connect 0.4 ms, wait 12.0 ms`.
fn format_timings(timings: &PhaseTimings) -> String {
    let phases = [
        ("dns", timings.dns),
        ("connect", timings.connect),
        ("tls", timings.tls),
        ("wait", timings.wait),
        ("receive", timings.receive),
    ];
    let mut parts = Vec::new();
    for (name, micros) in phases {
        if let Some(micros) = micros {
            parts.push(format!(
                "{name} {}.{} ms",
                micros / 1_000,
                micros % 1_000 / 100
            ));
        }
    }
    parts.join(", ")
}

fn pluralize_attempts(count: u32) -> String {
    pluralize(count as usize, "attempt", "attempts")
}

#[cfg(test)]
mod tests {
    use nano_webhooks_core::{
        account_id::AccountId, delivery::DeliveryKey, event::EventId, event_type::EventType,
        replay::ReplayId, webhook::WebhookId,
    };

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(0);

    fn delivery(state: DeliveryState) -> Delivery {
        let key = DeliveryKey {
            account: AccountId::parse("acme").unwrap(),
            webhook: WebhookId::new(3).unwrap(),
            event: EventId::parse("evt_01JFSFB4807P0XDV4PAY2Y4PMB").unwrap(),
        };
        let url = String::new();
        let new = Delivery::new(key, EventType::JobFailed, None, url, "{}".into(), NOW);
        Delivery { state, ..new }
    }

    fn pending(due_at: i64) -> DeliveryState {
        DeliveryState::Pending(Timestamp::from_millis(due_at))
    }

    #[test]
    fn next_step_depends_on_state() {
        use WaitReason::{Endpoint, Rate, Schedule, Secret, Webhook};
        for (state, reason, expected) in [
            (
                pending(240_000),
                Schedule,
                "an attempt at 1970-01-01T00:04:00Z (in 4 min)",
            ),
            (
                pending(-1000),
                Schedule,
                "an attempt, due since 1969-12-31T23:59:59Z (1 s ago) or in flight",
            ),
            (
                pending(1000),
                Secret,
                "an attempt at 1970-01-01T00:00:01Z (in 1 s) if the webhook's secret and \
                 headers can be decrypted by then",
            ),
            (
                DeliveryState::Paused,
                Webhook,
                "an attempt when the webhook is enabled",
            ),
            (
                DeliveryState::Paused,
                Endpoint,
                "an attempt when the endpoint responds again",
            ),
            (
                DeliveryState::Paused,
                Rate,
                "an attempt, spaced in time from others to the endpoint",
            ),
            (
                DeliveryState::Cancelled,
                Schedule,
                "none: the webhook does not subscribe to the event",
            ),
            (
                DeliveryState::Failed,
                Schedule,
                "none, unless it is retried or replayed",
            ),
        ] {
            let delivery = delivery(state);
            assert_eq!(describe_next_step(&delivery, Some(reason), NOW), expected);
            assert_eq!(describe_status(&delivery, false), state.status().as_str());
        }
    }

    #[test]
    fn deleted_webhook_cancels_pending_deliveries() {
        for (state, status, expected) in [
            (pending(1), "cancelled", "none: the webhook is deleted"),
            (
                DeliveryState::Paused,
                "cancelled",
                "none: the webhook is deleted",
            ),
            (
                DeliveryState::Cancelled,
                "cancelled",
                "none: the webhook is deleted",
            ),
            (
                DeliveryState::Delivered,
                "delivered",
                "none: the endpoint accepted the event",
            ),
        ] {
            let delivery = delivery(state);
            assert_eq!(describe_next_step(&delivery, None, NOW), expected);
            assert_eq!(describe_status(&delivery, true), status);
        }
    }

    #[test]
    fn next_step_names_request() {
        let retried = Delivery {
            state_before_retry: Some(DeliveryState::Failed),
            ..delivery(pending(1000))
        };
        assert_eq!(
            describe_next_step(&retried, Some(WaitReason::Schedule), NOW),
            "an attempt at 1970-01-01T00:00:01Z (in 1 s), requested by a manual retry (if it \
             fails: failed as before)"
        );
        let replayed = Delivery {
            replay: ReplayId::parse("rpl_0123456789abcdef"),
            ..retried
        };
        assert_eq!(
            describe_next_step(&replayed, Some(WaitReason::Schedule), NOW),
            "an attempt at 1970-01-01T00:00:01Z (in 1 s), requested by replay rpl_0123456789abcdef"
        );
    }
}
