//! The internal extension asks Lambda's Extensions API for invocations, whatever events contain.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use nano_webhooks::extension::{Extension, ExtensionError};
use tokio::net::TcpListener;

const IDENTIFIER: [(&str, &str); 1] = [("lambda-extension-identifier", "extension-1")];

async fn register(headers: HeaderMap, body: String) -> Response {
    if headers["lambda-extension-name"] != "late-attempts" || body != r#"{"events":["INVOKE"]}"# {
        return StatusCode::BAD_REQUEST.into_response();
    }
    (IDENTIFIER, "{}").into_response()
}

/// Returns the next event; none is left: 403.
async fn next(
    State(events): State<Arc<Mutex<VecDeque<&'static str>>>>,
    headers: HeaderMap,
) -> Response {
    let (name, value) = IDENTIFIER[0];
    let event = events.lock().unwrap().pop_front();
    match event {
        Some(event) if headers[name] == value => event.into_response(),
        _ => StatusCode::FORBIDDEN.into_response(),
    }
}

/// The Extensions API with these events. Returns its host and port.
async fn serve(events: &[&'static str]) -> String {
    let events = Arc::new(Mutex::new(VecDeque::from(events.to_vec())));
    let router = Router::new()
        .route("/2020-01-01/extension/register", post(register))
        .route("/2020-01-01/extension/event/next", get(next))
        .with_state(events);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(axum::serve(listener, router).into_future());
    address
}

#[tokio::test]
async fn content_of_event_is_not_read() {
    let events = [
        r#"{"eventType":"INVOKE","deadlineMs":1,"requestId":"1","tracing":{}}"#,
        r#"{"eventType":"INVOKE"}"#,
        "",
    ];
    let api = serve(&events).await;
    let extension = Extension::register(&api, "late-attempts").await.unwrap();
    for event in events {
        assert!(extension.next_invocation().await.is_ok(), "{event}");
    }
    let end = extension.next_invocation().await;
    assert!(matches!(
        end,
        Err(ExtensionError::Rejected(StatusCode::FORBIDDEN))
    ));
}

#[tokio::test]
async fn refused_registration_is_an_error() {
    let api = serve(&[]).await;
    let refused = Extension::register(&api, "another").await;
    assert!(matches!(
        refused,
        Err(ExtensionError::Rejected(StatusCode::BAD_REQUEST))
    ));
    let unreachable = Extension::register("127.0.0.1:9", "late-attempts").await;
    assert!(matches!(unreachable, Err(ExtensionError::NoResponse(_))));
}
