//! A fake deliveries table that accepts every write at once and stores nothing, so that a run
//! measures the dispatcher alone. Other requests are passed to the engine.

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
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
    let http = Client::builder(TokioExecutor::new()).build_http();
    http::start(
        FakeDynamoDb {
            engine: engine.to_owned(),
            http,
        },
        respond,
    )
}

async fn respond(fake_dynamodb: FakeDynamoDb, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (mut head, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .expect("the function sends all of it")
        .to_bytes();
    let target = head
        .headers
        .get("x-amz-target")
        .and_then(|target| target.to_str().ok())
        .unwrap_or_default();
    let fake_body = match target.rsplit('.').next() {
        Some("BatchGetItem") => r#"{"Responses":{},"UnprocessedKeys":{}}"#,
        Some("BatchWriteItem") => r#"{"UnprocessedItems":{}}"#,
        _ => {
            head.uri = fake_dynamodb.engine.parse().expect("it is a URL");
            let response = fake_dynamodb
                .http
                .request(Request::from_parts(head, Full::new(body)))
                .await;
            let (head, body) = response.expect("the engine responds").into_parts();
            let body = body
                .collect()
                .await
                .expect("the engine sends the whole response")
                .to_bytes();
            return Response::from_parts(head, Full::new(body));
        }
    };
    Response::new(Full::new(Bytes::from_static(fake_body.as_bytes())))
}
