//! What the fuzz targets need of what is private to the API. It is there only with `--cfg fuzzing`.

use axum::{
    extract::{FromRequest, Request},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;

use super::{body::JsonBody, deliveries, replays, rotate_secret, webhooks};
use crate::store::delivery_log::DeliveryFilter;
use nano_webhooks_core::webhook::WebhookId;

/// Reads the body of `POST /api/v1/webhooks`.
///
/// # Errors
/// The answer.
pub async fn create(request: Request) -> Result<(), Response> {
    body::<webhooks::CreateWebhookRequest>(request).await
}

/// Reads the body of `PATCH /api/v1/webhooks/{id}`.
///
/// # Errors
/// The answer.
pub async fn patch(request: Request) -> Result<(), Response> {
    body::<webhooks::UpdateWebhookRequest>(request).await
}

/// Reads the body of `POST /api/v1/webhooks/{id}/rotate-secret`.
///
/// # Errors
/// The answer.
pub async fn rotate(request: Request) -> Result<(), Response> {
    body::<rotate_secret::RotateSecretRequest>(request).await
}

/// Reads the body of `POST /api/v1/webhooks/{id}/replay`.
///
/// # Errors
/// The answer.
pub async fn replay(request: Request) -> Result<(), Response> {
    body::<replays::CreateReplayRequest>(request).await
}

/// Reads the query of `GET /api/v1/webhooks/{id}/deliveries`.
///
/// # Errors
/// The answer.
pub fn filter(query: &str, webhook: WebhookId) -> Result<DeliveryFilter, Response> {
    deliveries::parse_query(query, webhook).map_err(IntoResponse::into_response)
}

async fn body<T: DeserializeOwned>(request: Request) -> Result<(), Response> {
    JsonBody::<T>::from_request(request, &())
        .await
        .map(drop)
        .map_err(IntoResponse::into_response)
}
