//! Why a pending delivery waits.

use serde::Deserialize;

/// Why a pending delivery waits, where its state does not say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WaitReason {
    /// The endpoint is unreachable: its circuit breaker is open.
    Endpoint,
    /// The webhook's secret cannot be decrypted.
    Secret,
}

impl WaitReason {
    /// The name in the tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::Secret => "secret",
        }
    }
}
