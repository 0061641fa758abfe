//! Authentication and the rate limit.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{header::AUTHORIZATION, request::Parts},
};
use lambda_http::request::RequestContext;
use serde_json::Value;
use utoipa::IntoResponses;

use super::{
    error::{ApiError, Responses, error_responses},
    request_log::LoggedAccount,
    state::AppState,
};
use crate::store::rate_limits::RateLimitDecision;
use nano_webhooks_core::{account_id::AccountId, api_key::ApiKey, timestamp::Timestamp};

/// The account that a request is for. Extracting it counts the request against the rate limit.
pub(super) struct AuthenticatedAccount(pub AccountId);

impl FromRequestParts<Arc<AppState>> for AuthenticatedAccount {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<AppState>,
    ) -> Result<Self, ApiError> {
        let now = state.clock.now();
        let account = authenticate(parts, state, now).await?;
        if let Some(logged) = parts.extensions.get::<LoggedAccount>() {
            logged.set(&account);
        }
        let decision = state
            .store
            .rate_limits()
            .check_and_count(&account, state.rate_limits, now)
            .await?;
        match decision {
            RateLimitDecision::Allowed => Ok(Self(account)),
            RateLimitDecision::Refused {
                retry_after_seconds,
            } => Err(ApiError::RateLimited {
                retry_after_seconds,
            }),
        }
    }
}

impl IntoResponses for AuthenticatedAccount {
    fn responses() -> Responses {
        error_responses(&[401, 429, 500, 503])
    }
}

async fn authenticate(
    parts: &Parts,
    state: &AppState,
    now: Timestamp,
) -> Result<AccountId, ApiError> {
    if let Some(claim) = &state.account_claim {
        let name = account_claim(parts, claim).ok_or(ApiError::Unauthorized)?;
        return AccountId::parse(name).map_err(|_| ApiError::Unauthorized);
    }
    let token = bearer_token(parts).ok_or(ApiError::Unauthorized)?;
    let key = ApiKey::parse(token).map_err(|_| ApiError::Unauthorized)?;
    let account = state.store.api_keys().authenticate(&key, now).await?;
    account.ok_or(ApiError::Unauthorized)
}

/// A claim of the authorizer's verified JWT, or a string in a Lambda authorizer's context. Callers
/// cannot forge it: it comes with API Gateway's event and is not part of the HTTP request.
fn account_claim<'a>(parts: &'a Parts, claim: &str) -> Option<&'a str> {
    let RequestContext::ApiGatewayV2(context) = parts.extensions.get()? else {
        return None;
    };
    let authorizer = context.authorizer.as_ref()?;
    if let Some(jwt) = &authorizer.jwt
        && let Some(value) = jwt.claims.get(claim)
    {
        return Some(value);
    }
    authorizer.fields.get(claim).and_then(Value::as_str)
}

/// The token of `Authorization: Bearer …`. The scheme is case-insensitive (RFC 9110, section 11.1).
/// `None` if the header occurs more than once.
fn bearer_token(parts: &Parts) -> Option<&str> {
    let mut headers = parts.headers.get_all(AUTHORIZATION).iter();
    let header = headers.next()?;
    if headers.next().is_some() {
        return None;
    }
    let (scheme, token) = header.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        Some(token.trim())
    } else {
        None
    }
}
