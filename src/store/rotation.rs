//! Rotation of a webhook's secret: the old secrets sign in addition to the new one until they
//! expire. The item holds the time of expiry, so no job has to end it.

use std::time::Duration;

use super::secrets::StoredSecret;
use nano_webhooks_core::timestamp::Timestamp;

/// How many secrets of a webhook may sign at the same time. Receivers check every signature of a
/// request.
pub const MAX_ACTIVE_SECRETS: usize = 3;

/// The result of a request to rotate a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RotateOutcome {
    /// The new secret signs.
    Rotated {
        /// How many secrets sign now.
        active: usize,
        /// When the previous secret expires; `None` if it has expired or did not exist.
        previous_expires_at: Option<Timestamp>,
    },
    /// [`MAX_ACTIVE_SECRETS`] secrets sign already.
    TooManyActive {
        /// When the first of them expires.
        until: Timestamp,
    },
    /// The account has no such webhook.
    NotFound,
}

impl RotateOutcome {
    pub(super) fn from_secrets(secrets: &[StoredSecret]) -> Self {
        Self::Rotated {
            active: secrets.len(),
            previous_expires_at: secrets.get(1).and_then(StoredSecret::expires_at),
        }
    }
}

/// A rotation would leave more than [`MAX_ACTIVE_SECRETS`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooManyActiveSecrets {
    /// When the first of them expires.
    pub(super) until: Timestamp,
}

/// The secrets after a rotation, the newest first, without those that have expired.
pub(super) fn apply_rotation(
    current: &[StoredSecret],
    new: StoredSecret,
    grace: Duration,
    now: Timestamp,
) -> Result<Vec<StoredSecret>, TooManyActiveSecrets> {
    let grace_ends = now + grace;
    let mut updated = vec![new];
    for secret in current {
        let secret = secret.clone().expiring_at(grace_ends);
        if secret.is_active(now) {
            updated.push(secret);
        }
    }
    if updated.len() > MAX_ACTIVE_SECRETS {
        let expiries = updated.iter().filter_map(StoredSecret::expires_at);
        return Err(TooManyActiveSecrets {
            until: expiries.min().unwrap_or(grace_ends),
        });
    }
    Ok(updated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::secrets::to_stored_secret;
    use nano_webhooks_core::{account_id::AccountId, secret::Secret, webhook::WebhookId};

    fn secret(text: &str) -> StoredSecret {
        let account = AccountId::parse("acme").unwrap();
        let secret = Secret::parse(text.to_owned()).unwrap();
        to_stored_secret(None, &account, WebhookId::new(1).unwrap(), &secret)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millis(second * 1000)
    }

    const GRACE: Duration = Duration::from_mins(1);

    #[test]
    fn rotation_keeps_active_secrets() {
        let current = [
            secret("second-secret"),
            secret("first-secret").expiring_at(at(100)),
            secret("oldest-secret").expiring_at(at(10)),
        ];
        let updated = apply_rotation(&current, secret("third-secret"), GRACE, at(50)).unwrap();
        let expected = [
            secret("third-secret"),
            secret("second-secret").expiring_at(at(110)),
            secret("first-secret").expiring_at(at(100)),
        ];
        assert!(updated == expected);
        assert_eq!(
            RotateOutcome::from_secrets(&updated),
            RotateOutcome::Rotated {
                active: 3,
                previous_expires_at: Some(at(110))
            }
        );
    }

    #[test]
    fn rotation_without_grace_leaves_one_secret() {
        let current = [secret("second-secret"), secret("first-secret")];
        let new = secret("third-secret");
        let updated = apply_rotation(&current, new.clone(), Duration::ZERO, at(50)).unwrap();
        assert!(updated == [new]);
    }

    #[test]
    fn rotation_beyond_limit_names_first_expiry() {
        let current = [
            secret("third-secret"),
            secret("second-secret").expiring_at(at(100)),
            secret("first-secret").expiring_at(at(90)),
        ];
        let refused = apply_rotation(&current, secret("fourth-secret"), GRACE, at(50));
        assert!(refused == Err(TooManyActiveSecrets { until: at(90) }));
    }
}
