//! A fake deliveries table that accepts every write at once and stores nothing, so that a run
//! measures the dispatcher alone. Other requests are passed to the engine.

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    http::request::Parts,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

use super::http;

#[derive(Clone)]
struct FakeDynamoDb {
    engine: String,
    http: Client<HttpConnector, Full<Bytes>>,
}

/// Starts a fake in front of an engine, on its own thread. Returns its URL.
pub fn start(engine: &str) -> String {
    let fake_dynamodb = FakeDynamoDb {
        engine: engine.to_owned(),
        http: Client::builder(TokioExecutor::new()).build_http(),
    };
    http::start(fake_dynamodb, respond)
}

async fn respond(fake_dynamodb: FakeDynamoDb, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .expect("the function sends the whole request")
        .to_bytes();
    let fake_body = match operation(&head) {
        Some("BatchGetItem") => r#"{"Responses":{},"UnprocessedKeys":{}}"#,
        Some("BatchWriteItem") => r#"{"UnprocessedItems":{}}"#,
        _ => return fake_dynamodb.forward(head, body).await,
    };
    Response::new(Full::new(Bytes::from_static(fake_body.as_bytes())))
}

/// The DynamoDB operation of a request, such as `BatchGetItem`.
fn operation(head: &Parts) -> Option<&str> {
    let target = head.headers.get("x-amz-target")?.to_str().ok()?;
    target.rsplit('.').next()
}

impl FakeDynamoDb {
    async fn forward(&self, mut head: Parts, body: Bytes) -> Response<Full<Bytes>> {
        head.uri = self.engine.parse().expect("the engine's URL is valid");
        let response = self
            .http
            .request(Request::from_parts(head, Full::new(body)))
            .await
            .expect("the engine responds");
        let (head, body) = response.into_parts();
        let body = body
            .collect()
            .await
            .expect("the engine sends the whole response")
            .to_bytes();
        Response::from_parts(head, Full::new(body))
    }
}
