//! Webhooks as clients see them.

use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    api::schemas::{
        self, EventTypeSchema, FailureKindSchema, HealthStateSchema, WebhookStatusSchema,
    },
    store::webhooks::WebhookRecord,
};
use nano_webhooks_core::{
    delivery::{endpoint_health::EndpointHealth, failure::FailureKind},
    timestamp::Timestamp,
    webhook::Webhook,
};

/// A webhook: the subscription of an endpoint to event types.
// Exactly the four documented fields.
#[derive(Serialize, ToSchema)]
#[schema(as = Webhook)]
pub(crate) struct WebhookResponse {
    /// Counted from 1 in each account. Ids are not reused.
    #[schema(schema_with = schemas::webhook_id)]
    id: u64,
    /// The endpoint URL, exactly as given.
    url: String,
    #[schema(value_type = Vec<EventTypeSchema>)]
    events: Vec<&'static str>,
    #[schema(value_type = WebhookStatusSchema)]
    status: &'static str,
}

impl From<&Webhook> for WebhookResponse {
    fn from(webhook: &Webhook) -> Self {
        Self {
            id: webhook.id.get(),
            url: webhook.url.as_str().to_owned(),
            events: webhook.events.names().collect(),
            status: webhook.status.as_str(),
        }
    }
}

/// A webhook with its settings and the health of its endpoint.
#[derive(Serialize, ToSchema)]
#[schema(as = WebhookDetail, example = json!({
    "id": 1,
    "url": "https://example.com/hooks",
    "events": ["job.completed", "job.failed"],
    "status": "active",
    "created_at": "2024-12-23T10:00:00Z",
    "updated_at": "2024-12-23T10:00:00Z",
    "description": "billing",
    "signed": true,
    "headers": ["X-Api-Key"],
    "disabled_reason": null,
    "max_per_second": null,
    "health": {
        "state": "healthy",
        "failing_since": null,
        "last_failure": null,
        "first_success_after_failure_at": null,
    },
}))]
pub(crate) struct WebhookDetailResponse {
    #[serde(flatten)]
    webhook: WebhookResponse,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    updated_at: String,
    /// The account's own note.
    #[schema(required)]
    description: Option<String>,
    /// Whether the webhook has a secret, so that requests to the endpoint are signed.
    signed: bool,
    /// The names of the static headers. Their values are not returned.
    headers: Vec<String>,
    /// Why the webhook was disabled. `null` while it is active.
    #[schema(required)]
    disabled_reason: Option<String>,
    #[schema(required, schema_with = schemas::max_per_second)]
    max_per_second: Option<u32>,
    health: HealthResponse,
}

impl From<&WebhookRecord> for WebhookDetailResponse {
    fn from(record: &WebhookRecord) -> Self {
        Self {
            webhook: WebhookResponse::from(&record.webhook),
            created_at: record.metadata.created_at.to_rfc3339(),
            updated_at: record.metadata.updated_at.to_rfc3339(),
            description: record.metadata.description.clone(),
            signed: !record.secrets.is_empty(),
            headers: match &record.headers {
                Some(headers) => headers.names().to_vec(),
                None => Vec::new(),
            },
            disabled_reason: record.metadata.disabled_reason.clone(),
            max_per_second: record.webhook.pace.map(|pace| pace.max_per_second.get()),
            health: HealthResponse::from(&record.health),
        }
    }
}

/// The health of an endpoint, derived from its attempts.
#[derive(Serialize, ToSchema)]
#[schema(as = Health)]
struct HealthResponse {
    #[schema(value_type = HealthStateSchema)]
    state: &'static str,
    /// Every attempt since this time failed. `null` if the latest attempt succeeded.
    #[schema(required, format = DateTime)]
    failing_since: Option<String>,
    /// Why the latest failed attempt failed.
    #[schema(required, value_type = Option<FailureKindSchema>)]
    last_failure: Option<FailureKind>,
    /// Time of the first success after a failure, or of the first success at all. Later successes
    /// do not update it.
    #[schema(required, format = DateTime)]
    first_success_after_failure_at: Option<String>,
}

impl From<&EndpointHealth> for HealthResponse {
    fn from(health: &EndpointHealth) -> Self {
        Self {
            state: health.state().as_str(),
            failing_since: health.failing_since.map(Timestamp::to_rfc3339),
            last_failure: health.last_failure,
            first_success_after_failure_at: health
                .first_success_after_failure_at
                .map(Timestamp::to_rfc3339),
        }
    }
}

/// The webhook that was deleted.
#[derive(Serialize, ToSchema)]
#[schema(as = DeletedWebhook)]
pub(crate) struct DeleteWebhookResponse {
    #[schema(schema_with = schemas::webhook_id)]
    pub id: u64,
}
