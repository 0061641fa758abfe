//! A request's body: bounded, JSON, and every field accounted for.

use axum::{
    extract::{FromRequest, Request},
    http::{HeaderMap, header::CONTENT_TYPE},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Bytes;
use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::Error as _};

use super::ApiError;

/// The largest request body.
const MAX_BODY: usize = 64 * 1024;

/// How many characters of what the caller gave an error repeats at most.
const MAX_SHOWN: usize = 200;

/// A request's body as `T`, and the bytes it was read from.
pub(super) struct JsonBody<T> {
    pub value: T,
    pub bytes: Bytes,
}

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (headers, bytes) = read_limited(request).await?;
        if bytes.is_empty() {
            return Err(ApiError::InvalidRequest(
                "The body is empty, expected a JSON object".to_owned(),
            ));
        }
        let value = parse_json(&headers, &bytes)?;
        Ok(Self { value, bytes })
    }
}

/// A request's body as `T`, or none: empty, or an object with nothing in it, which some clients send.
pub(super) struct OptionalJson<T>(pub T);

/// The body of a request that needs none.
pub(super) type EmptyBody = OptionalJson<Nothing>;

/// An object with nothing in it.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

impl<T: DeserializeOwned + Default, S: Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (headers, bytes) = read_limited(request).await?;
        Ok(Self(if bytes.is_empty() {
            T::default()
        } else {
            parse_json(&headers, &bytes)?
        }))
    }
}

async fn read_limited(request: Request) -> Result<(HeaderMap, Bytes), ApiError> {
    let (parts, body) = request.into_parts();
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok((parts.headers, collected.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::PayloadTooLarge),
        Err(_) => Err(ApiError::InvalidRequest(
            "The body broke off, expected all of it".to_owned(),
        )),
    }
}

/// Whether the body is declared as `application/json` or another type with the suffix `+json` (RFC 6839).
fn is_json(headers: &HeaderMap) -> bool {
    let declared = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = declared
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn parse_json<T: DeserializeOwned>(headers: &HeaderMap, bytes: &[u8]) -> Result<T, ApiError> {
    if !is_json(headers) {
        return Err(ApiError::UnsupportedMediaType);
    }
    // Else an array would pass for an object without names.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(ApiError::InvalidRequest(
            "The body is not as expected, expected a JSON object".to_owned(),
        ));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let cause = error.into_inner();
        // A field's own error needs no place in the text: its name says where it is.
        let reason = cause.to_string();
        let place = format!(" at line {} column {}", cause.line(), cause.column());
        match reason.strip_suffix(&place).filter(|_| cause.is_data()) {
            Some(reason) if path == "." => ApiError::InvalidRequest(truncate(reason)),
            Some(reason) => ApiError::field(&truncate(&path), truncate(reason)),
            None => ApiError::InvalidRequest(format!("The body is not valid JSON: {reason}")),
        }
    })?;
    json.end().map_err(|error| {
        ApiError::InvalidRequest(format!("The body is not valid JSON: {error}"))
    })?;
    Ok(value)
}

/// The beginning of a text that may hold what the caller gave.
pub(super) fn truncate(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect()
}

/// Reads a field that must be a string. What was given instead is not repeated: it may be a secret.
pub(super) fn deserialize_string<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    match serde_json::Value::deserialize(from)? {
        serde_json::Value::String(text) => Ok(text),
        _ => Err(D::Error::custom("expected a string")),
    }
}

/// Reads a field that must be a string or `null`.
pub(super) fn deserialize_optional_string<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<String>, D::Error> {
    match serde_json::Value::deserialize(from)? {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::String(text) => Ok(Some(text)),
        _ => Err(D::Error::custom("expected a string or null")),
    }
}

/// Reads a field that must be an array of strings.
pub(super) fn deserialize_strings<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Vec<String>, D::Error> {
    let text = |value| match value {
        serde_json::Value::String(text) => Some(text),
        _ => None,
    };
    let texts = match serde_json::Value::deserialize(from)? {
        serde_json::Value::Array(values) => values.into_iter().map(text).collect(),
        _ => None,
    };
    texts.ok_or_else(|| D::Error::custom("expected an array of strings"))
}
