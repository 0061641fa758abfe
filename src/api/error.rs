//! Error responses: the table of status, code and message, and its description in OpenAPI.

use std::{collections::BTreeMap, error::Error, fmt, sync::Arc};

use axum::{
    Json,
    http::{
        HeaderValue, StatusCode,
        header::{RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::json;
use utoipa::{
    ToSchema,
    openapi::{
        self, ContentBuilder, Header, HeaderBuilder, Object, Ref, RefOr, ResponseBuilder, Type,
    },
};

use super::schemas;
use crate::{client::local_failure::LocalFailure, store};

/// `Retry-After` of a 503 response, in seconds.
const UNAVAILABLE_RETRY_AFTER: i64 = 1;
/// Limit, in characters, of a part of the request that an error message repeats.
const MAX_QUOTED: usize = 200;

/// An error response.
#[derive(Debug)]
pub(super) enum ApiError {
    /// 400. The message names the field and what is expected.
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
    /// 429
    RateLimited { retry_after_seconds: i64 },
    /// 429
    TooManyTestEvents { retry_after_seconds: i64 },
    /// 500. The cause is logged and not in the response.
    Internal(InternalCause),
    /// 503. The cause is logged and not in the response.
    Unavailable(InternalCause),
}

/// The cause of a 500 or 503 response. It travels to the request log in the response's extensions.
#[derive(Clone, Debug)]
pub(super) struct InternalCause(pub Arc<dyn Error + Send + Sync>);

impl ApiError {
    /// A 400 response about one field or parameter.
    pub(super) fn field(name: &str, expected: impl fmt::Display) -> Self {
        Self::InvalidRequest(format!("{name}: {expected}"))
    }

    /// A 404 response for a resource such as `webhook`.
    pub(super) fn no_such(resource: &str, id: impl fmt::Display) -> Self {
        Self::NotFound(truncate(&format!("No such {resource}: {id}")))
    }

    /// A 500 response.
    pub(super) fn internal(cause: impl Error + Send + Sync + 'static) -> Self {
        Self::Internal(InternalCause(Arc::new(cause)))
    }

    const fn code(&self) -> ErrorCode {
        match self {
            Self::InvalidRequest(_) => ErrorCode::InvalidRequest,
            Self::Unauthorized => ErrorCode::Unauthorized,
            Self::NotFound(_) => ErrorCode::NotFound,
            Self::MethodNotAllowed(_) => ErrorCode::MethodNotAllowed,
            Self::Conflict(_) => ErrorCode::Conflict,
            Self::PayloadTooLarge => ErrorCode::PayloadTooLarge,
            Self::UnsupportedMediaType => ErrorCode::UnsupportedMediaType,
            Self::RateLimited { .. } | Self::TooManyTestEvents { .. } => ErrorCode::RateLimited,
            Self::Internal(_) => ErrorCode::InternalError,
            Self::Unavailable(_) => ErrorCode::Unavailable,
        }
    }

    fn message(&self) -> &str {
        match self {
            Self::InvalidRequest(message)
            | Self::NotFound(message)
            | Self::MethodNotAllowed(message)
            | Self::Conflict(message) => message,
            Self::Unauthorized => UNAUTHORIZED,
            Self::PayloadTooLarge => PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => UNSUPPORTED_MEDIA_TYPE,
            Self::RateLimited { .. } => RATE_LIMITED,
            Self::TooManyTestEvents { .. } => TOO_MANY_TEST_EVENTS,
            Self::Internal(_) => INTERNAL_ERROR,
            Self::Unavailable(_) => UNAVAILABLE,
        }
    }
}

const UNAUTHORIZED: &str = "Invalid or missing API key";
const PAYLOAD_TOO_LARGE: &str = "The request body is too large; expected at most 64 KiB";
const UNSUPPORTED_MEDIA_TYPE: &str =
    "The request body is not declared as JSON; expected `Content-Type: application/json`";
const RATE_LIMITED: &str = "Too many requests; try again later";
const TOO_MANY_TEST_EVENTS: &str = "Too many test events are in progress; try again later";
const INTERNAL_ERROR: &str = "Internal error";
const UNAVAILABLE: &str = "Temporarily unavailable; try again later";

/// The first characters of a text that may contain parts of the request.
pub(super) fn truncate(text: &str) -> String {
    text.chars().take(MAX_QUOTED).collect()
}

impl From<store::Error> for ApiError {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Unavailable(_) | store::Error::KeyUnavailable(_) => {
                Self::Unavailable(InternalCause(Arc::new(error)))
            }
            store::Error::Internal(_) | store::Error::Unreadable(_) => Self::internal(error),
        }
    }
}

impl From<LocalFailure> for ApiError {
    fn from(failure: LocalFailure) -> Self {
        Self::Unavailable(InternalCause(Arc::new(failure)))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let code = self.code();
        let envelope = ErrorResponse {
            success: false,
            error: ErrorBody {
                code: code.as_str(),
                message: self.message(),
            },
        };
        let mut response = (code.status(), Json(envelope)).into_response();
        let headers = response.headers_mut();
        match self {
            Self::RateLimited {
                retry_after_seconds,
            }
            | Self::TooManyTestEvents {
                retry_after_seconds,
            } => {
                headers.insert(RETRY_AFTER, retry_after_seconds.into());
            }
            Self::Unauthorized => {
                // RFC 9110, section 11.6.1: a 401 response has a challenge.
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::Unavailable(cause) => {
                headers.insert(RETRY_AFTER, UNAVAILABLE_RETRY_AFTER.into());
                response.extensions_mut().insert(cause);
            }
            Self::Internal(cause) => {
                response.extensions_mut().insert(cause);
            }
            _ => {}
        }
        response
    }
}

/// An error. `code` is stable; `message` may change.
#[derive(Serialize, ToSchema)]
#[schema(as = Error)]
pub(super) struct ErrorResponse<'a> {
    #[schema(schema_with = schemas::const_false)]
    success: bool,
    #[schema(inline)]
    error: ErrorBody<'a>,
}

#[derive(Serialize, ToSchema)]
struct ErrorBody<'a> {
    #[schema(schema_with = error_code)]
    code: &'static str,
    /// Human-readable description. Programs should use `code`.
    message: &'a str,
}

fn error_code() -> Object {
    schemas::string_enum(ErrorCode::ALL.map(ErrorCode::as_str))
}

/// The code of an error response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ErrorCode {
    InvalidRequest,
    Unauthorized,
    NotFound,
    PayloadTooLarge,
    UnsupportedMediaType,
    RateLimited,
    InternalError,
    Unavailable,
    MethodNotAllowed,
    Conflict,
}

impl ErrorCode {
    const ALL: [Self; 10] = [
        Self::InvalidRequest,
        Self::Unauthorized,
        Self::NotFound,
        Self::PayloadTooLarge,
        Self::UnsupportedMediaType,
        Self::RateLimited,
        Self::InternalError,
        Self::Unavailable,
        Self::MethodNotAllowed,
        Self::Conflict,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not_found",
            Self::PayloadTooLarge => "payload_too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::RateLimited => "rate_limited",
            Self::InternalError => "internal_error",
            Self::Unavailable => "unavailable",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Conflict => "conflict",
        }
    }

    const fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::InternalError => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict => StatusCode::CONFLICT,
        }
    }

    /// Description and example message of the response that operations share. `None`: operations
    /// do not share one. No operation lists 405, and each operation describes its own 409.
    const fn shared_description(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::InvalidRequest => Some((
                "The request is invalid. The message names the field and what is expected.",
                "url: expected a URL that begins with `https://`",
            )),
            Self::Unauthorized => Some(("The API key is missing or invalid.", UNAUTHORIZED)),
            Self::NotFound => Some((
                "The resource does not exist or belongs to another account. Malformed ids return \
                 404.",
                "No such webhook: 1",
            )),
            Self::PayloadTooLarge => {
                Some(("The request body is larger than 64 KiB.", PAYLOAD_TOO_LARGE))
            }
            Self::UnsupportedMediaType => Some((
                "The request body is not declared as JSON.",
                UNSUPPORTED_MEDIA_TYPE,
            )),
            Self::RateLimited => Some((
                "The account exceeded its rate limit, by default 60 requests per minute and \
                 10,000 per day, or too many test events are in progress.",
                RATE_LIMITED,
            )),
            Self::InternalError => Some((
                "An internal error. The `X-Request-Id` identifies the request for support.",
                INTERNAL_ERROR,
            )),
            Self::Unavailable => Some(("The service is temporarily unavailable.", UNAVAILABLE)),
            Self::MethodNotAllowed | Self::Conflict => None,
        }
    }
}

/// Responses of an OpenAPI operation by status.
pub(super) type Responses = BTreeMap<String, RefOr<openapi::Response>>;

/// References to the shared error responses with these statuses.
pub(super) fn error_responses(statuses: &[u16]) -> Responses {
    let mut responses = Responses::new();
    for code in ErrorCode::ALL {
        let status = code.status().as_u16();
        if statuses.contains(&status) {
            let reference = Ref::from_response_name(code.as_str());
            responses.insert(status.to_string(), reference.into());
        }
    }
    responses
}

/// The shared error responses by code.
pub(super) fn error_components() -> Responses {
    let mut responses = Responses::new();
    for code in ErrorCode::ALL {
        if let Some((description, message)) = code.shared_description() {
            let response = describe_error(code, description, message);
            responses.insert(code.as_str().to_owned(), response.into());
        }
    }
    responses
}

fn describe_error(code: ErrorCode, description: &str, message: &str) -> openapi::Response {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Error")))
        .example(Some(json!({
            "success": false,
            "error": { "code": code.as_str(), "message": message },
        })));
    let response = ResponseBuilder::new()
        .description(description)
        .content("application/json", content.build());
    match code {
        ErrorCode::Unauthorized => {
            let challenge = header("`Bearer`.", Object::with_type(Type::String));
            response.header("WWW-Authenticate", challenge).build()
        }
        ErrorCode::RateLimited | ErrorCode::Unavailable => {
            let seconds = header(
                "Seconds to wait before the next request.",
                schemas::positive_integer(),
            );
            response.header("Retry-After", seconds).build()
        }
        _ => response.build(),
    }
}

fn header(description: &str, schema: Object) -> Header {
    HeaderBuilder::new()
        .schema(Some(schema))
        .description(Some(description))
        .build()
}
