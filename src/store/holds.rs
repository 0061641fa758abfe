//! Counts the environments that begin to be held by late attempts.

use std::time::Duration;

use super::{
    error::Result,
    item::attr_n,
    key_schema,
    table_client::{TableClient, WriteOutcome},
    tables::EXPIRES_AT,
};
use nano_webhooks_core::timestamp::Timestamp;

/// How many environments of the deployment may begin to be held in one [`WINDOW`]. An exchange ends
/// within as long, so at most twice as many are held: of the 1,000 concurrent executions that an
/// account has by default (Lambda quotas), the stream keeps more than half.
pub const MAX_HOLDS_PER_WINDOW: i64 = 200;
/// The time that one counter covers.
pub const WINDOW: Duration = Duration::from_secs(10);
/// How long a counter stays in the table.
const COUNTER_TTL: Duration = Duration::from_hours(1);

/// See [`Store::holds`](super::Store::holds).
#[derive(Clone, Copy, Debug)]
pub struct Holds<'a> {
    table: &'a TableClient,
}

impl<'a> Holds<'a> {
    pub(super) const fn new(table: &'a TableClient) -> Self {
        Self { table }
    }
}

impl Holds<'_> {
    /// Counts an environment that begins to be held at `now`. The condition fails if the window is
    /// full.
    pub async fn try_begin(self, now: Timestamp) -> Result<WriteOutcome> {
        let window = now.as_unix_seconds().div_euclid(WINDOW_SECONDS);
        let expires_at = (now + COUNTER_TTL).as_unix_seconds();
        let response = self
            .table
            .update(key_schema::hold_window(window))
            .update_expression("SET #expires = :expires ADD holds :one")
            .condition_expression("attribute_not_exists(holds) OR holds < :limit")
            .expression_attribute_names("#expires", EXPIRES_AT)
            .expression_attribute_values(":expires", attr_n(expires_at))
            .expression_attribute_values(":one", attr_n(1))
            .expression_attribute_values(":limit", attr_n(MAX_HOLDS_PER_WINDOW))
            .send()
            .await;
        WriteOutcome::from_response(response)
    }
}

const WINDOW_SECONDS: i64 = WINDOW.as_secs().cast_signed();
