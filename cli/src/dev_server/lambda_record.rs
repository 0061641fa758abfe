//! Converts records of the Streams API to the form in which Lambda passes them to a function.

use std::{collections::HashMap, time::SystemTime};

use aws_lambda_events::event::dynamodb::{EventRecord, StreamRecord, StreamViewType};
use aws_sdk_dynamodbstreams::types::{AttributeValue, Record, StreamRecord as StreamsChange};

pub fn to_lambda_record(record: &Record, stream_arn: &str) -> EventRecord {
    let mut event = EventRecord::default();
    event.event_id = record.event_id().map(str::to_owned).unwrap_or_default();
    if let Some(event_name) = record.event_name() {
        event.event_name = event_name.to_string();
    }
    event.event_source = record.event_source().map(str::to_owned);
    event.event_source_arn = Some(stream_arn.to_owned());
    event.aws_region = record.aws_region().map(str::to_owned).unwrap_or_default();
    if let Some(change) = record.dynamodb() {
        event.change = to_lambda_change(change);
    }
    event.change.stream_view_type = Some(StreamViewType::NewAndOldImages);
    event
}

fn to_lambda_change(change: &StreamsChange) -> StreamRecord {
    let mut stream_record = StreamRecord::default();
    let created_at = change
        .approximate_creation_date_time()
        .and_then(|time| SystemTime::try_from(*time).ok());
    if let Some(created_at) = created_at {
        stream_record.approximate_creation_date_time = created_at.into();
    }
    stream_record.keys = to_item(change.keys());
    stream_record.new_image = to_item(change.new_image());
    stream_record.old_image = to_item(change.old_image());
    stream_record.sequence_number = change.sequence_number().map(str::to_owned);
    stream_record
}

fn to_item(attributes: Option<&HashMap<String, AttributeValue>>) -> serde_dynamo::Item {
    attributes.cloned().unwrap_or_default().into()
}
