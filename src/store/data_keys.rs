//! Data keys: they encrypt the secrets of webhooks, and are stored wrapped by a key that is not in
//! the tables.
//!
//! A process unwraps a data key once, and only when a secret needs it. While a key is unavailable,
//! requests for it fail at once, and one of them asks the provider again now and then. A new data
//! key can be created at any time: secrets that an older one encrypted stay readable.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_config::SdkConfig;
use aws_sdk_kms::{
    error::{ProvideErrorMetadata, SdkError},
    primitives::Blob,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{
    error::{Error, Result},
    item::{attr_s, from_item, to_item},
    key_schema::{self, PrimaryKey},
    table_client::TableClient,
};
use crate::{aws::error_cause, clock::Stopwatch, error_chain::error_chain, random};
use nano_webhooks_core::{
    data_key::{DataKey, KeyMaterial},
    timestamp::Timestamp,
};

/// The key of KMS's encryption context, whose value is the data key's version. KMS unwraps a data
/// key only with the same context, and logs it.
pub const ENCRYPTION_CONTEXT_KEY: &str = "nano-webhooks-data-key";
/// How often the newest data key is read again while other processes create one.
const MAX_TRIES: usize = 5;
/// The timeout of a request that unwraps a data key. It bounds how long a stream batch waits.
const UNWRAP_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the first failed unwrapping is remembered: until then no other request is made. The
/// time doubles with each further failure.
const FIRST_RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// The longest time between two requests for an unavailable data key, in one process.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// The time between two log lines about an unavailable data key, in one process.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// The key that wraps data keys.
#[derive(Clone)]
pub enum KeyProvider {
    /// No key: secrets are stored unencrypted, readable to everyone who can read the table.
    None,
    /// A key of AWS KMS.
    Kms {
        /// The client.
        client: aws_sdk_kms::Client,
        /// The key's id, ARN or alias.
        key_id: String,
    },
    /// A key in this process, as in local mode.
    Local(KeyMaterial),
}

/// The data keys that this process has unwrapped. Clones share them.
#[derive(Clone)]
pub struct DataKeyCache {
    provider: KeyProvider,
    slots: Arc<Mutex<BTreeMap<u32, Arc<KeySlot>>>>,
    /// The version that encrypts: the newest one when a key was first needed. Locked while it is
    /// looked up or created.
    active: Arc<tokio::sync::Mutex<Option<u32>>>,
}

/// A data key of this process. It is locked while the key is unwrapped, so that concurrent requests
/// unwrap it once, and requests for other keys do not wait.
type KeySlot = tokio::sync::Mutex<KeyState>;

#[derive(Default)]
enum KeyState {
    #[default]
    NotUnwrapped,
    Unwrapped(Arc<DataKey>),
    Unavailable(KeyFailure),
}

/// The latest failure to unwrap a data key.
struct KeyFailure {
    error: Error,
    /// How many there were in a row.
    count: u32,
    failed_at: Stopwatch,
    logged_at: Stopwatch,
}

impl KeyFailure {
    /// Whether the error is returned without another request.
    fn is_remembered(&self) -> bool {
        self.failed_at.elapsed() < retry_interval(self.count)
    }
}

/// The time from a failed unwrapping to the next request, after `failures` in a row.
fn retry_interval(failures: u32) -> Duration {
    let factor = 2_u32.saturating_pow(failures.saturating_sub(1));
    FIRST_RETRY_INTERVAL
        .saturating_mul(factor)
        .min(MAX_RETRY_INTERVAL)
}

#[derive(Serialize, Deserialize)]
struct DataKeyRow {
    #[serde(rename = "PK")]
    pk: String,
    #[serde(rename = "SK")]
    sk: String,
    wrapped: String,
    /// The ARN of the KMS key that wrapped it; absent in local mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kms_key: Option<String>,
    created_at: Timestamp,
}

/// A new data key, and how it is stored.
struct GeneratedKey {
    material: KeyMaterial,
    wrapped: String,
    kms_key: Option<String>,
}

impl DataKeyCache {
    /// An empty cache.
    pub fn new(provider: KeyProvider) -> Self {
        Self {
            provider,
            slots: Arc::default(),
            active: Arc::default(),
        }
    }

    /// An empty cache of data keys that this KMS key wraps. Without one, secrets are stored
    /// unencrypted.
    pub fn for_kms_key(config: &SdkConfig, key_id: Option<String>) -> Self {
        Self::new(match key_id {
            None => KeyProvider::None,
            Some(key_id) => KeyProvider::Kms {
                client: aws_sdk_kms::Client::new(config),
                key_id,
            },
        })
    }

    fn slot(&self, version: u32) -> Arc<KeySlot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(version).or_default().clone()
    }

    async fn insert(&self, key: Arc<DataKey>) {
        let slot = self.slot(key.version());
        *slot.lock().await = KeyState::Unwrapped(key);
    }
}

impl fmt::Debug for DataKeyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKeyCache(…)")
    }
}

/// The data keys of the tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct DataKeys<'a> {
    table: &'a TableClient,
    cache: &'a DataKeyCache,
}

impl<'a> DataKeys<'a> {
    pub(super) const fn new(table: &'a TableClient, cache: &'a DataKeyCache) -> Self {
        Self { table, cache }
    }

    /// The data key that encrypts. Creates one if the configured key has wrapped none. `None` if
    /// secrets are stored unencrypted.
    pub(super) async fn active(self, now: Timestamp) -> Result<Option<Arc<DataKey>>> {
        if matches!(self.cache.provider, KeyProvider::None) {
            return Ok(None);
        }
        let mut active = self.cache.active.lock().await;
        if let Some(version) = *active {
            return Ok(Some(self.get(version).await?));
        }
        for _ in 0..MAX_TRIES {
            if let Some(key) = self.load_or_create(now).await? {
                *active = Some(key.version());
                return Ok(Some(key));
            }
        }
        Err(created_by_others())
    }

    /// The newest data key if the configured key wrapped it, or a new one. `None` if another
    /// process created it first.
    async fn load_or_create(self, now: Timestamp) -> Result<Option<Arc<DataKey>>> {
        let Some((version, row)) = self.get_newest().await? else {
            return self.create(1, now).await;
        };
        if self.cache.provider.is_current_key(row.kms_key.as_deref()) {
            return Ok(Some(self.get(version).await?));
        }
        self.create(version + 1, now).await
    }

    /// Creates a data key. It encrypts from now on in this process, and in others after their next
    /// start.
    pub(super) async fn rotate(self, now: Timestamp) -> Result<u32> {
        let mut active = self.cache.active.lock().await;
        for _ in 0..MAX_TRIES {
            let mut version = 1;
            if let Some((newest, _)) = self.get_newest().await? {
                // Without this check the tables could end up with no key that decrypts everything.
                self.get(newest).await?;
                version = newest + 1;
            }
            if self.create(version, now).await?.is_some() {
                *active = Some(version);
                return Ok(version);
            }
        }
        Err(created_by_others())
    }

    /// The data key of this version. Only the first caller asks the provider; the others wait for
    /// its result. After a failure, the provider is not asked again before the retry interval has
    /// passed.
    pub(super) async fn get(self, version: u32) -> Result<Arc<DataKey>> {
        let slot = self.cache.slot(version);
        let mut state = slot.lock().await;
        match &*state {
            KeyState::Unwrapped(key) => return Ok(key.clone()),
            KeyState::Unavailable(failure) if failure.is_remembered() => {
                return Err(failure.error.clone());
            }
            KeyState::NotUnwrapped | KeyState::Unavailable(_) => {}
        }
        let loaded = self.load(version).await;
        match &loaded {
            Ok(key) => {
                if let KeyState::Unavailable(_) = *state {
                    tracing::info!(data_key = version, "The data key is available again");
                }
                *state = KeyState::Unwrapped(key.clone());
            }
            Err(error @ Error::KeyUnavailable(_)) => state.record_failure(version, error),
            // The table did not respond, or the item is invalid.
            Err(_) => {}
        }
        loaded
    }

    async fn load(self, version: u32) -> Result<Arc<DataKey>> {
        let row: Option<DataKeyRow> = self.table.get_row(key_schema::data_key(version)).await?;
        let row = row.ok_or_else(|| Error::corrupt_item("data key version: it does not exist"))?;
        let key = self.cache.provider.unwrap_data_key(version, &row).await?;
        Ok(Arc::new(key))
    }

    async fn get_newest(self) -> Result<Option<(u32, DataKeyRow)>> {
        let response = self
            .table
            .query()
            .consistent_read(true)
            .key_condition_expression("PK = :data_keys")
            .expression_attribute_values(":data_keys", attr_s(key_schema::DATA_KEYS))
            .scan_index_forward(false)
            .limit(1)
            .send()
            .await?;
        let Some(item) = response.items.unwrap_or_default().pop() else {
            return Ok(None);
        };
        let row: DataKeyRow = from_item(item)?;
        let version = key_schema::parse_data_key(&row.sk)
            .ok_or_else(|| Error::corrupt_item("data key version"))?;
        Ok(Some((version, row)))
    }

    /// Creates the data key of this version. `None` if it exists.
    async fn create(self, version: u32, now: Timestamp) -> Result<Option<Arc<DataKey>>> {
        let generated = self.cache.provider.generate_data_key(version).await?;
        let PrimaryKey { pk, sk } = key_schema::data_key(version);
        let row = DataKeyRow {
            pk,
            sk,
            wrapped: generated.wrapped,
            kms_key: generated.kms_key,
            created_at: now,
        };
        if !self.table.insert(to_item(&row)?).await?.is_applied() {
            return Ok(None);
        }
        let key = Arc::new(DataKey::new(version, &generated.material));
        self.cache.insert(key.clone()).await;
        Ok(Some(key))
    }
}

impl KeyState {
    /// Remembers a failed unwrapping, and logs it unless that was done a short time ago.
    fn record_failure(&mut self, version: u32, error: &Error) {
        let mut failure = KeyFailure {
            error: error.clone(),
            count: 1,
            failed_at: Stopwatch::start(),
            logged_at: Stopwatch::start(),
        };
        if let Self::Unavailable(previous) = self {
            failure.count = previous.count.saturating_add(1);
            if previous.logged_at.elapsed() < LOG_INTERVAL {
                failure.logged_at = previous.logged_at;
                *self = Self::Unavailable(failure);
                return;
            }
        }
        tracing::error!(
            data_key = version,
            failures = failure.count,
            error = error_chain(error),
            "Could not unwrap a data key; deliveries that need it wait"
        );
        *self = Self::Unavailable(failure);
    }
}

impl KeyProvider {
    /// Whether a data key that `kms_key` wrapped may encrypt. Data keys of a KMS key that was
    /// configured before may not, nor may those that someone with write access to the table added.
    /// If an id or an alias is configured, every data key may.
    fn is_current_key(&self, kms_key: Option<&str>) -> bool {
        match (self, kms_key) {
            (Self::Kms { key_id, .. }, Some(arn)) if key_id.contains(":key/") => key_id == arn,
            _ => true,
        }
    }

    async fn generate_data_key(&self, version: u32) -> Result<GeneratedKey> {
        match self {
            Self::None => Err(no_provider()),
            Self::Local(wrapping_key) => {
                let material = KeyMaterial::from_random(random::bytes());
                let wrapped =
                    material.wrap_with(wrapping_key, &version.to_string(), random::bytes());
                Ok(GeneratedKey {
                    material,
                    wrapped,
                    kms_key: None,
                })
            }
            Self::Kms { client, key_id } => generate_with_kms(client, key_id, version).await,
        }
    }

    /// Unwraps a data key. Most failures are [`Error::KeyUnavailable`]: they end when settings or
    /// permissions are fixed, and until then deliveries wait.
    async fn unwrap_data_key(&self, version: u32, row: &DataKeyRow) -> Result<DataKey> {
        let reason = match (self, &row.kms_key) {
            (Self::Kms { client, .. }, Some(kms_key)) => {
                return unwrap_with_kms(client, kms_key, version, &row.wrapped).await;
            }
            (Self::Local(wrapping_key), None) => {
                let place = version.to_string();
                match KeyMaterial::unwrap_with(wrapping_key, &row.wrapped, &place) {
                    Ok(material) => return Ok(DataKey::new(version, &material)),
                    Err(_) => UnwrapFailure::WrongLocalKey,
                }
            }
            (Self::None, _) => UnwrapFailure::NoKmsKey,
            (Self::Kms { .. }, None) => UnwrapFailure::WrappedLocally,
            (Self::Local(_), Some(_)) => UnwrapFailure::WrappedByKms,
        };
        Err(cannot_unwrap(version, reason))
    }
}

/// Why a data key cannot be unwrapped.
#[derive(Debug, thiserror::Error)]
enum UnwrapFailure {
    #[error("KMS did not respond within {} s", UNWRAP_TIMEOUT.as_secs())]
    NoResponse,
    #[error("it is not valid base64")]
    InvalidBase64,
    #[error("it is not 32 bytes long")]
    InvalidLength,
    #[error(
        "another key than this data directory's wrapped it; use the data directory that the \
         tables were created with, or other tables"
    )]
    WrongLocalKey,
    #[error("SECRETS_KMS_KEY_ID is not set")]
    NoKmsKey,
    #[error("local mode wrapped it, not KMS")]
    WrappedLocally,
    #[error("KMS wrapped it, not local mode")]
    WrappedByKms,
}

#[derive(Debug, thiserror::Error)]
#[error("data key {version} cannot be unwrapped")]
struct CannotUnwrap {
    version: u32,
    #[source]
    reason: UnwrapFailure,
}

fn cannot_unwrap(version: u32, reason: UnwrapFailure) -> Error {
    Error::key_unavailable(CannotUnwrap { version, reason })
}

async fn generate_with_kms(
    client: &aws_sdk_kms::Client,
    key_id: &str,
    version: u32,
) -> Result<GeneratedKey> {
    let response = client
        .generate_data_key()
        .key_id(key_id)
        .key_spec(aws_sdk_kms::types::DataKeySpec::Aes256)
        .encryption_context(ENCRYPTION_CONTEXT_KEY, version.to_string())
        .send()
        .await
        .map_err(kms_error)?;
    let (Some(plaintext), Some(wrapped)) = (response.plaintext, response.ciphertext_blob) else {
        return Err(Error::key_unavailable("KMS returned no data key"));
    };
    let material = KeyMaterial::from_vec(plaintext.into_inner()).ok_or_else(|| {
        Error::key_unavailable("KMS returned a data key that is not 32 bytes long")
    })?;
    Ok(GeneratedKey {
        material,
        wrapped: STANDARD.encode(wrapped),
        kms_key: Some(response.key_id.unwrap_or_else(|| key_id.to_owned())),
    })
}

async fn unwrap_with_kms(
    client: &aws_sdk_kms::Client,
    kms_key: &str,
    version: u32,
    wrapped: &str,
) -> Result<DataKey> {
    let wrapped = STANDARD
        .decode(wrapped)
        .map_err(|_| cannot_unwrap(version, UnwrapFailure::InvalidBase64))?;
    let request = client
        .decrypt()
        .key_id(kms_key)
        .ciphertext_blob(Blob::new(wrapped))
        .encryption_context(ENCRYPTION_CONTEXT_KEY, version.to_string());
    let Ok(response) = timeout(UNWRAP_TIMEOUT, request.send()).await else {
        return Err(cannot_unwrap(version, UnwrapFailure::NoResponse));
    };
    let response = response.map_err(kms_error)?;
    let plaintext = response.plaintext.map(Blob::into_inner).unwrap_or_default();
    let material = KeyMaterial::from_vec(plaintext)
        .ok_or_else(|| cannot_unwrap(version, UnwrapFailure::InvalidLength))?;
    Ok(DataKey::new(version, &material))
}

#[derive(Debug, thiserror::Error)]
#[error("the KMS request failed")]
struct KmsRequestFailed(#[source] Box<dyn std::error::Error + Send + Sync>);

fn kms_error<E, R>(error: SdkError<E, R>) -> Error
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
    R: fmt::Debug + Send + Sync + 'static,
{
    Error::key_unavailable(KmsRequestFailed(error_cause(error)))
}

/// Secrets cannot be encrypted without a key that wraps data keys.
pub(super) fn no_provider() -> Error {
    Error::key_unavailable("no key that wraps data keys is configured")
}

fn created_by_others() -> Error {
    Error::unavailable("other processes are creating a data key")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_interval_doubles_up_to_limit() {
        for (failures, seconds) in [(1, 2), (2, 4), (3, 8), (4, 10), (u32::MAX, 10)] {
            let expected = Duration::from_secs(seconds);
            assert_eq!(retry_interval(failures), expected, "{failures}");
        }
    }
}
