//! Lambda's Runtime API (2018-06-01), which passes one event after the other to a function.

use std::{
    process::{Command, Stdio},
    sync::Arc,
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
};

use super::{
    http,
    process_stats::{self, Process},
};

/// A deployed binary that handles one invocation after the other.
pub struct Function {
    /// The process.
    pub process: Process,
    invocations: mpsc::Sender<Bytes>,
    responses: mpsc::Receiver<Bytes>,
}

struct Wire {
    invocations: Mutex<mpsc::Receiver<Bytes>>,
    responses: mpsc::Sender<Bytes>,
}

impl Function {
    /// Starts a binary.
    pub async fn start(binary: &str, environment: &[(&str, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener
            .local_addr()
            .expect("the listener is bound")
            .to_string();
        let (invocations, taken) = mpsc::channel(1);
        let (sender, responses) = mpsc::channel(1);
        let wire = Arc::new(Wire {
            invocations: Mutex::new(taken),
            responses: sender,
        });
        tokio::spawn(http::serve(listener, wire, respond));
        let mut command = Command::new(binary);
        command.env_clear().envs(environment.iter().copied());
        command
            .env("AWS_LAMBDA_RUNTIME_API", address)
            .env("AWS_LAMBDA_FUNCTION_NAME", "measured");
        command
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512");
        command
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "any")
            .env("AWS_SECRET_ACCESS_KEY", "any");
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the function starts");
        Self {
            process: Process(child),
            invocations,
            responses,
        }
    }

    /// Invokes the function. Returns its response.
    pub async fn invoke(&mut self, event: Bytes) -> Bytes {
        self.invocations
            .send(event)
            .await
            .expect("the Runtime API runs");
        self.responses.recv().await.expect("the Runtime API runs")
    }
}

async fn respond(wire: Arc<Wire>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() == Method::GET {
        let Some(event) = wire.invocations.lock().await.recv().await else {
            std::future::pending::<()>().await;
            unreachable!()
        };
        let response = Response::builder()
            .header(
                "Lambda-Runtime-Aws-Request-Id",
                "8476a536-e9f4-11e8-9739-2dfe598c3fcd",
            )
            .header(
                "Lambda-Runtime-Deadline-Ms",
                (process_stats::unix_millis() + 60_000).to_string(),
            )
            .header(
                "Lambda-Runtime-Invoked-Function-Arn",
                "arn:aws:lambda:us-east-1:123456789012:function:measured",
            )
            .body(Full::new(event));
        return response.expect("the headers are plain");
    }
    let failed = request.uri().path().ends_with("/error");
    let body = request
        .into_body()
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    assert!(
        !failed,
        "the function failed: {}",
        String::from_utf8_lossy(&body)
    );
    let _ = wire.responses.send(body).await;
    let accepted = Response::builder()
        .status(202)
        .body(Full::new(Bytes::new()));
    accepted.expect("the status is one")
}
