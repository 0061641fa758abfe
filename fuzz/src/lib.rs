//! Helpers that several fuzz targets use.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use axum::response::Response;
use http_body_util::BodyExt;
use serde::Deserialize;

/// Polls a future once. The futures here never wait, because they do no I/O.
pub fn poll_ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the future is pending"),
    }
}

/// Parses an error response. Panics if the envelope is not the documented one.
pub fn parse_error_response(response: Response) -> (u16, String) {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct ErrorResponse {
        success: bool,
        error: ErrorBody,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct ErrorBody {
        code: String,
        message: String,
    }

    let status = response.status().as_u16();
    let bytes = poll_ready(response.into_body().collect())
        .expect("a body in memory")
        .to_bytes();
    let ErrorResponse { success, error } =
        serde_json::from_slice(&bytes).expect("the documented envelope");
    let code = match status {
        400 => "invalid_request",
        413 => "payload_too_large",
        415 => "unsupported_media_type",
        other => panic!("status {other}"),
    };
    assert!(!success);
    assert_eq!(error.code, code);
    (status, error.message)
}
