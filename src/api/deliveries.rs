//! `/api/v1/webhooks/{id}/deliveries`: lists, gets and retries deliveries.

mod query;
mod responses;

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};

use super::{
    auth::AuthenticatedAccount,
    body::EmptyBody,
    error::{ApiError, ErrorResponse},
    path::{ApiPath, DeliveryPath, WebhookPath},
    query::ApiQuery,
    responses::{SuccessResponse, ok},
    state::AppState,
    webhooks::{load_active_webhook, webhook_not_found},
};
use nano_webhooks_core::delivery::{
    Delivery, DeliveryKey,
    scheduled_retry::{RetryMessage, ScheduledRetry},
    status::DeliveryStatus,
};
pub(super) use query::ListDeliveriesQuery;
use query::format_cursor;
pub(super) use responses::AttemptResponse;
use responses::DeliveryListResponse;
pub use responses::{DeliveryResponse, DeliverySummaryResponse};

/// List deliveries
///
/// Returns the deliveries of a webhook, newest first. The deliveries of a deleted webhook stay
/// readable.
#[utoipa::path(
    get,
    path = "/api/v1/webhooks/{id}/deliveries",
    operation_id = "listDeliveries",
    tag = "Deliveries",
    params(WebhookPath, ListDeliveriesQuery),
    responses(
        (
            status = 200,
            description = "A page of deliveries.",
            body = inline(DeliveryListResponse),
        ),
        AuthenticatedAccount,
        ApiPath<WebhookPath>,
        ApiQuery<ListDeliveriesQuery>,
    ),
)]
pub(super) async fn list(
    State(state): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    ApiPath(path): ApiPath<WebhookPath>,
    ApiQuery(query): ApiQuery<ListDeliveriesQuery>,
) -> Result<Json<DeliveryListResponse>, ApiError> {
    let webhook = path.webhook;
    let filter = query.into_filter(webhook)?;
    let webhooks = state.store.webhooks();
    let record = webhooks.get_record(&account, webhook).await?;
    let is_deleted = record.is_none();
    if is_deleted && !webhooks.ever_existed(&account, webhook).await? {
        return Err(webhook_not_found(webhook));
    }
    let mut response = DeliveryListResponse {
        success: true,
        data: Vec::new(),
        next_cursor: None,
    };
    if is_deleted && filter.status == Some(DeliveryStatus::Pending) {
        return Ok(Json(response));
    }
    let log = state.store.delivery_log();
    let mut page = log.list(&account, webhook, &filter).await?;
    if record.is_some() {
        log.read_wait_reasons(&account, webhook, &mut page.deliveries)
            .await?;
    }
    for summary in page.deliveries {
        let summary = DeliverySummaryResponse::new(summary, record.as_ref());
        response.data.push(summary);
    }
    response.next_cursor = page.next.map(|event| format_cursor(webhook, &event));
    Ok(Json(response))
}

/// Get a delivery
///
/// Returns the delivery with its payload and attempts.
#[utoipa::path(
    get,
    path = "/api/v1/webhooks/{id}/deliveries/{event_id}",
    operation_id = "getDelivery",
    tag = "Deliveries",
    params(DeliveryPath),
    responses(
        (status = 200, description = "The delivery.", body = DeliveryResponse),
        AuthenticatedAccount,
        ApiPath<DeliveryPath>,
    ),
)]
pub(super) async fn get(
    State(state): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    ApiPath(path): ApiPath<DeliveryPath>,
) -> Result<Json<SuccessResponse<DeliveryResponse>>, ApiError> {
    let webhook = state
        .store
        .webhooks()
        .get_record(&account, path.webhook)
        .await?;
    let key = DeliveryKey {
        account,
        webhook: path.webhook,
        event: path.event,
    };
    let delivery = load_delivery(&state, &key).await?;
    Ok(ok(DeliveryResponse::new(&delivery, webhook.as_ref())))
}

/// Retry a delivery
///
/// Sends the event again now, whatever the status of the delivery. `webhook-id` stays the same and
/// the attempt count continues. The request body may be absent or `{}`.
#[utoipa::path(
    post,
    path = "/api/v1/webhooks/{id}/deliveries/{event_id}/retry",
    operation_id = "retryDelivery",
    tag = "Deliveries",
    params(DeliveryPath),
    responses(
        (
            status = 202,
            description = "The retry is scheduled.",
            body = DeliverySummaryResponse,
        ),
        (
            status = 409,
            description = "An attempt is in progress, or the webhook is disabled.",
            body = ErrorResponse,
            example = json!({
                "success": false,
                "error": {
                    "code": "conflict",
                    "message": "Webhook 1 is disabled; enable it first",
                },
            }),
        ),
        AuthenticatedAccount,
        ApiPath<DeliveryPath>,
        EmptyBody,
    ),
)]
pub(super) async fn retry(
    State(state): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    ApiPath(path): ApiPath<DeliveryPath>,
    _: EmptyBody,
) -> Result<(StatusCode, Json<SuccessResponse<DeliverySummaryResponse>>), ApiError> {
    let key = DeliveryKey {
        account,
        webhook: path.webhook,
        event: path.event,
    };
    let delivery = load_delivery(&state, &key).await?;
    let webhook = load_active_webhook(&state, &key.account, key.webhook).await?;
    let now = state.clock.now();
    let retried = state
        .store
        .leases()
        .schedule_retry(&delivery, now, state.retention)
        .await?
        .ok_or_else(|| {
            ApiError::Conflict(format!(
                "An attempt of delivery {} is in progress; wait until it ends",
                key.event
            ))
        })?;
    let response = DeliverySummaryResponse::from_delivery(&retried, Some(&webhook));
    let message = RetryMessage {
        key,
        attempt_count: retried.attempt_count,
    };
    let scheduled = ScheduledRetry { message, due: now };
    state.retry_scheduler().schedule(vec![scheduled], now).await;
    Ok((StatusCode::ACCEPTED, ok(response)))
}

async fn load_delivery(state: &AppState, key: &DeliveryKey) -> Result<Delivery, ApiError> {
    let delivery = state.store.deliveries().get(key).await?;
    delivery.ok_or_else(|| {
        ApiError::NotFound(format!(
            "Webhook {} has no delivery {}",
            key.webhook, key.event
        ))
    })
}
