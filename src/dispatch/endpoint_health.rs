//! Updates of endpoint health after attempts, and the disabling of webhooks.

use std::{fmt, time::Duration};

use tokio::time::timeout;

use super::in_flight::{EndpointKey, InFlightLimiter};
use crate::{
    clock::Clock,
    error_chain::error_chain,
    metrics::{Counter, Metrics},
    queue::scheduler::RetryScheduler,
    store::{
        Error, Result, Store, WriteOutcome, notifications::Notifications, webhooks::WebhookRecord,
    },
};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{
        attempt::AttemptOutcome,
        breaker::BreakerChange,
        endpoint_health::{EndpointHealth, FailureCounts, is_unresponsive},
        health_notice::HealthNotice,
    },
    operational_event::{OperationalEvent, WebhookChange},
    readable_duration::ReadableDuration,
    timestamp::Timestamp,
    webhook::{Webhook, WebhookId, WebhookStatus},
};

/// How long an update waits for other updates of the same endpoint. A skipped update is made up for
/// by the next attempts, which observe the same.
const HEALTH_LOCK_TIMEOUT: Duration = Duration::from_secs(4);
/// How often an update is repeated because another process wrote the health at the same time. A
/// lost update is made up for by the next attempts.
const MAX_HEALTH_CONFLICTS: u32 = 4;
/// The status code of an endpoint that wants no more requests: 410 Gone.
const GONE: u16 = 410;

/// Updates endpoint health.
#[derive(Clone, Copy)]
pub(super) struct EndpointHealthUpdater<'a> {
    pub store: &'a Store,
    pub scheduler: RetryScheduler<'a>,
    pub limiter: &'a InFlightLimiter,
    pub clock: &'a Clock,
    pub retention: Duration,
    pub disable_after: Duration,
    pub metrics: &'a Metrics,
}

/// The attempts to one endpoint that a batch or a worker made.
#[derive(Default)]
pub(super) struct ObservedAttempts {
    /// How attempts ended.
    pub outcomes: Vec<AttemptOutcome>,
    /// Whether an attempt is still open, although its batch no longer waits for it.
    pub any_late: bool,
}

/// What a set of attempts says about an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AttemptSummary {
    /// An attempt was delivered.
    any_success: bool,
    /// An attempt received a response, whatever its status.
    any_response: bool,
    /// An attempt received 410 Gone.
    is_gone: bool,
}

impl AttemptSummary {
    /// Whether the attempts reset one of these counts.
    const fn resets(self, counted: FailureCounts) -> bool {
        (self.any_response && counted.consecutive > 0)
            || (self.any_success && counted.since_success > 0)
    }
}

/// What to do about an endpoint.
#[derive(Clone, Debug, PartialEq)]
struct HealthEvaluation {
    health: EndpointHealth,
    disable: Option<DisableReason>,
    write: HealthWrite,
    breaker: Option<BreakerChange>,
    /// What is reported.
    notice: Option<HealthNotice>,
}

impl HealthEvaluation {
    /// The health if the notice is not raised. The next failed attempt raises it; a recovery is not
    /// reported then.
    fn without_notice(&self, stored: &EndpointHealth) -> EndpointHealth {
        match self.notice {
            Some(HealthNotice::Failing { .. }) => EndpointHealth {
                notified_percent: stored.notified_percent,
                ..self.health
            },
            Some(HealthNotice::Recovered { .. }) | None => self.health,
        }
    }
}

/// When the evaluated health is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HealthWrite {
    /// Not at all, because nothing changed.
    Never,
    /// Unless the health was written within the last second.
    RateLimited,
    /// In any case.
    Now,
}

/// Why a webhook is disabled. The text is shown to the customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DisableReason {
    Gone,
    /// Every attempt of this time failed.
    FailedFor(Duration),
}

impl fmt::Display for DisableReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("The endpoint responded with 410 Gone."),
            Self::FailedFor(time) => {
                let time = ReadableDuration(*time);
                write!(f, "Every attempt of the last {time} failed.")
            }
        }
    }
}

impl EndpointHealthUpdater<'_> {
    /// Updates the health of an endpoint after attempts. A failure is logged and affects no
    /// delivery.
    pub(super) async fn update(
        self,
        account: &AccountId,
        record: &WebhookRecord,
        observed: &ObservedAttempts,
    ) {
        if observed.outcomes.is_empty() && !observed.any_late {
            return;
        }
        let outcomes = &observed.outcomes;
        let now = self.clock.now();
        let endpoint = EndpointKey {
            account: account.clone(),
            webhook: record.webhook.id,
        };
        let summary = summarize(outcomes);
        if summary.any_success {
            self.limiter.note_success(&endpoint);
        }
        let counted = self.limiter.counted_failures(&endpoint);
        let predicted = observed.apply_to(record.health, now);
        let is_changed = predicted.needs_write(&record.health) || summary.resets(counted);
        let may_disable = summary.is_gone || predicted.has_failed_for(self.disable_after, now);
        let stored = &record.health;
        let notice = HealthNotice::between(stored, &predicted, self.disable_after, now);
        if !is_changed && !may_disable && notice.is_none() {
            return;
        }
        let updated = self.apply(&endpoint, &record.webhook, observed, now);
        if let Err(error) = updated.await {
            tracing::warn!(
                account = account.as_str(),
                webhook = %record.webhook.id,
                error = error_chain(&error),
                "Could not update the endpoint health"
            );
        }
    }

    /// Evaluates the attempts against the stored health, which may have changed since the attempts
    /// started.
    async fn apply(
        self,
        endpoint: &EndpointKey,
        webhook: &Webhook,
        observed_attempts: &ObservedAttempts,
        now: Timestamp,
    ) -> Result<()> {
        let EndpointKey {
            account,
            webhook: id,
        } = endpoint;
        let lock = self.limiter.health_lock(endpoint);
        let Ok(_guard) = timeout(HEALTH_LOCK_TIMEOUT, lock.lock()).await else {
            tracing::warn!(
                account = account.as_str(), webhook = %id,
                "Skipped the endpoint health update: timed out waiting for its lock"
            );
            return Ok(());
        };
        for conflicts in 0..MAX_HEALTH_CONFLICTS {
            let applied = self
                .apply_once(endpoint, webhook, observed_attempts, conflicts, now)
                .await?;
            if applied.is_applied() {
                return Ok(());
            }
        }
        tracing::warn!(
            account = account.as_str(), webhook = %id,
            "Skipped the endpoint health update: other processes wrote the health at the same time"
        );
        Ok(())
    }

    /// Does the same once. The condition fails if another process wrote the health since it was
    /// read.
    async fn apply_once(
        self,
        endpoint: &EndpointKey,
        webhook: &Webhook,
        observed_attempts: &ObservedAttempts,
        conflicts: u32,
        now: Timestamp,
    ) -> Result<WriteOutcome> {
        let outcomes = &observed_attempts.outcomes;
        let webhooks = self.store.webhooks();
        let record = webhooks.get_record(&endpoint.account, webhook.id).await?;
        let Some(current) = record else {
            return Ok(WriteOutcome::Applied);
        };
        let is_disabled = current.webhook.status == WebhookStatus::Disabled;
        if is_disabled || current.webhook.url != webhook.url {
            return Ok(WriteOutcome::Applied);
        }
        let stored = current.health.failure_counts();
        let observations = outcomes.iter().map(AttemptOutcome::observation);
        let failures = self.limiter.count_failures(endpoint, stored, observations);
        let observed = observed_attempts
            .apply_to(current.health, now)
            .with_failure_counts(failures);
        let is_gone = summarize(outcomes).is_gone;
        let evaluation = evaluate(&current.health, observed, is_gone, self.disable_after, now);
        if let Some(reason) = evaluation.disable {
            self.disable(&endpoint.account, webhook, reason, now)
                .await?;
        }
        if self.is_write_due(endpoint, evaluation.write, conflicts, now) {
            self.write_health(endpoint, &current, &evaluation, now)
                .await
        } else {
            self.limiter.set_failures(endpoint, stored, failures);
            Ok(WriteOutcome::Applied)
        }
    }

    /// Whether the health is written now. A repeated write was due before the conflict.
    fn is_write_due(
        self,
        endpoint: &EndpointKey,
        write: HealthWrite,
        conflicts: u32,
        now: Timestamp,
    ) -> bool {
        match write {
            HealthWrite::Never => false,
            HealthWrite::RateLimited => {
                conflicts > 0 || self.limiter.try_claim_health_write(endpoint, now)
            }
            HealthWrite::Now => {
                self.limiter.try_claim_health_write(endpoint, now);
                true
            }
        }
    }

    async fn write_health(
        self,
        endpoint: &EndpointKey,
        current: &WebhookRecord,
        evaluation: &HealthEvaluation,
        now: Timestamp,
    ) -> Result<WriteOutcome> {
        let EndpointKey { account, webhook } = endpoint;
        let health = &evaluation.health;
        let notifications = self
            .notify_health(account, &current.webhook, evaluation, now)
            .await?;
        let items = self.store.health();
        let retention = self.retention;
        let written = items
            .write(account, current, health, &notifications, now, retention)
            .await;
        let outcome = match written {
            // The breaker must not depend on the partitions of what is notified.
            Err(Error::Unavailable(_)) if evaluation.breaker.is_some() => {
                let health = evaluation.without_notice(&current.health);
                let none = Notifications::default();
                let written = items.write(account, current, &health, &none, now, retention);
                written.await?
            }
            written => written?,
        };
        if !outcome.is_applied() {
            return Ok(outcome);
        }
        if let Some(notice) = evaluation.notice {
            log_notice(account, *webhook, notice);
        }
        let deliveries = &notifications.deliveries;
        self.scheduler.schedule_pending(deliveries, now).await;
        let failures = health.failure_counts();
        self.limiter.set_failures(endpoint, failures, failures);
        match evaluation.breaker {
            Some(BreakerChange::Opened) => {
                tracing::warn!(
                    account = account.as_str(), %webhook,
                    "Circuit breaker opened; deliveries wait until the endpoint responds"
                );
                self.metrics.increment(Counter::BreakersOpened);
            }
            Some(BreakerChange::Closed) => {
                tracing::info!(
                    account = account.as_str(), %webhook,
                    "Circuit breaker closed; deliveries that waited are resumed"
                );
                self.metrics.increment(Counter::BreakersClosed);
            }
            None => {}
        }
        Ok(outcome)
    }

    /// Disables a webhook, and reports that.
    async fn disable(
        self,
        account: &AccountId,
        webhook: &Webhook,
        reason: DisableReason,
        now: Timestamp,
    ) -> Result<()> {
        let reason = reason.to_string();
        let change = WebhookChange::Disabled {
            reason: reason.clone(),
        };
        let notifications = self.notify(account, webhook, change, now).await?;
        let webhooks = self.store.webhooks();
        let outcome = webhooks
            .disable(
                account,
                webhook,
                &reason,
                &notifications,
                now,
                self.retention,
            )
            .await?;
        if outcome.is_applied() {
            tracing::warn!(
                account = account.as_str(), webhook = %webhook.id, reason,
                "Webhook disabled"
            );
            self.metrics.increment(Counter::WebhooksDisabled);
            let deliveries = &notifications.deliveries;
            self.scheduler.schedule_pending(deliveries, now).await;
        }
        Ok(())
    }

    async fn notify(
        self,
        account: &AccountId,
        webhook: &Webhook,
        change: WebhookChange,
        now: Timestamp,
    ) -> Result<Notifications> {
        let event = OperationalEvent {
            webhook: webhook.id,
            url: webhook.url.as_str().to_owned(),
            change,
        };
        self.store.webhooks().notify(account, &event, now).await
    }

    /// Reports a change of the health.
    async fn notify_health(
        self,
        account: &AccountId,
        webhook: &Webhook,
        evaluation: &HealthEvaluation,
        now: Timestamp,
    ) -> Result<Notifications> {
        let change = match evaluation.notice {
            Some(HealthNotice::Failing { since, percent }) => WebhookChange::Failing {
                since,
                percent,
                // Fewer attempts than disabling requires may have been made.
                disabled_at: now.max(since + self.disable_after),
                last_failure: evaluation.health.last_failure,
            },
            Some(HealthNotice::Recovered { failing_since }) => {
                WebhookChange::Recovered { failing_since }
            }
            None => return Ok(Notifications::default()),
        };
        self.notify(account, webhook, change, now).await
    }
}

/// Logs what is reported of an endpoint's health.
fn log_notice(account: &AccountId, webhook: WebhookId, notice: HealthNotice) {
    match notice {
        HealthNotice::Failing { since, percent } => tracing::warn!(
            account = account.as_str(), %webhook, percent,
            failing_since = since.to_rfc3339(),
            "Every attempt has failed for a part of the time after which the webhook is disabled"
        ),
        HealthNotice::Recovered { failing_since } => tracing::info!(
            account = account.as_str(), %webhook,
            failing_since = failing_since.to_rfc3339(),
            "The endpoint accepted an event after long failures"
        ),
    }
}

fn summarize(outcomes: &[AttemptOutcome]) -> AttemptSummary {
    let mut summary = AttemptSummary {
        any_success: false,
        any_response: false,
        is_gone: false,
    };
    for outcome in outcomes {
        match outcome.observation().failure {
            None => {
                summary.any_success = true;
                summary.any_response = true;
            }
            Some(kind) => summary.any_response |= !is_unresponsive(kind),
        }
        summary.is_gone |= outcome.status_code == Some(GONE);
    }
    summary
}

impl ObservedAttempts {
    /// The health after these attempts.
    fn apply_to(&self, health: EndpointHealth, now: Timestamp) -> EndpointHealth {
        let mut health = health;
        for outcome in &self.outcomes {
            health = health.observe(outcome.observation(), now);
        }
        if self.any_late {
            health = health.observe_late(now);
        }
        health
    }
}

/// Decides what the observed health means for the webhook whose stored health is `stored`.
fn evaluate(
    stored: &EndpointHealth,
    observed: EndpointHealth,
    is_gone: bool,
    disable_after: Duration,
    now: Timestamp,
) -> HealthEvaluation {
    let disable = if is_gone {
        Some(DisableReason::Gone)
    } else if observed.has_failed_for(disable_after, now) {
        Some(DisableReason::FailedFor(disable_after))
    } else {
        None
    };
    let breaker = BreakerChange::between(stored, &observed);
    // A webhook that is disabled is reported as that.
    let notice = match disable {
        Some(_) => None,
        None => HealthNotice::between(stored, &observed, disable_after, now),
    };
    let observed = match notice {
        Some(notice) => notice.apply_to(observed),
        None => observed,
    };
    let write = if !observed.needs_write(stored) {
        HealthWrite::Never
    } else if breaker.is_some() || notice.is_some() {
        HealthWrite::Now
    } else {
        HealthWrite::RateLimited
    };
    HealthEvaluation {
        health: observed,
        disable,
        write,
        breaker,
        notice,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISABLE_AFTER: Duration = Duration::from_hours(120);
    const NOW: Timestamp = Timestamp::from_millis(1_734_948_000_000);

    fn health(consecutive_failures: u32, failing_for: Option<Duration>) -> EndpointHealth {
        EndpointHealth {
            has_succeeded: true,
            consecutive_failures,
            failing_since: failing_for.map(|time| NOW - time),
            failed_attempts: 10,
            ..EndpointHealth::default()
        }
    }

    #[test]
    fn breaker_change_is_written_at_once() {
        use BreakerChange::{Closed, Opened};
        let minute = Some(Duration::from_mins(1));
        let open = health(5, minute);
        for (stored, observed, write, breaker) in [
            (health(0, None), health(0, None), HealthWrite::Never, None),
            (
                health(0, None),
                health(1, minute),
                HealthWrite::RateLimited,
                None,
            ),
            (health(4, minute), open, HealthWrite::Now, Some(Opened)),
            (open, health(6, minute), HealthWrite::Never, None),
            (open, health(0, None), HealthWrite::Now, Some(Closed)),
        ] {
            let evaluation = evaluate(&stored, observed, false, DISABLE_AFTER, NOW);
            assert_eq!(evaluation.health, observed, "{stored:?}");
            assert_eq!(evaluation.disable, None, "{stored:?}");
            assert_eq!(evaluation.write, write, "{stored:?}");
            assert_eq!(evaluation.breaker, breaker, "{stored:?}");
        }
    }

    /// A 410 disables at once, and so does a failing time that reached the limit.
    #[test]
    fn failing_time_or_gone_disables() {
        let almost = Some(DISABLE_AFTER.saturating_sub(Duration::from_millis(1)));
        let failed = Some(DisableReason::FailedFor(DISABLE_AFTER));
        let gone = Some(DisableReason::Gone);
        for (failing_for, is_gone, disable) in [
            (None, false, None),
            (almost, false, None),
            (Some(DISABLE_AFTER), false, failed),
            (None, true, gone),
            (Some(DISABLE_AFTER), true, gone),
        ] {
            let health = health(0, failing_for);
            let evaluation = evaluate(&health, health, is_gone, DISABLE_AFTER, NOW);
            assert_eq!(evaluation.disable, disable, "{failing_for:?} {is_gone}");
        }
    }

    #[test]
    fn disable_reasons_are_sentences() {
        for (reason, expected) in [
            (DisableReason::Gone, "The endpoint responded with 410 Gone."),
            (
                DisableReason::FailedFor(DISABLE_AFTER),
                "Every attempt of the last 5 days failed.",
            ),
            (
                DisableReason::FailedFor(Duration::from_mins(90)),
                "Every attempt of the last 90 minutes failed.",
            ),
        ] {
            assert_eq!(reason.to_string(), expected);
        }
    }
}
