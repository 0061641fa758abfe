//! The API and the dispatcher, built over the same tables and queue.

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Redirect},
    routing::get,
};
use http::header::CONTENT_TYPE;
use nano_webhooks::{
    api::{self, AppState},
    client::{
        target_guard::TargetGuard,
        webhook_client::{ClientLimits, Timeouts, WebhookClient},
    },
    clock::Clock,
    config::{Config, ConfigError},
    dispatch::{
        Dispatcher, InFlightLimiter, first_attempt::BATCH_WAIT, late_attempts::LateAttempts,
    },
    metrics::{Metrics, prometheus},
    queue::RetryQueue,
    store::Store,
};
use nano_webhooks_core::delivery::scheduled_retry::ScheduledRetry;
use tokio::sync::mpsc;

use super::{descriptor_shares::DescriptorShares, retry_timer::CHANNEL_CAPACITY};

pub struct Services<'a> {
    store: Store,
    queue: RetryQueue,
    metrics: Metrics,
    config: &'a Config,
    clock: Clock,
    shares: DescriptorShares,
    client_limits: ClientLimits,
}

impl<'a> Services<'a> {
    /// Returns the services and the receiver of the retries that they schedule.
    pub fn new(
        store: Store,
        config: &'a Config,
        clock: Clock,
        shares: DescriptorShares,
    ) -> (Self, mpsc::Receiver<ScheduledRetry>) {
        let (sender, scheduled_retries) = mpsc::channel(CHANNEL_CAPACITY);
        let services = Self {
            store,
            queue: RetryQueue::Local(sender),
            metrics: Metrics::prometheus(),
            config,
            clock,
            shares,
            client_limits: shares.client_limits(),
        };
        (services, scheduled_retries)
    }

    /// Builds the API with the additional routes `/metrics` and `/`, which redirects to the portal.
    pub fn build_router(&self) -> Result<Router, ConfigError> {
        let state = AppState {
            store: self.store.clone(),
            queue: self.queue.clone(),
            retention: self.config.retention,
            account_claim: None,
            guard: self.build_guard(),
            client: self.build_client(Timeouts::QUEUED)?,
            clock: self.clock.clone(),
            webhooks_per_account: self.config.webhooks_per_account,
            max_test_events: self.config.max_test_events(),
            rate_limits: self.config.rate_limits,
        };
        let local_routes = Router::new()
            .route("/", get(redirect_to_portal))
            .route("/metrics", get(metrics_handler))
            .with_state(self.metrics.clone());
        Ok(api::router_with_extra_routes(state, local_routes))
    }

    pub fn build_dispatcher(&self) -> Result<Dispatcher, ConfigError> {
        Ok(Dispatcher {
            store: self.store.clone(),
            direct_client: self.build_client(Timeouts::DIRECT)?,
            retry_client: self.build_client(Timeouts::QUEUED)?,
            queue: self.queue.clone(),
            batch_wait: BATCH_WAIT,
            late_attempts: LateAttempts::enabled(self.shares.late_attempts()),
            limiter: InFlightLimiter::default(),
            clock: self.clock.clone(),
            schedule: self.config.retry_schedule.clone(),
            retention: self.config.retention,
            disable_after: self.config.disable_after,
            operator_topic: None,
            metrics: self.metrics.clone(),
        })
    }

    fn build_guard(&self) -> TargetGuard {
        let resolver = self.client_limits.resolver.clone();
        self.config.guard().with_resolver(resolver)
    }

    fn build_client(&self, timeouts: Timeouts) -> Result<WebhookClient, ConfigError> {
        let ca_file = self.config.extra_ca_file.as_deref();
        let client = WebhookClient::new(self.config.guard(), timeouts, ca_file)
            .map_err(|error| ConfigError::new("--ca-file (NANO_WEBHOOKS_EXTRA_CA_FILE)", error))?;
        Ok(client.with_limits(&self.client_limits))
    }
}

async fn redirect_to_portal() -> Redirect {
    Redirect::temporary("/portal")
}

/// The metrics of this process for Prometheus.
async fn metrics_handler(State(metrics): State<Metrics>) -> impl IntoResponse {
    ([(CONTENT_TYPE, prometheus::CONTENT_TYPE)], metrics.render())
}
