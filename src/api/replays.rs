//! `/api/v1/webhooks/{id}/replay`: sends the deliveries of a time window again.

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State, http::StatusCode, response::Response};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use utoipa::ToSchema;

use super::{
    auth::AuthenticatedAccount,
    body::{EmptyBody, JsonBody},
    error::{ApiError, ErrorResponse},
    fields::{EXPECTED_TIME, deserialize_string, deserialize_time},
    path::{ApiPath, ReplayPath, WebhookPath},
    responses::{SuccessResponse, created, ok},
    schemas,
    state::AppState,
    webhooks::load_active_webhook,
};
use crate::{
    clock::Deadline,
    error_chain::error_chain,
    random,
    store::replays::{
        CreateReplayOutcome, INITIAL_STEP_SIZE, Replay, ReplayFilter, ReplayKey, ReplayState,
    },
};
use nano_webhooks_core::delivery::scheduled_retry::ScheduledRetry;
use nano_webhooks_core::{replay::ReplayId, timestamp::Timestamp};

/// Limit of the first step of a replay, which the client waits for.
const FIRST_STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// The deliveries to send again.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateReplayRequest {
    /// Start of the time window, inclusive, in whole seconds. It must be before `until` and in the
    /// past. Deliveries are selected by the time of their event.
    #[serde(default, deserialize_with = "deserialize_time")]
    #[schema(required, value_type = String, format = DateTime)]
    since: Option<Timestamp>,
    /// End of the time window, inclusive. Defaults to the current time.
    #[serde(default, deserialize_with = "deserialize_time")]
    #[schema(value_type = String, format = DateTime)]
    until: Option<Timestamp>,
    #[serde(default, deserialize_with = "deserialize_filter")]
    #[schema(value_type = ReplayFilterSchema, default = "failed")]
    status: Option<ReplayFilter>,
}

/// `failed`: only failed deliveries. `all`: failed and delivered ones.
#[derive(ToSchema)]
#[schema(as = ReplayFilter, rename_all = "lowercase")]
#[expect(dead_code, reason = "only its schema is used")]
enum ReplayFilterSchema {
    Failed,
    All,
}

/// `running`: some deliveries were not attempted yet. `done`: all deliveries were attempted.
/// `cancelled`: the replay was cancelled, or its webhook was deleted.
#[derive(ToSchema)]
#[schema(as = ReplayState, rename_all = "lowercase")]
#[expect(dead_code, reason = "only its schema is used")]
enum ReplayStateSchema {
    Running,
    Done,
    Cancelled,
}

/// A replay and its progress.
#[derive(Serialize, ToSchema)]
#[schema(as = Replay, example = json!({
    "id": "rpl_0123456789abcdef",
    "state": "running",
    "since": "2024-12-23T10:00:00Z",
    "until": "2024-12-23T12:00:00Z",
    "found": 3,
    "sent": 3,
    "delivered": 1,
    "failed": 0,
}))]
pub(super) struct ReplayResponse {
    #[schema(schema_with = schemas::replay_id)]
    id: String,
    #[schema(value_type = ReplayStateSchema)]
    state: &'static str,
    #[schema(format = DateTime)]
    since: String,
    #[schema(format = DateTime)]
    until: String,
    /// The number of matching deliveries found so far.
    found: u64,
    /// The number of deliveries that were scheduled or attempted.
    sent: u64,
    /// The number of deliveries that succeeded.
    delivered: u64,
    /// The number of deliveries that failed again.
    failed: u64,
}

impl ReplayResponse {
    fn new(id: &ReplayId, replay: &Replay) -> Self {
        Self {
            id: id.to_string(),
            state: replay.state().as_str(),
            since: replay.since.to_rfc3339(),
            until: replay.until.to_rfc3339(),
            found: replay.found,
            sent: replay.sent,
            delivered: replay.delivered,
            failed: replay.failed,
        }
    }
}

/// Create a replay
///
/// Sends the deliveries of a time window again, oldest first, at most five per second. Each keeps
/// its `webhook-id`. A delivery that fails again returns to its previous status.
#[utoipa::path(
    post,
    path = "/api/v1/webhooks/{id}/replay",
    operation_id = "createReplay",
    tag = "Deliveries",
    params(WebhookPath),
    request_body(
        content = CreateReplayRequest,
        example = json!({
            "since": "2024-12-23T10:00:00Z",
            "until": "2024-12-23T12:00:00Z",
            "status": "failed",
        }),
    ),
    responses(
        (
            status = 202,
            description = "The replay was created and continues in the background.",
            body = ReplayResponse,
            headers(("Location" = String, description = "The path of the replay.")),
        ),
        (
            status = 409,
            description = "Another replay of the webhook is running, or the webhook is disabled.",
            body = ErrorResponse,
            example = json!({
                "success": false,
                "error": {
                    "code": "conflict",
                    "message": "Replay rpl_0123456789abcdef of this webhook is still running; \
                        wait until it is done, or cancel it",
                },
            }),
        ),
        AuthenticatedAccount,
        ApiPath<WebhookPath>,
        JsonBody<CreateReplayRequest>,
    ),
)]
pub(super) async fn create(
    State(state): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    ApiPath(path): ApiPath<WebhookPath>,
    JsonBody(request): JsonBody<CreateReplayRequest>,
) -> Result<Response, ApiError> {
    let now = state.clock.now();
    let replay = new_replay(&request, now)?;
    load_active_webhook(&state, &account, path.webhook).await?;
    let key = ReplayKey {
        account,
        webhook: path.webhook,
        id: ReplayId::from_random(random::bytes()),
    };
    let outcome = state
        .store
        .replays()
        .create(&key, &replay, now + state.retention)
        .await?;
    if let CreateReplayOutcome::AlreadyRunning(id) = outcome {
        let active = ReplayKey { id, ..key };
        return Err(replay_conflict(&state, &active).await?);
    }
    run_first_step(&state, &key, now).await;
    let replay = state.store.replays().get(&key).await?.unwrap_or(replay);
    Ok(created(
        StatusCode::ACCEPTED,
        format!("/api/v1/webhooks/{}/replays/{}", key.webhook, key.id),
        ReplayResponse::new(&key.id, &replay),
    ))
}

/// Get a replay
#[utoipa::path(
    get,
    path = "/api/v1/webhooks/{id}/replays/{replay}",
    operation_id = "getReplay",
    tag = "Deliveries",
    params(ReplayPath),
    responses(
        (status = 200, description = "The replay.", body = ReplayResponse),
        AuthenticatedAccount,
        ApiPath<ReplayPath>,
    ),
)]
pub(super) async fn get(
    State(state): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    ApiPath(path): ApiPath<ReplayPath>,
) -> Result<Json<SuccessResponse<ReplayResponse>>, ApiError> {
    let key = ReplayKey {
        account,
        webhook: path.webhook,
        id: path.replay,
    };
    load_replay(&state, &key).await
}

/// Cancel a replay
///
/// Deliveries that were scheduled but not sent return to their previous status. Cancelling a replay
/// that is done has no effect. The request body may be absent or `{}`.
#[utoipa::path(
    delete,
    path = "/api/v1/webhooks/{id}/replays/{replay}",
    operation_id = "cancelReplay",
    tag = "Deliveries",
    params(ReplayPath),
    responses(
        (status = 200, description = "The replay.", body = ReplayResponse),
        AuthenticatedAccount,
        ApiPath<ReplayPath>,
        EmptyBody,
    ),
)]
pub(super) async fn cancel(
    State(state): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    ApiPath(path): ApiPath<ReplayPath>,
    _: EmptyBody,
) -> Result<Json<SuccessResponse<ReplayResponse>>, ApiError> {
    let key = ReplayKey {
        account,
        webhook: path.webhook,
        id: path.replay,
    };
    state.store.replays().cancel(&key).await?;
    load_replay(&state, &key).await
}

fn new_replay(request: &CreateReplayRequest, now: Timestamp) -> Result<Replay, ApiError> {
    let Some(since) = request.since else {
        let message = format!("required; {EXPECTED_TIME}");
        return Err(ApiError::field("since", message));
    };
    // Events have the time of their stream record, in whole seconds. The delivery log shows the
    // time when the record was read, a moment later.
    let since = since.floor_to_second();
    let until = request.until.unwrap_or(now).min(now);
    if since >= until {
        return Err(ApiError::field(
            "since",
            "expected a time before `until` and before now",
        ));
    }
    let filter = request.status.unwrap_or(ReplayFilter::Failed);
    Ok(Replay::new(since, until, filter))
}

/// The 409 response if `active` already exists.
async fn replay_conflict(state: &AppState, active: &ReplayKey) -> Result<ApiError, ApiError> {
    let replay = state.store.replays().get(active).await?;
    let is_cancelled = replay.is_some_and(|replay| replay.state() == ReplayState::Cancelled);
    let message = if is_cancelled {
        format!(
            "Replay {} of this webhook is being cancelled; try again in a minute",
            active.id
        )
    } else {
        format!(
            "Replay {} of this webhook is still running; wait until it is done, or cancel it",
            active.id
        )
    };
    Ok(ApiError::Conflict(message))
}

/// Runs the first step of a replay. The scheduled job runs the other steps, and what is left of
/// this one if it fails.
async fn run_first_step(state: &AppState, key: &ReplayKey, now: Timestamp) {
    let deadline = Deadline::from_now(FIRST_STEP_TIMEOUT);
    let mut due = Vec::new();
    let step = state
        .store
        .replays()
        .run_step(key, INITIAL_STEP_SIZE, now, deadline, &mut due)
        .await;
    let retries = due.into_iter().map(ScheduledRetry::from).collect();
    state.retry_scheduler().schedule(retries, now).await;
    if let Err(error) = step {
        tracing::warn!(
            account = key.account.as_str(),
            webhook = %key.webhook,
            replay = %key.id,
            error = error_chain(&error),
            "Could not run the first step of a replay; it continues within a minute"
        );
    }
}

async fn load_replay(
    state: &AppState,
    key: &ReplayKey,
) -> Result<Json<SuccessResponse<ReplayResponse>>, ApiError> {
    match state.store.replays().get(key).await? {
        Some(replay) => Ok(ok(ReplayResponse::new(&key.id, &replay))),
        None => Err(ApiError::NotFound(format!(
            "Webhook {} has no replay {}",
            key.webhook, key.id
        ))),
    }
}

fn deserialize_filter<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<ReplayFilter>, D::Error> {
    match deserialize_string(from)?.as_str() {
        "failed" => Ok(Some(ReplayFilter::Failed)),
        "all" => Ok(Some(ReplayFilter::All)),
        _ => Err(D::Error::custom("expected `failed` or `all`")),
    }
}
