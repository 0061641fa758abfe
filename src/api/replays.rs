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
    Api, Envelope, Error,
    auth::Authenticated,
    body::{self, JsonBody, NoBody, shown},
    error, openapi, success,
    webhooks::{Subject, no_webhook},
};
use crate::random;
use crate::{
    clock::Deadline,
    queue::Timer,
    store::replays::{FIRST_STEP, Replay, ReplayState, Replaying, Selection},
};
use nano_webhooks_core::{
    delivery::ReplayId,
    timestamp::Timestamp,
    webhook::{Status, WebhookId},
};

/// How long the first step may take, which the request waits for.
const FIRST_STEP_TIME: Duration = Duration::from_secs(5);

/// What is to be delivered again.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewReplay)]
pub(super) struct Begin {
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
    #[schema(value_type = SelectionName, default = "failed")]
    status: Option<Selection>,
}

/// Which deliveries are made again.
#[derive(ToSchema)]
#[schema(as = Selection, rename_all = "lowercase")]
#[expect(dead_code, reason = "it is there for its description")]
enum SelectionName {
    Failed,
    All,
}

/// Where a replay stands.
#[derive(ToSchema)]
#[schema(as = ReplayState, rename_all = "lowercase")]
#[expect(dead_code, reason = "it is there for its description")]
enum StateName {
    Running,
    Done,
    Cancelled,
}

/// A replay and how far it is.
#[derive(Serialize, ToSchema)]
#[schema(as = Replay, example = json!({"id":"rpl_0123456789abcdef","state":"running","since":"2024-12-23T10:00:00Z","until":"2024-12-23T12:00:00Z","found":3,"sent":3,"delivered":1,"failed":0}))]
pub(super) struct View {
    #[schema(schema_with = openapi::id_of_replay)]
    id: String,
    #[schema(value_type = StateName)]
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

impl View {
    fn new(id: &ReplayId, replay: &Replay) -> Self {
        Self {
            id: id.to_string(),
            state: replay.state().name(),
            since: replay.since.rfc3339(),
            until: replay.until.rfc3339(),
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
    params(Subject),
    request_body(content = Begin, example = json!({"since":"2024-12-23T10:00:00Z","until":"2024-12-23T12:00:00Z","status":"failed"})),
    responses((status = 202, description = "The replay goes on by itself.", body = View,
        headers(("Location" = String, description = "The path of the replay."))),
        (status = 409, description = "A replay of the webhook goes on, or the webhook is disabled.", body = error::Envelope,
        example = json!({"success":false,"error":{"code":"conflict","message":"Replay rpl_0123456789abcdef of this webhook is not over: wait for it, or cancel it"}})),
        Authenticated, Subject, JsonBody<Begin>))]
pub(super) async fn begin(
    State(api): State<Arc<Api>>,
    Authenticated(account): Authenticated,
    Subject(webhook): Subject,
    JsonBody { value: Begin { since, until, status }, .. }: JsonBody<Begin>,
) -> Result<Response, Error> {
    let now = api.clock.now();
    let since = since.ok_or_else(|| Error::field("since", format!("missing, {EXPECTED_TIME}")))?;
    let until = until.unwrap_or(now).min(now);
    // An event's time is that of its stream record, in whole seconds; the log shows when it was taken, a moment later.
    let since = since.floor_to_second();
    if since >= until {
        return Err(Error::field("since", "expected a time before `until` and before now"));
    }
    match api.store.subscriber(&account, webhook).await? {
        None => return Err(no_webhook(webhook)),
        Some(subscriber) if subscriber.webhook.status == Status::Disabled => {
            return Err(Error::Conflict(format!("Webhook {webhook} is disabled: enable it first")));
        }
        Some(_) => {}
    }
    let of = Replaying { account, webhook, id: ReplayId::from_random(random::bytes()) };
    let replay = Replay::new(since, until, status.unwrap_or(Selection::Failed));
    if let Err(other) = api.store.begin_replay(&of, &replay, now + api.retention).await? {
        let of = Replaying { id: other, ..of };
        let cancelled = api.store.replay_of(&of).await?.is_some_and(|replay| replay.state() == ReplayState::Cancelled);
        return Err(Error::Conflict(if cancelled {
            format!(
                "Replay {} was cancelled, and what it had made due is being taken back: try again in a minute",
                of.id
            )
        } else {
            format!("Replay {} of this webhook is not over: wait for it, or cancel it", of.id)
        }));
    }
    // The first step at once; the sweep takes the others, and this one too if it fails.
    match api.store.step_replay(&of, FIRST_STEP, now, api.retention, Deadline::after(FIRST_STEP_TIME)).await {
        Ok(due) => api.queue.set(due.into_iter().map(Timer::from).collect(), now).await,
        Err(error) => {
            tracing::warn!(account = of.account.as_str(), %webhook, %error, "the replay's first step is left to the sweep");
        }
    }
    let replay = api.store.replay_of(&of).await?.unwrap_or(replay);
    let location = format!("/api/v1/webhooks/{webhook}/replays/{}", of.id);
    Ok((StatusCode::ACCEPTED, [(LOCATION, location)], success(View::new(&of.id, &replay))).into_response())
}

/// Shows how far a replay is
#[utoipa::path(get, path = "/api/v1/webhooks/{id}/replays/{replay}", operation_id = "getReplay", tag = "Deliveries",
    params(Named), responses((status = 200, description = "The replay.", body = View), Authenticated, Named))]
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    Authenticated(account): Authenticated,
    Named(webhook, id): Named,
) -> Result<Json<Envelope<View>>, Error> {
    find(&api, &Replaying { account, webhook, id }).await
}

/// Cancels a replay
///
/// What it has not sent by now is not sent. One that is done stays so.
#[utoipa::path(delete, path = "/api/v1/webhooks/{id}/replays/{replay}", operation_id = "cancelReplay", tag = "Deliveries",
    params(Named), responses((status = 200, description = "The replay as it stands.", body = View), Authenticated, Named, NoBody))]
pub(super) async fn cancel(
    State(api): State<Arc<Api>>,
    Authenticated(account): Authenticated,
    Named(webhook, id): Named,
    _: NoBody,
) -> Result<Json<Envelope<View>>, Error> {
    let of = Replaying { account, webhook, id };
    api.store.cancel_replay(&of).await?;
    find(&api, &of).await
}

async fn find(api: &Api, of: &Replaying) -> Result<Json<Envelope<View>>, Error> {
    let not_found = || Error::NotFound(format!("No replay {} of webhook {}", of.id, of.webhook));
    let replay = api.store.replay_of(of).await?.ok_or_else(not_found)?;
    Ok(success(View::new(&of.id, &replay)))
}

/// The replay that a request's path names. What cannot be an id names nothing that exists.
pub(super) struct Named(WebhookId, ReplayId);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let (webhook, replay) = path.map_or_else(|_| Default::default(), |Path(names)| names);
        let names = WebhookId::parse(&webhook).zip(ReplayId::parse(&replay));
        let (webhook, replay) = names.ok_or_else(|| Error::NotFound(format!("No replay {}", shown(&replay))))?;
        Ok(Self(webhook, replay))
    }
}

const EXPECTED_TIME: &str = "expected a time such as `2024-12-23T10:00:00Z` (RFC 3339)";

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    let time = Timestamp::parse_rfc3339(&body::string(from)?);
    time.map(Some).ok_or_else(|| D::Error::custom(EXPECTED_TIME))
}

fn selection<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Selection>, D::Error> {
    match body::string(from)?.as_str() {
        "failed" => Ok(Some(Selection::Failed)),
        "all" => Ok(Some(Selection::All)),
        _ => Err(D::Error::custom("expected `failed` or `all`")),
    }
}
