//! Messages of the retry queue, as SQS sends them to a function.

use serde_json::{Value, json};

pub fn queue_message(id: &str, body: &str) -> Value {
    json!({
        "messageId": id,
        "body": body,
        "eventSource": "aws:sqs",
        "awsRegion": "eu-west-1",
    })
}
