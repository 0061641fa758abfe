//! What the targets share.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use axum::response::Response;
use http_body_util::BodyExt;
use serde::Deserialize;

/// The value of a future that waits for nothing: no name is resolved and no byte awaited here.
pub fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("waits for something"),
    }
}

/// The status and message of an answer that is no success, whose envelope is as documented.
pub fn refusal(response: Response) -> (u16, String) {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Envelope {
        success: bool,
        error: Description,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Description {
        code: String,
        message: String,
    }

    let status = response.status().as_u16();
    let bytes = ready(response.into_body().collect()).expect("a body in memory").to_bytes();
    let Envelope { success, error } = serde_json::from_slice(&bytes).expect("the documented envelope");
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
