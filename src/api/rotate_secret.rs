//! `POST /api/v1/webhooks/{id}/rotate-secret`: replaces the secret of a webhook. During the grace
//! time both secrets sign `webhook-signature`, and the previous one signs `X-Nano-Signature`.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{HeaderName, header::CACHE_CONTROL},
};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::Value;
use utoipa::{
    ToSchema,
    openapi::{Object, ObjectBuilder, Type, schema::SchemaType},
};
use zeroize::Zeroizing;

use super::{
    auth::AuthenticatedAccount,
    body::OptionalJson,
    error::{ApiError, ErrorResponse},
    fields::{deserialize_secret, whole_number},
    path::{ApiPath, WebhookPath},
    responses::{SuccessResponse, ok},
    schemas,
    state::AppState,
    webhooks::webhook_not_found,
};
use crate::{
    random,
    store::rotation::{MAX_ACTIVE_SECRETS, RotateOutcome},
};
use nano_webhooks_core::{secret::Secret, timestamp::Timestamp};

const DEFAULT_GRACE_HOURS: u16 = 24;
const MAX_GRACE_HOURS: u16 = 7 * 24;

/// How to rotate the secret.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RotateSecretRequest {
    #[serde(default, deserialize_with = "deserialize_secret")]
    #[schema(schema_with = new_secret_schema)]
    secret_key: Option<Secret>,
    /// How long the previous secret still signs, in hours. `0` ends it at once: the endpoint must
    /// accept the new secret before the request.
    #[serde(default, deserialize_with = "deserialize_grace_hours")]
    #[schema(value_type = u16, minimum = 0, maximum = 168, default = 24)]
    grace_hours: Option<u16>,
}

fn new_secret_schema() -> Object {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::String, Type::Null]))
        .description(Some(
            "The new secret. If it is absent or `null`, one is generated. After the prefix \
             `whsec_` it must be base64 of 24 to 64 bytes, with padding.",
        ))
        .pattern(Some(schemas::PRINTABLE_TEXT))
        .min_length(Some(*Secret::LENGTH_RANGE.start()))
        .max_length(Some(*Secret::LENGTH_RANGE.end()))
        .build()
}

/// The result of a rotation.
#[derive(Serialize, ToSchema)]
#[schema(as = RotatedSecret)]
pub(super) struct RotateSecretResponse {
    /// The id of the webhook.
    #[schema(schema_with = schemas::webhook_id)]
    id: u64,
    /// The new secret, only if it was generated. It is not returned again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, pattern = "^whsec_[A-Za-z0-9+/]{43}=$")]
    secret_key: Option<Zeroizing<String>>,
    /// When the previous secret stops signing and the new one signs `X-Nano-Signature`. The
    /// endpoint must accept the new secret by then. `null` if no previous secret signs: the new one
    /// signs everything now.
    #[schema(required, format = DateTime)]
    previous_valid_until: Option<String>,
    /// The number of secrets that sign now.
    #[schema(minimum = 1, maximum = 3)]
    active_secrets: usize,
}

/// Rotate a webhook's secret
///
/// If the request contains no secret, one is generated and returned only in this response.
///
/// Until the grace time ends, `webhook-signature` has a signature of each active secret, and the
/// previous secret makes `X-Nano-Signature`. Add the new secret to the endpoint before the grace
/// time ends and accept a request that either secret verifies. Remove the previous secret
/// afterward. After several rotations, the oldest secret that is still active makes
/// `X-Nano-Signature`.
#[utoipa::path(
    post,
    path = "/api/v1/webhooks/{id}/rotate-secret",
    operation_id = "rotateWebhookSecret",
    tag = "Webhooks",
    params(WebhookPath),
    request_body(
        content = Option<RotateSecretRequest>,
        example = json!({ "secret_key": "my-new-secret-key", "grace_hours": 24 }),
    ),
    responses(
        (
            status = 200,
            description = "The secret was rotated.",
            body = RotateSecretResponse,
            headers(("Cache-Control" = String, description = "`no-store`.")),
            example = json!({
                "success": true,
                "data": {
                    "id": 1,
                    "secret_key": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=",
                    "previous_valid_until": "2024-12-24T10:00:00Z",
                    "active_secrets": 2,
                },
            }),
        ),
        (
            status = 409,
            description = "The webhook already has the maximum number of active secrets.",
            body = ErrorResponse,
            example = json!({
                "success": false,
                "error": {
                    "code": "conflict",
                    "message": "The webhook already has 3 active secrets; wait until \
                        2024-12-24T10:00:00Z, or set `grace_hours` to 0 to end the old ones now",
                },
            }),
        ),
        AuthenticatedAccount,
        ApiPath<WebhookPath>,
        OptionalJson<RotateSecretRequest>,
    ),
)]
pub(super) async fn rotate_secret(
    State(state): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    ApiPath(path): ApiPath<WebhookPath>,
    OptionalJson(request): OptionalJson<RotateSecretRequest>,
) -> Result<UncachedResponse<RotateSecretResponse>, ApiError> {
    let is_generated = request.secret_key.is_none();
    let secret = request
        .secret_key
        .unwrap_or_else(|| Secret::from_random(random::bytes()));
    let grace_hours = request.grace_hours.unwrap_or(DEFAULT_GRACE_HOURS);
    let grace = Duration::from_hours(grace_hours.into());
    let outcome = state
        .store
        .webhooks()
        .rotate_secret(&account, path.webhook, &secret, grace, state.clock.now())
        .await?;
    match outcome {
        RotateOutcome::Rotated {
            active,
            previous_expires_at,
        } => {
            let response = RotateSecretResponse {
                id: path.webhook.get(),
                secret_key: is_generated.then(|| Zeroizing::new(secret.expose().to_owned())),
                previous_valid_until: previous_expires_at.map(Timestamp::to_rfc3339),
                active_secrets: active,
            };
            Ok(([(CACHE_CONTROL, "no-store")], ok(response)))
        }
        RotateOutcome::TooManyActive { until } => Err(ApiError::Conflict(format!(
            "The webhook already has {MAX_ACTIVE_SECRETS} active secrets; wait until {}, or set \
             `grace_hours` to 0 to end the old ones now",
            until.to_rfc3339()
        ))),
        RotateOutcome::NotFound => Err(webhook_not_found(path.webhook)),
    }
}

/// A response with `Cache-Control`.
type UncachedResponse<T> = ([(HeaderName, &'static str); 1], Json<SuccessResponse<T>>);

fn deserialize_grace_hours<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    let number = whole_number(&Value::deserialize(from)?);
    match number.and_then(|number| u16::try_from(number).ok()) {
        Some(hours @ 0..=MAX_GRACE_HOURS) => Ok(Some(hours)),
        _ => Err(D::Error::custom(format!(
            "expected a whole number from 0 to {MAX_GRACE_HOURS}"
        ))),
    }
}
