//! Slots of test events: leases that limit how many are in progress, for one account and in the
//! whole deployment.
//!
//! Each slot is an item. It is taken with a condition, so the limits hold over all processes. A
//! slot whose holder ended without freeing it is free again when its lease ends.

use std::time::Duration;

use aws_sdk_dynamodb::{
    operation::update_item::UpdateItemError, types::ReturnValuesOnConditionCheckFailure,
};
use serde::Deserialize;

use super::{
    error::Result,
    item::{attr_n, attr_s, from_optional_item},
    key_schema::{self, PrimaryKey},
    table_client::TableClient,
    tables::EXPIRES_AT,
};
use crate::random;
use nano_webhooks_core::{account_id::AccountId, timestamp::Timestamp};

/// Test events of one account that may be in progress.
pub const MAX_TEST_EVENTS_PER_ACCOUNT: u32 = 2;
/// How long a slot is held at most: longer than the API function runs.
pub const SLOT_LEASE: Duration = Duration::from_secs(30);
/// How many of the deployment's slots are tried. With many slots, a free one is found at once; only
/// when most are taken can a test event be refused although one is free.
const MAX_TRIES: u32 = 3;

/// The right to send one test event.
#[derive(Debug)]
pub struct HeldSlots {
    account_slot: PrimaryKey,
    deployment_slot: PrimaryKey,
    holder: String,
}

/// The result of a request for slots.
#[derive(Debug)]
pub enum AcquireOutcome {
    /// The caller may send a test event, and releases the slots afterward.
    Acquired(HeldSlots),
    /// All slots are taken.
    Refused {
        /// When one is free at the latest. At least 1.
        retry_after_seconds: i64,
    },
}

/// The result of trying several slots.
enum TakeOutcome {
    Taken(PrimaryKey),
    /// None is free; the first lease ends at this time.
    AllTaken(Timestamp),
}

#[derive(Deserialize)]
struct SlotRow {
    leased_until: Timestamp,
}

/// See [`Store::test_event_slots`](super::Store::test_event_slots).
#[derive(Clone, Copy, Debug)]
pub struct TestEventSlots<'a> {
    table: &'a TableClient,
}

impl<'a> TestEventSlots<'a> {
    pub(super) const fn new(table: &'a TableClient) -> Self {
        Self { table }
    }
}

impl TestEventSlots<'_> {
    /// Takes a slot of the account, and one of the `deployment_limit` slots of the deployment.
    pub async fn acquire(
        self,
        account: &AccountId,
        deployment_limit: u32,
        now: Timestamp,
    ) -> Result<AcquireOutcome> {
        let holder = hex::encode(random::bytes::<8>());
        let account_slots = choose_slots(MAX_TEST_EVENTS_PER_ACCOUNT)
            .map(|slot| key_schema::account_test_slot(account, slot));
        let account_slot = match self.take_any(account_slots, &holder, now).await? {
            TakeOutcome::Taken(slot) => slot,
            TakeOutcome::AllTaken(until) => return Ok(refuse(until, now)),
        };
        let deployment_slots = choose_slots(deployment_limit).map(key_schema::deployment_test_slot);
        match self.take_any(deployment_slots, &holder, now).await? {
            TakeOutcome::Taken(deployment_slot) => Ok(AcquireOutcome::Acquired(HeldSlots {
                account_slot,
                deployment_slot,
                holder,
            })),
            TakeOutcome::AllTaken(until) => {
                self.free(&account_slot, &holder).await?;
                Ok(refuse(until, now))
            }
        }
    }

    /// Frees the slots of a test event that has ended.
    pub async fn release(self, slots: &HeldSlots) -> Result<()> {
        let account = self.free(&slots.account_slot, &slots.holder);
        let deployment = self.free(&slots.deployment_slot, &slots.holder);
        tokio::try_join!(account, deployment)?;
        Ok(())
    }

    async fn take_any(
        self,
        slots: impl Iterator<Item = PrimaryKey>,
        holder: &str,
        now: Timestamp,
    ) -> Result<TakeOutcome> {
        let mut first_end = now + SLOT_LEASE;
        for slot in slots {
            match self.take(&slot, holder, now).await? {
                None => return Ok(TakeOutcome::Taken(slot)),
                Some(leased_until) => first_end = first_end.min(leased_until),
            }
        }
        Ok(TakeOutcome::AllTaken(first_end))
    }

    /// Takes a slot; if it is taken, returns the end of its lease.
    async fn take(
        self,
        slot: &PrimaryKey,
        holder: &str,
        now: Timestamp,
    ) -> Result<Option<Timestamp>> {
        let until = now + SLOT_LEASE;
        let response = self
            .table
            .update(slot.clone())
            .update_expression("SET leased_until = :until, holder = :holder, #expires = :expires")
            .condition_expression("attribute_not_exists(PK) OR leased_until <= :now")
            .expression_attribute_names("#expires", EXPIRES_AT)
            .expression_attribute_values(":until", attr_n(until.as_unix_millis()))
            .expression_attribute_values(":holder", attr_s(holder))
            .expression_attribute_values(":expires", attr_n(until.as_unix_seconds()))
            .expression_attribute_values(":now", attr_n(now.as_unix_millis()))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .send()
            .await;
        let Err(error) = response else {
            return Ok(None);
        };
        let Some(UpdateItemError::ConditionalCheckFailedException(failure)) =
            error.as_service_error()
        else {
            return Err(error.into());
        };
        let row: Option<SlotRow> = from_optional_item(failure.item.clone())?;
        Ok(Some(row.map_or(until, |row| row.leased_until)))
    }

    /// Frees a slot unless another holder has taken it since.
    async fn free(self, slot: &PrimaryKey, holder: &str) -> Result<()> {
        self.table
            .delete_if_equal(slot.clone(), "holder", attr_s(holder))
            .await?;
        Ok(())
    }
}

/// Up to [`MAX_TRIES`] different slots below `limit`, from a random one on.
fn choose_slots(limit: u32) -> impl Iterator<Item = u32> {
    let limit = limit.max(1);
    let first = u32::from_le_bytes(random::bytes()) % limit;
    (0..limit.min(MAX_TRIES)).map(move |offset| (first + offset) % limit)
}

fn refuse(until: Timestamp, now: Timestamp) -> AcquireOutcome {
    let wait = until.saturating_duration_since(now).as_millis();
    let seconds = i64::try_from(wait.div_ceil(1_000)).unwrap_or(i64::MAX);
    AcquireOutcome::Refused {
        retry_after_seconds: seconds.max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_slots_differ_and_are_below_limit() {
        for (limit, expected) in [(0, 1), (1, 1), (2, 2), (3, 3), (100, 3), (u32::MAX, 3)] {
            let mut slots: Vec<_> = choose_slots(limit).collect();
            slots.sort_unstable();
            slots.dedup();
            assert_eq!(slots.len(), expected, "{limit}");
            assert!(slots.iter().all(|slot| *slot < limit.max(1)), "{slots:?}");
        }
    }
}
