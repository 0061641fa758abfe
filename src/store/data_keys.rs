//! Data keys: they encrypt the secrets of webhooks, and are stored wrapped by a key that is not in
//! the tables.
//!
//! A process unwraps a data key once, and only when a secret needs it. A new data key can be
//! created at any time: secrets that an older one encrypted stay readable.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use aws_config::SdkConfig;
use aws_sdk_kms::{
    error::{ProvideErrorMetadata, SdkError},
    primitives::Blob,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard};

use super::{
    error::{Error, Result},
    item::{attr_s, from_item, to_item},
    key_schema::{self, PrimaryKey},
    table_client::TableClient,
};
use crate::{aws::error_cause, clock::Stopwatch, random};
use nano_webhooks_core::{
    data_key::{DataKey, KeyMaterial},
    timestamp::Timestamp,
};

/// The key of KMS's encryption context, whose value is the data key's version. KMS unwraps a data
/// key only with the same context, and logs it.
pub const ENCRYPTION_CONTEXT_KEY: &str = "nano-webhooks-data-key";
/// How often the newest data key is read again while other processes create one.
const MAX_TRIES: usize = 5;
/// How long a failed unwrapping is remembered, so that waiting requests do not repeat it one after
/// the other.
const UNAVAILABLE_TTL: Duration = Duration::from_secs(2);

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
    /// Locked while a data key is unwrapped, so that concurrent requests unwrap it once.
    state: Arc<Mutex<CacheState>>,
}

#[derive(Default)]
struct CacheState {
    keys: BTreeMap<u32, Arc<DataKey>>,
    /// When unwrapping a data key failed, and why.
    unavailable: BTreeMap<u32, (Stopwatch, Error)>,
    /// The version that encrypts: the newest one when a key was first needed.
    active: Option<u32>,
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
            state: Arc::default(),
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
}

impl fmt::Debug for DataKeyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKeyCache(…)")
    }
}

impl CacheState {
    fn activate(&mut self, key: Arc<DataKey>) {
        self.active = Some(key.version());
        self.keys.insert(key.version(), key);
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
        let mut state = self.cache.state.lock().await;
        if let Some(version) = state.active
            && let Some(key) = state.keys.get(&version)
        {
            return Ok(Some(key.clone()));
        }
        for _ in 0..MAX_TRIES {
            if let Some(key) = self.load_or_create(now).await? {
                let key = Arc::new(key);
                state.activate(key.clone());
                return Ok(Some(key));
            }
        }
        Err(created_by_others())
    }

    /// The newest data key if the configured key wrapped it, or a new one. `None` if another
    /// process created it first.
    async fn load_or_create(self, now: Timestamp) -> Result<Option<DataKey>> {
        let Some((version, row)) = self.get_newest().await? else {
            return self.create(1, now).await;
        };
        if self.cache.provider.is_current_key(row.kms_key.as_deref()) {
            let key = self.cache.provider.unwrap_data_key(version, &row).await?;
            return Ok(Some(key));
        }
        self.create(version + 1, now).await
    }

    /// Creates a data key. It encrypts from now on in this process, and in others after their next
    /// start.
    pub(super) async fn rotate(self, now: Timestamp) -> Result<u32> {
        let mut state = self.cache.state.lock().await;
        for _ in 0..MAX_TRIES {
            let mut version = 1;
            if let Some((newest, row)) = self.get_newest().await? {
                // Without this check the tables could end up with no key that decrypts everything.
                self.cache.provider.unwrap_data_key(newest, &row).await?;
                version = newest + 1;
            }
            if let Some(key) = self.create(version, now).await? {
                state.activate(Arc::new(key));
                return Ok(version);
            }
        }
        Err(created_by_others())
    }

    /// The data key of this version.
    pub(super) async fn get(self, version: u32) -> Result<Arc<DataKey>> {
        let mut state = self.cache.state.lock().await;
        if let Some(key) = state.keys.get(&version) {
            return Ok(key.clone());
        }
        if let Some((failed_at, error)) = state.unavailable.get(&version)
            && failed_at.elapsed() < UNAVAILABLE_TTL
        {
            return Err(error.clone());
        }
        self.load(version, &mut state).await
    }

    async fn load(
        self,
        version: u32,
        state: &mut MutexGuard<'_, CacheState>,
    ) -> Result<Arc<DataKey>> {
        let row: Option<DataKeyRow> = self.table.get_row(key_schema::data_key(version)).await?;
        let row = row.ok_or_else(|| Error::corrupt_item("data key version: it does not exist"))?;
        match self.cache.provider.unwrap_data_key(version, &row).await {
            Ok(key) => {
                let key = Arc::new(key);
                state.keys.insert(version, key.clone());
                Ok(key)
            }
            Err(error) => {
                if matches!(error, Error::KeyUnavailable(_)) {
                    let failure = (Stopwatch::start(), error.clone());
                    state.unavailable.insert(version, failure);
                }
                Err(error)
            }
        }
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
    async fn create(self, version: u32, now: Timestamp) -> Result<Option<DataKey>> {
        let generated = self.cache.provider.generate_data_key(version).await?;
        let PrimaryKey { pk, sk } = key_schema::data_key(version);
        let row = DataKeyRow {
            pk,
            sk,
            wrapped: generated.wrapped,
            kms_key: generated.kms_key,
            created_at: now,
        };
        if self.table.insert(to_item(&row)?).await?.is_applied() {
            Ok(Some(DataKey::new(version, &generated.material)))
        } else {
            Ok(None)
        }
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
    let response = client
        .decrypt()
        .key_id(kms_key)
        .ciphertext_blob(Blob::new(wrapped))
        .encryption_context(ENCRYPTION_CONTEXT_KEY, version.to_string())
        .send()
        .await
        .map_err(kms_error)?;
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
