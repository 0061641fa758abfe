//! `/api/v1/webhooks/{id}/replay`: what failed in a window of time, delivered again.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
    http::{StatusCode, header::LOCATION, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use utoipa::ToSchema;

use super::{
    ApiError, AppState, SuccessResponse,
    auth::AuthenticatedAccount,
    body::{self, EmptyBody, JsonBody, truncate},
    error, ok, openapi,
    webhooks::{WebhookPath, webhook_not_found},
};
use crate::random;
use crate::{
    clock::Deadline,
    queue::ScheduledRetry,
    store::replays::{INITIAL_STEP_SIZE, Replay, ReplayFilter, ReplayKey, ReplayState},
};
use nano_webhooks_core::{
    replay::ReplayId,
    timestamp::Timestamp,
    webhook::{WebhookId, WebhookStatus},
};

/// How long the first step may take, which the request waits for.
const FIRST_STEP_TIME: Duration = Duration::from_secs(5);

/// What is to be delivered again.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewReplay)]
pub(super) struct CreateReplayRequest {
    /// Events from this time on, by when the job's write reached the stream, in whole seconds; before `until`, and before now.
    #[serde(default, deserialize_with = "time")]
    #[schema(required, value_type = String, format = DateTime)]
    since: Option<Timestamp>,
    /// Events up to this time; without it, up to now.
    #[serde(default, deserialize_with = "time")]
    #[schema(value_type = String, format = DateTime)]
    until: Option<Timestamp>,
    /// What failed, or all that is settled.
    #[serde(default, deserialize_with = "selection")]
    #[schema(value_type = ReplayFilterSchema, default = "failed")]
    status: Option<ReplayFilter>,
}

/// Which deliveries are made again.
#[derive(ToSchema)]
#[schema(as = ReplayFilter, rename_all = "lowercase")]
#[expect(dead_code, reason = "it is there for its description")]
enum ReplayFilterSchema {
    Failed,
    All,
}

/// Where a replay stands.
#[derive(ToSchema)]
#[schema(as = ReplayState, rename_all = "lowercase")]
#[expect(dead_code, reason = "it is there for its description")]
enum ReplayStateSchema {
    Running,
    Done,
    Cancelled,
}

/// A replay and how far it is.
#[derive(Serialize, ToSchema)]
#[schema(as = Replay, example = json!({"id":"rpl_0123456789abcdef","state":"running","since":"2024-12-23T10:00:00Z","until":"2024-12-23T12:00:00Z","found":3,"sent":3,"delivered":1,"failed":0}))]
pub(super) struct ReplayResponse {
    #[schema(schema_with = openapi::replay_id_schema)]
    id: String,
    #[schema(value_type = ReplayStateSchema)]
    state: &'static str,
    #[schema(format = DateTime)]
    since: String,
    #[schema(format = DateTime)]
    until: String,
    /// How many deliveries were found so far.
    found: u64,
    /// How many of them are on their way or were attempted.
    sent: u64,
    /// How many were delivered.
    delivered: u64,
    /// How many failed again.
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

/// Delivers again what failed
///
/// The deliveries of a window of time are sent again, the oldest first, at most five a second. Each keeps its id; one that fails
/// again stands where it stood.
#[utoipa::path(post, path = "/api/v1/webhooks/{id}/replay", operation_id = "beginReplay", tag = "Deliveries",
    params(WebhookPath),
    request_body(content = CreateReplayRequest, example = json!({"since":"2024-12-23T10:00:00Z","until":"2024-12-23T12:00:00Z","status":"failed"})),
    responses((status = 202, description = "The replay goes on by itself.", body = ReplayResponse,
        headers(("Location" = String, description = "The path of the replay."))),
        (status = 409, description = "A replay of the webhook goes on, or the webhook is disabled.", body = error::ErrorResponse,
        example = json!({"success":false,"error":{"code":"conflict","message":"Replay rpl_0123456789abcdef of this webhook is not over: wait for it, or cancel it"}})),
        AuthenticatedAccount, WebhookPath, JsonBody<CreateReplayRequest>))]
pub(super) async fn begin(
    State(api): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    WebhookPath(webhook): WebhookPath,
    JsonBody {
        value:
            CreateReplayRequest {
                since,
                until,
                status,
            },
        ..
    }: JsonBody<CreateReplayRequest>,
) -> Result<Response, ApiError> {
    let now = api.clock.now();
    let since =
        since.ok_or_else(|| ApiError::field("since", format!("missing, {EXPECTED_TIME}")))?;
    let until = until.unwrap_or(now).min(now);
    // An event's time is that of its stream record, in whole seconds; the log shows when it was taken, a moment later.
    let since = since.floor_to_second();
    if since >= until {
        return Err(ApiError::field(
            "since",
            "expected a time before `until` and before now",
        ));
    }
    match api.store.webhooks().get_record(&account, webhook).await? {
        None => return Err(webhook_not_found(webhook)),
        Some(subscriber) if subscriber.webhook.status == WebhookStatus::Disabled => {
            return Err(ApiError::Conflict(format!(
                "Webhook {webhook} is disabled: enable it first"
            )));
        }
        Some(_) => {}
    }
    let of = ReplayKey {
        account,
        webhook,
        id: ReplayId::from_random(random::bytes()),
    };
    let replay = Replay::new(since, until, status.unwrap_or(ReplayFilter::Failed));
    if let Err(other) = api
        .store
        .replays()
        .create(&of, &replay, now + api.retention)
        .await?
    {
        let of = ReplayKey { id: other, ..of };
        let cancelled = api
            .store
            .replays()
            .get(&of)
            .await?
            .is_some_and(|replay| replay.state() == ReplayState::Cancelled);
        return Err(ApiError::Conflict(if cancelled {
            format!(
                "Replay {} was cancelled, and what it had made due is being taken back: try again in a minute",
                of.id
            )
        } else {
            format!(
                "Replay {} of this webhook is not over: wait for it, or cancel it",
                of.id
            )
        }));
    }
    // The first step at once; the sweep takes the others, and this one too if it fails.
    match api
        .store
        .replays()
        .run_step(
            &of,
            INITIAL_STEP_SIZE,
            now,
            api.retention,
            Deadline::after(FIRST_STEP_TIME),
        )
        .await
    {
        Ok(due) => {
            api.queue
                .set(due.into_iter().map(ScheduledRetry::from).collect(), now)
                .await
        }
        Err(error) => {
            tracing::warn!(account = of.account.as_str(), %webhook, %error, "the replay's first step is left to the sweep");
        }
    }
    let replay = api.store.replays().get(&of).await?.unwrap_or(replay);
    let location = format!("/api/v1/webhooks/{webhook}/replays/{}", of.id);
    Ok((
        StatusCode::ACCEPTED,
        [(LOCATION, location)],
        ok(ReplayResponse::new(&of.id, &replay)),
    )
        .into_response())
}

/// Shows how far a replay is
#[utoipa::path(get, path = "/api/v1/webhooks/{id}/replays/{replay}", operation_id = "getReplay", tag = "Deliveries",
    params(ReplayPath), responses((status = 200, description = "The replay.", body = ReplayResponse), AuthenticatedAccount, ReplayPath))]
pub(super) async fn show(
    State(api): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    ReplayPath(webhook, id): ReplayPath,
) -> Result<Json<SuccessResponse<ReplayResponse>>, ApiError> {
    find(
        &api,
        &ReplayKey {
            account,
            webhook,
            id,
        },
    )
    .await
}

/// Cancels a replay
///
/// What it has not sent by now is not sent. One that is done stays so.
#[utoipa::path(delete, path = "/api/v1/webhooks/{id}/replays/{replay}", operation_id = "cancelReplay", tag = "Deliveries",
    params(ReplayPath), responses((status = 200, description = "The replay as it stands.", body = ReplayResponse), AuthenticatedAccount, ReplayPath, EmptyBody))]
pub(super) async fn cancel(
    State(api): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    ReplayPath(webhook, id): ReplayPath,
    _: EmptyBody,
) -> Result<Json<SuccessResponse<ReplayResponse>>, ApiError> {
    let of = ReplayKey {
        account,
        webhook,
        id,
    };
    api.store.replays().cancel(&of).await?;
    find(&api, &of).await
}

async fn find(
    api: &AppState,
    of: &ReplayKey,
) -> Result<Json<SuccessResponse<ReplayResponse>>, ApiError> {
    let not_found = || ApiError::NotFound(format!("No replay {} of webhook {}", of.id, of.webhook));
    let replay = api.store.replays().get(of).await?.ok_or_else(not_found)?;
    Ok(ok(ReplayResponse::new(&of.id, &replay)))
}

/// The replay that a request's path names. What cannot be an id names nothing that exists.
pub(super) struct ReplayPath(WebhookId, ReplayId);

impl<S: Send + Sync> FromRequestParts<S> for ReplayPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let (webhook, replay) = path.map_or_else(|_| Default::default(), |Path(names)| names);
        let names = WebhookId::parse(&webhook).zip(ReplayId::parse(&replay));
        let (webhook, replay) =
            names.ok_or_else(|| ApiError::NotFound(format!("No replay {}", truncate(&replay))))?;
        Ok(Self(webhook, replay))
    }
}

const EXPECTED_TIME: &str = "expected a time such as `2024-12-23T10:00:00Z` (RFC 3339)";

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    let time = Timestamp::parse_rfc3339(&body::deserialize_string(from)?);
    time.map(Some)
        .ok_or_else(|| D::Error::custom(EXPECTED_TIME))
}

fn selection<'de, D: Deserializer<'de>>(from: D) -> Result<Option<ReplayFilter>, D::Error> {
    match body::deserialize_string(from)?.as_str() {
        "failed" => Ok(Some(ReplayFilter::Failed)),
        "all" => Ok(Some(ReplayFilter::All)),
        _ => Err(D::Error::custom("expected `failed` or `all`")),
    }
}
