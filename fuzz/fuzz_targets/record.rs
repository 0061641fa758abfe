//! Lambda invocations, their records, and the events in them.
//!
//! An event's payload is canonical JSON with its keys in the documented order. Parsing a record
//! twice gives the same event.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use nano_webhooks::dispatch::{lambda_event::Invocation, stream_record::Record};
use nano_webhooks_core::delivery::scheduled_retry::RetryMessage;
use nano_webhooks_core::{
    event::{EventId, JobEvent, attribute_data::AttributeData, decimal::Decimal},
    timestamp::normalize_rfc3339,
};
use serde::Deserialize;
use serde_json::value::RawValue;

fuzz_target!(|text: &str| {
    match Invocation::from_json(text) {
        Ok(Invocation::Stream(records)) => {
            records.iter().for_each(|record| check(record, text.len()))
        }
        Ok(Invocation::Queue(messages)) => {
            for message in messages
                .iter()
                .filter_map(|message| message.body.as_deref()?.parse::<RetryMessage>().ok())
            {
                assert_eq!(
                    message.to_json().parse::<RetryMessage>().ok(),
                    Some(message)
                );
            }
        }
        Ok(Invocation::Sweep | Invocation::Advance) => {}
        Err(error) => assert!(error.to_string().len() <= text.len() + 1024),
    }
    let record = Record::from_json(text);
    check(&record, text.len());
    // The maps of two events may list their keys in different orders. Their payloads may not.
    assert_eq!(id_and_body(&Record::from_json(text)), id_and_body(&record));
});

fn id_and_body(record: &Record) -> Option<(EventId, String)> {
    let event = record.event().ok()??;
    Some((event.id.clone(), event.to_canonical_json()))
}

/// `length` is at least the length of the record's JSON.
fn check(record: &Record, length: usize) {
    match record.event() {
        Ok(Some(event)) => check_event(&event, length),
        Ok(None) => {}
        Err(reason) => {
            let poison = record.to_poison(&reason);
            assert!(!poison.reason.is_empty() && poison.reason.len() <= length + 1024);
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    #[serde(borrow)]
    event: &'a RawValue,
    #[serde(borrow)]
    task_id: &'a RawValue,
    #[serde(borrow)]
    task_type: &'a RawValue,
    #[serde(borrow)]
    status: &'a RawValue,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(borrow)]
    timestamp: &'a RawValue,
}

fn check_event(event: &JobEvent, length: usize) {
    assert_eq!(EventId::parse(event.id.as_str()).as_ref(), Some(&event.id));
    assert_eq!(
        normalize_rfc3339(&event.timestamp).as_ref(),
        Some(&event.timestamp)
    );

    let body = event.to_canonical_json();
    assert_eq!(event.to_canonical_json(), body);
    // Exponents make numbers longer: `1e9` becomes ten digits.
    assert!(
        body.len() <= 256 * length + 1024,
        "{} bytes from {length}",
        body.len()
    );

    let Body {
        event: name,
        task_id,
        task_type,
        status,
        data,
        timestamp,
    } = serde_json::from_str(&body).expect("JSON");
    assert_eq!(
        body,
        format!(
            "{{\"event\":{name},\"task_id\":{task_id},\"task_type\":{task_type},\
             \"status\":{status},\"data\":{data},\"timestamp\":{timestamp}}}"
        )
    );
    assert_eq!(name.get(), format!("\"job.{}\"", event.outcome.as_str()));
    let text = |raw: &RawValue| serde_json::from_str::<String>(raw.get()).expect("a string");
    assert_eq!(
        [text(task_id), text(task_type)],
        [event.task_id.as_str(), event.task_type.as_str()]
    );

    // Canonical JSON does not change when it is parsed and written.
    let mut rewritten = Vec::new();
    parse_value(data.get()).write_json(&mut rewritten);
    assert_eq!(data.get().as_bytes(), rewritten);
}

fn parse_value(json: &str) -> AttributeData {
    let valid = "a part of valid JSON is valid";
    match json.as_bytes()[0] {
        b'{' => {
            let entries: BTreeMap<String, &RawValue> = serde_json::from_str(json).expect(valid);
            AttributeData::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| (key, parse_value(value.get())))
                    .collect(),
            )
        }
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(json).expect(valid);
            AttributeData::List(
                items
                    .into_iter()
                    .map(|item| parse_value(item.get()))
                    .collect(),
            )
        }
        b'"' => AttributeData::String(serde_json::from_str(json).expect(valid)),
        b't' | b'f' => AttributeData::Bool(serde_json::from_str(json).expect(valid)),
        b'n' => AttributeData::Null,
        _ => AttributeData::Number(Decimal::parse(json).expect("a JSON number")),
    }
}
