//! Static headers of webhooks, encrypted with a data key.

use std::fmt;

use super::{
    error::{Error, Result},
    secrets::{Encoding, Secrets},
};
use crate::random;
use nano_webhooks_core::{
    account_id::AccountId, data_key::DataKey, static_headers::StaticHeaders, timestamp::Timestamp,
    webhook::WebhookId,
};
use serde::{Deserialize, Serialize};

/// The attribute of a webhook that holds its static headers.
pub(super) const HEADERS: &str = "headers";

/// The static headers of a webhook as they are stored. A webhook without any has none.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredHeaders {
    /// The names, which can be read without the data key.
    names: Vec<String>,
    /// All names and values as one text.
    #[serde(flatten)]
    encoding: Encoding,
}

impl StoredHeaders {
    /// Makes the stored form: encrypted, or plain without a data key. `None` if there are no
    /// headers.
    pub(super) fn encode(
        data_key: Option<&DataKey>,
        account: &AccountId,
        webhook: WebhookId,
        headers: &StaticHeaders,
    ) -> Option<Self> {
        if headers.is_empty() {
            return None;
        }
        let encoding = match data_key {
            None => Encoding::Plain {
                plain: headers.to_json(),
            },
            Some(data_key) => Encoding::Encrypted {
                data_key: data_key.version(),
                ciphertext: data_key.encrypt_headers(account, webhook, headers, random::bytes()),
            },
        };
        Some(Self {
            names: headers.names(),
            encoding,
        })
    }

    /// The names as the owner wrote them.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    pub(super) fn is_encrypted_with(&self, version: u32) -> bool {
        self.encoding.is_encrypted_with(version)
    }
}

impl fmt::Debug for StoredHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredHeaders({:?}, …)", self.names)
    }
}

impl Secrets<'_> {
    /// Encrypts a webhook's static headers with the active data key. `None` if there are none.
    pub(super) async fn encrypt_headers(
        self,
        account: &AccountId,
        webhook: WebhookId,
        headers: &StaticHeaders,
        now: Timestamp,
    ) -> Result<Option<StoredHeaders>> {
        if headers.is_empty() {
            return Ok(None);
        }
        let data_key = self.active_data_key(now).await?;
        let data_key = data_key.as_deref();
        Ok(StoredHeaders::encode(data_key, account, webhook, headers))
    }

    /// Decrypts a webhook's static headers. The error is [`Error::Unreadable`] if they were
    /// encrypted for another webhook, which never changes.
    pub(super) async fn decrypt_headers(
        self,
        account: &AccountId,
        webhook: WebhookId,
        stored: Option<&StoredHeaders>,
    ) -> Result<StaticHeaders> {
        let Some(stored) = stored else {
            return Ok(StaticHeaders::NONE);
        };
        match &stored.encoding {
            Encoding::Plain { plain } => StaticHeaders::from_json(plain)
                .ok_or_else(|| Error::corrupt_item("list of headers")),
            Encoding::Encrypted {
                data_key,
                ciphertext,
            } => {
                let data_key = self.get_data_key(*data_key).await?;
                data_key
                    .decrypt_headers(account, webhook, ciphertext)
                    .map_err(|_| {
                        Error::corrupt_item(
                            "list of headers: it was not encrypted for this webhook",
                        )
                    })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The stored form is fixed: tables hold headers that earlier versions wrote.
    #[test]
    fn stored_headers_are_read() {
        for stored in [
            json!({ "names": ["X-Api-Key"], "data_key": 3, "sealed": "AAEC" }),
            json!({ "names": ["X-Api-Key"], "plain": r#"[["X-Api-Key","k"]]"# }),
        ] {
            let headers: StoredHeaders = serde_json::from_value(stored.clone()).unwrap();
            assert_eq!(headers.names(), ["X-Api-Key"]);
            assert_eq!(headers.is_encrypted_with(3), stored["data_key"] == 3);
            assert!(!headers.is_encrypted_with(2));
            assert_eq!(format!("{headers:?}"), r#"StoredHeaders(["X-Api-Key"], …)"#);
            assert_eq!(serde_json::to_value(headers).unwrap(), stored);
        }
    }
}
