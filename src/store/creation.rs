//! The transaction that creates a webhook: counters, limit, webhook and `Idempotency-Key` at once.
//! So two concurrent requests neither share an id nor exceed the limit.

use std::sync::Arc;

use aws_sdk_dynamodb::types::{
    CancellationReason, Put, ReturnValuesOnConditionCheckFailure, TransactWriteItem, Update,
};
use serde::{Deserialize, Serialize};

use super::{
    error::{Error, Result},
    item::{Item, attr_n, from_optional_item, to_item},
    key_schema::{self, PrimaryKey},
    secrets::{Fingerprint, to_stored_secret},
    stored_headers::StoredHeaders,
    table_client::{TableClient, insert_if_absent, is_conflict},
    webhook_row::{WebhookFields, WebhookMetadata, WebhookRow},
};
use nano_webhooks_core::{
    account_id::AccountId,
    data_key::DataKey,
    delivery::pace::{MaxPerSecond, Pace},
    endpoint_url::EndpointUrl,
    event_type::EventTypes,
    secret::Secret,
    static_headers::StaticHeaders,
    timestamp::Timestamp,
    webhook::{Webhook, WebhookId, WebhookStatus},
};

/// The webhook to create.
#[derive(Clone, Debug)]
pub struct NewWebhook {
    /// The endpoint.
    pub url: EndpointUrl,
    /// The event types that it subscribes to.
    pub events: EventTypes,
    /// The secret that signs. Without one, requests are not signed.
    pub secret: Option<Secret>,
    /// The headers that requests have in addition to those of the service.
    pub headers: StaticHeaders,
    /// Its owner's note.
    pub description: Option<String>,
    /// The most attempts that start in a second.
    pub max_per_second: Option<MaxPerSecond>,
}

/// A caller's `Idempotency-Key`: until it expires, the same request with the same key returns the
/// same webhook.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    /// The caller's key.
    pub key: String,
    /// The SHA-256 of what the request asks for. Requests with the same hash are the same.
    pub request_hash: [u8; 32],
    /// When the key may be used for another request.
    pub expires_at: Timestamp,
}

/// The result of a request to create a webhook.
#[derive(Clone, Debug)]
pub enum CreateOutcome {
    /// The new webhook, or the one that the same request with the same `Idempotency-Key` created
    /// before.
    Webhook(Webhook),
    /// The account has the maximum number of webhooks.
    LimitReached,
    /// The `Idempotency-Key` was used for another request.
    IdempotencyKeyReused,
}

#[derive(Serialize, Deserialize)]
pub(super) struct IdempotencyKeyRow {
    #[serde(rename = "PK")]
    pk: String,
    #[serde(rename = "SK")]
    sk: String,
    #[serde(flatten)]
    pub(super) fingerprint: Fingerprint,
    id: u64,
    #[serde(flatten)]
    fields: WebhookFields,
    /// In seconds since the epoch.
    expires_at: i64,
}

impl IdempotencyKeyRow {
    /// TTL deletes items late, so an item may have expired.
    pub(super) const fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at <= now.as_unix_seconds()
    }

    /// The webhook as the earlier request created it.
    pub(super) fn into_webhook(self) -> Result<Webhook> {
        let id = WebhookId::new(self.id).ok_or_else(|| Error::corrupt_item("webhook id"))?;
        self.fields.into_webhook(id)
    }
}

/// What the account's counter item holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct AccountCounters {
    /// The id of the newest webhook; 0 if there never was one.
    pub(super) last_id: u64,
    /// The number of webhooks.
    webhooks: u64,
}

/// Everything that a create transaction writes, except the webhook's id.
pub(super) struct CreateRequest<'a> {
    pub(super) account: &'a AccountId,
    pub(super) new: &'a NewWebhook,
    /// The maximum number of webhooks.
    pub(super) limit: u32,
    /// The key that encrypts the secret and the headers; `None` if they are stored unencrypted.
    pub(super) data_key: Option<Arc<DataKey>>,
    pub(super) idempotency: Option<(&'a IdempotencyKey, Fingerprint)>,
    pub(super) now: Timestamp,
}

impl NewWebhook {
    /// Whether a part of it is encrypted.
    pub(super) const fn needs_data_key(&self) -> bool {
        self.secret.is_some() || !self.headers.is_empty()
    }
}

impl CreateRequest<'_> {
    /// The webhook with the id that follows `last_id`.
    pub(super) fn next_webhook(&self, last_id: u64) -> Result<Webhook> {
        let id = WebhookId::new(last_id + 1)
            .ok_or_else(|| Error::corrupt_item("number of the last webhook"))?;
        Ok(Webhook {
            id,
            url: self.new.url.clone(),
            events: self.new.events.clone(),
            status: WebhookStatus::Active,
            pace: self.pace(),
        })
    }

    fn pace(&self) -> Option<Pace> {
        let max_per_second = self.new.max_per_second?;
        let since = self.now;
        Some(Pace {
            max_per_second,
            since,
        })
    }

    /// The writes, in the order that [`CreateConflict::from_reasons`] expects.
    pub(super) fn create_transaction(
        &self,
        table: &TableClient,
        webhook: &Webhook,
        last_id: u64,
    ) -> Result<Vec<TransactWriteItem>> {
        let counters_key = key_schema::account_counters(self.account);
        let counters = count_webhook(webhook.id, last_id, self.limit);
        let row = to_item(&self.webhook_row(webhook))?;
        let mut writes = vec![
            table.transact_update(counters_key, counters),
            table.transact_put(insert_if_absent(row)),
        ];
        if let Some((key, fingerprint)) = &self.idempotency {
            let row = self.idempotency_row(webhook, key, fingerprint);
            let put = Put::builder()
                .set_item(Some(to_item(&row)?))
                // TTL deletes items late: an expired record counts as deleted.
                .condition_expression("attribute_not_exists(PK) OR expires_at <= :now")
                .expression_attribute_values(":now", attr_n(self.now.as_unix_seconds()))
                .return_values_on_condition_check_failure(
                    ReturnValuesOnConditionCheckFailure::AllOld,
                );
            writes.push(table.transact_put(put));
        }
        Ok(writes)
    }

    fn webhook_row(&self, webhook: &Webhook) -> WebhookRow {
        let data_key = self.data_key.as_deref();
        let mut secrets = Vec::new();
        if let Some(secret) = &self.new.secret {
            secrets.push(to_stored_secret(data_key, self.account, webhook.id, secret));
        }
        let PrimaryKey { pk, sk } = key_schema::webhook(self.account, webhook.id);
        WebhookRow {
            pk,
            sk,
            fields: WebhookFields::from_webhook(webhook),
            secrets,
            headers: StoredHeaders::encode(data_key, self.account, webhook.id, &self.new.headers),
            metadata: WebhookMetadata {
                created_at: self.now,
                updated_at: self.now,
                description: self.new.description.clone(),
                disabled_reason: None,
            },
        }
    }

    fn idempotency_row(
        &self,
        webhook: &Webhook,
        key: &IdempotencyKey,
        fingerprint: &Fingerprint,
    ) -> IdempotencyKeyRow {
        let PrimaryKey { pk, sk } = key_schema::idempotency(self.account, &key.key);
        IdempotencyKeyRow {
            pk,
            sk,
            fingerprint: fingerprint.clone(),
            id: webhook.id.get(),
            fields: WebhookFields::from_webhook(webhook),
            expires_at: key.expires_at.as_unix_seconds(),
        }
    }
}

/// Takes the next id and counts the webhook, unless another request was faster or the account is at
/// its limit.
fn count_webhook(
    id: WebhookId,
    last_id: u64,
    limit: u32,
) -> aws_sdk_dynamodb::types::builders::UpdateBuilder {
    Update::builder()
        .update_expression("SET last_id = :id ADD webhooks :one")
        .condition_expression("attribute_not_exists(PK) OR (last_id = :last AND webhooks < :limit)")
        .expression_attribute_values(":id", attr_u64(id.get()))
        .expression_attribute_values(":last", attr_u64(last_id))
        .expression_attribute_values(":one", attr_n(1))
        .expression_attribute_values(":limit", attr_n(limit.into()))
        .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
}

fn attr_u64(n: u64) -> aws_sdk_dynamodb::types::AttributeValue {
    aws_sdk_dynamodb::types::AttributeValue::N(n.to_string())
}

/// What a cancelled create transaction found.
///
/// Only the reasons of the cancellation show the counters and the idempotency record at the same
/// moment. Two reads do not: the first may see another transaction and the second not yet.
pub(super) struct CreateConflict {
    /// The counters, if their condition failed.
    counters: Option<AccountCounters>,
    /// The idempotency record of an earlier request, if there is one.
    pub(super) idempotency_record: Option<Item>,
    /// Another transaction was writing the idempotency record, so its content is unknown.
    is_undecided: bool,
}

/// What to do after a cancelled create transaction.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CreateRetry {
    /// Give up.
    LimitReached,
    /// Try again at once with the id that follows this one.
    WithLastId(u64),
    /// Wait, read the counters and try again.
    AfterReadingCounters,
}

impl CreateConflict {
    /// Reads the reasons: of the counters, the webhook and the idempotency record, in this order.
    pub(super) fn from_reasons(reasons: Vec<CancellationReason>) -> Result<Self> {
        let mut reasons = reasons.into_iter();
        let counters = reasons.next().and_then(|reason| reason.item);
        let idempotency = reasons.nth(1);
        let is_undecided = idempotency.as_ref().is_some_and(is_conflict);
        Ok(Self {
            counters: from_optional_item(counters)?,
            idempotency_record: idempotency.and_then(|reason| reason.item),
            is_undecided,
        })
    }

    pub(super) fn decide_retry(&self, limit: u32) -> CreateRetry {
        match self.counters {
            _ if self.is_undecided => CreateRetry::AfterReadingCounters,
            None => CreateRetry::AfterReadingCounters,
            Some(counters) if counters.webhooks >= u64::from(limit) => CreateRetry::LimitReached,
            Some(counters) => CreateRetry::WithLastId(counters.last_id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflict_decides_whether_to_retry() {
        let counters = |last_id, webhooks| Some(AccountCounters { last_id, webhooks });
        for (counters, is_undecided, expected) in [
            (None, false, CreateRetry::AfterReadingCounters),
            (counters(7, 2), false, CreateRetry::WithLastId(7)),
            (counters(7, 3), false, CreateRetry::LimitReached),
            (counters(7, 4), false, CreateRetry::LimitReached),
            (counters(7, 3), true, CreateRetry::AfterReadingCounters),
            (counters(7, 2), true, CreateRetry::AfterReadingCounters),
        ] {
            let conflict = CreateConflict {
                counters,
                idempotency_record: None,
                is_undecided,
            };
            assert_eq!(
                conflict.decide_retry(3),
                expected,
                "{counters:?} {is_undecided}"
            );
        }
    }
}
