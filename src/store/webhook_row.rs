//! The stored form of a webhook.

use serde::{Deserialize, Serialize};

use super::{
    error::{Error, Result},
    secrets::StoredSecret,
    stored_headers::StoredHeaders,
};
use nano_webhooks_core::{
    delivery::pace::{MaxPerSecond, Pace},
    endpoint_url::EndpointUrl,
    event_type::EventTypes,
    timestamp::Timestamp,
    webhook::{Webhook, WebhookId, WebhookStatus},
};

/// What is shown of a webhook and decides nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookMetadata {
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Its owner's note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Why it is disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled_reason: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct WebhookRow {
    #[serde(rename = "PK")]
    pub(super) pk: String,
    #[serde(rename = "SK")]
    pub(super) sk: String,
    #[serde(flatten)]
    pub(super) fields: WebhookFields,
    #[serde(default)]
    pub(super) secrets: Vec<StoredSecret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) headers: Option<StoredHeaders>,
    #[serde(flatten)]
    pub(super) metadata: WebhookMetadata,
}

/// What a webhook and the record of its `Idempotency-Key` have in common.
#[derive(Serialize, Deserialize)]
pub(super) struct WebhookFields {
    url: String,
    events: Vec<String>,
    status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_per_second: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paced_since: Option<Timestamp>,
}

impl WebhookFields {
    pub(super) fn from_webhook(webhook: &Webhook) -> Self {
        Self {
            url: webhook.url.as_str().to_owned(),
            events: webhook.events.names().map(str::to_owned).collect(),
            status: webhook.status.as_str().to_owned(),
            max_per_second: webhook.pace.map(|pace| pace.max_per_second.get().into()),
            paced_since: webhook.pace.map(|pace| pace.since),
        }
    }

    pub(super) fn into_webhook(self, id: WebhookId) -> Result<Webhook> {
        let pace = self.parse_pace()?;
        let names = self.events.iter().map(String::as_str);
        Ok(Webhook {
            id,
            url: EndpointUrl::parse(&self.url).map_err(|_| Error::corrupt_item("url"))?,
            events: EventTypes::parse(names).map_err(|_| Error::corrupt_item("events"))?,
            status: WebhookStatus::parse(&self.status)
                .ok_or_else(|| Error::corrupt_item("status"))?,
            pace,
        })
    }

    fn parse_pace(&self) -> Result<Option<Pace>> {
        let Some(number) = self.max_per_second else {
            return Ok(None);
        };
        let limit = MaxPerSecond::new(number);
        let max_per_second = limit.ok_or_else(|| Error::corrupt_item("max_per_second"))?;
        let since = self.paced_since;
        let since = since.ok_or_else(|| Error::corrupt_item("time of max_per_second"))?;
        Ok(Some(Pace {
            max_per_second,
            since,
        }))
    }
}
