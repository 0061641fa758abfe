//! Query strings. Each parameter must be known and occur at most once.

use std::borrow::Cow;

use axum::{extract::FromRequestParts, http::request::Parts};
use serde::de::{DeserializeOwned, value};
use utoipa::IntoResponses;

use super::error::{ApiError, Responses, error_responses, truncate};

/// The parameters of a request's query string.
pub(super) struct ApiQuery<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for ApiQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parse_query(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

impl<T> IntoResponses for ApiQuery<T> {
    fn responses() -> Responses {
        error_responses(&[400])
    }
}

/// Parses a query string. An error names the parameter.
pub(super) fn parse_query<T: DeserializeOwned>(query: &str) -> Result<T, ApiError> {
    let pairs: Vec<(Cow<'_, str>, Cow<'_, str>)> =
        url::form_urlencoded::parse(query.as_bytes()).collect();
    for (index, (name, _)) in pairs.iter().enumerate() {
        if pairs[..index].iter().any(|(earlier, _)| earlier == name) {
            return Err(ApiError::field(&truncate(name), "expected at most once"));
        }
    }
    let deserializer = value::MapDeserializer::<_, value::Error>::new(pairs.into_iter());
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let name = truncate(&error.path().to_string());
        ApiError::field(&name, truncate(&error.into_inner().to_string()))
    })
}
