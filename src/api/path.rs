//! Ids in a request's path. A malformed id identifies no resource, so the response is 404.

use std::fmt;

use axum::{
    extract::{FromRequestParts, Path, path::ErrorKind, rejection::PathRejection},
    http::request::Parts,
};
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, Visitor},
};
use utoipa::{IntoParams, IntoResponses};

use super::{
    error::{ApiError, Responses, error_responses},
    schemas::{EventIdSchema, ReplayIdSchema, WebhookIdSchema},
};
use nano_webhooks_core::{event::EventId, replay::ReplayId, webhook::WebhookId};

/// The parameters of a request's path.
pub(super) struct ApiPath<T>(pub T);

/// The path of a webhook.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct WebhookPath {
    /// The id of the webhook.
    #[serde(rename = "id", deserialize_with = "deserialize_webhook_id")]
    #[param(value_type = WebhookIdSchema, inline, example = 1)]
    pub webhook: WebhookId,
}

/// The path of a delivery.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct DeliveryPath {
    /// The id of the webhook.
    #[serde(rename = "id", deserialize_with = "deserialize_webhook_id")]
    #[param(value_type = WebhookIdSchema, inline, example = 1)]
    pub webhook: WebhookId,
    /// The id of the event.
    #[serde(rename = "event_id", deserialize_with = "deserialize_event_id")]
    #[param(value_type = EventIdSchema, inline, example = "evt_01JFSFB4807P0XDV4PAY2Y4PMB")]
    pub event: EventId,
}

/// The path of a replay.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct ReplayPath {
    /// The id of the webhook.
    #[serde(rename = "id", deserialize_with = "deserialize_webhook_id")]
    #[param(value_type = WebhookIdSchema, inline, example = 1)]
    pub webhook: WebhookId,
    /// The id of the replay.
    #[serde(deserialize_with = "deserialize_replay_id")]
    #[param(value_type = ReplayIdSchema, inline, example = "rpl_0123456789abcdef")]
    pub replay: ReplayId,
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for ApiPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(path)) => Ok(Self(path)),
            Err(rejection) => Err(reject_path(rejection)),
        }
    }
}

impl<T> IntoResponses for ApiPath<T> {
    fn responses() -> Responses {
        error_responses(&[404])
    }
}

fn reject_path(rejection: PathRejection) -> ApiError {
    match rejection {
        PathRejection::FailedToDeserializePathParams(error) => match error.kind() {
            ErrorKind::DeserializeError { key, value, .. } => {
                ApiError::no_such(resource_name(key), value)
            }
            ErrorKind::InvalidUtf8InPathParam { key } => {
                ApiError::NotFound(format!("No such {}", resource_name(key)))
            }
            _ => ApiError::internal(error),
        },
        other => ApiError::internal(other),
    }
}

/// The kind of resource that a path parameter identifies.
fn resource_name(parameter: &str) -> &'static str {
    match parameter {
        "event_id" => "delivery",
        "replay" => "replay",
        _ => "webhook",
    }
}

fn deserialize_webhook_id<'de, D: Deserializer<'de>>(from: D) -> Result<WebhookId, D::Error> {
    from.deserialize_str(IdVisitor(WebhookId::parse))
}

fn deserialize_event_id<'de, D: Deserializer<'de>>(from: D) -> Result<EventId, D::Error> {
    from.deserialize_str(IdVisitor(EventId::parse))
}

fn deserialize_replay_id<'de, D: Deserializer<'de>>(from: D) -> Result<ReplayId, D::Error> {
    from.deserialize_str(IdVisitor(ReplayId::parse))
}

/// Parses an id. axum only adds the parameter's name and value to errors that a visitor returns.
struct IdVisitor<T>(fn(&str) -> Option<T>);

impl<T> Visitor<'_> for IdVisitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an id")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        let Self(parse) = self;
        parse(text).ok_or_else(|| E::custom("malformed id"))
    }
}
