//! The status of a delivery, as the API shows it and the tables store it.

use std::str::FromStr;

/// The status of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryStatus {
    /// Another attempt will follow, or the webhook is paused.
    Pending,
    /// An attempt received a 2xx response.
    Delivered,
    /// The last attempt of the retry schedule failed.
    Failed,
    /// The webhook was deleted.
    Cancelled,
}

/// A text is not the name of a [`DeliveryStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `pending`, `delivered`, `failed` or `cancelled`")]
pub struct ParseDeliveryStatusError;

impl DeliveryStatus {
    /// Every status.
    pub const ALL: [Self; 4] = [
        Self::Pending,
        Self::Delivered,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The name in the API and in the tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl FromStr for DeliveryStatus {
    type Err = ParseDeliveryStatusError;

    fn from_str(name: &str) -> Result<Self, ParseDeliveryStatusError> {
        for status in Self::ALL {
            if status.as_str() == name {
                return Ok(status);
            }
        }
        Err(ParseDeliveryStatusError)
    }
}
