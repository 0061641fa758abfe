//! Why a stream record, or a webhook, is poison.

use std::sync::Arc;

use nano_webhooks_core::{
    account_id::AccountIdError, delivery::wait_reason::WaitReason, event::MAX_PAYLOAD_LEN,
    webhook::WebhookId,
};

use crate::error_chain::error_chain;
use crate::store::{self, webhooks::UnreadableWebhook};

/// Why no event, or not all deliveries, can be made from a stream record. The text and the code
/// are stored with the record.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PoisonReason {
    /// The JSON has another shape than Lambda documents.
    #[error("not a stream record: {0}")]
    NotAStreamRecord(#[source] Arc<serde_json::Error>),
    /// `eventName` has an unknown value.
    #[error("unknown event name `{0}`, expected INSERT, MODIFY or REMOVE")]
    UnknownEventName(String),
    /// The stream does not include new images.
    #[error("no new image: the stream's view type must be NEW_AND_OLD_IMAGES")]
    NoNewImage,
    /// The stream does not include old images.
    #[error("no old image: the stream's view type must be NEW_AND_OLD_IMAGES")]
    NoOldImage,
    /// The record has no sequence number.
    #[error("no sequence number")]
    NoSequenceNumber,
    /// The job lacks a required attribute.
    #[error("`{0}`: missing, expected a string (S)")]
    MissingAttribute(&'static str),
    /// An attribute of the job has another type than a string.
    #[error("`{0}`: expected a string (S)")]
    NotAString(&'static str),
    /// The job's `data` has another type than a map.
    #[error("`data`: expected a map (M)")]
    DataNotAMap,
    /// A number in the job's `data` is not a decimal number.
    #[error("`data`: `{0}` is not a number (N)")]
    InvalidNumber(String),
    /// The job's `account_id` is not an account id.
    #[error("`account_id`: {0}")]
    InvalidAccountId(#[source] AccountIdError),
    /// The payload is larger than [`MAX_PAYLOAD_LEN`].
    #[error("the payload would have {0} bytes, expected at most {MAX_PAYLOAD_LEN}")]
    PayloadTooLarge(usize),
    /// Parsing the record panicked.
    #[error("the record could not be parsed because of an internal error")]
    ParserPanicked,
    /// A webhook's item is invalid. Its deliveries wait until it is repaired.
    #[error("webhook {webhook} cannot be read: {}", error_chain(.source))]
    UnreadableWebhook {
        /// The webhook.
        webhook: WebhookId,
        /// The cause.
        source: Arc<store::Error>,
    },
    /// A webhook's secret or its headers are invalid. Its deliveries wait until it is repaired.
    #[error("the secret or the headers of webhook {webhook} cannot be read: {}", error_chain(.source))]
    UnreadableSecret {
        /// The webhook.
        webhook: WebhookId,
        /// The cause.
        source: Arc<store::Error>,
    },
    /// A redrive found no stored text of what was not a stream record.
    #[error("not a stream record, and too large to be stored")]
    TextNotStored,
    /// A redrive found no stored image, and the job is not finished.
    #[error("its image was not stored, and the job is in progress now")]
    JobInProgress,
    /// A redrive found no stored image, and no job.
    #[error("its image was not stored, and the job is gone")]
    JobGone,
    /// A redrive found no stored image, and was not given the jobs table.
    #[error("its image was not stored, and JOBS_TABLE is not set")]
    NoJobsTable,
}

impl PoisonReason {
    /// What the deliveries of a webhook wait for until an operator has repaired it.
    pub const fn wait_reason(&self) -> Option<WaitReason> {
        match self {
            Self::UnreadableSecret { .. } => Some(WaitReason::Secret),
            _ => None,
        }
    }

    /// The reason that a webhook's item is invalid.
    pub(super) fn unreadable_webhook(unreadable: UnreadableWebhook) -> Self {
        Self::UnreadableWebhook {
            webhook: unreadable.id,
            source: Arc::new(unreadable.error),
        }
    }

    /// The stable name of the reason, for searching the log and the stored records.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotAStreamRecord(_) => "not_a_stream_record",
            Self::UnknownEventName(_) => "unknown_event_name",
            Self::NoNewImage => "no_new_image",
            Self::NoOldImage => "no_old_image",
            Self::NoSequenceNumber => "no_sequence_number",
            Self::MissingAttribute(_) => "missing_attribute",
            Self::NotAString(_) => "not_a_string",
            Self::DataNotAMap => "data_not_a_map",
            Self::InvalidNumber(_) => "invalid_number",
            Self::InvalidAccountId(_) => "invalid_account_id",
            Self::PayloadTooLarge(_) => "payload_too_large",
            Self::ParserPanicked => "parser_panicked",
            Self::UnreadableWebhook { .. } => "unreadable_webhook",
            Self::UnreadableSecret { .. } => "unreadable_secret",
            Self::TextNotStored => "text_not_stored",
            Self::JobInProgress => "job_in_progress",
            Self::JobGone => "job_gone",
            Self::NoJobsTable => "no_jobs_table",
        }
    }
}
