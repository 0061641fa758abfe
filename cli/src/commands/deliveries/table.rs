//! Deliveries as a table.

use std::{io, sync::Arc};

use anstyle::{AnsiColor, Style};
use nano_webhooks::store::{delivery_log::DeliverySummary, webhooks::WebhookRecord};
use nano_webhooks_core::{
    delivery::{status::DeliveryStatus, wait_reason::WaitReason},
    timestamp::Timestamp,
    webhook::WebhookId,
};

use crate::{table::Table, terminal::format_relative};

/// A delivery in a list.
pub struct ListedDelivery {
    pub webhook: WebhookId,
    /// `None` if the webhook was deleted.
    pub record: Option<Arc<WebhookRecord>>,
    pub summary: DeliverySummary,
}

pub fn print_table(deliveries: &[ListedDelivery], now: Timestamp) -> io::Result<()> {
    let mut table = Table::new([
        "STATUS",
        "EVENT ID",
        "WEBHOOK",
        "CREATED",
        "EVENT",
        "JOB",
        "ATTEMPTS",
        "LAST FAILURE",
        "NEXT ATTEMPT",
    ]);
    for delivery in deliveries {
        let DeliverySummary { event_id, row } = &delivery.summary;
        let status = describe_status(delivery);
        let failure = row.last_failure.map(|kind| kind.as_str().to_owned());
        table.add_styled_row(
            style_of(status),
            [
                status.to_owned(),
                event_id.to_string(),
                delivery.webhook.to_string(),
                row.created_at.to_rfc3339(),
                row.event.clone(),
                row.task_id.clone().unwrap_or_default(),
                row.attempt_count.to_string(),
                failure.unwrap_or_default(),
                describe_next_attempt(delivery, now),
            ],
        );
    }
    table.print()
}

/// Pending deliveries of a deleted webhook count as cancelled, even if that is not stored yet.
fn describe_status(delivery: &ListedDelivery) -> &str {
    let status = delivery.summary.row.status.as_str();
    if status == DeliveryStatus::Pending.as_str() && delivery.record.is_none() {
        return DeliveryStatus::Cancelled.as_str();
    }
    status
}

fn style_of(status: &str) -> Style {
    match status {
        "delivered" => AnsiColor::Green.on_default(),
        "pending" => AnsiColor::Yellow.on_default(),
        "failed" => AnsiColor::Red.on_default(),
        _ => Style::new().dimmed(),
    }
}

/// Says when the next attempt of a pending delivery is due, and what it waits for if that is not
/// its time.
fn describe_next_attempt(delivery: &ListedDelivery, now: Timestamp) -> String {
    let row = &delivery.summary.row;
    let Some(webhook) = &delivery.record else {
        return String::new();
    };
    if row.status != DeliveryStatus::Pending.as_str() {
        return String::new();
    }
    let reason = webhook.explain_wait(row.next_attempt_at, row.waiting_for);
    let next = match row.next_attempt_at {
        Some(time) if reason.allows_attempt() => format_relative(time, now),
        _ => String::new(),
    };
    match (next.as_str(), reason) {
        (_, WaitReason::Schedule) => next,
        ("", reason) => format!("waits for {}", reason.as_str()),
        (_, reason) => format!("{next}, waits for {}", reason.as_str()),
    }
}
