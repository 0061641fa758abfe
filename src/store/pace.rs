//! The slots of webhooks whose deliveries are spaced in time: a counter for each webhook, which all
//! processes share.

use aws_sdk_dynamodb::types::ReturnValue;
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::pace::{Pace, Slots},
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
/// The attribute of the counter: the start of the pace that its slots have. Another pace starts
/// from now, so that new deliveries do not wait behind the slots of a slower one.
const PACED_SINCE: &str = "paced_since";
/// How often a reservation is repeated because another process changed the counter between its two
/// requests.
const MAX_CONFLICTS: u32 = 4;

/// Which counters a reservation applies to.
#[derive(Clone, Copy)]
enum Counter {
    /// The next slot is in the future.
    Running,
    /// The next slot is now: no counter exists, its next slot has passed, or it has another pace.
    Idle,
}

/// See [`Store::pace`](super::Store::pace).
#[derive(Clone, Copy, Debug)]
pub struct PaceCounters<'a> {
    table: &'a TableClient,
}

impl<'a> PaceCounters<'a> {
    pub(super) const fn new(table: &'a TableClient) -> Self {
        Self { table }
    }
}

impl PaceCounters<'_> {
    /// Reserves the next `count` slots of a webhook, from `now` on.
    pub async fn reserve(
        self,
        account: &AccountId,
        webhook: WebhookId,
        pace: Pace,
        count: usize,
        now: Timestamp,
    ) -> Result<Slots> {
        let now_micros = u64::try_from(now.as_unix_millis()).unwrap_or(0) * 1000;
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        let interval = pace.max_per_second.interval_micros();
        let length = interval.saturating_mul(count);
        for conflicts in 0..MAX_CONFLICTS {
            for counter in [Counter::Idle, Counter::Running] {
                let end = self
                    .advance(account, webhook, pace, counter, length, now_micros)
                    .await?;
                if let Some(end) = end {
                    let first = end.saturating_sub(length);
                    return Ok(Slots::new(first, pace.max_per_second));
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
        pace: Pace,
        counter: Counter,
        length: u64,
        now: u64,
    ) -> Result<Option<u64>> {
        let update = self
            .table
            .update(key_schema::pace(account, webhook))
            .expression_attribute_names("#next", NEXT_SLOT)
            .expression_attribute_names("#since", PACED_SINCE)
            .expression_attribute_values(":now", micros(now))
            .expression_attribute_values(":since", attr_n(pace.since.as_unix_millis()))
            .return_values(ReturnValue::UpdatedNew);
        let update = match counter {
            Counter::Running => update
                .update_expression("ADD #next :length")
                .condition_expression("#next > :now AND #since = :since")
                .expression_attribute_values(":length", micros(length)),
            Counter::Idle => update
                .update_expression("SET #next = :end, #since = :since")
                .condition_expression(
                    "attribute_not_exists(#next) OR #next <= :now OR #since <> :since",
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
