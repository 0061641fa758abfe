//! Why a pending delivery waits.

use serde::Deserialize;

use super::endpoint_health::EndpointHealth;
use crate::{timestamp::Timestamp, webhook::WebhookStatus};

/// Why a pending delivery waits. The names are those of the API and the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WaitReason {
    /// Its next attempt is due later, or is about to be made.
    Schedule,
    /// The endpoint is unreachable: its circuit breaker is open.
    Endpoint,
    /// The webhook is disabled.
    Webhook,
    /// Deliveries that waited are sent one after the other, and it is not its turn yet.
    Rate,
    /// The webhook's secret cannot be decrypted.
    Secret,
}

impl WaitReason {
    /// The name in the tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Endpoint => "endpoint",
            Self::Webhook => "webhook",
            Self::Rate => "rate",
            Self::Secret => "secret",
        }
    }

    /// Why a pending delivery waits, given the present state of its webhook and endpoint. `stored`
    /// is the reason that was recorded with the delivery. A paused delivery has no next attempt.
    pub fn explain(
        next_attempt_at: Option<Timestamp>,
        stored: Option<Self>,
        status: WebhookStatus,
        health: &EndpointHealth,
    ) -> Self {
        if status == WebhookStatus::Disabled {
            return Self::Webhook;
        }
        if health.is_open() {
            return Self::Endpoint;
        }
        match (next_attempt_at, stored) {
            // Enabling the webhook or closing the breaker started to resume what was paused.
            (None, _) => Self::Rate,
            (Some(_), Some(Self::Secret)) => Self::Secret,
            (Some(_), _) => Self::Schedule,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::endpoint_health::FAILURE_THRESHOLD;

    /// A disabled webhook explains the wait before an open breaker, and both before everything that
    /// concerns the delivery alone.
    #[test]
    fn reason_follows_webhook_endpoint_and_delivery() {
        use WaitReason::{Endpoint, Rate, Schedule, Secret, Webhook};
        let due = Some(Timestamp::from_millis(1));
        let active = WebhookStatus::Active;
        let disabled = WebhookStatus::Disabled;
        for (next_attempt_at, stored, status, failures, expected) in [
            (due, None, active, 0, Schedule),
            (due, None, active, FAILURE_THRESHOLD - 1, Schedule),
            (due, None, active, FAILURE_THRESHOLD, Endpoint),
            (due, None, disabled, 0, Webhook),
            (due, Some(Secret), active, 0, Secret),
            (due, Some(Secret), active, FAILURE_THRESHOLD, Endpoint),
            (due, Some(Secret), disabled, 0, Webhook),
            (None, None, active, 0, Rate),
            (None, Some(Endpoint), active, 0, Rate),
            (None, Some(Endpoint), active, FAILURE_THRESHOLD, Endpoint),
            (None, None, active, FAILURE_THRESHOLD, Endpoint),
            (None, None, disabled, 0, Webhook),
            (None, Some(Endpoint), disabled, FAILURE_THRESHOLD, Webhook),
        ] {
            let health = EndpointHealth {
                consecutive_failures: failures,
                ..EndpointHealth::default()
            };
            assert_eq!(
                WaitReason::explain(next_attempt_at, stored, status, &health),
                expected,
                "{next_attempt_at:?} {stored:?} {status:?} {failures}"
            );
        }
    }
}
