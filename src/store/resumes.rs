//! Resuming: sending the paused deliveries of a webhook that was enabled again.
//!
//! Sweeps run a resume job in steps, so it does not depend on one process. The deliveries are
//! spaced in time, so the endpoint is not flooded.

use std::time::Duration;

use super::{
    delivery_log::{DeliveryFilter, DeliveryLog},
    due_index::DueDelivery,
    error::Result,
    item::{Item, attr_n, attr_s, text},
    key_schema,
    markers::list_markers,
    table_client::{TableClient, WriteOutcome},
};
use crate::concurrency;
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{DeliveryKey, lease, status::DeliveryStatus},
    event::EventId,
    timestamp::Timestamp,
    webhook::WebhookId,
};

/// How many deliveries a step reads.
const STEP_SIZE: usize = 300;
/// How many of them are scheduled at the same time.
const SCHEDULE_CONCURRENCY: usize = 16;
/// How long after enabling a webhook its paused deliveries are read again: a worker that read the
/// webhook earlier may pause another delivery, and the state index shows it a moment later.
const RESCAN_WINDOW: Duration = Duration::from_mins(2);

/// A webhook that was enabled again, or can be read again, and may have paused deliveries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeJob {
    /// The account.
    pub account: AccountId,
    /// The webhook.
    pub webhook: WebhookId,
    enabled_at: Timestamp,
    cursor: Option<EventId>,
}

impl ResumeJob {
    /// The job of a webhook that was enabled or repaired at `now`.
    pub const fn new(account: AccountId, webhook: WebhookId, now: Timestamp) -> Self {
        Self {
            account,
            webhook,
            enabled_at: now,
            cursor: None,
        }
    }
}

/// A paused delivery and the time when it is due.
struct Resumed {
    key: DeliveryKey,
    attempt_count: u32,
    due_at: Timestamp,
}

/// See [`Store::resumes`](super::Store::resumes).
#[derive(Clone, Copy, Debug)]
pub struct Resumes<'a> {
    webhooks_table: &'a TableClient,
    deliveries_table: &'a TableClient,
    log: DeliveryLog<'a>,
}

impl<'a> Resumes<'a> {
    pub(super) const fn new(
        webhooks_table: &'a TableClient,
        deliveries_table: &'a TableClient,
        log: DeliveryLog<'a>,
    ) -> Self {
        Self {
            webhooks_table,
            deliveries_table,
            log,
        }
    }
}

impl Resumes<'_> {
    /// The resume jobs, at most `limit`. Invalid items are skipped.
    pub async fn list(self, limit: usize) -> Result<Vec<ResumeJob>> {
        let markers = list_markers(self.webhooks_table, key_schema::PENDING_RESUMES, limit).await?;
        let mut jobs = Vec::with_capacity(markers.len());
        for marker in markers {
            if let Some(enabled_at) = parse_enabled_at(&marker.item) {
                jobs.push(ResumeJob {
                    cursor: text(&marker.item, "after").and_then(EventId::parse),
                    account: marker.account,
                    webhook: marker.webhook,
                    enabled_at,
                });
            } else {
                tracing::error!(
                    account = marker.account.as_str(),
                    webhook = %marker.webhook,
                    "Skipped a resume job: its marker cannot be read"
                );
            }
        }
        Ok(jobs)
    }

    /// Starts the resume job of a webhook, or restarts it.
    pub async fn start(self, job: &ResumeJob) -> Result<()> {
        self.put_marker(job, None).await
    }

    /// Schedules the next paused deliveries of a webhook and returns them.
    pub async fn run_step(self, job: &ResumeJob, now: Timestamp) -> Result<Vec<DueDelivery>> {
        let filter = DeliveryFilter {
            status: Some(DeliveryStatus::Pending),
            event: None,
            after: job.cursor.clone(),
            limit: STEP_SIZE,
        };
        let page = self.log.list(&job.account, job.webhook, &filter).await?;
        let mut due_at = now;
        let mut paused = Vec::new();
        for summary in page.deliveries {
            if summary.row.next_attempt_at.is_some() {
                continue;
            }
            due_at = due_at + lease::PACING_INTERVAL;
            paused.push(Resumed {
                key: DeliveryKey {
                    account: job.account.clone(),
                    webhook: job.webhook,
                    event: summary.event_id,
                },
                attempt_count: summary.row.attempt_count,
                due_at,
            });
        }
        let outcomes = concurrency::map_concurrent(paused, SCHEDULE_CONCURRENCY, |delivery| {
            self.schedule(delivery, now)
        });
        let mut scheduled = Vec::new();
        for outcome in outcomes.await {
            scheduled.extend(outcome?);
        }
        self.save_progress(job, page.next, now).await?;
        Ok(scheduled)
    }

    /// Saves the cursor. After the last page, the job restarts until the rescan window has passed,
    /// and then ends.
    async fn save_progress(
        self,
        job: &ResumeJob,
        next: Option<EventId>,
        now: Timestamp,
    ) -> Result<()> {
        if next.is_none() && job.enabled_at + RESCAN_WINDOW <= now {
            let key = key_schema::pending_resume(&job.account, job.webhook);
            return self.webhooks_table.delete(key).await;
        }
        self.put_marker(job, next).await
    }

    async fn put_marker(self, job: &ResumeJob, next: Option<EventId>) -> Result<()> {
        let mut marker = key_schema::pending_resume(&job.account, job.webhook).into_item();
        let enabled_at = attr_n(job.enabled_at.as_unix_millis());
        marker.insert("created_at".to_owned(), enabled_at);
        if let Some(cursor) = next {
            marker.insert("after".to_owned(), attr_s(cursor.as_str()));
        }
        self.webhooks_table.put(marker).await
    }

    /// Schedules a paused delivery. `None` if it is no longer paused.
    async fn schedule(self, delivery: Resumed, now: Timestamp) -> Result<Option<DueDelivery>> {
        let Resumed {
            key,
            attempt_count,
            due_at,
        } = delivery;
        let sweep_at = lease::sweep_at(due_at, now);
        let response = self
            .deliveries_table
            .update(key_schema::delivery(&key))
            .update_expression(
                "SET next_attempt_at = :due, sweep_at = :sweep, due_shard = :shard \
                 REMOVE expires_at",
            )
            .condition_expression("#status = :pending AND attribute_not_exists(next_attempt_at)")
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":pending", attr_s(DeliveryStatus::Pending.as_str()))
            .expression_attribute_values(":due", attr_n(due_at.as_unix_millis()))
            .expression_attribute_values(":sweep", attr_n(sweep_at.as_unix_millis()))
            .expression_attribute_values(":shard", attr_s(&key_schema::due_shard(&key.event)))
            .send()
            .await;
        match WriteOutcome::from_response(response)? {
            WriteOutcome::Applied => Ok(Some(DueDelivery::new(key, attempt_count, due_at, now))),
            WriteOutcome::ConditionFailed => Ok(None),
        }
    }
}

fn parse_enabled_at(marker: &Item) -> Option<Timestamp> {
    let millis = marker.get("created_at")?.as_n().ok()?.parse().ok()?;
    Some(Timestamp::from_millis(millis))
}
