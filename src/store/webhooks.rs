//! Webhooks: listed by one query, created and deleted by one transaction each.

use std::time::Duration;

use aws_sdk_dynamodb::{
    operation::transact_write_items::TransactWriteItemsError,
    types::{
        AttributeValue, CancellationReason, Delete, Put, ReturnValuesOnConditionCheckFailure,
        TransactWriteItem, Update,
    },
};
use serde::{Deserialize, Serialize};

use super::{
    Error, Item, Result, Store, attr_s, corrupt_item, from_item, is_transient,
    key_schema::{self, PrimaryKey},
    secrets::{Fingerprint, StoredSecret, encrypt_secret},
    sleep_with_backoff, to_item,
};
use crate::{aws::format_sdk_error, clock::Deadline};
use nano_webhooks_core::{
    account_id::AccountId,
    data_key::DataKey,
    delivery::{Delivery, endpoint_health::EndpointHealth},
    endpoint_url::EndpointUrl,
    event_type::EventTypes,
    secret::Secret,
    timestamp::Timestamp,
    webhook::{Webhook, WebhookId, WebhookStatus},
};

/// How long a transaction is tried again when others change the same account at the same time. Each round one of them gets
/// through.
pub(super) const TRANSACTION_RETRY_LIMIT: Duration = Duration::from_secs(5);

/// A webhook and the health of its endpoint.
#[derive(Clone, Debug)]
pub struct WebhookRecord {
    /// The webhook.
    pub webhook: Webhook,
    /// The secrets that sign, the newest first, as they are stored; none: callbacks are not signed. [`Store::secrets_of`] opens
    /// them.
    pub secrets: Vec<StoredSecret>,
    /// What is known of its endpoint.
    pub health: EndpointHealth,
    /// What is shown of it beside.
    pub detail: WebhookMetadata,
}

/// What is shown of a webhook, and decides nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookMetadata {
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was changed.
    pub updated_at: Timestamp,
    /// Its owner's note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Why it is disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled_reason: Option<String>,
}

/// What a webhook is created from.
#[derive(Clone, Debug)]
pub struct NewWebhook {
    /// Where callbacks go.
    pub url: EndpointUrl,
    /// What it subscribes to.
    pub events: EventTypes,
    /// What signs; without it callbacks are not signed.
    pub secret: Option<Secret>,
    /// Its owner's note.
    pub description: Option<String>,
}

/// A caller's `Idempotency-Key`: the same key with the same body gives the same webhook until it expires.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    /// The caller's key.
    pub key: String,
    /// The SHA-256 of the request's body.
    pub sha256: [u8; 32],
    /// When the key may be used anew.
    pub expires_at: Timestamp,
}

/// What became of a request to create.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a request")]
pub enum CreateOutcome {
    /// The webhook, new or that of an earlier request with the same `Idempotency-Key` and body, as it was created.
    Webhook(Webhook),
    /// The account has as many webhooks as it may have.
    LimitReached,
    /// The `Idempotency-Key` was used with another body.
    IdempotencyKeyReused,
}

#[derive(Serialize, Deserialize)]
struct WebhookRow {
    #[serde(rename = "PK")]
    pk: String,
    #[serde(rename = "SK")]
    sk: String,
    #[serde(flatten)]
    fields: WebhookFields,
    #[serde(default)]
    secrets: Vec<StoredSecret>,
    #[serde(flatten)]
    detail: WebhookMetadata,
}

/// What a webhook and the record of its creation have in common.
#[derive(Serialize, Deserialize)]
struct WebhookFields {
    url: String,
    events: Vec<String>,
    status: String,
}

#[derive(Serialize, Deserialize)]
struct IdempotencyKeyRow {
    #[serde(rename = "PK")]
    pk: String,
    #[serde(rename = "SK")]
    sk: String,
    #[serde(flatten)]
    fingerprint: Fingerprint,
    id: u64,
    #[serde(flatten)]
    fields: WebhookFields,
    expires_at: i64,
}

#[derive(Default, Deserialize)]
pub(super) struct AccountCounters {
    pub(super) last_id: u64,
    webhooks: u64,
}

/// See [`Store::webhooks`].
#[derive(Clone, Copy, Debug)]
pub struct Webhooks<'a> {
    pub(super) store: &'a Store,
}

impl<'a> Webhooks<'a> {
    pub(super) const fn new(store: &'a Store) -> Self {
        Self { store }
    }
}

impl Webhooks<'_> {
    /// All webhooks of an account in id order.
    ///
    /// # Errors
    /// If DynamoDB does not answer, or holds an item that breaks the rules.
    pub async fn list(self, account: &AccountId) -> Result<Vec<Webhook>> {
        let subscribers = self.list_records(account).await?.into_iter();
        subscribers
            .map(|subscriber| subscriber.map(|subscriber| subscriber.webhook))
            .collect()
    }

    /// All webhooks of an account with their health, in id order. One that breaks the rules is an error of its own, which
    /// harms no other.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn list_records(self, account: &AccountId) -> Result<Vec<Result<WebhookRecord>>> {
        self.query_records(account, key_schema::WEBHOOK_PREFIX)
            .await
    }

    /// One webhook with its health.
    ///
    /// # Errors
    /// If DynamoDB does not answer, or holds an item that breaks the rules.
    pub async fn get_record(
        self,
        account: &AccountId,
        id: WebhookId,
    ) -> Result<Option<WebhookRecord>> {
        self.query_records(account, &key_schema::webhook(account, id).sk)
            .await?
            .pop()
            .transpose()
    }

    /// From a strongly consistent query: a webhook created a moment ago is among them.
    async fn query_records(
        self,
        account: &AccountId,
        prefix: &str,
    ) -> Result<Vec<Result<WebhookRecord>>> {
        let mut pages = self
            .store
            .client
            .query()
            .table_name(&self.store.tables.webhooks)
            .consistent_read(true)
            .key_condition_expression("PK = :account AND begins_with(SK, :webhook)")
            .expression_attribute_values(
                ":account",
                AttributeValue::S(key_schema::account(account)),
            )
            .expression_attribute_values(":webhook", AttributeValue::S(prefix.to_owned()))
            .into_paginator()
            .items()
            .send();
        let mut subscribers: Vec<Result<WebhookRecord>> = Vec::new();
        while let Some(item) = pages.next().await {
            let item = item?;
            let sk = item
                .get(key_schema::SK)
                .and_then(|sk| sk.as_s().ok())
                .cloned()
                .unwrap_or_default();
            if let Some(id) = key_schema::parse_webhook(&sk) {
                subscribers
                    .push(from_item::<WebhookRow>(item).and_then(|row| row.into_subscriber(id)));
            } else if let Some(Ok(last)) = subscribers.last_mut()
                // Health sorts right behind its webhook; one whose webhook is gone belongs to nobody.
                && sk == key_schema::health(account, last.webhook.id).sk
            {
                // Health is only a hint: what cannot be read is as good as nothing known.
                last.health = from_item(item).unwrap_or_else(|error| {
                    tracing::error!(account = account.as_str(), webhook = %last.webhook.id, %error, "health cannot be read");
                    EndpointHealth::default()
                });
            }
        }
        Ok(subscribers)
    }

    /// Writes down the health of a webhook's endpoint.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn put_health(
        self,
        account: &AccountId,
        id: WebhookId,
        health: &EndpointHealth,
    ) -> Result<()> {
        let mut item = key_schema::health(account, id).into_item();
        item.extend(to_item(health)?);
        self.store
            .client
            .put_item()
            .table_name(&self.store.tables.webhooks)
            .set_item(Some(item))
            .send()
            .await?;
        Ok(())
    }

    /// Disables a webhook and records the deliveries that tell the account's others, all at once or not at all; `false` if it is
    /// not active, or has another URL by now, of which nothing is known.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn disable(
        self,
        account: &AccountId,
        webhook: &Webhook,
        reason: &str,
        tell: &[Delivery],
        now: Timestamp,
        retention: Duration,
    ) -> Result<bool> {
        let update = Update::builder()
            .table_name(&self.store.tables.webhooks)
            .set_key(Some(key_schema::webhook(account, webhook.id).into_item()))
            .update_expression(
                "SET #status = :disabled, disabled_reason = :reason, updated_at = :now",
            )
            .condition_expression("#status = :active AND #url = :url")
            .expression_attribute_names("#status", "status")
            .expression_attribute_names("#url", "url")
            .expression_attribute_values(":url", attr_s(webhook.url.as_str()))
            .expression_attribute_values(":disabled", attr_s(WebhookStatus::Disabled.as_str()))
            .expression_attribute_values(":active", attr_s(WebhookStatus::Active.as_str()))
            .expression_attribute_values(":reason", attr_s(reason))
            .expression_attribute_values(
                ":now",
                AttributeValue::N(now.as_unix_millis().to_string()),
            )
            .build()
            .expect("every required part is set");
        let mut parts = vec![TransactWriteItem::builder().update(update).build()];
        for delivery in tell {
            parts.push(
                self.store
                    .deliveries()
                    .transact_put(delivery, now, retention),
            );
        }
        self.store.transact(parts).await
    }

    /// Creates a webhook: counter, limit, webhook and idempotency record in one transaction, so that two requests at the
    /// same time neither share an id nor pass the limit.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn create(
        self,
        account: &AccountId,
        new: &NewWebhook,
        limit: u32,
        idempotency: Option<&IdempotencyKey>,
        now: Timestamp,
    ) -> Result<CreateOutcome> {
        if let Some(given) = idempotency
            && let Some(record) = self
                .store
                .item(key_schema::idempotency(account, &given.key))
                .await?
            && let Some(answer) = self.idempotent_response(record, given, now).await?
        {
            return Ok(answer);
        }
        let key = if new.secret.is_some() {
            self.store.secrets().active_data_key(now).await?
        } else {
            None
        };
        let fingerprint = match idempotency {
            Some(given) => Some(self.store.secrets().fingerprint(&given.sha256, now).await?),
            None => None,
        };
        let record = idempotency.zip(fingerprint);
        let mut last_id = self.account_counters(account).await?.last_id;
        let deadline = Deadline::from_now(TRANSACTION_RETRY_LIMIT);
        for tried in 0.. {
            if deadline.remaining().is_zero() {
                break;
            }
            let webhook = Webhook {
                id: WebhookId::new(last_id + 1).ok_or_else(|| corrupt_item("webhook counter"))?,
                url: new.url.clone(),
                events: new.events.clone(),
                status: WebhookStatus::Active,
            };
            let transaction = self.create_transaction(
                account,
                new,
                &webhook,
                key.as_deref(),
                last_id,
                limit,
                record.as_ref(),
                now,
            )?;
            let sent = self
                .store
                .client
                .transact_write_items()
                .set_transact_items(Some(transaction))
                .send()
                .await;
            let mut reasons = match sent {
                Ok(_) => return Ok(CreateOutcome::Webhook(webhook)),
                Err(error) => cancellation_reasons(error)?.into_iter(),
            };
            // The reasons stand in the order of the transaction's parts: counter, webhook, idempotency record. They alone say
            // what the counter and the record were at one moment: of two reads, the first may see another transaction and the
            // second not yet, and the request that took the last place would pass for another's.
            let (counter, earlier) = (reasons.next(), reasons.nth(1));
            let undecided = earlier.as_ref().is_some_and(is_conflict);
            if let (Some(given), Some(earlier)) =
                (idempotency, earlier.and_then(|reason| reason.item))
                && let Some(answer) = self.idempotent_response(earlier, given, now).await?
            {
                return Ok(answer);
            }
            let counter: Option<AccountCounters> = counter
                .and_then(|reason| reason.item)
                .map(from_item)
                .transpose()?;
            last_id = match counter.filter(|_| !undecided) {
                Some(counter) if counter.webhooks >= u64::from(limit) => {
                    return Ok(CreateOutcome::LimitReached);
                }
                Some(counter) => counter.last_id,
                None => {
                    sleep_with_backoff(tried).await;
                    self.account_counters(account).await?.last_id
                }
            };
        }
        Err(Error::Unavailable(
            "too many changes of one account at the same time".to_owned(),
        ))
    }

    /// What the account has counted; nothing if it has never had a webhook.
    pub(super) async fn account_counters(self, account: &AccountId) -> Result<AccountCounters> {
        Ok(self
            .store
            .item(key_schema::account_counters(account))
            .await?
            .map(from_item)
            .transpose()?
            .unwrap_or_default())
    }

    /// What an unexpired record of the same `Idempotency-Key` answers; `None` if the record has expired.
    async fn idempotent_response(
        self,
        record: Item,
        given: &IdempotencyKey,
        now: Timestamp,
    ) -> Result<Option<CreateOutcome>> {
        let record: IdempotencyKeyRow = from_item(record)?;
        if record.expires_at <= now.as_unix_seconds() {
            return Ok(None);
        }
        if !self
            .store
            .secrets()
            .fingerprint_matches(&record.fingerprint, &given.sha256)
            .await?
        {
            return Ok(Some(CreateOutcome::IdempotencyKeyReused));
        }
        let id = WebhookId::new(record.id).ok_or_else(|| corrupt_item("webhook id"))?;
        Ok(Some(CreateOutcome::Webhook(
            record.fields.into_webhook(id)?,
        )))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "each is another part of the one transaction"
    )]
    fn create_transaction(
        self,
        account: &AccountId,
        new: &NewWebhook,
        webhook: &Webhook,
        key: Option<&DataKey>,
        last_id: u64,
        limit: u32,
        idempotency: Option<&(&IdempotencyKey, Fingerprint)>,
        now: Timestamp,
    ) -> Result<Vec<TransactWriteItem>> {
        let table = &self.store.tables.webhooks;
        let counter = Update::builder()
            .table_name(table)
            .set_key(Some(key_schema::account_counters(account).into_item()))
            .update_expression("SET last_id = :id ADD webhooks :one")
            .condition_expression(
                "attribute_not_exists(PK) OR (last_id = :last AND webhooks < :limit)",
            )
            .expression_attribute_values(":id", number(webhook.id.get()))
            .expression_attribute_values(":last", number(last_id))
            .expression_attribute_values(":one", number(1))
            .expression_attribute_values(":limit", number(limit.into()))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .build()
            .expect("every required part is set");
        let PrimaryKey { pk, sk } = key_schema::webhook(account, webhook.id);
        let row = WebhookRow {
            pk,
            sk,
            fields: WebhookFields::of(webhook),
            secrets: new
                .secret
                .iter()
                .map(|secret| encrypt_secret(key, account, webhook.id, secret))
                .collect(),
            detail: WebhookMetadata {
                created_at: now,
                updated_at: now,
                description: new.description.clone(),
                disabled_reason: None,
            },
        };
        let row = Put::builder()
            .table_name(table)
            .set_item(Some(to_item(&row)?))
            .condition_expression("attribute_not_exists(PK)")
            .build()
            .expect("every required part is set");
        let mut parts = vec![
            TransactWriteItem::builder().update(counter).build(),
            TransactWriteItem::builder().put(row).build(),
        ];
        if let Some((given, fingerprint)) = idempotency {
            let PrimaryKey { pk, sk } = key_schema::idempotency(account, &given.key);
            let record = IdempotencyKeyRow {
                pk,
                sk,
                fingerprint: fingerprint.clone(),
                id: webhook.id.get(),
                fields: WebhookFields::of(webhook),
                expires_at: given.expires_at.as_unix_seconds(),
            };
            let record = Put::builder()
                .table_name(table)
                .set_item(Some(to_item(&record)?))
                // TTL only cleans up, and late: an expired record counts as gone.
                .condition_expression("attribute_not_exists(PK) OR expires_at <= :now")
                .expression_attribute_values(
                    ":now",
                    AttributeValue::N(now.as_unix_seconds().to_string()),
                )
                .return_values_on_condition_check_failure(
                    ReturnValuesOnConditionCheckFailure::AllOld,
                )
                .build()
                .expect("every required part is set");
            parts.push(TransactWriteItem::builder().put(record).build());
        }
        Ok(parts)
    }

    /// Deletes a webhook; `false` if the account has none with this id.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn delete(self, account: &AccountId, id: WebhookId) -> Result<bool> {
        let webhook = Delete::builder()
            .table_name(&self.store.tables.webhooks)
            .set_key(Some(key_schema::webhook(account, id).into_item()))
            .condition_expression("attribute_exists(PK)")
            .build()
            .expect("every required part is set");
        let health = Delete::builder()
            .table_name(&self.store.tables.webhooks)
            .set_key(Some(key_schema::health(account, id).into_item()))
            .build()
            .expect("every required part is set");
        let counter = Update::builder()
            .table_name(&self.store.tables.webhooks)
            .set_key(Some(key_schema::account_counters(account).into_item()))
            .update_expression("ADD webhooks :less")
            .expression_attribute_values(":less", AttributeValue::N("-1".to_owned()))
            .build()
            .expect("every required part is set");
        self.store
            .transact(vec![
                TransactWriteItem::builder().delete(webhook).build(),
                TransactWriteItem::builder().delete(health).build(),
                TransactWriteItem::builder().update(counter).build(),
            ])
            .await
    }

    /// Whether the account has, or has had, a webhook with this id: the log of a deleted one stays readable.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn ever_existed(self, account: &AccountId, id: WebhookId) -> Result<bool> {
        Ok(id.get() <= self.account_counters(account).await?.last_id)
    }
}

/// Why a transaction was cancelled, part by part; any other error is passed on.
pub(super) fn cancellation_reasons<R: std::fmt::Debug + 'static>(
    error: aws_sdk_dynamodb::error::SdkError<TransactWriteItemsError, R>,
) -> Result<Vec<CancellationReason>> {
    match error.as_service_error() {
        Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) => {
            let reasons = cancelled.cancellation_reasons().to_vec();
            if reasons.iter().all(is_condition_or_conflict) {
                return Ok(reasons);
            }
            let transient = reasons
                .iter()
                .filter_map(CancellationReason::code)
                .any(is_transient);
            let text = format_sdk_error(&error);
            Err(if transient {
                Error::Unavailable(text)
            } else {
                Error::Internal(text)
            })
        }
        _ => Err(error.into()),
    }
}

/// A failed condition and a conflict are answers, and so is the silence of the parts that did not fail.
fn is_condition_or_conflict(reason: &CancellationReason) -> bool {
    matches!(
        reason.code(),
        None | Some("None" | "ConditionalCheckFailed" | "TransactionConflict")
    )
}

pub(super) fn is_condition_failure(reason: &CancellationReason) -> bool {
    reason.code() == Some("ConditionalCheckFailed")
}

/// Whether another transaction was at work on the item.
fn is_conflict(reason: &CancellationReason) -> bool {
    reason.code() == Some("TransactionConflict")
}

fn number(n: u64) -> AttributeValue {
    AttributeValue::N(n.to_string())
}

impl WebhookRow {
    fn into_subscriber(self, id: WebhookId) -> Result<WebhookRecord> {
        let webhook = self.fields.into_webhook(id)?;
        Ok(WebhookRecord {
            webhook,
            secrets: self.secrets,
            health: EndpointHealth::default(),
            detail: self.detail,
        })
    }
}

impl WebhookFields {
    fn of(webhook: &Webhook) -> Self {
        Self {
            url: webhook.url.as_str().to_owned(),
            events: webhook.events.names().map(str::to_owned).collect(),
            status: webhook.status.as_str().to_owned(),
        }
    }

    fn into_webhook(self, id: WebhookId) -> Result<Webhook> {
        Ok(Webhook {
            id,
            url: EndpointUrl::parse(&self.url).map_err(|_| corrupt_item("url"))?,
            events: EventTypes::parse(self.events.iter().map(String::as_str))
                .map_err(|_| corrupt_item("events"))?,
            status: WebhookStatus::parse(&self.status).ok_or_else(|| corrupt_item("status"))?,
        })
    }
}
