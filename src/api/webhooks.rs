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
    ApiError, AppState, SuccessResponse,
    auth::AuthenticatedAccount,
    body::{self, EmptyBody, JsonBody},
    created_response, error, ok,
    openapi::{self, EventTypeSchema, FailureKindSchema, HealthStateSchema, WebhookStatusSchema},
};
use crate::{
    queue::ScheduledRetry,
    store::{
        resume::ResumeJob,
        update::WebhookUpdate,
        webhooks::{CreateOutcome, IdempotencyKey, NewWebhook, WebhookRecord},
    },
};
use nano_webhooks_core::{
    delivery::attempt::FailureKind,
    endpoint_url::EndpointUrl,
    event_type::EventTypes,
    secret::Secret,
    timestamp::Timestamp,
    webhook::{Webhook, WebhookId, WebhookStatus},
};

/// How long an `Idempotency-Key` is remembered.
const IDEMPOTENCY_TTL: Duration = Duration::from_hours(24);
/// The longest description, in characters.
pub(super) const MAX_DESCRIPTION: usize = 500;
/// The longest `Idempotency-Key`.
pub(super) const MAX_IDEMPOTENCY_KEY: usize = 255;

/// A webhook: an endpoint, and what it subscribes to.
// Exactly the four documented fields.
#[derive(Serialize, ToSchema)]
#[schema(as = Webhook)]
pub(super) struct WebhookResponse {
    /// Counted from 1 within the account, never reused.
    #[schema(schema_with = openapi::webhook_id_schema)]
    id: u64,
    /// Where callbacks go, as it was given.
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
pub(super) struct WebhookDetailResponse {
    #[serde(flatten)]
    webhook: WebhookResponse,
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
    health: HealthResponse,
}

/// How an endpoint does.
#[derive(Serialize, ToSchema)]
#[schema(as = Health)]
pub(super) struct HealthResponse {
    #[schema(value_type = HealthStateSchema)]
    state: &'static str,
    #[schema(required, format = DateTime)]
    failing_since: Option<String>,
    /// The first success since something was wrong, or ever: a success among successes is not written down.
    #[schema(required, format = DateTime)]
    last_success_at: Option<String>,
    #[schema(required, value_type = Option<FailureKindSchema>)]
    last_failure: Option<FailureKind>,
}

impl From<&WebhookRecord> for WebhookDetailResponse {
    fn from(
        WebhookRecord {
            webhook,
            secrets,
            health,
            detail,
        }: &WebhookRecord,
    ) -> Self {
        Self {
            webhook: WebhookResponse::from(webhook),
            created_at: detail.created_at.to_rfc3339(),
            updated_at: detail.updated_at.to_rfc3339(),
            description: detail.description.clone(),
            signed: !secrets.is_empty(),
            disabled_reason: detail.disabled_reason.clone(),
            health: HealthResponse {
                state: health.label(),
                failing_since: health.failing_since.map(Timestamp::to_rfc3339),
                last_success_at: health
                    .first_success_after_failure_at
                    .map(Timestamp::to_rfc3339),
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
pub(super) struct UpdateWebhookRequest {
    #[serde(default, deserialize_with = "url")]
    #[schema(schema_with = openapi::url_schema)]
    url: Option<EndpointUrl>,
    #[serde(default, deserialize_with = "events")]
    #[schema(schema_with = openapi::events_schema)]
    events: Option<EventTypes>,
    #[serde(default, deserialize_with = "status")]
    #[schema(value_type = WebhookStatusSchema)]
    status: Option<WebhookStatus>,
    #[serde(default, deserialize_with = "secret_or_null")]
    #[schema(schema_with = openapi::secret)]
    secret_key: Option<Option<Secret>>,
    #[serde(default, deserialize_with = "description_or_null")]
    #[schema(schema_with = openapi::description_schema)]
    description: Option<Option<String>>,
}

/// What a webhook is created from.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewWebhook)]
pub(super) struct CreateWebhookRequest {
    #[serde(default, deserialize_with = "url")]
    #[schema(required, schema_with = openapi::url_schema)]
    url: Option<EndpointUrl>,
    #[serde(default, deserialize_with = "events")]
    #[schema(required, schema_with = openapi::events_schema)]
    events: Option<EventTypes>,
    #[serde(default, deserialize_with = "secret")]
    #[schema(schema_with = openapi::secret)]
    secret_key: Option<Secret>,
    #[serde(default, deserialize_with = "description")]
    #[schema(schema_with = openapi::description_schema)]
    description: Option<String>,
}

/// The webhook that was deleted.
#[derive(Serialize, ToSchema)]
#[schema(as = DeletedWebhook)]
pub(super) struct DeleteWebhookResponse {
    #[schema(schema_with = openapi::webhook_id_schema)]
    id: u64,
}

/// Lists the account's webhooks
///
/// All of them, in the order of their ids.
#[utoipa::path(get, path = "/api/v1/webhooks", operation_id = "listWebhooks", tag = "Webhooks",
    responses((status = 200, description = "The webhooks.", body = Vec<WebhookResponse>,
        example = json!({"success":true,"data":[{"id":1,"url":"https://example.com/hooks","events":["job.completed","job.failed"],"status":"active"}]})),
        AuthenticatedAccount))]
pub(super) async fn list(
    State(api): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
) -> Result<Json<SuccessResponse<Vec<WebhookResponse>>>, ApiError> {
    let webhooks = api.store.webhooks().list(&account).await?;
    Ok(ok(webhooks.iter().map(WebhookResponse::from).collect()))
}

/// Creates a webhook
///
/// With an `Idempotency-Key`, the same request sent again within 24 hours has the same answer and creates nothing more. The
/// secret is in no answer.
#[utoipa::path(post, path = "/api/v1/webhooks", operation_id = "createWebhook", tag = "Webhooks",
    params(openapi::IdempotencyKey),
    request_body(content = CreateWebhookRequest, example = json!({"url":"https://example.com/hooks","events":["job.completed","job.failed"],"secret_key":"my-secret-key"})),
    responses((status = 201, description = "The webhook.", body = WebhookResponse,
        headers(("Location" = String, description = "The path of the webhook.")),
        example = json!({"success":true,"data":{"id":1,"url":"https://example.com/hooks","events":["job.completed","job.failed"],"status":"active"}})),
        (status = 409, description = "The account has as many webhooks as it may have, or the `Idempotency-Key` was used \
            with another body.", body = error::ErrorResponse,
        example = json!({"success":false,"error":{"code":"conflict","message":"The account has 50 webhooks, which is its limit: delete one first"}})),
        AuthenticatedAccount, JsonBody<CreateWebhookRequest>))]
pub(super) async fn create(
    State(api): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    headers: HeaderMap,
    JsonBody { value, bytes }: JsonBody<CreateWebhookRequest>,
) -> Result<Response, ApiError> {
    let now = api.clock.now();
    let idempotency = idempotency(&headers, &bytes, now)?;
    let url = value.url.ok_or_else(|| {
        ApiError::field("url", "missing, expected a URL that begins with `https://`")
    })?;
    let events = value
        .events
        .ok_or_else(|| ApiError::field("events", "missing, expected an array of events"))?;
    api.guard
        .check(&url)
        .await
        .map_err(|reason| ApiError::field("url", reason))?;
    let new = NewWebhook {
        url,
        events,
        secret: value.secret_key,
        description: value.description,
    };
    let limit = api.webhooks_per_account;
    match api
        .store
        .webhooks()
        .create(&account, &new, limit, idempotency.as_ref(), now)
        .await?
    {
        CreateOutcome::Webhook(webhook) => Ok(created_response(
            format!("/api/v1/webhooks/{}", webhook.id),
            WebhookResponse::from(&webhook),
        )),
        CreateOutcome::LimitReached => Err(ApiError::Conflict(format!(
            "The account has {limit} webhooks, which is its limit: delete one first"
        ))),
        CreateOutcome::IdempotencyKeyReused => Err(ApiError::Conflict(
            "Idempotency-Key: was used with another body, expected a new key".to_owned(),
        )),
    }
}

/// Shows a webhook
///
/// With its health and, if it is disabled, why.
#[utoipa::path(get, path = "/api/v1/webhooks/{id}", operation_id = "getWebhook", tag = "Webhooks", params(WebhookPath),
    responses((status = 200, description = "The webhook.", body = WebhookDetailResponse),
        AuthenticatedAccount, WebhookPath))]
pub(super) async fn show(
    State(api): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    WebhookPath(id): WebhookPath,
) -> Result<Json<SuccessResponse<WebhookDetailResponse>>, ApiError> {
    let subscriber = api
        .store
        .webhooks()
        .get_record(&account, id)
        .await?
        .ok_or_else(|| webhook_not_found(id))?;
    Ok(ok(WebhookDetailResponse::from(&subscriber)))
}

/// Changes a webhook
///
/// What is not named stays. Enabling a webhook forgets its bad health and sends what was parked.
#[utoipa::path(patch, path = "/api/v1/webhooks/{id}", operation_id = "changeWebhook", tag = "Webhooks", params(WebhookPath),
    request_body(content = UpdateWebhookRequest, example = json!({"status":"active","description":"billing"})),
    responses((status = 200, description = "The webhook as it is now.", body = WebhookDetailResponse), AuthenticatedAccount, WebhookPath, JsonBody<UpdateWebhookRequest>))]
pub(super) async fn change(
    State(api): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    WebhookPath(id): WebhookPath,
    JsonBody { value, .. }: JsonBody<UpdateWebhookRequest>,
) -> Result<Json<SuccessResponse<WebhookDetailResponse>>, ApiError> {
    if let Some(url) = &value.url {
        api.guard
            .check(url)
            .await
            .map_err(|reason| ApiError::field("url", reason))?;
    }
    let UpdateWebhookRequest {
        url,
        events,
        status,
        secret_key: secret,
        description,
    } = value;
    let change = WebhookUpdate {
        url,
        events,
        status,
        secret,
        description,
    };
    let now = api.clock.now();
    if !api
        .store
        .webhooks()
        .update(&account, id, &change, now)
        .await?
    {
        return Err(webhook_not_found(id));
    }
    if status == Some(WebhookStatus::Active) {
        // The first step at once; the sweep takes the others, and this one too if it fails.
        match api
            .store
            .resumes()
            .run_step(&ResumeJob::new(account.clone(), id, now), now)
            .await
        {
            Ok(due) => {
                api.queue
                    .set(due.into_iter().map(ScheduledRetry::from).collect(), now)
                    .await
            }
            Err(error) => {
                tracing::warn!(account = account.as_str(), webhook = %id, %error, "parked deliveries are left to the sweep");
            }
        }
    }
    let subscriber = api
        .store
        .webhooks()
        .get_record(&account, id)
        .await?
        .ok_or_else(|| webhook_not_found(id))?;
    Ok(ok(WebhookDetailResponse::from(&subscriber)))
}

/// Deletes a webhook
///
/// What is pending to it is cancelled; its deliveries stay readable. A body is not needed, and may be `{}`.
#[utoipa::path(delete, path = "/api/v1/webhooks/{id}", operation_id = "deleteWebhook", tag = "Webhooks", params(WebhookPath),
    responses((status = 200, description = "The webhook is deleted.", body = DeleteWebhookResponse,
        example = json!({"success":true,"data":{"id":1}})), AuthenticatedAccount, WebhookPath, EmptyBody))]
pub(super) async fn remove(
    State(api): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    WebhookPath(id): WebhookPath,
    _: EmptyBody,
) -> Result<Json<SuccessResponse<DeleteWebhookResponse>>, ApiError> {
    if !api.store.webhooks().delete(&account, id).await? {
        return Err(webhook_not_found(id));
    }
    if let Err(error) = api
        .store
        .leases()
        .cancel_pending(&account, id, api.clock.now(), api.retention)
        .await
    {
        // The webhook is deleted, which is what was asked for; what is pending is cancelled as it comes up.
        tracing::warn!(account = account.as_str(), webhook = %id, %error, "not all pending deliveries were cancelled at once");
    }
    Ok(ok(DeleteWebhookResponse { id: id.get() }))
}

pub(super) fn webhook_not_found(id: WebhookId) -> ApiError {
    ApiError::NotFound(format!("No webhook {id}"))
}

/// The webhook that a request's path names. What cannot be an id names nothing that exists.
pub(super) struct WebhookPath(pub WebhookId);

impl<S: Send + Sync> FromRequestParts<S> for WebhookPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let id = Path::<String>::from_request_parts(parts, state)
            .await
            .map_or_else(|_| String::new(), |Path(id)| id);
        let shown: String = id.chars().take(64).collect();
        WebhookId::parse(&id)
            .map(Self)
            .ok_or_else(|| ApiError::NotFound(format!("No webhook {shown}")))
    }
}

/// The request's `Idempotency-Key`, with a fingerprint of its body.
fn idempotency(
    headers: &HeaderMap,
    body: &[u8],
    now: Timestamp,
) -> Result<Option<IdempotencyKey>, ApiError> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let key = value
        .to_str()
        .ok()
        .filter(|key| (1..=MAX_IDEMPOTENCY_KEY).contains(&key.len()) && values.next().is_none());
    let key = key.ok_or_else(|| {
        ApiError::field(
            "Idempotency-Key",
            "expected one, of 1 to 255 printable ASCII characters",
        )
    })?;
    Ok(Some(IdempotencyKey {
        key: key.to_owned(),
        sha256: Sha256::digest(body).into(),
        expires_at: now + IDEMPOTENCY_TTL,
    }))
}

fn url<'de, D: Deserializer<'de>>(from: D) -> Result<Option<EndpointUrl>, D::Error> {
    EndpointUrl::parse(&body::deserialize_string(from)?)
        .map(Some)
        .map_err(D::Error::custom)
}

fn events<'de, D: Deserializer<'de>>(from: D) -> Result<Option<EventTypes>, D::Error> {
    EventTypes::parse(body::deserialize_strings(from)?.iter().map(String::as_str))
        .map(Some)
        .map_err(D::Error::custom)
}

fn status<'de, D: Deserializer<'de>>(from: D) -> Result<Option<WebhookStatus>, D::Error> {
    let status = WebhookStatus::parse(&body::deserialize_string(from)?);
    status
        .map(Some)
        .ok_or_else(|| D::Error::custom("expected `active` or `disabled`"))
}

/// A secret, or `null` for none.
pub(super) fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret>, D::Error> {
    body::deserialize_optional_string(from)?
        .map(Secret::parse)
        .transpose()
        .map_err(D::Error::custom)
}

fn secret_or_null<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<Secret>>, D::Error> {
    secret(from).map(Some)
}

/// A note, or `null` for none.
fn description<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = body::deserialize_optional_string(from)?;
    if text
        .as_ref()
        .is_some_and(|text| text.chars().count() > MAX_DESCRIPTION)
    {
        return Err(D::Error::custom("expected at most 500 characters"));
    }
    Ok(text)
}

fn description_or_null<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Option<String>>, D::Error> {
    description(from).map(Some)
}
