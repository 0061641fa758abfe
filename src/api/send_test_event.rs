//! `POST /api/v1/webhooks/{id}/test`: sends a signed sample event and returns the attempt.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    auth::AuthenticatedAccount,
    body::OptionalJson,
    deliveries::AttemptResponse,
    error::ApiError,
    fields::deserialize_event_type,
    path::{ApiPath, WebhookPath},
    responses::{SuccessResponse, ok},
    schemas::EventTypeSchema,
    state::AppState,
    webhooks::load_webhook,
};
use crate::{
    error_chain::error_chain,
    store::{
        self,
        notifications::Notifications,
        test_event_slots::{AcquireOutcome, HeldSlots},
        webhooks::WebhookRecord,
    },
};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{
        attempt::WebhookRequest,
        endpoint_health::{EndpointHealth, Observation},
        failure::Failure,
        health_notice::HealthNotice,
    },
    event::{EventId, JobEvent, JobOutcome},
    event_type::{EventType, EventTypes},
    operational_event::{OperationalEvent, WebhookChange},
    signing,
    timestamp::Timestamp,
    webhook::Webhook,
};

/// The task id in sample events.
const SAMPLE_TASK_ID: &str = "task_test";
/// How often the health update is repeated because another process wrote the health.
const MAX_HEALTH_CONFLICTS: u32 = 4;

/// The test event to send.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TestEventRequest {
    /// The type of the event. By default the first type that the webhook subscribes to.
    #[serde(default, deserialize_with = "deserialize_event_type")]
    #[schema(value_type = EventTypeSchema)]
    event: Option<EventType>,
}

/// A test event and its attempt.
#[derive(Serialize, ToSchema)]
#[schema(as = TestEvent)]
pub(super) struct TestEventResponse {
    #[schema(value_type = EventTypeSchema)]
    event: &'static str,
    /// The request body that was sent.
    payload: String,
    /// The endpoint URL that it was sent to.
    url: String,
    #[serde(flatten)]
    attempt: AttemptResponse,
    /// The string that `X-Nano-Signature` signs, if the webhook has a secret and the endpoint
    /// responded with an error status. Compare it with the string that the endpoint verifies.
    #[schema(required)]
    signed_content: Option<String>,
}

/// Send a test event
///
/// Sends a signed sample event to the endpoint and returns the attempt. A test event is sent once
/// and does not appear in the webhook's deliveries. If the endpoint accepts it, the webhook is no
/// longer `failing`; if not, the webhook's health does not change.
///
/// At most two test events of an account may be in progress; beyond that, and if the service has no
/// capacity for another one, the response is 429.
#[utoipa::path(
    post,
    path = "/api/v1/webhooks/{id}/test",
    operation_id = "sendTestEvent",
    tag = "Webhooks",
    params(WebhookPath),
    request_body(
        content = Option<TestEventRequest>,
        example = json!({ "event": "job.completed" }),
    ),
    responses(
        (
            status = 200,
            description = "The attempt, whether it succeeded or failed.",
            body = TestEventResponse,
        ),
        AuthenticatedAccount,
        ApiPath<WebhookPath>,
        OptionalJson<TestEventRequest>,
    ),
)]
pub(super) async fn send_test_event(
    State(state): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    ApiPath(path): ApiPath<WebhookPath>,
    OptionalJson(request): OptionalJson<TestEventRequest>,
) -> Result<Json<SuccessResponse<TestEventResponse>>, ApiError> {
    let record = load_webhook(&state, &account, path.webhook).await?;
    let event = request
        .event
        .unwrap_or_else(|| first_subscribed(&record.webhook.events));
    let slots = acquire_slots(&state, &account).await?;
    let response = attempt_test_event(&state, &account, &record, event).await;
    if let Err(error) = state.store.test_event_slots().release(&slots).await {
        tracing::warn!(
            account = account.as_str(),
            error = error_chain(&error),
            "Could not free the slots of a test event; they are free again when their leases end"
        );
    }
    Ok(ok(response?))
}

/// Takes the slots of a test event. While it is in progress, a test event occupies an execution of
/// the function, and an endpoint can hang.
async fn acquire_slots(state: &AppState, account: &AccountId) -> Result<HeldSlots, ApiError> {
    let now = state.clock.now();
    let slots = state.store.test_event_slots();
    match slots.acquire(account, state.max_test_events, now).await? {
        AcquireOutcome::Acquired(slots) => Ok(slots),
        AcquireOutcome::Refused {
            retry_after_seconds,
        } => Err(ApiError::TooManyTestEvents {
            retry_after_seconds,
        }),
    }
}

async fn attempt_test_event(
    state: &AppState,
    account: &AccountId,
    record: &WebhookRecord,
    event: EventType,
) -> Result<TestEventResponse, ApiError> {
    let webhook = &record.webhook;
    let now = state.clock.now();
    let credentials = state
        .store
        .webhooks()
        .decrypt_credentials(account, record, now)
        .await?;
    let event_id = EventId::synthetic(now, account, SAMPLE_TASK_ID, event);
    let payload = sample_payload(event, account, webhook, now);
    let signatures = signing::sign(&credentials.secrets, &event_id, now, payload.as_bytes());
    let request = WebhookRequest {
        event_id: &event_id,
        event_type: event,
        attempt_number: 1,
        started_at: now,
        signatures: signatures.as_ref(),
        traceparent: None,
        static_headers: &credentials.headers,
        version: crate::VERSION,
    };
    let attempted = state
        .client
        .attempt(account, &webhook.url, request, &payload);
    let (attempt, outcome) = attempted.await?;
    if outcome.is_success() {
        record_success(state, account, record, outcome.observation()).await;
    }
    let signed_content = match outcome.failure {
        Some(Failure::Status(_)) if signatures.is_some() => {
            Some(format!("{}.{payload}", now.as_unix_seconds()))
        }
        _ => None,
    };
    Ok(TestEventResponse {
        event: event.as_str(),
        payload,
        url: webhook.url.as_str().to_owned(),
        attempt: AttemptResponse::new(&event_id, event, None, &attempt),
        signed_content,
    })
}

/// Updates the endpoint health after an accepted test event, so that the endpoint no longer counts
/// as failing. A rejected one changes nothing. An error is logged and does not fail the request.
async fn record_success(
    state: &AppState,
    account: &AccountId,
    tested: &WebhookRecord,
    observation: Observation,
) {
    let now = state.clock.now();
    let webhook = tested.webhook.id;
    let predicted = tested.health.observe(observation, now);
    if !predicted.needs_write(&tested.health) {
        return;
    }
    if let Err(error) = write_success(state, account, &tested.webhook, observation, now).await {
        tracing::warn!(
            account = account.as_str(), %webhook, error = error_chain(&error),
            "Could not update the endpoint health after a test event"
        );
    }
}

/// Applies the success to the stored health, which may have changed while the endpoint responded.
/// If other processes write the health at the same time, the next attempt observes the same.
async fn write_success(
    state: &AppState,
    account: &AccountId,
    tested: &Webhook,
    observation: Observation,
    now: Timestamp,
) -> Result<(), store::Error> {
    for _ in 0..MAX_HEALTH_CONFLICTS {
        let webhooks = state.store.webhooks();
        let Some(current) = webhooks.get_record(account, tested.id).await? else {
            return Ok(());
        };
        let health = current.health.observe(observation, now);
        if current.webhook.url != tested.url || !health.needs_write(&current.health) {
            return Ok(());
        }
        let notifications = report_recovery(state, account, &current, &health, now).await?;
        let items = state.store.health();
        let retention = state.retention;
        let written = items
            .write(account, &current, &health, &notifications, now, retention)
            .await?;
        if !written.is_applied() {
            continue;
        }
        let deliveries = &notifications.deliveries;
        state
            .retry_scheduler()
            .schedule_pending(deliveries, now)
            .await;
        if current.health.is_open() {
            tracing::info!(
                account = account.as_str(), webhook = %tested.id,
                "Circuit breaker closed; deliveries that waited are resumed"
            );
        }
        return Ok(());
    }
    Ok(())
}

/// The report that the endpoint recovered, if its failing was reported.
async fn report_recovery(
    state: &AppState,
    account: &AccountId,
    current: &WebhookRecord,
    health: &EndpointHealth,
    now: Timestamp,
) -> Result<Notifications, store::Error> {
    let Some(failing_since) = HealthNotice::recovery(&current.health, health) else {
        return Ok(Notifications::default());
    };
    let event = OperationalEvent {
        webhook: current.webhook.id,
        url: current.webhook.url.as_str().to_owned(),
        change: WebhookChange::Recovered { failing_since },
    };
    state.store.webhooks().notify(account, &event, now).await
}

/// The first of all event types that is in `events`.
fn first_subscribed(events: &EventTypes) -> EventType {
    EventType::ALL
        .into_iter()
        .find(|event| events.contains(*event))
        .unwrap_or(EventType::JobCompleted)
}

fn sample_payload(
    event: EventType,
    account: &AccountId,
    webhook: &Webhook,
    now: Timestamp,
) -> String {
    let url = webhook.url.as_str();
    if let Some(sample) = OperationalEvent::sample(event, webhook.id, url, now) {
        return sample.payload(now);
    }
    let outcome = match event {
        EventType::JobFailed => JobOutcome::Failed,
        _ => JobOutcome::Completed,
    };
    JobEvent::sample(
        EventId::synthetic(now, account, SAMPLE_TASK_ID, event),
        account.clone(),
        SAMPLE_TASK_ID,
        outcome,
        now,
    )
    .to_canonical_json()
}
