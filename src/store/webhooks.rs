//! Webhooks, and the health of their endpoints.

use std::time::Duration;

use aws_sdk_dynamodb::types::{Update, builders::UpdateBuilder};
use serde::Deserialize;

use super::{
    creation::{AccountCounters, CreateConflict, CreateRequest, CreateRetry, IdempotencyKeyRow},
    deliveries::Deliveries,
    error::{Error, Result},
    item::{Item, attr_n, attr_s, from_item, text, to_attribute},
    key_schema, markers,
    notifications::{Notifications, OperatorNotices},
    rotation::{RotateOutcome, TooManyActiveSecrets, apply_rotation},
    secrets::{Credentials, SECRETS, Secrets, StoredSecret},
    stored_headers::StoredHeaders,
    table_client::{
        TRANSACTION_RETRY_LIMIT, TableClient, WriteOutcome, cancellation_reasons,
        sleep_with_backoff, too_many_conflicts,
    },
    tables::REVISION,
    update::WebhookUpdate,
    webhook_row::WebhookRow,
};
use crate::{clock::Deadline, error_chain::error_chain};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{endpoint_health::EndpointHealth, wait_reason::WaitReason},
    operational_event::OperationalEvent,
    secret::Secret,
    timestamp::Timestamp,
    webhook::{Webhook, WebhookId, WebhookStatus},
};

pub use super::{
    creation::{CreateOutcome, IdempotencyKey, NewWebhook},
    webhook_row::WebhookMetadata,
};

/// How long a rotation is retried while other requests change the same webhook.
const ROTATION_RETRY_LIMIT: Duration = Duration::from_secs(5);

/// A webhook and what is stored with it.
#[derive(Clone, Debug)]
pub struct WebhookRecord {
    /// The webhook.
    pub webhook: Webhook,
    /// The stored secrets, the newest first. Without any, requests are not signed.
    pub secrets: Vec<StoredSecret>,
    /// The stored static headers; `None` if there are none.
    pub headers: Option<StoredHeaders>,
    /// The health of its endpoint.
    pub health: EndpointHealth,
    /// The number of writes of the health; 0 if an earlier version wrote it.
    pub(super) health_revision: u64,
    /// What is shown of the webhook and decides nothing.
    pub metadata: WebhookMetadata,
}

impl WebhookRecord {
    /// Why a pending delivery of the webhook waits. See [`WaitReason::explain`].
    pub fn explain_wait(
        &self,
        next_attempt_at: Option<Timestamp>,
        stored: Option<WaitReason>,
    ) -> WaitReason {
        WaitReason::explain(next_attempt_at, stored, self.webhook.status, &self.health)
    }
}

/// A webhook whose item is invalid.
#[derive(Clone, Debug, thiserror::Error)]
#[error("webhook {id} cannot be read")]
pub struct UnreadableWebhook {
    /// The webhook's id, from the item's key.
    pub id: WebhookId,
    /// Why it is invalid.
    #[source]
    pub error: Error,
}

impl From<UnreadableWebhook> for Error {
    fn from(unreadable: UnreadableWebhook) -> Self {
        unreadable.error
    }
}

/// See [`Store::webhooks`](super::Store::webhooks).
#[derive(Clone, Copy, Debug)]
pub struct Webhooks<'a> {
    table: &'a TableClient,
    deliveries: Deliveries<'a>,
    secrets: Secrets<'a>,
    operator_notices: OperatorNotices,
}

impl<'a> Webhooks<'a> {
    pub(super) const fn new(
        table: &'a TableClient,
        deliveries: Deliveries<'a>,
        secrets: Secrets<'a>,
        operator_notices: OperatorNotices,
    ) -> Self {
        Self {
            table,
            deliveries,
            secrets,
            operator_notices,
        }
    }
}

impl Webhooks<'_> {
    /// The account's webhooks in id order, strongly consistent. One invalid item fails the whole
    /// list.
    pub async fn list(self, account: &AccountId) -> Result<Vec<Webhook>> {
        let mut webhooks = Vec::new();
        for record in self.list_records(account).await? {
            webhooks.push(record?.webhook);
        }
        Ok(webhooks)
    }

    /// The account's webhooks in id order with their health, strongly consistent. An invalid item
    /// is an error in its place.
    pub async fn list_records(
        self,
        account: &AccountId,
    ) -> Result<Vec<std::result::Result<WebhookRecord, UnreadableWebhook>>> {
        self.query_records(account, key_schema::WEBHOOK_PREFIX)
            .await
    }

    /// A webhook with its health, strongly consistent. The error is [`Error::Unreadable`] if its
    /// item is invalid.
    pub async fn get_record(
        self,
        account: &AccountId,
        id: WebhookId,
    ) -> Result<Option<WebhookRecord>> {
        let prefix = key_schema::webhook(account, id).sk;
        match self.query_records(account, &prefix).await?.pop() {
            Some(record) => Ok(Some(record?)),
            None => Ok(None),
        }
    }

    async fn query_records(
        self,
        account: &AccountId,
        prefix: &str,
    ) -> Result<Vec<std::result::Result<WebhookRecord, UnreadableWebhook>>> {
        let mut items = self
            .table
            .query()
            .consistent_read(true)
            .key_condition_expression("PK = :account AND begins_with(SK, :webhook)")
            .expression_attribute_values(
                ":account",
                attr_s(&key_schema::account_partition(account)),
            )
            .expression_attribute_values(":webhook", attr_s(prefix))
            .into_paginator()
            .items()
            .send();
        let mut records = Vec::new();
        while let Some(item) = items.next().await {
            add_item(&mut records, account, item?);
        }
        Ok(records)
    }

    /// Decrypts what the requests to a webhook's endpoint need at `now`. The error is
    /// [`Error::Unreadable`] if a part was encrypted for another webhook, which never changes.
    pub async fn decrypt_credentials(
        self,
        account: &AccountId,
        record: &WebhookRecord,
        now: Timestamp,
    ) -> Result<Credentials> {
        let id = record.webhook.id;
        let secrets = &record.secrets;
        let secrets = self
            .secrets
            .decrypt_active(account, id, secrets, now)
            .await?;
        let headers = record.headers.as_ref();
        let headers = self.secrets.decrypt_headers(account, id, headers).await?;
        Ok(Credentials { secrets, headers })
    }

    /// Whether the account has or had a webhook with this id. Deliveries of a deleted webhook stay
    /// readable.
    pub async fn ever_existed(self, account: &AccountId, id: WebhookId) -> Result<bool> {
        Ok(id.get() <= self.get_counters(account).await?.last_id)
    }

    async fn get_counters(self, account: &AccountId) -> Result<AccountCounters> {
        let counters = self
            .table
            .get_row(key_schema::account_counters(account))
            .await?;
        Ok(counters.unwrap_or_default())
    }

    /// Creates a webhook, unless the account is at its limit or the `Idempotency-Key` was used
    /// before.
    pub async fn create(
        self,
        account: &AccountId,
        new: &NewWebhook,
        limit: u32,
        idempotency: Option<&IdempotencyKey>,
        now: Timestamp,
    ) -> Result<CreateOutcome> {
        if let Some(key) = idempotency {
            let key_of_record = key_schema::idempotency(account, &key.key);
            let record = self.table.get(key_of_record).await?;
            if let Some(outcome) = self.idempotent_response(record, key, now).await? {
                return Ok(outcome);
            }
        }
        let data_key = if new.needs_data_key() {
            self.secrets.active_data_key(now).await?
        } else {
            None
        };
        let fingerprint = match idempotency {
            Some(key) => Some((key, self.secrets.fingerprint(&key.request_hash, now).await?)),
            None => None,
        };
        let request = CreateRequest {
            account,
            new,
            limit,
            data_key,
            idempotency: fingerprint,
            now,
        };
        self.write_new_webhook(&request).await
    }

    /// Retries the create transaction with the next free id until it is applied or decided
    /// otherwise.
    async fn write_new_webhook(self, request: &CreateRequest<'_>) -> Result<CreateOutcome> {
        let mut last_id = self.get_counters(request.account).await?.last_id;
        let deadline = Deadline::from_now(TRANSACTION_RETRY_LIMIT);
        let mut retries = 0;
        while !deadline.remaining().is_zero() {
            let webhook = request.next_webhook(last_id)?;
            let writes = request.create_transaction(self.table, &webhook, last_id)?;
            let reasons = match self.table.try_transact_write(writes).await {
                Ok(_) => return Ok(CreateOutcome::Webhook(webhook)),
                Err(error) => cancellation_reasons(error)?,
            };
            let mut conflict = CreateConflict::from_reasons(reasons)?;
            if let Some((key, _)) = &request.idempotency {
                let record = conflict.idempotency_record.take();
                if let Some(outcome) = self.idempotent_response(record, key, request.now).await? {
                    return Ok(outcome);
                }
            }
            last_id = match conflict.decide_retry(request.limit) {
                CreateRetry::LimitReached => return Ok(CreateOutcome::LimitReached),
                CreateRetry::WithLastId(last_id) => last_id,
                CreateRetry::AfterReadingCounters => {
                    sleep_with_backoff(retries).await;
                    self.get_counters(request.account).await?.last_id
                }
            };
            retries += 1;
        }
        Err(too_many_conflicts())
    }

    /// The outcome that the record of an `Idempotency-Key` determines; `None` if there is no record
    /// or it has expired.
    async fn idempotent_response(
        self,
        record: Option<Item>,
        key: &IdempotencyKey,
        now: Timestamp,
    ) -> Result<Option<CreateOutcome>> {
        let Some(record) = record else {
            return Ok(None);
        };
        let record: IdempotencyKeyRow = from_item(record)?;
        if record.is_expired(now) {
            return Ok(None);
        }
        let is_same_request = self
            .secrets
            .fingerprint_matches(&record.fingerprint, &key.request_hash)
            .await?;
        if is_same_request {
            Ok(Some(CreateOutcome::Webhook(record.into_webhook()?)))
        } else {
            Ok(Some(CreateOutcome::IdempotencyKeyReused))
        }
    }

    /// Changes a webhook, if it exists.
    pub async fn update(
        self,
        account: &AccountId,
        id: WebhookId,
        update: &WebhookUpdate,
        now: Timestamp,
    ) -> Result<WriteOutcome> {
        let secrets = match &update.secret {
            None => None,
            Some(None) => Some(Vec::new()),
            Some(Some(secret)) => Some(vec![self.secrets.encrypt(account, id, secret, now).await?]),
        };
        let headers = match &update.headers {
            None => None,
            Some(headers) => Some(
                self.secrets
                    .encrypt_headers(account, id, headers, now)
                    .await?,
            ),
        };
        let update_webhook = update.build_update(secrets, headers, now)?;
        let mut writes = vec![
            self.table
                .transact_update(key_schema::webhook(account, id), update_webhook),
        ];
        if update.resets_health() {
            // With the health, an open breaker is forgotten, so what waited for it is resumed.
            let health = key_schema::health(account, id);
            let open_breaker = key_schema::open_breaker(account, id);
            let resume = markers::transact_start_resume(self.table, account, id, now);
            writes.push(self.table.transact_delete(health));
            writes.push(self.table.transact_delete(open_breaker));
            writes.push(resume);
        }
        Ok(self.table.transact_write(writes).await?.into())
    }

    /// What an operational event leads to: deliveries to the account's other webhooks that
    /// subscribe, and a notice for the operator. Webhooks that cannot be read are left out.
    pub async fn notify(
        self,
        account: &AccountId,
        event: &OperationalEvent,
        now: Timestamp,
    ) -> Result<Notifications> {
        let records = self.list_records(account).await?;
        let readable = records.into_iter().flatten();
        let webhooks: Vec<_> = readable.map(|record| record.webhook).collect();
        let notices = self.operator_notices;
        Ok(Notifications::new(account, event, &webhooks, notices, now))
    }

    /// Disables a webhook and records the `notifications` that report it, all or nothing. The
    /// condition fails if the webhook is not active or has another URL by now.
    pub async fn disable(
        self,
        account: &AccountId,
        webhook: &Webhook,
        reason: &str,
        notifications: &Notifications,
        now: Timestamp,
        retention: Duration,
    ) -> Result<WriteOutcome> {
        let key = key_schema::webhook(account, webhook.id);
        let mut writes = vec![
            self.table
                .transact_update(key, disable_if_active(webhook, reason, now)),
        ];
        writes.extend(notifications.transact_puts(self.table, self.deliveries, now, retention));
        Ok(self.table.transact_write(writes).await?.into())
    }

    /// Deletes a webhook, if it exists. Its paused deliveries are resumed, so that they become due
    /// and are cancelled.
    pub async fn delete(
        self,
        account: &AccountId,
        id: WebhookId,
        now: Timestamp,
    ) -> Result<WriteOutcome> {
        let count = Update::builder()
            .update_expression("ADD webhooks :minus_one")
            .expression_attribute_values(":minus_one", attr_n(-1));
        let writes = vec![
            self.table
                .transact_delete_existing(key_schema::webhook(account, id)),
            self.table.transact_delete(key_schema::health(account, id)),
            self.table.transact_delete(key_schema::pace(account, id)),
            self.table
                .transact_delete(key_schema::open_breaker(account, id)),
            markers::transact_start_resume(self.table, account, id, now),
            self.table
                .transact_update(key_schema::account_counters(account), count),
        ];
        Ok(self.table.transact_write(writes).await?.into())
    }

    /// Makes `secret` the newest one. The present secrets sign for `grace`, or expire at once if
    /// that is zero.
    pub async fn rotate_secret(
        self,
        account: &AccountId,
        id: WebhookId,
        secret: &Secret,
        grace: Duration,
        now: Timestamp,
    ) -> Result<RotateOutcome> {
        let new = self.secrets.encrypt(account, id, secret, now).await?;
        let deadline = Deadline::from_now(ROTATION_RETRY_LIMIT);
        let mut retries = 0;
        while !deadline.remaining().is_zero() {
            let Some(record) = self.get_record(account, id).await? else {
                return Ok(RotateOutcome::NotFound);
            };
            let current = record.secrets;
            // The SDK retries after a lost response, and then the condition fails although the
            // rotation was applied.
            if retries > 0 && current.first() == Some(&new) {
                return Ok(RotateOutcome::from_secrets(&current));
            }
            let updated = match apply_rotation(&current, new.clone(), grace, now) {
                Ok(updated) => updated,
                Err(TooManyActiveSecrets { until }) => {
                    return Ok(RotateOutcome::TooManyActive { until });
                }
            };
            let write = self.replace_secrets(account, id, &current, &updated, now);
            if write.await?.is_applied() {
                return Ok(RotateOutcome::from_secrets(&updated));
            }
            sleep_with_backoff(retries).await;
            retries += 1;
        }
        Err(too_many_conflicts())
    }

    async fn replace_secrets(
        self,
        account: &AccountId,
        id: WebhookId,
        current: &[StoredSecret],
        updated: &[StoredSecret],
        now: Timestamp,
    ) -> Result<WriteOutcome> {
        let response = self
            .table
            .update(key_schema::webhook(account, id))
            .update_expression("SET #secrets = :updated, updated_at = :now")
            .condition_expression("#secrets = :current")
            .expression_attribute_names("#secrets", SECRETS)
            .expression_attribute_values(":current", to_attribute(&current)?)
            .expression_attribute_values(":updated", to_attribute(&updated)?)
            .expression_attribute_values(":now", attr_n(now.as_unix_millis()))
            .send()
            .await;
        WriteOutcome::from_response(response)
    }
}

/// Adds the next item under an account's webhook prefix: a webhook, or the health of the webhook
/// before it.
fn add_item(
    records: &mut Vec<std::result::Result<WebhookRecord, UnreadableWebhook>>,
    account: &AccountId,
    item: Item,
) {
    let Some(sort_key) = text(&item, key_schema::SK) else {
        return;
    };
    if let Some(id) = key_schema::parse_webhook(sort_key) {
        records.push(parse_record(id, item).map_err(|error| UnreadableWebhook { id, error }));
    } else if let Some(Ok(last)) = records.last_mut()
        // The health of a deleted webhook is ignored.
        && sort_key == key_schema::health(account, last.webhook.id).sk
    {
        let stored = parse_health(account, last.webhook.id, item);
        last.health = stored.health;
        last.health_revision = stored.revision;
    }
}

/// The stored form of an endpoint's health.
#[derive(Default, Deserialize)]
struct HealthRow {
    #[serde(flatten)]
    health: EndpointHealth,
    #[serde(default)]
    revision: u64,
}

fn parse_record(id: WebhookId, item: Item) -> Result<WebhookRecord> {
    let row: WebhookRow = from_item(item)?;
    Ok(WebhookRecord {
        webhook: row.fields.into_webhook(id)?,
        secrets: row.secrets,
        headers: row.headers,
        health: EndpointHealth::default(),
        health_revision: 0,
        metadata: row.metadata,
    })
}

/// Health only limits how an endpoint is called, so an invalid item counts as unknown health.
fn parse_health(account: &AccountId, webhook: WebhookId, item: Item) -> HealthRow {
    // Kept if the rest cannot be read, so that the next write replaces the item.
    let revision = stored_revision(&item).unwrap_or_default();
    from_item(item).unwrap_or_else(|error: Error| {
        tracing::error!(
            account = account.as_str(),
            %webhook,
            error = error_chain(&error),
            "Ignored the stored endpoint health: it cannot be read"
        );
        HealthRow {
            health: EndpointHealth::default(),
            revision,
        }
    })
}

fn stored_revision(item: &Item) -> Option<u64> {
    item.get(REVISION)?.as_n().ok()?.parse().ok()
}

fn disable_if_active(webhook: &Webhook, reason: &str, now: Timestamp) -> UpdateBuilder {
    Update::builder()
        .update_expression("SET #status = :disabled, disabled_reason = :reason, updated_at = :now")
        .condition_expression("#status = :active AND #url = :url")
        .expression_attribute_names("#status", "status")
        .expression_attribute_names("#url", "url")
        .expression_attribute_values(":url", attr_s(webhook.url.as_str()))
        .expression_attribute_values(":disabled", attr_s(WebhookStatus::Disabled.as_str()))
        .expression_attribute_values(":active", attr_s(WebhookStatus::Active.as_str()))
        .expression_attribute_values(":reason", attr_s(reason))
        .expression_attribute_values(":now", attr_n(now.as_unix_millis()))
}
