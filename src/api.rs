//! The HTTP API: an axum router, served by the `api` Lambda behind API Gateway and by local mode alike.

mod auth;
mod body;
mod callbacks;
pub mod deliveries;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod openapi;
mod portal;
mod replays;
mod request_log;
mod rotate_secret;
mod test_event;
mod webhooks;

use std::{any::Any, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::Request,
    http::StatusCode,
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Serialize;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::ToSchema;

use crate::{
    client::{TargetGuard, WebhookClient},
    clock::Clock,
    queue::RetryQueue,
    store::{Store, rate_limit},
};
use body::truncate;
use error::ApiError;

/// What the API's operations work with.
#[derive(Clone)]
pub struct AppState {
    /// The tables.
    pub store: Store,
    /// The claim of API Gateway's authorizer that names the account; without it an API key does, and what an authorizer says
    /// is ignored.
    pub account_claim: Option<String>,
    /// Checks the URLs that webhooks are created with.
    pub guard: TargetGuard,
    /// Sends test events.
    pub client: WebhookClient,
    /// The time.
    pub clock: Clock,
    /// Where attempts that are asked for are put.
    pub queue: RetryQueue,
    /// How long a settled delivery is kept.
    pub retention: Duration,
    /// How many webhooks an account may have.
    pub webhooks_per_account: u32,
    /// How many requests an account may make.
    pub rate_limits: rate_limit::RateLimits,
}

/// The router of the whole API. Whatever it answers has the envelope, its description and the portal excepted, and an
/// `X-Request-Id`. A handler's `utoipa::path` stands in the list of `api/openapi.rs` too.
pub fn router(api: AppState) -> Router {
    router_with_extra_routes(api, Router::new())
}

/// The same with other routes beside it.
pub fn router_with_extra_routes(api: AppState, beside: Router) -> Router {
    with_middleware(
        Router::new()
            .route(
                "/api/v1/webhooks",
                get(webhooks::list).post(webhooks::create),
            )
            .route(
                "/api/v1/webhooks/{id}",
                get(webhooks::show)
                    .patch(webhooks::change)
                    .delete(webhooks::remove),
            )
            .route(
                "/api/v1/webhooks/{id}/rotate-secret",
                post(rotate_secret::rotate),
            )
            .route("/api/v1/webhooks/{id}/test", post(test_event::send))
            .route("/api/v1/webhooks/{id}/replay", post(replays::begin))
            .route(
                "/api/v1/webhooks/{id}/replays/{replay}",
                get(replays::show).delete(replays::cancel),
            )
            .route("/api/v1/webhooks/{id}/deliveries", get(deliveries::list))
            .route(
                "/api/v1/webhooks/{id}/deliveries/{event_id}",
                get(deliveries::show),
            )
            .route(
                "/api/v1/webhooks/{id}/deliveries/{event_id}/retry",
                post(deliveries::retry),
            )
            .route("/api/v1/openapi.json", get(openapi::document))
            .route("/healthz", get(healthz))
            .route("/portal", get(portal::serve_portal))
            .with_state(Arc::new(api))
            .merge(beside),
    )
}

/// Wraps a router's routes with what every answer must have.
fn with_middleware(router: Router) -> Router {
    router
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(handle_panic))
        .layer(middleware::from_fn(request_log::log_request))
}

/// The envelope of a success.
#[derive(Serialize)]
struct SuccessResponse<T> {
    success: bool,
    data: T,
}

/// Answers with `data` in the envelope.
fn ok<T: Serialize>(data: T) -> Json<SuccessResponse<T>> {
    Json(SuccessResponse {
        success: true,
        data,
    })
}

/// What says that the process answers.
#[derive(Serialize, ToSchema)]
struct HealthCheckResponse {
    #[schema(schema_with = openapi::status_ok_schema)]
    status: &'static str,
}

/// Whether the service answers
///
/// It says nothing of the tables.
#[utoipa::path(get, path = "/healthz", operation_id = "getHealth", tag = "Service", security(),
    responses((status = 200, description = "It does.", body = HealthCheckResponse,
        example = json!({"success":true,"data":{"status":"ok"}}))))]
async fn healthz() -> Json<SuccessResponse<HealthCheckResponse>> {
    ok(HealthCheckResponse { status: "ok" })
}

async fn not_found(request: Request) -> ApiError {
    ApiError::NotFound(format!(
        "No route {} {}",
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

#[expect(
    clippy::needless_pass_by_value,
    reason = "the signature that the layer asks for"
)]
fn handle_panic(panic: Box<dyn Any + Send>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    ApiError::Internal(format!("panicked: {}", text.unwrap_or("no message"))).into_response()
}

/// A `Location` for what was created.
fn created_response<T: Serialize>(location: String, data: T) -> Response {
    (
        StatusCode::CREATED,
        [(http::header::LOCATION, location)],
        ok(data),
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    #[tokio::test]
    async fn a_panic_is_a_500_that_tells_nothing_of_its_cause() {
        let router = with_middleware(Router::new().route(
            "/boom",
            get(async || -> Response { panic!("the secret cause") }),
        ));
        let response = router
            .oneshot(
                Request::get("/boom")
                    .body(axum::body::Body::empty())
                    .unwrap(),
            )
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(response.headers().contains_key("x-request-id"));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(
            body,
            r#"{"success":false,"error":{"code":"internal_error","message":"Internal error"}}"#
        );
    }
}
