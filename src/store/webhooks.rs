//! Webhooks: listed by one query, created and deleted by one transaction each.

use std::time::Duration;

use aws_sdk_dynamodb::{
    operation::transact_write_items::TransactWriteItemsError,
    types::{
        AttributeValue, CancellationReason, Delete, Put, ReturnValuesOnConditionCheckFailure, TransactWriteItem, Update,
    },
};
use serde::{Deserialize, Serialize};

use super::{
    Error, Item, Result, Store, back_off, corrupt, from_item, is_transient,
    key_schema::{self, Primary},
    secrets::{Fingerprint, StoredSecret, stored},
    text, to_item,
};
use crate::{aws::said, clock::Deadline};
use nano_webhooks_core::{
    data_key::DataKey,
    delivery::{Delivery, endpoint_health::Health},
    timestamp::Timestamp,
    webhook::{Account, EndpointUrl, Events, Secret, Status, Webhook, WebhookId},
};

/// How long a transaction is tried again when others change the same account at the same time. Each round one of them gets
/// through.
const MAX_TIME: Duration = Duration::from_secs(5);

/// A webhook and the health of its endpoint.
#[derive(Clone, Debug)]
pub struct Subscriber {
    /// The webhook.
    pub webhook: Webhook,
    /// The secrets that sign, the newest first, as they are stored; none: callbacks are not signed. [`Store::secrets_of`] opens
    /// them.
    pub secrets: Vec<StoredSecret>,
    /// What is known of its endpoint.
    pub health: Health,
    /// What is shown of it beside.
    pub detail: Detail,
}

/// What is shown of a webhook, and decides nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
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
    pub events: Events,
    /// What signs; without it callbacks are not signed.
    pub secret: Option<Secret>,
    /// Its owner's note.
    pub description: Option<String>,
}

/// A caller's `Idempotency-Key`: the same key with the same body gives the same webhook until it expires.
#[derive(Clone, Debug)]
pub struct Idempotency {
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
pub enum Created {
    /// The webhook, new or that of an earlier request with the same `Idempotency-Key` and body, as it was created.
    Webhook(Webhook),
    /// The account has as many webhooks as it may have.
    LimitReached,
    /// The `Idempotency-Key` was used with another body.
    KeyReused,
}

#[derive(Serialize, Deserialize)]
struct Row {
    #[serde(rename = "PK")]
    pk: String,
    #[serde(rename = "SK")]
    sk: String,
    #[serde(flatten)]
    fields: Fields,
    #[serde(default)]
    secrets: Vec<StoredSecret>,
    #[serde(flatten)]
    detail: Detail,
}

/// What a webhook and the record of its creation have in common.
#[derive(Serialize, Deserialize)]
struct Fields {
    url: String,
    events: Vec<String>,
    status: String,
}

#[derive(Serialize, Deserialize)]
struct IdempotencyRow {
    #[serde(rename = "PK")]
    pk: String,
    #[serde(rename = "SK")]
    sk: String,
    #[serde(flatten)]
    fingerprint: Fingerprint,
    id: u64,
    #[serde(flatten)]
    fields: Fields,
    expires_at: i64,
}

#[derive(Default, Deserialize)]
pub(super) struct Meta {
    pub(super) last_id: u64,
    webhooks: u64,
}

impl Store {
    /// All webhooks of an account in id order.
    ///
    /// # Errors
    /// If DynamoDB does not answer, or holds an item that breaks the rules.
    pub async fn webhooks(&self, account: &Account) -> Result<Vec<Webhook>> {
        let subscribers = self.subscribers(account).await?.into_iter();
        subscribers.map(|subscriber| subscriber.map(|subscriber| subscriber.webhook)).collect()
    }

    /// All webhooks of an account with their health, in id order. One that breaks the rules is an error of its own, which
    /// harms no other.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn subscribers(&self, account: &Account) -> Result<Vec<Result<Subscriber>>> {
        self.subscribers_under(account, key_schema::WEBHOOK_PREFIX).await
    }

    /// One webhook with its health.
    ///
    /// # Errors
    /// If DynamoDB does not answer, or holds an item that breaks the rules.
    pub async fn subscriber(&self, account: &Account, id: WebhookId) -> Result<Option<Subscriber>> {
        self.subscribers_under(account, &key_schema::webhook(account, id).sk).await?.pop().transpose()
    }

    /// From a strongly consistent query: a webhook created a moment ago is among them.
    async fn subscribers_under(&self, account: &Account, prefix: &str) -> Result<Vec<Result<Subscriber>>> {
        let mut pages = self
            .client
            .query()
            .table_name(&self.tables.webhooks)
            .consistent_read(true)
            .key_condition_expression("PK = :account AND begins_with(SK, :webhook)")
            .expression_attribute_values(":account", AttributeValue::S(key_schema::account(account)))
            .expression_attribute_values(":webhook", AttributeValue::S(prefix.to_owned()))
            .into_paginator()
            .items()
            .send();
        let mut subscribers: Vec<Result<Subscriber>> = Vec::new();
        while let Some(item) = pages.next().await {
            let item = item?;
            let sk = item.get(key_schema::SK).and_then(|sk| sk.as_s().ok()).cloned().unwrap_or_default();
            if let Some(id) = key_schema::parse_webhook(&sk) {
                subscribers.push(from_item::<Row>(item).and_then(|row| row.into_subscriber(id)));
            } else if let Some(Ok(last)) = subscribers.last_mut()
                // Health sorts right behind its webhook; one whose webhook is gone belongs to nobody.
                && sk == key_schema::health(account, last.webhook.id).sk
            {
                // Health is only a hint: what cannot be read is as good as nothing known.
                last.health = from_item(item).unwrap_or_else(|error| {
                    tracing::error!(account = account.as_str(), webhook = %last.webhook.id, %error, "health cannot be read");
                    Health::default()
                });
            }
        }
        Ok(subscribers)
    }

    /// Writes down the health of a webhook's endpoint.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn keep_health(&self, account: &Account, id: WebhookId, health: &Health) -> Result<()> {
        let mut item = key_schema::health(account, id).into_item();
        item.extend(to_item(health)?);
        self.client.put_item().table_name(&self.tables.webhooks).set_item(Some(item)).send().await?;
        Ok(())
    }

    /// Disables a webhook and records the deliveries that tell the account's others, all at once or not at all; `false` if it is
    /// not active, or has another URL by now, of which nothing is known.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn disable_webhook(
        &self,
        account: &Account,
        webhook: &Webhook,
        reason: &str,
        tell: &[Delivery],
        now: Timestamp,
        retention: Duration,
    ) -> Result<bool> {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let update = Update::builder()
            .table_name(&self.tables.webhooks)
            .set_key(Some(key_schema::webhook(account, webhook.id).into_item()))
            .update_expression("SET #status = :disabled, disabled_reason = :reason, updated_at = :now")
            .condition_expression("#status = :active AND #url = :url")
            .expression_attribute_names("#status", "status")
            .expression_attribute_names("#url", "url")
            .expression_attribute_values(":url", text(webhook.url.as_str()))
            .expression_attribute_values(":disabled", text(Status::Disabled.name()))
            .expression_attribute_values(":active", text(Status::Active.name()))
            .expression_attribute_values(":reason", text(reason))
            .expression_attribute_values(":now", AttributeValue::N(now.millis().to_string()))
            .build()
            .expect("every required part is set");
        let mut parts = vec![TransactWriteItem::builder().update(update).build()];
        for delivery in tell {
            parts.push(self.recording(delivery, now, retention));
        }
        self.transact(parts).await
    }

    /// Creates a webhook: counter, limit, webhook and idempotency record in one transaction, so that two requests at the
    /// same time neither share an id nor pass the limit.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn create_webhook(
        &self,
        account: &Account,
        new: &NewWebhook,
        limit: u32,
        idempotency: Option<&Idempotency>,
        now: Timestamp,
    ) -> Result<Created> {
        if let Some(given) = idempotency
            && let Some(record) = self.item(key_schema::idempotency(account, &given.key)).await?
            && let Some(answer) = self.replay(record, given, now).await?
        {
            return Ok(answer);
        }
        let key = if new.secret.is_some() { self.sealing_key(now).await? } else { None };
        let fingerprint = match idempotency {
            Some(given) => Some(self.fingerprint(&given.sha256, now).await?),
            None => None,
        };
        let record = idempotency.zip(fingerprint);
        let mut last_id = self.counter(account).await?.last_id;
        let deadline = Deadline::after(MAX_TIME);
        for tried in 0.. {
            if deadline.remaining().is_zero() {
                break;
            }
            let webhook = Webhook {
                id: WebhookId::new(last_id + 1).ok_or_else(|| corrupt("webhook counter"))?,
                url: new.url.clone(),
                events: new.events.clone(),
                status: Status::Active,
            };
            let transaction =
                self.creation(account, new, &webhook, key.as_deref(), last_id, limit, record.as_ref(), now)?;
            let sent = self.client.transact_write_items().set_transact_items(Some(transaction)).send().await;
            let mut reasons = match sent {
                Ok(_) => return Ok(Created::Webhook(webhook)),
                Err(error) => cancelled(error)?.into_iter(),
            };
            // The reasons stand in the order of the transaction's parts: counter, webhook, idempotency record. They alone say
            // what the counter and the record were at one moment: of two reads, the first may see another transaction and the
            // second not yet, and the request that took the last place would pass for another's.
            let (counter, earlier) = (reasons.next(), reasons.nth(1));
            let undecided = earlier.as_ref().is_some_and(in_conflict);
            if let (Some(given), Some(earlier)) = (idempotency, earlier.and_then(|reason| reason.item))
                && let Some(answer) = self.replay(earlier, given, now).await?
            {
                return Ok(answer);
            }
            let counter: Option<Meta> = counter.and_then(|reason| reason.item).map(from_item).transpose()?;
            last_id = match counter.filter(|_| !undecided) {
                Some(counter) if counter.webhooks >= u64::from(limit) => return Ok(Created::LimitReached),
                Some(counter) => counter.last_id,
                None => {
                    back_off(tried).await;
                    self.counter(account).await?.last_id
                }
            };
        }
        Err(Error::Unavailable("too many changes of one account at the same time".to_owned()))
    }

    /// What the account has counted; nothing if it has never had a webhook.
    pub(super) async fn counter(&self, account: &Account) -> Result<Meta> {
        Ok(self.item(key_schema::meta(account)).await?.map(from_item).transpose()?.unwrap_or_default())
    }

    /// What an unexpired record of the same `Idempotency-Key` answers; `None` if the record has expired.
    async fn replay(&self, record: Item, given: &Idempotency, now: Timestamp) -> Result<Option<Created>> {
        let record: IdempotencyRow = from_item(record)?;
        if record.expires_at <= now.seconds() {
            return Ok(None);
        }
        if !self.is_fingerprint(&record.fingerprint, &given.sha256).await? {
            return Ok(Some(Created::KeyReused));
        }
        let id = WebhookId::new(record.id).ok_or_else(|| corrupt("webhook id"))?;
        Ok(Some(Created::Webhook(record.fields.into_webhook(id)?)))
    }

    #[expect(clippy::too_many_arguments, reason = "each is another part of the one transaction")]
    fn creation(
        &self,
        account: &Account,
        new: &NewWebhook,
        webhook: &Webhook,
        key: Option<&DataKey>,
        last_id: u64,
        limit: u32,
        idempotency: Option<&(&Idempotency, Fingerprint)>,
        now: Timestamp,
    ) -> Result<Vec<TransactWriteItem>> {
        let table = &self.tables.webhooks;
        let counter = Update::builder()
            .table_name(table)
            .set_key(Some(key_schema::meta(account).into_item()))
            .update_expression("SET last_id = :id ADD webhooks :one")
            .condition_expression("attribute_not_exists(PK) OR (last_id = :last AND webhooks < :limit)")
            .expression_attribute_values(":id", number(webhook.id.get()))
            .expression_attribute_values(":last", number(last_id))
            .expression_attribute_values(":one", number(1))
            .expression_attribute_values(":limit", number(limit.into()))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .build()
            .expect("every required part is set");
        let Primary { pk, sk } = key_schema::webhook(account, webhook.id);
        let row = Row {
            pk,
            sk,
            fields: Fields::of(webhook),
            secrets: new.secret.iter().map(|secret| stored(key, account, webhook.id, secret)).collect(),
            detail: Detail {
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
        let mut parts =
            vec![TransactWriteItem::builder().update(counter).build(), TransactWriteItem::builder().put(row).build()];
        if let Some((given, fingerprint)) = idempotency {
            let Primary { pk, sk } = key_schema::idempotency(account, &given.key);
            let record = IdempotencyRow {
                pk,
                sk,
                fingerprint: fingerprint.clone(),
                id: webhook.id.get(),
                fields: Fields::of(webhook),
                expires_at: given.expires_at.seconds(),
            };
            let record = Put::builder()
                .table_name(table)
                .set_item(Some(to_item(&record)?))
                // TTL only cleans up, and late: an expired record counts as gone.
                .condition_expression("attribute_not_exists(PK) OR expires_at <= :now")
                .expression_attribute_values(":now", AttributeValue::N(now.seconds().to_string()))
                .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
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
    pub async fn delete_webhook(&self, account: &Account, id: WebhookId) -> Result<bool> {
        let webhook = Delete::builder()
            .table_name(&self.tables.webhooks)
            .set_key(Some(key_schema::webhook(account, id).into_item()))
            .condition_expression("attribute_exists(PK)")
            .build()
            .expect("every required part is set");
        let health = Delete::builder()
            .table_name(&self.tables.webhooks)
            .set_key(Some(key_schema::health(account, id).into_item()))
            .build()
            .expect("every required part is set");
        let counter = Update::builder()
            .table_name(&self.tables.webhooks)
            .set_key(Some(key_schema::meta(account).into_item()))
            .update_expression("ADD webhooks :less")
            .expression_attribute_values(":less", AttributeValue::N("-1".to_owned()))
            .build()
            .expect("every required part is set");
        self.transact(vec![
            TransactWriteItem::builder().delete(webhook).build(),
            TransactWriteItem::builder().delete(health).build(),
            TransactWriteItem::builder().update(counter).build(),
        ])
        .await
    }

    /// Writes all parts or none, again while others change the same items; `false` if a part's condition does not hold.
    pub(super) async fn transact(&self, parts: Vec<TransactWriteItem>) -> Result<bool> {
        Ok(self.transact_all(parts).await?.is_ok())
    }

    /// The same; `Err` names the first part whose condition does not hold.
    pub(super) async fn transact_all(&self, parts: Vec<TransactWriteItem>) -> Result<std::result::Result<(), usize>> {
        let deadline = Deadline::after(MAX_TIME);
        for tried in 0.. {
            if deadline.remaining().is_zero() {
                break;
            }
            let request = self.client.transact_write_items().set_transact_items(Some(parts.clone()));
            let reasons = match request.send().await {
                Ok(_) => return Ok(Ok(())),
                Err(error) => cancelled(error)?,
            };
            if let Some(refused) = reasons.iter().position(failed_condition) {
                return Ok(Err(refused));
            }
            back_off(tried).await;
        }
        Err(Error::Unavailable("too many changes of one account at the same time".to_owned()))
    }

    /// The webhooks that are marked in a partition for what sweeps go on with, at most so many. A mark that cannot be read harms
    /// no other.
    pub(super) async fn marked<T>(
        &self,
        partition: &str,
        at_most: usize,
        read: impl Fn(Account, WebhookId, &Item) -> Option<T>,
    ) -> Result<Vec<T>> {
        let mut items = self
            .client
            .query()
            .table_name(&self.tables.webhooks)
            .consistent_read(true)
            .key_condition_expression("PK = :partition")
            .expression_attribute_values(":partition", text(partition))
            .into_paginator()
            .items()
            .send();
        let mut found = Vec::new();
        while found.len() < at_most
            && let Some(item) = items.next().await
        {
            let item = item?;
            let of = item.get(key_schema::SK).and_then(|sk| key_schema::parse_deliveries(sk.as_s().ok()?));
            let mark = of.and_then(|(account, webhook)| read(account, webhook, &item));
            if mark.is_none() {
                tracing::error!(partition, sort_key = ?item.get(key_schema::SK), "a mark cannot be read and is left out");
            }
            found.extend(mark);
        }
        Ok(found)
    }

    /// One item, strongly consistent.
    pub(super) async fn item(&self, key: Primary) -> Result<Option<Item>> {
        let get = self.client.get_item().table_name(&self.tables.webhooks).consistent_read(true);
        Ok(get.set_key(Some(key.into_item())).send().await?.item)
    }
}

/// Why a transaction was cancelled, part by part; any other error is passed on.
pub(super) fn cancelled<R: std::fmt::Debug + 'static>(
    error: aws_sdk_dynamodb::error::SdkError<TransactWriteItemsError, R>,
) -> Result<Vec<CancellationReason>> {
    match error.as_service_error() {
        Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) => {
            let reasons = cancelled.cancellation_reasons().to_vec();
            if reasons.iter().all(is_expected) {
                return Ok(reasons);
            }
            let transient = reasons.iter().filter_map(CancellationReason::code).any(is_transient);
            let text = said(&error);
            Err(if transient { Error::Unavailable(text) } else { Error::Internal(text) })
        }
        _ => Err(error.into()),
    }
}

/// A failed condition and a conflict are answers, and so is the silence of the parts that did not fail.
fn is_expected(reason: &CancellationReason) -> bool {
    matches!(reason.code(), None | Some("None" | "ConditionalCheckFailed" | "TransactionConflict"))
}

pub(super) fn failed_condition(reason: &CancellationReason) -> bool {
    reason.code() == Some("ConditionalCheckFailed")
}

/// Whether another transaction was at work on the item.
fn in_conflict(reason: &CancellationReason) -> bool {
    reason.code() == Some("TransactionConflict")
}

fn number(n: u64) -> AttributeValue {
    AttributeValue::N(n.to_string())
}

impl Row {
    fn into_subscriber(self, id: WebhookId) -> Result<Subscriber> {
        let webhook = self.fields.into_webhook(id)?;
        Ok(Subscriber { webhook, secrets: self.secrets, health: Health::default(), detail: self.detail })
    }
}

impl Fields {
    fn of(webhook: &Webhook) -> Self {
        Self {
            url: webhook.url.as_str().to_owned(),
            events: webhook.events.names().map(str::to_owned).collect(),
            status: webhook.status.name().to_owned(),
        }
    }

    fn into_webhook(self, id: WebhookId) -> Result<Webhook> {
        Ok(Webhook {
            id,
            url: EndpointUrl::parse(&self.url).map_err(|_| corrupt("url"))?,
            events: Events::parse(self.events.iter().map(String::as_str)).map_err(|_| corrupt("events"))?,
            status: Status::parse(&self.status).ok_or_else(|| corrupt("status"))?,
        })
    }
}
