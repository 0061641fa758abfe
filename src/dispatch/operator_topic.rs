//! The operator's topic: operational events are published there, for example for e-mails to
//! customers.
//!
//! The events are recorded with the changes that they report, and published by a scheduled job. One
//! that could not be published is published later; one that was published twice has the same id.

use std::collections::HashMap;

use aws_sdk_sns::{Client, types::MessageAttributeValue};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    aws::format_sdk_error,
    clock::Deadline,
    concurrency,
    error_chain::error_chain,
    store::{Store, notifications::OperatorNotice},
};

/// How many notices of each partition are read at a time.
const PAGE_SIZE: usize = 50;
/// How many notices are published at the same time.
const CONCURRENT_PUBLISHES: usize = 8;

/// An SNS topic.
#[derive(Clone, Debug)]
pub struct OperatorTopic {
    /// The client.
    pub client: Client,
    /// The ARN of the topic.
    pub arn: String,
}

/// Notices of a page are left.
struct SomeUnpublished;

/// A message of the topic.
#[derive(Serialize)]
struct MessageJson<'a> {
    /// The id of the event, the same if a message is published again.
    id: &'a str,
    account_id: &'a str,
    /// As the account's webhooks receive it.
    payload: &'a RawValue,
}

impl OperatorTopic {
    /// Publishes what was not published yet, until the deadline or a failure, which is logged. The
    /// next run publishes the rest.
    pub(super) async fn publish_notices(&self, store: &Store, deadline: Deadline) {
        loop {
            let notices = match store.notices().list(PAGE_SIZE).await {
                Ok(notices) => notices,
                Err(error) => {
                    let error = error_chain(&error);
                    tracing::error!(error, "Could not list the notices for the operator's topic");
                    return;
                }
            };
            if notices.is_empty() || self.publish_page(store, notices, deadline).await.is_err() {
                return;
            }
        }
    }

    /// Fails if not all were published.
    async fn publish_page(
        &self,
        store: &Store,
        notices: Vec<OperatorNotice>,
        deadline: Deadline,
    ) -> Result<(), SomeUnpublished> {
        let publishes = concurrency::map_concurrent(notices, CONCURRENT_PUBLISHES, |notice| {
            self.publish_and_delete(store, notice, deadline)
        });
        let failures: Vec<_> = publishes
            .await
            .into_iter()
            .filter_map(Result::err)
            .collect();
        let Some(error) = failures.first() else {
            return Ok(());
        };
        tracing::error!(
            notices = failures.len(),
            topic = self.arn,
            error,
            "Could not publish notices to the operator's topic; they are published later"
        );
        Err(SomeUnpublished)
    }

    async fn publish_and_delete(
        &self,
        store: &Store,
        notice: OperatorNotice,
        deadline: Deadline,
    ) -> Result<(), String> {
        if deadline.remaining().is_zero() {
            return Err("the time of the invocation is over".to_owned());
        }
        self.publish(&notice).await?;
        let deleted = store.notices().delete(&notice).await;
        deleted.map_err(|error| error_chain(&error))
    }

    async fn publish(&self, notice: &OperatorNotice) -> Result<(), String> {
        let event_type = MessageAttributeValue::builder()
            .data_type("String")
            .string_value(&notice.event_type)
            .build()
            .expect("the type is set");
        let attributes = HashMap::from([("event".to_owned(), event_type)]);
        let response = self
            .client
            .publish()
            .topic_arn(&self.arn)
            .message(format_message(notice)?)
            .set_message_attributes(Some(attributes))
            .send()
            .await;
        match response {
            Ok(_) => Ok(()),
            Err(error) => Err(format_sdk_error(&error)),
        }
    }
}

fn format_message(notice: &OperatorNotice) -> Result<String, String> {
    let payload = RawValue::from_string(notice.payload.clone());
    let message = MessageJson {
        id: notice.event.as_str(),
        account_id: notice.account.as_str(),
        payload: &payload.map_err(|error| error.to_string())?,
    };
    serde_json::to_string(&message).map_err(|error| error.to_string())
}
