//! `/api/v1/webhooks`: the documented operations.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
    http::{HeaderMap, request::Parts},
    response::Response,
};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::{
    Api, Envelope, Error,
    auth::Authenticated,
    body::{self, JsonBody, NoBody},
    created, error,
    openapi::{self, EventType as EventName, FailureKind as FailureName, HealthState, WebhookStatus},
    success,
};
use crate::{
    queue::Timer,
    store::{
        resume::Unparking,
        update::Change,
        webhooks::{Created, Idempotency, NewWebhook, Subscriber},
    },
};
use nano_webhooks_core::{
    delivery::attempt::FailureKind,
    timestamp::Timestamp,
    webhook::{EndpointUrl, Events, Secret, Status, Webhook, WebhookId},
};

/// How long an `Idempotency-Key` is remembered.
const IDEMPOTENCY: Duration = Duration::from_hours(24);
/// The longest description, in characters.
pub(super) const MAX_DESCRIPTION: usize = 500;
/// The longest `Idempotency-Key`.
pub(super) const MAX_IDEMPOTENCY_KEY: usize = 255;

/// A webhook: an endpoint, and what it subscribes to.
// Exactly the four documented fields.
#[derive(Serialize, ToSchema)]
#[schema(as = Webhook)]
pub(super) struct View {
    /// Counted from 1 within the account, never reused.
    #[schema(schema_with = openapi::number_of_webhook)]
    id: u64,
    /// Where callbacks go, as it was given.
    url: String,
    #[schema(value_type = Vec<EventName>)]
    events: Vec<&'static str>,
    #[schema(value_type = WebhookStatus)]
    status: &'static str,
}

impl From<&Webhook> for View {
    fn from(webhook: &Webhook) -> Self {
        Self {
            id: webhook.id.get(),
            url: webhook.url.as_str().to_owned(),
            events: webhook.events.names().collect(),
            status: webhook.status.name(),
        }
    }
}

/// A webhook with all that is known of it.
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
    "disabled_reason": null,
    "health": {"state": "healthy", "failing_since": null, "last_success_at": null, "last_failure": null},
}))]
pub(super) struct Detailed {
    #[serde(flatten)]
    webhook: View,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    updated_at: String,
    /// The account's own note.
    #[schema(required)]
    description: Option<String>,
    /// Whether it has a secret, so that what it receives is signed.
    signed: bool,
    /// Why it was disabled; `null` while it is active.
    #[schema(required)]
    disabled_reason: Option<String>,
    health: HealthView,
}

/// How an endpoint does.
#[derive(Serialize, ToSchema)]
#[schema(as = Health)]
pub(super) struct HealthView {
    #[schema(value_type = HealthState)]
    state: &'static str,
    #[schema(required, format = DateTime)]
    failing_since: Option<String>,
    /// The first success since something was wrong, or ever: a success among successes is not written down.
    #[schema(required, format = DateTime)]
    last_success_at: Option<String>,
    #[schema(required, value_type = Option<FailureName>)]
    last_failure: Option<FailureKind>,
}

impl From<&Subscriber> for Detailed {
    fn from(Subscriber { webhook, secrets, health, detail }: &Subscriber) -> Self {
        Self {
            webhook: View::from(webhook),
            created_at: detail.created_at.rfc3339(),
            updated_at: detail.updated_at.rfc3339(),
            description: detail.description.clone(),
            signed: !secrets.is_empty(),
            disabled_reason: detail.disabled_reason.clone(),
            health: HealthView {
                state: health.state(),
                failing_since: health.failing_since.map(Timestamp::rfc3339),
                last_success_at: health.last_success_at.map(Timestamp::rfc3339),
                last_failure: health.last_failure,
            },
        }
    }
}

/// What a webhook is changed by.
// Of what may be `null`, `Some(None)` is that.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = WebhookChange)]
pub(super) struct Patch {
    #[serde(default, deserialize_with = "url")]
    #[schema(schema_with = openapi::target)]
    url: Option<EndpointUrl>,
    #[serde(default, deserialize_with = "events")]
    #[schema(schema_with = openapi::subscriptions)]
    events: Option<Events>,
    #[serde(default, deserialize_with = "status")]
    #[schema(value_type = WebhookStatus)]
    status: Option<Status>,
    #[serde(default, deserialize_with = "secret_or_null")]
    #[schema(schema_with = openapi::secret)]
    secret_key: Option<Option<Secret>>,
    #[serde(default, deserialize_with = "description_or_null")]
    #[schema(schema_with = openapi::note)]
    description: Option<Option<String>>,
}

/// What a webhook is created from.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewWebhook)]
pub(super) struct Create {
    #[serde(default, deserialize_with = "url")]
    #[schema(required, schema_with = openapi::target)]
    url: Option<EndpointUrl>,
    #[serde(default, deserialize_with = "events")]
    #[schema(required, schema_with = openapi::subscriptions)]
    events: Option<Events>,
    #[serde(default, deserialize_with = "secret")]
    #[schema(schema_with = openapi::secret)]
    secret_key: Option<Secret>,
    #[serde(default, deserialize_with = "description")]
    #[schema(schema_with = openapi::note)]
    description: Option<String>,
}

/// The webhook that was deleted.
#[derive(Serialize, ToSchema)]
#[schema(as = DeletedWebhook)]
pub(super) struct Removed {
    #[schema(schema_with = openapi::number_of_webhook)]
    id: u64,
}

/// Lists the account's webhooks
///
/// All of them, in the order of their ids.
#[utoipa::path(get, path = "/api/v1/webhooks", operation_id = "listWebhooks", tag = "Webhooks",
    responses((status = 200, description = "The webhooks.", body = Vec<View>,
        example = json!({"success":true,"data":[{"id":1,"url":"https://example.com/hooks","events":["job.completed","job.failed"],"status":"active"}]})),
        Authenticated))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Authenticated(account): Authenticated,
) -> Result<Json<Envelope<Vec<View>>>, Error> {
    let webhooks = api.store.webhooks(&account).await?;
    Ok(success(webhooks.iter().map(View::from).collect()))
}

/// Creates a webhook
///
/// With an `Idempotency-Key`, the same request sent again within 24 hours has the same answer and creates nothing more. The
/// secret is in no answer.
#[utoipa::path(post, path = "/api/v1/webhooks", operation_id = "createWebhook", tag = "Webhooks",
    params(openapi::IdempotencyKey),
    request_body(content = Create, example = json!({"url":"https://example.com/hooks","events":["job.completed","job.failed"],"secret_key":"my-secret-key"})),
    responses((status = 201, description = "The webhook.", body = View,
        headers(("Location" = String, description = "The path of the webhook.")),
        example = json!({"success":true,"data":{"id":1,"url":"https://example.com/hooks","events":["job.completed","job.failed"],"status":"active"}})),
        (status = 409, description = "The account has as many webhooks as it may have, or the `Idempotency-Key` was used \
            with another body.", body = error::Envelope,
        example = json!({"success":false,"error":{"code":"conflict","message":"The account has 50 webhooks, which is its limit: delete one first"}})),
        Authenticated, JsonBody<Create>))]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Authenticated(account): Authenticated,
    headers: HeaderMap,
    JsonBody { value, bytes }: JsonBody<Create>,
) -> Result<Response, Error> {
    let now = api.clock.now();
    let idempotency = idempotency(&headers, &bytes, now)?;
    let url = value.url.ok_or_else(|| Error::field("url", "missing, expected a URL that begins with `https://`"))?;
    let events = value.events.ok_or_else(|| Error::field("events", "missing, expected an array of events"))?;
    api.guard.check(&url).await.map_err(|reason| Error::field("url", reason))?;
    let new = NewWebhook { url, events, secret: value.secret_key, description: value.description };
    let limit = api.webhooks_per_account;
    match api.store.create_webhook(&account, &new, limit, idempotency.as_ref(), now).await? {
        Created::Webhook(webhook) => Ok(created(format!("/api/v1/webhooks/{}", webhook.id), View::from(&webhook))),
        Created::LimitReached => {
            Err(Error::Conflict(format!("The account has {limit} webhooks, which is its limit: delete one first")))
        }
        Created::KeyReused => {
            Err(Error::Conflict("Idempotency-Key: was used with another body, expected a new key".to_owned()))
        }
    }
}

/// Shows a webhook
///
/// With its health and, if it is disabled, why.
#[utoipa::path(get, path = "/api/v1/webhooks/{id}", operation_id = "getWebhook", tag = "Webhooks", params(Subject),
    responses((status = 200, description = "The webhook.", body = Detailed),
        Authenticated, Subject))]
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    Authenticated(account): Authenticated,
    Subject(id): Subject,
) -> Result<Json<Envelope<Detailed>>, Error> {
    let subscriber = api.store.subscriber(&account, id).await?.ok_or_else(|| no_webhook(id))?;
    Ok(success(Detailed::from(&subscriber)))
}

/// Changes a webhook
///
/// What is not named stays. Enabling a webhook forgets its bad health and sends what was parked.
#[utoipa::path(patch, path = "/api/v1/webhooks/{id}", operation_id = "changeWebhook", tag = "Webhooks", params(Subject),
    request_body(content = Patch, example = json!({"status":"active","description":"billing"})),
    responses((status = 200, description = "The webhook as it is now.", body = Detailed), Authenticated, Subject, JsonBody<Patch>))]
pub(super) async fn change(
    State(api): State<Arc<Api>>,
    Authenticated(account): Authenticated,
    Subject(id): Subject,
    JsonBody { value, .. }: JsonBody<Patch>,
) -> Result<Json<Envelope<Detailed>>, Error> {
    if let Some(url) = &value.url {
        api.guard.check(url).await.map_err(|reason| Error::field("url", reason))?;
    }
    let Patch { url, events, status, secret_key: secret, description } = value;
    let change = Change { url, events, status, secret, description };
    let now = api.clock.now();
    if !api.store.change_webhook(&account, id, &change, now).await? {
        return Err(no_webhook(id));
    }
    if status == Some(Status::Active) {
        // The first step at once; the sweep takes the others, and this one too if it fails.
        match api.store.unpark(&Unparking::begin(account.clone(), id, now), now).await {
            Ok(due) => api.queue.set(due.into_iter().map(Timer::from).collect(), now).await,
            Err(error) => {
                tracing::warn!(account = account.as_str(), webhook = %id, %error, "parked deliveries are left to the sweep");
            }
        }
    }
    let subscriber = api.store.subscriber(&account, id).await?.ok_or_else(|| no_webhook(id))?;
    Ok(success(Detailed::from(&subscriber)))
}

/// Deletes a webhook
///
/// What is pending to it is cancelled; its deliveries stay readable. A body is not needed, and may be `{}`.
#[utoipa::path(delete, path = "/api/v1/webhooks/{id}", operation_id = "deleteWebhook", tag = "Webhooks", params(Subject),
    responses((status = 200, description = "The webhook is deleted.", body = Removed,
        example = json!({"success":true,"data":{"id":1}})), Authenticated, Subject, NoBody))]
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    Authenticated(account): Authenticated,
    Subject(id): Subject,
    _: NoBody,
) -> Result<Json<Envelope<Removed>>, Error> {
    if !api.store.delete_webhook(&account, id).await? {
        return Err(no_webhook(id));
    }
    if let Err(error) = api.store.cancel_pending(&account, id, api.clock.now(), api.retention).await {
        // The webhook is deleted, which is what was asked for; what is pending is cancelled as it comes up.
        tracing::warn!(account = account.as_str(), webhook = %id, %error, "not all pending deliveries were cancelled at once");
    }
    Ok(success(Removed { id: id.get() }))
}

pub(super) fn no_webhook(id: WebhookId) -> Error {
    Error::NotFound(format!("No webhook {id}"))
}

/// The webhook that a request's path names. What cannot be an id names nothing that exists.
pub(super) struct Subject(pub WebhookId);

impl<S: Send + Sync> FromRequestParts<S> for Subject {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let id = Path::<String>::from_request_parts(parts, state).await.map_or_else(|_| String::new(), |Path(id)| id);
        let shown: String = id.chars().take(64).collect();
        WebhookId::parse(&id).map(Self).ok_or_else(|| Error::NotFound(format!("No webhook {shown}")))
    }
}

/// The request's `Idempotency-Key`, with a fingerprint of its body.
fn idempotency(headers: &HeaderMap, body: &[u8], now: Timestamp) -> Result<Option<Idempotency>, Error> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key =
        value.to_str().ok().filter(|key| (1..=MAX_IDEMPOTENCY_KEY).contains(&key.len()) && values.next().is_none());
    let key =
        key.ok_or_else(|| Error::field("Idempotency-Key", "expected one, of 1 to 255 printable ASCII characters"))?;
    Ok(Some(Idempotency { key: key.to_owned(), sha256: Sha256::digest(body).into(), expires_at: now + IDEMPOTENCY }))
}

fn url<'de, D: Deserializer<'de>>(from: D) -> Result<Option<EndpointUrl>, D::Error> {
    EndpointUrl::parse(&body::string(from)?).map(Some).map_err(D::Error::custom)
}

fn events<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Events>, D::Error> {
    Events::parse(body::strings(from)?.iter().map(String::as_str)).map(Some).map_err(D::Error::custom)
}

fn status<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Status>, D::Error> {
    let status = Status::parse(&body::string(from)?);
    status.map(Some).ok_or_else(|| D::Error::custom("expected `active` or `disabled`"))
}

/// A secret, or `null` for none.
pub(super) fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret>, D::Error> {
    body::string_or_null(from)?.map(Secret::parse).transpose().map_err(D::Error::custom)
}

fn secret_or_null<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<Secret>>, D::Error> {
    secret(from).map(Some)
}

/// A note, or `null` for none.
fn description<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = body::string_or_null(from)?;
    if text.as_ref().is_some_and(|text| text.chars().count() > MAX_DESCRIPTION) {
        return Err(D::Error::custom("expected at most 500 characters"));
    }
    Ok(text)
}

fn description_or_null<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<String>>, D::Error> {
    description(from).map(Some)
}
