//! Deserializes the fields of request bodies. Errors say what is expected and do not repeat the
//! value, which may be a secret.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

use nano_webhooks_core::{
    delivery::pace::MaxPerSecond,
    endpoint_url::EndpointUrl,
    event_type::{EventType, EventTypes},
    secret::Secret,
    static_headers::{StaticHeaderName, StaticHeaders},
    timestamp::Timestamp,
    webhook::WebhookStatus,
};

/// Limit of a webhook's description, in characters.
pub(super) const MAX_DESCRIPTION: usize = 500;

/// What the error of a time field says.
pub(super) const EXPECTED_TIME: &str = "expected a time such as `2024-12-23T10:00:00Z` (RFC 3339)";

/// The names of all event types, for an error message.
pub(super) fn expected_event_types() -> String {
    let names = EventType::ALL.map(EventType::as_str);
    format!("expected one of `{}`", names.join("`, `"))
}

/// A string.
pub(super) fn deserialize_string<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    match Value::deserialize(from)? {
        Value::String(text) => Ok(text),
        _ => Err(D::Error::custom("expected a string")),
    }
}

fn deserialize_nullable_string<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<String>, D::Error> {
    match Value::deserialize(from)? {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        _ => Err(D::Error::custom("expected a string or null")),
    }
}

fn deserialize_strings<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let expected = || D::Error::custom("expected an array of strings");
    let Value::Array(values) = Value::deserialize(from)? else {
        return Err(expected());
    };
    let mut texts = Vec::with_capacity(values.len());
    for value in values {
        match value {
            Value::String(text) => texts.push(text),
            _ => return Err(expected()),
        }
    }
    Ok(texts)
}

/// `url` of a webhook.
pub(super) fn deserialize_url<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<EndpointUrl>, D::Error> {
    let text = deserialize_string(from)?;
    EndpointUrl::parse(&text)
        .map(Some)
        .map_err(D::Error::custom)
}

/// `events` of a webhook.
pub(super) fn deserialize_events<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<EventTypes>, D::Error> {
    let names = deserialize_strings(from)?;
    EventTypes::parse(names.iter().map(String::as_str))
        .map(Some)
        .map_err(D::Error::custom)
}

/// `status` of a webhook.
pub(super) fn deserialize_webhook_status<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<WebhookStatus>, D::Error> {
    match WebhookStatus::parse(&deserialize_string(from)?) {
        Some(status) => Ok(Some(status)),
        None => Err(D::Error::custom("expected `active` or `disabled`")),
    }
}

/// `secret_key`, where `null` means no secret.
pub(super) fn deserialize_secret<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Secret>, D::Error> {
    match deserialize_nullable_string(from)? {
        Some(text) => Secret::parse(text).map(Some).map_err(D::Error::custom),
        None => Ok(None),
    }
}

/// `secret_key` of an update: `Some(None)` removes the secret.
pub(super) fn deserialize_secret_update<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Option<Secret>>, D::Error> {
    deserialize_secret(from).map(Some)
}

/// `headers` of a webhook, where `null` means none.
pub(super) fn deserialize_headers<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<StaticHeaders, D::Error> {
    from.deserialize_any(HeadersVisitor)
}

/// `headers` of an update.
pub(super) fn deserialize_headers_update<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<StaticHeaders>, D::Error> {
    deserialize_headers(from).map(Some)
}

const EXPECTED_HEADERS: &str = "expected an object of header names and values, or null";

/// Reads an object member by member, because a map of JSON would hide repeated names. By default a
/// visitor's error repeats a value of another type.
struct HeadersVisitor;

impl<'de> Visitor<'de> for HeadersVisitor {
    type Value = StaticHeaders;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED_HEADERS)
    }

    fn visit_unit<E>(self) -> Result<StaticHeaders, E> {
        Ok(StaticHeaders::NONE)
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<StaticHeaders, E> {
        Err(E::custom(EXPECTED_HEADERS))
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<StaticHeaders, E> {
        Err(E::custom(EXPECTED_HEADERS))
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<StaticHeaders, E> {
        Err(E::custom(EXPECTED_HEADERS))
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<StaticHeaders, E> {
        Err(E::custom(EXPECTED_HEADERS))
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<StaticHeaders, E> {
        Err(E::custom(EXPECTED_HEADERS))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<StaticHeaders, A::Error> {
        Err(A::Error::custom(EXPECTED_HEADERS))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StaticHeaders, A::Error> {
        let mut headers = StaticHeaders::default();
        while let Some(name) = map.next_key::<String>()? {
            let name = StaticHeaderName::parse(name).map_err(A::Error::custom)?;
            map.next_value_seed(HeaderSeed {
                name,
                headers: &mut headers,
            })?;
        }
        Ok(headers)
    }
}

/// Adds a header with the value that follows its name, so that errors have the name in their path.
struct HeaderSeed<'a> {
    name: StaticHeaderName,
    headers: &'a mut StaticHeaders,
}

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        let value = deserialize_string(from)?;
        let added = self.headers.try_insert(self.name, value);
        added.map_err(D::Error::custom)
    }
}

/// `description` of a webhook, where `null` means none.
pub(super) fn deserialize_description<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<String>, D::Error> {
    let description = deserialize_nullable_string(from)?;
    if let Some(text) = &description
        && text.chars().count() > MAX_DESCRIPTION
    {
        return Err(D::Error::custom("expected at most 500 characters"));
    }
    Ok(description)
}

/// `description` of an update: `Some(None)` removes the description.
pub(super) fn deserialize_description_update<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Option<String>>, D::Error> {
    deserialize_description(from).map(Some)
}

/// `max_per_second`, where `null` means no limit.
pub(super) fn deserialize_max_per_second<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<MaxPerSecond>, D::Error> {
    let limit = match Value::deserialize(from)? {
        Value::Null => return Ok(None),
        value => whole_number(&value).and_then(MaxPerSecond::new),
    };
    match limit {
        Some(limit) => Ok(Some(limit)),
        None => Err(D::Error::custom(
            "expected a whole number from 1 to 1000, or null",
        )),
    }
}

/// A whole number. JSON has one number type: `5.0` is 5.
pub(super) fn whole_number(value: &Value) -> Option<u64> {
    let number = value.as_number()?.to_string();
    number.strip_suffix(".0").unwrap_or(&number).parse().ok()
}

/// `max_per_second` of an update: `Some(None)` removes the limit.
pub(super) fn deserialize_max_per_second_update<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Option<MaxPerSecond>>, D::Error> {
    deserialize_max_per_second(from).map(Some)
}

/// An event type.
pub(super) fn deserialize_event_type<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<EventType>, D::Error> {
    match EventType::parse(&deserialize_string(from)?) {
        Some(event) => Ok(Some(event)),
        None => Err(D::Error::custom(expected_event_types())),
    }
}

/// An RFC 3339 time.
pub(super) fn deserialize_time<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Timestamp>, D::Error> {
    match Timestamp::parse_rfc3339(&deserialize_string(from)?) {
        Some(time) => Ok(Some(time)),
        None => Err(D::Error::custom(EXPECTED_TIME)),
    }
}
