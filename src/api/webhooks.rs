//! `/api/v1/webhooks`: the documented operations.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
    http::{HeaderMap, request::Parts},
    response::Response,
};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    Api, Envelope, Error,
    auth::Authenticated,
    body::{self, JsonBody, NoBody},
    created, success,
};
use crate::{
    clock::Instant,
    delivery::attempt::FailureKind,
    queue::Timer,
    store::{
        changes::Change,
        parked::Unparking,
        webhooks::{Created, Idempotency, NewWebhook, Subscriber},
    },
    webhook::{EndpointUrl, Events, Secret, Status, Webhook, WebhookId},
};

/// How long an `Idempotency-Key` is remembered.
const IDEMPOTENCY: Duration = Duration::from_hours(24);
/// The longest description, in characters.
const MAX_DESCRIPTION: usize = 500;
/// The longest `Idempotency-Key`.
const MAX_IDEMPOTENCY_KEY: usize = 255;

/// A webhook as it is shown: exactly the four documented fields.
#[derive(Serialize)]
pub(super) struct View {
    id: u64,
    url: String,
    events: Vec<&'static str>,
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
#[derive(Serialize)]
pub(super) struct Detailed {
    #[serde(flatten)]
    webhook: View,
    created_at: String,
    updated_at: String,
    description: Option<String>,
    signed: bool,
    disabled_reason: Option<String>,
    health: HealthView,
}

/// How an endpoint does.
#[derive(Serialize)]
struct HealthView {
    state: &'static str,
    failing_since: Option<String>,
    last_success_at: Option<String>,
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
                failing_since: health.failing_since.map(Instant::rfc3339),
                last_success_at: health.last_success_at.map(Instant::rfc3339),
                last_failure: health.last_failure,
            },
        }
    }
}

/// What a webhook is changed by. Of what may be `null`, `Some(None)` is that.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Patch {
    #[serde(deserialize_with = "url")]
    url: Option<EndpointUrl>,
    #[serde(deserialize_with = "events")]
    events: Option<Events>,
    #[serde(deserialize_with = "status")]
    status: Option<Status>,
    #[serde(deserialize_with = "secret_or_null")]
    secret_key: Option<Option<Secret>>,
    #[serde(deserialize_with = "description_or_null")]
    description: Option<Option<String>>,
}

/// What a webhook is created from.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Create {
    #[serde(default, deserialize_with = "url")]
    url: Option<EndpointUrl>,
    #[serde(default, deserialize_with = "events")]
    events: Option<Events>,
    #[serde(default, deserialize_with = "secret")]
    secret_key: Option<Secret>,
    #[serde(default, deserialize_with = "description")]
    description: Option<String>,
}

/// `GET /api/v1/webhooks`
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Authenticated(account): Authenticated,
) -> Result<Json<Envelope<Vec<View>>>, Error> {
    let webhooks = api.store.webhooks(&account).await?;
    Ok(success(webhooks.iter().map(View::from).collect()))
}

/// `POST /api/v1/webhooks`
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

/// `GET /api/v1/webhooks/{id}`
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    Authenticated(account): Authenticated,
    Subject(id): Subject,
) -> Result<Json<Envelope<Detailed>>, Error> {
    let subscriber = api.store.subscriber(&account, id).await?.ok_or_else(|| no_webhook(id))?;
    Ok(success(Detailed::from(&subscriber)))
}

/// `PATCH /api/v1/webhooks/{id}`
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
            Err(error) => tracing::warn!(%account, webhook = %id, %error, "parked deliveries are left to the sweep"),
        }
    }
    let subscriber = api.store.subscriber(&account, id).await?.ok_or_else(|| no_webhook(id))?;
    Ok(success(Detailed::from(&subscriber)))
}

/// `DELETE /api/v1/webhooks/{id}`
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    Authenticated(account): Authenticated,
    Subject(id): Subject,
    _: NoBody,
) -> Result<Json<Envelope<serde_json::Value>>, Error> {
    if !api.store.delete_webhook(&account, id).await? {
        return Err(no_webhook(id));
    }
    if let Err(error) = api.store.cancel_pending(&account, id, api.clock.now(), api.retention).await {
        // The webhook is deleted, which is what was asked for; what is pending is cancelled as it comes up.
        tracing::warn!(%account, webhook = %id, %error, "not all pending deliveries were cancelled at once");
    }
    Ok(success(json!({ "id": id.get() })))
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
fn idempotency(headers: &HeaderMap, body: &[u8], now: Instant) -> Result<Option<Idempotency>, Error> {
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
