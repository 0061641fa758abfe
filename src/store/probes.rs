//! Probes of endpoints whose circuit breaker is open: the right to probe, and the markers that a
//! scheduled job reads.
//!
//! The right to probe is a conditional write of the health item, so one process has it at a time.
//! It ends by itself: the next one is granted when the time has come, whatever became of its
//! holder.

use std::time::Duration;

use super::{
    due_index::DueDelivery,
    error::Result,
    item::{attr_n, attr_s, text},
    key_schema,
    markers::{self, CURSOR, Marker, NEXT_PROBE_AT, list_due_markers, list_markers},
    paused::{PausedDeliveries, PausedDelivery},
    table_client::{TableClient, WriteOutcome},
    tables::REVISION,
    webhooks::Webhooks,
};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{
        breaker::{MAX_PROBE_INTERVAL, MIN_PROBE_INTERVAL, ProbeStep, probe_interval},
        endpoint_health::{EndpointHealth, FAILURE_THRESHOLD},
    },
    event::EventId,
    timestamp::Timestamp,
    webhook::WebhookId,
};

/// How many pending deliveries are read to find one that waits.
const PAGE_SIZE: usize = 100;

/// An endpoint whose next probe is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueProbe {
    /// The account.
    pub account: AccountId,
    /// The webhook.
    pub webhook: WebhookId,
    next_probe_at: Timestamp,
    cursor: Option<EventId>,
}

/// An endpoint whose breaker is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenBreaker {
    /// The account.
    pub account: AccountId,
    /// The webhook.
    pub webhook: WebhookId,
    /// When a waiting delivery is made due as the next probe.
    pub next_probe_at: Timestamp,
}

/// The next waiting delivery of an endpoint.
enum NextWaiting {
    Found(PausedDelivery),
    /// None was found, and more pending deliveries follow this one.
    ContinueAfter(EventId),
    /// None waits.
    None,
}

/// See [`Store::probes`](super::Store::probes).
#[derive(Clone, Copy, Debug)]
pub struct Probes<'a> {
    webhooks_table: &'a TableClient,
    webhooks: Webhooks<'a>,
    paused: PausedDeliveries<'a>,
}

impl<'a> Probes<'a> {
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

impl Probes<'_> {
    /// Acquires the right to probe an endpoint, whose health was read before. The condition fails
    /// if the breaker is closed, or if a probe was made within [`MIN_PROBE_INTERVAL`].
    pub async fn acquire(
        self,
        account: &AccountId,
        webhook: WebhookId,
        health: &EndpointHealth,
        now: Timestamp,
    ) -> Result<WriteOutcome> {
        if health.probed_at.is_none() {
            // An earlier version opened the breaker. The marker is written first, so that whatever
            // waits is found by the scheduled job.
            markers::mark_open_breaker(self.webhooks_table, account, webhook, now).await?;
        }
        let probe_count = health.probe_count.saturating_add(1);
        let latest = now - MIN_PROBE_INTERVAL;
        let response = self
            .webhooks_table
            .update(key_schema::health(account, webhook))
            .update_expression("SET probed_at = :now, probes = :count ADD #revision :one")
            .condition_expression(
                "failures >= :threshold \
                 AND (attribute_not_exists(probed_at) OR probed_at <= :latest)",
            )
            .expression_attribute_names("#revision", REVISION)
            .expression_attribute_values(":now", attr_n(now.as_unix_millis()))
            .expression_attribute_values(":count", attr_n(probe_count.into()))
            .expression_attribute_values(":one", attr_n(1))
            .expression_attribute_values(":threshold", attr_n(FAILURE_THRESHOLD.into()))
            .expression_attribute_values(":latest", attr_n(latest.as_unix_millis()))
            .send()
            .await;
        let outcome = WriteOutcome::from_response(response)?;
        if outcome.is_applied() {
            let next_probe_at = now + probe_interval(probe_count);
            self.schedule_probe(account, webhook, next_probe_at).await?;
        }
        Ok(outcome)
    }

    async fn schedule_probe(
        self,
        account: &AccountId,
        webhook: WebhookId,
        next_probe_at: Timestamp,
    ) -> Result<()> {
        self.webhooks_table
            .update(key_schema::open_breaker(account, webhook))
            .update_expression("SET #next = :next")
            .expression_attribute_names("#next", NEXT_PROBE_AT)
            .expression_attribute_values(":next", attr_n(next_probe_at.as_unix_millis()))
            .send()
            .await?;
        Ok(())
    }

    /// The endpoints whose breaker is open, at most `limit`. Invalid items are skipped.
    pub async fn list_open(self, limit: usize) -> Result<Vec<OpenBreaker>> {
        let markers = list_markers(self.webhooks_table, key_schema::OPEN_BREAKERS, limit).await?;
        let mut open = Vec::with_capacity(markers.len());
        for marker in markers {
            if let Some(next_probe_at) = parse_next_probe_at(&marker) {
                open.push(OpenBreaker {
                    account: marker.account,
                    webhook: marker.webhook,
                    next_probe_at,
                });
            }
        }
        Ok(open)
    }

    /// The endpoints whose next probe is due, at most `limit`. Invalid items are skipped.
    pub async fn list_due(self, now: Timestamp, limit: usize) -> Result<Vec<DueProbe>> {
        let markers = list_due_markers(
            self.webhooks_table,
            key_schema::OPEN_BREAKERS,
            NEXT_PROBE_AT,
            now,
            limit,
        );
        let mut due = Vec::new();
        for marker in markers.await? {
            if let Some(next_probe_at) = parse_next_probe_at(&marker) {
                due.push(DueProbe {
                    cursor: text(&marker.item, CURSOR).and_then(EventId::parse),
                    account: marker.account,
                    webhook: marker.webhook,
                    next_probe_at,
                });
            } else {
                tracing::error!(
                    account = marker.account.as_str(),
                    webhook = %marker.webhook,
                    "Skipped an open circuit breaker: its marker cannot be read"
                );
            }
        }
        Ok(due)
    }

    /// Makes a waiting delivery due as the probe, and returns it. The worker that receives it
    /// acquires the right to probe.
    pub async fn run_step(self, probe: &DueProbe, now: Timestamp) -> Result<Option<DueDelivery>> {
        let DueProbe {
            account, webhook, ..
        } = probe;
        let record = self.webhooks.get_record(account, *webhook).await?;
        let state = record
            .as_ref()
            .map(|record| (record.webhook.status, &record.health));
        match ProbeStep::new(state, now) {
            ProbeStep::MakeDue => {
                let probe_count = record.map_or(0, |record| record.health.probe_count);
                self.make_due(probe, now, probe_interval(probe_count)).await
            }
            ProbeStep::Skip => Ok(None),
            ProbeStep::Resume => {
                markers::start_resume(self.webhooks_table, account, *webhook, now).await?;
                self.delete_marker(probe).await?;
                Ok(None)
            }
            ProbeStep::Delete => {
                self.delete_marker(probe).await?;
                Ok(None)
            }
        }
    }

    /// Makes the next waiting delivery due, the one after that which was made due last: a single
    /// delivery that the endpoint cannot handle does not keep the breaker open. The one after it
    /// follows after `interval`, unless the worker acquires the right to probe before.
    async fn make_due(
        self,
        probe: &DueProbe,
        now: Timestamp,
        interval: Duration,
    ) -> Result<Option<DueDelivery>> {
        let mut next = self.next_waiting(probe, probe.cursor.clone()).await?;
        if matches!(next, NextWaiting::None) && probe.cursor.is_some() {
            next = self.next_waiting(probe, None).await?;
        }
        match next {
            NextWaiting::Found(delivery) => {
                let event = delivery.key.event.clone();
                let due = self.paused.schedule(delivery, now, now).await?;
                self.save_progress(probe, Some(&event), now + interval)
                    .await?;
                Ok(due)
            }
            NextWaiting::ContinueAfter(event) => {
                self.save_progress(probe, Some(&event), probe.next_probe_at)
                    .await?;
                Ok(None)
            }
            NextWaiting::None => {
                // An event that arrives until then may be the probe itself.
                self.save_progress(probe, None, now + MAX_PROBE_INTERVAL)
                    .await?;
                Ok(None)
            }
        }
    }

    async fn next_waiting(self, probe: &DueProbe, after: Option<EventId>) -> Result<NextWaiting> {
        let DueProbe {
            account, webhook, ..
        } = probe;
        let page = self
            .paused
            .list(account, *webhook, after, PAGE_SIZE)
            .await?;
        Ok(match (page.deliveries.into_iter().next(), page.next) {
            (Some(delivery), _) => NextWaiting::Found(delivery),
            (None, Some(event)) => NextWaiting::ContinueAfter(event),
            (None, None) => NextWaiting::None,
        })
    }

    /// Saves where to look for the next waiting delivery, and when. `None`: from the newest one on.
    async fn save_progress(
        self,
        probe: &DueProbe,
        after: Option<&EventId>,
        next_probe_at: Timestamp,
    ) -> Result<()> {
        let update = self
            .webhooks_table
            .update(key_schema::open_breaker(&probe.account, probe.webhook))
            .condition_expression("#next = :seen")
            .expression_attribute_names("#after", CURSOR)
            .expression_attribute_names("#next", NEXT_PROBE_AT)
            .expression_attribute_values(":next", attr_n(next_probe_at.as_unix_millis()))
            .expression_attribute_values(":seen", attr_n(probe.next_probe_at.as_unix_millis()));
        let update = match after {
            Some(event) => update
                .update_expression("SET #next = :next, #after = :after")
                .expression_attribute_values(":after", attr_s(event.as_str())),
            None => update.update_expression("SET #next = :next REMOVE #after"),
        };
        // The condition fails if the breaker was closed, or if an event has been the probe.
        WriteOutcome::from_response(update.send().await)?;
        Ok(())
    }

    /// Deletes the marker, unless the breaker was opened again since.
    async fn delete_marker(self, probe: &DueProbe) -> Result<()> {
        let marker = key_schema::open_breaker(&probe.account, probe.webhook);
        let seen = attr_n(probe.next_probe_at.as_unix_millis());
        self.webhooks_table
            .delete_if_equal(marker, NEXT_PROBE_AT, seen)
            .await?;
        Ok(())
    }
}

fn parse_next_probe_at(marker: &Marker) -> Option<Timestamp> {
    let millis = marker.item.get(NEXT_PROBE_AT)?.as_n().ok()?.parse().ok()?;
    Some(Timestamp::from_millis(millis))
}
