//! The query of the deliveries list: each parameter is known and given once, and there is one way to write a cursor.
#![no_main]

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use libfuzzer_sys::fuzz_target;
use nano_webhooks::api::fuzzing::filter;
use nano_webhooks_core::webhook::{EventType, WebhookId};
use nano_webhooks_fuzz::refusal;
use url::form_urlencoded;

/// More than the longest message that quotes nothing, and what may be quoted.
const MAX_MESSAGE: usize = 256;

fuzz_target!(|query: &str| {
    let given: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
    let known = |name: &str| ["status", "event", "limit", "cursor"].contains(&name);
    let once = given.iter().enumerate().all(|(n, (name, _))| given[..n].iter().all(|(other, _)| other != name));

    let webhook = WebhookId::new(1).expect("an id");
    let filter = match filter(query, webhook) {
        Ok(filter) => filter,
        Err(response) => {
            let (status, message) = refusal(response);
            assert_eq!(status, 400);
            assert!(message.chars().count() <= MAX_MESSAGE, "{message}");
            let (name, _) = message.split_once(": ").expect("a parameter's name");
            assert!(known(name) || message.contains(": unknown parameter, expected "), "{message}");
            return;
        }
    };
    assert!(once && given.iter().all(|(name, _)| known(name)));

    let value = |name: &str| given.iter().find(|(given, _)| given == name).map(|(_, value)| value.to_string());
    assert_eq!(filter.status.map(|status| status.as_str().to_owned()), value("status"));
    assert_eq!(filter.event.map(|event: EventType| event.as_str().to_owned()), value("event"));
    assert_eq!(filter.after.map(|event| URL_SAFE_NO_PAD.encode(format!("1.{event}"))), value("cursor"));
    assert!((1..=100).contains(&filter.limit));
    assert_eq!(filter.limit, value("limit").map_or(50, |limit| limit.parse().expect("a number")));
});
