//! Tables that take every delivery at once and forget it: what is left is the dispatcher's own work.

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

/// Starts one before an engine, on a thread of its own, and says where it listens.
pub fn start(engine: &str) -> String {
    let http = Client::builder(TokioExecutor::new()).build_http();
    http::start(
        FakeDynamoDb {
            engine: engine.to_owned(),
            http,
        },
        answer,
    )
}

async fn answer(fake_dynamodb: FakeDynamoDb, request: Request<Incoming>) -> Response<Full<Bytes>> {
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
    let made_up = match target.rsplit('.').next() {
        Some("BatchGetItem") => r#"{"Responses":{},"UnprocessedKeys":{}}"#,
        Some("BatchWriteItem") => r#"{"UnprocessedItems":{}}"#,
        _ => {
            head.uri = fake_dynamodb.engine.parse().expect("it is a URL");
            let answer = fake_dynamodb
                .http
                .request(Request::from_parts(head, Full::new(body)))
                .await;
            let (head, body) = answer.expect("the engine answers").into_parts();
            let body = body
                .collect()
                .await
                .expect("the engine answers whole")
                .to_bytes();
            return Response::from_parts(head, Full::new(body));
        }
    };
    Response::new(Full::new(Bytes::from_static(made_up.as_bytes())))
}
