//! `/api/v1/webhooks/{id}/rotate-secret`: another secret; for a while the one before signs beside it in `webhook-signature`.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{HeaderName, header::CACHE_CONTROL},
};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::{
    ApiError, AppState, SuccessResponse,
    auth::AuthenticatedAccount,
    body::OptionalJson,
    error, ok, openapi,
    webhooks::{WebhookPath, secret, webhook_not_found},
};
use crate::random;
use crate::store::rotation::{MAX_ACTIVE_SECRETS, RotateOutcome};
use nano_webhooks_core::{secret::Secret, timestamp::Timestamp};

/// How long the old secret signs beside the new, unless it is said.
const GRACE_HOURS: u16 = 24;
/// The longest that can be asked for: a week.
const MAX_GRACE_HOURS: u16 = 7 * 24;

/// What a secret is rotated by.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Rotation)]
pub(super) struct RotateSecretRequest {
    /// Without it, or with `null`, one is generated.
    #[serde(default, deserialize_with = "secret")]
    #[schema(schema_with = openapi::new_secret)]
    secret_key: Option<Secret>,
    /// How long the old secret signs beside the new.
    #[serde(default, deserialize_with = "grace_hours")]
    #[schema(value_type = u16, minimum = 0, maximum = 168, default = 24)]
    grace_hours: Option<u16>,
}

/// A secret that was rotated.
#[derive(Serialize, ToSchema)]
#[schema(as = RotatedSecret)]
pub(super) struct RotateSecretResponse {
    #[schema(schema_with = openapi::webhook_id_schema)]
    id: u64,
    /// Only if it was generated, and only here.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, pattern = "^whsec_[A-Za-z0-9+/]{43}=$")]
    secret_key: Option<Zeroizing<String>>,
    /// When the one before signs no more; `null` if there is none that does.
    #[schema(required, format = DateTime)]
    previous_valid_until: Option<String>,
    /// How many secrets sign now.
    #[schema(minimum = 1, maximum = 3)]
    live_secrets: usize,
}

/// Replaces a webhook's secret
///
/// The old one keeps signing beside the new for the grace time. Without a secret in the body one is generated, and shown this
/// once.
#[utoipa::path(post, path = "/api/v1/webhooks/{id}/rotate-secret", operation_id = "rotateSecret", tag = "Webhooks",
    params(WebhookPath),
    request_body(content = Option<RotateSecretRequest>, example = json!({"secret_key":"my-new-secret-key","grace_hours":24})),
    responses((status = 200, description = "The new secret signs.", body = RotateSecretResponse,
        headers(("Cache-Control" = String, description = "`no-store`.")),
        example = json!({"success":true,"data":{"id":1,"secret_key":"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=","previous_valid_until":"2024-12-24T10:00:00Z","live_secrets":2}})),
        (status = 409, description = "As many secrets sign as may at once.", body = error::ErrorResponse,
        example = json!({"success":false,"error":{"code":"conflict","message":"3 secrets sign already: wait until 2024-12-24T10:00:00Z, or end the old ones now with `grace_hours` 0"}})),
        AuthenticatedAccount, WebhookPath, OptionalJson<RotateSecretRequest>))]
pub(super) async fn rotate(
    State(api): State<Arc<AppState>>,
    AuthenticatedAccount(account): AuthenticatedAccount,
    WebhookPath(id): WebhookPath,
    OptionalJson(RotateSecretRequest {
        secret_key,
        grace_hours,
    }): OptionalJson<RotateSecretRequest>,
) -> Result<
    (
        [(HeaderName, &'static str); 1],
        Json<SuccessResponse<RotateSecretResponse>>,
    ),
    ApiError,
> {
    let generated = secret_key.is_none();
    let secret = secret_key.unwrap_or_else(|| Secret::from_random(random::bytes()));
    let grace = Duration::from_hours(grace_hours.unwrap_or(GRACE_HOURS).into());
    match api
        .store
        .webhooks()
        .rotate_secret(&account, id, &secret, grace, api.clock.now())
        .await?
    {
        RotateOutcome::Rotated {
            live,
            previous_until,
        } => {
            let view = RotateSecretResponse {
                id: id.get(),
                secret_key: generated.then(|| Zeroizing::new(secret.expose().to_owned())),
                previous_valid_until: previous_until.map(Timestamp::to_rfc3339),
                live_secrets: live,
            };
            Ok(([(CACHE_CONTROL, "no-store")], ok(view)))
        }
        RotateOutcome::TooManyActive { until } => Err(ApiError::Conflict(format!(
            "{MAX_ACTIVE_SECRETS} secrets sign already: wait until {}, or end the old ones now with `grace_hours` 0",
            until.to_rfc3339()
        ))),
        RotateOutcome::NotFound => Err(webhook_not_found(id)),
    }
}

#[expect(clippy::float_cmp, reason = "a whole number of hours is exact")]
fn grace_hours<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    // JSON has one kind of number: 24.0 is 24.
    let given = serde_json::Value::deserialize(from)?.as_f64();
    let hours =
        given.and_then(|given| (0..=MAX_GRACE_HOURS).find(|hours| f64::from(*hours) == given));
    hours.map(Some).ok_or_else(|| {
        D::Error::custom(format!(
            "expected a whole number from 0 to {MAX_GRACE_HOURS}"
        ))
    })
}
