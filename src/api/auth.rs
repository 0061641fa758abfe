//! Who is asking: the account behind an API key or an authorizer's claim, within its rate limit.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{header::AUTHORIZATION, request::Parts},
};
use lambda_http::request::RequestContext;
use serde_json::Value;

use super::{ApiError, AppState};
use crate::store::rate_limit::RateLimitDecision;
use nano_webhooks_core::{account_id::AccountId, api_key::ApiKey};

/// The account that the request is made for. An operation that takes this answers 401 and 429 by itself.
pub(super) struct AuthenticatedAccount(pub AccountId);

impl FromRequestParts<Arc<AppState>> for AuthenticatedAccount {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<AppState>) -> Result<Self, ApiError> {
        let now = api.clock.now();
        let account = match &api.account_claim {
            Some(claim) => account_claim(parts, claim).and_then(|name| AccountId::parse(name).ok()),
            None => match bearer_token(parts).and_then(|token| ApiKey::parse(token).ok()) {
                Some(key) => api.store.api_keys().authenticate(&key, now).await?,
                None => None,
            },
        };
        let account = account.ok_or(ApiError::Unauthorized)?;
        match api
            .store
            .rate_limits()
            .check_and_count(&account, api.rate_limits, now)
            .await?
        {
            RateLimitDecision::Allowed => Ok(Self(account)),
            RateLimitDecision::Refused {
                retry_after_seconds,
            } => Err(ApiError::RateLimited {
                retry_after_seconds,
            }),
        }
    }
}

/// What the authorizer in front says of this claim: that of a verified token, or a text of a Lambda authorizer's context. No
/// caller can put it there: it comes with the gateway's event, beside the request.
fn account_claim<'a>(parts: &'a Parts, claim: &str) -> Option<&'a str> {
    let RequestContext::ApiGatewayV2(context) = parts.extensions.get()? else {
        return None;
    };
    let authorizer = context.authorizer.as_ref()?;
    let of_token = authorizer
        .jwt
        .as_ref()
        .and_then(|token| token.claims.get(claim))
        .map(String::as_str);
    of_token.or_else(|| authorizer.fields.get(claim).and_then(Value::as_str))
}

/// The token of the one `Authorization: Bearer …`; the scheme's case does not matter (RFC 9110, section 11.1).
fn bearer_token(parts: &Parts) -> Option<&str> {
    let mut given = parts.headers.get_all(AUTHORIZATION).iter();
    let (scheme, token) = given
        .next()
        .filter(|_| given.next().is_none())?
        .to_str()
        .ok()?
        .split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
