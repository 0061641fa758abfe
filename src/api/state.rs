//! What the handlers share.

use std::time::Duration;

use crate::{
    client::{target_guard::TargetGuard, webhook_client::WebhookClient},
    clock::Clock,
    queue::{RetryQueue, scheduler::RetryScheduler},
    store::{Store, rate_limits::RateLimits},
};

/// Dependencies and settings of the API.
#[derive(Clone)]
pub struct AppState {
    /// The webhooks and deliveries tables.
    pub store: Store,
    /// The claim of API Gateway's authorizer that names the account. `None`: requests authenticate
    /// with API keys, and the authorizer's context is ignored.
    pub account_claim: Option<String>,
    /// Checks the URL of each webhook that is created or updated.
    pub guard: TargetGuard,
    /// Sends test events.
    pub client: WebhookClient,
    /// The time.
    pub clock: Clock,
    /// Schedules retries, replays and resumed deliveries.
    pub queue: RetryQueue,
    /// How long a delivery is kept after it is delivered, failed or cancelled.
    pub retention: Duration,
    /// Limit of webhooks per account.
    pub webhooks_per_account: u32,
    /// Limit of test events in progress in the deployment.
    pub max_test_events: u32,
    /// Limits of requests per account.
    pub rate_limits: RateLimits,
}

impl AppState {
    pub(super) const fn retry_scheduler(&self) -> RetryScheduler<'_> {
        RetryScheduler {
            store: &self.store,
            queue: &self.queue,
        }
    }
}
