//! Rotation of a webhook's secret: the old one goes on signing beside the new for a while. Its end is a time in the item, so
//! nothing has to come by and end it.

use std::time::Duration;

use super::{
    Error, Result, into_condition_result, key_schema,
    secrets::{SECRETS, StoredSecret, encrypt_secret},
    serialize_error, sleep_with_backoff,
    webhooks::Webhooks,
};
use crate::clock::Deadline;
use aws_sdk_dynamodb::types::AttributeValue;
use nano_webhooks_core::{
    account_id::AccountId, secret::Secret, timestamp::Timestamp, webhook::WebhookId,
};

/// How many secrets of a webhook may sign at the same time. Receivers look at each signature, so they are few.
pub const MAX_ACTIVE_SECRETS: usize = 3;
/// How long a rotation is tried again when others change the same webhook at the same time.
const ROTATION_RETRY_LIMIT: Duration = Duration::from_secs(5);

/// What became of a request to rotate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RotateOutcome {
    /// The new secret signs.
    Rotated {
        /// How many secrets sign now.
        live: usize,
        /// When the one before signs no more; `None`: it does not already, or there was none.
        previous_until: Option<Timestamp>,
    },
    /// There are [`MAX_ACTIVE_SECRETS`] already, until this time.
    TooManyActive {
        /// When the first of them ends.
        until: Timestamp,
    },
    /// The account has no such webhook.
    NotFound,
}

impl Webhooks<'_> {
    /// Makes `secret` the one that signs; those before sign beside it for `grace`, or end at once if that is zero.
    ///
    /// # Errors
    /// If DynamoDB or KMS does not answer.
    pub async fn rotate_secret(
        self,
        account: &AccountId,
        id: WebhookId,
        secret: &Secret,
        grace: Duration,
        now: Timestamp,
    ) -> Result<RotateOutcome> {
        let key = self.store.secrets().active_data_key(now).await?;
        let new = encrypt_secret(key.as_deref(), account, id, secret);
        let deadline = Deadline::from_now(ROTATION_RETRY_LIMIT);
        for tried in 0.. {
            if deadline.remaining().is_zero() {
                break;
            }
            let Some(subscriber) = self.get_record(account, id).await? else {
                return Ok(RotateOutcome::NotFound);
            };
            let before = subscriber.secrets;
            // An answer that was lost on its way is asked for again, and the condition has not held since.
            if tried > 0 && before.first() == Some(&new) {
                return Ok(outcome(&before));
            }
            let after = match apply_rotation(&before, new.clone(), grace, now) {
                Ok(after) => after,
                Err(until) => return Ok(RotateOutcome::TooManyActive { until }),
            };
            let update = self
                .store
                .client
                .update_item()
                .table_name(&self.store.tables.webhooks)
                .set_key(Some(key_schema::webhook(account, id).into_item()))
                .update_expression("SET #secrets = :after, updated_at = :now")
                .condition_expression("#secrets = :before")
                .expression_attribute_names("#secrets", SECRETS)
                .expression_attribute_values(
                    ":before",
                    serde_dynamo::to_attribute_value(&before).map_err(serialize_error)?,
                )
                .expression_attribute_values(
                    ":after",
                    serde_dynamo::to_attribute_value(&after).map_err(serialize_error)?,
                )
                .expression_attribute_values(
                    ":now",
                    AttributeValue::N(now.as_unix_millis().to_string()),
                );
            if into_condition_result(update.send().await)? {
                return Ok(outcome(&after));
            }
            sleep_with_backoff(tried).await;
        }
        Err(Error::Unavailable(
            "too many changes of one webhook at the same time".to_owned(),
        ))
    }
}

fn outcome(secrets: &[StoredSecret]) -> RotateOutcome {
    RotateOutcome::Rotated {
        live: secrets.len(),
        previous_until: secrets.get(1).and_then(StoredSecret::until),
    }
}

/// The secrets after a rotation, the newest first, those that have ended left out. `Err`: there would be too many, until then.
fn apply_rotation(
    before: &[StoredSecret],
    new: StoredSecret,
    grace: Duration,
    now: Timestamp,
) -> std::result::Result<Vec<StoredSecret>, Timestamp> {
    let ends = now + grace;
    let old: Vec<_> = before
        .iter()
        .cloned()
        .map(|old| old.ending(ends))
        .filter(|old| old.is_live(now))
        .collect();
    if old.len() >= MAX_ACTIVE_SECRETS {
        return Err(old
            .iter()
            .filter_map(StoredSecret::until)
            .min()
            .unwrap_or(ends));
    }
    Ok([vec![new], old].concat())
}
