//! A small HTTP client for our own API.

use axum::body::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;

use super::args::CliError;
use nano_webhooks_core::api_key::ApiKey;

/// Sends a request with a JSON body and gives the answer's text.
pub(super) async fn send(
    method: Method,
    url: &str,
    key: &ApiKey,
    body: &Value,
) -> Result<(StatusCode, String), CliError> {
    let request = Request::builder()
        .method(method)
        .uri(url)
        .header("authorization", format!("Bearer {}", key.expose()))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))?;
    let response = Client::builder(TokioExecutor::new())
        .build_http()
        .request(request)
        .await?;
    let status = response.status();
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
}
