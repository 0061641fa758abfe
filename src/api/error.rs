//! The error table: every answer that is no success, in one place.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::openapi;
use crate::store;

/// How long to wait before trying again when DynamoDB does not answer, in seconds.
const RETRY_UNAVAILABLE: i64 = 1;

/// An answer that is no success.
#[derive(Debug)]
pub(super) enum ApiError {
    /// 400; names the field and what is expected.
    InvalidRequest(String),
    /// 401
    Unauthorized,
    /// 404
    NotFound(String),
    /// 405
    MethodNotAllowed(String),
    /// 409
    Conflict(String),
    /// 413
    PayloadTooLarge,
    /// 415
    UnsupportedMediaType,
    /// 429; when to try again.
    RateLimited { retry_after_seconds: i64 },
    /// 500; the cause is for the log alone.
    Internal(String),
    /// 503; the cause is for the log alone.
    Unavailable(String),
}

/// The envelope of what is no success.
#[derive(Serialize, ToSchema)]
#[schema(as = ApiError)]
pub(super) struct ErrorResponse<'a> {
    #[schema(schema_with = openapi::const_false)]
    success: bool,
    #[schema(inline)]
    error: ErrorBody<'a>,
}

#[derive(Serialize, ToSchema)]
struct ErrorBody<'a> {
    #[schema(schema_with = openapi::error_code_schema)]
    code: &'static str,
    /// For people: a program matches on the code.
    message: &'a str,
}

/// The cause of an answer with status 500 or 503, handed to the log beside the answer.
#[derive(Clone)]
pub(super) struct InternalCause(pub String);

impl ApiError {
    /// A field that is not as expected.
    pub(super) fn field(name: &str, expected: impl std::fmt::Display) -> Self {
        Self::InvalidRequest(format!("{name}: {expected}"))
    }

    /// What the caller is told.
    pub(super) fn told(&self) -> (StatusCode, &'static str, &str) {
        match self {
            Self::InvalidRequest(message) => {
                (StatusCode::BAD_REQUEST, "invalid_request", message.as_str())
            }
            Self::Unauthorized => (
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "Invalid or missing API key",
            ),
            Self::NotFound(message) => (StatusCode::NOT_FOUND, "not_found", message.as_str()),
            Self::MethodNotAllowed(message) => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                message.as_str(),
            ),
            Self::Conflict(message) => (StatusCode::CONFLICT, "conflict", message.as_str()),
            Self::PayloadTooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "payload_too_large",
                "The body is too large, expected at most 64 KiB",
            ),
            Self::UnsupportedMediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "The body is not declared as JSON, expected `Content-Type: application/json`",
            ),
            Self::RateLimited { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limited",
                "Too many requests, try again later",
            ),
            Self::Internal(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal_error",
                "Internal error",
            ),
            Self::Unavailable(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "Temporarily unavailable, try again",
            ),
        }
    }
}

impl From<store::Error> for ApiError {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Unavailable(_) | store::Error::KeyUnavailable(_) => {
                Self::Unavailable(error.to_string())
            }
            store::Error::Internal(_) => Self::Internal(error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code, message) = self.told();
        let envelope = ErrorResponse {
            success: false,
            error: ErrorBody { code, message },
        };
        let mut response = (status, Json(envelope)).into_response();
        match self {
            Self::RateLimited {
                retry_after_seconds,
            } => {
                response
                    .headers_mut()
                    .insert(RETRY_AFTER, retry_after_seconds.into());
            }
            Self::Unauthorized => {
                // RFC 9110, section 11.6.1: a 401 names a challenge.
                response.headers_mut().insert(
                    http::header::WWW_AUTHENTICATE,
                    HeaderValue::from_static("Bearer"),
                );
            }
            Self::Unavailable(cause) => {
                response
                    .headers_mut()
                    .insert(RETRY_AFTER, RETRY_UNAVAILABLE.into());
                response.extensions_mut().insert(InternalCause(cause));
            }
            Self::Internal(cause) => {
                response.extensions_mut().insert(InternalCause(cause));
            }
            _ => {}
        }
        response
    }
}
