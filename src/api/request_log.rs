//! The request id and the log line of each request.

use std::sync::{Arc, OnceLock};

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use lambda_http::request::RequestContext;

use super::error::InternalCause;
use crate::{clock::Stopwatch, error_chain::error_chain, random};
use nano_webhooks_core::account_id::AccountId;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The account of a request, for the log line. It is in the request's extensions.
#[derive(Clone, Default)]
pub(super) struct LoggedAccount(Arc<OnceLock<String>>);

impl LoggedAccount {
    /// Records the account. The first call decides.
    pub(super) fn set(&self, account: &AccountId) {
        self.0.get_or_init(|| account.as_str().to_owned());
    }
}

/// Adds `X-Request-Id` to each response and logs the request, with the cause of a 500 or 503.
pub(super) async fn log_request(mut request: Request, next: Next) -> Response {
    let request_id = gateway_request_id(&request).unwrap_or_else(random::request_id);
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map(|path| path.as_str().to_owned());
    let logged_account = LoggedAccount::default();
    request.extensions_mut().insert(logged_account.clone());

    let stopwatch = Stopwatch::start();
    let mut response = next.run(request).await;
    let duration_ms = stopwatch.elapsed().as_millis();

    let status = response.status().as_u16();
    let account = logged_account.0.get();
    if let Some(InternalCause(cause)) = response.extensions_mut().remove::<InternalCause>() {
        let cause = error_chain(&*cause);
        tracing::error!(
            request_id, account, %method, route, status, duration_ms, cause,
            "API request failed"
        );
    } else {
        tracing::info!(
            request_id, account, %method, route, status, duration_ms,
            "API request completed"
        );
    }
    if let Ok(value) = HeaderValue::try_from(request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// API Gateway's request id, which its access log has too.
fn gateway_request_id(request: &Request) -> Option<String> {
    match request.extensions().get()? {
        RequestContext::ApiGatewayV2(context) => context.request_id.clone(),
        _ => None,
    }
}
