//! Why a pending delivery waits.

use serde::Deserialize;

use super::endpoint_health::EndpointHealth;
use crate::{timestamp::Timestamp, webhook::WebhookStatus};

/// Why a pending delivery waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WaitReason {
    /// The next attempt of the retry schedule is not due yet, or a worker will make it soon.
    Schedule,
    /// The endpoint is unreachable: its circuit breaker is open.
    Endpoint,
    /// The webhook is disabled.
    Webhook,
    /// It is its endpoint's turn later: deliveries to it are spaced in time.
    Rate,
    /// The webhook's secret cannot be decrypted, or is invalid.
    Secret,
}

impl WaitReason {
    /// Every reason.
    pub const ALL: [Self; 5] = [
        Self::Schedule,
        Self::Endpoint,
        Self::Webhook,
        Self::Rate,
        Self::Secret,
    ];

    /// The name in the API and in the tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Endpoint => "endpoint",
            Self::Webhook => "webhook",
            Self::Rate => "rate",
            Self::Secret => "secret",
        }
    }

    /// Whether an attempt is made when the delivery is due. If not, it is paused then.
    pub const fn allows_attempt(self) -> bool {
        !matches!(self, Self::Endpoint | Self::Webhook)
    }

    /// Why a pending delivery waits. `stored` is the reason that its latest change stored with it.
    /// The state of its webhook comes first, because no attempt is made until that changes.
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
            // An operator repairs the secret.
            (None, Some(Self::Secret)) => Self::Secret,
            // What was paused is resumed at a limited rate.
            (None, _) => Self::Rate,
            (Some(_), Some(reason)) => reason,
            (Some(_), None) => Self::Schedule,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::endpoint_health::FAILURE_THRESHOLD;

    /// A disabled webhook and an open breaker explain every delivery, and a paused delivery of
    /// another webhook is about to be resumed.
    #[test]
    fn webhook_and_breaker_come_first() {
        use WaitReason::{Endpoint, Rate, Schedule, Secret, Webhook};
        let closed = EndpointHealth::default();
        let open = EndpointHealth {
            consecutive_failures: FAILURE_THRESHOLD,
            ..closed
        };
        let due = Some(Timestamp::from_millis(1));
        for (next_attempt_at, stored, status, health, expected) in [
            (due, None, WebhookStatus::Active, closed, Schedule),
            (due, Some(Secret), WebhookStatus::Active, closed, Secret),
            (due, Some(Rate), WebhookStatus::Active, closed, Rate),
            (None, None, WebhookStatus::Active, closed, Rate),
            (None, Some(Secret), WebhookStatus::Active, closed, Secret),
            (None, Some(Endpoint), WebhookStatus::Active, closed, Rate),
            (due, Some(Rate), WebhookStatus::Active, open, Endpoint),
            (None, Some(Endpoint), WebhookStatus::Active, open, Endpoint),
            (None, Some(Endpoint), WebhookStatus::Disabled, open, Webhook),
            (due, None, WebhookStatus::Disabled, closed, Webhook),
        ] {
            let reason = WaitReason::explain(next_attempt_at, stored, status, &health);
            assert_eq!(
                reason, expected,
                "{next_attempt_at:?} {stored:?} {status:?}"
            );
        }
    }
}
