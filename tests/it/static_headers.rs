//! Static headers of webhooks: every request has them, and nothing else shows their values.

use std::time::Duration;

use axum::http::StatusCode;
use base64::{Engine, engine::general_purpose::STANDARD};
use nano_webhooks::{
    clock::Clock,
    dispatch::Dispatcher,
    random,
    store::{
        Store,
        data_keys::{DataKeyCache, KeyProvider},
        key_schema,
    },
};
use nano_webhooks_core::{data_key::KeyMaterial, webhook::WebhookId};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{
    app::{TestApp, TestResponse, WEBHOOKS},
    permissions::{RETRY, run_as},
    receiver::{Received, Receiver},
    stream::{dispatch_batch, insert_record, job_image},
    tables::TestTables,
};

const FIRST: &str = "/api/v1/webhooks/1";
/// A part of the value of `Authorization`, and the value of `X-Api-Key`.
const TOKEN: &str = "dG9rZW4/b2YgdGhl+gateway==";
const API_KEY: &str = r#"key "with\quotes" 1234567890"#;

fn headers() -> Value {
    json!({ "X-Api-Key": API_KEY, "authorization": format!("Bearer {TOKEN}") })
}

/// A webhook with headers.
fn webhook(url: &str) -> Value {
    json!({ "url": url, "events": ["job.completed"], "headers": headers() })
}

async fn patch(app: &TestApp, headers: Value) -> TestResponse {
    app.send_json("PATCH", FIRST, &json!({ "headers": headers }))
        .await
}

/// The names that the details of the first webhook show.
async fn shown_names(app: &TestApp) -> Value {
    app.get(FIRST).await.json["data"]["headers"].clone()
}

/// A PATCH keeps the headers, replaces all of them, or clears them.
#[tokio::test]
async fn headers_are_replaced_as_a_whole() {
    let app = TestApp::new().await;
    let created = app.create(webhook("https://example.com/")).await;
    assert_eq!(created.status, StatusCode::CREATED);
    assert_eq!(created.json["data"].as_object().unwrap().len(), 4);
    assert_eq!(
        shown_names(&app).await,
        json!(["authorization", "X-Api-Key"])
    );
    let described = json!({ "description": "production" });
    app.send_json("PATCH", FIRST, &described).await;
    assert_eq!(
        shown_names(&app).await,
        json!(["authorization", "X-Api-Key"])
    );
    for (update, expected) in [
        (json!({ "Cookie": "a=b" }), json!(["Cookie"])),
        (json!({}), json!([])),
        (json!({ "X-Api-Key": "k" }), json!(["X-Api-Key"])),
        (Value::Null, json!([])),
    ] {
        let updated = patch(&app, update).await;
        assert_eq!(updated.json["data"]["headers"], expected);
        assert_eq!(shown_names(&app).await, expected);
    }
    let item = app.tables.webhook_item("acme", WebhookId::new(1).unwrap());
    assert!(!item.await.contains_key("headers"));
    let without = app.create(
        json!({ "url": "https://example.com/", "events": ["job.failed"], "headers": null }),
    );
    assert_eq!(without.await.status, StatusCode::CREATED);
}

/// Asserts that a PATCH with each of these headers, as JSON, is refused, and that the message
/// repeats no value. Values contain `secret`.
async fn assert_refused<T: AsRef<str>>(rejected: &[(T, &str)]) {
    let app = TestApp::new().await;
    app.create(webhook("https://example.com/")).await;
    for (headers, message) in rejected {
        let headers = headers.as_ref();
        let body = format!(r#"{{"headers":{headers},"description":"changed"}}"#);
        let request = app
            .request("PATCH", FIRST)
            .header("content-type", "application/json");
        let response = app.send(request.body(body.into()).unwrap()).await;
        assert_eq!(response.error(), (400, "invalid_request", *message));
        assert!(!response.text.contains("secret"), "{}", response.text);
    }
    let shown = app.get(FIRST).await.json["data"].clone();
    assert_eq!(shown["description"], Value::Null);
    assert_eq!(shown["headers"], json!(["authorization", "X-Api-Key"]));
}

/// An error names the header and what is expected. A malformed name may be a whole header, so it is
/// not repeated.
#[tokio::test]
async fn invalid_name_is_refused() {
    let reserved = |name: &str| {
        format!(
            "headers.{name}: expected another name: this header is set by the service or controls \
             the connection"
        )
    };
    let names = ["Host", "content-length", "X-Nano-Signature", "TraceParent"];
    for name in names {
        let headers = format!(r#"{{"{name}":"secret"}}"#);
        assert_refused(&[(headers, reserved(name).as_str())]).await;
    }
    let malformed = "headers: expected header names of 1 to 64 letters, digits and characters of \
                     `!#$%&'*+-.^_`|~`";
    let repeated = "expected each name once, whatever its case";
    assert_refused(&[
        (r#"{"X-Key: secret":""}"#, malformed),
        (r#"{"X-Key\r\nHost":"secret"}"#, malformed),
        (r#"{"":"secret"}"#, malformed),
        (
            r#"{"X-Key":"secret","x-key":"secret"}"#,
            &format!("headers.x-key: {repeated}"),
        ),
        (
            r#"{"X-Key":"secret","X-Key":"secret"}"#,
            &format!("headers.X-Key: {repeated}"),
        ),
    ])
    .await;
}

#[tokio::test]
async fn invalid_value_is_refused() {
    let invalid = "headers.X-Key: expected a value of visible ASCII characters, with spaces and \
                   tabs only between them";
    let no_string = "headers.X-Key: expected a string";
    assert_refused(&[
        (r#"{"X-Key":"secret\r\nHost: example.org"}"#, invalid),
        (r#"{"X-Key":"secret\u0000"}"#, invalid),
        (r#"{"X-Key":"secret "}"#, invalid),
        (r#"{"X-Key":"\u00fcsecret"}"#, invalid),
        (r#"{"X-Key":""}"#, invalid),
        (r#"{"X-Key":null}"#, no_string),
        (r#"{"X-Key":["secret"]}"#, no_string),
    ])
    .await;
}

#[tokio::test]
async fn invalid_set_is_refused() {
    let members: Vec<_> = (0..11).map(|n| format!(r#""X-{n}":"secret""#)).collect();
    let many = format!("{{{}}}", members.join(","));
    let large = format!(r#"{{"X-Large":"{}"}}"#, "s".repeat(4_090));
    let other_type = "headers: expected an object of header names and values, or null";
    assert_refused(&[
        (many.as_str(), "headers.X-10: expected at most 10 headers"),
        (
            &large,
            "headers.X-Large: expected at most 4096 bytes in the names and values of all headers",
        ),
        (r#""secret""#, other_type),
        (r#"["secret"]"#, other_type),
        ("5", other_type),
        ("-5", other_type),
        ("5.5", other_type),
        ("true", other_type),
    ])
    .await;
}

/// Requests with equal headers are the same request, in any order. Other values are another one.
#[tokio::test]
async fn idempotency_key_covers_headers() {
    let app = TestApp::new().await;
    let with = |headers: &str| {
        format!(r#"{{"url":"https://example.com/","events":["job.failed"],"headers":{headers}}}"#)
    };
    let first = with(r#"{"X-Key":"one","Cookie":"two"}"#);
    let created = app.post_idempotent("order-1", &first).await;
    assert_eq!(created.status, StatusCode::CREATED);
    let same = with(r#"{"Cookie":"two", "X-Key":"one"}"#);
    assert_eq!(
        app.post_idempotent("order-1", &same).await.text,
        created.text
    );
    for other in [
        r#"{"X-Key":"one","Cookie":"other"}"#,
        r#"{"X-Key":"one"}"#,
        "null",
    ] {
        let refused = app.post_idempotent("order-1", &with(other)).await;
        assert_eq!(refused.status, StatusCode::CONFLICT, "{other}");
    }
    let plain = app.post_idempotent("order-2", &with("{}")).await;
    let absent = r#"{"url":"https://example.com/","events":["job.failed"]}"#;
    assert_eq!(
        app.post_idempotent("order-2", absent).await.text,
        plain.text
    );
    let value_hash = hex::encode(Sha256::digest(&first));
    assert_hidden(&app.tables, &["one", "two", &value_hash]).await;
}

/// Asserts that no item of any table has one of these texts in a value.
async fn assert_hidden(tables: &TestTables, texts: &[&str]) {
    for table in [
        &tables.names.webhooks,
        &tables.names.deliveries,
        &tables.jobs,
    ] {
        for item in tables.items(table).await {
            let shown = format!("{item:?}");
            for text in texts {
                assert!(
                    !shown.contains(format!("{text:?}").trim_matches('"')),
                    "{text} in {shown}"
                );
            }
        }
    }
}

/// A webhook whose endpoint rejects and repeats its headers, one that is notified of it, and the
/// responses of the API.
struct Scenario {
    app: TestApp,
    receiver: Receiver,
    dispatcher: Dispatcher,
    responses: Vec<TestResponse>,
}

impl Scenario {
    async fn new() -> Self {
        let app = TestApp::new().await;
        let receiver = Receiver::start().await;
        let dispatcher = Dispatcher {
            clock: app.clock.clone(),
            schedule: "1s".parse().unwrap(),
            ..app.tables.dispatcher()
        };
        let mut scenario = Self {
            app,
            receiver,
            dispatcher,
            responses: Vec::new(),
        };
        let failing = webhook(&scenario.receiver.url("/echo/403/jobs"));
        let mut notified = webhook(&scenario.receiver.url("/echo/200/operational"));
        notified["events"] = json!(["delivery.exhausted"]);
        for body in [failing, notified] {
            scenario.call("POST", WEBHOOKS, &body).await;
        }
        scenario
    }

    async fn call(&mut self, method: &str, path: &str, body: &Value) -> Value {
        let response = self.app.send_json(method, path, body).await;
        assert!(response.status.is_success(), "{}", response.text);
        let data = response.json["data"].clone();
        self.responses.push(response);
        data
    }

    async fn get(&mut self, path: &str) -> Value {
        let response = self.app.get(path).await;
        assert_eq!(response.status, StatusCode::OK, "{}", response.text);
        let data = response.json["data"].clone();
        self.responses.push(response);
        data
    }

    /// Makes the attempts that are scheduled, and those that follow from them.
    async fn retry_all(&self) {
        loop {
            let timers = self.app.tables.timers();
            if timers.is_empty() {
                return;
            }
            self.app.clock.advance(Duration::from_mins(1));
            for timer in timers {
                run_as(RETRY, self.dispatcher.retry(&timer.message))
                    .await
                    .unwrap();
            }
        }
    }

    /// Makes attempts of every kind. Returns the path of the job's delivery.
    async fn attempt_everything(&mut self) -> String {
        let record = insert_record(1, job_image("t1", "completed"));
        assert_eq!(dispatch_batch(&self.dispatcher, &[record]).await, []);
        self.retry_all().await;
        let listed = self.get(&format!("{FIRST}/deliveries")).await;
        let event = listed[0]["event_id"].as_str().unwrap().to_owned();
        let delivery = format!("{FIRST}/deliveries/{event}");
        self.call("POST", &format!("{delivery}/retry"), &json!({}))
            .await;
        self.retry_all().await;
        let window = json!({ "since": "2024-12-23T09:00:00Z" });
        self.call("POST", &format!("{FIRST}/replay"), &window).await;
        self.retry_all().await;
        let deadline = nano_webhooks::clock::Deadline::from_now(Duration::from_mins(1));
        self.dispatcher.advance(deadline).await.unwrap();
        self.retry_all().await;
        let event = json!({ "event": "job.completed" });
        self.call("POST", &format!("{FIRST}/test"), &event).await;
        delivery
    }
}

/// First attempts, retries, manual retries, replays, operational events and test events have the
/// headers.
#[tokio::test]
async fn every_attempt_has_headers() {
    let mut scenario = Scenario::new().await;
    scenario.attempt_everything().await;
    let received = scenario.receiver.wait_for(6).await;
    let mut attempts: Vec<_> = received
        .iter()
        .map(|request| {
            (
                request.header("x-nano-event"),
                request.header("x-nano-attempt"),
            )
        })
        .collect();
    attempts.sort_unstable();
    let expected = [
        ("delivery.exhausted", "1"),
        ("job.completed", "1"),
        ("job.completed", "1"),
        ("job.completed", "2"),
        ("job.completed", "3"),
        ("job.completed", "4"),
    ];
    assert_eq!(attempts, expected);
    received.iter().for_each(assert_has_headers);
}

fn assert_has_headers(request: &Received) {
    assert_eq!(request.header("x-api-key"), API_KEY);
    assert_eq!(request.header("authorization"), format!("Bearer {TOKEN}"));
}

/// No item of a table and no response has a value, although the endpoint repeated them.
#[tokio::test]
async fn values_are_stored_and_shown_nowhere() {
    let mut scenario = Scenario::new().await;
    let delivery = scenario.attempt_everything().await;
    for path in [
        WEBHOOKS,
        FIRST,
        "/api/v1/webhooks/2",
        "/api/v1/webhooks/2/deliveries",
        &delivery,
    ] {
        scenario.get(path).await;
    }
    scenario
        .call("PATCH", FIRST, &json!({ "headers": headers() }))
        .await;
    let key_part = "1234567890";
    for text in [TOKEN, API_KEY, key_part] {
        let hash = hex::encode(Sha256::digest(text));
        let forms = [text, &hex::encode(text), &STANDARD.encode(text), &hash];
        assert_hidden(&scenario.app.tables, &forms).await;
        for response in &scenario.responses {
            assert!(!response.text.contains(text), "{}", response.text);
        }
    }
    let attempts = scenario.get(&delivery).await["attempts"].clone();
    let excerpt = attempts[0]["response_excerpt"].as_str().unwrap();
    assert!(excerpt.contains("[redacted]"), "{excerpt}");
    assert!(!excerpt.contains("quotes"), "{excerpt}");
}

/// The log shows the names that an attempt sent, also after the headers were changed.
#[tokio::test]
async fn log_keeps_names_of_each_attempt() {
    let mut scenario = Scenario::new().await;
    let delivery = scenario.attempt_everything().await;
    let other = json!({ "headers": { "Cookie": "session=secret" } });
    scenario.call("PATCH", FIRST, &other).await;
    scenario
        .call("POST", &format!("{delivery}/retry"), &json!({}))
        .await;
    scenario.retry_all().await;
    let none = json!({ "headers": {} });
    scenario.call("PATCH", FIRST, &none).await;
    scenario
        .call("POST", &format!("{delivery}/retry"), &json!({}))
        .await;
    scenario.retry_all().await;
    let shown = scenario.get(&delivery).await;
    let attempts = shown["attempts"].as_array().unwrap();
    for (attempt, expected) in attempts.iter().rev().zip([
        [None, None, None],
        [Some("[redacted]"), None, None],
        [None, Some("[redacted]"), Some("[redacted]")],
    ]) {
        let logged = &attempt["request_headers"];
        let shown = ["Cookie", "X-Api-Key", "authorization"].map(|name| logged[name].as_str());
        assert_eq!(shown, expected, "{logged}");
    }
}

/// While the data key is unavailable, deliveries wait for `secret`, without using an attempt, and a
/// webhook without headers receives its event.
#[tokio::test]
async fn unavailable_key_delays_headers() {
    let app = TestApp::new().await;
    let receiver = Receiver::start().await;
    app.create(webhook(&receiver.url("/headers"))).await;
    app.create(json!({ "url": receiver.url("/plain"), "events": ["job.completed"] }))
        .await;
    let locked = Dispatcher {
        store: Store::new(
            app.tables.client.clone(),
            app.tables.names.clone(),
            DataKeyCache::new(KeyProvider::Local(
                KeyMaterial::from_random(random::bytes()),
            )),
        ),
        clock: app.clock.clone(),
        ..app.tables.dispatcher()
    };
    let record = insert_record(1, job_image("t1", "completed"));
    assert_eq!(dispatch_batch(&locked, &[record]).await, []);
    assert_eq!(receiver.wait_for(1).await[0].path, "/plain");
    for _ in 0..2 {
        let listed = app.get(&format!("{FIRST}/deliveries")).await;
        let delivery = &listed.json["data"][0];
        assert_eq!(delivery["waiting_for"], "secret");
        assert_eq!(delivery["attempt_count"], 0);
        let timer = app.tables.timers().pop().unwrap();
        app.clock.advance(Duration::from_mins(5));
        locked.retry(&timer.message).await.unwrap();
    }
    let timer = app.tables.timers().pop().unwrap();
    app.clock.advance(Duration::from_mins(10));
    let recovered = Dispatcher {
        clock: app.clock.clone(),
        ..app.tables.dispatcher()
    };
    recovered.retry(&timer.message).await.unwrap();
    let received = receiver.wait_for(2).await.pop().unwrap();
    assert_has_headers(&received);
    assert_eq!(received.header("x-nano-attempt"), "1");
}

/// A test event that cannot decrypt the headers is not sent.
#[tokio::test]
async fn test_event_needs_key() {
    let app = TestApp::new().await;
    let receiver = Receiver::start().await;
    app.create(webhook(&receiver.url("/headers"))).await;
    let stranger = Store::new(
        app.tables.client.clone(),
        app.tables.names.clone(),
        DataKeyCache::new(KeyProvider::None),
    );
    let app = app.over(stranger, crate::support::app::NO_LIMITS);
    let response = app.post_to(&format!("{FIRST}/test")).await;
    assert_eq!(response.error().0, 503);
    assert_eq!(receiver.received().len(), 0);
}

/// Re-encryption covers headers with and without a secret, and headers that were stored without a
/// key. They stay readable.
#[tokio::test]
async fn headers_are_reencrypted() {
    let app = TestApp::new().await;
    let receiver = Receiver::start().await;
    let plain = Store::new(
        app.tables.client.clone(),
        app.tables.names.clone(),
        DataKeyCache::new(KeyProvider::None),
    );
    let app = app.over(plain, crate::support::app::NO_LIMITS);
    app.create(webhook(&receiver.url("/plain"))).await;
    let stored = format!("{:?}", app.tables.items(&app.tables.names.webhooks).await);
    assert!(stored.contains(TOKEN));
    let store = app.tables.store_through(app.tables.client.clone());
    let app = app.over(store, crate::support::app::NO_LIMITS);
    app.create(webhook(&receiver.url("/unsigned"))).await;
    let mut signed = webhook(&receiver.url("/signed"));
    signed["secret_key"] = json!("my-secret-key");
    app.create(signed).await;

    let secrets = app.tables.store.secrets();
    let now = Clock::system().now();
    assert_eq!(secrets.rotate_data_key(now).await.unwrap(), 2);
    let (stats, next) = secrets.reencrypt_page(None, now).await.unwrap();
    assert_eq!(
        (stats.reencrypted, stats.unchanged, next.is_none()),
        (3, 0, true)
    );
    let (stats, _) = secrets.reencrypt_page(None, now).await.unwrap();
    assert_eq!((stats.reencrypted, stats.unchanged), (0, 3));
    assert_hidden(&app.tables, &[TOKEN, API_KEY]).await;
    for item in app.tables.items_under("ACCOUNT#acme").await {
        if let Some(headers) = item.get("headers") {
            assert_eq!(headers.as_m().unwrap()["data_key"].as_n().unwrap(), "2");
        }
    }
    let record = insert_record(1, job_image("t1", "completed"));
    assert_eq!(
        dispatch_batch(&app.tables.dispatcher(), &[record]).await,
        []
    );
    receiver
        .wait_for(3)
        .await
        .iter()
        .for_each(assert_has_headers);
}

/// Headers that were copied to another webhook are not sent there.
#[tokio::test]
async fn moved_headers_are_not_sent() {
    let app = TestApp::new().await;
    let receiver = Receiver::start().await;
    app.create(webhook("https://example.com/")).await;
    app.create(json!({ "url": receiver.url("/thief"), "events": ["job.failed"] }))
        .await;
    let thief = WebhookId::new(2).unwrap();
    let victim = app
        .tables
        .webhook_item("acme", WebhookId::new(1).unwrap())
        .await;
    let mut moved = app.tables.webhook_item("acme", thief).await;
    assert_eq!(
        key_schema::parse_webhook(moved["SK"].as_s().unwrap()),
        Some(thief)
    );
    moved.insert("headers".to_owned(), victim["headers"].clone());
    app.tables.put_webhooks_item(moved).await;
    let record = insert_record(1, job_image("t1", "failed"));
    assert_eq!(
        dispatch_batch(&app.tables.dispatcher(), &[record]).await,
        []
    );
    assert_eq!(receiver.received().len(), 0);
    let poison = app.tables.items_under("POISON#").await;
    let reason = poison[0]["reason"].as_s().unwrap();
    assert!(
        reason.contains("the headers of webhook 2 cannot be read"),
        "{reason}"
    );
}
