//! `/api/v1/webhooks`: lists, creates, gets, updates and deletes webhooks.

mod requests;
mod responses;

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::Response,
};

use super::{
    auth::AuthenticatedAccount,
    body::{EmptyBody, JsonBody},
    error::{ApiError, ErrorResponse},
    path::{ApiPath, WebhookPath},
    responses::{SuccessResponse, created, ok},
    state::AppState,
};
use crate::{
    clock::Deadline,
    error_chain::error_chain,
    store::{
        self,
        due_index::DueDelivery,
        update::WebhookUpdate,
        webhooks::{CreateOutcome, WebhookRecord},
    },
};
use nano_webhooks_core::delivery::scheduled_retry::ScheduledRetry;
use nano_webhooks_core::{
    account_id::AccountId,
    endpoint_url::EndpointUrl,
    timestamp::Timestamp,
    webhook::{WebhookId, WebhookStatus},
};
pub(super) use requests::{CreateWebhookRequest, UpdateWebhookRequest};
use requests::{IdempotencyKeyHeader, bind_idempotency_key, parse_idempotency_key};
use responses::{DeleteWebhookResponse, WebhookDetailResponse, WebhookResponse};

/// Limit of the first step of a resume, which the client waits for.
const FIRST_STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// List webhooks
///
/// Returns all webhooks of the account, ordered by id.
#[utoipa::path(
    get,
    path = "/api/v1/webhooks",
    operation_id = "listWebhooks",
    tag = "Webhooks",
    responses(
        (
            status = 200,
            description = "The webhooks.",
            body = Vec<WebhookResponse>,
            example = json!({
                "success": true,
                "data": [{
                    "id": 1,
                    "url": "https://example.com/hooks",
                    "events": ["job.completed", "job.failed"],
                    "status": "active",
                }],
            }),
        ),
        AuthenticatedAccount,
    ),
)]
pub(super) async fn list(
    State(state): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
) -> Result<Json<SuccessResponse<Vec<WebhookResponse>>>, ApiError> {
    let webhooks = state.store.webhooks().list(&account).await?;
    Ok(ok(webhooks.iter().map(WebhookResponse::from).collect()))
}

/// Create a webhook
///
/// The response does not contain the secret.
#[utoipa::path(
    post,
    path = "/api/v1/webhooks",
    operation_id = "createWebhook",
    tag = "Webhooks",
    params(IdempotencyKeyHeader),
    request_body(
        content = CreateWebhookRequest,
        example = json!({
            "url": "https://example.com/hooks",
            "events": ["job.completed", "job.failed"],
            "secret_key": "my-secret-key",
        }),
    ),
    responses(
        (
            status = 201,
            description = "The webhook was created.",
            body = WebhookResponse,
            headers(("Location" = String, description = "The path of the webhook.")),
            example = json!({
                "success": true,
                "data": {
                    "id": 1,
                    "url": "https://example.com/hooks",
                    "events": ["job.completed", "job.failed"],
                    "status": "active",
                },
            }),
        ),
        (
            status = 409,
            description = "The account has reached its limit of webhooks, or the \
                `Idempotency-Key` was used for a different request.",
            body = ErrorResponse,
            example = json!({
                "success": false,
                "error": {
                    "code": "conflict",
                    "message": "The account has reached its limit of 50 webhooks; delete one first",
                },
            }),
        ),
        AuthenticatedAccount,
        JsonBody<CreateWebhookRequest>,
    ),
)]
pub(super) async fn create(
    State(state): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    headers: HeaderMap,
    JsonBody(request): JsonBody<CreateWebhookRequest>,
) -> Result<Response, ApiError> {
    let now = state.clock.now();
    let idempotency_key = parse_idempotency_key(&headers)?;
    let new = request.into_new_webhook()?;
    check_target(&state, &account, &new.url).await?;
    let idempotency_key = idempotency_key.map(|key| bind_idempotency_key(key, &new, now));
    let limit = state.webhooks_per_account;
    let outcome = state
        .store
        .webhooks()
        .create(&account, &new, limit, idempotency_key.as_ref(), now)
        .await?;
    match outcome {
        CreateOutcome::Webhook(webhook) => Ok(created(
            StatusCode::CREATED,
            format!("/api/v1/webhooks/{}", webhook.id),
            WebhookResponse::from(&webhook),
        )),
        CreateOutcome::LimitReached => Err(ApiError::Conflict(format!(
            "The account has reached its limit of {limit} webhooks; delete one first"
        ))),
        CreateOutcome::IdempotencyKeyReused => Err(ApiError::Conflict(
            "Idempotency-Key: already used for a different request; use a new key".to_owned(),
        )),
    }
}

/// Get a webhook
///
/// Returns the webhook with the health of its endpoint and, if it is disabled, the reason.
#[utoipa::path(
    get,
    path = "/api/v1/webhooks/{id}",
    operation_id = "getWebhook",
    tag = "Webhooks",
    params(WebhookPath),
    responses(
        (status = 200, description = "The webhook.", body = WebhookDetailResponse),
        AuthenticatedAccount,
        ApiPath<WebhookPath>,
    ),
)]
pub(super) async fn get(
    State(state): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    ApiPath(path): ApiPath<WebhookPath>,
) -> Result<Json<SuccessResponse<WebhookDetailResponse>>, ApiError> {
    let record = load_webhook(&state, &account, path.webhook).await?;
    Ok(ok(WebhookDetailResponse::from(&record)))
}

/// Update a webhook
///
/// Fields that are absent from the request keep their value. Setting `status` to `active` resets
/// the health of the endpoint and sends the deliveries that were paused.
#[utoipa::path(
    patch,
    path = "/api/v1/webhooks/{id}",
    operation_id = "updateWebhook",
    tag = "Webhooks",
    params(WebhookPath),
    request_body(
        content = UpdateWebhookRequest,
        example = json!({ "status": "active", "description": "billing" }),
    ),
    responses(
        (status = 200, description = "The updated webhook.", body = WebhookDetailResponse),
        AuthenticatedAccount,
        ApiPath<WebhookPath>,
        JsonBody<UpdateWebhookRequest>,
    ),
)]
pub(super) async fn update(
    State(state): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    ApiPath(path): ApiPath<WebhookPath>,
    JsonBody(request): JsonBody<UpdateWebhookRequest>,
) -> Result<Json<SuccessResponse<WebhookDetailResponse>>, ApiError> {
    let webhook = path.webhook;
    let mut update = WebhookUpdate::from(request);
    if let Some(limit) = update.max_per_second {
        // The pace goes on if its limit is the same, as when a form sends all its fields.
        let pace = load_webhook(&state, &account, webhook).await?.webhook.pace;
        if pace.map(|pace| pace.max_per_second) == limit {
            update.max_per_second = None;
        }
    }
    if let Some(url) = &update.url {
        check_target(&state, &account, url).await?;
    }
    let now = state.clock.now();
    let outcome = state
        .store
        .webhooks()
        .update(&account, webhook, &update, now)
        .await?;
    if !outcome.is_applied() {
        return Err(webhook_not_found(webhook));
    }
    if update.resets_health() {
        start_resume(&state, &account, webhook, now).await;
    }
    let record = load_webhook(&state, &account, webhook).await?;
    Ok(ok(WebhookDetailResponse::from(&record)))
}

/// Delete a webhook
///
/// Pending deliveries are cancelled. All deliveries stay readable. The request body may be absent
/// or `{}`.
#[utoipa::path(
    delete,
    path = "/api/v1/webhooks/{id}",
    operation_id = "deleteWebhook",
    tag = "Webhooks",
    params(WebhookPath),
    responses(
        (
            status = 200,
            description = "The webhook was deleted.",
            body = DeleteWebhookResponse,
            example = json!({ "success": true, "data": { "id": 1 } }),
        ),
        AuthenticatedAccount,
        ApiPath<WebhookPath>,
        EmptyBody,
    ),
)]
pub(super) async fn delete(
    State(state): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    ApiPath(path): ApiPath<WebhookPath>,
    _: EmptyBody,
) -> Result<Json<SuccessResponse<DeleteWebhookResponse>>, ApiError> {
    let webhook = path.webhook;
    let now = state.clock.now();
    let webhooks = state.store.webhooks();
    let outcome = webhooks.delete(&account, webhook, now).await?;
    if !outcome.is_applied() {
        return Err(webhook_not_found(webhook));
    }
    let cancelled = state
        .store
        .leases()
        .cancel_pending(&account, webhook, now, state.retention)
        .await;
    if let Err(error) = cancelled {
        // The request succeeded: the webhook is deleted, and a delivery that becomes due is
        // cancelled then.
        tracing::warn!(
            account = account.as_str(), %webhook, error = error_chain(&error),
            "Could not cancel all pending deliveries of a deleted webhook; \
             they are cancelled when they are due"
        );
    }
    Ok(ok(DeleteWebhookResponse { id: webhook.get() }))
}

/// Checks that the host of a URL can resolve, and the target policy.
async fn check_target(
    state: &AppState,
    account: &AccountId,
    url: &EndpointUrl,
) -> Result<(), ApiError> {
    if !url.has_resolvable_host() {
        let expected = "expected a host name of at most 253 characters, each part of 1 to 63";
        return Err(ApiError::field("url", expected));
    }
    state
        .guard
        .check_registration(account, url)
        .await
        .map_err(|error| ApiError::field("url", error.to_string()))
}

/// Runs the first step of sending the paused deliveries. The scheduled job runs the other steps,
/// and what is left of this one if it fails.
async fn start_resume(state: &AppState, account: &AccountId, webhook: WebhookId, now: Timestamp) {
    let mut due = Vec::new();
    let step = run_first_step(state, account, webhook, now, &mut due).await;
    let retries = due.into_iter().map(ScheduledRetry::from).collect();
    state.retry_scheduler().schedule(retries, now).await;
    if let Err(error) = step {
        tracing::warn!(
            account = account.as_str(), %webhook, error = error_chain(&error),
            "Could not resume paused deliveries; they are resumed within a minute"
        );
    }
}

async fn run_first_step(
    state: &AppState,
    account: &AccountId,
    webhook: WebhookId,
    now: Timestamp,
    due: &mut Vec<DueDelivery>,
) -> Result<(), store::Error> {
    let deadline = Deadline::from_now(FIRST_STEP_TIMEOUT);
    let resumes = state.store.resumes();
    match resumes.get(account, webhook).await? {
        Some(job) => resumes.run_step(&job, now, deadline, due).await,
        None => Ok(()),
    }
}

/// Loads a webhook, or returns 404.
pub(super) async fn load_webhook(
    state: &AppState,
    account: &AccountId,
    webhook: WebhookId,
) -> Result<WebhookRecord, ApiError> {
    let record = state.store.webhooks().get_record(account, webhook).await?;
    record.ok_or_else(|| webhook_not_found(webhook))
}

/// Loads a webhook, or returns 404 if it does not exist, and 409 if it is disabled.
pub(super) async fn load_active_webhook(
    state: &AppState,
    account: &AccountId,
    webhook: WebhookId,
) -> Result<WebhookRecord, ApiError> {
    let record = load_webhook(state, account, webhook).await?;
    match record.webhook.status {
        WebhookStatus::Active => Ok(record),
        WebhookStatus::Disabled => Err(ApiError::Conflict(format!(
            "Webhook {webhook} is disabled; enable it first"
        ))),
    }
}

/// The 404 response for a webhook.
pub(super) fn webhook_not_found(webhook: WebhookId) -> ApiError {
    ApiError::no_such("webhook", webhook)
}
