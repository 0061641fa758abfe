//! Why a pending delivery waits.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a pending delivery waits. The names are those of the API and the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// The text is not the name of a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a reason to wait")]
pub struct UnknownWaitReason;

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
}

impl FromStr for WaitReason {
    type Err = UnknownWaitReason;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|reason| reason.as_str() == text)
            .ok_or(UnknownWaitReason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for reason in WaitReason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(reason));
            assert_eq!(serde_json::json!(reason), reason.as_str());
        }
        assert_eq!("never".parse::<WaitReason>(), Err(UnknownWaitReason));
    }
}
