//! The right to probe an endpoint whose circuit breaker is open.

use crate::{
    clock::Clock,
    metrics::{Counter, Metrics},
    store::{Result, Store, webhooks::WebhookRecord},
};
use nano_webhooks_core::account_id::AccountId;

/// Acquires the right to probe.
#[derive(Clone, Copy)]
pub(super) struct Prober<'a> {
    pub store: &'a Store,
    pub clock: &'a Clock,
    pub metrics: &'a Metrics,
}

/// Whether the right to probe was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProbeRight {
    /// The caller makes the one attempt of this minute.
    Granted,
    /// A probe was made within the last minute, or the breaker is closed.
    Refused,
}

impl Prober<'_> {
    /// Acquires the right to probe the endpoint of a webhook whose breaker was open when it was
    /// read.
    ///
    /// # Errors
    /// If DynamoDB does not respond. The delivery must not wait for the endpoint then, because it
    /// is unknown whether the endpoint will be probed.
    pub(super) async fn acquire(
        self,
        account: &AccountId,
        record: &WebhookRecord,
    ) -> Result<ProbeRight> {
        let webhook = record.webhook.id;
        let now = self.clock.now();
        let probes = self.store.probes();
        let outcome = probes
            .acquire(account, webhook, &record.health, now)
            .await?;
        if !outcome.is_applied() {
            return Ok(ProbeRight::Refused);
        }
        tracing::info!(account = account.as_str(), %webhook, "Probing an unreachable endpoint");
        self.metrics.increment(Counter::Probes);
        Ok(ProbeRight::Granted)
    }
}
