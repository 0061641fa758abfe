//! `/api/v1/webhooks/{id}/deliveries`: where is my webhook?

use std::sync::Arc;

use axum::{
    Json,
    extract::{FromRequestParts, Path, RawQuery, State},
    http::{StatusCode, request::Parts},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    ApiError, AppState, SuccessResponse,
    auth::AuthenticatedAccount,
    body::EmptyBody,
    error, ok,
    openapi::{self, DeliveryStatusSchema, EventTypeSchema, FailureKindSchema, ListQuery},
    webhooks::{WebhookPath, webhook_not_found},
};
use crate::{
    queue::{RetryMessage, ScheduledRetry},
    store::delivery_log::{DeliveryFilter, DeliveryStatus, DeliverySummary},
};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{
        self, Delivery, DeliveryKey,
        attempt::{Attempt, FailureKind},
        timings::PhaseTimings,
    },
    event::{EventId, traceparent::Traceparent},
    event_type::EventType,
    timestamp::Timestamp,
    webhook::{WebhookId, WebhookStatus},
};

/// How many deliveries a page has unless a number is asked for.
pub(super) const DEFAULT_LIMIT: usize = 50;
/// The most that can be asked for.
pub(super) const MAX_LIMIT: usize = 100;

/// A list that goes on.
#[derive(Serialize, ToSchema)]
#[schema(as = DeliveryList)]
pub(super) struct DeliveryListResponse {
    #[schema(schema_with = openapi::const_true)]
    success: bool,
    data: Vec<DeliverySummaryResponse>,
    /// What to give as `cursor` for the next page. There may be one although this page is short; `null`: there is none.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// A delivery: an event on its way to a webhook.
#[derive(Serialize, ToSchema)]
#[schema(as = DeliverySummary, example = json!({
    "event_id": "evt_01JFSFB4807P0XDV4PAY2Y4PMB",
    "event": "job.completed",
    "task_id": "task_xxx",
    "status": "delivered",
    "attempt_count": 1,
    "created_at": "2024-12-23T10:00:00Z",
    "next_attempt_at": null,
    "last_failure": null,
}))]
pub struct DeliverySummaryResponse {
    #[schema(schema_with = openapi::event_id_schema)]
    event_id: String,
    #[schema(value_type = EventTypeSchema)]
    event: String,
    /// The job; `null` if the event is of none.
    #[schema(required)]
    task_id: Option<String>,
    #[schema(value_type = DeliveryStatusSchema)]
    status: String,
    attempt_count: u32,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(required, format = DateTime)]
    next_attempt_at: Option<String>,
    /// Why the latest attempt failed.
    #[schema(required, value_type = Option<FailureKindSchema>)]
    last_failure: Option<FailureKind>,
}

/// A delivery with all that is known of it.
#[derive(Serialize, ToSchema)]
#[schema(as = Delivery)]
pub struct DeliveryResponse {
    #[serde(flatten)]
    row: DeliverySummaryResponse,
    /// The body as it is sent.
    payload: String,
    url: String,
    /// The latest 20 at most.
    attempts: Vec<AttemptResponse>,
}

/// One attempt.
#[derive(Serialize, ToSchema)]
#[schema(as = Attempt, example = json!({
    "number": 1,
    "at": "2024-12-23T10:00:00.25Z",
    "duration_ms": 61,
    "phases": {"dns_ms": 4.2, "connect_ms": 11.9, "tls_ms": 20.4, "answer_ms": 23.8, "body_ms": 0.1},
    "status_code": 503,
    "failure": "status",
    "detail": "The endpoint returned status 503. Return a 2xx status to accept the event.",
    "response_excerpt": "Try again later",
    "request_headers": {"content-type": "application/json", "webhook-id": "evt_01JFSFB4807P0XDV4PAY2Y4PMB"},
}))]
pub(super) struct AttemptResponse {
    /// 1 for the first.
    #[schema(minimum = 1)]
    number: u32,
    #[schema(format = DateTime)]
    at: String,
    duration_ms: u64,
    phases: TimingsResponse,
    /// The answer's status; `null` if none came.
    #[schema(required, minimum = 100, maximum = 999)]
    status_code: Option<u16>,
    /// `null`: a 2xx was read.
    #[schema(required, value_type = Option<FailureKindSchema>)]
    failure: Option<FailureKind>,
    /// A sentence that says what to do.
    #[schema(required)]
    detail: Option<String>,
    /// The beginning of the answer's body.
    #[schema(required)]
    response_excerpt: Option<String>,
    /// The headers that were sent.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    request_headers: Map<String, Value>,
}

/// Where an attempt's time went, in milliseconds; `null`: the phase did not happen.
#[derive(Serialize, ToSchema)]
#[schema(as = PhaseTimings)]
#[expect(
    clippy::struct_field_names,
    reason = "a number on the wire has its unit in its name"
)]
pub(super) struct TimingsResponse {
    #[schema(required, minimum = 0)]
    dns_ms: Option<f64>,
    #[schema(required, minimum = 0)]
    connect_ms: Option<f64>,
    #[schema(required, minimum = 0)]
    tls_ms: Option<f64>,
    #[schema(required, minimum = 0)]
    answer_ms: Option<f64>,
    #[schema(required, minimum = 0)]
    body_ms: Option<f64>,
}

/// Lists a webhook's deliveries
///
/// The newest first; also those of a webhook that was deleted.
#[utoipa::path(get, path = "/api/v1/webhooks/{id}/deliveries", operation_id = "listDeliveries", tag = "Deliveries",
    params(WebhookPath, ListQuery),
    responses((status = 200, description = "A page of the deliveries.", body = inline(DeliveryListResponse)), AuthenticatedAccount, WebhookPath, ListQuery))]
pub(super) async fn list(
    State(api): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    WebhookPath(webhook): WebhookPath,
    RawQuery(query): RawQuery,
) -> Result<Json<DeliveryListResponse>, ApiError> {
    let filter = parse_query(query.as_deref().unwrap_or_default(), webhook)?;
    let deleted = api
        .store
        .webhooks()
        .get_record(&account, webhook)
        .await?
        .is_none();
    if deleted && !api.store.webhooks().ever_existed(&account, webhook).await? {
        return Err(webhook_not_found(webhook));
    }
    if deleted && filter.status == Some(DeliveryStatus::Pending) {
        return Ok(Json(DeliveryListResponse {
            success: true,
            data: Vec::new(),
            next_cursor: None,
        }));
    }
    let page = api
        .store
        .delivery_log()
        .list(&account, webhook, &filter)
        .await?;
    let next_cursor = page.next.map(|event| cursor(webhook, &event));
    let data = page
        .deliveries
        .into_iter()
        .map(|listed| DeliverySummaryResponse::from(listed).of_webhook(deleted))
        .collect();
    Ok(Json(DeliveryListResponse {
        success: true,
        data,
        next_cursor,
    }))
}

/// Shows a delivery
///
/// With what was sent, and every attempt.
#[utoipa::path(get, path = "/api/v1/webhooks/{id}/deliveries/{event_id}", operation_id = "getDelivery", tag = "Deliveries",
    params(DeliveryPath),
    responses((status = 200, description = "The delivery.", body = DeliveryResponse), AuthenticatedAccount, DeliveryPath))]
pub(super) async fn show(
    State(api): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    DeliveryPath(webhook, event): DeliveryPath,
) -> Result<Json<SuccessResponse<DeliveryResponse>>, ApiError> {
    let deleted = api
        .store
        .webhooks()
        .get_record(&account, webhook)
        .await?
        .is_none();
    let delivery = load_delivery(&api, account, webhook, event).await?;
    Ok(ok(DeliveryResponse::from(&delivery).of_webhook(deleted)))
}

/// Sends a delivery again
///
/// Now, whatever its status. `webhook-id` stays the same and attempts go on being counted. A body is not needed, and may be
/// `{}`.
#[utoipa::path(post, path = "/api/v1/webhooks/{id}/deliveries/{event_id}/retry", operation_id = "retryDelivery",
    tag = "Deliveries", params(DeliveryPath),
    responses((status = 202, description = "An attempt is due.", body = DeliverySummaryResponse),
        (status = 409, description = "It is being attempted at this moment, or the webhook is disabled.",
        body = error::ErrorResponse,
        example = json!({"success":false,"error":{"code":"conflict","message":"Webhook 1 is disabled: enable it first"}})),
        AuthenticatedAccount, DeliveryPath, EmptyBody))]
pub(super) async fn retry(
    State(api): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    DeliveryPath(webhook, event): DeliveryPath,
    _: EmptyBody,
) -> Result<(StatusCode, Json<SuccessResponse<DeliverySummaryResponse>>), ApiError> {
    let found = load_delivery(&api, account, webhook, event).await?;
    match api
        .store
        .webhooks()
        .get_record(&found.key.account, webhook)
        .await?
    {
        None => return Err(webhook_not_found(webhook)),
        Some(subscriber) if subscriber.webhook.status == WebhookStatus::Disabled => {
            return Err(ApiError::Conflict(format!(
                "Webhook {webhook} is disabled: enable it first"
            )));
        }
        Some(_) => {}
    }
    let now = api.clock.now();
    let Some(delivery) = api
        .store
        .leases()
        .schedule_retry(&found, now, api.retention)
        .await?
    else {
        return Err(ApiError::Conflict(format!(
            "Delivery {} is being attempted: look at how that goes first",
            found.key.event
        )));
    };
    let message = RetryMessage {
        key: delivery.key.clone(),
        attempt_count: delivery.attempt_count,
    };
    api.queue
        .set(vec![ScheduledRetry { message, due: now }], now)
        .await;
    Ok((
        StatusCode::ACCEPTED,
        ok(DeliverySummaryResponse::from(&delivery)),
    ))
}

async fn load_delivery(
    api: &AppState,
    account: AccountId,
    webhook: WebhookId,
    event: EventId,
) -> Result<Delivery, ApiError> {
    let not_found = ApiError::NotFound(format!("No delivery {event} to webhook {webhook}"));
    api.store
        .deliveries()
        .get(&DeliveryKey {
            account,
            webhook,
            event,
        })
        .await?
        .ok_or(not_found)
}

/// The delivery that a request's path names. What cannot be an id names nothing that exists.
pub(super) struct DeliveryPath(WebhookId, EventId);

impl<S: Send + Sync> FromRequestParts<S> for DeliveryPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let (webhook, event) = path.map_or_else(|_| Default::default(), |Path(names)| names);
        let shown: String = event.chars().take(64).collect();
        let names = WebhookId::parse(&webhook).zip(EventId::parse(&event));
        let (webhook, event) =
            names.ok_or_else(|| ApiError::NotFound(format!("No delivery {shown}")))?;
        Ok(Self(webhook, event))
    }
}

/// Where a list goes on: good for the webhook whose list it is, and for no other.
fn cursor(webhook: WebhookId, event: &EventId) -> String {
    URL_SAFE_NO_PAD.encode(format!("{webhook}.{event}"))
}

fn parse_cursor(webhook: WebhookId, cursor: &str) -> Option<EventId> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    EventId::parse(text.strip_prefix(&format!("{webhook}."))?)
}

/// Reads the query of a webhook's list; each parameter must be known, and given once.
pub(super) fn parse_query(query: &str, webhook: WebhookId) -> Result<DeliveryFilter, ApiError> {
    let mut filter = DeliveryFilter {
        status: None,
        event: None,
        after: None,
        limit: DEFAULT_LIMIT,
    };
    let mut seen = Vec::new();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        if seen.contains(&name) {
            return Err(ApiError::field(&name, "given twice, expected once"));
        }
        match &*name {
            "status" => {
                let status = DeliveryStatus::ALL
                    .into_iter()
                    .find(|status| status.as_str() == value);
                let expected = || {
                    ApiError::field(
                        "status",
                        "expected `pending`, `delivered`, `failed` or `cancelled`",
                    )
                };
                filter.status = Some(status.ok_or_else(expected)?);
            }
            "event" => {
                let known = || EventType::ALL.map(EventType::as_str).join("`, `");
                let event = EventType::parse(&value);
                filter.event = Some(event.ok_or_else(|| {
                    ApiError::field("event", format!("expected one of `{}`", known()))
                })?);
            }
            "limit" => {
                let limit = value
                    .parse()
                    .ok()
                    .filter(|limit| (1..=MAX_LIMIT).contains(limit));
                filter.limit = limit.ok_or_else(|| {
                    ApiError::field("limit", "expected a whole number from 1 to 100")
                })?;
            }
            "cursor" => {
                let expected = || {
                    ApiError::field(
                        "cursor",
                        "expected the `next_cursor` of a page of this webhook's",
                    )
                };
                filter.after = Some(parse_cursor(webhook, &value).ok_or_else(expected)?);
            }
            _ => {
                let shown: String = name.chars().take(64).collect();
                return Err(ApiError::field(
                    &shown,
                    "unknown parameter, expected `status`, `event`, `limit` or `cursor`",
                ));
            }
        }
        seen.push(name);
    }
    Ok(filter)
}

impl DeliverySummaryResponse {
    /// What is pending to a webhook that was deleted is cancelled, also where that is not written yet.
    pub fn of_webhook(self, deleted: bool) -> Self {
        if deleted && self.status == "pending" {
            return Self {
                status: DeliveryStatus::Cancelled.as_str().to_owned(),
                next_attempt_at: None,
                ..self
            };
        }
        self
    }
}

impl DeliveryResponse {
    /// See [`DeliverySummaryResponse::of_webhook`].
    pub fn of_webhook(self, deleted: bool) -> Self {
        Self {
            row: self.row.of_webhook(deleted),
            ..self
        }
    }
}

impl From<DeliverySummary> for DeliverySummaryResponse {
    fn from(DeliverySummary { event_id, row }: DeliverySummary) -> Self {
        Self {
            event_id: event_id.to_string(),
            event: row.event,
            task_id: row.task_id,
            status: row.status,
            attempt_count: row.attempt_count,
            created_at: row.created_at.to_rfc3339(),
            next_attempt_at: row.next_attempt_at.map(Timestamp::to_rfc3339),
            last_failure: row.last_failure,
        }
    }
}

impl From<&Delivery> for DeliverySummaryResponse {
    fn from(delivery: &Delivery) -> Self {
        let next_attempt_at = match delivery.state {
            delivery::DeliveryState::Pending(at) => Some(at.to_rfc3339()),
            _ => None,
        };
        Self {
            event_id: delivery.key.event.to_string(),
            event: delivery.event_type.as_str().to_owned(),
            task_id: delivery.task_id.clone(),
            status: delivery.state.as_str().to_owned(),
            attempt_count: delivery.attempt_count,
            created_at: delivery.created_at.to_rfc3339(),
            next_attempt_at,
            last_failure: delivery.attempts.last().and_then(|attempt| attempt.failure),
        }
    }
}

impl From<&Delivery> for DeliveryResponse {
    fn from(delivery: &Delivery) -> Self {
        Self {
            row: DeliverySummaryResponse::from(delivery),
            payload: delivery.body.to_string(),
            url: delivery.url.clone(),
            attempts: delivery
                .attempts
                .iter()
                .map(|attempt| {
                    AttemptResponse::new(
                        &delivery.key.event,
                        delivery.event_type,
                        delivery.traceparent.as_ref(),
                        attempt,
                    )
                })
                .collect(),
        }
    }
}

impl AttemptResponse {
    pub(super) fn new(
        event: &EventId,
        event_type: EventType,
        traceparent: Option<&Traceparent>,
        attempt: &Attempt,
    ) -> Self {
        let headers = attempt
            .to_request(event, event_type, traceparent)
            .headers()
            .into_iter();
        Self {
            number: attempt.number,
            at: attempt.started_at.to_rfc3339(),
            duration_ms: attempt.duration_ms,
            phases: TimingsResponse::from(attempt.timings),
            status_code: attempt.status_code,
            failure: attempt.failure,
            detail: attempt.detail.clone(),
            response_excerpt: attempt.response_excerpt.clone(),
            request_headers: headers
                .map(|(name, value)| (name.to_owned(), value.into()))
                .collect(),
        }
    }
}

impl From<PhaseTimings> for TimingsResponse {
    fn from(
        PhaseTimings {
            dns,
            connect,
            tls,
            wait: answer,
            receive: body,
        }: PhaseTimings,
    ) -> Self {
        // To a tenth of a millisecond.
        #[expect(
            clippy::cast_precision_loss,
            reason = "a phase lasts seconds, not centuries"
        )]
        let ms = |micros: Option<u64>| micros.map(|micros| (micros as f64 / 100.0).round() / 10.0);
        Self {
            dns_ms: ms(dns),
            connect_ms: ms(connect),
            tls_ms: ms(tls),
            answer_ms: ms(answer),
            body_ms: ms(body),
        }
    }
}
