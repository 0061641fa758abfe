//! Stream records of the jobs table, and batches of them.

use std::time::Duration;

use nano_webhooks::{
    clock::Deadline,
    dispatch::{Dispatcher, lambda_event::Invocation, stream_record::Record},
};
use serde_json::{Value, json};

pub const ARN: &str =
    "arn:aws:dynamodb:eu-west-1:123456789012:table/jobs/stream/2024-12-23T00:00:00.000";

pub fn deadline() -> Deadline {
    Deadline::from_now(Duration::from_secs(20))
}

pub fn job_image(task: &str, status: &str) -> Value {
    json!({
        "task_id": {"S": task},
        "account_id": {"S": "acme"},
        "task_type": {"S": "image"},
        "status": {"S": status},
        "updated_at": {"S": "2024-12-23T11:00:00+01:00"},
        "data": {"M": {"credits_charged": {"N": "6"}}},
    })
}

pub fn stream_record(sequence: usize, name: &str, new: Option<Value>, old: Option<Value>) -> Value {
    let mut change = json!({
        "ApproximateCreationDateTime": 1_734_948_000.0,
        "Keys": {"task_id": {"S": "t"}},
        "SequenceNumber": format!("{sequence:021}"),
        "SizeBytes": 100,
        "StreamViewType": "NEW_AND_OLD_IMAGES",
    });
    for (image, value) in [("NewImage", new), ("OldImage", old)] {
        if let Some(value) = value {
            change[image] = value;
        }
    }
    json!({
        "eventID": format!("id-{sequence}"),
        "eventName": name,
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "eu-west-1",
        "dynamodb": change,
        "eventSourceARN": ARN,
    })
}

/// Parses the records from JSON text, in the form of a Lambda event.
pub fn batch(records: &[Value]) -> Vec<Record> {
    match Invocation::from_json(&json!({ "Records": records }).to_string()).unwrap() {
        Invocation::Stream(records) => records,
        other => panic!("{other:?}"),
    }
}

pub fn insert_record(sequence: usize, job: Value) -> Value {
    stream_record(sequence, "INSERT", Some(job), None)
}

/// The records of `count` completed jobs. Job `t1` has sequence number 1.
pub fn completed_jobs(first: usize, count: usize) -> Vec<Value> {
    let mut records = Vec::with_capacity(count);
    for number in first..first + count {
        records.push(insert_record(
            number,
            job_image(&format!("t{number}"), "completed"),
        ));
    }
    records
}

pub async fn dispatch_batch(dispatcher: &Dispatcher, records: &[Value]) -> Vec<Option<String>> {
    let response = dispatcher
        .handle_stream_batch(&batch(records), deadline())
        .await;
    response
        .batch_item_failures
        .into_iter()
        .map(|failure| failure.item_identifier)
        .collect()
}
