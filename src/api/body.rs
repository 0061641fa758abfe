//! Request bodies: JSON objects of at most 64 KiB without unknown fields.

use axum::{
    extract::{FromRequest, Request},
    http::{HeaderMap, header::CONTENT_TYPE},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Bytes;
use serde::{Deserialize, de::DeserializeOwned};
use utoipa::IntoResponses;

use super::error::{ApiError, Responses, error_responses, truncate};

const MAX_BODY: usize = 64 * 1024;

/// A required JSON body.
pub(super) struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (headers, bytes) = read_limited(request).await?;
        if bytes.is_empty() {
            return Err(ApiError::InvalidRequest(
                "The request body is empty; expected a JSON object".to_owned(),
            ));
        }
        parse_json(&headers, &bytes).map(Self)
    }
}

impl<T> IntoResponses for JsonBody<T> {
    fn responses() -> Responses {
        error_responses(&[400, 413, 415])
    }
}

/// A JSON body that may be absent. An empty body is the same as `{}`.
pub(super) struct OptionalJson<T>(pub T);

impl<T: DeserializeOwned + Default, S: Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (headers, bytes) = read_limited(request).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        parse_json(&headers, &bytes).map(Self)
    }
}

impl<T> IntoResponses for OptionalJson<T> {
    fn responses() -> Responses {
        error_responses(&[400, 413, 415])
    }
}

/// No body, or `{}`, which some clients send.
pub(super) type EmptyBody = OptionalJson<NoFields>;

/// `{}`
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoFields {}

async fn read_limited(request: Request) -> Result<(HeaderMap, Bytes), ApiError> {
    let (parts, body) = request.into_parts();
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok((parts.headers, collected.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::PayloadTooLarge),
        Err(_) => Err(ApiError::InvalidRequest(
            "The request body ended early".to_owned(),
        )),
    }
}

/// Whether the body is `application/json` or another type with the suffix `+json` (RFC 6839).
fn is_json(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    let Ok(content_type) = content_type.to_str() else {
        return false;
    };
    let media_type = match content_type.split_once(';') {
        Some((media_type, _parameters)) => media_type,
        None => content_type,
    };
    let media_type = media_type.trim().to_ascii_lowercase();
    media_type == "application/json"
        || (media_type.starts_with("application/") && media_type.ends_with("+json"))
}

fn parse_json<T: DeserializeOwned>(headers: &HeaderMap, bytes: &[u8]) -> Result<T, ApiError> {
    if !is_json(headers) {
        return Err(ApiError::UnsupportedMediaType);
    }
    // serde also accepts an array of the values in the order of the fields.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(ApiError::InvalidRequest(
            "The request body is not an object; expected a JSON object".to_owned(),
        ));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(field_error)?;
    json.end().map_err(|error| invalid_json(&error))?;
    Ok(value)
}

fn field_error(error: serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let path = error.path().to_string();
    let cause = error.into_inner();
    if !cause.is_data() {
        return invalid_json(&cause);
    }
    // The path says where the error is, so the position is left out.
    let message = cause.to_string();
    let position = format!(" at line {} column {}", cause.line(), cause.column());
    let expected = truncate(message.strip_suffix(&position).unwrap_or(&message));
    if path == "." {
        return ApiError::InvalidRequest(expected);
    }
    ApiError::field(&truncate(&path), expected)
}

fn invalid_json(error: &serde_json::Error) -> ApiError {
    ApiError::InvalidRequest(format!("The request body is not valid JSON: {error}"))
}
