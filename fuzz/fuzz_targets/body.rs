//! The bodies that create and change a webhook, rotate its secret and replay its deliveries: what is accepted is an object of known fields, and a message says where the
//! fault is, is bounded, and never repeats a secret.
//!
//! The input is a line with the content type, a line of JSON that goes before a secret, and JSON that goes after it.
#![no_main]

use axum::{body::Body, extract::Request};
use http::{HeaderValue, header::CONTENT_TYPE};
use libfuzzer_sys::fuzz_target;
use nano_webhooks::api::fuzzing::{create, patch, replay, rotate};
use nano_webhooks_core::webhook::EndpointUrl;
use nano_webhooks_fuzz::{ready, refusal};
use serde_json::Value;

/// Twice what a message may quote, and more than what it says beside.
const MAX_MESSAGE: usize = 512;
/// As much of a planted secret as may be repeated by chance.
const CHANCE: usize = 6;

const LETTERS: &str = "Qz8Xk4Wv2Jm6Yt0P";
const DIGITS: &str = "7305918264051739";

fuzz_target!(|input: &[u8]| {
    let (content_type, text) = split(input);
    check(content_type, text.to_vec());

    let (before, after) = split(text);
    let begins = |secret: &str| input.windows(CHANCE).any(|window| window == &secret.as_bytes()[..CHANCE]);
    if begins(LETTERS) || begins(DIGITS) {
        return;
    }
    // Whatever surrounds it, what follows this name is its value, or the JSON has broken off before.
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
        let planted = [b"{", before, b"\"secret_key\":", value.as_bytes(), after].concat();
        for message in check(content_type, planted) {
            assert!(!message.contains(&LETTERS[..CHANCE]) && !message.contains(&DIGITS[..CHANCE]), "{message}");
        }
    }
});

fn split(input: &[u8]) -> (&[u8], &[u8]) {
    let end = input.iter().position(|b| *b == b'\n').unwrap_or(input.len());
    (&input[..end], input.get(end + 1..).unwrap_or_default())
}

/// Reads a body in every way; returns what the refusals say.
fn check(content_type: &[u8], body: Vec<u8>) -> Vec<String> {
    let request = || {
        let mut request = Request::new(Body::from(body.clone()));
        if let Ok(value) = HeaderValue::from_bytes(content_type) {
            request.headers_mut().insert(CONTENT_TYPE, value);
        }
        request
    };
    let mut messages = Vec::new();
    for (fields, outcome) in [
        (&["url", "events", "secret_key", "description"][..], ready(create(request()))),
        (&["url", "events", "status", "secret_key", "description"][..], ready(patch(request()))),
        (&["secret_key", "grace_hours"][..], ready(rotate(request()))),
        (&["since", "until", "status"][..], ready(replay(request()))),
    ] {
        match outcome {
            Ok(()) => check_accepted(fields, content_type, &body),
            Err(response) => {
                let (status, message) = refusal(response);
                assert!(message.chars().count() <= MAX_MESSAGE, "{message}");
                match status {
                    400 => assert!(says_where(fields, &message), "{message}"),
                    413 => assert!(body.len() > 64 * 1024),
                    _ => assert_ne!(content_type, b"application/json"),
                }
                messages.push(message);
            }
        }
    }
    messages
}

fn says_where(fields: &[&str], message: &str) -> bool {
    let field = message.split([':', '[']).next().unwrap_or_default();
    let begins = |start| message.starts_with(start);
    fields.contains(&field) || begins("The body ") || begins("duplicate field `") || message.contains("unknown field `")
}

fn check_accepted(fields: &[&str], content_type: &[u8], body: &[u8]) {
    assert!(content_type.to_ascii_lowercase().windows(4).any(|window| window == b"json"));
    let Ok(Value::Object(object)) = serde_json::from_slice(body) else { panic!("accepted although no JSON object") };
    assert!(object.keys().all(|key| fields.contains(&key.as_str())));
    if let Some(url) = object.get("url") {
        assert!(EndpointUrl::parse(url.as_str().expect("a string")).is_ok());
    }
    if let Some(secret) = object.get("secret_key").filter(|secret| !secret.is_null()) {
        assert!((8..=256).contains(&secret.as_str().expect("a string").chars().count()));
    }
    if let Some(events) = object.get("events") {
        let events = events.as_array().expect("an array");
        assert!((1..=3).contains(&events.len()) && events.iter().all(Value::is_string));
    }
}
