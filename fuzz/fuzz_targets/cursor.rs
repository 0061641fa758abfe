//! The query of the deliveries list. An accepted query has only known parameters, each once, and a
//! cursor has only one encoding.
#![no_main]

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use libfuzzer_sys::fuzz_target;
use nano_webhooks::api::fuzzing::parse_deliveries_query;
use nano_webhooks_core::{event_type::EventType, webhook::WebhookId};
use nano_webhooks_fuzz::parse_error_response;
use url::form_urlencoded;

/// Characters. More than the longest message with the longest quotation.
const MAX_MESSAGE: usize = 512;

const PARAMETERS: [&str; 4] = ["status", "event", "limit", "cursor"];

fuzz_target!(|query: &str| {
    let webhook = WebhookId::new(1).expect("a valid id");
    let filter = match parse_deliveries_query(query, webhook) {
        Ok(filter) => filter,
        Err(response) => {
            let (status, message) = parse_error_response(response);
            assert_eq!(status, 400);
            assert!(message.chars().count() <= MAX_MESSAGE, "{message}");
            let (name, _) = message.split_once(": ").expect("a parameter name");
            assert!(
                PARAMETERS.contains(&name)
                    || message.contains(": unknown field `")
                    || message.ends_with(": expected at most once"),
                "{message}"
            );
            return;
        }
    };

    let mut values = BTreeMap::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        assert!(PARAMETERS.contains(&name.as_ref()));
        let previous = values.insert(name.into_owned(), value.into_owned());
        assert_eq!(previous, None);
    }
    let value = |name: &str| values.get(name).cloned();
    assert_eq!(
        filter.status.map(|status| status.as_str().to_owned()),
        value("status")
    );
    assert_eq!(
        filter
            .event
            .map(|event: EventType| event.as_str().to_owned()),
        value("event")
    );
    assert_eq!(
        filter
            .after
            .map(|event| URL_SAFE_NO_PAD.encode(format!("1.{event}"))),
        value("cursor")
    );
    assert!((1..=100).contains(&filter.limit));
    assert_eq!(
        filter.limit,
        value("limit").map_or(50, |limit| limit.parse().expect("a number"))
    );
});
