//! What Lambda is to a function: the Runtime API (2018-06-01), which hands it one event after the other.

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

/// A deployed binary, which takes one invocation after the other.
pub struct Function {
    /// The process.
    pub process: Process,
    invocations: mpsc::Sender<Bytes>,
    answers: mpsc::Receiver<Bytes>,
}

struct Wire {
    invocations: Mutex<mpsc::Receiver<Bytes>>,
    answers: mpsc::Sender<Bytes>,
}

impl Function {
    /// Starts a binary.
    pub async fn start(binary: &str, environment: &[(&str, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port is free");
        let address = listener.local_addr().expect("it listens").to_string();
        let (invocations, taken) = mpsc::channel(1);
        let (given, answers) = mpsc::channel(1);
        let wire = Arc::new(Wire {
            invocations: Mutex::new(taken),
            answers: given,
        });
        tokio::spawn(http::serve(listener, wire, answer));
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
            answers,
        }
    }

    /// Has it work on an event, and gives its answer.
    pub async fn invoke(&mut self, event: Bytes) -> Bytes {
        self.invocations
            .send(event)
            .await
            .expect("the Runtime API runs");
        self.answers.recv().await.expect("the Runtime API runs")
    }
}

async fn answer(wire: Arc<Wire>, request: Request<Incoming>) -> Response<Full<Bytes>> {
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
    let _ = wire.answers.send(body).await;
    let accepted = Response::builder()
        .status(202)
        .body(Full::new(Bytes::new()));
    accepted.expect("the status is one")
}
