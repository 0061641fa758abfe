//! Resuming: sending the paused deliveries of a webhook that was enabled again, or whose endpoint
//! responds again.
//!
//! A scheduled job runs a resume in steps, so it does not depend on one process. The deliveries are
//! spaced in time, so the endpoint is not flooded.

use std::time::Duration;

use super::{
    due_index::DueDelivery,
    error::Result,
    item::{Item, attr_n, attr_s, text},
    key_schema,
    markers::{self, CURSOR, Marker, PASS_STARTED_AT, STARTED_AT, list_markers, mark_open_breaker},
    paused::{PausedDeliveries, PausedDelivery},
    table_client::{TableClient, WriteOutcome},
    webhooks::{WebhookRecord, Webhooks},
};
use crate::{clock::Deadline, concurrency};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::pace::pacing_interval,
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

/// The attribute of a marker: until when deliveries are scheduled. The next ones follow it.
const SCHEDULED_UNTIL: &str = "scheduled_until";
/// How far ahead a resume schedules deliveries. A step waits until fewer are scheduled, so that
/// repeated steps keep the pace.
const MAX_SCHEDULED_AHEAD: Duration = Duration::from_mins(2);

/// A webhook whose paused deliveries are resumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeJob {
    /// The account.
    pub account: AccountId,
    /// The webhook.
    pub webhook: WebhookId,
    started_at: Timestamp,
    pass_started_at: Option<Timestamp>,
    scheduled_until: Option<Timestamp>,
    cursor: Option<EventId>,
}

impl ResumeJob {
    /// Reads a marker; `None` if it is invalid.
    fn from_marker(marker: Marker) -> Option<Self> {
        let Some(started_at) = parse_time(&marker.item, STARTED_AT) else {
            tracing::error!(
                account = marker.account.as_str(),
                webhook = %marker.webhook,
                "Skipped a resume job: its marker cannot be read"
            );
            return None;
        };
        Some(Self {
            pass_started_at: parse_time(&marker.item, PASS_STARTED_AT),
            scheduled_until: parse_time(&marker.item, SCHEDULED_UNTIL),
            cursor: text(&marker.item, CURSOR).and_then(EventId::parse),
            account: marker.account,
            webhook: marker.webhook,
            started_at,
        })
    }
}

/// What to do with a resume in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResumeStep {
    /// Schedule the next deliveries.
    Continue,
    /// Leave it as it is: it is ahead of its pace.
    Wait,
    /// End it: the webhook is disabled, and enabling it starts another resume.
    End,
    /// End it: the breaker is open, and a success will start another resume.
    EndAndProbe,
}

impl ResumeStep {
    fn new(record: Option<&WebhookRecord>, scheduled_until: Timestamp, now: Timestamp) -> Self {
        let Some(record) = record else {
            // The deliveries of a deleted webhook are cancelled when they are due.
            return Self::Continue;
        };
        if record.webhook.status == WebhookStatus::Disabled {
            Self::End
        } else if record.health.is_open() {
            Self::EndAndProbe
        } else if scheduled_until > now + MAX_SCHEDULED_AHEAD {
            Self::Wait
        } else {
            Self::Continue
        }
    }
}

/// See [`Store::resumes`](super::Store::resumes).
#[derive(Clone, Copy, Debug)]
pub struct Resumes<'a> {
    webhooks_table: &'a TableClient,
    webhooks: Webhooks<'a>,
    paused: PausedDeliveries<'a>,
}

impl<'a> Resumes<'a> {
    pub(super) const fn new(
        webhooks_table: &'a TableClient,
        webhooks: Webhooks<'a>,
        paused: PausedDeliveries<'a>,
    ) -> Self {
        Self {
            webhooks_table,
            webhooks,
            paused,
        }
    }
}

impl Resumes<'_> {
    /// The resume jobs, at most `limit`. Invalid items are skipped.
    pub async fn list(self, limit: usize) -> Result<Vec<ResumeJob>> {
        let markers = list_markers(self.webhooks_table, key_schema::PENDING_RESUMES, limit).await?;
        let mut jobs = Vec::with_capacity(markers.len());
        for marker in markers {
            jobs.extend(ResumeJob::from_marker(marker));
        }
        Ok(jobs)
    }

    /// The resume job of a webhook, if it has one.
    pub async fn get(self, account: &AccountId, webhook: WebhookId) -> Result<Option<ResumeJob>> {
        let key = key_schema::pending_resume(account, webhook);
        let Some(item) = self.webhooks_table.get(key).await? else {
            return Ok(None);
        };
        let account = account.clone();
        Ok(ResumeJob::from_marker(Marker {
            account,
            webhook,
            item,
        }))
    }

    /// Starts the resume job of a webhook, or starts it again.
    pub async fn start(
        self,
        account: &AccountId,
        webhook: WebhookId,
        now: Timestamp,
    ) -> Result<()> {
        markers::start_resume(self.webhooks_table, account, webhook, now).await
    }

    /// Schedules the next paused deliveries of a webhook, until the deadline. Adds to `scheduled`
    /// what is due, also if the step fails later.
    pub async fn run_step(
        self,
        job: &ResumeJob,
        now: Timestamp,
        deadline: Deadline,
        scheduled: &mut Vec<DueDelivery>,
    ) -> Result<()> {
        let record = self.webhooks.get_record(&job.account, job.webhook).await?;
        let scheduled_until = job.scheduled_until.unwrap_or(now);
        match ResumeStep::new(record.as_ref(), scheduled_until, now) {
            ResumeStep::Continue => {
                let pace = record.and_then(|record| record.webhook.pace);
                let interval = pacing_interval(pace);
                self.schedule_page(job, interval, now, deadline, scheduled)
                    .await
            }
            ResumeStep::Wait => Ok(()),
            ResumeStep::End => self.end(job).await,
            ResumeStep::EndAndProbe => {
                // An earlier version may have opened the breaker.
                mark_open_breaker(self.webhooks_table, &job.account, job.webhook, now).await?;
                self.end(job).await
            }
        }
    }

    async fn schedule_page(
        self,
        job: &ResumeJob,
        interval: Duration,
        now: Timestamp,
        deadline: Deadline,
        scheduled: &mut Vec<DueDelivery>,
    ) -> Result<()> {
        let after = job.cursor.clone();
        let page = self
            .paused
            .list(&job.account, job.webhook, after, STEP_SIZE);
        let page = page.await?;
        let mut due_at = now.max(job.scheduled_until.unwrap_or(now));
        let mut paused = Vec::with_capacity(page.deliveries.len());
        for delivery in page.deliveries {
            due_at = due_at + interval;
            paused.push((delivery, due_at));
        }
        let outcomes = concurrency::map_concurrent(paused, SCHEDULE_CONCURRENCY, |paused| {
            let (delivery, due_at) = paused;
            self.schedule(delivery, due_at, now, deadline)
        });
        let mut step = Ok(());
        for outcome in outcomes.await {
            match outcome {
                Ok(due) => scheduled.extend(due),
                Err(error) => step = Err(error),
            }
        }
        step?;
        if deadline.remaining().is_zero() {
            // The next step reads the page again and finds what is still paused.
            return Ok(());
        }
        self.save_progress(job, page.next, due_at, now).await
    }

    async fn schedule(
        self,
        delivery: PausedDelivery,
        due_at: Timestamp,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Option<DueDelivery>> {
        if deadline.remaining().is_zero() {
            return Ok(None);
        }
        self.paused.schedule(delivery, due_at, now).await
    }

    /// Saves the cursor. After the last page, the job ends if this pass started after the rescan
    /// window, and reads the deliveries again if not. A marker that was deleted or replaced since
    /// stays as it is.
    async fn save_progress(
        self,
        job: &ResumeJob,
        next: Option<EventId>,
        scheduled_until: Timestamp,
        now: Timestamp,
    ) -> Result<()> {
        let pass_started_at = if job.cursor.is_some() {
            job.pass_started_at.unwrap_or(job.started_at)
        } else {
            now
        };
        if next.is_none() && job.started_at + RESCAN_WINDOW <= pass_started_at {
            return self.end(job).await;
        }
        let update = self
            .webhooks_table
            .update(key_schema::pending_resume(&job.account, job.webhook))
            .condition_expression("#started = :started")
            .expression_attribute_names("#started", STARTED_AT)
            .expression_attribute_names("#after", CURSOR)
            .expression_attribute_names("#until", SCHEDULED_UNTIL)
            .expression_attribute_values(":until", attr_n(scheduled_until.as_unix_millis()))
            .expression_attribute_values(":started", attr_n(job.started_at.as_unix_millis()));
        let update = match next {
            Some(cursor) => update
                .update_expression("SET #until = :until, #after = :after, #pass = :pass")
                .expression_attribute_names("#pass", PASS_STARTED_AT)
                .expression_attribute_values(":pass", attr_n(pass_started_at.as_unix_millis()))
                .expression_attribute_values(":after", attr_s(cursor.as_str())),
            None => update.update_expression("SET #until = :until REMOVE #after"),
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

fn parse_time(marker: &Item, attribute: &str) -> Option<Timestamp> {
    let millis = marker.get(attribute)?.as_n().ok()?.parse().ok()?;
    Some(Timestamp::from_millis(millis))
}
