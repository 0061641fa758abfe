//! What every request has: an id, and a line in the log.

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use lambda_http::request::RequestContext;

use super::error::InternalCause;
use crate::{clock::Stopwatch, random};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives each answer its `X-Request-Id` and logs the request, with the cause of a 500 or 503 that the caller is not told.
pub(super) async fn log_request(request: Request, next: Next) -> Response {
    let id = gateway_id(&request).unwrap_or_else(random::request_id);
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map(|path| path.as_str().to_owned());
    let watch = Stopwatch::start();
    let mut response = next.run(request).await;
    let status = response.status().as_u16();
    let duration_ms = watch.elapsed().as_millis();
    if let Some(InternalCause(cause)) = response.extensions_mut().remove::<InternalCause>() {
        tracing::error!(request_id = id, %method, route, status, duration_ms, cause, "request");
    } else {
        tracing::info!(request_id = id, %method, route, status, duration_ms, "request");
    }
    if let Ok(id) = HeaderValue::try_from(id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// API Gateway's own id of the request, so that its access log and ours agree.
fn gateway_id(request: &Request) -> Option<String> {
    match request.extensions().get()? {
        RequestContext::ApiGatewayV2(context) => context.request_id.clone(),
        _ => None,
    }
}
