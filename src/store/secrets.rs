//! Secrets of webhooks, encrypted with a data key.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    data_keys::DataKeys,
    error::{Error, Result},
    table_client::TableClient,
};
use crate::random;
use nano_webhooks_core::{
    account_id::AccountId, data_key::DataKey, secret::Secret, static_headers::StaticHeaders,
    timestamp::Timestamp, webhook::WebhookId,
};

/// The attribute of a webhook that holds its secrets.
pub(super) const SECRETS: &str = "secrets";

/// A secret as it is stored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSecret {
    #[serde(flatten)]
    pub(super) encoding: Encoding,
    /// When it stops signing; absent in the newest secret.
    #[serde(default, rename = "until", skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
}

/// A text as it is stored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Encoding {
    /// Encrypted with the data key of this version.
    Encrypted {
        data_key: u32,
        #[serde(rename = "sealed")]
        ciphertext: String,
    },
    /// Unencrypted.
    Plain { plain: Zeroizing<String> },
}

impl StoredSecret {
    /// Whether it signs at `now`.
    pub fn is_active(&self, now: Timestamp) -> bool {
        match self.expires_at {
            Some(expires_at) => expires_at > now,
            None => true,
        }
    }

    /// When it stops signing; `None` for the newest secret.
    pub const fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// The same secret, expiring at the given time or earlier.
    #[must_use]
    pub(super) fn expiring_at(mut self, latest: Timestamp) -> Self {
        self.expires_at = match self.expires_at {
            Some(expires_at) => Some(expires_at.min(latest)),
            None => Some(latest),
        };
        self
    }

    pub(super) fn is_encrypted_with(&self, version: u32) -> bool {
        self.encoding.is_encrypted_with(version)
    }
}

impl Encoding {
    pub(super) const fn is_encrypted_with(&self, version: u32) -> bool {
        match self {
            Self::Encrypted { data_key, .. } => *data_key == version,
            Self::Plain { .. } => false,
        }
    }
}

impl fmt::Debug for StoredSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoredSecret(…)")
    }
}

/// The hash of a request as it is stored. The request may contain a secret or a header, so a data
/// key hashes it if there is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    fingerprint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_key: Option<u32>,
}

/// What the requests to a webhook's endpoint need, decrypted.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// The secrets that sign, newest first. Without any, requests are not signed.
    pub secrets: Vec<Secret>,
    /// The headers that requests have in addition to those of the service.
    pub headers: StaticHeaders,
}

/// See [`Store::secrets`](super::Store::secrets).
#[derive(Clone, Copy, Debug)]
pub struct Secrets<'a> {
    pub(super) table: &'a TableClient,
    data_keys: DataKeys<'a>,
}

impl<'a> Secrets<'a> {
    pub(super) const fn new(table: &'a TableClient, data_keys: DataKeys<'a>) -> Self {
        Self { table, data_keys }
    }
}

impl Secrets<'_> {
    /// The data key that encrypts. Creates one if the configured key has wrapped none. `None` if
    /// secrets are stored unencrypted.
    pub async fn active_data_key(self, now: Timestamp) -> Result<Option<Arc<DataKey>>> {
        self.data_keys.active(now).await
    }

    /// The data key of this version.
    pub(super) async fn get_data_key(self, version: u32) -> Result<Arc<DataKey>> {
        self.data_keys.get(version).await
    }

    /// Creates a data key and returns its version. It encrypts from now on in this process, and in
    /// others after their next start.
    pub async fn rotate_data_key(self, now: Timestamp) -> Result<u32> {
        self.data_keys.rotate(now).await
    }

    /// Encrypts a webhook's secret with the active data key.
    pub(super) async fn encrypt(
        self,
        account: &AccountId,
        webhook: WebhookId,
        secret: &Secret,
        now: Timestamp,
    ) -> Result<StoredSecret> {
        let data_key = self.data_keys.active(now).await?;
        Ok(to_stored_secret(
            data_key.as_deref(),
            account,
            webhook,
            secret,
        ))
    }

    /// Decrypts those of a webhook's secrets that sign at `now`. The error is [`Error::Unreadable`]
    /// if a secret was encrypted for another webhook, which never changes.
    pub async fn decrypt_active(
        self,
        account: &AccountId,
        webhook: WebhookId,
        stored: &[StoredSecret],
        now: Timestamp,
    ) -> Result<Vec<Secret>> {
        let mut secrets = Vec::with_capacity(stored.len());
        for secret in stored {
            if secret.is_active(now) {
                secrets.push(self.decrypt(account, webhook, secret).await?);
            }
        }
        Ok(secrets)
    }

    pub(super) async fn decrypt(
        self,
        account: &AccountId,
        webhook: WebhookId,
        stored: &StoredSecret,
    ) -> Result<Secret> {
        match &stored.encoding {
            Encoding::Plain { plain } => {
                Secret::from_stored(plain.to_string()).map_err(|_| Error::corrupt_item("secret"))
            }
            Encoding::Encrypted {
                data_key,
                ciphertext,
            } => {
                let data_key = self.data_keys.get(*data_key).await?;
                data_key
                    .decrypt_secret(account, webhook, ciphertext)
                    .map_err(|_| {
                        Error::corrupt_item("secret: it was not encrypted for this webhook")
                    })
            }
        }
    }

    /// The fingerprint of a request with this hash.
    pub(super) async fn fingerprint(
        self,
        request_hash: &[u8; 32],
        now: Timestamp,
    ) -> Result<Fingerprint> {
        match self.data_keys.active(now).await? {
            None => Ok(Fingerprint {
                fingerprint: hex::encode(request_hash),
                data_key: None,
            }),
            Some(data_key) => Ok(Fingerprint {
                fingerprint: data_key.fingerprint(request_hash),
                data_key: Some(data_key.version()),
            }),
        }
    }

    /// Whether a request with this hash has the stored fingerprint.
    pub(super) async fn fingerprint_matches(
        self,
        stored: &Fingerprint,
        request_hash: &[u8; 32],
    ) -> Result<bool> {
        let expected = match stored.data_key {
            None => hex::encode(request_hash),
            Some(version) => self.data_keys.get(version).await?.fingerprint(request_hash),
        };
        Ok(stored.fingerprint == expected)
    }
}

/// Makes the stored form of the newest secret of a webhook: encrypted, or plain without a data key.
pub(super) fn to_stored_secret(
    data_key: Option<&DataKey>,
    account: &AccountId,
    webhook: WebhookId,
    secret: &Secret,
) -> StoredSecret {
    let encoding = match data_key {
        None => Encoding::Plain {
            plain: Zeroizing::new(secret.expose().to_owned()),
        },
        Some(data_key) => Encoding::Encrypted {
            data_key: data_key.version(),
            ciphertext: data_key.encrypt_secret(account, webhook, secret, random::bytes()),
        },
    };
    StoredSecret {
        encoding,
        expires_at: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The stored form is fixed: tables hold secrets that earlier versions wrote.
    #[test]
    fn stored_secrets_are_read() {
        let stored = json!([
            { "data_key": 3, "sealed": "AAEC" },
            { "plain": "a-plain-secret", "until": 1_734_912_000_000_i64 },
        ]);
        let secrets: Vec<StoredSecret> = serde_json::from_value(stored.clone()).unwrap();
        assert!(secrets[0].is_encrypted_with(3) && !secrets[0].is_encrypted_with(2));
        assert_eq!(secrets[0].expires_at(), None);
        let expires_at = Timestamp::from_millis(1_734_912_000_000);
        assert_eq!(secrets[1].expires_at(), Some(expires_at));
        assert_eq!(serde_json::to_value(secrets).unwrap(), stored);
    }
}
