//! Event types, and the set of them that a webhook subscribes to.

/// A type of event that webhooks can subscribe to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventType {
    /// `job.completed`.
    JobCompleted,
    /// `job.failed`.
    JobFailed,
    /// `webhook.disabled`: one of the account's webhooks was disabled.
    WebhookDisabled,
    /// `webhook.failing`: every attempt to the endpoint of a webhook has failed for long.
    WebhookFailing,
    /// `webhook.recovered`: an endpoint that had failed for long accepted an event.
    WebhookRecovered,
    /// `delivery.exhausted`: the last attempt of a delivery failed.
    DeliveryExhausted,
}

impl EventType {
    /// Every event type.
    pub const ALL: [Self; 6] = [
        Self::JobCompleted,
        Self::JobFailed,
        Self::WebhookDisabled,
        Self::WebhookFailing,
        Self::WebhookRecovered,
        Self::DeliveryExhausted,
    ];

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::JobCompleted => "job.completed",
            Self::JobFailed => "job.failed",
            Self::WebhookDisabled => "webhook.disabled",
            Self::WebhookFailing => "webhook.failing",
            Self::WebhookRecovered => "webhook.recovered",
            Self::DeliveryExhausted => "delivery.exhausted",
        }
    }

    /// Whether the event is about a job. The others are operational events, about the account's
    /// webhooks.
    pub const fn is_job(self) -> bool {
        matches!(self, Self::JobCompleted | Self::JobFailed)
    }

    /// Parses a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.as_str() == name)
    }
}

/// The event types that a webhook subscribes to: at least one, distinct, in their original order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventTypes(Vec<EventType>);

/// The names are not a set of event types.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventTypesError {
    /// There is no event type.
    #[error("expected at least one event")]
    Empty,
    /// The name is not an event type.
    #[error("unknown event `{0}`, expected one or more of {known}", known = known_names())]
    Unknown(String),
    /// The event type is listed twice.
    #[error("`{0}` is listed twice, expected each event once")]
    Duplicate(&'static str),
}

fn known_names() -> String {
    let names = EventType::ALL.map(|event| format!("`{}`", event.as_str()));
    names.join(", ")
}

impl EventTypes {
    /// The longest part of an unknown name that an error shows, in characters.
    const MAX_SHOWN: usize = 64;

    /// Parses the names of event types.
    pub fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, EventTypesError> {
        let mut events = Vec::new();
        for name in names {
            let Some(event) = EventType::parse(name) else {
                let shown = name.chars().take(Self::MAX_SHOWN).collect();
                return Err(EventTypesError::Unknown(shown));
            };
            if events.contains(&event) {
                return Err(EventTypesError::Duplicate(event.as_str()));
            }
            events.push(event);
        }
        if events.is_empty() {
            return Err(EventTypesError::Empty);
        }
        Ok(Self(events))
    }

    /// Whether the set contains an event type.
    pub fn contains(&self, event: EventType) -> bool {
        self.0.contains(&event)
    }

    /// The names in their original order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|event| event.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_types_are_known_and_distinct() {
        assert!(EventTypes::parse([]).is_err());
        assert!(EventTypes::parse(["job.completed", "job.completed"]).is_err());
        assert!(
            EventTypes::parse(["job.done"])
                .unwrap_err()
                .to_string()
                .contains("`job.done`")
        );
        let events = EventTypes::parse(["job.failed", "job.completed"]).unwrap();
        assert_eq!(
            events.names().collect::<Vec<_>>(),
            ["job.failed", "job.completed"]
        );
        assert!(
            events.contains(EventType::JobFailed) && !events.contains(EventType::WebhookDisabled)
        );
    }
}
