//! The slots of webhooks whose deliveries are spaced in time: a counter for each webhook, which all
//! processes share.

use aws_sdk_dynamodb::types::ReturnValue;
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::pace::{MaxPerSecond, Slots},
    timestamp::Timestamp,
    webhook::WebhookId,
};

use super::{
    error::{Error, Result},
    item::{Item, attr_n},
    key_schema,
    table_client::{TableClient, sleep_with_backoff, too_many_conflicts},
};

/// The attribute of the counter: when the next slot is, in microseconds since the epoch.
const NEXT_SLOT: &str = "next_slot";
/// The attribute of the counter: the limit that its slots have. Another limit starts from now, so
/// that new deliveries do not wait behind the slots of a lower one.
const LIMIT: &str = "max_per_second";
/// How often a reservation is repeated because another process changed the counter between its two
/// requests.
const MAX_CONFLICTS: u32 = 4;

/// Which counters a reservation applies to.
#[derive(Clone, Copy)]
enum Counter {
    /// The next slot is in the future.
    Running,
    /// The next slot is now: no counter exists, its next slot has passed, or the limit was changed.
    Idle,
}

/// See [`Store::pace`](super::Store::pace).
#[derive(Clone, Copy, Debug)]
pub struct Pace<'a> {
    table: &'a TableClient,
}

impl<'a> Pace<'a> {
    pub(super) const fn new(table: &'a TableClient) -> Self {
        Self { table }
    }
}

impl Pace<'_> {
    /// Reserves the next `count` slots of a webhook, from `now` on.
    pub async fn reserve(
        self,
        account: &AccountId,
        webhook: WebhookId,
        limit: MaxPerSecond,
        count: usize,
        now: Timestamp,
    ) -> Result<Slots> {
        let now_micros = u64::try_from(now.as_unix_millis()).unwrap_or(0) * 1000;
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        let length = limit.interval_micros().saturating_mul(count);
        for conflicts in 0..MAX_CONFLICTS {
            for counter in [Counter::Idle, Counter::Running] {
                let end = self
                    .advance(account, webhook, limit, counter, length, now_micros)
                    .await?;
                if let Some(end) = end {
                    return Ok(Slots::new(end.saturating_sub(length), limit));
                }
            }
            sleep_with_backoff(conflicts).await;
        }
        Err(too_many_conflicts())
    }

    /// Advances the counter by `length` microseconds, and returns its new value. `None` if the
    /// counter is another one.
    async fn advance(
        self,
        account: &AccountId,
        webhook: WebhookId,
        limit: MaxPerSecond,
        counter: Counter,
        length: u64,
        now: u64,
    ) -> Result<Option<u64>> {
        let update = self
            .table
            .update(key_schema::pace(account, webhook))
            .expression_attribute_names("#next", NEXT_SLOT)
            .expression_attribute_names("#limit", LIMIT)
            .expression_attribute_values(":now", micros(now))
            .expression_attribute_values(":limit", attr_n(limit.get().into()))
            .return_values(ReturnValue::UpdatedNew);
        let update = match counter {
            Counter::Running => update
                .update_expression("ADD #next :length")
                .condition_expression("#next > :now AND #limit = :limit")
                .expression_attribute_values(":length", micros(length)),
            Counter::Idle => update
                .update_expression("SET #next = :end, #limit = :limit")
                .condition_expression(
                    "attribute_not_exists(#next) OR #next <= :now OR #limit <> :limit",
                )
                .expression_attribute_values(":end", micros(now.saturating_add(length))),
        };
        let error = match update.send().await {
            Ok(output) => {
                let next_slot = output.attributes.as_ref().and_then(parse_next_slot);
                return match next_slot {
                    Some(next_slot) => Ok(Some(next_slot)),
                    None => Err(Error::corrupt_item("next slot")),
                };
            }
            Err(error) => error,
        };
        match error.as_service_error() {
            Some(service) if service.is_conditional_check_failed_exception() => Ok(None),
            _ => Err(error.into()),
        }
    }
}

fn micros(number: u64) -> aws_sdk_dynamodb::types::AttributeValue {
    attr_n(i64::try_from(number).unwrap_or(i64::MAX))
}

fn parse_next_slot(attributes: &Item) -> Option<u64> {
    attributes.get(NEXT_SLOT)?.as_n().ok()?.parse().ok()
}
