//! The limits of `docs/LIMITS.md` that no other test covers.

use axum::http::StatusCode;
use nano_webhooks::dispatch::lambda_event::Invocation;
use serde_json::{Value, json};

use crate::support::{
    app::TestApp,
    queue::queue_message,
    receiver::Receiver,
    stream::{completed_jobs, deadline, dispatch_batch, insert_record, job_image},
    tables::TestTables,
    webhooks::subscribe,
};

/// A request that is nested too deeply returns 400 with a short message.
#[tokio::test]
async fn deep_request_returns_400() {
    let app = TestApp::new().await;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        for depth in [120, 10_000] {
            let deep = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            for field in ["url", "events", "secret_key", "description", "unknown"] {
                let body = format!(r#"{{"{field}":{deep}}}"#);
                let response = app.post(body).await;
                let (status, code, message) = response.error();
                assert_eq!((status, code), (400, "invalid_request"), "{field}");
                assert!(message.len() < 300, "{message}");
            }
        }
    }
    let long = "x".repeat(50_000);
    let response = app.post(json!({ long: 1 }).to_string()).await;
    assert_eq!(response.status, StatusCode::BAD_REQUEST);
    assert!(response.text.len() < 500, "{}", response.text.len());
}

/// A record that is nested too deeply becomes poison, and the others are delivered.
#[tokio::test]
async fn deep_record_becomes_poison() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    subscribe(&tables, "acme", &receiver.url("/hook"), None).await;
    let mut deep = insert_record(1, job_image("deep", "completed"));
    deep["dynamodb"]["NewImage"]["data"] = json!({"M": {"deep": {"S": "DEEP"}}});
    let leaf = r#"{"S":"DEEP"}"#;
    let nested = format!("{}{leaf}{}", r#"{"L":["#.repeat(5_000), "]}".repeat(5_000));
    let deep = deep.to_string().replace(leaf, &nested);
    let event = format!(
        r#"{{"Records":[{deep},{}]}}"#,
        insert_record(2, job_image("flat", "completed"))
    );
    assert_handled(&tables, &event).await;
    assert_eq!(receiver.wait_for(1).await[0].json()["task_id"], "flat");
    assert_eq!(tables.items_under("POISON#").await.len(), 1);
}

/// Records with very long ids, and each of several records without ids, become poison.
#[tokio::test]
async fn poison_without_usable_ids_is_stored() {
    let tables = TestTables::new().await;
    let mut endless = insert_record(1, job_image("t", "completed"));
    endless["eventName"] = json!("X".repeat(300_000));
    endless["dynamodb"]["SequenceNumber"] = json!("9".repeat(5_000));
    let mut nameless = insert_record(2, json!({"status": {"S": "completed"}}));
    nameless["eventID"] = json!("");
    nameless["dynamodb"]
        .as_object_mut()
        .unwrap()
        .remove("SequenceNumber");
    let mut another = nameless.clone();
    another["dynamodb"]["NewImage"]["n"] = json!({"N": "1"});
    dispatch_batch(&tables.dispatcher(), &[endless, nameless, another]).await;
    let poison = tables.items_under("POISON#").await;
    assert_eq!(poison.len(), 3, "{poison:?}");
    assert!(
        poison
            .iter()
            .all(|item| item["reason"].as_s().unwrap().len() <= 1024)
    );
}

/// Batches that are larger than those of Lambda are processed.
#[tokio::test]
async fn batch_of_any_size_is_processed() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    subscribe(&tables, "acme", &receiver.url("/hook"), None).await;
    let dispatcher = tables.dispatcher();
    // The first attempt shows that the endpoint responds.
    for records in [completed_jobs(0, 1), completed_jobs(1, 1_000)] {
        assert_eq!(dispatch_batch(&dispatcher, &records).await, []);
    }
    assert_eq!(receiver.wait_for(1_001).await.len(), 1_001);

    let messages: Vec<Value> = (0..500)
        .map(|n| queue_message(&n.to_string(), "not a message of the service"))
        .collect();
    assert_handled(&tables, &json!({ "Records": messages }).to_string()).await;
}

/// The dispatch function handles the event, and no record of it is read again.
async fn assert_handled(tables: &TestTables, event: &str) {
    let invocation = Invocation::from_json(event).unwrap();
    let response = tables
        .dispatcher()
        .invoke(invocation, deadline())
        .await
        .unwrap();
    assert_eq!(response["batchItemFailures"], json!([]));
}
