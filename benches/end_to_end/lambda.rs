//! Lambda's Runtime API (2018-06-01) and Extensions API (2020-01-01), which pass one event after
//! the other to a function and its extension.

use std::{
    future,
    process::{Command, Stdio},
    sync::Arc,
};

use http_body_util::{BodyExt, Collected, Full};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, Semaphore, mpsc},
};

use super::{
    http,
    process_stats::{self, Process},
};

const REQUEST_ID: &str = "8476a536-e9f4-11e8-9739-2dfe598c3fcd";
const FUNCTION_ARN: &str = "arn:aws:lambda:us-east-1:123456789012:function:measured";

/// A deployed binary that handles one invocation after the other.
pub struct Function {
    /// The process.
    pub process: Process,
    events: mpsc::Sender<Bytes>,
    responses: mpsc::Receiver<Bytes>,
}

struct RuntimeApi {
    events: Mutex<mpsc::Receiver<Bytes>>,
    responses: mpsc::Sender<Bytes>,
    /// Counts the invocations whose event the extension has not received. The API has no extension.
    invocations: Semaphore,
}

impl Function {
    /// Starts a binary.
    pub async fn start(binary: &str, environment: &[(&str, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("the listener is bound");
        let (event_sender, event_receiver) = mpsc::channel(1);
        let (response_sender, response_receiver) = mpsc::channel(1);
        let runtime_api = Arc::new(RuntimeApi {
            events: Mutex::new(event_receiver),
            responses: response_sender,
            invocations: Semaphore::new(0),
        });
        tokio::spawn(http::serve(listener, runtime_api, respond));
        let child = Command::new(binary)
            .env_clear()
            .envs(environment.iter().copied())
            .env("AWS_LAMBDA_RUNTIME_API", address.to_string())
            .env("AWS_LAMBDA_FUNCTION_NAME", "measured")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "any")
            .env("AWS_SECRET_ACCESS_KEY", "any")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the function starts");
        Self {
            process: Process(child),
            events: event_sender,
            responses: response_receiver,
        }
    }

    /// Invokes the function. Returns its response.
    pub async fn invoke(&mut self, event: Bytes) -> Bytes {
        self.events.send(event).await.expect("the Runtime API runs");
        self.responses.recv().await.expect("the Runtime API runs")
    }
}

async fn respond(
    runtime_api: Arc<RuntimeApi>,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/2020-01-01/extension/register" => register_extension(),
        "/2020-01-01/extension/event/next" => next_extension_event(&runtime_api).await,
        _ if request.method() == Method::GET => next_invocation(&runtime_api).await,
        _ => accept_response(&runtime_api, request).await,
    }
}

fn register_extension() -> Response<Full<Bytes>> {
    let body = r#"{"functionName":"measured","functionVersion":"1","handler":"bootstrap"}"#;
    Response::builder()
        .header("Lambda-Extension-Identifier", "extension")
        .body(Full::new(Bytes::from_static(body.as_bytes())))
        .expect("the header is valid")
}

/// Waits for an invocation and returns its event to the extension.
async fn next_extension_event(runtime_api: &RuntimeApi) -> Response<Full<Bytes>> {
    let invocation = runtime_api.invocations.acquire().await;
    invocation.expect("the semaphore is never closed").forget();
    let deadline = process_stats::unix_millis() + 60_000;
    let event = serde_json::json!({
        "eventType": "INVOKE",
        "deadlineMs": deadline,
        "requestId": REQUEST_ID,
        "invokedFunctionArn": FUNCTION_ARN,
    });
    Response::new(Full::new(Bytes::from(event.to_string())))
}

/// Waits for an event and passes it to the function.
async fn next_invocation(runtime_api: &RuntimeApi) -> Response<Full<Bytes>> {
    let Some(event) = runtime_api.events.lock().await.recv().await else {
        return future::pending().await;
    };
    runtime_api.invocations.add_permits(1);
    let deadline = process_stats::unix_millis() + 60_000;
    Response::builder()
        .header("Lambda-Runtime-Aws-Request-Id", REQUEST_ID)
        .header("Lambda-Runtime-Deadline-Ms", deadline.to_string())
        .header("Lambda-Runtime-Invoked-Function-Arn", FUNCTION_ARN)
        .body(Full::new(event))
        .expect("the headers are valid")
}

/// Accepts the result of an invocation.
///
/// # Panics
/// If the function reports an error.
async fn accept_response(
    runtime_api: &RuntimeApi,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let is_error = request.uri().path().ends_with("/error");
    let body = request
        .into_body()
        .collect()
        .await
        .map(Collected::to_bytes)
        .unwrap_or_default();
    assert!(
        !is_error,
        "the function failed: {}",
        String::from_utf8_lossy(&body)
    );
    let _ = runtime_api.responses.send(body).await;
    Response::builder()
        .status(202)
        .body(Full::new(Bytes::new()))
        .expect("the status is valid")
}
