//! Deliveries on their way: claimed for an attempt, settled, put off, parked, cancelled, and found when they are due.
//!
//! Every change is conditional on the number of attempts that it was decided on, so that a message that is late or comes
//! twice changes nothing, and a result is written by the one who holds the claim alone.

use std::time::Duration;

use aws_sdk_dynamodb::{
    operation::update_item::{UpdateItemError, builders::UpdateItemFluentBuilder},
    types::{
        Put, ReturnValue, ReturnValuesOnConditionCheckFailure, TransactWriteItem,
        builders::PutBuilder,
    },
};
use serde::Deserialize;

use super::{
    Result, Store, attr_n, attr_s, corrupt_item,
    deliveries::{DeliveryRow, to_delivery_item},
    delivery_log::{DeliveryFilter, DeliveryStatus},
    from_item, into_condition_result, key_schema,
    replays::ReplayKey,
    tables::SWEEP_AT,
};
use crate::concurrency;
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{Delivery, DeliveryKey, DeliveryState, lease},
    timestamp::Timestamp,
    webhook::WebhookId,
};

/// How many pending deliveries are cancelled with the webhook's deletion, so that it is answered in time.
const IMMEDIATE_CANCEL_LIMIT: usize = 200;
/// How many of them at the same time.
const CONCURRENT_CANCELS: usize = 32;
/// A delivery that is claimed for an attempt until then.
#[derive(Debug)]
pub struct Lease {
    /// The delivery, as it was claimed.
    pub delivery: Delivery,
    until: Timestamp,
}

/// What became of an effort to claim.
#[derive(Debug)]
pub enum ClaimOutcome {
    /// It is ours.
    Acquired(Box<Lease>),
    /// It is due later.
    NotDue(Timestamp),
    /// It was settled, is in flight, or has been attempted since: there is nothing to do.
    Stale,
}

/// What a refused condition tells of the delivery.
#[derive(Deserialize)]
struct CurrentState {
    status: String,
    attempt_count: u32,
    #[serde(default)]
    next_attempt_at: Option<Timestamp>,
    #[serde(default)]
    leased_until: Option<Timestamp>,
}

/// The condition that no worker is at a delivery.
const NOT_IN_FLIGHT: &str = "(attribute_not_exists(leased_until) OR leased_until <= :now)";

/// The condition that no attempt was asked for out of turn.
const NO_MANUAL_RETRY: &str = "attribute_not_exists(resume_status)";

/// The condition that a delivery is pending after so many attempts and not in flight.
fn pending_condition() -> String {
    format!("#status = :pending AND attempt_count = :count AND {NOT_IN_FLIGHT}")
}

/// See [`Store::leases`].
#[derive(Clone, Copy, Debug)]
pub struct Leases<'a> {
    store: &'a Store,
}

impl<'a> Leases<'a> {
    pub(super) const fn new(store: &'a Store) -> Self {
        Self { store }
    }
}

impl Leases<'_> {
    /// Claims a delivery for the attempt after `attempt_count` others, if it is due.
    ///
    /// # Errors
    /// If DynamoDB does not answer, or holds an item that breaks the rules.
    pub async fn claim(
        self,
        key: &DeliveryKey,
        attempt_count: u32,
        now: Timestamp,
    ) -> Result<ClaimOutcome> {
        let until = now + lease::LEASE_DURATION;
        let claim = self
            .update_builder(key)
            .update_expression("SET leased_until = :until, sweep_at = :until")
            .condition_expression(format!(
                "{} AND next_attempt_at <= :now",
                pending_condition()
            ))
            .expression_attribute_values(":count", attr_n(attempt_count.into()))
            .expression_attribute_values(":now", attr_n(now.as_unix_millis()))
            .expression_attribute_values(":until", attr_n(until.as_unix_millis()))
            .expression_attribute_values(":pending", attr_s("pending"))
            .return_values(ReturnValue::AllNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let refusal = match claim.send().await {
            Ok(claimed) => {
                let item = claimed.attributes.ok_or_else(|| corrupt_item("answer"))?;
                let delivery = from_item::<DeliveryRow>(item)?.into_delivery()?;
                return Ok(ClaimOutcome::Acquired(Box::new(Lease { delivery, until })));
            }
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(refusal)) => {
                    refusal.item.clone()
                }
                _ => return Err(error.into()),
            },
        };
        // Refused: the item as it is tells why, if there is one.
        let current = refusal.map(from_item::<CurrentState>).transpose()?;
        let waiting = current.filter(|current| {
            current.status == "pending"
                && current.attempt_count == attempt_count
                && current.leased_until.is_none_or(|until| until <= now)
        });
        Ok(waiting
            .and_then(|current| current.next_attempt_at)
            .map_or(ClaimOutcome::Stale, ClaimOutcome::NotDue))
    }

    /// Writes what came of a claimed attempt; `false` if the claim had run out and the delivery went on without it. An attempt
    /// that a replay asked for is counted with it.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn complete(
        self,
        claim: &Lease,
        delivery: &Delivery,
        now: Timestamp,
        retention: Duration,
    ) -> Result<bool> {
        let put = completion_put(claim, delivery, now, retention);
        let attempted = delivery.attempt_count > claim.delivery.attempt_count;
        match &claim.delivery.replay {
            Some(replay) if attempted => {
                self.put_and_count_replay(put, self.store.replays().count_result(delivery, replay))
                    .await
            }
            Some(replay) => {
                self.put_and_count_replay(put, self.store.replays().uncount_sent(delivery, replay))
                    .await
            }
            None => self.put_if(put).await,
        }
    }

    /// Writes a delivery if the condition holds.
    async fn put_if(self, put: PutBuilder) -> Result<bool> {
        let put = put
            .table_name(&self.store.tables.deliveries)
            .build()
            .expect("every required part is set");
        let request = self
            .store
            .client
            .put_item()
            .table_name(put.table_name)
            .set_item(Some(put.item));
        let request = request.set_condition_expression(put.condition_expression);
        let request = request.set_expression_attribute_names(put.expression_attribute_names);
        into_condition_result(
            request
                .set_expression_attribute_values(put.expression_attribute_values)
                .send()
                .await,
        )
    }

    /// The same as a part of a transaction.
    fn transact_put(self, put: PutBuilder) -> TransactWriteItem {
        let put = put
            .table_name(&self.store.tables.deliveries)
            .build()
            .expect("every required part is set");
        TransactWriteItem::builder().put(put).build()
    }

    /// Writes a delivery if the condition holds, and counts it with its replay, if anything is left of that.
    async fn put_and_count_replay(self, put: PutBuilder, count: TransactWriteItem) -> Result<bool> {
        match self
            .store
            .transact_all(vec![self.transact_put(put.clone()), count])
            .await?
        {
            Ok(()) => Ok(true),
            Err(0) => Ok(false),
            Err(_) => self.put_if(put).await,
        }
    }

    /// Makes a delivery that is due wait until `due`, without using an attempt; `false` if it is not due.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn defer(
        self,
        key: &DeliveryKey,
        attempt_count: u32,
        due: Timestamp,
        now: Timestamp,
    ) -> Result<bool> {
        let update = self
            .update_builder(key)
            .update_expression("SET next_attempt_at = :due, sweep_at = :sweep")
            .condition_expression(format!(
                "{} AND next_attempt_at <= :now",
                pending_condition()
            ))
            .expression_attribute_values(":count", attr_n(attempt_count.into()))
            .expression_attribute_values(":now", attr_n(now.as_unix_millis()))
            .expression_attribute_values(":due", attr_n(due.as_unix_millis()))
            .expression_attribute_values(
                ":sweep",
                attr_n(lease::sweep_at(due, now).as_unix_millis()),
            )
            .expression_attribute_values(":pending", attr_s("pending"));
        into_condition_result(update.send().await)
    }

    /// Parks a waiting delivery: it stays pending and is no longer due. What a person or a replay asked for stays asked for.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn pause(
        self,
        key: &DeliveryKey,
        attempt_count: u32,
        now: Timestamp,
        retention: Duration,
    ) -> Result<bool> {
        let update = self
            .update_builder(key)
            .update_expression("SET expires_at = :expires REMOVE next_attempt_at, sweep_at, due_shard, leased_until")
            .condition_expression(pending_condition())
            .expression_attribute_values(":count", attr_n(attempt_count.into()))
            .expression_attribute_values(":now", attr_n(now.as_unix_millis()))
            .expression_attribute_values(":expires", attr_n((now + retention).as_unix_seconds()))
            .expression_attribute_values(":pending", attr_s("pending"));
        into_condition_result(update.send().await)
    }

    /// Cancels a delivery that is pending; `false` if it is not, or if it is in flight: then its result is written first, and
    /// what is left of it is cancelled when it is due again.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn cancel(
        self,
        key: &DeliveryKey,
        now: Timestamp,
        retention: Duration,
    ) -> Result<bool> {
        let update = self
            .update_builder(key)
            .update_expression(
                "SET #status = :cancelled, expires_at = :expires
                 REMOVE next_attempt_at, sweep_at, due_shard, state_key, leased_until",
            )
            .condition_expression(format!(
                "#status = :pending AND {NOT_IN_FLIGHT} AND {NO_MANUAL_RETRY}"
            ))
            .expression_attribute_values(":now", attr_n(now.as_unix_millis()))
            .expression_attribute_values(":expires", attr_n((now + retention).as_unix_seconds()))
            .expression_attribute_values(":cancelled", attr_s("cancelled"))
            .expression_attribute_values(":pending", attr_s("pending"));
        Ok(into_condition_result(update.send().await)?
            || self.revoke_manual_retry(key, now, retention).await?)
    }

    /// Takes back an attempt that a person asked for and that was not made: the delivery stands again where it stood. `false`
    /// if there is none. One that then is pending is cancelled when it is due.
    async fn revoke_manual_retry(
        self,
        key: &DeliveryKey,
        now: Timestamp,
        retention: Duration,
    ) -> Result<bool> {
        let Some(found) = self.store.deliveries().get(key).await? else {
            return Ok(false);
        };
        let mut delivery = found.clone();
        if !delivery.cancel_requested_retry() {
            return Ok(false);
        }
        if let Some(id) = found.replay.clone() {
            // Its webhook is deleted, which ends it.
            let of = ReplayKey {
                account: key.account.clone(),
                webhook: key.webhook,
                id,
            };
            self.store.replays().cancel(&of).await?;
        }
        self.replace_if_unchanged(&found, &delivery, now, retention)
            .await
    }

    /// Cancels what is pending to a webhook that was deleted, as far as the index tells and up to a bound. What it misses is
    /// cancelled when it falls due, since each attempt begins with a look at its webhook.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn cancel_pending(
        self,
        account: &AccountId,
        id: WebhookId,
        now: Timestamp,
        retention: Duration,
    ) -> Result<()> {
        let filter = DeliveryFilter {
            status: Some(DeliveryStatus::Pending),
            event: None,
            after: None,
            limit: IMMEDIATE_CANCEL_LIMIT,
        };
        let page = self.store.delivery_log().list(account, id, &filter).await?;
        let cancels = page.deliveries.into_iter().map(|listed| async move {
            let key = DeliveryKey {
                account: account.clone(),
                webhook: id,
                event: listed.event_id,
            };
            self.cancel(&key, now, retention).await
        });
        concurrency::join_bounded(cancels.collect(), CONCURRENT_CANCELS)
            .await
            .into_iter()
            .collect::<Result<Vec<_>>>()
            .map(drop)
    }

    /// Makes the next attempt of a delivery due now, because a person asked for it, and gives the delivery as it then is; `None`
    /// if it is in flight, gone, or has changed since it was read. A replay that it was part of goes on without it.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn schedule_retry(
        self,
        found: &Delivery,
        now: Timestamp,
        retention: Duration,
    ) -> Result<Option<Delivery>> {
        let mut delivery = found.clone();
        delivery.request_retry(now);
        delivery.replay = None;
        Ok(self
            .replace_if_unchanged(found, &delivery, now, retention)
            .await?
            .then_some(delivery))
    }

    /// The same where no message can be sent: the next sweep finds the delivery.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn schedule_retry_for_sweep(
        self,
        found: &Delivery,
        now: Timestamp,
        retention: Duration,
    ) -> Result<Option<Delivery>> {
        let mut delivery = found.clone();
        delivery.request_retry(now);
        delivery.replay = None;
        let put = replacement_put(found, &delivery, now, retention)
            .item(SWEEP_AT, attr_n(now.as_unix_millis()));
        Ok(self.put_replacement(found, put).await?.then_some(delivery))
    }

    /// Writes `delivery` in the place of `found`, if that is still what is there; a replay that `found` was part of is told.
    async fn replace_if_unchanged(
        self,
        found: &Delivery,
        delivery: &Delivery,
        now: Timestamp,
        retention: Duration,
    ) -> Result<bool> {
        self.put_replacement(found, replacement_put(found, delivery, now, retention))
            .await
    }

    async fn put_replacement(self, found: &Delivery, put: PutBuilder) -> Result<bool> {
        match &found.replay {
            Some(replay) => {
                self.put_and_count_replay(put, self.store.replays().uncount_sent(found, replay))
                    .await
            }
            None => self.put_if(put).await,
        }
    }

    /// Writes `delivery` in the place of `found`, as a part of a transaction.
    pub(super) fn transact_replacement(
        self,
        found: &Delivery,
        delivery: &Delivery,
        now: Timestamp,
        retention: Duration,
    ) -> TransactWriteItem {
        self.transact_put(replacement_put(found, delivery, now, retention))
    }

    fn update_builder(self, key: &DeliveryKey) -> UpdateItemFluentBuilder {
        self.store
            .client
            .update_item()
            .table_name(&self.store.tables.deliveries)
            .set_key(Some(key_schema::delivery(key).into_item()))
            .expression_attribute_names("#status", "status")
    }
}

/// A delivery as it is to stand, if the claim still does.
fn completion_put(
    claim: &Lease,
    delivery: &Delivery,
    now: Timestamp,
    retention: Duration,
) -> PutBuilder {
    Put::builder()
        .set_item(Some(to_delivery_item(delivery, now, retention)))
        .condition_expression("leased_until = :until AND attempt_count = :count")
        .expression_attribute_values(":until", attr_n(claim.until.as_unix_millis()))
        .expression_attribute_values(":count", attr_n(claim.delivery.attempt_count.into()))
}

/// A delivery as it is to stand, if it is still as it was found: nobody has attempted or changed it, and it is not in flight.
fn replacement_put(
    found: &Delivery,
    delivery: &Delivery,
    now: Timestamp,
    retention: Duration,
) -> PutBuilder {
    let put = Put::builder()
        .set_item(Some(to_delivery_item(delivery, now, retention)))
        .expression_attribute_names("#status", "status")
        .expression_attribute_values(":status", attr_s(found.state.as_str()))
        .expression_attribute_values(":count", attr_n(found.attempt_count.into()))
        .expression_attribute_values(":now", attr_n(now.as_unix_millis()));
    let (put, due) = match found.state {
        DeliveryState::Pending(at) => (
            put.expression_attribute_values(":due", attr_n(at.as_unix_millis())),
            "next_attempt_at = :due",
        ),
        _ => (put, "attribute_not_exists(next_attempt_at)"),
    };
    put.condition_expression(format!(
        "#status = :status AND attempt_count = :count AND {due} AND {NOT_IN_FLIGHT}"
    ))
}
