//! A stand-in for SQS that accepts messages, rejects them, or does not respond.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region, timeout::TimeoutConfig};
use axum::{Json, Router, body::Bytes, extract::State};
use nano_webhooks::queue::RetryQueue;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What SQS does with the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SqsMode {
    Accept,
    /// The response names every second message of a request as failed.
    RejectHalf,
    /// The response names every message as failed.
    RejectAll,
    Hang,
}

#[derive(Clone)]
pub struct Sqs {
    url: String,
    mode: Arc<Mutex<SqsMode>>,
    /// The bodies of the accepted messages.
    messages: Arc<Mutex<Vec<Value>>>,
}

impl Sqs {
    pub async fn start(mode: SqsMode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sqs = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            mode: Arc::new(Mutex::new(mode)),
            messages: Arc::default(),
        };
        let router = Router::new().fallback(respond).with_state(sqs.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        sqs
    }

    pub fn set_mode(&self, mode: SqsMode) {
        *self.mode.lock().unwrap() = mode;
    }

    pub fn message_count(&self) -> usize {
        self.messages.lock().unwrap().len()
    }

    /// A retry queue that sends to this stand-in. No request reaches a timeout of the client.
    pub fn queue(&self) -> RetryQueue {
        let patient = TimeoutConfig::builder()
            .operation_attempt_timeout(Duration::from_mins(1))
            .build();
        let config = aws_sdk_sqs::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .timeout_config(patient)
            .endpoint_url(&self.url)
            .build();
        RetryQueue::Sqs {
            client: aws_sdk_sqs::Client::from_conf(config),
            url: format!("{}/123456789012/retries", self.url),
        }
    }
}

async fn respond(State(sqs): State<Sqs>, body: Bytes) -> Json<Value> {
    let request: Value = serde_json::from_slice(&body).unwrap();
    let mode = *sqs.mode.lock().unwrap();
    if mode == SqsMode::Hang {
        pending::<()>().await;
    }
    let mut successful = Vec::new();
    let mut failed = Vec::new();
    for (index, entry) in request["Entries"].as_array().unwrap().iter().enumerate() {
        let is_rejected = match mode {
            SqsMode::RejectAll => true,
            SqsMode::RejectHalf => index % 2 == 0,
            SqsMode::Accept | SqsMode::Hang => false,
        };
        if is_rejected {
            failed.push(json!({
                "Id": entry["Id"], "Code": "InternalError", "SenderFault": false,
            }));
        } else {
            successful.push(json!({
                "Id": entry["Id"], "MessageId": "message", "MD5OfMessageBody": "",
            }));
            let body = entry["MessageBody"].as_str().unwrap();
            let mut messages = sqs.messages.lock().unwrap();
            messages.push(serde_json::from_str(body).unwrap());
        }
    }
    Json(json!({ "Successful": successful, "Failed": failed }))
}
