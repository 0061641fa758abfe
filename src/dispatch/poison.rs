//! Stores poison records, after the deliveries of their batch.
//!
//! A webhook that cannot be read is stored once in an interval, however many events wait for it.

use std::time::Duration;

use super::{poison_reason::PoisonReason, stream_record::Record};
use crate::{
    clock::{Clock, Deadline},
    concurrency,
    error_chain::error_chain,
    metrics::{Counter, Metrics},
    store::{
        Error, Result, Store, backoff_until, check_deadline,
        poison::{NewPoisonRecord, PoisonWebhook},
    },
};

/// How many poison records are written at the same time. A record may have 256 KB.
const CONCURRENT_POISON_WRITES: usize = 16;

/// A poison record to store.
pub(super) struct NewPoison<'a> {
    pub subject: PoisonSubject<'a>,
    pub reason: PoisonReason,
    /// The indexes of the stream records that must be read again if it cannot be stored.
    pub records: Vec<usize>,
}

/// What cannot be read.
pub(super) enum PoisonSubject<'a> {
    Record(&'a Record),
    Webhook(PoisonWebhook),
}

/// Stores poison records.
#[derive(Clone, Copy)]
pub(super) struct PoisonRecorder<'a> {
    pub store: &'a Store,
    pub clock: &'a Clock,
    pub retention: Duration,
    pub metrics: &'a Metrics,
}

impl PoisonRecorder<'_> {
    /// Stores poison records for an operator to inspect and redrive. Records that DynamoDB
    /// throttles are written again after the others, until the deadline. Returns the indexes of the
    /// stream records that must be read again.
    pub(super) async fn store(
        self,
        mut poison: Vec<NewPoison<'_>>,
        deadline: Deadline,
    ) -> Vec<usize> {
        let mut unfinished = Vec::new();
        let mut last_error = None;
        for round in 0.. {
            let writes = concurrency::map_concurrent(poison, CONCURRENT_POISON_WRITES, |poison| {
                self.store_once(poison, deadline)
            });
            poison = Vec::new();
            for (new, stored) in writes.await {
                match stored {
                    Ok(()) => continue,
                    Err(Error::Unavailable(_)) => poison.push(new),
                    Err(_) => unfinished.extend(new.records),
                }
                last_error = stored.err();
            }
            if poison.is_empty() || backoff_until(round, deadline).await.is_err() {
                break;
            }
        }
        for new in poison {
            unfinished.extend(new.records);
        }
        if let Some(error) = last_error
            && !unfinished.is_empty()
        {
            tracing::error!(
                records = unfinished.len(),
                error = error_chain(&error),
                "Could not store poison records; they will be read again"
            );
        }
        unfinished
    }

    async fn store_once(
        self,
        new: NewPoison<'_>,
        deadline: Deadline,
    ) -> (NewPoison<'_>, Result<()>) {
        let stored = match check_deadline(deadline) {
            Ok(()) => match &new.subject {
                PoisonSubject::Record(record) => self.store_record(record, &new.reason).await,
                PoisonSubject::Webhook(webhook) => self.store_webhook(webhook, &new.reason).await,
            },
            Err(error) => Err(error),
        };
        (new, stored)
    }

    async fn store_record(self, record: &Record, reason: &PoisonReason) -> Result<()> {
        let now = self.clock.now();
        let poison = record.to_poison(reason);
        let expires_at = now + self.retention;
        let poison_records = self.store.poison();
        poison_records.put_once(&poison, now, expires_at).await?;
        tracing::error!(
            stream = poison.stream,
            sequence_number = poison.sequence_number,
            code = reason.code(),
            reason = poison.reason,
            "Found a poison record"
        );
        self.metrics.increment(Counter::Poison);
        Ok(())
    }

    /// Stores a webhook that cannot be read, unless that was done in this interval.
    pub(super) async fn store_webhook(
        self,
        webhook: &PoisonWebhook,
        reason: &PoisonReason,
    ) -> Result<()> {
        let now = self.clock.now();
        let text = reason.to_string();
        let poison = NewPoisonRecord::for_webhook(webhook.clone(), reason.code(), text, now);
        let expires_at = now + self.retention;
        let poison_records = self.store.poison();
        let outcome = poison_records.insert_once(&poison, now, expires_at).await?;
        if outcome.is_applied() {
            tracing::error!(
                account = webhook.account.as_str(),
                webhook = %webhook.id,
                code = reason.code(),
                reason = poison.reason,
                "Found a poison record"
            );
            self.metrics.increment(Counter::Poison);
        }
        Ok(())
    }
}
