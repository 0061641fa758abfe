//! Request bodies: create webhook, update webhook, rotate secret, create replay.
//!
//! An accepted body is an object of known fields. An error message names the faulty field, has a
//! bounded length, and never contains a secret.
//!
//! The first line of the input is the content type. The second line is JSON before a secret, and
//! the rest is JSON after it.
#![no_main]

use axum::{body::Body, extract::Request};
use http::{HeaderValue, header::CONTENT_TYPE};
use libfuzzer_sys::fuzz_target;
use nano_webhooks::api::fuzzing::{
    parse_create_body, parse_replay_body, parse_rotate_body, parse_update_body,
};
use nano_webhooks_core::endpoint_url::EndpointUrl;
use nano_webhooks_fuzz::{parse_error_response, poll_ready};
use serde_json::Value;

/// Characters. Twice the longest quotation in a message, plus room for the rest of the message.
const MAX_MESSAGE: usize = 512;
/// Characters. A shorter part of a secret may appear in a message by chance.
const MIN_LEAK: usize = 6;

const CREATE_FIELDS: [&str; 6] = [
    "url",
    "events",
    "secret_key",
    "headers",
    "description",
    "max_per_second",
];
const UPDATE_FIELDS: [&str; 7] = [
    "url",
    "events",
    "status",
    "secret_key",
    "headers",
    "description",
    "max_per_second",
];

/// Starts of messages about the whole body, which name no field.
const BODY_FAULTS: [&str; 2] = ["The request body ", "duplicate field `"];

const LETTERS: &str = "Qz8Xk4Wv2Jm6Yt0P";
const DIGITS: &str = "7305918264051739";

fuzz_target!(|input: &[u8]| {
    let (content_type, text) = split(input);
    check(content_type, text.to_vec());

    let (before, after) = split(text);
    if contains_start(input, LETTERS) || contains_start(input, DIGITS) {
        return;
    }
    // The planted value is always a secret or the value of a header, unless the JSON is invalid
    // before it.
    for value in [
        format!("\"{LETTERS}\""),
        format!("\"{LETTERS}"),
        LETTERS.to_owned(),
        format!("\"{}\"", &LETTERS[..7]),
        format!("\"{}\"", LETTERS.repeat(20)),
        format!("\"whsec_{LETTERS}!\""),
        format!("[\"{LETTERS}\"]"),
        format!("{{\"{LETTERS}\":\"{LETTERS}\"}}"),
        DIGITS.to_owned(),
        format!("-{DIGITS}.5e3"),
    ] {
        for field in [&b"\"secret_key\":"[..], b"\"headers\":{\"X-Key\":"] {
            let planted = [b"{", before, field, value.as_bytes(), after].concat();
            for message in check(content_type, planted) {
                assert!(!contains_start(message.as_bytes(), LETTERS), "{message}");
                assert!(!contains_start(message.as_bytes(), DIGITS), "{message}");
            }
        }
    }
});

fn contains_start(text: &[u8], secret: &str) -> bool {
    let start = &secret.as_bytes()[..MIN_LEAK];
    text.windows(MIN_LEAK).any(|window| window == start)
}

fn split(input: &[u8]) -> (&[u8], &[u8]) {
    let end = input
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(input.len());
    (&input[..end], input.get(end + 1..).unwrap_or_default())
}

fn build_request(content_type: &[u8], body: &[u8]) -> Request {
    let mut request = Request::new(Body::from(body.to_vec()));
    if let Ok(value) = HeaderValue::from_bytes(content_type) {
        request.headers_mut().insert(CONTENT_TYPE, value);
    }
    request
}

/// Parses a body as each kind of request. Returns the messages of the errors.
fn check(content_type: &[u8], body: Vec<u8>) -> Vec<String> {
    let request = || build_request(content_type, &body);
    let mut messages = Vec::new();
    for (fields, outcome) in [
        (&CREATE_FIELDS[..], poll_ready(parse_create_body(request()))),
        (&UPDATE_FIELDS[..], poll_ready(parse_update_body(request()))),
        (
            &["secret_key", "grace_hours"][..],
            poll_ready(parse_rotate_body(request())),
        ),
        (
            &["since", "until", "status"][..],
            poll_ready(parse_replay_body(request())),
        ),
    ] {
        match outcome {
            Ok(()) => check_accepted(fields, content_type, &body),
            Err(response) => {
                let (status, message) = parse_error_response(response);
                assert!(message.chars().count() <= MAX_MESSAGE, "{message}");
                match status {
                    400 => assert!(names_fault(fields, &message), "{message}"),
                    413 => assert!(body.len() > 64 * 1024),
                    _ => assert_ne!(content_type, b"application/json"),
                }
                messages.push(message);
            }
        }
    }
    messages
}

fn names_fault(fields: &[&str], message: &str) -> bool {
    let field = message.split([':', '[', '.']).next().unwrap_or_default();
    fields.contains(&field)
        || BODY_FAULTS.iter().any(|start| message.starts_with(start))
        || message.contains("unknown field `")
}

fn check_accepted(fields: &[&str], content_type: &[u8], body: &[u8]) {
    assert!(
        content_type
            .to_ascii_lowercase()
            .windows(4)
            .any(|window| window == b"json")
    );
    let Ok(Value::Object(object)) = serde_json::from_slice(body) else {
        panic!("accepted, but not a JSON object")
    };
    assert!(object.keys().all(|key| fields.contains(&key.as_str())));
    if let Some(url) = object.get("url") {
        assert!(EndpointUrl::parse(url.as_str().expect("a string")).is_ok());
    }
    if let Some(secret) = object.get("secret_key").filter(|secret| !secret.is_null()) {
        assert!((8..=256).contains(&secret.as_str().expect("a string").chars().count()));
    }
    if let Some(headers) = object.get("headers").filter(|headers| !headers.is_null()) {
        let headers = headers.as_object().expect("an object");
        assert!(headers.len() <= 10 && headers.values().all(Value::is_string));
    }
    if let Some(events) = object.get("events") {
        let events = events.as_array().expect("an array");
        assert!((1..=6).contains(&events.len()) && events.iter().all(Value::is_string));
    }
}
