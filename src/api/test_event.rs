//! `/api/v1/webhooks/{id}/test`: a signed sample event, sent now, and how that went.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use utoipa::ToSchema;

use super::{
    Api, Envelope, Error,
    auth::Authenticated,
    body::{self, OptionalBody},
    deliveries::AttemptView,
    openapi, success,
    webhooks::{Subject, no_webhook},
};
use nano_webhooks_core::{
    delivery::attempt::{Failure, Request},
    event::{self, EventId, JobEvent, Outcome},
    signing,
    timestamp::Timestamp,
    webhook::{Account, EventType, WebhookId},
};

/// The job that a sample tells of.
const TASK: &str = "task_test";

/// What is asked for.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Test)]
pub(super) struct Trial {
    #[serde(default, deserialize_with = "event_type")]
    #[schema(value_type = openapi::EventType)]
    event: Option<EventType>,
}

/// The attempt as it went.
#[derive(Serialize, ToSchema)]
#[schema(as = TestAttempt)]
pub(super) struct View {
    #[schema(value_type = openapi::EventType)]
    event: &'static str,
    /// The body that was sent.
    payload: String,
    url: String,
    #[serde(flatten)]
    attempt: AttemptView,
    /// What `X-Nano-Signature` signs, when the receiver refused it: to compare with what the receiver has computed.
    #[schema(required)]
    signed_content: Option<String>,
}

/// Sends a sample event
///
/// It is signed, sent now, and answered with how that went; it is not in the webhook's deliveries. The event's type is the
/// first that the webhook subscribes to, unless the body names one.
#[utoipa::path(post, path = "/api/v1/webhooks/{id}/test", operation_id = "testWebhook", tag = "Webhooks", params(Subject),
    request_body(content = Option<Trial>, example = json!({"event":"job.completed"})),
    responses((status = 200, description = "The attempt, also if it failed.", body = View),
        Authenticated, Subject, OptionalBody<Trial>))]
pub(super) async fn send(
    State(api): State<Arc<Api>>,
    Authenticated(account): Authenticated,
    Subject(id): Subject,
    OptionalBody(Trial { event }): OptionalBody<Trial>,
) -> Result<Json<Envelope<View>>, Error> {
    let subscriber = api.store.subscriber(&account, id).await?.ok_or_else(|| no_webhook(id))?;
    let url = &subscriber.webhook.url;
    let subscribed = EventType::ALL.into_iter().find(|event| subscriber.webhook.events.contain(*event));
    let event = event.or(subscribed).unwrap_or(EventType::JobCompleted);
    let now = api.clock.now();
    let secrets = api.store.secrets_of(&account, &subscriber, now).await?;
    let event_id = EventId::at(now, &account, TASK, event);
    let payload = sample(event, &account, id, url.as_str(), now);
    let signatures = signing::sign(&secrets, &event_id, now, payload.as_bytes());
    let request = Request {
        id: &event_id,
        event,
        number: 1,
        at: now,
        signatures: signatures.as_ref(),
        traceparent: None,
        version: crate::VERSION,
    };
    let (attempt, outcome) = api.client.attempt(url, request, &payload, api.client.limits().total).await;
    let refused = matches!(outcome.failure, Some(Failure::Status(_)));
    let signed_content = (refused && signatures.is_some()).then(|| format!("{}.{payload}", now.seconds()));
    let attempt = AttemptView::new(&event_id, event, None, &attempt);
    Ok(success(View { event: event.name(), payload, url: url.as_str().to_owned(), attempt, signed_content }))
}

/// An event as it would come, of a job that there never was.
fn sample(event: EventType, account: &Account, id: WebhookId, url: &str, now: Timestamp) -> String {
    let outcome = match event {
        EventType::JobCompleted => Outcome::Completed,
        EventType::JobFailed => Outcome::Failed,
        EventType::WebhookDisabled => {
            return event::webhook_disabled(id, url, "This is a test: nothing was disabled.", &now.rfc3339());
        }
    };
    JobEvent::sample(EventId::at(now, account, TASK, event), account.clone(), TASK, outcome, now).body()
}

fn event_type<'de, D: Deserializer<'de>>(from: D) -> Result<Option<EventType>, D::Error> {
    let event = EventType::parse(&body::string(from)?);
    let known = || EventType::ALL.map(EventType::name).join("`, `");
    event.map(Some).ok_or_else(|| D::Error::custom(format!("expected one of `{}`", known())))
}
