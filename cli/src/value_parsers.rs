//! Parsers of the values of options.

use std::{ffi::OsStr, fmt};

use clap::{
    Arg,
    builder::TypedValueParser,
    error::{ContextKind, ContextValue, ErrorKind},
};
use nano_webhooks::store::key_schema;
use nano_webhooks_core::{
    delivery::status::DeliveryStatus,
    event::EventId,
    event_type::EventType,
    secret::{Secret, SecretError},
    webhook::WebhookId,
};

/// The most deliveries that `deliveries list` prints.
const MAX_LIMIT: usize = 1_000;
/// The longest delay of `listen`, in seconds.
const MAX_DELAY: f64 = 3_600.0;

/// Parses a value that must stay secret. clap's own parsers print a malformed value.
#[derive(Clone)]
pub struct HiddenValue<T, E>(pub fn(&str) -> Result<T, E>);

impl<T, E> TypedValueParser for HiddenValue<T, E>
where
    T: Clone + Send + Sync + 'static,
    E: fmt::Display + Clone + 'static,
{
    type Value = T;

    fn parse_ref(
        &self,
        command: &clap::Command,
        option: Option<&Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        let Self(parse) = self;
        let reason = match value.to_str().map(parse) {
            Some(Ok(parsed)) => return Ok(parsed),
            Some(Err(error)) => error.to_string(),
            None => "expected UTF-8 text".to_owned(),
        };
        let option = option.map(Arg::to_string).unwrap_or_default();
        let message = format!("invalid value for '{option}': {reason}\n");
        let mut error = clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command);
        error.insert(ContextKind::InvalidArg, ContextValue::String(option));
        Err(error)
    }
}

pub fn parse_secret(text: &str) -> Result<Secret, SecretError> {
    Secret::from_stored(text.to_owned())
}

pub fn parse_limit(text: &str) -> Result<usize, &'static str> {
    match text.parse() {
        Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
        _ => Err("expected a whole number from 1 to 1000"),
    }
}

pub fn parse_delay(text: &str) -> Result<f64, &'static str> {
    match text.parse() {
        Ok(seconds) if (0.0..=MAX_DELAY).contains(&seconds) => Ok(seconds),
        _ => Err("expected 0 to 3600 seconds"),
    }
}

pub fn parse_day(text: &str) -> Result<String, &'static str> {
    key_schema::parse_utc_day(text).ok_or("expected a day such as 2024-12-23")
}

pub fn parse_webhook_id(text: &str) -> Result<WebhookId, &'static str> {
    WebhookId::parse(text).ok_or("expected the number of a webhook, such as 1")
}

pub fn parse_status(text: &str) -> Result<DeliveryStatus, &'static str> {
    text.parse()
        .map_err(|_| "expected pending, delivered, failed or cancelled")
}

pub fn parse_event_type(text: &str) -> Result<EventType, &'static str> {
    EventType::parse(text).ok_or(
        "expected job.completed, job.failed, webhook.disabled, webhook.failing, \
         webhook.recovered or delivery.exhausted",
    )
}

pub fn parse_event_id(text: &str) -> Result<EventId, &'static str> {
    EventId::parse(text)
        .ok_or("expected an event id as `deliveries list` prints it: evt_ and 26 characters")
}

pub fn parse_endpoint(text: &str) -> Result<String, &'static str> {
    match url::Url::parse(text) {
        Ok(url) if url.scheme() == "http" && url.has_host() => Ok(text.to_owned()),
        _ => Err("expected a URL such as http://127.0.0.1:8000"),
    }
}
