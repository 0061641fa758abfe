//! A stand-in for SNS that accepts messages or rejects them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use aws_sdk_sns::config::{BehaviorVersion, Credentials, Region};
use axum::{Form, Router, extract::State, http::StatusCode};
use nano_webhooks::dispatch::operator_topic::OperatorTopic;
use serde_json::Value;
use tokio::net::TcpListener;

const PUBLISHED: &str = r#"<PublishResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/">
  <PublishResult><MessageId>message</MessageId></PublishResult>
</PublishResponse>"#;

const REJECTED: &str = r#"<ErrorResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/">
  <Error><Type>Sender</Type><Code>NotFound</Code><Message>Topic does not exist</Message></Error>
</ErrorResponse>"#;

#[derive(Clone)]
pub struct Sns {
    url: String,
    rejects: Arc<Mutex<bool>>,
    requests: Arc<Mutex<Vec<HashMap<String, String>>>>,
}

impl Sns {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sns = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            rejects: Arc::default(),
            requests: Arc::default(),
        };
        let router = Router::new().fallback(respond).with_state(sns.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        sns
    }

    pub fn set_rejects(&self, rejects: bool) {
        *self.rejects.lock().unwrap() = rejects;
    }

    /// The accepted messages as JSON, with the value of their attribute `event`.
    pub fn messages(&self) -> Vec<(String, Value)> {
        let requests = self.requests.lock().unwrap();
        let mut messages = Vec::new();
        for request in requests.iter() {
            let event = request["MessageAttributes.entry.1.Value.StringValue"].clone();
            messages.push((event, serde_json::from_str(&request["Message"]).unwrap()));
        }
        messages
    }

    pub fn topic(&self) -> OperatorTopic {
        let config = aws_sdk_sns::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("eu-west-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .endpoint_url(&self.url)
            .build();
        OperatorTopic {
            client: aws_sdk_sns::Client::from_conf(config),
            arn: "arn:aws:sns:eu-west-1:123456789012:customers".to_owned(),
        }
    }
}

async fn respond(
    State(sns): State<Sns>,
    Form(request): Form<HashMap<String, String>>,
) -> (StatusCode, &'static str) {
    if *sns.rejects.lock().unwrap() {
        return (StatusCode::NOT_FOUND, REJECTED);
    }
    assert_eq!(request["Action"], "Publish");
    sns.requests.lock().unwrap().push(request);
    (StatusCode::OK, PUBLISHED)
}
