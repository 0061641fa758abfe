//! The count of an account's API requests: one item a day, one write a request, exact under concurrency.

use aws_sdk_dynamodb::types::ReturnValuesOnConditionCheckFailure;
use serde::Deserialize;

use super::{Error, Result, Store, attr_n, from_item, key_schema, tables::EXPIRES_AT};
use nano_webhooks_core::{account_id::AccountId, timestamp::Timestamp};

/// How many requests an account may make; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// In one minute of the clock.
    pub per_minute: Option<u32>,
    /// In one day of the clock, UTC.
    pub per_day: Option<u32>,
}

/// Whether a request is within the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimitDecision {
    /// It is.
    Allowed,
    /// It is not; one may be again after this many seconds.
    Refused {
        /// At least 1.
        retry_after_seconds: i64,
    },
}

#[derive(Default, Deserialize)]
struct RateCounters {
    minute: i64,
    in_minute: u64,
    in_day: u64,
}

const MINUTE: i64 = 60;
const DAY: i64 = 24 * 60 * MINUTE;
/// How often the count is tried again when a new minute begins for several requests at once.
const MAX_TRIES: usize = 5;

/// See [`Store::rate_limits`].
#[derive(Clone, Copy, Debug)]
pub struct RateLimiter<'a> {
    store: &'a Store,
}

impl<'a> RateLimiter<'a> {
    pub(super) const fn new(store: &'a Store) -> Self {
        Self { store }
    }
}

impl RateLimiter<'_> {
    /// Counts a request, if the limits allow it.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn check_and_count(
        self,
        account: &AccountId,
        limits: RateLimits,
        now: Timestamp,
    ) -> Result<RateLimitDecision> {
        if limits.per_minute.is_none() && limits.per_day.is_none() {
            return Ok(RateLimitDecision::Allowed);
        }
        let mut minute = now.as_unix_seconds().div_euclid(MINUTE);
        let per_minute = limits.per_minute.unwrap_or(u32::MAX);
        let per_day = limits.per_day.unwrap_or(u32::MAX);
        let mut same_minute = true;
        for _ in 0..MAX_TRIES {
            let (update, condition) = if same_minute {
                (
                    "SET in_minute = in_minute + :one, in_day = in_day + :one",
                    "#minute = :minute AND in_minute < :per_minute AND in_day < :per_day",
                )
            } else {
                (
                    "SET #minute = :minute, in_minute = :one, #expires = :expires ADD in_day :one",
                    "attribute_not_exists(PK) OR (#minute < :minute AND in_day < :per_day)",
                )
            };
            let request = self
                .store
                .client
                .update_item()
                .table_name(&self.store.tables.webhooks)
                .set_key(Some(
                    key_schema::rate(account, &key_schema::utc_day(now)).into_item(),
                ))
                .update_expression(update)
                .condition_expression(condition)
                .expression_attribute_names("#minute", "minute")
                .expression_attribute_values(":minute", attr_n(minute))
                .expression_attribute_values(":per_day", attr_n(per_day.into()))
                .expression_attribute_values(":one", attr_n(1))
                .return_values_on_condition_check_failure(
                    ReturnValuesOnConditionCheckFailure::AllOld,
                );
            let request = if same_minute {
                request.expression_attribute_values(":per_minute", attr_n(per_minute.into()))
            } else {
                request
                    .expression_attribute_names("#expires", EXPIRES_AT)
                    .expression_attribute_values(
                        ":expires",
                        attr_n(now.as_unix_seconds() + 2 * DAY),
                    )
            };
            let refused = match request.send().await {
                Ok(_) => return Ok(RateLimitDecision::Allowed),
                Err(error) => match error.as_service_error() {
                    Some(service) if service.is_conditional_check_failed_exception() => {
                        error.into_service_error()
                    }
                    _ => return Err(error.into()),
                },
            };
            let item = match refused {
                aws_sdk_dynamodb::operation::update_item::UpdateItemError::ConditionalCheckFailedException(failed) => {
                    failed.item
                }
                _ => None,
            };
            let count: RateCounters = item.map(from_item).transpose()?.unwrap_or_default();
            if count.in_day >= u64::from(per_day) {
                return Ok(RateLimitDecision::Refused {
                    retry_after_seconds: DAY - now.as_unix_seconds().rem_euclid(DAY),
                });
            }
            // A minute ahead of ours was counted by a machine whose clock is ahead: that count goes on.
            minute = minute.max(count.minute);
            same_minute = count.minute == minute;
            if same_minute && count.in_minute >= u64::from(per_minute) {
                return Ok(RateLimitDecision::Refused {
                    retry_after_seconds: MINUTE - now.as_unix_seconds().rem_euclid(MINUTE),
                });
            }
        }
        Err(Error::Unavailable(
            "too many requests of one account at the same time".to_owned(),
        ))
    }
}
