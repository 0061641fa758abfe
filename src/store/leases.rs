//! Changes of pending deliveries: an attempt under a lease, and everything that happens to a
//! delivery between attempts.
//!
//! Every change has a condition on the number of attempts or on the lease. So a late or repeated
//! message changes nothing, and only the worker that holds the lease writes a result.

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
    deliveries::Deliveries,
    delivery_log::{DeliveryFilter, DeliveryLog},
    delivery_row::{DeliveryRow, to_delivery_item},
    error::{Error, Result},
    item::{attr_n, attr_s, from_item, from_optional_item},
    key_schema,
    replay_record::{ReplayKey, ReplayRecords},
    table_client::{TableClient, TransactOutcome, WriteOutcome},
    tables::SWEEP_AT,
};
use crate::concurrency;
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{
        Delivery, DeliveryKey, DeliveryState, lease, status::DeliveryStatus,
        wait_reason::WaitReason,
    },
    timestamp::Timestamp,
    webhook::WebhookId,
};

/// How many pending deliveries are cancelled in the request that deletes their webhook.
const IMMEDIATE_CANCEL_LIMIT: usize = 200;
/// How many of them are cancelled at the same time.
const CONCURRENT_CANCELS: usize = 32;

/// The condition that no worker holds a lease.
const NOT_IN_FLIGHT: &str = "(attribute_not_exists(leased_until) OR leased_until <= :now)";
/// The condition that no manual retry is requested.
const NO_MANUAL_RETRY: &str = "attribute_not_exists(resume_status)";

/// The right to attempt a delivery until a time.
#[derive(Debug)]
pub struct Lease {
    /// The delivery when the lease was acquired.
    pub delivery: Delivery,
    until: Timestamp,
}

/// The result of a request for a lease.
#[derive(Debug)]
pub enum ClaimOutcome {
    /// The caller holds the lease.
    Acquired(Box<Lease>),
    /// The delivery is due at this time.
    NotDue(Timestamp),
    /// The delivery was attempted meanwhile, is in flight, or is no longer pending.
    Stale,
}

/// The attributes that explain why a claim was refused.
#[derive(Debug, Deserialize)]
struct CurrentState {
    status: String,
    attempt_count: u32,
    #[serde(default)]
    next_attempt_at: Option<Timestamp>,
    #[serde(default)]
    leased_until: Option<Timestamp>,
}

impl CurrentState {
    /// Why a claim for the attempt after `attempt_count` others was refused.
    fn explain_refusal(&self, attempt_count: u32, now: Timestamp) -> ClaimOutcome {
        let is_leased = match self.leased_until {
            Some(until) => until > now,
            None => false,
        };
        match self.next_attempt_at {
            Some(due_at)
                if self.status == DeliveryStatus::Pending.as_str()
                    && self.attempt_count == attempt_count
                    && !is_leased =>
            {
                ClaimOutcome::NotDue(due_at)
            }
            _ => ClaimOutcome::Stale,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
struct DeferralsRow {
    #[serde(default)]
    deferrals: u32,
}

/// See [`Store::leases`](super::Store::leases).
#[derive(Clone, Copy, Debug)]
pub struct Leases<'a> {
    table: &'a TableClient,
    replays: ReplayRecords<'a>,
    deliveries: Deliveries<'a>,
    log: DeliveryLog<'a>,
}

impl<'a> Leases<'a> {
    pub(super) const fn new(
        deliveries_table: &'a TableClient,
        webhooks_table: &'a TableClient,
        deliveries: Deliveries<'a>,
        log: DeliveryLog<'a>,
    ) -> Self {
        Self {
            table: deliveries_table,
            replays: ReplayRecords::new(webhooks_table),
            deliveries,
            log,
        }
    }
}

impl Leases<'_> {
    /// Acquires the lease of a delivery for the attempt after `attempt_count` others, if it is due.
    /// The delivery of the lease has the reason for which it waited until now.
    pub async fn claim(
        self,
        key: &DeliveryKey,
        attempt_count: u32,
        now: Timestamp,
    ) -> Result<ClaimOutcome> {
        let until = now + lease::LEASE_DURATION;
        let response = self
            .update_pending(key, attempt_count, now)
            .update_expression(
                "SET leased_until = :until, sweep_at = :until \
                 REMOVE waiting_for, deferrals, paced_since",
            )
            .condition_expression(due_condition())
            .expression_attribute_values(":until", attr_n(until.as_unix_millis()))
            .return_values(ReturnValue::AllOld)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .send()
            .await;
        let error = match response {
            Ok(output) => {
                let item = output
                    .attributes
                    .ok_or_else(|| Error::corrupt_item("list of attributes"))?;
                let delivery = from_item::<DeliveryRow>(item)?.into_delivery()?;
                return Ok(ClaimOutcome::Acquired(Box::new(Lease { delivery, until })));
            }
            Err(error) => error,
        };
        let Some(UpdateItemError::ConditionalCheckFailedException(failure)) =
            error.as_service_error()
        else {
            return Err(error.into());
        };
        let current: Option<CurrentState> = from_optional_item(failure.item.clone())?;
        match current {
            Some(current) => Ok(current.explain_refusal(attempt_count, now)),
            None => Ok(ClaimOutcome::Stale),
        }
    }

    /// Records a new delivery whose first attempt is in flight, and leases it for that attempt. No
    /// message is sent: if the attempt's result is never written, the sweep finds the delivery when
    /// the lease ends. `None` if the delivery is recorded already.
    pub async fn insert_leased(
        self,
        delivery: Delivery,
        now: Timestamp,
        retention: Duration,
    ) -> Result<Option<Lease>> {
        let until = now + lease::LEASE_DURATION;
        let mut item = to_delivery_item(&delivery, now, retention);
        item.insert("leased_until".to_owned(), attr_n(until.as_unix_millis()));
        item.insert(SWEEP_AT.to_owned(), attr_n(until.as_unix_millis()));
        match self.table.insert(item).await? {
            WriteOutcome::Applied => Ok(Some(Lease { delivery, until })),
            WriteOutcome::ConditionFailed => Ok(None),
        }
    }

    /// Writes the result of an attempt and ends the lease. The condition fails if the lease has
    /// expired and the delivery has changed since. A replay that requested the attempt counts it.
    pub async fn complete(
        self,
        lease: &Lease,
        delivery: &Delivery,
        now: Timestamp,
        retention: Duration,
    ) -> Result<WriteOutcome> {
        let put = completion_put(lease, delivery, now, retention);
        let replay = match &lease.delivery.replay {
            // The attempt is still requested.
            _ if delivery.replay.is_some() => return self.table.put_if(put).await,
            Some(replay) => replay,
            None => return self.table.put_if(put).await,
        };
        let was_attempted = delivery.attempt_count > lease.delivery.attempt_count;
        let count = if was_attempted {
            self.replays.count_result(delivery, replay)
        } else {
            self.replays.uncount_sent(&delivery.key, replay)
        };
        self.put_and_count_replay(put, count).await
    }

    /// Writes a delivery and counts it for its replay. If the replay no longer exists, the delivery
    /// is written alone.
    async fn put_and_count_replay(
        self,
        put: PutBuilder,
        count: TransactWriteItem,
    ) -> Result<WriteOutcome> {
        let writes = vec![self.table.transact_put(put.clone()), count];
        match self.table.transact_write(writes).await? {
            TransactOutcome::Applied => Ok(WriteOutcome::Applied),
            TransactOutcome::ConditionFailed { index: 0 } => Ok(WriteOutcome::ConditionFailed),
            TransactOutcome::ConditionFailed { .. } => self.table.put_if(put).await,
        }
    }

    /// Postpones a due delivery until `due_at`, without using an attempt, because its endpoint has
    /// no free place for an attempt in flight. It keeps its slot, if it has one. The condition
    /// fails if it is not due.
    pub async fn defer(
        self,
        key: &DeliveryKey,
        attempt_count: u32,
        due_at: Timestamp,
        now: Timestamp,
    ) -> Result<WriteOutcome> {
        let response = self
            .postpone(key, attempt_count, due_at, now)
            .update_expression("SET next_attempt_at = :due, sweep_at = :sweep")
            .send()
            .await;
        WriteOutcome::from_response(response)
    }

    /// Postpones a due delivery until `due_at`, without using an attempt, because its webhook's
    /// secrets cannot be decrypted. `deferrals` is the number of consecutive deferrals for this
    /// reason, this one included. The condition fails if the delivery is not due.
    pub async fn wait_for_secret(
        self,
        key: &DeliveryKey,
        attempt_count: u32,
        deferrals: u32,
        due_at: Timestamp,
        now: Timestamp,
    ) -> Result<WriteOutcome> {
        let response = self
            .postpone(key, attempt_count, due_at, now)
            .update_expression(
                "SET next_attempt_at = :due, sweep_at = :sweep, waiting_for = :secret, \
                 deferrals = :deferrals",
            )
            .expression_attribute_values(":secret", attr_s(WaitReason::Secret.as_str()))
            .expression_attribute_values(":deferrals", attr_n(deferrals.into()))
            .send()
            .await;
        WriteOutcome::from_response(response)
    }

    /// An update of a due delivery whose expression sets the times `:due` and `:sweep`.
    fn postpone(
        self,
        key: &DeliveryKey,
        attempt_count: u32,
        due_at: Timestamp,
        now: Timestamp,
    ) -> UpdateItemFluentBuilder {
        let sweep_at = lease::sweep_at(due_at, now);
        self.update_pending(key, attempt_count, now)
            .condition_expression(due_condition())
            .expression_attribute_values(":due", attr_n(due_at.as_unix_millis()))
            .expression_attribute_values(":sweep", attr_n(sweep_at.as_unix_millis()))
    }

    /// The number of consecutive deferrals because the webhook's secrets could not be decrypted.
    /// Eventually consistent.
    pub async fn count_deferrals(self, key: &DeliveryKey) -> Result<u32> {
        let response = self
            .table
            .client()
            .get_item()
            .table_name(self.table.name())
            .set_key(Some(key_schema::delivery(key).into_item()))
            .projection_expression("deferrals")
            .send()
            .await?;
        let row: Option<DeferralsRow> = from_optional_item(response.item)?;
        Ok(row.unwrap_or_default().deferrals)
    }

    /// Pauses a pending delivery until its webhook is enabled or repaired: it is no longer due and
    /// expires after `retention`. A manual retry or a replay stays requested.
    pub async fn pause(
        self,
        key: &DeliveryKey,
        attempt_count: u32,
        waiting_for: Option<WaitReason>,
        now: Timestamp,
        retention: Duration,
    ) -> Result<WriteOutcome> {
        let response = self
            .update_paused(key, attempt_count, waiting_for, now, retention)
            .condition_expression(pending_condition())
            .send()
            .await;
        WriteOutcome::from_response(response)
    }

    /// Pauses a pending delivery until its endpoint responds again, as [`Self::pause`] does. The
    /// condition also fails if a manual retry is requested, which is attempted nevertheless.
    pub async fn wait_for_endpoint(
        self,
        key: &DeliveryKey,
        attempt_count: u32,
        now: Timestamp,
        retention: Duration,
    ) -> Result<WriteOutcome> {
        let waiting_for = Some(WaitReason::Endpoint);
        let response = self
            .update_paused(key, attempt_count, waiting_for, now, retention)
            .condition_expression(format!(
                "{} AND attribute_exists(next_attempt_at) \
                 AND ({NO_MANUAL_RETRY} OR attribute_exists(replay))",
                pending_condition()
            ))
            .send()
            .await;
        WriteOutcome::from_response(response)
    }

    /// An update that pauses a delivery.
    fn update_paused(
        self,
        key: &DeliveryKey,
        attempt_count: u32,
        waiting_for: Option<WaitReason>,
        now: Timestamp,
        retention: Duration,
    ) -> UpdateItemFluentBuilder {
        let expires_at = (now + retention).as_unix_seconds();
        let update = self
            .update_pending(key, attempt_count, now)
            .expression_attribute_values(":expires", attr_n(expires_at));
        match waiting_for {
            Some(reason) => update
                .update_expression(
                    "SET expires_at = :expires, waiting_for = :reason \
                     REMOVE next_attempt_at, sweep_at, due_shard, leased_until, deferrals, \
                     paced_since",
                )
                .expression_attribute_values(":reason", attr_s(reason.as_str())),
            None => update.update_expression(
                "SET expires_at = :expires \
                 REMOVE next_attempt_at, sweep_at, due_shard, leased_until, waiting_for, \
                 deferrals, paced_since",
            ),
        }
    }

    /// Cancels a pending delivery. The condition fails if it is not pending or in flight. In the
    /// latter case, its result is written first, and the rest is cancelled when the delivery is due
    /// again.
    pub async fn cancel(
        self,
        key: &DeliveryKey,
        now: Timestamp,
        retention: Duration,
    ) -> Result<WriteOutcome> {
        let expires_at = (now + retention).as_unix_seconds();
        let response = self
            .table
            .update(key_schema::delivery(key))
            .update_expression(
                "SET #status = :cancelled, expires_at = :expires \
                 REMOVE next_attempt_at, sweep_at, due_shard, state_key, leased_until, \
                 waiting_for, deferrals, paced_since",
            )
            .condition_expression(format!(
                "#status = :pending AND {NOT_IN_FLIGHT} AND {NO_MANUAL_RETRY}"
            ))
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":now", attr_n(now.as_unix_millis()))
            .expression_attribute_values(":expires", attr_n(expires_at))
            .expression_attribute_values(":cancelled", attr_s(DeliveryStatus::Cancelled.as_str()))
            .expression_attribute_values(":pending", attr_s(DeliveryStatus::Pending.as_str()))
            .send()
            .await;
        match WriteOutcome::from_response(response)? {
            WriteOutcome::Applied => Ok(WriteOutcome::Applied),
            WriteOutcome::ConditionFailed => self.revoke_manual_retry(key, now, retention).await,
        }
    }

    /// Restores the state before a requested retry that was not attempted. The condition fails if
    /// none is requested. If the restored state is pending, the delivery is cancelled when it is
    /// due.
    async fn revoke_manual_retry(
        self,
        key: &DeliveryKey,
        now: Timestamp,
        retention: Duration,
    ) -> Result<WriteOutcome> {
        let Some(current) = self.deliveries.get(key).await? else {
            return Ok(WriteOutcome::ConditionFailed);
        };
        let mut restored = current.clone();
        if !restored.cancel_requested_retry() {
            return Ok(WriteOutcome::ConditionFailed);
        }
        if let Some(id) = &current.replay {
            // Deliveries are cancelled when their webhook is deleted, which also cancels its
            // replay.
            let replay = ReplayKey::for_delivery(key, id.clone());
            self.replays.cancel(&replay).await?;
        }
        self.replace_if_unchanged(&current, &restored, now, retention)
            .await
    }

    /// Cancels pending deliveries of a webhook that was deleted, up to a limit. The rest is
    /// cancelled when it is due, because every attempt reads its webhook first.
    pub async fn cancel_pending(
        self,
        account: &AccountId,
        webhook: WebhookId,
        now: Timestamp,
        retention: Duration,
    ) -> Result<()> {
        let filter = DeliveryFilter {
            status: Some(DeliveryStatus::Pending),
            event: None,
            after: None,
            limit: IMMEDIATE_CANCEL_LIMIT,
        };
        let page = self.log.list(account, webhook, &filter).await?;
        let keys = page
            .deliveries
            .into_iter()
            .map(|summary| DeliveryKey {
                account: account.clone(),
                webhook,
                event: summary.event_id,
            })
            .collect();
        let outcomes = concurrency::map_concurrent(keys, CONCURRENT_CANCELS, async |key| {
            self.cancel(&key, now, retention).await
        });
        for outcome in outcomes.await {
            // A failed condition means that the delivery is in flight. It is cancelled when it is
            // due again.
            outcome?;
        }
        Ok(())
    }

    /// Makes a delivery due now, because a user requested it. Returns the changed delivery, or
    /// `None` if it is in flight, was deleted or has changed since it was read. A replay that had
    /// scheduled it continues without it.
    pub async fn schedule_retry(
        self,
        current: &Delivery,
        now: Timestamp,
        retention: Duration,
    ) -> Result<Option<Delivery>> {
        let delivery = with_manual_retry(current, now);
        let outcome = self
            .replace_if_unchanged(current, &delivery, now, retention)
            .await?;
        Ok(applied_delivery(outcome, delivery))
    }

    /// Does the same without a message: the next sweep sends it.
    pub async fn schedule_retry_for_sweep(
        self,
        current: &Delivery,
        now: Timestamp,
        retention: Duration,
    ) -> Result<Option<Delivery>> {
        let delivery = with_manual_retry(current, now);
        let put = replacement_put(current, &delivery, now, retention)
            .item(SWEEP_AT, attr_n(now.as_unix_millis()));
        let outcome = self.put_replacement(current, put).await?;
        Ok(applied_delivery(outcome, delivery))
    }

    /// Writes `delivery` if `current` is still stored and not in flight. A replay that had
    /// scheduled `current` no longer counts it.
    async fn replace_if_unchanged(
        self,
        current: &Delivery,
        delivery: &Delivery,
        now: Timestamp,
        retention: Duration,
    ) -> Result<WriteOutcome> {
        let put = replacement_put(current, delivery, now, retention);
        self.put_replacement(current, put).await
    }

    async fn put_replacement(self, current: &Delivery, put: PutBuilder) -> Result<WriteOutcome> {
        match &current.replay {
            Some(replay) => {
                let count = self.replays.uncount_sent(&current.key, replay);
                self.put_and_count_replay(put, count).await
            }
            None => self.table.put_if(put).await,
        }
    }

    /// An update of a delivery that is pending after `attempt_count` attempts, for a condition that
    /// uses these values.
    fn update_pending(
        self,
        key: &DeliveryKey,
        attempt_count: u32,
        now: Timestamp,
    ) -> UpdateItemFluentBuilder {
        self.table
            .update(key_schema::delivery(key))
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":pending", attr_s(DeliveryStatus::Pending.as_str()))
            .expression_attribute_values(":count", attr_n(attempt_count.into()))
            .expression_attribute_values(":now", attr_n(now.as_unix_millis()))
    }
}

/// The condition that a delivery is pending after a number of attempts, and not in flight.
fn pending_condition() -> String {
    format!("#status = :pending AND attempt_count = :count AND {NOT_IN_FLIGHT}")
}

/// The condition that a delivery is pending, not in flight, and due.
fn due_condition() -> String {
    format!("{} AND next_attempt_at <= :now", pending_condition())
}

fn with_manual_retry(current: &Delivery, now: Timestamp) -> Delivery {
    let mut delivery = current.clone();
    delivery.request_retry(now);
    delivery.replay = None;
    delivery
}

fn applied_delivery(outcome: WriteOutcome, delivery: Delivery) -> Option<Delivery> {
    match outcome {
        WriteOutcome::Applied => Some(delivery),
        WriteOutcome::ConditionFailed => None,
    }
}

/// Writes a delivery if the lease is still held.
pub(super) fn completion_put(
    lease: &Lease,
    delivery: &Delivery,
    now: Timestamp,
    retention: Duration,
) -> PutBuilder {
    Put::builder()
        .set_item(Some(to_delivery_item(delivery, now, retention)))
        .condition_expression("leased_until = :until AND attempt_count = :count")
        .expression_attribute_values(":until", attr_n(lease.until.as_unix_millis()))
        .expression_attribute_values(":count", attr_n(lease.delivery.attempt_count.into()))
}

/// Writes `delivery` if `current` is still stored and not in flight.
fn replacement_put(
    current: &Delivery,
    delivery: &Delivery,
    now: Timestamp,
    retention: Duration,
) -> PutBuilder {
    let mut put = Put::builder()
        .set_item(Some(to_delivery_item(delivery, now, retention)))
        .expression_attribute_names("#status", "status")
        .expression_attribute_values(":status", attr_s(current.state.status().as_str()))
        .expression_attribute_values(":count", attr_n(current.attempt_count.into()))
        .expression_attribute_values(":now", attr_n(now.as_unix_millis()));
    let same_due_time = if let DeliveryState::Pending(due_at) = current.state {
        put = put.expression_attribute_values(":due", attr_n(due_at.as_unix_millis()));
        "next_attempt_at = :due"
    } else {
        "attribute_not_exists(next_attempt_at)"
    };
    put.condition_expression(format!(
        "#status = :status AND attempt_count = :count AND {same_due_time} AND {NOT_IN_FLIGHT}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_of_waiting_delivery_names_due_time() {
        let at = Timestamp::from_millis;
        let waiting = || CurrentState {
            status: "pending".to_owned(),
            attempt_count: 2,
            next_attempt_at: Some(at(500)),
            leased_until: None,
        };
        let expired_lease = CurrentState {
            leased_until: Some(at(100)),
            ..waiting()
        };
        for current in [waiting(), expired_lease] {
            let outcome = current.explain_refusal(2, at(100));
            assert!(
                matches!(outcome, ClaimOutcome::NotDue(due_at) if due_at == at(500)),
                "{current:?} {outcome:?}"
            );
        }
    }

    #[test]
    fn refusal_of_other_delivery_is_stale() {
        let at = Timestamp::from_millis;
        let waiting = || CurrentState {
            status: "pending".to_owned(),
            attempt_count: 2,
            next_attempt_at: Some(at(500)),
            leased_until: None,
        };
        for current in [
            CurrentState {
                status: "delivered".to_owned(),
                next_attempt_at: None,
                ..waiting()
            },
            CurrentState {
                attempt_count: 3,
                ..waiting()
            },
            CurrentState {
                leased_until: Some(at(101)),
                ..waiting()
            },
            CurrentState {
                next_attempt_at: None,
                ..waiting()
            },
        ] {
            let outcome = current.explain_refusal(2, at(100));
            assert!(matches!(outcome, ClaimOutcome::Stale), "{current:?}");
        }
    }
}
