//! Secrets at rest: sealed under a data key, which is stored wrapped by a key that the tables do not hold.
//!
//! A data key is unwrapped once in a process's life and only if a secret asks for it. A new one can be started at any time:
//! what an older one sealed stays readable until it is sealed again.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use aws_config::SdkConfig;
use aws_sdk_dynamodb::{error::ProvideErrorMetadata, types::AttributeValue};
use aws_sdk_kms::primitives::Blob;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::{
    Error, Item, Result, Store, corrupt_item, from_item, into_condition_result,
    key_schema::{self, PrimaryKey},
    serialize_error, to_item,
};
use crate::random;
use crate::{aws::format_sdk_error, clock::Stopwatch, concurrency};
use nano_webhooks_core::{
    account_id::AccountId,
    data_key::{DataKey, KeyMaterial},
    secret::Secret,
    timestamp::Timestamp,
    webhook::WebhookId,
};

/// What KMS is told of a data key beside the key itself, so that it unwraps it for this purpose and version alone, and its
/// log says what for.
pub const ENCRYPTION_CONTEXT_KEY: &str = "nano-webhooks-data-key";
/// How often a data key is looked for again when others start one at the same time.
const MAX_TRIES: usize = 5;

/// How long a data key that cannot be unwrapped is not asked for again: those who wait for it do not queue up for one refusal
/// after the other.
const UNAVAILABLE_TTL: Duration = Duration::from_secs(2);
/// How many secrets are sealed anew at the same time.
const REENCRYPT_CONCURRENCY: usize = 16;
/// The attribute of a webhook that holds its secrets.
pub(super) const SECRETS: &str = "secrets";

/// What became of a part of the secrets that were to be sealed anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReencryptStats {
    /// Webhooks whose secrets were sealed anew.
    pub sealed: u64,
    /// Webhooks whose secrets were so already, or that have none.
    pub kept: u64,
    /// Webhooks that others changed at the same time: to be looked at again.
    pub changed: u64,
}

/// Where sealing anew goes on.
#[derive(Clone, Debug)]
pub struct ReencryptCursor(Item);

/// What wraps the data keys.
#[derive(Clone)]
pub enum KeyProvider {
    /// There are none: secrets are stored as they are, readable to all who can read the table.
    None,
    /// A key of AWS KMS.
    Kms {
        /// The client.
        client: aws_sdk_kms::Client,
        /// The key's id, ARN or alias.
        key_id: String,
    },
    /// A key that this process holds, as local mode does.
    Local(KeyMaterial),
}

impl KeyProvider {
    /// Whether a data key that `kms_key` wrapped may seal: not one of a KMS key that was set before, nor one that somebody who
    /// writes the table has put there. An id or an alias is not told from another key's ARN.
    fn is_of(&self, kms_key: Option<&str>) -> bool {
        match (self, kms_key) {
            (Self::Kms { key_id, .. }, Some(of)) if key_id.contains(":key/") => key_id == of,
            _ => true,
        }
    }
}

/// The data keys, as far as they have been needed.
#[derive(Clone)]
pub struct DataKeyCache {
    wrapping: KeyProvider,
    /// Held while one is loaded, so that all who need it wait for one unwrapping.
    known: Arc<Mutex<CacheState>>,
}

#[derive(Default)]
struct CacheState {
    keys: BTreeMap<u32, Arc<DataKey>>,
    /// Those that could not be unwrapped, and why: they are not asked for again for a while.
    locked: BTreeMap<u32, (Stopwatch, String)>,
    /// The version that seals: the newest that there was when one was first needed.
    sealing: Option<u32>,
}

impl DataKeyCache {
    /// A cache of data keys that this KMS key wraps. Without one, secrets are stored unencrypted.
    pub fn for_kms_key(config: &SdkConfig, key_id: Option<String>) -> Self {
        Self::new(match key_id {
            None => KeyProvider::None,
            Some(key_id) => KeyProvider::Kms {
                client: aws_sdk_kms::Client::new(config),
                key_id,
            },
        })
    }

    /// A vault whose data keys are wrapped so.
    pub fn new(wrapping: KeyProvider) -> Self {
        Self {
            wrapping,
            known: Arc::default(),
        }
    }
}

impl fmt::Debug for DataKeyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vault(…)")
    }
}

/// A secret as it is stored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSecret {
    #[serde(flatten)]
    form: SecretEncoding,
    /// When it signs no more, because a newer one has taken its place; absent: it is the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

impl StoredSecret {
    /// Whether it signs at `now`.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| until > now)
    }

    /// When it signs no more.
    pub const fn until(&self) -> Option<Timestamp> {
        self.until
    }

    /// The same secret, signing until `until` at the latest.
    #[must_use]
    pub fn ending(self, until: Timestamp) -> Self {
        let until = self.until.map_or(until, |before| before.min(until));
        Self {
            until: Some(until),
            ..self
        }
    }
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum SecretEncoding {
    /// Under the data key of this version.
    Sealed { data_key: u32, sealed: String },
    /// As it is.
    Plain { plain: Zeroizing<String> },
}

impl fmt::Debug for StoredSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoredSecret(…)")
    }
}

/// The hash of a request, as it is stored: keyed where there are data keys, since the request may hold a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    fingerprint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_key: Option<u32>,
}

#[derive(Serialize, Deserialize)]
struct DataKeyRow {
    #[serde(rename = "PK")]
    pk: String,
    #[serde(rename = "SK")]
    sk: String,
    wrapped: String,
    /// The KMS key that wrapped it; absent: that of local mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kms_key: Option<String>,
    created_at: Timestamp,
}

/// See [`Store::secrets`].
#[derive(Clone, Copy, Debug)]
pub struct Secrets<'a> {
    store: &'a Store,
}

impl<'a> Secrets<'a> {
    pub(super) const fn new(store: &'a Store) -> Self {
        Self { store }
    }
}

impl Secrets<'_> {
    /// The data key that secrets are sealed with from now on, a new one if there is none yet that the set key wrapped; `None` if
    /// they are stored as they are.
    ///
    /// # Errors
    /// If DynamoDB or KMS does not answer, or the newest data key was wrapped by another key.
    pub async fn active_data_key(self, now: Timestamp) -> Result<Option<Arc<DataKey>>> {
        if matches!(self.store.vault.wrapping, KeyProvider::None) {
            return Ok(None);
        }
        let mut known = self.store.vault.known.lock().await;
        if let Some(key) = known.sealing.and_then(|version| known.keys.get(&version)) {
            return Ok(Some(key.clone()));
        }
        for _ in 0..MAX_TRIES {
            let newest = self.newest_data_key().await?;
            let version = newest.as_ref().map_or(0, |(version, _)| *version);
            let key = match newest
                .filter(|(_, row)| self.store.vault.wrapping.is_of(row.kms_key.as_deref()))
            {
                Some((version, row)) => Arc::new(self.unwrap_data_key(version, &row).await?),
                None => match self.create_data_key(version + 1, now).await? {
                    Some(key) => Arc::new(key),
                    None => continue,
                },
            };
            known.sealing = Some(key.version());
            known.keys.insert(key.version(), key.clone());
            return Ok(Some(key));
        }
        Err(Error::Unavailable(
            "a data key is being started by others".to_owned(),
        ))
    }

    /// Starts a new data key, which seals from now on: in this process at once, in others from their next start.
    ///
    /// # Errors
    /// If DynamoDB or KMS does not answer, or nothing wraps data keys.
    pub async fn rotate_data_key(self, now: Timestamp) -> Result<u32> {
        let mut known = self.store.vault.known.lock().await;
        for _ in 0..MAX_TRIES {
            let newest = self.newest_data_key().await?;
            // A new one beside one that does not open would leave the tables with no key that opens everything.
            if let Some((version, row)) = &newest {
                self.unwrap_data_key(*version, row).await?;
            }
            if let Some(key) = self
                .create_data_key(newest.map_or(0, |(version, _)| version) + 1, now)
                .await?
            {
                let version = key.version();
                known.sealing = Some(version);
                known.keys.insert(version, Arc::new(key));
                return Ok(version);
            }
        }
        Err(Error::Unavailable(
            "a data key is being started by others".to_owned(),
        ))
    }

    /// A webhook's secrets that are live, the newest first.
    ///
    /// # Errors
    /// [`Error::Internal`] if a secret was not sealed for this webhook, and never will open; others if it does not for now.
    pub async fn decrypt_active(
        self,
        account: &AccountId,
        webhook: WebhookId,
        stored: &[StoredSecret],
        now: Timestamp,
    ) -> Result<Vec<Secret>> {
        let mut secrets = Vec::with_capacity(stored.len());
        for secret in stored {
            if secret.is_live(now) {
                secrets.push(self.decrypt(account, webhook, secret).await?);
            }
        }
        Ok(secrets)
    }

    /// Seals a part of all stored secrets anew, those that the data key which seals now has not sealed, and says where to go on;
    /// `None`: it was the last part.
    ///
    /// # Errors
    /// If DynamoDB or KMS does not answer, or a secret was not sealed for its webhook.
    pub async fn reencrypt_page(
        self,
        from: Option<ReencryptCursor>,
        now: Timestamp,
    ) -> Result<(ReencryptStats, Option<ReencryptCursor>)> {
        let key = self.active_data_key(now).await?;
        let key = key.ok_or_else(|| {
            Error::KeyUnavailable("nothing is set that could wrap a data key".to_owned())
        })?;
        let scan = self
            .store
            .client
            .scan()
            .table_name(&self.store.tables.webhooks)
            .consistent_read(true)
            .filter_expression("begins_with(SK, :webhook) AND attribute_exists(#secrets)")
            .expression_attribute_names("#secrets", SECRETS)
            .expression_attribute_values(
                ":webhook",
                AttributeValue::S(key_schema::WEBHOOK_PREFIX.to_owned()),
            )
            .set_exclusive_start_key(from.map(|ReencryptCursor(key)| key));
        let page = scan.send().await?;
        let items = page.items.unwrap_or_default();
        let mut resealed = ReencryptStats::default();
        for done in concurrency::join_bounded(
            items
                .into_iter()
                .map(|item| self.reencrypt_webhook(item, &key))
                .collect(),
            REENCRYPT_CONCURRENCY,
        )
        .await
        {
            match done? {
                Some(true) => resealed.sealed += 1,
                Some(false) => resealed.changed += 1,
                None => resealed.kept += 1,
            }
        }
        Ok((resealed, page.last_evaluated_key.map(ReencryptCursor)))
    }

    /// Whether it was sealed anew, or changed by others meanwhile; `None` if there was nothing to do.
    async fn reencrypt_webhook(self, item: Item, key: &DataKey) -> Result<Option<bool>> {
        let text = |name: &str| item.get(name).and_then(|value| value.as_s().ok());
        let webhook = text(key_schema::PK).and_then(|pk| key_schema::parse_account(pk));
        let webhook =
            webhook.zip(text(key_schema::SK).and_then(|sk| key_schema::parse_webhook(sk)));
        let (Some((account, id)), Some(before)) = (webhook, item.get(SECRETS)) else {
            return Ok(None);
        };
        let unreadable = |_| corrupt_item("list of secrets");
        let mut secrets: Vec<StoredSecret> =
            serde_dynamo::from_attribute_value(before.clone()).map_err(unreadable)?;
        let sealed = |form: &SecretEncoding| matches!(form, SecretEncoding::Sealed { data_key, .. } if *data_key == key.version());
        if secrets.iter().all(|secret| sealed(&secret.form)) {
            return Ok(None);
        }
        for secret in &mut secrets {
            secret.form = encrypt_secret(
                Some(key),
                &account,
                id,
                &self.decrypt(&account, id, secret).await?,
            )
            .form;
        }
        let update = self
            .store
            .client
            .update_item()
            .table_name(&self.store.tables.webhooks)
            .set_key(Some(key_schema::webhook(&account, id).into_item()))
            .update_expression("SET #secrets = :after")
            .condition_expression("#secrets = :before")
            .expression_attribute_names("#secrets", SECRETS)
            .expression_attribute_values(":before", before.clone())
            .expression_attribute_values(
                ":after",
                serde_dynamo::to_attribute_value(secrets).map_err(serialize_error)?,
            );
        into_condition_result(update.send().await).map(Some)
    }

    async fn decrypt(
        self,
        account: &AccountId,
        id: WebhookId,
        stored: &StoredSecret,
    ) -> Result<Secret> {
        match &stored.form {
            SecretEncoding::Plain { plain } => {
                Secret::parse(plain.to_string()).map_err(|_| corrupt_item("secret"))
            }
            SecretEncoding::Sealed { data_key, sealed } => {
                let key = self.data_key(*data_key).await?;
                key.decrypt(account, id, sealed)
                    .map_err(|_| corrupt_item("secret: it was not sealed for this webhook"))
            }
        }
    }

    /// The fingerprint of what has this hash, by the data key that seals.
    pub(super) async fn fingerprint(
        self,
        sha256: &[u8; 32],
        now: Timestamp,
    ) -> Result<Fingerprint> {
        Ok(match self.active_data_key(now).await? {
            None => Fingerprint {
                fingerprint: hex::encode(sha256),
                data_key: None,
            },
            Some(key) => Fingerprint {
                fingerprint: key.fingerprint(sha256),
                data_key: Some(key.version()),
            },
        })
    }

    /// Whether `encrypt_secret` is the fingerprint of what has this hash.
    pub(super) async fn fingerprint_matches(
        self,
        stored: &Fingerprint,
        sha256: &[u8; 32],
    ) -> Result<bool> {
        Ok(stored.fingerprint
            == match stored.data_key {
                None => hex::encode(sha256),
                Some(version) => self.data_key(version).await?.fingerprint(sha256),
            })
    }

    /// The data key of this version.
    async fn data_key(self, version: u32) -> Result<Arc<DataKey>> {
        let mut known = self.store.vault.known.lock().await;
        if let Some(key) = known.keys.get(&version) {
            return Ok(key.clone());
        }
        if let Some((since, why)) = known.locked.get(&version)
            && since.elapsed() < UNAVAILABLE_TTL
        {
            return Err(Error::KeyUnavailable(why.clone()));
        }
        let item = self.store.item(key_schema::data_key(version)).await?;
        let row = from_item(
            item.ok_or_else(|| corrupt_item("data key version: there is no such data key"))?,
        )?;
        match self.unwrap_data_key(version, &row).await {
            Ok(key) => {
                let key = Arc::new(key);
                known.keys.insert(version, key.clone());
                Ok(key)
            }
            Err(Error::KeyUnavailable(why)) => {
                known
                    .locked
                    .insert(version, (Stopwatch::start(), why.clone()));
                Err(Error::KeyUnavailable(why))
            }
            Err(error) => Err(error),
        }
    }

    async fn newest_data_key(self) -> Result<Option<(u32, DataKeyRow)>> {
        let query = self
            .store
            .client
            .query()
            .table_name(&self.store.tables.webhooks)
            .consistent_read(true)
            .key_condition_expression("PK = :data_keys")
            .expression_attribute_values(
                ":data_keys",
                AttributeValue::S(key_schema::DATA_KEYS.to_owned()),
            )
            .scan_index_forward(false)
            .limit(1);
        let Some(item) = query.send().await?.items.unwrap_or_default().pop() else {
            return Ok(None);
        };
        let row: DataKeyRow = from_item(item)?;
        let version =
            key_schema::parse_data_key(&row.sk).ok_or_else(|| corrupt_item("data key version"))?;
        Ok(Some((version, row)))
    }

    /// Starts the data key of this version; `None` if there is one.
    async fn create_data_key(self, version: u32, now: Timestamp) -> Result<Option<DataKey>> {
        let (bytes, wrapped, kms_key) = match &self.store.vault.wrapping {
            KeyProvider::None => {
                return Err(Error::KeyUnavailable(
                    "nothing is set that could wrap a data key".to_owned(),
                ));
            }
            KeyProvider::Local(key) => {
                let bytes = KeyMaterial::from_random(random::bytes());
                let wrapped = bytes.wrap_with(key, &version.to_string(), random::bytes());
                (bytes, wrapped, None)
            }
            KeyProvider::Kms { client, key_id } => {
                let made = client
                    .generate_data_key()
                    .key_id(key_id)
                    .key_spec(aws_sdk_kms::types::DataKeySpec::Aes256)
                    .encryption_context(ENCRYPTION_CONTEXT_KEY, version.to_string())
                    .send()
                    .await
                    .map_err(|error| kms_error(&error))?;
                let missing = || Error::KeyUnavailable("KMS answered without a key".to_owned());
                let bytes = made
                    .plaintext
                    .map(Blob::into_inner)
                    .and_then(KeyMaterial::from_vec)
                    .ok_or_else(missing)?;
                let wrapped = STANDARD.encode(made.ciphertext_blob.ok_or_else(missing)?);
                (
                    bytes,
                    wrapped,
                    Some(made.key_id.unwrap_or_else(|| key_id.clone())),
                )
            }
        };
        let PrimaryKey { pk, sk } = key_schema::data_key(version);
        let row = DataKeyRow {
            pk,
            sk,
            wrapped,
            kms_key,
            created_at: now,
        };
        let put = self
            .store
            .client
            .put_item()
            .table_name(&self.store.tables.webhooks)
            .set_item(Some(to_item(&row)?));
        let started = into_condition_result(
            put.condition_expression("attribute_not_exists(PK)")
                .send()
                .await,
        )?;
        Ok(started.then(|| DataKey::new(version, &bytes)))
    }

    /// What cannot be unwrapped may be another time, when the settings or the permissions are right again: until then what
    /// needs it waits, and is not given up.
    async fn unwrap_data_key(self, version: u32, row: &DataKeyRow) -> Result<DataKey> {
        let wrong = |what: &str| {
            Error::KeyUnavailable(format!("data key {version} cannot be unwrapped: {what}"))
        };
        let bytes = match (&self.store.vault.wrapping, &row.kms_key) {
            (KeyProvider::Kms { client, .. }, Some(kms_key)) => {
                let wrapped = STANDARD.decode(&row.wrapped).map_err(|_| wrong("it is not base64"))?;
                let opened = client
                    .decrypt()
                    .key_id(kms_key)
                    .ciphertext_blob(Blob::new(wrapped))
                    .encryption_context(ENCRYPTION_CONTEXT_KEY, version.to_string())
                    .send()
                    .await
                    .map_err(|error| kms_error(&error))?;
                opened
                    .plaintext
                    .map(Blob::into_inner)
                    .and_then(KeyMaterial::from_vec)
                    .ok_or_else(|| wrong("it has no 32 bytes"))?
            }
            (KeyProvider::Local(key), None) => KeyMaterial::unwrap_with(key, &row.wrapped, &version.to_string())
                .map_err(|_| wrong("it was wrapped by another key than this data directory's; use the one that the tables were begun with, or other tables"))?,
            (KeyProvider::None, _) => return Err(wrong("SECRETS_KMS_KEY_ID is not set")),
            (KeyProvider::Kms { .. }, None) => return Err(wrong("local mode wrapped it, not KMS")),
            (KeyProvider::Local(_), Some(_)) => return Err(wrong("KMS wrapped it, not local mode")),
        };
        Ok(DataKey::new(version, &bytes))
    }
}

/// A secret as it is to be stored: sealed by `key` if there is one.
pub(super) fn encrypt_secret(
    key: Option<&DataKey>,
    account: &AccountId,
    id: WebhookId,
    secret: &Secret,
) -> StoredSecret {
    let form = match key {
        None => SecretEncoding::Plain {
            plain: Zeroizing::new(secret.expose().to_owned()),
        },
        Some(key) => SecretEncoding::Sealed {
            data_key: key.version(),
            sealed: key.encrypt(account, id, secret, random::bytes()),
        },
    };
    StoredSecret { form, until: None }
}

/// KMS did not do as it was asked.
fn kms_error<E, R>(error: &aws_sdk_kms::error::SdkError<E, R>) -> Error
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
    R: fmt::Debug + 'static,
{
    Error::KeyUnavailable(format!("KMS: {}", format_sdk_error(error)))
}
