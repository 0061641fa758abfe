//! `/api/v1/webhooks/{id}/test`: a signed sample event, sent now, and how that went.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use utoipa::ToSchema;

use super::{
    ApiError, AppState, SuccessResponse,
    auth::AuthenticatedAccount,
    body::{self, OptionalJson},
    deliveries::AttemptResponse,
    ok, openapi,
    webhooks::{WebhookPath, webhook_not_found},
};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::attempt::{Failure, WebhookRequest},
    event::{self, EventId, JobEvent, JobOutcome},
    event_type::EventType,
    signing,
    timestamp::Timestamp,
    webhook::WebhookId,
};

/// The job that a sample tells of.
const SAMPLE_TASK_ID: &str = "task_test";

/// What is asked for.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Test)]
pub(super) struct TestEventRequest {
    #[serde(default, deserialize_with = "event_type")]
    #[schema(value_type = openapi::EventTypeSchema)]
    event: Option<EventType>,
}

/// The attempt as it went.
#[derive(Serialize, ToSchema)]
#[schema(as = TestAttempt)]
pub(super) struct TestEventResponse {
    #[schema(value_type = openapi::EventTypeSchema)]
    event: &'static str,
    /// The body that was sent.
    payload: String,
    url: String,
    #[serde(flatten)]
    attempt: AttemptResponse,
    /// What `X-Nano-Signature` signs, when the receiver refused it: to compare with what the receiver has computed.
    #[schema(required)]
    signed_content: Option<String>,
}

/// Sends a sample event
///
/// It is signed, sent now, and answered with how that went; it is not in the webhook's deliveries. The event's type is the
/// first that the webhook subscribes to, unless the body names one.
#[utoipa::path(post, path = "/api/v1/webhooks/{id}/test", operation_id = "testWebhook", tag = "Webhooks", params(WebhookPath),
    request_body(content = Option<TestEventRequest>, example = json!({"event":"job.completed"})),
    responses((status = 200, description = "The attempt, also if it failed.", body = TestEventResponse),
        AuthenticatedAccount, WebhookPath, OptionalJson<TestEventRequest>))]
pub(super) async fn send(
    State(api): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    WebhookPath(id): WebhookPath,
    OptionalJson(TestEventRequest { event }): OptionalJson<TestEventRequest>,
) -> Result<Json<SuccessResponse<TestEventResponse>>, ApiError> {
    let subscriber = api
        .store
        .webhooks()
        .get_record(&account, id)
        .await?
        .ok_or_else(|| webhook_not_found(id))?;
    let url = &subscriber.webhook.url;
    let subscribed = EventType::ALL
        .into_iter()
        .find(|event| subscriber.webhook.events.contains(*event));
    let event = event.or(subscribed).unwrap_or(EventType::JobCompleted);
    let now = api.clock.now();
    let secrets = api
        .store
        .secrets()
        .decrypt_active(&account, id, &subscriber.secrets, now)
        .await?;
    let event_id = EventId::synthetic(now, &account, SAMPLE_TASK_ID, event);
    let payload = sample_payload(event, &account, id, url.as_str(), now);
    let signatures = signing::sign(&secrets, &event_id, now, payload.as_bytes());
    let request = WebhookRequest {
        event_id: &event_id,
        event_type: event,
        attempt_number: 1,
        started_at: now,
        signatures: signatures.as_ref(),
        traceparent: None,
        version: crate::VERSION,
    };
    let (attempt, outcome) = api
        .client
        .attempt(url, request, &payload, api.client.limits().total)
        .await;
    let refused = matches!(outcome.failure, Some(Failure::Status(_)));
    let signed_content =
        (refused && signatures.is_some()).then(|| format!("{}.{payload}", now.as_unix_seconds()));
    let attempt = AttemptResponse::new(&event_id, event, None, &attempt);
    Ok(ok(TestEventResponse {
        event: event.as_str(),
        payload,
        url: url.as_str().to_owned(),
        attempt,
        signed_content,
    }))
}

/// An event as it would come, of a job that there never was.
fn sample_payload(
    event: EventType,
    account: &AccountId,
    id: WebhookId,
    url: &str,
    now: Timestamp,
) -> String {
    let outcome = match event {
        EventType::JobCompleted => JobOutcome::Completed,
        EventType::JobFailed => JobOutcome::Failed,
        EventType::WebhookDisabled => {
            return event::webhook_disabled_payload(
                id,
                url,
                "This is a test: nothing was disabled.",
                &now.to_rfc3339(),
            );
        }
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

fn event_type<'de, D: Deserializer<'de>>(from: D) -> Result<Option<EventType>, D::Error> {
    let event = EventType::parse(&body::deserialize_string(from)?);
    let known = || EventType::ALL.map(EventType::as_str).join("`, `");
    event
        .map(Some)
        .ok_or_else(|| D::Error::custom(format!("expected one of `{}`", known())))
}
