//! Operational events: what happened to one of an account's webhooks, for the account's other
//! webhooks and for the operator.

use std::time::Duration;

use crate::{
    account_id::AccountId,
    delivery::{Delivery, failure::FailureKind},
    event::{
        EventId,
        attribute_data::{AttributeData, write_string},
        decimal::Decimal,
    },
    event_type::EventType,
    timestamp::Timestamp,
    webhook::WebhookId,
};

/// An event about a webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationalEvent {
    /// The webhook.
    pub webhook: WebhookId,
    /// The URL of its endpoint.
    pub url: String,
    /// What happened.
    pub change: WebhookChange,
}

/// What happened to a webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WebhookChange {
    /// It was disabled.
    Disabled {
        /// The reason in words.
        reason: String,
    },
    /// Every attempt failed for a part of the time after which it is disabled.
    Failing {
        /// The time of the first failure since the latest success.
        since: Timestamp,
        /// The part of the time, in percent.
        percent: u32,
        /// When the webhook is disabled if further attempts fail.
        disabled_at: Timestamp,
        /// The kind of the latest failure.
        last_failure: Option<FailureKind>,
    },
    /// An attempt succeeded after [`WebhookChange::Failing`].
    Recovered {
        /// The time of the first failure.
        failing_since: Timestamp,
    },
    /// The last attempt of a delivery's retry schedule failed.
    DeliveryExhausted(ExhaustedDelivery),
}

/// A delivery whose last attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExhaustedDelivery {
    /// The event that was not accepted.
    pub event: EventId,
    /// Its type.
    pub event_type: EventType,
    /// The job's id.
    pub task_id: Option<String>,
    /// The number of attempts.
    pub attempt_count: u32,
    /// The kind of the latest failure.
    pub last_failure: Option<FailureKind>,
}

impl From<&Delivery> for ExhaustedDelivery {
    fn from(delivery: &Delivery) -> Self {
        Self {
            event: delivery.key.event.clone(),
            event_type: delivery.event_type,
            task_id: delivery.task_id.clone(),
            attempt_count: delivery.attempt_count,
            last_failure: delivery.attempts.last().and_then(|attempt| attempt.failure),
        }
    }
}

impl OperationalEvent {
    /// An example of an event type, for a test event about `webhook`; `None` for job events.
    pub fn sample(
        event_type: EventType,
        webhook: WebhookId,
        url: &str,
        now: Timestamp,
    ) -> Option<Self> {
        let change = match event_type {
            EventType::JobCompleted | EventType::JobFailed => return None,
            EventType::WebhookDisabled => WebhookChange::Disabled {
                reason: "This is a test: nothing was disabled.".to_owned(),
            },
            EventType::WebhookFailing => WebhookChange::Failing {
                since: now - Duration::from_hours(24),
                percent: 20,
                disabled_at: now + Duration::from_hours(96),
                last_failure: Some(FailureKind::Timeout),
            },
            EventType::WebhookRecovered => WebhookChange::Recovered {
                failing_since: now - Duration::from_hours(24),
            },
            EventType::DeliveryExhausted => WebhookChange::DeliveryExhausted(ExhaustedDelivery {
                event: EventId::min_at(now),
                event_type: EventType::JobCompleted,
                task_id: Some("task_test".to_owned()),
                attempt_count: 10,
                last_failure: Some(FailureKind::Timeout),
            }),
        };
        Some(Self {
            webhook,
            url: url.to_owned(),
            change,
        })
    }

    /// The type of the event.
    pub const fn event_type(&self) -> EventType {
        match self.change {
            WebhookChange::Disabled { .. } => EventType::WebhookDisabled,
            WebhookChange::Failing { .. } => EventType::WebhookFailing,
            WebhookChange::Recovered { .. } => EventType::WebhookRecovered,
            WebhookChange::DeliveryExhausted(_) => EventType::DeliveryExhausted,
        }
    }

    /// The id of the event that happened at `now`.
    pub fn id(&self, account: &AccountId, now: Timestamp) -> EventId {
        EventId::synthetic(now, account, &self.webhook.to_string(), self.event_type())
    }

    /// Writes the payload. Exactly these bytes are stored, signed and sent.
    pub fn payload(&self, now: Timestamp) -> String {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(b"{\"event\":");
        write_string(self.event_type().as_str(), &mut out);
        out.extend_from_slice(b",\"data\":");
        AttributeData::Map(self.data()).write_json(&mut out);
        out.extend_from_slice(b",\"timestamp\":");
        write_string(&now.to_rfc3339(), &mut out);
        out.push(b'}');
        String::from_utf8(out).expect("JSON that was written from strings is UTF-8")
    }

    fn data(&self) -> Vec<(String, AttributeData)> {
        let mut data = vec![
            field("url", text(&self.url)),
            field("webhook_id", number(self.webhook.get())),
        ];
        match &self.change {
            WebhookChange::Disabled { reason } => {
                data.push(field("disabled_reason", text(reason)));
            }
            WebhookChange::Failing {
                since,
                percent,
                disabled_at,
                last_failure,
            } => {
                data.push(field("failing_since", text(&since.to_rfc3339())));
                data.push(field("threshold_percent", number((*percent).into())));
                data.push(field("disabled_at", text(&disabled_at.to_rfc3339())));
                data.push(field("last_failure", failure(*last_failure)));
            }
            WebhookChange::Recovered { failing_since } => {
                data.push(field("failing_since", text(&failing_since.to_rfc3339())));
            }
            WebhookChange::DeliveryExhausted(delivery) => {
                let task_id = match &delivery.task_id {
                    Some(task_id) => text(task_id),
                    None => AttributeData::Null,
                };
                data.push(field("event", text(delivery.event_type.as_str())));
                data.push(field("event_id", text(delivery.event.as_str())));
                data.push(field("task_id", task_id));
                let attempt_count = number(delivery.attempt_count.into());
                data.push(field("attempt_count", attempt_count));
                data.push(field("last_failure", failure(delivery.last_failure)));
            }
        }
        data
    }
}

fn field(name: &str, value: AttributeData) -> (String, AttributeData) {
    (name.to_owned(), value)
}

fn text(text: &str) -> AttributeData {
    AttributeData::String(text.to_owned())
}

fn number(number: u64) -> AttributeData {
    let decimal = Decimal::parse(&number.to_string());
    AttributeData::Number(decimal.expect("an integer is a decimal"))
}

fn failure(kind: Option<FailureKind>) -> AttributeData {
    match kind {
        Some(kind) => text(kind.as_str()),
        None => AttributeData::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(change: WebhookChange) -> String {
        let event = OperationalEvent {
            webhook: WebhookId::new(7).unwrap(),
            url: "https://example.com/\"".to_owned(),
            change,
        };
        event.payload(Timestamp::parse_rfc3339("2024-12-23T10:00:00Z").unwrap())
    }

    /// The payloads have the form of a job's, with sorted keys in `data`.
    #[test]
    fn payloads_are_canonical() {
        let since = Timestamp::parse_rfc3339("2024-12-22T10:00:00Z").unwrap();
        let disabled = WebhookChange::Disabled {
            reason: "Gone.".to_owned(),
        };
        let failing = WebhookChange::Failing {
            since,
            percent: 20,
            disabled_at: since,
            last_failure: Some(FailureKind::Status),
        };
        let recovered = WebhookChange::Recovered {
            failing_since: since,
        };
        let exhausted = WebhookChange::DeliveryExhausted(ExhaustedDelivery {
            event: EventId::parse("evt_01JFS8TX800000000000000000").unwrap(),
            event_type: EventType::JobFailed,
            task_id: Some("t1".to_owned()),
            attempt_count: 10,
            last_failure: None,
        });
        for (change, event, data) in [
            (
                disabled,
                "webhook.disabled",
                r#"{"disabled_reason":"Gone.","#,
            ),
            (
                failing,
                "webhook.failing",
                concat!(
                    r#"{"disabled_at":"2024-12-22T10:00:00Z","#,
                    r#""failing_since":"2024-12-22T10:00:00Z","last_failure":"status","#,
                    r#""threshold_percent":20,"#
                ),
            ),
            (
                recovered,
                "webhook.recovered",
                r#"{"failing_since":"2024-12-22T10:00:00Z","#,
            ),
            (
                exhausted,
                "delivery.exhausted",
                concat!(
                    r#"{"attempt_count":10,"event":"job.failed","#,
                    r#""event_id":"evt_01JFS8TX800000000000000000","last_failure":null,"#,
                    r#""task_id":"t1","#
                ),
            ),
        ] {
            let end = r#""url":"https://example.com/\"","webhook_id":7},"#;
            let timestamp = r#""timestamp":"2024-12-23T10:00:00Z"}"#;
            let expected = format!(r#"{{"event":"{event}","data":{data}{end}{timestamp}"#);
            assert_eq!(payload(change), expected);
        }
    }

    #[test]
    fn every_operational_type_has_sample() {
        let webhook = WebhookId::new(7).unwrap();
        let now = Timestamp::from_millis(0);
        for event_type in EventType::ALL {
            let sample = OperationalEvent::sample(event_type, webhook, "", now);
            let sampled = sample.map(|event| event.event_type());
            let expected = (!event_type.is_job()).then_some(event_type);
            assert_eq!(sampled, expected);
        }
    }
}
