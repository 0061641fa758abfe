//! A webhook: an account's subscription of an endpoint to event types.

use std::{fmt, num::NonZeroU64};

use crate::{
    delivery::pace::Pace,
    endpoint_url::EndpointUrl,
    event_type::{EventType, EventTypes},
};

/// The id of a webhook within its account: counted from 1, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WebhookId(NonZeroU64);

impl WebhookId {
    /// The largest id. Table keys have ten digits, so that they sort by number.
    pub const MAX: u64 = 9_999_999_999;

    /// Makes an id; `None` unless `number` is 1 to [`WebhookId::MAX`].
    pub fn new(number: u64) -> Option<Self> {
        if number > Self::MAX {
            return None;
        }
        NonZeroU64::new(number).map(Self)
    }

    /// Parses the decimal form without sign or leading zeros.
    pub fn parse(text: &str) -> Option<Self> {
        let id = Self::new(text.parse().ok()?)?;
        if id.to_string() == text {
            Some(id)
        } else {
            None
        }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for WebhookId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether a webhook receives events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebhookStatus {
    /// Receives events.
    Active,
    /// Receives no events until it is enabled again.
    Disabled,
}

impl WebhookStatus {
    /// Every status.
    pub const ALL: [Self; 2] = [Self::Active, Self::Disabled];

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
        }
    }

    /// Parses a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }
}

/// A subscription of an endpoint to event types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// The id within the account.
    pub id: WebhookId,
    /// The URL of the endpoint.
    pub url: EndpointUrl,
    /// The subscribed event types.
    pub events: EventTypes,
    /// Whether the webhook receives events.
    pub status: WebhookStatus,
    /// The pace of attempts; `None` if they are not spaced in time.
    pub pace: Option<Pace>,
}

impl Webhook {
    /// Whether events of this type are delivered to the webhook.
    pub fn accepts(&self, event: EventType) -> bool {
        self.status == WebhookStatus::Active && self.events.contains(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An id is a positive integer without sign or leading zeros.
    #[test]
    fn only_canonical_ids_are_parsed() {
        assert_eq!(WebhookId::parse("1").map(WebhookId::get), Some(1));
        for malformed in [
            "",
            "0",
            "-1",
            "+1",
            "01",
            "1.0",
            "a",
            "10000000000",
            "99999999999999999999",
        ] {
            assert_eq!(WebhookId::parse(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn disabled_webhook_accepts_nothing() {
        let mut webhook = Webhook {
            id: WebhookId::new(1).unwrap(),
            url: EndpointUrl::parse("https://example.com/").unwrap(),
            events: EventTypes::parse(["job.failed"]).unwrap(),
            status: WebhookStatus::Active,
            pace: None,
        };
        assert!(webhook.accepts(EventType::JobFailed));
        assert!(!webhook.accepts(EventType::JobCompleted));
        webhook.status = WebhookStatus::Disabled;
        assert!(!webhook.accepts(EventType::JobFailed));
    }
}
