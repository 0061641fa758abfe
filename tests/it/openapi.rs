//! The OpenAPI document: `docs/openapi.json` is current, and responses match the document.

use std::{collections::BTreeSet, fs, path::Path};

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use nano_webhooks_core::{
    delivery::attempt,
    event::{EventId, traceparent::Traceparent},
    event_type::EventType,
    signing::Signatures,
    static_headers::StaticHeaders,
    timestamp::Timestamp,
};
use serde_json::{Value, json};

use crate::support::app::TestApp;

const PATH: &str = "/api/v1/openapi.json";

/// The document, which needs no API key.
async fn get_document(app: &TestApp) -> Value {
    let request = Request::get(PATH).body(Body::empty()).unwrap();
    let response = app.send(request).await;
    assert_eq!(response.status, StatusCode::OK);
    response.json
}

#[tokio::test]
async fn committed_document_is_current() {
    let text = format!("{:#}\n", get_document(&TestApp::new().await).await);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    #[expect(
        clippy::disallowed_methods,
        reason = "a test has no configuration file"
    )]
    if std::env::var("UPDATE_OPENAPI").is_ok() {
        fs::write(&file, &text).unwrap();
    }
    let committed = fs::read_to_string(file).unwrap();
    assert!(
        committed == text,
        "docs/openapi.json is out of date; run UPDATE_OPENAPI=1 cargo test --test it openapi"
    );
}

/// Without a key, a described operation returns 401 or 200, and an unknown route 404.
#[tokio::test]
async fn described_operation_has_route() {
    let app = TestApp::new().await;
    let document = get_document(&app).await;
    let mut count = 0;
    for (path, method, operation) in operations(&document) {
        let request = Request::builder()
            .method(method.to_uppercase().as_str())
            .uri(path.replace(['{', '}'], ""));
        let status = app.send_raw(request.body(Body::empty()).unwrap()).await;
        let is_open = operation["security"] == json!([]);
        let expected = if is_open {
            StatusCode::OK
        } else {
            StatusCode::UNAUTHORIZED
        };
        assert_eq!(status, expected, "{method} {path}");
        count += 1;
    }
    assert_eq!(count, 16);
}

/// Operations that need an API key describe 401, 429, 500 and 503; the others have no security.
#[tokio::test]
async fn operation_describes_authentication_errors() {
    let document = get_document(&TestApp::new().await).await;
    for (path, method, operation) in operations(&document) {
        let is_open = operation["security"] == json!([]);
        assert_eq!(is_open, !path.contains("/webhooks"), "{method} {path}");
        for status in ["401", "429", "500", "503"] {
            assert_eq!(
                operation["responses"].get(status).is_some(),
                !is_open,
                "{method} {path}: {status}"
            );
        }
        for (status, response) in operation["responses"].as_object().unwrap() {
            let response = resolve(&document, response);
            assert!(
                response["headers"].get("X-Request-Id").is_some(),
                "{method} {path}: {status}"
            );
            let has_retry_after = ["429", "503"].contains(&status.as_str());
            assert_eq!(
                response["headers"].get("Retry-After").is_some(),
                has_retry_after,
                "{method} {path}: {status}"
            );
        }
    }
}

/// The responses equal the documented examples byte for byte.
const WEBHOOK: &str = concat!(
    r#"{"id":1,"url":"https://example.com/hooks","events":["job.completed","job.failed"],"#,
    r#""status":"active"}"#,
);
const COMPLETED: &str = concat!(
    r#"{"event":"job.completed","task_id":"task_xxx","task_type":"image","#,
    r#""status":"completed","data":{"url":"https://cdn.example.com/image.png","#,
    r#""credits_charged":6},"timestamp":"2024-12-23T10:00:00Z"}"#,
);

#[tokio::test]
async fn responses_equal_documented_examples() {
    let app = TestApp::new().await;
    let document = get_document(&app).await;
    let list = &document["paths"]["/api/v1/webhooks"]["get"];
    let create = &document["paths"]["/api/v1/webhooks"]["post"];
    let delete = &document["paths"]["/api/v1/webhooks/{id}"]["delete"];
    let health = &document["paths"]["/healthz"]["get"];

    let created = app
        .post(create["requestBody"]["content"]["application/json"]["example"].to_string())
        .await;
    assert_eq!(created.text, response_example(&document, create, "201"));
    assert_eq!(
        created.text,
        format!(r#"{{"success":true,"data":{WEBHOOK}}}"#)
    );
    let listed = app.get("/api/v1/webhooks").await.text;
    assert_eq!(listed, response_example(&document, list, "200"));
    assert_eq!(listed, format!(r#"{{"success":true,"data":[{WEBHOOK}]}}"#));
    let deleted = app.delete("/api/v1/webhooks/1").await.text;
    assert_eq!(deleted, response_example(&document, delete, "200"));
    assert_eq!(deleted, r#"{"success":true,"data":{"id":1}}"#);
    assert_eq!(
        app.delete("/api/v1/webhooks/1").await.text,
        response_example(&document, delete, "404")
    );

    let without_key = Request::get("/api/v1/webhooks")
        .body(Body::empty())
        .unwrap();
    let unauthorized = app.send(without_key).await;
    assert_eq!(unauthorized.status, StatusCode::UNAUTHORIZED);
    assert_eq!(unauthorized.text, response_example(&document, list, "401"));
    let not_json = Request::post("/api/v1/webhooks")
        .header("authorization", format!("Bearer {}", app.key.expose()));
    let unsupported = app.send(not_json.body("url=x".into()).unwrap()).await;
    assert_eq!(unsupported.text, response_example(&document, create, "415"));
    assert_eq!(
        app.create(json!({"url": "x"})).await.text,
        response_example(&document, create, "400")
    );
    assert_eq!(
        app.get("/healthz").await.text,
        response_example(&document, health, "200")
    );

    let callback = &document["webhooks"]["job.completed"]["post"];
    assert_eq!(
        callback["requestBody"]["content"]["application/json"]["example"].to_string(),
        COMPLETED
    );
}

/// The example of an operation's response with this status.
fn response_example(document: &Value, operation: &Value, status: &str) -> String {
    let response = resolve(document, &operation["responses"][status]);
    response["content"]["application/json"]["example"].to_string()
}

#[tokio::test]
async fn callback_headers_equal_sent_headers() {
    let document = get_document(&TestApp::new().await).await;
    for event in EventType::ALL {
        let signatures = Signatures {
            nano: "v1=".into(),
            standard: "v1,".into(),
        };
        let id = EventId::parse("evt_01JFSFB4807P0XDV4PAY2Y4PMB").unwrap();
        let traceparent =
            Traceparent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        let request = attempt::WebhookRequest {
            event_id: &id,
            event_type: event,
            attempt_number: 1,
            started_at: Timestamp::from_millis(1_734_948_000_000),
            signatures: Some(&signatures),
            traceparent: Some(&traceparent),
            static_headers: &StaticHeaders::NONE,
            version: nano_webhooks::VERSION,
        };
        let described = document["webhooks"][event.as_str()]["post"]["parameters"]
            .as_array()
            .unwrap();
        let described: BTreeSet<String> = described
            .iter()
            .map(|header| header["name"].as_str().unwrap().to_owned())
            .collect();
        // The media type of the body is described with the body.
        let sent = request
            .headers()
            .into_iter()
            .map(|(name, _)| name.to_owned())
            .filter(|name| name != "Content-Type");
        assert_eq!(described, sent.collect(), "{}", event.as_str());
    }
}

fn operations(document: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            let item = item.as_object().unwrap().iter();
            item.map(|(method, operation)| (path.as_str(), method.as_str(), operation))
        })
}

/// Follows a reference.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let target = value["$ref"]
        .as_str()
        .map(|target| target.strip_prefix('#').unwrap());
    target.map_or(value, |target| {
        document
            .pointer(target)
            .unwrap_or_else(|| panic!("{target} does not exist"))
    })
}
