//! Private parsers of the API for the fuzz targets. Compiled only with `--cfg fuzzing`.
//!
//! Each function returns the error response if the input is rejected.

use axum::{
    extract::{FromRequest, Request},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;

use super::{
    body::JsonBody,
    deliveries::ListDeliveriesQuery,
    query::parse_query,
    replays::CreateReplayRequest,
    rotate_secret::RotateSecretRequest,
    webhooks::{CreateWebhookRequest, UpdateWebhookRequest},
};
use crate::store::delivery_log::DeliveryFilter;
use nano_webhooks_core::webhook::WebhookId;

/// Parses the body of `POST /api/v1/webhooks`.
pub async fn parse_create_body(request: Request) -> Result<(), Response> {
    parse_body::<CreateWebhookRequest>(request).await
}

/// Parses the body of `PATCH /api/v1/webhooks/{id}`.
pub async fn parse_update_body(request: Request) -> Result<(), Response> {
    parse_body::<UpdateWebhookRequest>(request).await
}

/// Parses the body of `POST /api/v1/webhooks/{id}/rotate-secret`.
pub async fn parse_rotate_body(request: Request) -> Result<(), Response> {
    parse_body::<RotateSecretRequest>(request).await
}

/// Parses the body of `POST /api/v1/webhooks/{id}/replay`.
pub async fn parse_replay_body(request: Request) -> Result<(), Response> {
    parse_body::<CreateReplayRequest>(request).await
}

/// Parses the query of `GET /api/v1/webhooks/{id}/deliveries`.
pub fn parse_deliveries_query(query: &str, webhook: WebhookId) -> Result<DeliveryFilter, Response> {
    parse_query::<ListDeliveriesQuery>(query)
        .and_then(|query| query.into_filter(webhook))
        .map_err(IntoResponse::into_response)
}

async fn parse_body<T: DeserializeOwned>(request: Request) -> Result<(), Response> {
    match JsonBody::<T>::from_request(request, &()).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.into_response()),
    }
}
