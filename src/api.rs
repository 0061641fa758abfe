//! The HTTP API: an axum router that the `api` function and local mode serve.
//!
//! A request passes `request_log`, the router, the extractors (`auth`, `path`, `query`,
//! `body`) and its handler (`webhooks`, `deliveries`, …). Handlers return `responses` or
//! `error`.

mod auth;
mod body;
mod callbacks;
pub mod deliveries;
mod error;
mod fields;
#[cfg(fuzzing)]
pub mod fuzzing;
mod healthz;
mod openapi;
mod path;
mod portal;
mod query;
mod replays;
mod request_log;
mod responses;
mod rotate_secret;
mod schemas;
mod send_test_event;
mod state;
mod webhooks;

use std::{
    any::Any,
    sync::{Arc, LazyLock},
};

use axum::{
    Router,
    extract::Request,
    http::header::CONTENT_TYPE,
    middleware,
    response::{IntoResponse, Response},
};
use hyper::body::Bytes;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use error::{ApiError, truncate};
pub use state::AppState;

/// The router of the API.
pub fn router(state: AppState) -> Router {
    router_with_extra_routes(state, Router::new())
}

/// The router of the API and `extra` routes, which get the same middleware.
pub fn router_with_extra_routes(state: AppState, extra: Router) -> Router {
    let router = Router::from(routes()).with_state(Arc::new(state));
    with_middleware(router.merge(extra))
}

/// Every route with its OpenAPI description. `routes!` only accepts handlers that have one.
fn routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::with_openapi(openapi::Description::openapi())
        .routes(routes!(webhooks::list, webhooks::create))
        .routes(routes!(webhooks::get, webhooks::update, webhooks::delete))
        .routes(routes!(rotate_secret::rotate_secret))
        .routes(routes!(send_test_event::send_test_event))
        .routes(routes!(replays::create))
        .routes(routes!(replays::get, replays::cancel))
        .routes(routes!(deliveries::list))
        .routes(routes!(deliveries::get))
        .routes(routes!(deliveries::retry))
        .routes(routes!(openapi_document))
        .routes(routes!(healthz::healthz))
        .routes(routes!(portal::serve_portal))
}

/// Adds what every response has: the request id, the envelope of errors, and 500 for panics.
fn with_middleware(router: Router) -> Router {
    router
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(handle_panic))
        .layer(middleware::from_fn(request_log::log_request))
}

/// The document as JSON.
static OPENAPI_JSON: LazyLock<Bytes> = LazyLock::new(|| {
    let mut document = routes().into_openapi();
    openapi::complete(&mut document);
    let json = document.to_json().expect("all keys are strings");
    Bytes::from(json)
});

/// OpenAPI document
#[utoipa::path(
    get,
    path = "/api/v1/openapi.json",
    operation_id = "getOpenApiDocument",
    tag = "Service",
    security(),
    responses((status = 200, description = "This document, as OpenAPI 3.1.", body = Object)),
)]
async fn openapi_document() -> Response {
    ([(CONTENT_TYPE, "application/json")], OPENAPI_JSON.clone()).into_response()
}

async fn not_found(request: Request) -> ApiError {
    ApiError::NotFound(format!(
        "No such route: {} {}",
        request.method(),
        truncate(request.uri().path())
    ))
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::MethodNotAllowed(format!(
        "{} does not support {}",
        truncate(request.uri().path()),
        request.method()
    ))
}

/// A panic of a handler.
#[derive(Debug, thiserror::Error)]
#[error("panicked: {0}")]
struct HandlerPanic(String);

#[expect(
    clippy::needless_pass_by_value,
    reason = "`CatchPanicLayer` prescribes the signature"
)]
fn handle_panic(panic: Box<dyn Any + Send>) -> Response {
    let message = if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else {
        "no message".to_owned()
    };
    ApiError::internal(HandlerPanic(message)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{body::Body, http::StatusCode, routing::get};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    /// A panic is a 500 response that does not reveal its cause.
    #[tokio::test]
    async fn panic_returns_500() {
        let router = with_middleware(Router::new().route(
            "/boom",
            get(async || -> Response { panic!("the secret cause") }),
        ));
        let request = Request::get("/boom").body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(response.headers().contains_key("x-request-id"));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(
            body,
            r#"{"success":false,"error":{"code":"internal_error","message":"Internal error"}}"#
        );
    }
}
