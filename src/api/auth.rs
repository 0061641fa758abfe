//! Who is asking: the account behind an API key, within its rate limit.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{header::AUTHORIZATION, request::Parts},
};

use super::{Api, Error};
use crate::{api_key::ApiKey, store::rate::Verdict, webhook::Account};

/// The account whose key the request bears. An operation that takes this answers 401 and 429 by itself.
pub(super) struct Authenticated(pub Account);

impl FromRequestParts<Arc<Api>> for Authenticated {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Error> {
        let key = bearer(parts).and_then(|token| ApiKey::parse(token).ok()).ok_or(Error::Unauthorized)?;
        let account = api.store.account_of(&key).await?.ok_or(Error::Unauthorized)?;
        match api.store.count_request(&account, api.rate_limits, api.clock.now()).await? {
            Verdict::Allowed => Ok(Self(account)),
            Verdict::Refused { retry_after_seconds } => Err(Error::RateLimited { retry_after_seconds }),
        }
    }
}

/// The token of `Authorization: Bearer …`; the scheme's case does not matter (RFC 9110, section 11.1).
fn bearer(parts: &Parts) -> Option<&str> {
    let (scheme, token) = parts.headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
