//! A scheduled retry: the message that names a delivery, and the time at which it is due.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::DeliveryKey;
use crate::{account_id::AccountId, event::EventId, timestamp::Timestamp, webhook::WebhookId};

/// A message of the queue: the delivery is due for another attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryMessage {
    /// The delivery.
    pub key: DeliveryKey,
    /// The number of attempts when the message was sent. The message is stale if the delivery has
    /// more by now.
    pub attempt_count: u32,
}

#[derive(Serialize, Deserialize)]
struct MessageJson {
    account: String,
    webhook_id: u64,
    event_id: String,
    attempt: u32,
}

/// The text is not a retry message.
#[derive(Debug, thiserror::Error)]
pub enum ParseMessageError {
    /// It is not JSON of the expected shape.
    #[error("not a retry message: {0}")]
    Json(#[from] serde_json::Error),
    /// A field has an invalid value.
    #[error("invalid `{0}` in a retry message")]
    InvalidField(&'static str),
}

impl RetryMessage {
    /// The body of the message.
    pub fn to_json(&self) -> String {
        let json = MessageJson {
            account: self.key.account.to_string(),
            webhook_id: self.key.webhook.get(),
            event_id: self.key.event.to_string(),
            attempt: self.attempt_count,
        };
        serde_json::to_string(&json).expect("strings and integers always serialize")
    }
}

impl FromStr for RetryMessage {
    type Err = ParseMessageError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let json: MessageJson = serde_json::from_str(text)?;
        Ok(Self {
            key: DeliveryKey {
                account: AccountId::parse(&json.account)
                    .map_err(|_| ParseMessageError::InvalidField("account"))?,
                webhook: WebhookId::new(json.webhook_id)
                    .ok_or(ParseMessageError::InvalidField("webhook_id"))?,
                event: EventId::parse(&json.event_id)
                    .ok_or(ParseMessageError::InvalidField("event_id"))?,
            },
            attempt_count: json.attempt,
        })
    }
}

/// A message and the time at which it should be received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledRetry {
    /// The message.
    pub message: RetryMessage,
    /// When the delivery is due.
    pub due: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_round_trips_as_json() {
        let message = RetryMessage {
            key: DeliveryKey {
                account: AccountId::parse("a#b \"c\"").unwrap(),
                webhook: WebhookId::new(7).unwrap(),
                event: EventId::parse("evt_01JFS8TX800000000000000000").unwrap(),
            },
            attempt_count: 3,
        };
        let text = message.to_json();
        assert_eq!(
            text,
            concat!(
                r#"{"account":"a#b \"c\"","webhook_id":7,"#,
                r#""event_id":"evt_01JFS8TX800000000000000000","attempt":3}"#
            )
        );
        assert_eq!(text.parse::<RetryMessage>().unwrap(), message);
        for other in [
            "",
            "{}",
            concat!(
                r#"{"account":"","webhook_id":7,"#,
                r#""event_id":"evt_01JFS8TX800000000000000000","attempt":3}"#
            ),
        ] {
            assert!(other.parse::<RetryMessage>().is_err(), "{other}");
        }
    }
}
