//! Resuming: sending the paused deliveries of a webhook that was enabled again, or whose endpoint
//! responds again.
//!
//! A scheduled job runs a resume in steps, so it does not depend on one process. The deliveries are
//! spaced in time, so the endpoint is not flooded.

use std::time::Duration;

use super::{
    delivery_log::{DeliveryFilter, DeliveryLog},
    due_index::DueDelivery,
    error::Result,
    item::{Item, attr_n, attr_s, text},
    key_schema,
    markers::{STARTED_AT, list_markers, mark_open_breaker, resume_item},
    paused::{self, PausedDelivery},
    table_client::{TableClient, WriteOutcome},
    webhooks::{WebhookRecord, Webhooks},
};
use crate::concurrency;
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{DeliveryKey, lease, status::DeliveryStatus},
    event::EventId,
    timestamp::Timestamp,
    webhook::{WebhookId, WebhookStatus},
};

/// How many deliveries a step reads.
const STEP_SIZE: usize = 300;
/// How many of them are scheduled at the same time.
const SCHEDULE_CONCURRENCY: usize = 16;
/// How long after the start of a resume the paused deliveries are read again: a worker that read
/// the webhook earlier may pause another delivery, and the state index shows it a moment later.
const RESCAN_WINDOW: Duration = Duration::from_mins(2);

/// The attribute of a marker: the delivery that was read last.
const CURSOR: &str = "after";

/// A webhook whose paused deliveries are resumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeJob {
    /// The account.
    pub account: AccountId,
    /// The webhook.
    pub webhook: WebhookId,
    started_at: Timestamp,
    cursor: Option<EventId>,
}

impl ResumeJob {
    /// The job of a webhook that was enabled or repaired, or whose endpoint was changed, at `now`.
    pub const fn new(account: AccountId, webhook: WebhookId, now: Timestamp) -> Self {
        Self {
            account,
            webhook,
            started_at: now,
            cursor: None,
        }
    }
}

/// What to do with a resume in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResumeStep {
    /// Schedule the next deliveries.
    Continue,
    /// End it: the webhook was deleted, or it is disabled and will start another resume.
    End,
    /// End it: the breaker is open, and a success will start another resume.
    EndAndProbe,
}

impl ResumeStep {
    fn new(record: Option<&WebhookRecord>) -> Self {
        match record {
            Some(record) if record.webhook.status == WebhookStatus::Active => {
                if record.health.is_open() {
                    Self::EndAndProbe
                } else {
                    Self::Continue
                }
            }
            Some(_) | None => Self::End,
        }
    }
}

/// See [`Store::resumes`](super::Store::resumes).
#[derive(Clone, Copy, Debug)]
pub struct Resumes<'a> {
    webhooks_table: &'a TableClient,
    deliveries_table: &'a TableClient,
    webhooks: Webhooks<'a>,
    log: DeliveryLog<'a>,
}

impl<'a> Resumes<'a> {
    pub(super) const fn new(
        webhooks_table: &'a TableClient,
        deliveries_table: &'a TableClient,
        webhooks: Webhooks<'a>,
        log: DeliveryLog<'a>,
    ) -> Self {
        Self {
            webhooks_table,
            deliveries_table,
            webhooks,
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
            if let Some(started_at) = parse_started_at(&marker.item) {
                jobs.push(ResumeJob {
                    cursor: text(&marker.item, CURSOR).and_then(EventId::parse),
                    account: marker.account,
                    webhook: marker.webhook,
                    started_at,
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
        let marker = resume_item(&job.account, job.webhook, job.started_at);
        self.webhooks_table.put(marker).await
    }

    /// Schedules the next paused deliveries of a webhook and returns them.
    pub async fn run_step(self, job: &ResumeJob, now: Timestamp) -> Result<Vec<DueDelivery>> {
        let record = self.webhooks.get_record(&job.account, job.webhook).await?;
        match ResumeStep::new(record.as_ref()) {
            ResumeStep::Continue => self.schedule_page(job, now).await,
            ResumeStep::End => {
                self.end(job).await?;
                Ok(Vec::new())
            }
            ResumeStep::EndAndProbe => {
                // An earlier version may have opened the breaker.
                mark_open_breaker(self.webhooks_table, &job.account, job.webhook, now).await?;
                self.end(job).await?;
                Ok(Vec::new())
            }
        }
    }

    async fn schedule_page(self, job: &ResumeJob, now: Timestamp) -> Result<Vec<DueDelivery>> {
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
            let delivery = PausedDelivery {
                key: DeliveryKey {
                    account: job.account.clone(),
                    webhook: job.webhook,
                    event: summary.event_id,
                },
                attempt_count: summary.row.attempt_count,
            };
            paused.push((delivery, due_at));
        }
        let outcomes = concurrency::map_concurrent(paused, SCHEDULE_CONCURRENCY, |paused| {
            let (delivery, due_at) = paused;
            paused::schedule(self.deliveries_table, delivery, due_at, now)
        });
        let mut scheduled = Vec::new();
        for outcome in outcomes.await {
            scheduled.extend(outcome?);
        }
        self.save_progress(job, page.next, now).await?;
        Ok(scheduled)
    }

    /// Saves the cursor. After the last page, the job restarts until the rescan window has passed,
    /// and then ends. A marker that was deleted or replaced since stays as it is.
    async fn save_progress(
        self,
        job: &ResumeJob,
        next: Option<EventId>,
        now: Timestamp,
    ) -> Result<()> {
        if next.is_none() && job.started_at + RESCAN_WINDOW <= now {
            return self.end(job).await;
        }
        let update = self
            .webhooks_table
            .update(key_schema::pending_resume(&job.account, job.webhook))
            .condition_expression("#started = :started")
            .expression_attribute_names("#started", STARTED_AT)
            .expression_attribute_names("#after", CURSOR)
            .expression_attribute_values(":started", attr_n(job.started_at.as_unix_millis()));
        let update = match next {
            Some(cursor) => update
                .update_expression("SET #after = :after")
                .expression_attribute_values(":after", attr_s(cursor.as_str())),
            None => update.update_expression("REMOVE #after"),
        };
        WriteOutcome::from_response(update.send().await)?;
        Ok(())
    }

    /// Deletes the job's marker. The marker of a later job stays.
    async fn end(self, job: &ResumeJob) -> Result<()> {
        let key = key_schema::pending_resume(&job.account, job.webhook);
        let started_at = attr_n(job.started_at.as_unix_millis());
        self.webhooks_table
            .delete_if_equal(key, STARTED_AT, started_at)
            .await?;
        Ok(())
    }
}

fn parse_started_at(marker: &Item) -> Option<Timestamp> {
    let millis = marker.get(STARTED_AT)?.as_n().ok()?.parse().ok()?;
    Some(Timestamp::from_millis(millis))
}
