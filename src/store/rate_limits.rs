//! Counters of an account's API requests: one item per day, one write per request, exact under
//! concurrency.

use aws_sdk_dynamodb::{
    operation::update_item::UpdateItemError, types::ReturnValuesOnConditionCheckFailure,
};
use serde::Deserialize;

use super::{
    error::{Error, Result},
    item::{attr_n, from_optional_item},
    key_schema,
    table_client::TableClient,
    tables::EXPIRES_AT,
};
use nano_webhooks_core::{account_id::AccountId, timestamp::Timestamp};

const MINUTE: i64 = 60;
const DAY: i64 = 24 * 60 * MINUTE;
/// How often a count is retried while concurrent requests start a new minute.
const MAX_TRIES: usize = 5;

/// How many requests an account may make. `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// In a minute of the clock.
    pub per_minute: Option<u32>,
    /// In a day of the clock, UTC.
    pub per_day: Option<u32>,
}

/// Whether a request is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimitDecision {
    /// The request was counted.
    Allowed,
    /// The request exceeds a limit and was not counted.
    Refused {
        /// When the limit allows another request. At least 1.
        retry_after_seconds: i64,
    },
}

/// The stored counters of a day. `minute` is the number of the minute since the epoch that
/// `in_minute` counts.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct RateCounters {
    minute: i64,
    in_minute: u64,
    in_day: u64,
}

/// How to count a request. Both are conditional on the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CountMode {
    /// As another request of this minute.
    SameMinute(i64),
    /// As the first request of this minute.
    NewMinute(i64),
}

/// What to do after a count was refused.
#[derive(Debug, PartialEq, Eq)]
enum AfterRefusal {
    Decide(RateLimitDecision),
    Retry(CountMode),
}

/// The result of one conditional count.
enum CountOutcome {
    Counted,
    /// The counters at that moment.
    Refused(RateCounters),
}

impl RateLimits {
    fn max_per_minute(self) -> u32 {
        self.per_minute.unwrap_or(u32::MAX)
    }

    fn max_per_day(self) -> u32 {
        self.per_day.unwrap_or(u32::MAX)
    }

    /// Why a count at `now` in `minute` was refused: a limit is reached, or the counters are those
    /// of another minute.
    fn decide_after_refusal(
        self,
        counters: RateCounters,
        minute: i64,
        now: Timestamp,
    ) -> AfterRefusal {
        if counters.in_day >= u64::from(self.max_per_day()) {
            return AfterRefusal::refuse_until_multiple(DAY, now);
        }
        // A later minute was counted by a machine whose clock is ahead. Its count continues.
        let latest_minute = minute.max(counters.minute);
        if counters.minute != latest_minute {
            return AfterRefusal::Retry(CountMode::NewMinute(latest_minute));
        }
        if counters.in_minute >= u64::from(self.max_per_minute()) {
            return AfterRefusal::refuse_until_multiple(MINUTE, now);
        }
        AfterRefusal::Retry(CountMode::SameMinute(latest_minute))
    }
}

impl AfterRefusal {
    /// Refuses until the next full minute or day.
    const fn refuse_until_multiple(period: i64, now: Timestamp) -> Self {
        Self::Decide(RateLimitDecision::Refused {
            retry_after_seconds: period - now.as_unix_seconds().rem_euclid(period),
        })
    }
}

/// See [`Store::rate_limits`](super::Store::rate_limits).
#[derive(Clone, Copy, Debug)]
pub struct RateLimiter<'a> {
    table: &'a TableClient,
}

impl<'a> RateLimiter<'a> {
    pub(super) const fn new(table: &'a TableClient) -> Self {
        Self { table }
    }
}

impl RateLimiter<'_> {
    /// Counts a request of an account, if the limits allow it.
    pub async fn check_and_count(
        self,
        account: &AccountId,
        limits: RateLimits,
        now: Timestamp,
    ) -> Result<RateLimitDecision> {
        if limits.per_minute.is_none() && limits.per_day.is_none() {
            return Ok(RateLimitDecision::Allowed);
        }
        let mut mode = CountMode::SameMinute(now.as_unix_seconds().div_euclid(MINUTE));
        for _ in 0..MAX_TRIES {
            let (CountMode::SameMinute(minute) | CountMode::NewMinute(minute)) = mode;
            let counters = match self.count(account, limits, mode, now).await? {
                CountOutcome::Counted => return Ok(RateLimitDecision::Allowed),
                CountOutcome::Refused(counters) => counters,
            };
            match limits.decide_after_refusal(counters, minute, now) {
                AfterRefusal::Decide(decision) => return Ok(decision),
                AfterRefusal::Retry(next) => mode = next,
            }
        }
        Err(Error::unavailable(
            "too many concurrent requests of the account",
        ))
    }

    async fn count(
        self,
        account: &AccountId,
        limits: RateLimits,
        mode: CountMode,
        now: Timestamp,
    ) -> Result<CountOutcome> {
        let key = key_schema::rate(account, &key_schema::utc_day(now));
        let request = self
            .table
            .update(key)
            .expression_attribute_names("#minute", "minute")
            .expression_attribute_values(":per_day", attr_n(limits.max_per_day().into()))
            .expression_attribute_values(":one", attr_n(1))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let request = match mode {
            CountMode::SameMinute(minute) => request
                .update_expression("SET in_minute = in_minute + :one, in_day = in_day + :one")
                .condition_expression(
                    "#minute = :minute AND in_minute < :per_minute AND in_day < :per_day",
                )
                .expression_attribute_values(":minute", attr_n(minute))
                .expression_attribute_values(":per_minute", attr_n(limits.max_per_minute().into())),
            CountMode::NewMinute(minute) => request
                .update_expression(
                    "SET #minute = :minute, in_minute = :one, #expires = :expires ADD in_day :one",
                )
                .condition_expression(
                    "attribute_not_exists(PK) OR (#minute < :minute AND in_day < :per_day)",
                )
                .expression_attribute_names("#expires", EXPIRES_AT)
                .expression_attribute_values(":minute", attr_n(minute))
                .expression_attribute_values(":expires", attr_n(now.as_unix_seconds() + 2 * DAY)),
        };
        let Err(error) = request.send().await else {
            return Ok(CountOutcome::Counted);
        };
        let Some(UpdateItemError::ConditionalCheckFailedException(failure)) =
            error.as_service_error()
        else {
            return Err(error.into());
        };
        let counters = from_optional_item(failure.item.clone())?;
        Ok(CountOutcome::Refused(counters.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RateLimits = RateLimits {
        per_minute: Some(10),
        per_day: Some(100),
    };

    /// 2 minutes and 15 seconds after the epoch.
    const NOW: Timestamp = Timestamp::from_millis(135_000);

    fn refused(retry_after_seconds: i64) -> AfterRefusal {
        AfterRefusal::Decide(RateLimitDecision::Refused {
            retry_after_seconds,
        })
    }

    #[test]
    fn refusal_depends_on_counters() {
        for (minute, in_minute, in_day, expected) in [
            // No item yet.
            (0, 0, 0, AfterRefusal::Retry(CountMode::NewMinute(2))),
            (1, 10, 20, AfterRefusal::Retry(CountMode::NewMinute(2))),
            (2, 10, 20, refused(45)),
            (2, 9, 20, AfterRefusal::Retry(CountMode::SameMinute(2))),
            // Another machine's clock is ahead.
            (3, 9, 20, AfterRefusal::Retry(CountMode::SameMinute(3))),
            (3, 10, 20, refused(45)),
            (1, 0, 100, refused(DAY - 135)),
            (2, 10, 100, refused(DAY - 135)),
        ] {
            let counters = RateCounters {
                minute,
                in_minute,
                in_day,
            };
            let after = LIMITS.decide_after_refusal(counters, 2, NOW);
            assert_eq!(after, expected, "{counters:?}");
        }
    }

    #[test]
    fn absent_limit_never_refuses() {
        let counters = RateCounters {
            minute: 2,
            in_minute: 1_000_000,
            in_day: 1_000_000,
        };
        let unlimited_minutes = RateLimits {
            per_minute: None,
            per_day: Some(2_000_000),
        };
        assert_eq!(
            unlimited_minutes.decide_after_refusal(counters, 2, NOW),
            AfterRefusal::Retry(CountMode::SameMinute(2))
        );
    }
}
